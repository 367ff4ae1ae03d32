/*
 * One worker process fed through its ring: events per second of a handler, and
 * CPU per event. Usage: worker_bench [handler body] [events]
 */
#include "base/clock.h"
#include "base/mem.h"
#include "ipc/channel.h"
#include "ipc/msg.h"
#include "worker/worker.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const char default_body[] =
    "local p = event.payload\n"
    "if p.total == nil or event.type == nil or event.aggregate_id == nil then"
    " error('a field is missing') end";

struct driver {
    struct channel ch;
    struct ring_writer down;
    struct ring_reader up;
    pid_t pid;
    long sent, done, bad;
};

static int memory_file(const char *text)
{
    int fd = memfd_create("config", 0);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        exit(1);
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static void start(struct driver *d)
{
    struct err err;
    char fds[64];
    char name[] = "worker", option[] = "--fds";
    char *argv[] = {name, option, fds, NULL};
    int config = memory_file("{\"index\":0,\"settings\":{},\"log\":{}}");

    if (!channel_create(&d->ch, 4 << 20, 1 << 20, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    ring_writer_init(&d->down, &d->ch.control->down, d->ch.down,
                     d->ch.control->down_size);
    ring_reader_init(&d->up, &d->ch.control->up, d->ch.up,
                     d->ch.control->up_size);
    atomic_store(&d->ch.control->host_alive_us, clock_mono_us());
    snprintf(fds, sizeof(fds), "%d,%d,%d,%d", d->ch.memory_fd,
             d->ch.wake_worker_fd, d->ch.wake_host_fd, config);
    d->pid = fork();
    if (d->pid == 0)
        exit(worker_main(3, argv));
}

static void publish(struct driver *d)
{
    ring_publish(&d->down);
    if (ring_writer_should_wake(&d->down))
        channel_wake(d->ch.wake_worker_fd);
}

/* Reads what is there; true when the message of `kind` was among it. */
static bool drain_up(struct driver *d, enum msg_kind kind)
{
    const struct msg_head *msg;
    struct verdict_msg v;
    bool seen = false;
    size_t len;

    while (ring_next(&d->up, &msg, &len) == RING_MESSAGE) {
        seen |= msg->kind == kind;
        if (msg->kind == MSG_VERDICT && read_verdict(msg, len, &v)) {
            d->done++;
            if (v.verdict != VERDICT_ACK) {
                if (!d->bad++)
                    fprintf(stderr, "%s: %.*s\n", verdict_name(v.verdict),
                            (int)v.reason.len, v.reason.ptr);
            }
        }
        if (msg->kind == MSG_LOADED) {
            struct slice text;
            uint32_t id;
            bool ok;

            read_text(msg, len, &id, &ok, &text);
            if (!ok) {
                fprintf(stderr, "%.*s\n", (int)text.len, text.ptr);
                exit(1);
            }
        }
    }
    ring_release(&d->up);
    if (ring_reader_should_wake(&d->up))
        channel_wake(d->ch.wake_worker_fd);
    return seen;
}

static void wait_up(struct driver *d)
{
    struct pollfd p = {.fd = d->ch.wake_host_fd, .events = POLLIN};

    atomic_store(&d->ch.control->host_alive_us, clock_mono_us());
    if (ring_reader_sleep(&d->up))
        poll(&p, 1, 100);
    ring_reader_wakeup(&d->up);
    channel_drain(d->ch.wake_host_fd);
}

static void wait_for(struct driver *d, enum msg_kind kind)
{
    while (!drain_up(d, kind))
        wait_up(d);
}

static void load(struct driver *d, const char *body)
{
    char *source =
        xasprintf("return { handle = function(event, ctx) %s end }", body);
    json_t *bundle =
        json_pack("{s:s, s:s, s:s, s:{s:s}, s:{}, s:{}, s:{}}", "name", "bench",
                  "version", "1", "main", "handlers/bench.lua", "sources",
                  "handlers/bench.lua", source, "modules", "templates", "decl");
    char *text = json_dumps(bundle, 0);

    write_text(&d->down, MSG_LOAD, 1, true, (struct slice){text, strlen(text)});
    publish(d);
    wait_for(d, MSG_LOADED);
    free(text);
    free(source);
    json_decref(bundle);
}

/* A native envelope of 600 bytes. */
static void make_event(char *text, size_t size)
{
    int n = snprintf(
        text, size,
        "{\"id\":\"7d444840-9dc0-11d1-b245-5ffdce74fad2\",\"eventType\":"
        "\"order.created\",\"eventVersion\":1,\"aggregateType\":\"Order\","
        "\"aggregateId\":\"o-4711\",\"occurredAt\":"
        "\"2026-03-01T10:15:00.000000Z\",\"payload\":{\"number\":\"R-4711\","
        "\"customer\":{\"name\":\"Ann Example\",\"email\":\"ann@example.com\"},"
        "\"total\":59.9,\"currency\":\"USD\",\"items\":[{\"sku\":\"A-1\","
        "\"name\":\"Thing\",\"quantity\":2,\"price\":\"19.95\"},{\"sku\":\"B-"
        "2\""
        ",\"name\":\"Other "
        "thing\",\"quantity\":1,\"price\":\"20.00\"}],\"note\":"
        "\"");

    while (n < 530)
        text[n++] = 'x';
    snprintf(
        text + n, size - (size_t)n,
        "\"},\"metadata\":{\"actorId\":\"u-1\",\"correlationId\":\"c-1\"}}");
}

static void run(struct driver *d, long events)
{
    char body[1024];
    struct delivery_msg m = {.vm = 1,
                             .attempt = 1,
                             .source = SOURCE_KAFKA,
                             .form = BODY_NATIVE,
                             .topic = SLICE_LIT("domain.Order"),
                             .partition = SLICE_LIT("domain.Order/0")};

    make_event(body, sizeof(body));
    m.body = slice_of(body);
    m.facts[FACT_ID] = SLICE_LIT("7d444840-9dc0-11d1-b245-5ffdce74fad2");
    m.facts[FACT_TYPE] = SLICE_LIT("order.created");
    m.facts[FACT_AGGREGATE_ID] = SLICE_LIT("o-4711");
    while (d->done < events) {
        long before = d->sent + d->done;

        for (int i = 0; i < 128 && d->sent < events && d->sent - d->done < 2048;
             i++) {
            m.slot = (uint32_t)(d->sent % CHANNEL_SLOTS);
            m.lane = (uint64_t)d->sent % 500;
            if (!write_deliver(&d->down, &m))
                break;
            d->sent++;
        }
        publish(d);
        drain_up(d, MSG_VERDICT);
        if (d->sent + d->done == before)
            wait_up(d);
    }
}

int main(int argc, char **argv)
{
    struct driver d = {0};
    long events = argc > 2 ? atol(argv[2]) : 2000000;
    struct rusage usage;
    int64_t start_us, us;
    int status;

    start(&d);
    wait_for(&d, MSG_READY);
    load(&d, argc > 1 && *argv[1] ? argv[1] : default_body);
    start_us = clock_mono_us();
    run(&d, events);
    us = clock_mono_us() - start_us;
    write_text(&d.down, MSG_DRAIN, 0, true, slice_of(""));
    publish(&d);
    while (waitpid(d.pid, &status, WNOHANG) == 0) {
        drain_up(&d, MSG_READY);
        atomic_store(&d.ch.control->host_alive_us, clock_mono_us());
    }
    getrusage(RUSAGE_CHILDREN, &usage);
    printf(
        "%ld events, %ld not acked, %.0f events/s, worker CPU %.3f us/event, "
        "%ld MiB\n",
        d.done, d.bad, (double)events * 1e6 / (double)us,
        ((double)usage.ru_utime.tv_sec * 1e6 + (double)usage.ru_utime.tv_usec) /
            (double)events,
        usage.ru_maxrss / 1024);
    return status;
}
