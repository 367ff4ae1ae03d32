/*
 * Positions in event_handler_positions. Everything is written on the condition
 * that the partition is still ours, so a host that was replaced writes nothing
 * any more. Of Kafka a row is ours while it carries our owner and the epoch that
 * we raised it to. Of the outbox the shard is ours, and its lease's epoch is the
 * token for the rows of all handlers: taking a shard over changes one row, not
 * one for each of a thousand handlers.
 */
#include "stores/positions.h"

#include "base/clock.h"
#include "base/digest.h"
#include "base/log.h"
#include "base/mem.h"
#include "pg/pg.h"
#include "stores/tries.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "positions";

struct store {
    struct positions pub; /* first */
    struct tries tries;
    char *owner;
};

/* A request under way: the callback, and what it asked about. */
struct request {
    size_t n;
    char **source_ids; /* take */
    positions_taken_fn *taken;
    positions_saved_fn *saved;
    void *arg;
};

/* All partitions of a new topic get their rows within that time. */
#define NEW_FOR "interval '5 seconds'"

static const char take_sql[] =
    "WITH k AS (SELECT * FROM unnest($1::text[], $2::text[], $3::text[],"
    " $4::text[]) WITH ORDINALITY AS k(handler, source, part, source_id, i)"
    " ORDER BY handler, source, part),"
    " w AS (UPDATE event_handler_positions p SET epoch = p.epoch + 1,"
    " owner = $5, updated_at = now() FROM k WHERE p.handler_name = k.handler"
    " AND p.source = k.source AND p.partition = k.part"
    " RETURNING k.i - 1 AS i, p.source_id, p.seq, p.gaps::text, p.epoch)"
    " SELECT * FROM w UNION ALL SELECT k.i - 1, NULL, NULL, NULL, NULL FROM k"
    " WHERE k.source = 'kafka' AND EXISTS (SELECT"
    " FROM event_handler_positions o WHERE o.source_id = k.source_id"
    " AND o.source = k.source AND o.partition <> k.part"
    " AND o.created_at < now() - " NEW_FOR ")";

/* Nothing is written: the epoch is the shard's, -1 when that is not ours. */
static const char take_shard_sql[] =
    "SELECT k.i - 1, p.source_id, p.seq, p.gaps::text, coalesce(s.epoch, -1)"
    " FROM unnest($1::text[], $2::text[], $3::text[])"
    " WITH ORDINALITY AS k(handler, source, part, i)"
    " LEFT JOIN event_shards s ON s.shard = k.part::int AND s.owner = $4"
    " AND s.timeline = moontide_timeline()"
    " LEFT JOIN event_handler_positions p ON p.handler_name = k.handler"
    " AND p.source = k.source AND p.partition = k.part";

static const char save_sql[] =
    "WITH k AS (SELECT * FROM unnest($1::text[], $2::text[], $3::text[],"
    " $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::text[],"
    " $9::timestamptz[]) WITH ORDINALITY"
    " AS k(handler, source, part, source_id, seq, gaps, epoch, last_id,"
    " last_at, i)),"
    " held AS MATERIALIZED (SELECT s.shard::text AS part, s.epoch"
    " FROM event_shards s WHERE s.owner = $10 AND (s.shard::text, s.epoch) IN"
    " (SELECT part, epoch FROM k WHERE source = 'outbox')"
    " AND s.timeline = moontide_timeline() ORDER BY s.shard"
    " FOR KEY SHARE),"
    " w AS (INSERT INTO event_handler_positions AS p (handler_name, source,"
    " partition, source_id, seq, gaps, last_processed_id, last_processed_at,"
    " owner, epoch) SELECT handler, source, part, source_id, seq,"
    " gaps::int8multirange, last_id, last_at, $10, epoch FROM k"
    " WHERE source <> 'outbox' OR (part, epoch) IN (SELECT part, epoch"
    " FROM held) ORDER BY handler, source, part"
    " ON CONFLICT (handler_name, source, partition) DO UPDATE SET"
    " source_id = excluded.source_id, seq = excluded.seq,"
    " gaps = excluded.gaps, updated_at = now(), created_at = CASE"
    " WHEN p.source_id = excluded.source_id THEN p.created_at ELSE now() END,"
    " last_processed_id = coalesce(excluded.last_processed_id,"
    "  p.last_processed_id),"
    " last_processed_at = coalesce(excluded.last_processed_at,"
    "  p.last_processed_at),"
    " owner = excluded.owner, epoch = excluded.epoch"
    " WHERE p.source = 'outbox' OR"
    " (p.epoch = excluded.epoch AND p.owner = excluded.owner)"
    " RETURNING p.handler_name, p.source, p.partition)"
    " SELECT i - 1 FROM k WHERE NOT EXISTS (SELECT 1 FROM w"
    " WHERE w.handler_name = k.handler AND w.source = k.source"
    " AND w.partition = k.part)";

