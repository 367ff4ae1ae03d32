/*
 * What one event costs in instructions, under callgrind: the same count on
 * every machine, whatever else runs there. See bench/instructions.py.
 *
 *   instructions host EVENTS [headers]    decode → router → lanes → ring →
 *                                         verdict → window → position
 *   instructions worker EVENTS HANDLER    ring → event → handler → verdict
 *
 * The host's counting is switched on after a warm-up and off while the other
 * side of the ring is played. The worker is the real one, in this process, on
 * a ring that is filled beforehand and ends with an order to leave; two runs
 * of different length tell what an event adds.
 */
#include "base/clock.h"
#include "feed.h"
#include "handlers.h"
#include "worker/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#define WARM_UP 20000

/* --- the host's path -------------------------------------------------------- */

/* The worker's side: everything is done well at once. */
static void answer(struct ring_reader *down, struct ring_writer *up)
{
    const struct msg_head *msg;
    const struct delivery_msg *to;
    struct event_msg ev;
    size_t len, n;

    while (ring_next(down, &msg, &len) == RING_MESSAGE) {
        if (!read_deliver(msg, len, &ev, &to, &n))
            exit(1);
        for (size_t i = 0; i < n; i++)
            if (!write_verdict(
                    up, &(struct verdict_msg){.slot = to[i].slot,
                                              .generation = to[i].generation,
                                              .verdict = VERDICT_ACK,
                                              .duration_us = 10,
                                              .after_ms = -1}))
                exit(1);
    }
    ring_release(down);
    ring_publish(up);
}

static int host(long events, bool headers, unsigned handlers)
{
    struct feed_shape shape = {.events = events + WARM_UP,
                               .keys = 5000,
                               .size = 600,
                               .handlers = handlers,
                               .partitions = 8,
                               .headers = headers};
    struct ring_reader down;
    struct ring_writer up;
    static struct feed f;

    feed_init(&f, &shape, 4 << 20, 1 << 20);
    f.now_us = 1000000; /* its own clock: histograms count alike everywhere */
    ring_reader_init(&down, &f.ch.control->down, f.ch.down,
                     f.ch.control->down_size);
    ring_writer_init(&up, &f.ch.control->up, f.ch.up, f.ch.control->up_size);
    feed_start(&f);
    while (!feed_is_over(&f)) {
        if (f.offered >= WARM_UP)
            CALLGRIND_START_INSTRUMENTATION;
        feed_turn(&f);
        CALLGRIND_STOP_INSTRUMENTATION;
        answer(&down, &up);
    }
    printf("%ld\n", f.offered - WARM_UP);
    feed_fini(&f);
    return 0;
}

/* --- the worker's path --------------------------------------------------------- */

static int worker(long events, const char *handler, unsigned handlers)
{
    struct feed_shape shape = {.events = events,
                               .keys = 5000,
                               .size = 600,
                               .handlers = handlers,
                               .partitions = 8,
                               .headers = true};
    int config = memfd_create("config", 0);
    char name[] = "worker", option[] = "--fds", fds[64];
    char *argv[] = {name, option, fds, NULL};
    static const char text[] = "{\"index\":0,\"settings\":{},\"log\":{}}";
    static struct feed f;

    if (write(config, text, sizeof(text) - 1) < 0)
        return 1;
    lseek(config, 0, SEEK_SET);
    feed_init(&f, &shape, 8 << 20, 4 << 20);
    for (uint32_t vm = 1; vm <= handlers; vm++)
        feed_load(&f, vm, handler_named(handler));
    feed_start(&f);
    for (long before = -1; f.offered < events && f.offered != before;) {
        before = f.offered;
        feed_turn(&f);
    }
    if (f.offered < events || events > HANDLER_INFLIGHT_MAX ||
        !write_text(&f.down, MSG_DRAIN, 0, true, slice_of("")))
        return 1; /* more than the window holds */
    feed_publish(&f);
    /* Its lease on the host must outlast a run that is slow. */
    atomic_store(&f.ch.control->host_alive_us, clock_mono_us() + 3600000000);
    snprintf(fds, sizeof(fds), "%d,%d,%d,%d", f.ch.memory_fd,
             f.ch.wake_worker_fd, f.ch.wake_host_fd, config);
    CALLGRIND_START_INSTRUMENTATION;
    return worker_main(3, argv);
}

int main(int argc, char **argv)
{
    long events = argc > 2 ? atol(argv[2]) : 0;
    unsigned handlers = argc > 4 ? (unsigned)atoi(argv[4]) : 1;

    if (argc >= 4 && strcmp(argv[1], "host") == 0)
        return host(events, strcmp(argv[3], "headers") == 0, handlers);
    if (argc >= 4 && strcmp(argv[1], "worker") == 0)
        return worker(events, argv[3], handlers);
    fputs("instructions host EVENTS headers|envelope [HANDLERS]\n"
          "instructions worker EVENTS HANDLER [HANDLERS]\n",
          stderr);
    return 2;
}
