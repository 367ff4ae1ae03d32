/*
 * What the host and its probe server say to each other: one message a packet,
 * on a socket pair of SOCK_SEQPACKET. The host asks for a child, whose standard
 * input and output come with the message, or for a child's end; the server
 * tells how each child ended. Ids are the host's; an unknown one is ignored.
 */
#ifndef MT_IPC_SPAWN_H
#define MT_IPC_SPAWN_H

#include "base/err.h"

#include <stdint.h>

enum spawn_kind {
    SPAWN_START,  /* host: fork one, with two descriptors */
    SPAWN_KILL,   /* host */
    SPAWN_ENDED,  /* server: `status` as of waitpid(2) */
    SPAWN_FAILED, /* server: could not fork, `status` is errno */
};

struct spawn_msg {
    uint32_t kind;
    int32_t status;
    uint64_t id;
};

/* With descriptors when `fds` is not NULL; they stay the caller's. False when
 * the other side is gone, or has no room and the socket does not block. */
bool spawn_send(int socket, const struct spawn_msg *msg,
                const int fds[2]) MUST_CHECK;

enum spawn_read { SPAWN_MESSAGE, SPAWN_NOTHING, SPAWN_OVER };

/* `fds` (close-on-exec) are the caller's with SPAWN_START; the others set them
 * to -1. OVER: the other side is gone, or speaks another language. */
enum spawn_read spawn_receive(int socket, struct spawn_msg *msg, int fds[2]);

#endif
