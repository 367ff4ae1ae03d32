/*
 * One statement at a time on one connection. step() decides which: check after
 * a connection (outbox_check.c), then reading (outbox_read.c); a fence when new
 * gaps have none; who holds a gap open when one gets old (outbox_gaps.c). Every
 * answer ends in outbox_step_after().
 *
 * Beside that outbox_lease.c takes and gives up shards, and outbox_shards.c is
 * what the host sees of each.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "pg/pg_tail.h"
#include "sources/outbox_priv.h"

#include <stdlib.h>
#include <string.h>

#define WOKEN      0.0002 /* s: pause before looking again */
#define ROOM_LEAST 64     /* rows: less is not worth a round trip */
#define UNUSED     __attribute__((unused))
#define CHECK_US   60000000
#define RETRY_US   2000000 /* after trouble or a failure */
#define STATS_US   2000000
#define FENCE_US   200000

static const char component[] = "outbox";

static void step(struct outbox_source *s);

static void step_in(struct outbox_source *s, double seconds)
{
    ev_timer_stop(s->loop, &s->timer);
    ev_timer_set(&s->timer, seconds, 0.);
    ev_timer_start(s->loop, &s->timer);
}

static void on_timer(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    step(timer->data);
}

void outbox_set_trouble(struct outbox_source *s, const char *text)
{
    if (text ? s->trouble && strcmp(s->trouble, text) == 0 : !s->trouble)
        return;
    free(s->trouble);
    s->trouble = text ? xstrdup(text) : NULL;
    if (text)
        log_error("outbox cannot be read", "table=%s why=" LOG_Q, s->table,
                  text);
    else
        log_info("outbox can be read again", "table=%s", s->table);
    outbox_tell_trouble(s);
}

/* It is the table's, not a shard's: said of one of them. */
void outbox_tell_trouble(struct outbox_source *s)
{
    const char *text = s->trouble;

    for (unsigned i = 0; i < SHARDS_MAX; i++) {
        struct partition *p = s->shards[i].p;

        if (!p || s->shards[i].is_closing)
            continue;
        s->sink.trouble(s->sink.ctx, p, text);
        text = NULL;
    }
}

void outbox_on_failure(struct outbox_source *s, const char *doing,
                       const struct err *err)
{
    if (err->kind == ERR_RETRIABLE)
        log_warn("outbox statement failed", "doing=%s err=" LOG_Q, doing,
                 err->msg);
    else
        outbox_set_trouble(s, err->msg);
    s->is_checked = false;
    s->failed_us = clock_mono_us();
}

void outbox_step_after(struct outbox_source *s, double seconds)
{
    s->activity = IDLE;
    step_in(s, s->is_woken ? 0. : seconds);
}

static bool may_read(const struct outbox_source *s)
{
    if (!s->is_checked)
        return false;
    for (size_t i = 0; i < s->readings.len; i++)
        if (!s->readings.at[i]->is_paused)
            return true;
    return false;
}

void outbox_step_soon(struct outbox_source *s)
{
    if (s->activity == IDLE)
        step_in(s, 0.);
}

/* A commit is heard of a little before others see it: a read that comes too
 * early is repeated soon. */
void outbox_ring(struct outbox_source *s)
{
    s->rings++;
    s->delay = WOKEN;
    if (s->activity == IDLE && may_read(s))
        step_in(s, 0.);
    else
        s->is_woken = true;
}

/* --- the latest ----------------------------------------------------------------- */

/* The latest is where the table ends now: what is still uncommitted below it
 * belongs to before. */
static void on_latest(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;

    if (err) /* asked again after the check */
        outbox_on_failure(s, "start", err);
    else if (!s->stopping.is_asked)
        outbox_shards_start_latest(
            s, strtoll(pg_result_value(res, 0, 0), NULL, 10) + 1);
    outbox_step_after(s, SOON);
}

static void ask_latest(struct outbox_source *s)
{
    s->activity = READING;
    pg_pool_query(s->pool, s->sql.highest, 0, NULL, on_latest, s);
}

/* --- what to do next ------------------------------------------------------------ */

static bool wants_check(const struct outbox_source *s, int64_t now)
{
    bool is_behind =
        readings_are_behind(&s->readings) || readings_are_full(&s->readings);
    int64_t every = is_behind ? STATS_US : CHECK_US;

    if (!s->is_checked)
        return !s->failed_us || now - s->failed_us > RETRY_US;
    return now - s->checked_us > every;
}

