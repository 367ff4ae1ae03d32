/*
 * A real worker process behind its channel: loading, verdicts under
 * back-pressure, unloading, draining, and what the control page says when it is
 * killed in the middle.
 */
#include "base/clock.h"
#include "base/mem.h"
#include "ipc/channel.h"
#include "ipc/msg.h"
#include "worker/worker.h"

#include <jansson.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct host {
    struct channel ch;
    struct ring_writer down;
    struct ring_reader up;
    pid_t pid;
    int acks, others, ready, loaded, unloaded;
    bool load_ok;
    char text[1000]; /* of the last loaded or verdict */
};

static void host_start(struct host *h, size_t up_size)
{
    static const char config[] = "{\"index\":3,\"settings\":{},"
                                 "\"log\":{\"level\":\"error\"}}";
    int fd = memfd_create("config", 0);
    char fds[64];
    char name[] = "worker", option[] = "--fds";
    char *argv[] = {name, option, fds, NULL};
    struct err err;

    memset(h, 0, sizeof(*h));
    assert_int_equal(write(fd, config, strlen(config)), strlen(config));
    lseek(fd, 0, SEEK_SET);
    assert_true(channel_create(&h->ch, 1 << 20, up_size, &err));
    ring_writer_init(&h->down, &h->ch.control->down, h->ch.down,
                     h->ch.control->down_size);
    ring_reader_init(&h->up, &h->ch.control->up, h->ch.up,
                     h->ch.control->up_size);
    atomic_store(&h->ch.control->host_alive_us, clock_mono_us());
    snprintf(fds, sizeof(fds), "%d,%d,%d,%d", h->ch.memory_fd,
             h->ch.wake_worker_fd, h->ch.wake_host_fd, fd);
    h->pid = fork();
    if (h->pid == 0)
        _exit(worker_main(3, argv));
    close(fd);
}

static void take_text(struct host *h, struct slice text)
{
    snprintf(h->text, sizeof(h->text), "%.*s", (int)text.len,
             text.ptr ? text.ptr : "");
}

static void take(struct host *h, const struct msg_head *msg, size_t len)
{
    struct verdict_msg v;
    struct slice text;
    uint32_t id;
    bool ok;

    if (msg->kind == MSG_VERDICT) {
        assert_true(read_verdict(msg, len, &v));
        h->acks += v.verdict == VERDICT_ACK;
        h->others += v.verdict != VERDICT_ACK;
        take_text(h, v.reason);
        return;
    }
    assert_true(read_text(msg, len, &id, &ok, &text));
    h->ready += msg->kind == MSG_READY;
    h->unloaded += msg->kind == MSG_UNLOADED;
    if (msg->kind == MSG_LOADED) {
        h->loaded++;
        h->load_ok = ok;
        take_text(h, text);
    }
}

/* Read what is there and sleep for more. */
static void turn(struct host *h)
{
    const struct msg_head *msg;
    struct pollfd p = {.fd = h->ch.wake_host_fd, .events = POLLIN};
    size_t len;

    ring_publish(&h->down);
    if (ring_writer_should_wake(&h->down))
        channel_wake(h->ch.wake_worker_fd);
    atomic_store(&h->ch.control->host_alive_us, clock_mono_us());
    while (ring_next(&h->up, &msg, &len) == RING_MESSAGE)
        take(h, msg, len);
    ring_release(&h->up);
    if (ring_reader_should_wake(&h->up))
        channel_wake(h->ch.wake_worker_fd);
    if (ring_reader_sleep(&h->up))
        poll(&p, 1, 50);
    ring_reader_wakeup(&h->up);
    channel_drain(h->ch.wake_host_fd);
}

static void load(struct host *h, const char *source)
{
    json_t *bundle =
        json_pack("{s:s, s:s, s:s, s:{s:s}, s:{}, s:{}, s:{}}", "name", "probe",
                  "version", "1", "main", "handlers/probe.lua", "sources",
                  "handlers/probe.lua", source, "modules", "templates", "decl");
    char *text = json_dumps(bundle, 0);

    assert_true(write_text(&h->down, MSG_LOAD, 1, true,
                           (struct slice){text, strlen(text)}));
    while (!h->loaded)
        turn(h);
    free(text);
    json_decref(bundle);
}

static bool deliver(struct host *h, uint32_t slot, const char *payload)
{
    struct delivery_msg d = {
        .slot = slot, .vm = 1, .attempt = 1, .lane = slot + 1};
    struct event_msg m = {.source = SOURCE_KAFKA,
                          .form = BODY_PAYLOAD,
                          .topic = SLICE_LIT("t"),
                          .partition = SLICE_LIT("t/0")};

    m.facts[FACT_ID] = SLICE_LIT("e-1");
    m.body = (struct slice){payload, strlen(payload)};
    return write_deliver(&h->down, &m, &d, 1);
}

