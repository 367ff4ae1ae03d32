#include "stores/parked.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/jsontext.h"
#include "base/mem.h"
#include "core/handler.h"
#include "core/partition.h"
#include "pg/pg.h"
#include "stores/clean.h"
#include "stores/event_json.h"
#include "stores/tries.h"

#include <ev.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused))
#define BATCH  500   /* rows in a statement: each may lock a lane */
#define PAGE   20000 /* lanes in one answer */
#define LET_GO 5000  /* rows in one statement */

/* The columns of event_parked that a delivery fills, in the order of put_sql. */
enum column {
    HANDLER,
    SOURCE,
    PARTITION,
    LANE,
    PLACE,
    EVENT_ID,
    EVENT_TYPE,
    AGGREGATE_TYPE,
    AGGREGATE_ID,
    REASON,
    FLAG,
    BUCKET,
    ATTEMPTS,
    CLASS,
    ERROR,
    HISTORY,
    FORMAT,
    KEY,
    BODY,
    HEADERS,
    FACT_JSON,
    DELAY_MS,
    EPOCH,
    COLUMNS,
};

struct waiter {
    parked_put_fn *done;
    void *arg;
    bool has_lane;
    uint64_t lane;
    uint64_t serial;
};

struct batch {
    struct list link; /* in the store's queue, until it is sent */
    struct parked_store *store;
    struct buf columns[COLUMNS];
    struct waiter *waiters;
    size_t n, cap;
};

/* A lane that something was put into while a row was being removed. */
struct put {
    uint64_t lane, serial;
};

struct removal {
    struct parked_store *store;
    uint64_t lane, serial; /* of the puts before it */
    parked_removed_fn *done;
    void *arg;
};

struct parked_store {
    struct tries tries;
    struct ev_loop *loop;
    struct pg_pool *pool;
    struct list queue;  /* batches that are not sent yet, in their order */
    struct batch *sent; /* under way, or NULL */
    ev_timer soon;
    uint64_t serial; /* of the last put */
    size_t n_removing;
    struct put *puts; /* since the oldest removal under way */
    size_t n_puts, puts_cap;
};

static const char put_sql[] =
    "SELECT moontide_park(ROW(NULL, handler, source, partition, lane, place,"
    " event_id, event_type, aggregate_type, aggregate_id, reason, flag, bucket,"
    " false, NULL, attempts, class, error, history, format, key, body, headers,"
    " facts, NULL, '', NULL)::event_parked, delay_ms, epoch)"
    " FROM (SELECT * FROM unnest($1::text[], $2::text[], $3::text[],"
    " $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[],"
    " $9::text[], $10::text[], $11::text[], $12::int[], $13::int[],"
    " $14::text[], $15::text[], $16::jsonb[], $17::text[], $18::bytea[],"
    " $19::bytea[], $20::jsonb[], $21::jsonb[], $22::bigint[], $23::bigint[])"
    " WITH ORDINALITY AS u(handler, source, partition, lane, place, event_id,"
    " event_type, aggregate_type, aggregate_id, reason, flag, bucket, attempts,"
    " class, error, history, format, key, body, headers, facts, delay_ms,"
    " epoch, i) ORDER BY i) AS u";

static const char remove_sql[] = "SELECT moontide_unpark($1::bigint)";

static const char lanes_sql[] =
    "SELECT DISTINCT handler, lane FROM ("
    "(SELECT handler, lane FROM event_parked WHERE source = $1"
    " AND partition = $2 AND lane IS NOT NULL"
    " AND (handler, lane) > ($3, $4::bigint)"
    " ORDER BY handler, lane LIMIT $5::int)"
    " UNION ALL (SELECT handler, lane FROM event_dead_letters WHERE source = $1"
    " AND partition = $2 AND lane IS NOT NULL AND keeps_order"
    " AND state IN ('dead', 'redriving') AND (handler, lane) > ($3, $4::bigint)"
    " ORDER BY handler, lane LIMIT $5::int)) AS u"
    " ORDER BY handler, lane LIMIT $5::int";

static const char let_go_sql[] =
    "WITH w AS (UPDATE event_parked SET due_at = now() WHERE id = ANY (ARRAY("
    " SELECT x.id FROM event_parked AS x LEFT JOIN"
    " unnest($1::text[], $2::int[]) AS f(name, percent) ON f.name = x.flag"
    " WHERE x.reason = 'held' AND x.due_at IS NULL"
    " AND (f.name IS NULL OR x.bucket < f.percent * 100) LIMIT $3::int))"
    " RETURNING 1) SELECT count(*) FROM w";