static struct store *store_of(struct positions *s)
{
    return (struct store *)(void *)s;
}

static void request_free(struct request *r)
{
    for (size_t i = 0; r->source_ids && i < r->n; i++)
        free(r->source_ids[i]);
    free(r->source_ids);
    free(r);
}

/* A row of another cluster, topic or database says nothing about this one;
 * its epoch was raised all the same, and create() writes over it. */
static void take_row(const struct request *r, const struct pg_result *res,
                     int row, struct position_found *found)
{
    size_t i = strtoul(pg_result_value(res, row, 0), NULL, 10);
    const char *source_id = pg_result_value(res, row, 1);

    if (i >= r->n)
        return;
    if (pg_result_is_null(res, row, 4)) {
        found[i].is_added = true;
        return;
    }
    found[i].epoch = strtoll(pg_result_value(res, row, 4), NULL, 10);
    if (pg_result_is_null(res, row, 1))
        return;
    if (strcmp(source_id, r->source_ids[i]) != 0) {
        log_warn("stored position is of another source, not used",
                 "stored=" LOG_Q " now=" LOG_Q, source_id, r->source_ids[i]);
        return;
    }
    found[i].found = true;
    found[i].at.next = strtoll(pg_result_value(res, row, 2), NULL, 10);
    if (!ranges_parse(&found[i].at.gaps, pg_result_value(res, row, 3)))
        log_error("stored gaps cannot be read", "gaps=" LOG_Q,
                  pg_result_value(res, row, 3));
}

/* Of a row that is not there yet. Drawn, so that a host that was frozen before it
 * could make the row does not hold the token of who made it instead; small
 * enough to be a number in Lua. */
static int64_t first_epoch(void)
{
    return 1 + (int64_t)(random_u64() >> 24);
}

static void on_taken(void *arg, const struct pg_result *res)
{
    struct request *r = arg;
    struct position_found *found = xcalloc(r->n + 1, sizeof(*found));

    for (size_t i = 0; i < r->n; i++)
        found[i].epoch = first_epoch();
    for (int row = 0; row < pg_result_nrows(res); row++)
        take_row(r, res, row, found);
    r->taken(r->arg, r->n, found);
    free(found);
    request_free(r);
}

static void add_keys(struct try *q, size_t n, const struct position_key *keys,
                     size_t stride)
{
    struct buf handlers = {0}, sources = {0}, parts = {0};
    const char *at = (const char *)keys;

    array_begin(&handlers);
    array_begin(&sources);
    array_begin(&parts);
    for (size_t i = 0; i < n; i++, at += stride) {
        const struct position_key *key = (const void *)at;

        array_add(&handlers, key->handler);
        array_add(&sources, source_kind_name(key->source));
        array_add(&parts, key->partition);
    }
    array_end(&handlers);
    array_end(&sources);
    array_end(&parts);
    try_buf(q, &handlers);
    try_buf(q, &sources);
    try_buf(q, &parts);
}

static void take(struct positions *pub, size_t n,
                 const struct position_key *keys, positions_taken_fn *done,
                 void *arg)
{
    struct store *s = store_of(pub);
    struct request *r = xcalloc(1, sizeof(*r));
    bool is_shard = n > 0 && keys[0].source == SOURCE_OUTBOX;
    struct try *q = try_new(&s->tries, "take positions",
                            is_shard ? take_shard_sql : take_sql);
    struct buf ids = {0};

    r->n = n;
    r->taken = done;
    r->arg = arg;
    r->source_ids = xcalloc(n + 1, sizeof(*r->source_ids));
    for (size_t i = 0; i < n; i++)
        r->source_ids[i] = xstrdup(keys[i].source_id);
    add_keys(q, n, keys, sizeof(*keys));
    array_begin(&ids);
    for (size_t i = 0; i < n; i++)
        array_add(&ids, keys[i].source_id);
    array_end(&ids);
    if (!is_shard)
        try_buf(q, &ids);
    buf_fini(&ids);
    try_text(q, s->owner);
    try_send(q, on_taken, r);
}