static int host_end(struct host *h)
{
    int status = 0;
    pid_t pid;

    while ((pid = waitpid(h->pid, &status, WNOHANG)) == 0)
        turn(h);
    assert_int_equal(pid, h->pid);
    channel_close(&h->ch);
    return status;
}

static void drain(struct host *h)
{
    assert_true(
        write_text(&h->down, MSG_DRAIN, 0, true, (struct slice){"", 0}));
    assert_int_equal(host_end(h), 0);
}

static void test_load_run_drain(void **state)
{
    struct host h;

    (void)state;
    host_start(&h, 1 << 16);
    load(&h, "return { handle = function(event) if event.payload.n ~= 1 then "
             "error('x') end end }");
    assert_true(h.load_ok);
    for (uint32_t i = 0; i < 100; i++)
        assert_true(deliver(&h, i, "{\"n\":1}"));
    while (h.acks < 100)
        turn(&h);
    assert_int_equal(h.ready, 1);
    assert_int_equal(h.others, 0);
    drain(&h);
    assert_int_equal(h.unloaded, 1);
}

static void test_load_error_is_told(void **state)
{
    struct host h;

    (void)state;
    host_start(&h, 1 << 16);
    load(&h, "return {\n");
    assert_false(h.load_ok);
    assert_non_null(strstr(h.text, "handlers/probe.lua:"));
    kill(h.pid, SIGKILL);
    assert_true(WIFSIGNALED(host_end(&h)));
}

/* Verdicts with long reasons through the smallest ring there is: nothing is
 * lost while the host is slow. */
static void test_back_pressure(void **state)
{
    struct host h;
    int n = 0;

    (void)state;
    host_start(&h, 16384);
    load(&h, "return { handle = function(event, ctx) return "
             "ctx.dead(('x'):rep(4000)) end }");
    while (h.others < 500) {
        while (n < 500 && n - h.others < 200 && deliver(&h, (uint32_t)n, "{}"))
            n++;
        turn(&h);
    }
    assert_int_equal(h.others, 500);
    assert_int_equal(h.acks, 0);
    drain(&h);
}

static void test_draining_waits_for_what_runs(void **state)
{
    struct host h;

    (void)state;
    host_start(&h, 1 << 16);
    load(&h, "return { handle = function() "
             "require('moontide.timer').sleep('50ms') end }");
    for (uint32_t i = 0; i < 10; i++)
        assert_true(deliver(&h, i, "{}"));
    drain(&h);
    assert_int_equal(h.acks, 10);
}

/* A C function that never returns to Lua: only a kill ends it, and the control
 * page names the slot that ran and those that had begun. */
static void test_marks_of_a_killed_worker(void **state)
{
    struct channel_control *control;
    struct host h;

    (void)state;
    host_start(&h, 1 << 16);
    load(&h, "return { handle = function(event) "
             "if event.payload.wait then "
             "require('moontide.timer').sleep('1h') end "
             "while true do pcall(string.rep, 'x', 1e7) end end }");
    control = h.ch.control;
    assert_true(deliver(&h, 5, "{\"wait\":true}"));
    assert_true(deliver(&h, 6, "{}"));
    while (atomic_load(&control->running) != 7)
        turn(&h);
    kill(h.pid, SIGKILL);
    waitpid(h.pid, NULL, 0);
    assert_int_equal(atomic_load(&control->running), 7);
    assert_true(atomic_load(&control->started[0]) & (1u << 5));
    assert_true(atomic_load(&control->started[0]) & (1u << 6));
    assert_true(atomic_load(&control->busy_since_us) > 0);
    channel_close(&h.ch);
}

/* A host that is silent for two thirds of a lease: the worker stops, also in the
 * middle of Lua. The lease of the default settings is 6 s, so the sign of life
 * is set back. */
static void test_silent_host(void **state)
{
    struct host h;
    int status;

    (void)state;
    host_start(&h, 1 << 16);
    load(&h, "return { handle = function() end }");
    atomic_store(&h.ch.control->host_alive_us, clock_mono_us() - 4100000);
    assert_int_equal(waitpid(h.pid, &status, 0), h.pid);
    assert_int_equal(WEXITSTATUS(status), 3);
    channel_close(&h.ch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_run_drain),
        cmocka_unit_test(test_load_error_is_told),
        cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_draining_waits_for_what_runs),
        cmocka_unit_test(test_marks_of_a_killed_worker),
        cmocka_unit_test(test_silent_host),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
