/* What people do with dead letters: list, show, redrive, discard, count. */
#include "stores/deadletters.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/settings.h"
#include "base/utf8.h"
#include "pg/pg.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TIME(column)  \
    "to_char(" column \
    " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

#define COLUMNS                                                               \
    "'id', id, 'handler', handler, 'version', handler_version, 'eventId',"    \
    " event_id, 'eventType', event_type, 'aggregateType', aggregate_type,"    \
    " 'aggregateId', aggregate_id, 'source', source, 'partition', partition," \
    " 'place', place, 'class', class, 'code', code, 'error', error,"          \
    " 'attempts', attempts, 'fingerprint', fingerprint, "                     \
    "'firstFailedAt', " TIME("first_failed_at") ", 'failedAt', " TIME(        \
        "failed_at") ", 'state', state, 'note', note"

/* $1 … $10, all text, NULL for any. */
#define FILTER                                                             \
    " ($1::text IS NULL OR id = ANY (string_to_array($1, ',')::bigint[]))" \
    " AND ($2::text IS NULL OR handler = $2)"                              \
    " AND ($3::text IS NULL OR event_type = $3)"                           \
    " AND ($4::text IS NULL OR aggregate_id = $4"                          \
    "  OR aggregate_type || '/' || aggregate_id = $4)"                     \
    " AND ($5::text IS NULL OR facts->>'correlation_id' = $5"              \
    "  OR position($5 IN coalesce(facts->>'metadata', '')) > 0)"           \
    " AND ($6::text IS NULL OR class = $6)"                                \
    " AND ($7::text IS NULL OR fingerprint = $7)"                          \
    " AND state = coalesce($8::text, 'dead')"                              \
    " AND ($9::timestamptz IS NULL OR failed_at >= $9::timestamptz)"       \
    " AND ($10::timestamptz IS NULL OR failed_at < $10::timestamptz)"

#define FILTER_PARAMS 10

static const char list_sql[] =
    "SELECT coalesce(json_agg(o ORDER BY id DESC), '[]') FROM (SELECT id,"
    " json_build_object(" COLUMNS ") AS o FROM event_dead_letters"
    " WHERE" FILTER " AND ($11::bigint = 0 OR id < $11::bigint)"
    " ORDER BY id DESC LIMIT $12::int) t";

static const char show_sql[] =
    "SELECT json_build_object(" COLUMNS ", 'format', format, 'key',"
    " encode(key, 'base64'), 'bodyBase64', encode(body, 'base64'), 'headers',"
    " headers, 'facts', facts, 'traceback', traceback, 'history', history),"
    " body FROM event_dead_letters WHERE id = $1::bigint";

/* What cannot be decoded has no handler that could try again. */
static const char redrive_sql[] =
    "WITH w AS (UPDATE event_dead_letters SET state = 'redriving' WHERE" FILTER
    " AND handler <> '' AND state IN ('dead', 'discarded') RETURNING 1)"
    " SELECT json_build_object('count', count(*)) FROM w";

static const char redrive_count_sql[] =
    "SELECT json_build_object('count', count(*), 'dryRun', true)"
    " FROM event_dead_letters WHERE" FILTER
    " AND handler <> '' AND state IN ('dead', 'discarded')";

static const char discard_sql[] =
    "WITH w AS (UPDATE event_dead_letters SET state = 'discarded',"
    " note = coalesce($11, '') WHERE" FILTER
    " AND state IN ('dead', 'redriving') RETURNING *),"
    " d AS (INSERT INTO event_deliveries (handler, event_id, source, partition,"
    " place, outcome, reason, version, attempts) SELECT DISTINCT ON (handler,"
    " event_id) handler, event_id, source, partition, place, 'discarded',"
    " coalesce($11, ''), handler_version, attempts FROM w"
    " ON CONFLICT (handler, event_id) DO UPDATE SET"
    " outcome = 'discarded', reason = excluded.reason, at = now())"
    " SELECT json_build_object('count', count(*)) FROM w";

static const char counts_sql[] =
    "SELECT coalesce(json_agg(json_build_array(handler, class, n)), '[]')"
    " FROM (SELECT handler, class, count(*) AS n FROM event_dead_letters"
    " WHERE state = 'dead' GROUP BY 1, 2) t";

struct request {
    dead_answer_fn *done;
    void *arg;
    bool with_body;
};

