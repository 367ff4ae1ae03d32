#include "stores/flags.h"

#include "base/log.h"
#include "base/mem.h"
#include "pg/pg.h"

#include <ev.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused))
#define LOOK_S 5. /* a lost notification is made up for within this */

static const char component[] = "flags";

struct flag_store {
    struct ev_loop *loop;
    struct pg_pool *pool;
    flags_changed_fn *changed;
    void *arg;
    ev_timer timer;
    struct pg_request *request;
    bool look_again;
    char *last; /* rows as reported, to tell a change */
};

struct change {
    flag_done_fn *done;
    void *arg;
};

#define TIME(column)  \
    "to_char(" column \
    " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

/* The rows, is one of them past its time, seconds until the next one is. */
static const char read_sql[] =
    "SELECT coalesce(json_agg(json_build_object('name', name, 'state', state,"
    " 'percent', percent, 'when_off', when_off, 'reason', reason, 'who', who,"
    " 'until', " TIME("until") ", 'updated_at', " TIME(
        "updated_at") ") ORDER BY name), '[]'), coalesce(bool_or(until <= "
                      "now()), false),"
                      " coalesce(extract(epoch FROM min(until) - now()), "
                      "3600)::float8"
                      " FROM event_flags";

/* The trigger tells every host of it; run only when there is something. */
static const char expire_sql[] =
    "WITH gone AS (DELETE FROM event_flags WHERE until <= now()"
    " AND previous IS NULL RETURNING 1),"
    " back AS (UPDATE event_flags SET state = previous->>'state',"
    " percent = (previous->>'percent')::int,"
    " when_off = coalesce(previous->>'when_off', 'hold'),"
    " reason = coalesce(previous->>'reason', ''),"
    " who = coalesce(previous->>'who', ''), until = NULL, previous = NULL,"
    " updated_at = now() WHERE until <= now() AND previous IS NOT NULL"
    " RETURNING 1) SELECT count(*) FROM back";

/* A temporary setting on top of a temporary one keeps the lasting one. */
static const char set_sql[] =
    "INSERT INTO event_flags AS f (name, state, when_off, reason, who, until,"
    " percent) VALUES ($1, $2, $3, coalesce($4, ''),"
    " coalesce($5, current_user), CASE WHEN $6::bigint > 0"
    "  THEN now() + $6::bigint * interval '1 millisecond' END, $7::int)"
    " ON CONFLICT (name) DO UPDATE SET state = excluded.state,"
    " percent = excluded.percent,"
    " when_off = excluded.when_off, reason = excluded.reason,"
    " who = excluded.who, until = excluded.until, updated_at = now(),"
    " previous = CASE WHEN excluded.until IS NULL THEN NULL"
    "  WHEN f.until IS NOT NULL THEN f.previous"
    "  ELSE jsonb_build_object('state', f.state, 'percent', f.percent,"
    "   'when_off', f.when_off, 'reason', f.reason, 'who', f.who) END";

static void look(struct flag_store *s);

static void look_in(struct flag_store *s, double seconds)
{
    ev_timer_stop(s->loop, &s->timer);
    ev_timer_set(&s->timer, seconds < LOOK_S ? seconds : LOOK_S, 0.);
    ev_timer_start(s->loop, &s->timer);
}

static void on_timer(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    look(timer->data);
}

static void report(struct flag_store *s, const char *text)
{
    json_t *rows;

    if (s->last && strcmp(s->last, text) == 0)
        return;
    free(s->last);
    s->last = xstrdup(text);
    rows = json_loads(text, 0, NULL);
    s->changed(s->arg, rows);
    json_decref(rows);
}

static void on_expired(void *arg, UNUSED const struct pg_result *res,
                       const struct err *err)
{
    struct flag_store *s = arg;

    s->request = NULL;
    if (err)
        log_warn("cannot restore flags", "err=" LOG_Q, err->msg);
    look_in(s, err ? LOOK_S : 0.);
}

static void on_rows(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct flag_store *s = arg;

    s->request = NULL;
    if (err) {
        log_warn("cannot read flags", "err=" LOG_Q, err->msg);
        look_in(s, err->kind == ERR_RETRIABLE ? 0.2 : LOOK_S);
    } else if (*pg_result_value(res, 0, 1) == 't') {
        s->request = pg_pool_query(s->pool, expire_sql, 0, NULL, on_expired, s);
    } else {
        report(s, pg_result_value(res, 0, 0));
        look_in(s, s->look_again
                       ? 0.
                       : strtod(pg_result_value(res, 0, 2), NULL) + 0.01);
        s->look_again = false;
    }
}

static void look(struct flag_store *s)
{
    if (s->request)
        s->look_again = true;
    else
        s->request = pg_pool_query(s->pool, read_sql, 0, NULL, on_rows, s);
}

static void on_notify(void *arg, UNUSED const char *channel,
                      UNUSED const char *payload)
{
    look(arg);
}

struct flag_store *flag_store_new(struct ev_loop *loop, struct pg_pool *pool,
                                  flags_changed_fn *changed, void *arg)
{
    struct flag_store *s = xcalloc(1, sizeof(*s));

    s->loop = loop;
    s->pool = pool;
    s->changed = changed;
    s->arg = arg;
    ev_timer_init(&s->timer, on_timer, LOOK_S, 0.);
    s->timer.data = s;
    pg_pool_listen(pool, "moontide_flags", on_notify, s);
    look(s);
    return s;
}

void flag_store_free(struct flag_store *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->timer);
    if (s->request)
        pg_request_forget(s->request);
    free(s->last);
    free(s);
}

static void on_changed(void *arg, UNUSED const struct pg_result *res,
                       const struct err *err)
{
    struct change *change = arg;

    change->done(change->arg, err);
    free(change);
}

static void change(struct flag_store *s, const char *sql, int n,
                   const struct pg_param *params, flag_done_fn *done, void *arg)
{
    struct change *request = xmalloc(sizeof(*request));

    *request = (struct change){done, arg};
    pg_pool_query(s->pool, sql, n, params, on_changed, request);
}

void flag_store_set(struct flag_store *s, const struct flag_set *set,
                    flag_done_fn *done, void *arg)
{
    char for_ms[24], percent[16];
    bool is_part = set->percent > 0 && set->percent < 100;
    struct pg_param params[] = {
        {.value = set->name},
        {.value = set->percent > 0 ? "on" : "off"},
        {.value = set->when_off ? set->when_off : "hold"},
        {.value = set->reason},
        {.value = set->who},
        {.value = for_ms},
        {.value = is_part ? percent : NULL},
    };

    snprintf(for_ms, sizeof(for_ms), "%" PRId64, set->for_ms);
    snprintf(percent, sizeof(percent), "%d", set->percent);
    change(s, set_sql, 7, params, done, arg);
}

void flag_store_unset(struct flag_store *s, const char *name,
                      flag_done_fn *done, void *arg)
{
    struct pg_param param = {.value = name};

    change(s, "DELETE FROM event_flags WHERE name = $1", 1, &param, done, arg);
}