static const char counts_sql[] =
    "SELECT coalesce(json_agg(json_build_array(handler, reason, n)), '[]')"
    " FROM (SELECT handler, reason, count(*) AS n FROM event_parked"
    " GROUP BY 1, 2) AS t";

/* --- putting ------------------------------------------------------------------- */

static void batch_free(struct batch *b)
{
    if (!b)
        return;
    list_remove(&b->link);
    for (size_t i = 0; i < COLUMNS; i++)
        buf_fini(&b->columns[i]);
    for (size_t i = 0; i < b->n; i++)
        free(b->waiters[i].arg);
    free(b->waiters);
    free(b);
}

static struct batch *batch_new(struct parked_store *s)
{
    struct batch *b = xcalloc(1, sizeof(*b));

    b->store = s;
    list_append(&s->queue, &b->link);
    for (size_t i = 0; i < COLUMNS; i++)
        array_begin(&b->columns[i]);
    return b;
}

static void send_next(struct parked_store *s);

static void on_put(void *arg, const struct pg_result *res)
{
    struct batch *b = arg;
    struct parked_store *s = b->store;

    s->sent = NULL;
    for (size_t i = 0; i < b->n; i++)
        b->waiters[i].done(b->waiters[i].arg,
                           *pg_result_value(res, (int)i, 0) != 't');
    batch_free(b);
    send_next(s);
}

static void send_next(struct parked_store *s)
{
    struct batch *b;
    struct try *q;

    if (s->sent || list_is_empty(&s->queue))
        return;
    b = s->sent = CONTAINER_OF(s->queue.next, struct batch, link);
    list_remove(&b->link);
    q = try_new(&s->tries, "park deliveries", put_sql);
    for (size_t i = 0; i < COLUMNS; i++) {
        array_end(&b->columns[i]);
        try_buf(q, &b->columns[i]);
    }
    try_send(q, on_put, b);
}

static void on_soon(UNUSED struct ev_loop *loop, ev_timer *timer,
                    UNUSED int events)
{
    send_next(timer->data);
}

static void add_clean(struct buf *column, struct slice text)
{
    char *clean = clean_text(text);

    array_add(column, clean);
    free(clean);
}

static void add_bytes(struct buf *column, struct slice bytes)
{
    static const char digits[] = "0123456789abcdef";
    char *hex;

    if (!bytes.ptr) {
        array_add(column, NULL);
        return;
    }
    hex = xmalloc(2 * bytes.len + 3);
    memcpy(hex, "\\x", 2);
    for (size_t i = 0; i < bytes.len; i++) {
        hex[2 + 2 * i] = digits[(unsigned char)bytes.ptr[i] >> 4];
        hex[3 + 2 * i] = digits[(unsigned char)bytes.ptr[i] & 15];
    }
    hex[2 + 2 * bytes.len] = '\0';
    array_add(column, hex);
    free(hex);
}

static void add_json(struct buf *column, json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);

    array_add(column, text && !strstr(text, "\\u0000") ? text : "{}");
    free(text);
    json_decref(json);
}

/* The failures of this time; those of before are in the row. */
static void add_history(struct buf *column, const struct failures *f)
{
    json_t *list = json_array();
    char at[RFC3339_SIZE];

    for (int i = 0; f && i < f->n; i++)
        json_array_append_new(
            list, json_pack("{s:i, s:s, s:s, s:o}", "attempt", f->at[i].attempt,
                            "at", clock_format(f->at[i].at_us, at), "class",
                            class_name(f->at[i].class), "error",
                            json_string_lossy(slice_of(f->at[i].error))));
    add_json(column, list);
}

/* A row of the outbox can be read again; a record of Kafka may be gone. One
 * that is parked again has its copy there. */
static void add_copy(struct batch *b, const struct event *event)
{
    bool is_copy = event->ops->kind == SOURCE_KAFKA && !event->parked_id;

    array_add(&b->columns[FORMAT], is_copy ? body_form_name(event->form) : "");
    add_bytes(&b->columns[KEY], is_copy ? event->key : (struct slice){0});
    add_bytes(&b->columns[BODY], is_copy ? event->body : (struct slice){0});
    if (!is_copy) {
        array_add(&b->columns[HEADERS], NULL);
        array_add(&b->columns[FACT_JSON], NULL);
        return;
    }
    add_json(&b->columns[HEADERS], event_headers_json(event));
    add_json(&b->columns[FACT_JSON], event_facts_json(event));
}

