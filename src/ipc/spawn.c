#include "ipc/spawn.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS_BYTES (2 * sizeof(int))

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(FDS_BYTES)];
};

bool spawn_send(int socket, const struct spawn_msg *msg, const int fds[2])
{
    struct spawn_msg copy = *msg;
    struct iovec part = {.iov_base = &copy, .iov_len = sizeof(copy)};
    union control control = {0};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t n;

    if (fds) {
        packet.msg_control = control.bytes;
        packet.msg_controllen = sizeof(control.bytes);
        control.align = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                                         .cmsg_type = SCM_RIGHTS,
                                         .cmsg_len = CMSG_LEN(FDS_BYTES)};
        memcpy(CMSG_DATA(&control.align), fds, FDS_BYTES);
    }
    do
        n = sendmsg(socket, &packet, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(copy);
}

static void take_fds(struct msghdr *packet, int fds[2])
{
    const struct cmsghdr *head = CMSG_FIRSTHDR(packet);

    if (head && head->cmsg_level == SOL_SOCKET &&
        head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(FDS_BYTES))
        memcpy(fds, CMSG_DATA(head), FDS_BYTES);
}

enum spawn_read spawn_receive(int socket, struct spawn_msg *msg, int fds[2])
{
    struct iovec part = {.iov_base = msg, .iov_len = sizeof(*msg)};
    union control control = {0};
    struct msghdr packet = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof(control.bytes)};
    ssize_t n;

    fds[0] = fds[1] = -1;
    do
        n = recvmsg(socket, &packet, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return SPAWN_NOTHING;
    if (n > 0)
        take_fds(&packet, fds);
    if (n == (ssize_t)sizeof(*msg) &&
        (msg->kind == SPAWN_START) == (fds[0] >= 0))
        return SPAWN_MESSAGE;
    if (fds[0] >= 0) {
        close(fds[0]);
        close(fds[1]);
    }
    return SPAWN_OVER;
}
