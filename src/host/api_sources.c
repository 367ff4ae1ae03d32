/* HTTP: the sources, and what operators do to them. */
#include "host/api_sources.h"

#include "host/host_priv.h"
#include "stores/given_up.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT_DEFAULT 100
#define LIMIT_MOST    1000

static void answer(struct http_request *req, json_t *json,
                   const struct err *err)
{
    if (err)
        http_problem(req, err->kind == ERR_PERMANENT ? 422 : 503, err->msg);
    else
        http_reply_json(req, 200, json);
}

void get_sources(void *ctx, struct http_request *req)
{
    http_reply_json(req, 200, intake_json(((struct host *)ctx)->intake));
}

/* --- moves ------------------------------------------------------------------------ */

static void on_list(void *arg, json_t *list, const struct err *err)
{
    size_t n = json_array_size(list);
    json_t *last = n ? json_array_get(list, n - 1) : NULL;

    answer(arg,
           err ? NULL
               : json_pack("{s:o, s:O?}", "givenUp", list, "cursor",
                           json_object_get(last, "id")),
           err);
}

void get_moves(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    const char *cursor = http_query(req, "cursor");
    const char *limit = http_query(req, "limit");
    long most = limit ? strtol(limit, NULL, 10) : LIMIT_DEFAULT;

    if (!h->db)
        http_problem(req, 422,
                     "without PostgreSQL what was given up is in the log only");
    else if (most < 1 || most > LIMIT_MOST)
        http_problem(req, 400, "limit is 1 to 1000");
    else
        given_up_list(h->db, cursor ? strtoll(cursor, NULL, 10) : 0, (int)most,
                      on_list, req);
}

static const char *text_of(const json_t *body, const char *name)
{
    return json_string_value(json_object_get(body, name));
}

/* A member that nobody reads would be a wish that is passed over. */
static bool members_are_good(const json_t *body, struct http_request *req)
{
    static const char *const texts[] = {"partition", "to", "handler", "reason",
                                        "who"};
    const char *name;
    json_t *value;
    char why[120];

    json_object_foreach((json_t *)(uintptr_t)body, name, value) {
        bool is_good = strcmp(name, "force") == 0 && json_is_boolean(value);

        for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
            is_good |= strcmp(name, texts[i]) == 0 && json_is_string(value);
        if (is_good)
            continue;
        snprintf(why, sizeof(why),
                 "\"%.40s\" is not known here, or of another type", name);
        http_problem(req, 400, why);
        return false;
    }
    return true;
}

static void on_moved(void *arg, json_t *moved, const struct err *err)
{
    answer(arg, moved, err);
}

void post_move(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    json_t *body = http_json(req);
    const char *who = http_who(req);
    struct source_move move = {
        .partition = text_of(body, "partition"),
        .to = text_of(body, "to"),
        .handler = text_of(body, "handler"),
        .reason = text_of(body, "reason"),
        .who = who ? who : text_of(body, "who"),
        .is_forced = json_is_true(json_object_get(body, "force")),
    };

    if (!move.who || !*move.who)
        move.who = "local";
    if (!body || !members_are_good(body, req))
        ; /* it has its answer */
    else if (!move.partition || !move.to)
        http_problem(req, 400,
                     "a move has a partition (\"topic/3\") and where \"to\"");
    else if (!move.reason || !*move.reason)
        http_problem(req, 400, "a move needs a reason");
    else
        intake_move(h->intake, &move, on_moved, req);
    json_decref(body);
}
