/* The fences of gaps, how old the oldest gap is, and who holds it open. */
#include "base/clock.h"
#include "base/log.h"
#include "sources/outbox_priv.h"

#include <stdlib.h>

#define OLD_GAP_S 5.0

static const char component[] = "outbox";

void outbox_note_gap_age(struct outbox_source *s)
{
    uint64_t oldest = readings_oldest_fence(&s->readings);

    if (oldest != s->gap_fence) {
        s->gap_fence = oldest;
        s->gap_since_us = clock_mono_us();
        json_decref(s->holder);
        s->holder = NULL;
    }
}

static void on_fence(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct outbox_source *s = arg;

    if (err)
        outbox_on_failure(s, "fence", err);
    readings_end_fence(
        &s->readings, err ? 0 : strtoull(pg_result_value(res, 0, 0), NULL, 10));
    outbox_note_gap_age(s);
    outbox_step_after(s, SOON);
}

void outbox_draw_fence(struct outbox_source *s)
{
    s->activity = FENCING;
    readings_begin_fence(&s->readings);
    s->fenced_us = clock_mono_us();
    pg_pool_query(s->pool, "SELECT pg_current_xact_id()::text", 0, NULL,
                  on_fence, s);
}

static void take_holder(struct outbox_source *s, const struct pg_result *res)
{
    static const char *const names[] = {
        "pid", "seconds", "query", "state", "user", "application", "database"};

    s->holder = json_object();
    for (int i = 0; i < 7; i++) {
        const char *value = pg_result_value(res, 0, i);

        json_object_set_new(s->holder, names[i],
                            i < 2 ? json_integer(strtoll(value, NULL, 10))
                                  : json_string(value));
    }
    log_warn("a transaction keeps a gap of the outbox open",
             "pid=%s seconds=%s query=" LOG_Q, pg_result_value(res, 0, 0),
             pg_result_value(res, 0, 1), pg_result_value(res, 0, 2));
}

static void on_holder(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;

    json_decref(s->holder);
    s->holder = NULL;
    if (err)
        outbox_on_failure(s, "gap holder", err);
    else if (pg_result_nrows(res) > 0)
        take_holder(s, res);
    outbox_step_after(s, SOON);
}

bool outbox_wants_holder(const struct outbox_source *s, int64_t now)
{
    return outbox_source_gap_age(s) > OLD_GAP_S &&
           now - s->named_us > (int64_t)(OLD_GAP_S * 1e6);
}

void outbox_ask_holder(struct outbox_source *s, int64_t now)
{
    s->activity = NAMING;
    s->named_us = now;
    pg_pool_query(s->pool, outbox_holder_sql, 0, NULL, on_holder, s);
}

double outbox_source_gap_age(const struct outbox_source *s)
{
    if (s->gap_fence == 0)
        return 0.;
    return (double)(clock_mono_us() - s->gap_since_us) / 1e6;
}