static void add_event(struct batch *b, const struct event *event)
{
    const struct partition *p = event->partition;

    array_add(&b->columns[SOURCE], source_kind_name(p->ops->kind));
    array_add(&b->columns[PARTITION], p->name);
    array_add_number(&b->columns[PLACE], event->place);
    add_clean(&b->columns[EVENT_ID], event->facts[FACT_ID]);
    add_clean(&b->columns[EVENT_TYPE], event->facts[FACT_TYPE]);
    add_clean(&b->columns[AGGREGATE_TYPE], event->facts[FACT_AGGREGATE_TYPE]);
    add_clean(&b->columns[AGGREGATE_ID], event->facts[FACT_AGGREGATE_ID]);
    add_copy(b, event);
}

static void add_how(struct batch *b, const struct delivery *d,
                    const struct parked_how *how)
{
    const struct failures *f = d->failures;

    if (how->has_lane)
        array_add_number(&b->columns[LANE], (int64_t)how->lane);
    else
        array_add(&b->columns[LANE], NULL);
    array_add(&b->columns[REASON], park_reason_name(how->reason));
    array_add(&b->columns[FLAG], how->flag);
    array_add_number(&b->columns[BUCKET], how->bucket);
    array_add_number(&b->columns[DELAY_MS], how->delay_ms);
    array_add_number(&b->columns[EPOCH], how->epoch);
    array_add_number(&b->columns[ATTEMPTS], d->attempt - 1);
    array_add(&b->columns[CLASS], f ? class_name(f->at[f->n - 1].class) : "");
    add_clean(&b->columns[ERROR], slice_of(f ? f->error : ""));
    add_history(&b->columns[HISTORY], f);
}

/* While rows are being removed: a lane that gets another one is not free. */
static void note_put(struct parked_store *s, const struct parked_how *how)
{
    s->serial++;
    if (s->n_removing == 0 || !how->has_lane)
        return;
    if (s->n_puts == s->puts_cap) {
        s->puts_cap = s->puts_cap ? 2 * s->puts_cap : 64;
        s->puts = xrealloc(s->puts, s->puts_cap * sizeof(*s->puts));
    }
    s->puts[s->n_puts++] = (struct put){how->lane, s->serial};
}

void parked_store_put(struct parked_store *s, const struct delivery *d,
                      const struct parked_how *how, parked_put_fn *done,
                      void *arg)
{
    struct batch *b = list_is_empty(&s->queue)
                          ? NULL
                          : CONTAINER_OF(s->queue.prev, struct batch, link);

    if (!b || b->n >= BATCH)
        b = batch_new(s);
    array_add(&b->columns[HANDLER], d->handler->name);
    add_event(b, d->event);
    add_how(b, d, how);
    note_put(s, how);
    if (b->n == b->cap) {
        b->cap = b->cap ? 2 * b->cap : 64;
        b->waiters = xrealloc(b->waiters, b->cap * sizeof(*b->waiters));
    }
    b->waiters[b->n++] =
        (struct waiter){done, arg, how->has_lane, how->lane, s->serial};
    if (!ev_is_active(&s->soon)) {
        ev_timer_set(&s->soon, 0., 0.);
        ev_timer_start(s->loop, &s->soon);
    }
}

/* --- removing ------------------------------------------------------------------ */

static bool is_on_its_way(const struct batch *b, uint64_t lane)
{
    for (size_t i = 0; b && i < b->n; i++)
        if (b->waiters[i].has_lane && b->waiters[i].lane == lane)
            return true;
    return false;
}

static bool was_put(const struct parked_store *s, const struct removal *r)
{
    for (size_t i = 0; i < s->n_puts; i++)
        if (s->puts[i].lane == r->lane && s->puts[i].serial > r->serial)
            return true;
    list_foreach(link, &s->queue)
        if (is_on_its_way(CONTAINER_OF(link, struct batch, link), r->lane))
            return true;
    return is_on_its_way(s->sent, r->lane);
}

static void on_removed(void *arg, const struct pg_result *res)
{
    struct removal *r = arg;
    struct parked_store *s = r->store;
    bool is_free = *pg_result_value(res, 0, 0) == 't' && !was_put(s, r);

    if (--s->n_removing == 0)
        s->n_puts = 0;
    r->done(r->arg, is_free);
    free(r);
}

