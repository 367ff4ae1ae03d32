/* What people see of the parked queue and do to it. */
#include "stores/deadletters_filter.h"
#include "stores/parked.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* DEAD_FILTER's parameters, over event_parked; a row has no fingerprint. */
#define FILTER                                                             \
    " ($1::text IS NULL OR id = ANY (string_to_array($1, ',')::bigint[]))" \
    " AND ($2::text IS NULL OR handler = $2)"                              \
    " AND ($3::text IS NULL OR event_type = $3)"                           \
    " AND ($4::text IS NULL OR aggregate_id = $4"                          \
    "  OR aggregate_type || '/' || aggregate_id = $4)"                     \
    " AND ($5::text IS NULL OR facts->>'correlation_id' = $5)"             \
    " AND ($6::text IS NULL OR class = $6)"                                \
    " AND $7::text IS NULL"                                                \
    " AND ($8::text IS NULL OR reason = $8)"                               \
    " AND ($9::timestamptz IS NULL OR parked_at >= $9::timestamptz)"       \
    " AND ($10::timestamptz IS NULL OR parked_at < $10::timestamptz)"

static const char list_sql[] =
    "SELECT coalesce(json_agg(o ORDER BY id DESC), '[]') FROM (SELECT id,"
    " json_build_object('id', id, 'handler', handler, 'state', reason,"
    " 'blocks', is_head AND lane IS NOT NULL, 'eventId', event_id,"
    " 'eventType', event_type, 'aggregateType', aggregate_type,"
    " 'aggregateId', aggregate_id, 'source', source, 'partition', partition,"
    " 'place', place, 'attempts', attempts, 'class', class, 'error', error,"
    " 'flag', flag, 'verdict', verdict, 'dueAt', " DEAD_TIME(
        "due_at") ","
                  " 'parkedAt', " DEAD_TIME(
                      "parked_at") ") AS o FROM event_parked"
                                   " WHERE" FILTER
                                   " AND ($11::bigint = 0 OR id < $11::bigint)"
                                   " ORDER BY id DESC LIMIT $12::int) t";

static const char act_sql[] =
    "WITH w AS (UPDATE event_parked SET due_at = CASE WHEN reason = 'held'"
    "  AND $11 = 'retry' THEN due_at ELSE now() END,"
    " verdict = nullif($11, 'retry'), verdict_reason = coalesce($12, '')"
    " WHERE" FILTER " RETURNING 1)"
    " SELECT json_build_object('count', count(*)) FROM w";

void parked_list(struct pg_pool *pool, const struct dead_filter *filter,
                 parked_answer_fn *done, void *arg)
{
    struct pg_param params[DEAD_FILTER_PARAMS + 2];
    struct dead_times times;
    char cursor[24], limit[16];

    dead_filter_params(params, filter, &times);
    snprintf(cursor, sizeof(cursor), "%" PRId64, filter->cursor);
    snprintf(limit, sizeof(limit), "%d", filter->limit ? filter->limit : 100);
    params[DEAD_FILTER_PARAMS] = (struct pg_param){.value = cursor};
    params[DEAD_FILTER_PARAMS + 1] = (struct pg_param){.value = limit};
    dead_ask(pool, list_sql, DEAD_FILTER_PARAMS + 2, params, done, arg);
}

void parked_act(struct pg_pool *pool, const struct dead_filter *filter,
                const char *what, const char *reason, parked_answer_fn *done,
                void *arg)
{
    struct pg_param params[DEAD_FILTER_PARAMS + 2];
    struct dead_times times;

    dead_filter_params(params, filter, &times);
    params[DEAD_FILTER_PARAMS] = (struct pg_param){.value = what};
    params[DEAD_FILTER_PARAMS + 1] = (struct pg_param){.value = reason};
    dead_ask(pool, act_sql, DEAD_FILTER_PARAMS + 2, params, done, arg);
}
