#include "stores/deadletters_filter.h"

#include "base/mem.h"
#include "base/settings.h"

#include <stdlib.h>
#include <string.h>

const char *dead_or_null(const char *text)
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

void dead_filter_params(struct pg_param *params, const struct dead_filter *f,
                        struct dead_times *times)
{
    const char *values[DEAD_FILTER_PARAMS] = {
        dead_or_null(f->ids),           dead_or_null(f->handler),
        dead_or_null(f->type),          dead_or_null(f->aggregate),
        dead_or_null(f->correlation),   dead_or_null(f->class),
        dead_or_null(f->fingerprint),   dead_or_null(f->state),
        moment(f->since, times->since), moment(f->until, times->until),
    };

    for (size_t i = 0; i < DEAD_FILTER_PARAMS; i++)
        params[i] = (struct pg_param){.value = values[i]};
}

struct request {
    dead_answer_fn *done;
    void *arg;
};

static void on_answer(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct request *r = arg;
    json_t *answer = NULL;

    if (!err)
        answer = pg_result_nrows(res) > 0
                     ? json_loads(pg_result_value(res, 0, 0), 0, NULL)
                     : json_null();
    r->done(r->arg, answer, err);
    free(r);
}

void dead_ask(struct pg_pool *pool, const char *sql, int n,
              const struct pg_param *params, dead_answer_fn *done, void *arg)
{
    struct request *r = xmalloc(sizeof(*r));

    *r = (struct request){done, arg};
    pg_pool_query(pool, sql, n, params, on_answer, r);
}