static void on_saved(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct request *r = arg;
    size_t n = err ? 0 : (size_t)pg_result_nrows(res);
    size_t *fenced = xcalloc(n + 1, sizeof(*fenced));

    for (size_t i = 0; i < n; i++)
        fenced[i] = strtoul(pg_result_value(res, (int)i, 0), NULL, 10);
    r->saved(r->arg, n, fenced, err);
    free(fenced);
    request_free(r);
}

static void add_places(struct try *q, size_t n,
                       const struct position_save *items)
{
    struct buf ids = {0}, seqs = {0}, gaps = {0}, epochs = {0};
    struct buf gap = {0};

    array_begin(&ids);
    array_begin(&seqs);
    array_begin(&gaps);
    array_begin(&epochs);
    for (size_t i = 0; i < n; i++) {
        buf_clear(&gap);
        ranges_print(&items[i].at.gaps, &gap);
        array_add(&ids, items[i].key.source_id);
        array_add_number(&seqs, items[i].at.next);
        array_add(&gaps, buf_text(&gap));
        array_add_number(&epochs, items[i].epoch);
    }
    array_end(&ids);
    array_end(&seqs);
    array_end(&gaps);
    array_end(&epochs);
    try_buf(q, &ids);
    try_buf(q, &seqs);
    try_buf(q, &gaps);
    try_buf(q, &epochs);
    buf_fini(&gap);
}

static void add_lasts(struct try *q, size_t n,
                      const struct position_save *items)
{
    struct buf ids = {0}, times = {0};
    char text[RFC3339_SIZE];

    array_begin(&ids);
    array_begin(&times);
    for (size_t i = 0; i < n; i++) {
        int64_t at = items[i].last_event_us;

        array_add(&ids, items[i].last_event_id);
        array_add(&times, at > 0 ? clock_format(at, text) : NULL);
    }
    array_end(&ids);
    array_end(&times);
    try_buf(q, &ids);
    try_buf(q, &times);
}

static void on_created(void *arg, const struct pg_result *res)
{
    on_saved(arg, res, NULL);
}

static struct try *try_items(struct positions *pub, const char *doing, size_t n,
                             const struct position_save *items,
                             struct request *r)
{
    struct store *s = store_of(pub);
    struct try *q = try_new(&s->tries, doing, save_sql);

    r->n = n;
    add_keys(q, n, n ? &items[0].key : NULL, sizeof(*items));
    add_places(q, n, items);
    add_lasts(q, n, items);
    try_text(q, s->owner);
    return q;
}

static struct request *request_saved(positions_saved_fn *done, void *arg)
{
    struct request *r = xcalloc(1, sizeof(*r));

    r->saved = done;
    r->arg = arg;
    return r;
}

/* The same statement makes the rows; tried until they are there. */
static void create(struct positions *pub, size_t n,
                   const struct position_save *items, positions_saved_fn *done,
                   void *arg)
{
    struct request *r = request_saved(done, arg);

    try_send(try_items(pub, "create positions", n, items, r), on_created, r);
}

static void save(struct positions *pub, size_t n,
                 const struct position_save *items, positions_saved_fn *done,
                 void *arg)
{
    struct request *r = request_saved(done, arg);

    try_send_once(try_items(pub, "save positions", n, items, r), on_saved, r);
}

static void store_free(struct positions *pub)
{
    struct store *s = store_of(pub);

    tries_fini(&s->tries);
    free(s->owner);
    free(s);
}

static const struct positions_ops ops = {
    .take = take,
    .create = create,
    .save = save,
    .free = store_free,
};

struct positions *positions_pg_new(struct ev_loop *loop, struct pg_pool *pool,
                                   const char *owner)
{
    struct store *s = xcalloc(1, sizeof(*s));

    s->pub.ops = &ops;
    s->owner = xstrdup(owner);
    tries_init(&s->tries, loop, pool);
    return &s->pub;
}
