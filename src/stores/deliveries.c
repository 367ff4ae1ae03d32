/*
 * Rows are gathered while a statement is under way and go together with the
 * next one, so that skipping a backlog costs one statement for many events.
 */
#include "stores/deliveries.h"

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/partition.h"
#include "pg/pg.h"
#include "stores/clean.h"
#include "stores/tries.h"

#include <ev.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED     __attribute__((unused))
#define PRUNE_ROWS 20000

static const char component[] = "deliveries";

struct waiter {
    delivery_stored_fn *done;
    void *arg;
    bool is_fenced;
};

enum column {
    HANDLER,
    EVENT_ID,
    SOURCE,
    PARTITION,
    PLACE,
    OUTCOME,
    REASON,
    VERSION,
    ATTEMPTS,
    EPOCH,
    COLUMNS,
};

struct batch {
    struct delivery_store *store;
    struct buf columns[COLUMNS];
    struct waiter *waiters;
    size_t n, cap;
};

struct delivery_store {
    struct tries tries;
    struct ev_loop *loop;
    struct pg_pool *pool;   /* NULL: nothing is kept */
    struct batch *gathered; /* not sent yet, or NULL */
    bool is_sending;
    ev_timer soon; /* answers without a database, and the first of a batch */
    int64_t prune_seconds;
};

/* Gives the numbers of those that were not ours to store any more. */
static const char put_sql[] =
    "WITH k AS MATERIALIZED (SELECT * FROM"
    " unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[],"
    " $6::text[], $7::text[], $8::text[], $9::int[], $10::bigint[])"
    " WITH ORDINALITY AS k(handler, event_id, source, part, place, outcome,"
    " reason, version, attempts, epoch, i)),"
    " held AS MATERIALIZED (SELECT handler, source, part, epoch,"
    " moontide_holds(handler, source, part, epoch) AS yes FROM (SELECT DISTINCT"
    " handler, source, part, epoch FROM k ORDER BY 1, 2, 3) t),"
    " w AS (INSERT INTO event_deliveries (handler, event_id, source, partition,"
    " place, outcome, reason, version, attempts) SELECT DISTINCT ON (handler,"
    " event_id) handler, event_id, source, part, place, outcome, reason,"
    " version, attempts FROM k JOIN held h USING (handler, source, part, epoch)"
    " WHERE h.yes ON CONFLICT (handler, event_id) DO UPDATE SET"
    " outcome = excluded.outcome, reason = excluded.reason,"
    " version = excluded.version, attempts = excluded.attempts, at = now())"
    " SELECT i - 1 FROM k JOIN held h USING (handler, source, part, epoch)"
    " WHERE NOT h.yes";

/* Nothing when the same version ran here last. A position may have gone back;
 * the history of versions does not. */
static const char versions_sql[] =
    "WITH k AS (SELECT k.handler, k.part, k.version, v.ctid AS last, v.version"
    " AS was, greatest(k.place, v.from_place) AS place"
    " FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])"
    " AS k(handler, part, version, place)"
    " LEFT JOIN LATERAL (SELECT ctid, version, from_place"
    " FROM event_handler_versions v WHERE v.handler = k.handler"
    " AND v.partition = k.part ORDER BY from_place DESC, at DESC LIMIT 1) v"
    " ON true),"
    " closed AS (UPDATE event_handler_versions v SET to_place = k.place"
    " FROM k WHERE v.ctid = k.last AND k.was <> k.version)"
    " INSERT INTO event_handler_versions (handler, partition, version,"
    " from_place, at) SELECT handler, part, version, place, clock_timestamp()"
    " FROM k WHERE was IS DISTINCT FROM version";

static const char prune_sql[] =
    "WITH w AS (DELETE FROM event_inbox WHERE ctid = ANY (ARRAY(SELECT i.ctid"
    " FROM event_inbox i WHERE at < now() - $1::bigint * interval '1 second'"
    " AND NOT EXISTS (SELECT 1 FROM event_dead_letters d"
    "  WHERE d.event_id = i.event_id AND d.handler = i.handler"
    "  AND d.state IN ('dead', 'redriving')) LIMIT $2::int)) RETURNING 1)"
    " SELECT count(*) FROM w";

static void batch_free(struct batch *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < COLUMNS; i++)
        buf_fini(&b->columns[i]);
    free(b->waiters);
    free(b);
}

static struct batch *batch_new(struct delivery_store *s)
{
    struct batch *b = xcalloc(1, sizeof(*b));

    b->store = s;
    for (size_t i = 0; i < COLUMNS; i++)
        array_begin(&b->columns[i]);
    return b;
}

static void answer(struct batch *b)
{
    for (size_t i = 0; i < b->n; i++)
        b->waiters[i].done(b->waiters[i].arg, b->waiters[i].is_fenced);
    batch_free(b);
}

static void send_gathered(struct delivery_store *s);

