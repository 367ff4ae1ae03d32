#include "ipc/channel.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x6d6f6f6e74696465u /* "moontide" */
#define PAGE  4096u

static size_t control_bytes(void)
{
    return (sizeof(struct channel_control) + PAGE - 1) & ~(size_t)(PAGE - 1);
}

static size_t power_of_two(size_t size)
{
    size_t n = PAGE;

    while (n < size)
        n *= 2;
    return n;
}

/* The same `size` bytes of the file twice in a row. */
static char *map_twice(int fd, size_t offset, size_t size)
{
    char *base =
        mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (base == MAP_FAILED)
        return NULL;
    for (int i = 0; i < 2; i++)
        if (mmap(base + i * size, size, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED) {
            munmap(base, 2 * size);
            return NULL;
        }
    return base;
}

static bool map_all(struct channel *ch, size_t down, size_t up, struct err *err)
{
    ch->down_size = down;
    ch->up_size = up;
    ch->down = map_twice(ch->memory_fd, ch->mapped, down);
    ch->up = map_twice(ch->memory_fd, ch->mapped + down, up);
    if (ch->down && ch->up)
        return true;
    return err_set(err, ERR_FATAL, "mapping shared memory: %s",
                   strerror(errno));
}

static bool map_control(struct channel *ch, struct err *err)
{
    void *page = mmap(NULL, ch->mapped, PROT_READ | PROT_WRITE, MAP_SHARED,
                      ch->memory_fd, 0);

    if (page == MAP_FAILED)
        return err_set(err, ERR_FATAL, "mapping shared memory: %s",
                       strerror(errno));
    ch->control = page;
    return true;
}

bool channel_create(struct channel *ch, size_t down_size, size_t up_size,
                    struct err *err)
{
    size_t down = power_of_two(down_size), up = power_of_two(up_size);

    *ch = (struct channel){.memory_fd = -1,
                           .wake_worker_fd = -1,
                           .wake_host_fd = -1,
                           .mapped = control_bytes()};
    ch->memory_fd = memfd_create("moontide", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ch->wake_worker_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ch->wake_host_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ch->memory_fd < 0 || ch->wake_worker_fd < 0 || ch->wake_host_fd < 0 ||
        ftruncate(ch->memory_fd, (off_t)(ch->mapped + down + up)) != 0 ||
        fcntl(ch->memory_fd, F_ADD_SEALS,
              F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        err_set(err, ERR_FATAL, "making a worker's channel: %s",
                strerror(errno));
        goto fail;
    }
    if (!map_control(ch, err))
        goto fail;
    ch->control->magic = MAGIC;
    ch->control->down_size = down;
    ch->control->up_size = up;
    if (map_all(ch, down, up, err))
        return true;
fail:
    channel_close(ch);
    return false;
}

bool channel_attach(struct channel *ch, int memory_fd, int wake_worker_fd,
                    int wake_host_fd, struct err *err)
{
    struct stat st;

    *ch = (struct channel){.memory_fd = memory_fd,
                           .wake_worker_fd = wake_worker_fd,
                           .wake_host_fd = wake_host_fd,
                           .mapped = control_bytes()};
    if (fstat(memory_fd, &st) != 0 || (size_t)st.st_size < ch->mapped)
        return err_set(err, ERR_FATAL, "this is not a moontide channel");
    if (!map_control(ch, err))
        return false;
    if (ch->control->magic != MAGIC ||
        (size_t)st.st_size !=
            ch->mapped + ch->control->down_size + ch->control->up_size)
        return err_set(err, ERR_FATAL, "the channel is another version's");
    return map_all(ch, ch->control->down_size, ch->control->up_size, err);
}

void channel_close(struct channel *ch)
{
    if (ch->down)
        munmap(ch->down, 2 * ch->down_size);
    if (ch->up)
        munmap(ch->up, 2 * ch->up_size);
    if (ch->control)
        munmap(ch->control, ch->mapped);
    if (ch->memory_fd >= 0)
        close(ch->memory_fd);
    if (ch->wake_worker_fd >= 0)
        close(ch->wake_worker_fd);
    if (ch->wake_host_fd >= 0)
        close(ch->wake_host_fd);
    *ch = (struct channel){
        .memory_fd = -1, .wake_worker_fd = -1, .wake_host_fd = -1};
}

void channel_wake(int eventfd_)
{
    uint64_t one = 1;

    if (write(eventfd_, &one, sizeof(one)) < 0)
        return; /* full: the other side is being woken already */
}

void channel_drain(int eventfd_)
{
    uint64_t n;

    if (read(eventfd_, &n, sizeof(n)) < 0)
        return; /* nothing was there */
}
