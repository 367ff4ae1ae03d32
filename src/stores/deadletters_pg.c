#include "stores/deadletters.h"

#include "base/clock.h"
#include "base/mem.h"
#include "core/partition.h"
#include "pg/pg.h"
#include "stores/clean.h"
#include "stores/event_json.h"
#include "stores/tries.h"

#include <stdlib.h>
#include <string.h>

struct store {
    struct deadletters pub; /* first */
    struct tries tries;
};

struct request {
    dead_stored_fn *done;
    void *arg;
};

/* In one transaction with the look into the inbox: an event whose effects are
 * committed already is done, whatever its last attempt said. And with the fence:
 * who lost the partition says nothing about its events any more. */
static const char store_sql[] =
    "WITH held AS MATERIALIZED (SELECT moontide_holds($1, $7, $8, $25::bigint)"
    " AS yes), done AS (SELECT 1 FROM event_inbox WHERE $24::boolean"
    " AND handler = $1 AND event_id = $3),"
    " parked AS (SELECT headers, history FROM event_parked"
    "  WHERE id = $28::bigint),"
    " w AS (INSERT INTO event_dead_letters AS d (handler, handler_version,"
    " event_id, event_type, aggregate_type, aggregate_id, source, partition,"
    " place, format, key, body, headers, facts, class, code, error, traceback,"
    " attempts, history, fingerprint, first_failed_at, failed_at, lane,"
    " keeps_order)"
    " SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9::bigint, $10, $11, $12,"
    " coalesce((SELECT headers FROM parked), $13::jsonb), $14::jsonb, $15, "
    "$16, $17, $18, $19::int,"
    " coalesce((SELECT history FROM parked), '[]') || $20::jsonb, $21,"
    " coalesce((SELECT (history->0->>'at')::timestamptz FROM parked),"
    "  $22::timestamptz, now()), coalesce($23::timestamptz, now()),"
    " $26::bigint, $27::boolean"
    " WHERE NOT EXISTS (SELECT 1 FROM done) AND (SELECT yes FROM held)"
    " ON CONFLICT (handler, source, partition, place, event_id) DO UPDATE SET"
    " handler_version = excluded.handler_version, class = excluded.class,"
    " code = excluded.code, error = excluded.error,"
    " traceback = excluded.traceback, attempts = excluded.attempts,"
    " history = excluded.history, fingerprint = excluded.fingerprint,"
    " failed_at = excluded.failed_at, state = 'dead' RETURNING 1)"
    " SELECT EXISTS (SELECT 1 FROM done), (SELECT yes FROM held),"
    " (SELECT count(*) FROM w)";

/* A redriven delivery died again: its row is there, the place is its id. */
static const char again_sql[] =
    "WITH done AS (SELECT 1 FROM event_inbox WHERE $11::boolean"
    " AND handler = $1 AND event_id = $3),"
    " w AS (UPDATE event_dead_letters SET handler_version = $2, class = $5,"
    " code = $6, error = $7, traceback = $8, attempts = attempts + $9::int,"
    " history = history || $10::jsonb, fingerprint = $12, failed_at = now(),"
    " state = 'dead' WHERE id = $4::bigint"
    " AND NOT EXISTS (SELECT 1 FROM done) RETURNING 1)"
    " SELECT EXISTS (SELECT 1 FROM done), true, (SELECT count(*) FROM w)";

static void on_stored(void *arg, const struct pg_result *res)
{
    struct request *r = arg;

    bool was_done = *pg_result_value(res, 0, 0) == 't';
    bool is_ours = *pg_result_value(res, 0, 1) == 't';

    r->done(r->arg, !is_ours   ? DEAD_FENCED
                    : was_done ? DEAD_WAS_DONE
                               : DEAD_STORED);
    free(r);
}

static void add_clean(struct try *q, struct slice text)
{
    char *clean = clean_text(text);

    try_text(q, clean);
    free(clean);
}

static void add_json(struct try *q, json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);

    try_text(q, text ? text : "{}");
    free(text);
    json_decref(json);
}

/* The history goes through text once more, since jsonb refuses NULs. */
static void add_history(struct try *q, const json_t *history)
{
    char *text = history ? json_dumps(history, JSON_COMPACT) : NULL;

    try_text(q, text && !strstr(text, "\\u0000") ? text : "[]");
    free(text);
}

static void add_failure(struct try *q, const struct dead_letter *letter)
{
    try_text(q, class_name(letter->class));
    add_clean(q, slice_of(letter->code));
    add_clean(q, slice_of(letter->error));
    add_clean(q, slice_of(letter->traceback));
    try_number(q, letter->attempts);
    add_history(q, letter->history);
}

static void add_event(struct try *q, const struct event *event)
{
    const struct partition *p = event->partition;

    add_clean(q, event->facts[FACT_ID]);
    add_clean(q, event->facts[FACT_TYPE]);
    add_clean(q, event->facts[FACT_AGGREGATE_TYPE]);
    add_clean(q, event->facts[FACT_AGGREGATE_ID]);
    try_text(q, source_kind_name(p->ops->kind));
    try_text(q, p->name);
    try_number(q, event->place);
    try_text(q, body_form_name(event->form));
    try_bytea(q, event->key);
    try_bytea(q, event->body);
    add_json(q, event_headers_json(event));
    add_json(q, event_facts_json(event));
}

static struct try *first_time(struct store *s, const struct dead_letter *letter,
                              const char *print)
{
    struct try *q = try_new(&s->tries, "store dead letter", store_sql);

    try_text(q, letter->handler);
    try_text(q, letter->version);
    add_event(q, letter->event);
    add_failure(q, letter);
    try_text(q, print);
    try_time(q, letter->first_failed_us);
    try_time(q, letter->failed_us);
    try_text(q, letter->checks_inbox ? "t" : "f");
    try_number(q, letter->epoch);
    if (letter->has_lane)
        try_number(q, (int64_t)letter->lane);
    else
        try_text(q, NULL);
    try_text(q, letter->keeps_order ? "t" : "f");
    try_number(q, letter->event->parked_id);
    return q;
}

static struct try *again(struct store *s, const struct dead_letter *letter,
                         const char *print)
{
    struct try *q = try_new(&s->tries, "store dead letter again", again_sql);

    try_text(q, letter->handler);
    try_text(q, letter->version);
    add_clean(q, letter->event->facts[FACT_ID]);
    try_number(q, letter->event->place);
    add_failure(q, letter);
    try_text(q, letter->checks_inbox ? "t" : "f");
    try_text(q, print);
    return q;
}

static void store(struct deadletters *pub, const struct dead_letter *letter,
                  dead_stored_fn *done, void *arg)
{
    struct store *s = (struct store *)(void *)pub;
    struct request *r = xmalloc(sizeof(*r));
    char print[17];
    struct try *q;

    *r = (struct request){done, arg};
    fingerprint(letter->class, letter->error, letter->version, print);
    if (letter->event->partition->ops->kind == SOURCE_REDRIVE)
        q = again(s, letter, print);
    else
        q = first_time(s, letter, print);
    try_send(q, on_stored, r);
}

static void store_free(struct deadletters *pub)
{
    struct store *s = (struct store *)(void *)pub;

    tries_fini(&s->tries);
    free(s);
}

static const struct deadletters_ops ops = {
    .store = store,
    .free = store_free,
};

struct deadletters *deadletters_pg_new(struct ev_loop *loop,
                                       struct pg_pool *pool)
{
    struct store *s = xcalloc(1, sizeof(*s));

    s->pub.ops = &ops;
    tries_init(&s->tries, loop, pool);
    return &s->pub;
}
