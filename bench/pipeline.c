/*
 * Events from memory through the host's path, a ring, one worker process and
 * back: `pipeline_bench EVENTS [three|walk|raw|none] [headers] [key=value …]`
 * prints one line of JSON. See bench/pipeline.py.
 */
#include "base/clock.h"
#include "feed.h"
#include "handlers.h"
#include "worker/worker.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int memory_file(const char *text)
{
    int fd = memfd_create("config", 0);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        exit(1);
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static pid_t start_worker(struct feed *f)
{
    int config = memory_file("{\"index\":0,\"settings\":{},\"log\":{}}");
    char name[] = "worker", option[] = "--fds", fds[64];
    char *argv[] = {name, option, fds, NULL};
    pid_t pid;

    snprintf(fds, sizeof(fds), "%d,%d,%d,%d", f->ch.memory_fd,
             f->ch.wake_worker_fd, f->ch.wake_host_fd, config);
    fflush(NULL);
    atomic_store(&f->ch.control->host_alive_us, clock_mono_us());
    pid = fork();
    if (pid == 0)
        exit(worker_main(3, argv));
    return pid;
}

static void sleep_until_woken(struct feed *f)
{
    struct pollfd p = {.fd = f->ch.wake_host_fd, .events = POLLIN};

    poll(&p, 1, 100);
    channel_drain(f->ch.wake_host_fd);
}

static void wait_loaded(struct feed *f, unsigned handlers)
{
    const struct msg_head *msg;
    size_t len;

    while (handlers > 0) {
        while (ring_next(&f->up, &msg, &len) == RING_MESSAGE)
            handlers -= feed_say(f, msg, len);
        ring_release(&f->up);
        atomic_store(&f->ch.control->host_alive_us, clock_mono_us());
        if (handlers > 0 && ring_reader_sleep(&f->up))
            sleep_until_woken(f);
        ring_reader_wakeup(&f->up);
    }
}

/* Of a process that still runs; 0 is this one. */
static double cpu_us(pid_t pid)
{
    struct timespec t;
    clockid_t id;

    if (clock_getcpuclockid(pid, &id) != 0 || clock_gettime(id, &t) != 0)
        exit(1);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static long peak_kib(int who)
{
    struct rusage u;

    getrusage(who, &u);
    return u.ru_maxrss;
}

static void end_worker(struct feed *f, pid_t pid)
{
    const struct msg_head *msg;
    size_t len;

    while (!write_text(&f->down, MSG_DRAIN, 0, true, slice_of("")))
        feed_publish(f);
    feed_publish(f);
    while (waitpid(pid, NULL, WNOHANG) == 0) {
        while (ring_next(&f->up, &msg, &len) == RING_MESSAGE)
            ;
        ring_release(&f->up);
        atomic_store(&f->ch.control->host_alive_us, clock_mono_us());
        poll(NULL, 0, 1);
    }
}

static void set_shape(struct feed_shape *shape, const char *word)
{
    long n = strchr(word, '=') ? atol(strchr(word, '=') + 1) : 0;

    if (strcmp(word, "headers") == 0)
        shape->headers = true;
    else if (strncmp(word, "keys=", 5) == 0)
        shape->keys = (uint64_t)n;
    else if (strncmp(word, "handlers=", 9) == 0)
        shape->handlers = (unsigned)n;
    else if (strncmp(word, "others=", 7) == 0)
        shape->others = (unsigned)n;
    else if (strncmp(word, "types=", 6) == 0)
        shape->types = shape->handlers = (unsigned)n;
    else if (strncmp(word, "partitions=", 11) == 0)
        shape->partitions = (unsigned)n;
    else if (strncmp(word, "size=", 5) == 0)
        shape->size = (size_t)n;
}

int main(int argc, char **argv)
{
    struct feed_shape shape = {.events = argc > 1 ? atol(argv[1]) : 1000000,
                               .keys = 5000,
                               .size = 600,
                               .handlers = 1,
                               .partitions = 8};
    const char *name = argc > 2 ? argv[2] : "three";
    static struct feed f;
    double host_us, worker_us; /* without start, loading and end */
    int64_t start_us, us;
    pid_t pid;

    for (int i = 3; i < argc; i++)
        set_shape(&shape, argv[i]);
    feed_init(&f, &shape, 4 << 20, 1 << 20);
    pid = start_worker(&f);
    for (unsigned i = 0; i < shape.handlers; i++)
        feed_load(&f, i + 1, handler_named(name));
    feed_publish(&f);
    wait_loaded(&f, shape.handlers);
    feed_start(&f);
    start_us = clock_mono_us();
    host_us = cpu_us(0);
    worker_us = cpu_us(pid);
    while (!feed_is_over(&f))
        if (!feed_turn(&f))
            sleep_until_woken(&f);
    us = clock_mono_us() - start_us;
    host_us = cpu_us(0) - host_us;
    worker_us = cpu_us(pid) - worker_us;
    end_worker(&f, pid);
    printf("{\"events\": %ld, \"seconds\": %.6f, \"host_us\": %.4f, "
           "\"worker_us\": %.4f, \"host_kib\": %ld, \"worker_kib\": %ld}\n",
           shape.events, (double)us / 1e6, host_us / (double)shape.events,
           worker_us / (double)shape.events, peak_kib(RUSAGE_SELF),
           peak_kib(RUSAGE_CHILDREN));
    feed_fini(&f);
    return 0;
}