/* The body as text where it is text; its base64 is there in any case. */
static void add_body(json_t *answer, const char *hex)
{
    size_t len = strlen(hex) >= 2 ? (strlen(hex) - 2) / 2 : 0;
    char *bytes = xmalloc(len + 1);

    for (size_t i = 0; i < len; i++) {
        char pair[3] = {hex[2 + 2 * i], hex[3 + 2 * i], '\0'};

        bytes[i] = (char)strtoul(pair, NULL, 16);
    }
    if (len > 0 && utf8_is_valid(bytes, len) && !memchr(bytes, '\0', len))
        json_object_set_new(answer, "body", json_stringn(bytes, len));
    free(bytes);
}

static void on_answer(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct request *r = arg;
    json_t *answer = NULL;

    if (!err) {
        answer = pg_result_nrows(res) > 0
                     ? json_loads(pg_result_value(res, 0, 0), 0, NULL)
                     : json_null();
        if (r->with_body && json_is_object(answer))
            add_body(answer, pg_result_value(res, 0, 1));
    }
    r->done(r->arg, answer, err);
    free(r);
}

static void ask(struct pg_pool *pool, const char *sql, int n,
                const struct pg_param *params, bool with_body,
                dead_answer_fn *done, void *arg)
{
    struct request *r = xmalloc(sizeof(*r));

    *r = (struct request){done, arg, with_body};
    pg_pool_query(pool, sql, n, params, on_answer, r);
}

static const char *or_null(const char *text)
{
    return text && *text ? text : NULL;
}

/* RFC 3339 stays; 7d is that long ago. PostgreSQL refuses anything else. */
static const char *moment(const char *text, char out[static RFC3339_SIZE])
{
    int64_t ms;

    if (!text || !*text)
        return NULL;
    if (clock_parse(text, strlen(text)) == INT64_MIN &&
        duration_parse(text, &ms))
        return clock_format(clock_wall_us() - ms * 1000, out);
    return text;
}

struct times {
    char since[RFC3339_SIZE], until[RFC3339_SIZE];
};

static void fill_filter(struct pg_param *params, const struct dead_filter *f,
                        struct times *times)
{
    const char *values[FILTER_PARAMS] = {
        or_null(f->ids),
        or_null(f->handler),
        or_null(f->type),
        or_null(f->aggregate),
        or_null(f->correlation),
        or_null(f->class),
        or_null(f->fingerprint),
        or_null(f->state),
        moment(f->since, times->since),
        moment(f->until, times->until),
    };

    for (size_t i = 0; i < FILTER_PARAMS; i++)
        params[i] = (struct pg_param){.value = values[i]};
}

void deadletters_list(struct pg_pool *pool, const struct dead_filter *filter,
                      dead_answer_fn *done, void *arg)
{
    struct pg_param params[FILTER_PARAMS + 2];
    struct times times;
    char cursor[24], limit[16];

    fill_filter(params, filter, &times);
    snprintf(cursor, sizeof(cursor), "%" PRId64, filter->cursor);
    snprintf(limit, sizeof(limit), "%d", filter->limit ? filter->limit : 100);
    params[FILTER_PARAMS] = (struct pg_param){.value = cursor};
    params[FILTER_PARAMS + 1] = (struct pg_param){.value = limit};
    ask(pool, list_sql, FILTER_PARAMS + 2, params, false, done, arg);
}

void deadletters_show(struct pg_pool *pool, int64_t id, dead_answer_fn *done,
                      void *arg)
{
    char text[24];
    struct pg_param param = {.value = text};

    snprintf(text, sizeof(text), "%" PRId64, id);
    ask(pool, show_sql, 1, &param, true, done, arg);
}

void deadletters_redrive(struct pg_pool *pool, const struct dead_filter *filter,
                         bool dry_run, dead_answer_fn *done, void *arg)
{
    struct pg_param params[FILTER_PARAMS];
    struct times times;

    fill_filter(params, filter, &times);
    ask(pool, dry_run ? redrive_count_sql : redrive_sql, FILTER_PARAMS, params,
        false, done, arg);
}

void deadletters_discard(struct pg_pool *pool, const struct dead_filter *filter,
                         const char *reason, dead_answer_fn *done, void *arg)
{
    struct pg_param params[FILTER_PARAMS + 1];
    struct times times;

    fill_filter(params, filter, &times);
    params[FILTER_PARAMS] = (struct pg_param){.value = or_null(reason)};
    ask(pool, discard_sql, FILTER_PARAMS + 1, params, false, done, arg);
}

void deadletters_counts(struct pg_pool *pool, dead_answer_fn *done, void *arg)
{
    ask(pool, counts_sql, 0, NULL, false, done, arg);
}