/* How many rows the next read may bring, beside `pending` ones. */
static bool has_room(struct outbox_source *s, size_t pending)
{
    size_t room = s->sink.room(s->sink.ctx);

    if (room > 0 && room < ROOM_LEAST)
        room = ROOM_LEAST; /* a read costs the same for a few rows */
    s->is_starved = room == 0;
    if (room < pending + ROOM_LEAST)
        return false;
    room -= pending;
    s->limit = room < (size_t)s->batch ? (int)room : s->batch;
    return true;
}

static void read_what_fits(struct outbox_source *s)
{
    if (has_room(s, 0))
        outbox_read(s);
    if (s->activity == IDLE)
        step_in(s, 0.2); /* or when wake() says so */
}

static bool wants_fence(const struct outbox_source *s, int64_t now)
{
    return readings_want_fence(&s->readings) && now - s->fenced_us > FENCE_US;
}

void outbox_read_ahead(struct outbox_source *s, size_t pending)
{
    int64_t now = clock_mono_us();

    if (may_read(s) && !wants_check(s, now) && !wants_fence(s, now) &&
        !outbox_wants_holder(s, now) && has_room(s, pending))
        outbox_read(s);
}

static void step(struct outbox_source *s)
{
    int64_t now = clock_mono_us();

    if (s->activity != IDLE || s->stopping.is_asked)
        return;
    if (wants_check(s, now) && s->halt.is_on && !s->halt.is_stored)
        outbox_store_halt(s);
    else if (wants_check(s, now))
        outbox_check_table(s);
    else if (s->is_checked && outbox_shards_want_latest(s))
        ask_latest(s);
    else if (!may_read(s))
        step_in(s, 0.2);
    else if (wants_fence(s, now))
        outbox_draw_fence(s);
    else if (outbox_wants_holder(s, now))
        outbox_ask_holder(s, now);
    else
        read_what_fits(s);
}

/* --- life --------------------------------------------------------------------------- */

static void on_state(void *arg, bool connected)
{
    struct outbox_source *s = arg;

    s->is_checked = false;
    s->failed_us = 0;
    if (connected && s->activity == IDLE)
        step_in(s, 0.);
}

struct outbox_source *outbox_source_new(struct ev_loop *loop,
                                        const struct outbox_options *opts,
                                        const struct source_sink *sink,
                                        struct err *err)
{
    struct outbox_source *s = xcalloc(1, sizeof(*s));
    struct pg_pool_options pool = {
        .url = opts->url,
        .name = "outbox",
        .application_name = "moontide outbox",
        .session_sql = opts->session_sql,
        .size = 1,
        .no_prepare = opts->no_prepare,
        .on_state = on_state,
        .arg = s,
    };

    s->loop = loop;
    s->sink = *sink;
    s->table = xstrdup(opts->table);
    s->interval = (double)opts->interval_ms / 1000.;
    s->batch = opts->batch;
    s->max_bytes = opts->max_bytes;
    s->must_exist = opts->must_exist;
    s->delay = SOON;
    ev_timer_init(&s->timer, on_timer, 0., 0.);
    s->timer.data = s;
    outbox_shards_init(s);
    if (!outbox_sql_init(&s->sql, opts->table, opts->columns, err))
        goto fail;
    s->fetch = outbox_fetch_new(s, opts);
    s->pool = pg_pool_new(loop, &pool, err);
    if (!s->pool || !outbox_listen(s, opts, err))
        goto fail;
    s->lease = outbox_lease_new(s, opts, err);
    if (!s->lease)
        goto fail;
    step_in(s, 0.);
    return s;

fail:
    outbox_source_free(s);
    return NULL;
}

void outbox_source_stop(struct outbox_source *s, void (*done)(void *arg),
                        void *arg)
{
    stopping_ask(&s->stopping, done, arg);
    outbox_lease_leave(s->lease);
}

void outbox_source_free(struct outbox_source *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->timer);
    s->stopping.is_asked = true;
    pg_tail_free(s->tail);
    outbox_fetch_free(s->fetch);
    outbox_lease_free(s->lease);
    pg_pool_free(s->pool);
    ev_timer_stop(s->loop, &s->timer);
    readings_fini(&s->readings);
    outbox_plan_fini(&s->plan);
    outbox_sql_fini(&s->sql);
    json_decref(s->holder);
    free(s->seen);
    outbox_forget_history(s);
    free(s->trouble);
    free(s->table);
    free(s);
}

unsigned outbox_source_shards(const struct outbox_source *s)
{
    return outbox_shards_opened(s);
}

const char *outbox_source_trouble(const struct outbox_source *s)
{
    return outbox_shards_opened(s) ? NULL : s->trouble;
}

bool outbox_source_connected(const struct outbox_source *s)
{
    return pg_pool_connected(s->pool);
}
