/* A dead_filter as SQL: one WHERE clause and its parameters, for all that lists
 * or changes dead letters. For the files of this folder. */
#ifndef MT_STORES_DEADLETTERS_FILTER_H
#define MT_STORES_DEADLETTERS_FILTER_H

#include "base/clock.h"
#include "pg/pg.h"
#include "stores/deadletters.h"

/* $1 … $10, all text, NULL for any. */
#define DEAD_FILTER                                                        \
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

#define DEAD_FILTER_PARAMS 10

#define DEAD_TIME(column) \
    "to_char(" column     \
    " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

/* Where the parameters' texts of times lie. */
struct dead_times {
    char since[RFC3339_SIZE], until[RFC3339_SIZE];
};

/* Fills DEAD_FILTER_PARAMS parameters, which borrow from both. */
void dead_filter_params(struct pg_param *params, const struct dead_filter *f,
                        struct dead_times *times);

const char *dead_or_null(const char *text); /* "" is NULL, too */

/* One statement whose answer is one JSON value: `done` gets it, JSON null where
 * there is no row. */
void dead_ask(struct pg_pool *pool, const char *sql, int n,
              const struct pg_param *params, dead_answer_fn *done, void *arg);

#endif
