#include "sources/parked_source.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/pipeline.h"
#include "pg/pg.h"
#include "sources/outbox_sql.h"
#include "stores/parked.h"
#include "stores/tries.h"

#include <ev.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED    __attribute__((unused))
#define LOOK_S    0.5
#define OPEN_MAX  400 /* rows on their way */
#define HEADS     50  /* lanes in one answer, */
#define FOLLOWERS 20  /* and rows of each beside its head */

static const char component[] = "parked";

/* From its reading until its row is gone or was given back. */
struct row {
    struct list link;
    struct parked_source *source;
    struct partition *p; /* NULL: its partition is closed */
    struct handler *handler;
    int64_t id;
    uint64_t lane;
    bool has_lane;
    bool is_ending; /* the row is being removed */
    json_t *facts;
    char *body, *key, *why;
    char occurred[RFC3339_SIZE];
};

struct parked_source {
    struct ev_loop *loop;
    struct pg_pool *pool;
    struct parked_store *store;
    struct pipeline *pipeline;
    char *read, *read_outbox; /* the statement, with references or without */
    struct list rows;
    size_t open;
    bool is_stopped;
    struct pg_request *request;
    ev_timer timer;
};

enum column {
    ID,
    HANDLER,
    SOURCE,
    PARTITION,
    LANE,
    PLACE,
    REASON,
    ATTEMPTS,
    FORMAT,
    FACTS_TEXT,
    BODY,
    KEY,
    IS_HEAD,
    VERDICT,
    VERDICT_REASON,
};

static void look(struct parked_source *s);

/* --- rows ---------------------------------------------------------------------- */

static void row_free(struct row *row)
{
    list_remove(&row->link);
    row->source->open--;
    json_decref(row->facts);
    free(row->body);
    free(row->key);
    free(row->why);
    free(row);
}

static void look_in(struct parked_source *s, double seconds)
{
    ev_timer_stop(s->loop, &s->timer);
    ev_timer_set(&s->timer, seconds, 0.);
    ev_timer_start(s->loop, &s->timer);
}

static void on_timer(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    look(timer->data);
}

/* The lane may have been given to another host meanwhile. */
static bool is_open(const struct parked_source *s, const struct partition *p)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(s->pipeline, all, PARTITIONS_MAX);

    for (size_t i = 0; i < n; i++)
        if (all[i] == p)
            return true;
    return false;
}

static void on_removed(void *arg, bool is_free)
{
    struct row *row = arg;
    struct parked_source *s = row->source;

    if (is_free && row->has_lane && is_open(s, row->p))
        pipeline_unblock(row->p, row->handler, row->lane);
    row_free(row);
    if (s->open < OPEN_MAX / 2)
        look_in(s, 0.);
}

static void release(struct event *event)
{
    struct row *row = event->memory;

    if (!row->is_ending)
        row_free(row);
}

static void settled(struct event *event, UNUSED enum verdict how,
                    UNUSED const char *reason)
{
    struct row *row = event->memory;

    row->is_ending = true;
    parked_store_remove(row->source->store, row->id, row->lane, on_removed,
                        row);
}

static const struct source_ops kafka_ops = {
    .kind = SOURCE_KAFKA, .release = release, .settled = settled};
static const struct source_ops outbox_ops = {
    .kind = SOURCE_OUTBOX, .release = release, .settled = settled};

/* --- offering ------------------------------------------------------------------ */

static struct partition *partition_of(const struct parked_source *s,
                                      const char *source, const char *name)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(s->pipeline, all, PARTITIONS_MAX);

    for (size_t i = 0; i < n; i++)
        if (strcmp(all[i]->name, name) == 0 &&
            strcmp(source_kind_name(all[i]->ops->kind), source) == 0)
            return all[i];
    return NULL;
}

