/*
 * A runtime without a host for tests of the worker: handlers from text, events
 * from memory, verdicts into an array.
 */
#ifndef WORKER_HARNESS_H
#define WORKER_HARNESS_H

#include "base/mem.h"
#include "worker/unit.h"
#include "worker/watchdog.h"

#include <ev.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct seen {
    uint32_t slot;
    enum verdict verdict;
    enum error_class class;
    char code[CODE_MAX + 1];
    char reason[REASON_MAX + 1];
    char traceback[TRACEBACK_MAX + 1];
    int64_t after_ms;
};

#define MAX_SEEN 4096

struct harness {
    struct runtime rt;
    struct unit *unit;
    struct seen *seen;
    int n_seen;
    bool is_loaded;
    char load_error[1000];
};

static struct harness *harness_of(struct runtime *rt)
{
    return rt->owner;
}

static void copy_slice(char *to, size_t size, struct slice s)
{
    snprintf(to, size, "%.*s", (int)s.len, s.ptr ? s.ptr : "");
}

static void on_seen(struct runtime *rt, const struct verdict_msg *v,
                    struct task *task)
{
    struct harness *h = harness_of(rt);
    struct seen *seen = &h->seen[h->n_seen % MAX_SEEN];

    (void)task;
    h->n_seen++;
    *seen = (struct seen){.slot = v->slot,
                          .verdict = v->verdict,
                          .class = v->class,
                          .after_ms = v->after_ms};
    copy_slice(seen->code, sizeof(seen->code), v->code);
    copy_slice(seen->reason, sizeof(seen->reason), v->reason);
    copy_slice(seen->traceback, sizeof(seen->traceback), v->traceback);
}

static void on_harness_loaded(struct unit *unit, const struct err *err)
{
    struct harness *h = harness_of(unit_runtime(unit));

    h->is_loaded = !err;
    snprintf(h->load_error, sizeof(h->load_error), "%s", err ? err->msg : "");
}

/* `decl` is JSON of the bundle's decl; soft_limit_ms 0 is the default. */
static void harness_init_limited(struct harness *h, const char *source,
                                 const char *decl, int soft_limit_ms)
{
    json_t *settings = json_object(), *bundle;
    struct err err;

    memset(h, 0, sizeof(*h));
    h->seen = xcalloc(MAX_SEEN, sizeof(*h->seen));
    runtime_init(&h->rt, ev_loop_new(0), settings);
    json_decref(settings);
    h->rt.owner = h;
    h->rt.verdict = on_seen;
    if (!watchdog_start(watchdog_new(&h->rt, 0), &err))
        fail_msg("%s", err.msg);
    bundle = json_pack("{s:s, s:s, s:s, s:{s:s}, s:{}, s:{}, s:o}", "name",
                       "probe", "version", "abc", "main", "handlers/probe.lua",
                       "sources", "handlers/probe.lua", source, "modules",
                       "templates", "decl", json_loads(decl, 0, NULL));
    assert_non_null(bundle);
    if (soft_limit_ms)
        json_object_set_new(bundle, "soft_limit_ms",
                            json_integer(soft_limit_ms));
    h->unit = unit_new(&h->rt, 1, bundle, on_harness_loaded);
    json_decref(bundle);
}

/* "{}" for a plain handler. */
__attribute__((unused)) static void
harness_init(struct harness *h, const char *source, const char *decl)
{
    harness_init_limited(h, source, decl, 0);
}

__attribute__((unused)) static void harness_fini(struct harness *h)
{
    struct watchdog *wd = h->rt.watchdog;
    struct ev_loop *loop = h->rt.loop;

    unit_free(h->unit);
    runtime_fini(&h->rt);
    watchdog_free(wd);
    ev_loop_destroy(loop);
    free(h->seen);
}

/* A delivery with its event, as they come out of the ring. */
struct offer {
    struct event_msg m;
    struct delivery_msg d;
};