static void on_put(void *arg, const struct pg_result *res)
{
    struct batch *b = arg;
    struct delivery_store *s = b->store;

    for (int row = 0; row < pg_result_nrows(res); row++) {
        size_t i = strtoul(pg_result_value(res, row, 0), NULL, 10);

        if (i < b->n)
            b->waiters[i].is_fenced = true;
    }
    s->is_sending = false;
    answer(b);
    send_gathered(s);
}

static void send_gathered(struct delivery_store *s)
{
    struct batch *b = s->gathered;
    struct try *q;

    if (!b || s->is_sending)
        return;
    s->gathered = NULL;
    if (!s->pool) {
        answer(b);
        return;
    }
    s->is_sending = true;
    q = try_new(&s->tries, "store skipped deliveries", put_sql);
    for (size_t i = 0; i < COLUMNS; i++) {
        array_end(&b->columns[i]);
        try_buf(q, &b->columns[i]);
    }
    try_send(q, on_put, b);
}

static void on_soon(UNUSED struct ev_loop *loop, ev_timer *timer,
                    UNUSED int events)
{
    send_gathered(timer->data);
}

static void add_clean(struct buf *column, struct slice text)
{
    char *clean = clean_text(text);

    array_add(column, clean);
    free(clean);
}

static void add_row(struct batch *b, const struct delivery_row *row)
{
    const struct event *event = row->event;
    const struct partition *p = event->partition;

    array_add(&b->columns[HANDLER], row->handler);
    add_clean(&b->columns[EVENT_ID], event->facts[FACT_ID]);
    array_add(&b->columns[SOURCE], source_kind_name(p->ops->kind));
    array_add(&b->columns[PARTITION], p->name);
    array_add_number(&b->columns[PLACE], event->place);
    array_add(&b->columns[OUTCOME], row->outcome);
    add_clean(&b->columns[REASON], slice_of(row->reason));
    array_add(&b->columns[VERSION], row->version);
    array_add_number(&b->columns[ATTEMPTS], row->attempts);
    array_add_number(&b->columns[EPOCH], row->epoch);
}

void delivery_store_put(struct delivery_store *s,
                        const struct delivery_row *row,
                        delivery_stored_fn *done, void *arg)
{
    struct batch *b;

    if (!s->gathered)
        s->gathered = batch_new(s);
    b = s->gathered;
    add_row(b, row);
    if (b->n == b->cap) {
        b->cap = b->cap ? 2 * b->cap : 64;
        b->waiters = xrealloc(b->waiters, b->cap * sizeof(*b->waiters));
    }
    b->waiters[b->n++] = (struct waiter){done, arg, false};
    if (!ev_is_active(&s->soon)) {
        ev_timer_set(&s->soon, 0., 0.);
        ev_timer_start(s->loop, &s->soon);
    }
}

static void on_versions(UNUSED void *arg, UNUSED const struct pg_result *res)
{
}

void delivery_store_versions(struct delivery_store *s, size_t n,
                             const struct version_row *rows)
{
    struct buf handlers = {0}, parts = {0}, versions = {0}, places = {0};
    struct buf *columns[] = {&handlers, &parts, &versions, &places};
    struct try *q;

    if (!s->pool || n == 0)
        return;
    for (size_t i = 0; i < 4; i++)
        array_begin(columns[i]);
    for (size_t i = 0; i < n; i++) {
        array_add(&handlers, rows[i].handler);
        array_add(&parts, rows[i].partition);
        array_add(&versions, rows[i].version);
        array_add_number(&places, rows[i].from_place);
    }
    q = try_new(&s->tries, "store handler versions", versions_sql);
    for (size_t i = 0; i < 4; i++) {
        array_end(columns[i]);
        try_buf(q, columns[i]);
    }
    try_send(q, on_versions, s);
}

static void prune(struct delivery_store *s);

/* Some at a time, so that the table is never locked for long. */
static void on_pruned(void *arg, const struct pg_result *res)
{
    struct delivery_store *s = arg;
    long n = strtol(pg_result_value(res, 0, 0), NULL, 10);

    if (n > 0)
        log_info("inbox pruned", "rows=%ld", n);
    if (n >= PRUNE_ROWS)
        prune(s);
}

static void prune(struct delivery_store *s)
{
    struct try *q = try_new(&s->tries, "prune the inbox", prune_sql);

    try_number(q, s->prune_seconds);
    try_number(q, PRUNE_ROWS);
    try_send(q, on_pruned, s);
}

void delivery_store_prune(struct delivery_store *s, int64_t seconds)
{
    s->prune_seconds = seconds;
    if (s->pool)
        prune(s);
}

struct delivery_store *delivery_store_new(struct ev_loop *loop,
                                          struct pg_pool *pool)
{
    struct delivery_store *s = xcalloc(1, sizeof(*s));

    s->loop = loop;
    s->pool = pool;
    tries_init(&s->tries, loop, pool);
    ev_timer_init(&s->soon, on_soon, 0., 0.);
    s->soon.data = s;
    return s;
}

void delivery_store_free(struct delivery_store *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->soon);
    tries_fini(&s->tries);
    batch_free(s->gathered);
    free(s);
}