static struct handler *handler_of(const struct parked_source *s,
                                  const char *name)
{
    struct handler *const *all;
    size_t n = pipeline_handlers(s->pipeline, &all);

    for (size_t i = 1; i < n; i++)
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

static void fill_facts(struct event *event, struct row *row)
{
    for (enum fact fact = 0; fact < FACT_COUNT; fact++) {
        const json_t *value = json_object_get(row->facts, fact_name(fact));

        if (json_is_string(value))
            event->facts[fact] = (struct slice){json_string_value(value),
                                                json_string_length(value)};
    }
}

/* PostgreSQL's text of a time becomes RFC 3339, as the first time. */
static void set_time(struct event *event, struct row *row)
{
    struct slice *fact = &event->facts[FACT_OCCURRED_AT];
    int64_t us = fact->ptr ? clock_parse(fact->ptr, fact->len) : INT64_MIN;

    if (us == INT64_MIN)
        return;
    event->occurred_us = us;
    if (event->ops->kind == SOURCE_OUTBOX)
        *fact = slice_of(clock_format(us, row->occurred));
}

static struct row *row_new(struct parked_source *s, const struct pg_result *res,
                           int i, struct event *event)
{
    struct row *row = xcalloc(1, sizeof(*row));

    row->source = s;
    row->p = event->partition;
    row->id = strtoll(pg_result_value(res, i, ID), NULL, 10);
    row->has_lane = !pg_result_is_null(res, i, LANE);
    row->lane = (uint64_t)strtoll(pg_result_value(res, i, LANE), NULL, 10);
    row->handler = handler_of(s, pg_result_value(res, i, HANDLER));
    row->facts = json_loads(pg_result_value(res, i, FACTS_TEXT), 0, NULL);
    row->body = pg_result_bytes(res, i, BODY, &event->body.len);
    row->key = pg_result_bytes(res, i, KEY, &event->key.len);
    event->body.ptr = row->body;
    event->key.ptr = row->key;
    list_append(&s->rows, &row->link);
    s->open++;
    return row;
}

static void offer(struct parked_source *s, const struct pg_result *res, int i,
                  struct partition *p)
{
    struct event *event = pipeline_event_new(s->pipeline, p);
    struct row *row = row_new(s, res, i, event);

    event->ops = p->ops->kind == SOURCE_KAFKA ? &kafka_ops : &outbox_ops;
    event->memory = row;
    event->place = strtoll(pg_result_value(res, i, PLACE), NULL, 10);
    event->parked_id = row->id;
    event->parked_attempts =
        (int)strtol(pg_result_value(res, i, ATTEMPTS), NULL, 10);
    if (!pg_result_is_null(res, i, VERDICT)) {
        row->why = xstrdup(pg_result_value(res, i, VERDICT_REASON));
        event->parked_why = row->why;
        event->parked_verdict = *pg_result_value(res, i, VERDICT) == 's'
                                    ? VERDICT_SKIP
                                    : VERDICT_DEAD;
    }
    if (!body_form_parse(pg_result_value(res, i, FORMAT), &event->form))
        event->form = BODY_PAYLOAD;
    fill_facts(event, row);
    set_time(event, row);
    if (!event->body.ptr)
        event->body = SLICE_LIT("null");
    pipeline_offer_parked(s->pipeline, event, row->handler);
}

static bool is_offered(const struct parked_source *s, int64_t id)
{
    list_foreach(link, &s->rows)
        if (CONTAINER_OF(link, struct row, link)->id == id)
            return true;
    return false;
}

/* Does the row have what it refers to? Its outbox row may have been dropped by
 * hand; then it stays where people see it. */
static bool is_whole(const struct pg_result *res, int i)
{
    if (!pg_result_is_null(res, i, FACTS_TEXT))
        return true;
    log_error("parked event is gone from the outbox",
              "id=%s handler=%s place=%s", pg_result_value(res, i, ID),
              pg_result_value(res, i, HANDLER), pg_result_value(res, i, PLACE));
    return false;
}

/* A lane's rows stand together, its head first: what follows one that may not
 * go does not go either. */
static int offer_rows(struct parked_source *s, const struct pg_result *res)
{
    int rows = pg_result_nrows(res), taken = 0;
    bool goes_on = false;

    for (int i = 0; i < rows && s->open < OPEN_MAX; i++) {
        bool is_head = *pg_result_value(res, i, IS_HEAD) == 't';
        struct partition *p = partition_of(s, pg_result_value(res, i, SOURCE),
                                           pg_result_value(res, i, PARTITION));

        if (!is_head && (!goes_on || strcmp(pg_result_value(res, i, REASON),
                                            "behind") != 0))
            goes_on = false;
        else
            goes_on =
                p && is_whole(res, i) &&
                handler_of(s, pg_result_value(res, i, HANDLER)) &&
                !is_offered(s, strtoll(pg_result_value(res, i, ID), NULL, 10));
        if (goes_on)
            offer(s, res, i, p);
        taken += goes_on;
    }
    return taken;
}

static void on_rows(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct parked_source *s = arg;
    int taken = 0;

    s->request = NULL;
    if (err)
        log_warn("cannot read the parked queue", "err=" LOG_Q, err->msg);
    else if (!s->is_stopped)
        taken = offer_rows(s, res);
    look_in(s, taken > 0 && s->open < OPEN_MAX / 2 ? 0. : LOOK_S);
}

/* --- reading --------------------------------------------------------------------- */

static void add_partitions(const struct parked_source *s, struct buf *sources,
                           struct buf *names, bool *has_outbox)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(s->pipeline, all, PARTITIONS_MAX);

    for (size_t i = 0; i < n; i++) {
        if (all[i]->state != PARTITION_RUNNING || all[i]->is_closing ||
            all[i]->ops->kind == SOURCE_REDRIVE)
            continue;
        array_add(sources, source_kind_name(all[i]->ops->kind));
        array_add(names, all[i]->name);
        *has_outbox = *has_outbox || all[i]->ops->kind == SOURCE_OUTBOX;
    }
}

/* Handlers that take part here now. */
static void add_handlers(const struct parked_source *s, struct buf *names)
{
    struct handler *const *all;
    size_t n = pipeline_handlers(s->pipeline, &all);

    for (size_t i = 1; i < n; i++)
        if (all[i]->spec && !all[i]->is_held && !all[i]->is_removed)
            array_add(names, all[i]->name);
}

