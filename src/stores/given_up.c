#include "stores/given_up.h"

#include "base/mem.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const char put_sql[] =
    "INSERT INTO event_given_up (handler, source, partition, source_id,"
    " first_place, last_place, trouble, reason, who)"
    " SELECT handler, $2, $3, $4, first, last, $5, $6, $7"
    " FROM jsonb_to_recordset($1::jsonb)"
    " AS r(handler text, first bigint, last bigint)";

static const char list_sql[] =
    "SELECT coalesce(json_agg(r ORDER BY id DESC), '[]') FROM (SELECT id,"
    " handler, source, partition, first_place AS first, last_place AS last,"
    " trouble, reason, who, at FROM event_given_up"
    " WHERE $1::bigint = 0 OR id < $1::bigint ORDER BY id DESC"
    " LIMIT $2::int) AS r";

struct putting {
    given_up_done_fn *done;
    void *arg;
};

static void on_put(void *arg, const struct pg_result *res,
                   const struct err *err)
{
    struct putting *putting = arg;

    (void)res;
    putting->done(putting->arg, err);
    free(putting);
}

void given_up_put(struct pg_pool *pool, const struct given_up_note *note,
                  given_up_done_fn *done, void *arg)
{
    struct putting *putting = xmalloc(sizeof(*putting));
    char *ranges = json_dumps(note->ranges, JSON_COMPACT);
    struct pg_param params[] = {
        {.value = ranges},          {.value = note->source},
        {.value = note->partition}, {.value = note->source_id},
        {.value = note->trouble},   {.value = note->reason},
        {.value = note->who},
    };

    *putting = (struct putting){done, arg};
    pg_pool_query(pool, put_sql, 7, params, on_put, putting);
    free(ranges);
}

struct listing {
    given_up_answer_fn *done;
    void *arg;
};

static void on_list(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct listing *listing = arg;

    listing->done(listing->arg,
                  err ? NULL : json_loads(pg_result_value(res, 0, 0), 0, NULL),
                  err);
    free(listing);
}

void given_up_list(struct pg_pool *pool, int64_t cursor, int limit,
                   given_up_answer_fn *done, void *arg)
{
    struct listing *listing = xmalloc(sizeof(*listing));
    char from[24], most[16];
    struct pg_param params[] = {{.value = from}, {.value = most}};

    snprintf(from, sizeof(from), "%" PRId64, cursor);
    snprintf(most, sizeof(most), "%d", limit);
    *listing = (struct listing){done, arg};
    pg_pool_query(pool, list_sql, 2, params, on_list, listing);
}
