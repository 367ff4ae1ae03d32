/* HTTP: what waits in the parked queue, and what people decide on it. */
#include "host/api_deliveries.h"

#include "base/mem.h"
#include "host/api_filter.h"
#include "host/host_priv.h"
#include "stores/parked.h"

#include <stdlib.h>

#define LIMIT_DEFAULT 100
#define LIMIT_MAX     1000

static bool needs_database(const struct host *h, struct http_request *req)
{
    if (!h->parked)
        http_problem(req, 422,
                     "without PostgreSQL nothing is parked: what waits, waits "
                     "in its lane");
    return !h->parked;
}

static int limit_of(const struct http_request *req)
{
    const char *limit = http_query(req, "limit");

    return limit ? (int)strtol(limit, NULL, 10) : LIMIT_DEFAULT;
}

/* A page, newest first, and where the next one begins (null: nowhere). */
static void on_list(void *arg, json_t *answer, const struct err *err)
{
    struct http_request *req = arg;
    size_t n = json_array_size(answer);
    json_t *last =
        n && n >= (size_t)limit_of(req) ? json_array_get(answer, n - 1) : NULL;

    if (err)
        http_problem(req, err->kind == ERR_PERMANENT ? 422 : 503, err->msg);
    else
        http_reply_json(req, 200,
                        json_pack("{s:O, s:O?}", "deliveries", answer, "cursor",
                                  json_object_get(last, "id")));
    json_decref(answer);
}

void get_deliveries(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    struct dead_filter f = api_filter_of_query(req, limit_of(req));

    if (needs_database(h, req))
        return;
    if (f.limit < 1 || f.limit > LIMIT_MAX)
        http_problem(req, 400, "limit is 1 to 1000");
    else
        parked_list(h->db, &f, on_list, req);
}

static void on_done(void *arg, json_t *answer, const struct err *err)
{
    struct http_request *req = arg;

    if (err)
        http_problem(req, err->kind == ERR_PERMANENT ? 422 : 503, err->msg);
    else
        http_reply_json(req, 200, json_incref(answer));
    json_decref(answer);
}

/* Who and why stay with the skip or the dead letter. */
static void act(struct host *h, struct http_request *req, const char *what,
                bool needs_reason)
{
    static const char *const options[] = {"reason", "state", "who", NULL};
    json_t *body = needs_database(h, req) ? NULL : http_json(req);
    const char *reason = api_text_of(body, "reason");

    if (body && api_is_aimed(body, options, req)) {
        struct dead_filter f = api_filter_of(body);
        char *why =
            xasprintf("by %s: %s", api_who_of(req, body), reason ? reason : "");

        f.state = api_text_of(body, "state");
        if (needs_reason && (!reason || !*reason))
            http_problem(req, 400, "that needs a reason");
        else
            parked_act(h->db, &f, what, why, on_done, req);
        free(why);
    }
    json_decref(body);
}

void post_deliveries_retry(void *ctx, struct http_request *req)
{
    act(ctx, req, "retry", false);
}

void post_deliveries_skip(void *ctx, struct http_request *req)
{
    act(ctx, req, "skip", true);
}

void post_deliveries_dead(void *ctx, struct http_request *req)
{
    act(ctx, req, "dead", true);
}
