/*
 * What a host and one of its workers share: a memfd with a control page and a
 * ring each way, and an eventfd each way. The host creates it and passes the
 * descriptors by exec; the worker attaches. Nothing in it is trusted by the
 * host: every field the worker writes is a hint with bounds.
 */
#ifndef MT_IPC_CHANNEL_H
#define MT_IPC_CHANNEL_H

#include "base/err.h"
#include "ipc/ring.h"

#define CHANNEL_SLOTS    4096 /* deliveries a worker may hold at once */
#define CHANNEL_BACKENDS 64   /* database sessions a worker may have */

struct channel_backend {
    _Atomic int32_t pid; /* 0: free. The server process of a session */
};

struct channel_control {
    uint64_t magic;
    uint64_t down_size, up_size; /* ring sizes in bytes */
    struct ring_shared down, up; /* host → worker, worker → host */

    /* Written by the host, CLOCK_MONOTONIC µs: a worker whose host is silent
     * for two thirds of a lease stops (design 13.2). */
    _Alignas(64) _Atomic int64_t host_alive_us;

    /* Written by the worker. `busy_since_us` is 0 while it sleeps in its loop;
     * else when it last showed a sign of life: each turn, each delivery. */
    _Alignas(64) _Atomic int64_t busy_since_us;
    /* Slot + 1 of the delivery whose Lua runs right now, 0 for none. Of a
     * batch: its first. */
    _Atomic uint32_t running;
    _Atomic uint32_t running_count; /* a batch runs slots listed in `started` */
    /* One bit a slot: began to run and has no verdict yet. */
    _Atomic uint64_t started[CHANNEL_SLOTS / 64];
    struct channel_backend backends[CHANNEL_BACKENDS];
};

struct channel {
    int memory_fd;
    int wake_worker_fd, wake_host_fd; /* eventfds, non-blocking */
    struct channel_control *control;
    char *down, *up;           /* the doubly mapped data */
    size_t mapped;             /* of the control part */
    size_t down_size, up_size; /* ours: the control part can be written to */
};

/* Sizes are rounded up to a power of two and a page. */
bool channel_create(struct channel *ch, size_t down_size, size_t up_size,
                    struct err *err) MUST_CHECK;
/* In the worker, from the inherited descriptors. */
bool channel_attach(struct channel *ch, int memory_fd, int wake_worker_fd,
                    int wake_host_fd, struct err *err) MUST_CHECK;
/* Unmaps and closes. */
void channel_close(struct channel *ch);

void channel_wake(int eventfd); /* never blocks */
void channel_drain(int eventfd);

#endif