static void look(struct parked_source *s)
{
    struct buf ids = {0}, sources = {0}, names = {0}, handlers = {0};
    struct pg_param params[4] = {0};
    bool has_outbox = false;

    if (s->request || s->is_stopped)
        return;
    if (s->open >= OPEN_MAX / 2) {
        look_in(s, LOOK_S);
        return;
    }
    array_begin(&ids);
    array_begin(&sources);
    array_begin(&names);
    array_begin(&handlers);
    list_foreach(link, &s->rows)
        array_add_number(&ids, CONTAINER_OF(link, struct row, link)->id);
    add_partitions(s, &sources, &names, &has_outbox);
    add_handlers(s, &handlers);
    array_end(&ids);
    array_end(&sources);
    array_end(&names);
    array_end(&handlers);
    params[0].value = buf_text(&ids);
    params[1].value = buf_text(&sources);
    params[2].value = buf_text(&names);
    params[3].value = buf_text(&handlers);
    s->request = pg_pool_query(s->pool, has_outbox ? s->read_outbox : s->read,
                               4, params, on_rows, s);
    buf_fini(&ids);
    buf_fini(&sources);
    buf_fini(&names);
    buf_fini(&handlers);
}

/* $1 rows on their way, $2 sources and $3 names of partitions, $4 handlers. */
#define HEADS_SQL                                                          \
    "WITH heads AS (SELECT * FROM event_parked WHERE is_head"              \
    " AND due_at <= now() AND id <> ALL ($1::bigint[])"                    \
    " AND (source, partition) IN (SELECT * FROM unnest($2::text[],"        \
    "  $3::text[])) AND handler = ANY ($4::text[])"                        \
    " ORDER BY due_at, id LIMIT %d),"                                      \
    " due AS (SELECT h.due_at AS turn, h.id AS head, r.* FROM heads AS h"  \
    " CROSS JOIN LATERAL ((SELECT * FROM event_parked AS f"                \
    "  WHERE f.handler = h.handler AND f.source = h.source"                \
    "  AND f.partition = h.partition AND f.lane = h.lane"                  \
    "  AND f.place > h.place AND NOT f.is_head ORDER BY f.place LIMIT %d)" \
    " UNION ALL SELECT h.*) AS r)"

static char *read_sql(void)
{
    return xasprintf(
        HEADS_SQL
        " SELECT id, handler, source, partition, lane, place, reason, attempts,"
        " format, facts::text, body, key, id = head, verdict, verdict_reason"
        " FROM due"
        " ORDER BY turn, head, place",
        HEADS, FOLLOWERS);
}

/* A reference becomes what the reading of the outbox would have made of it. */
static char *read_outbox_sql(const struct outbox_sql *sql)
{
    return xasprintf(
        HEADS_SQL
        " SELECT due.id, due.handler, due.source, due.partition, due.lane,"
        " due.place, due.reason, due.attempts, coalesce(nullif(due.format, ''),"
        " 'payload'), coalesce(due.facts, CASE WHEN o.seq IS NOT NULL THEN"
        " jsonb_strip_nulls(jsonb_build_object('id', o.c1, 'type', o.c2,"
        " 'version', o.c3, 'aggregate_type', o.c4, 'aggregate_id', o.c5,"
        " 'aggregate_version', o.c6, 'occurred_at', o.c7, 'metadata', o.c8))"
        " END)::text, coalesce(due.body, convert_to(o.c9, 'UTF8')), due.key,"
        " due.id = due.head, due.verdict, due.verdict_reason"
        " FROM due LEFT JOIN LATERAL"
        " (SELECT seq, %s FROM %s WHERE due.source = 'outbox'"
        "  AND seq = due.place) AS o(seq, c1, c2, c3, c4, c5, c6, c7, c8, c9)"
        " ON true ORDER BY due.turn, due.head, due.place",
        HEADS, FOLLOWERS, sql->columns, sql->table);
}

struct parked_source *
parked_source_new(struct ev_loop *loop,
                  const struct parked_source_options *opts, struct err *err)
{
    struct parked_source *s;
    struct outbox_sql sql;

    if (!outbox_sql_init(&sql, opts->outbox_table, opts->outbox_columns, err))
        return NULL;
    s = xcalloc(1, sizeof(*s));
    s->loop = loop;
    s->pool = opts->pool;
    s->store = opts->store;
    s->pipeline = opts->pipeline;
    s->read = read_sql();
    s->read_outbox = read_outbox_sql(&sql);
    outbox_sql_fini(&sql);
    list_init(&s->rows);
    ev_timer_init(&s->timer, on_timer, LOOK_S, 0.);
    s->timer.data = s;
    ev_timer_start(loop, &s->timer);
    return s;
}

void parked_source_stop(struct parked_source *s)
{
    s->is_stopped = true;
    ev_timer_stop(s->loop, &s->timer);
}

void parked_source_wake(struct parked_source *s)
{
    look(s);
}

void parked_source_free(struct parked_source *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->timer);
    if (s->request)
        pg_request_forget(s->request);
    list_foreach_safe(link, &s->rows)
        row_free(CONTAINER_OF(link, struct row, link));
    free(s->read);
    free(s->read_outbox);
    free(s);
}