__attribute__((unused)) static struct offer
harness_event(uint32_t slot, uint64_t lane, const char *payload)
{
    struct offer o = {.d = {.slot = slot, .vm = 1, .attempt = 1, .lane = lane},
                      .m = {.place = 7,
                            .source = SOURCE_KAFKA,
                            .form = BODY_PAYLOAD,
                            .topic = SLICE_LIT("orders"),
                            .partition = SLICE_LIT("orders/3")}};
    static char body[1 << 20]; /* with the padding that the ring has */

    snprintf(body, sizeof(body), "%s", payload);
    o.m.body = slice_of(body);
    o.m.facts[FACT_ID] = SLICE_LIT("e-1");
    o.m.facts[FACT_TYPE] = SLICE_LIT("order.paid");
    o.m.facts[FACT_AGGREGATE_TYPE] = SLICE_LIT("Order");
    o.m.facts[FACT_AGGREGATE_ID] = SLICE_LIT("o-1");
    o.m.facts[FACT_OCCURRED_AT] = SLICE_LIT("2026-03-01T10:15:00.250000Z");
    o.m.facts[FACT_VERSION] = SLICE_LIT("2");
    return o;
}

__attribute__((unused)) static void harness_give(struct harness *h,
                                                 const struct offer *o)
{
    struct record *record = record_take(&h->rt);

    record->m = o->m;
    unit_offer(h->unit, record, &o->d);
    record_put(&h->rt, record);
}

__attribute__((unused)) static void harness_offer(struct harness *h,
                                                  uint32_t slot, uint64_t lane,
                                                  uint16_t flags,
                                                  const char *payload)
{
    struct offer o = harness_event(slot, lane, payload);

    o.d.flags = flags;
    harness_give(h, &o);
    vms_reap(&h->rt);
}

/* Turn the loop until `n` verdicts are there. */
__attribute__((unused)) static void harness_wait(struct harness *h, int n)
{
    while (h->n_seen < n) {
        unit_flush(h->unit);
        if (h->n_seen < n)
            ev_run(h->rt.loop, EVRUN_ONCE);
        vms_reap(&h->rt);
    }
}

/* One handler, one event, one verdict. */
static struct seen run_limited(const char *source, const char *decl,
                               const char *payload, int soft_limit_ms)
{
    struct harness h;
    struct seen seen;

    harness_init_limited(&h, source, decl, soft_limit_ms);
    if (!h.is_loaded) {
        print_message("load: %s\n", h.load_error);
        memset(&seen, 0, sizeof(seen));
        seen.verdict = VERDICT_COUNT;
        seen.class = CLASS_COUNT;
        snprintf(seen.reason, sizeof(seen.reason), "%s", h.load_error);
    } else {
        harness_offer(&h, 1, 1, 0, payload);
        harness_wait(&h, 1);
        seen = h.seen[0];
    }
    harness_fini(&h);
    return seen;
}

__attribute__((unused)) static struct seen
run_once(const char *source, const char *decl, const char *payload)
{
    return run_limited(source, decl, payload, 0);
}

/* `handle` as the body of a function of event and ctx. */
__attribute__((unused)) static struct seen
run_body_limited(const char *body, const char *payload, int soft_limit_ms)
{
    char *source =
        xasprintf("return { handle = function(event, ctx) %s end }", body);
    struct seen seen = run_limited(source, "{}", payload, soft_limit_ms);

    free(source);
    return seen;
}

__attribute__((unused)) static struct seen run_body(const char *body,
                                                    const char *payload)
{
    return run_body_limited(body, payload, 0);
}

/* How the handler `what` ended; `reason` is a part of the reason. */
__attribute__((unused)) static void
assert_end(const char *what, const struct seen *seen, enum verdict verdict,
           enum error_class class, const char *reason)
{
    bool has_reason = strstr(seen->reason, reason) != NULL;

    if (seen->verdict != verdict || seen->class != class || !has_reason)
        print_error("%s\n    ended as %s, %s: %s\n", what,
                    seen->verdict < VERDICT_COUNT ? verdict_name(seen->verdict)
                                                  : "not loaded",
                    seen->class < CLASS_COUNT ? class_name(seen->class) : "-",
                    seen->reason);
    assert_int_equal(seen->verdict, verdict);
    assert_int_equal(seen->class, class);
    assert_true(has_reason);
}

#endif