void parked_store_remove(struct parked_store *s, int64_t id, uint64_t lane,
                         parked_removed_fn *done, void *arg)
{
    struct removal *r = xmalloc(sizeof(*r));
    struct try *q = try_new(&s->tries, "remove a parked delivery", remove_sql);

    *r = (struct removal){s, lane, s->serial, done, arg};
    s->n_removing++;
    try_number(q, id);
    try_forgotten(q, free);
    try_send(q, on_removed, r);
}

/* --- lanes ----------------------------------------------------------------------- */

struct lanes {
    struct parked_store *store;
    char *source, *partition;
    parked_lane_fn *each;
    void *arg;
};

static void lanes_free(void *ptr)
{
    struct lanes *l = ptr;

    free(l->source);
    free(l->partition);
    free(l->arg);
    free(l);
}

static void ask_lanes(struct lanes *l, const char *handler, const char *lane);

static void on_lanes(void *arg, const struct pg_result *res)
{
    struct lanes *l = arg;
    int rows = pg_result_nrows(res);

    for (int i = 0; i < rows; i++)
        l->each(l->arg, pg_result_value(res, i, 0),
                (uint64_t)strtoll(pg_result_value(res, i, 1), NULL, 10));
    if (rows == PAGE) {
        ask_lanes(l, pg_result_value(res, rows - 1, 0),
                  pg_result_value(res, rows - 1, 1));
        return;
    }
    l->each(l->arg, NULL, 0);
    lanes_free(l);
}

static void ask_lanes(struct lanes *l, const char *handler, const char *lane)
{
    struct try *q = try_new(&l->store->tries, "read parked lanes", lanes_sql);

    try_text(q, l->source);
    try_text(q, l->partition);
    try_text(q, handler);
    try_text(q, lane);
    try_number(q, PAGE);
    try_forgotten(q, lanes_free);
    try_send(q, on_lanes, l);
}

void parked_store_lanes(struct parked_store *s, const char *source,
                        const char *partition, parked_lane_fn *each, void *arg)
{
    struct lanes *l = xmalloc(sizeof(*l));

    *l = (struct lanes){s, xstrdup(source), xstrdup(partition), each, arg};
    ask_lanes(l, "", "0");
}

/* --- the rest ---------------------------------------------------------------------- */

struct letting {
    struct parked_store *store;
    char *names, *percents;
};

static void letting_free(void *ptr)
{
    struct letting *l = ptr;

    free(l->names);
    free(l->percents);
    free(l);
}

static void let_go(struct letting *l);

static void on_let_go(void *arg, const struct pg_result *res)
{
    struct letting *l = arg;

    if (strtol(pg_result_value(res, 0, 0), NULL, 10) >= LET_GO) {
        let_go(l);
        return;
    }
    letting_free(l);
}

static void let_go(struct letting *l)
{
    struct try *q = try_new(&l->store->tries, "let held ones go", let_go_sql);

    try_text(q, l->names);
    try_text(q, l->percents);
    try_number(q, LET_GO);
    try_forgotten(q, letting_free);
    try_send(q, on_let_go, l);
}

void parked_store_let_go(struct parked_store *s, const char *names,
                         const char *percents)
{
    struct letting *l = xmalloc(sizeof(*l));

    *l = (struct letting){s, xstrdup(names), xstrdup(percents)};
    let_go(l);
}

struct counting {
    parked_counts_fn *done;
    void *arg;
};

static void on_counts(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct counting *c = arg;

    c->done(c->arg,
            err ? NULL : json_loads(pg_result_value(res, 0, 0), 0, NULL));
    free(c);
}

void parked_store_counts(struct parked_store *s, parked_counts_fn *done,
                         void *arg)
{
    struct counting *c = xmalloc(sizeof(*c));

    *c = (struct counting){done, arg};
    pg_pool_query(s->pool, counts_sql, 0, NULL, on_counts, c);
}

struct parked_store *parked_store_new(struct ev_loop *loop,
                                      struct pg_pool *pool)
{
    struct parked_store *s = xcalloc(1, sizeof(*s));

    s->loop = loop;
    s->pool = pool;
    list_init(&s->queue);
    tries_init(&s->tries, loop, pool);
    ev_timer_init(&s->soon, on_soon, 0., 0.);
    s->soon.data = s;
    return s;
}

void parked_store_free(struct parked_store *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->soon);
    tries_fini(&s->tries);
    list_foreach_safe(link, &s->queue)
        batch_free(CONTAINER_OF(link, struct batch, link));
    batch_free(s->sent);
    free(s->puts);
    free(s);
}
