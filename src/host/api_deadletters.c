/* HTTP: what people see of dead letters and do to them. */
#include "host/api_deadletters.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/scan.h"
#include "base/words.h"
#include "host/api_filter.h"
#include "host/host_priv.h"
#include "pg/pg.h"
#include "stores/deadletters.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT_DEFAULT 100
#define LIMIT_BODIES  20 /* letters with their bytes in one answer */
#define RATE_MAX      1000000

static void on_answer(void *arg, json_t *answer, const struct err *err)
{
    struct http_request *req = arg;

    if (err)
        http_problem(req, err->kind == ERR_PERMANENT ? 422 : 503, err->msg);
    else if (json_is_null(answer))
        http_problem(req, 404, "no dead letter has that id");
    else {
        http_reply_json(req, 200, answer);
        return;
    }
    json_decref(answer);
}

static bool needs_database(struct host *h, struct http_request *req)
{
    if (h->db)
        return false;
    http_problem(req, 422,
                 "without PostgreSQL dead letters are records of "
                 "<topic>.dlq: read and produce them with any Kafka "
                 "client");
    return true;
}

/* --- seeing ---------------------------------------------------------------------- */

static bool wants_bodies(const struct http_request *req)
{
    const char *with = http_query(req, "with");

    return with && strcmp(with, "bodies") == 0;
}

static int limit_of(const struct http_request *req)
{
    const char *limit = http_query(req, "limit");

    if (limit)
        return (int)strtol(limit, NULL, 10);
    return wants_bodies(req) ? LIMIT_BODIES : LIMIT_DEFAULT;
}

static bool has_limit(const struct dead_filter *f, struct http_request *req)
{
    int most = wants_bodies(req) ? LIMIT_BODIES : 1000;
    char text[40];

    if (f->limit >= 1 && f->limit <= most)
        return true;
    snprintf(text, sizeof(text), "limit is 1 to %d", most);
    http_problem(req, 400, text);
    return false;
}

/* A page, newest first, and where the next one begins (null: nowhere). */
static void on_list(void *arg, json_t *answer, const struct err *err)
{
    struct http_request *req = arg;
    size_t n = json_array_size(answer);
    bool is_full = n && n >= (size_t)limit_of(req);
    json_t *last = is_full ? json_array_get(answer, n - 1) : NULL;

    if (err)
        http_problem(req, err->kind == ERR_PERMANENT ? 422 : 503, err->msg);
    else
        http_reply_json(req, 200,
                        json_pack("{s:O, s:O?}", "deadLetters", answer,
                                  "cursor", json_object_get(last, "id")));
    json_decref(answer);
}

void get_dead_letters(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    struct dead_filter f = api_filter_of_query(req, limit_of(req));

    if (!needs_database(h, req) && has_limit(&f, req))
        deadletters_list(h->db, &f, wants_bodies(req), on_list, req);
}

static void on_groups(void *arg, json_t *groups, const struct err *err)
{
    on_answer(arg, err ? NULL : json_pack("{s:o}", "groups", groups), err);
}

void get_dead_groups(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    struct dead_filter f = api_filter_of_query(req, limit_of(req));

    if (!needs_database(h, req) && has_limit(&f, req))
        deadletters_groups(h->db, &f, on_groups, req);
}

void get_dead_letter(void *ctx, struct http_request *req)
{
    struct host *h = ctx;

    if (!needs_database(h, req))
        deadletters_show(h->db, strtoll(http_param(req, 0), NULL, 10),
                         on_answer, req);
}

/* --- what a body asks for ----------------------------------------------------------- */

/* Only members that are known: one that is passed over would mean another thing
 * than was asked for. */
static bool knows_members(const json_t *body, const char *const *known,
                          struct http_request *req)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)body, name, value)
        if (!api_is_one_of(name, known))
            return api_refuse_member(req, name, "is not known here");
    return true;
}

/* --- redrive --------------------------------------------------------------------------- */

/* "100/s", "30/m", "5/h" → µs between two; 0 when it is absent, -1 bad. */
static int64_t every_of(const json_t *rate)
{
    const char *text = json_string_value(rate);
    char *end = NULL;
    long n = text ? strtol(text, &end, 10) : 0;
    int64_t per_us = 0;

    if (!rate)
        return 0;
    if (end && strcmp(end, "/s") == 0)
        per_us = 1000000;
    else if (end && strcmp(end, "/m") == 0)
        per_us = INT64_C(60) * 1000000;
    else if (end && strcmp(end, "/h") == 0)
        per_us = INT64_C(3600) * 1000000;
    if (n < 1 || n > RATE_MAX || !per_us)
        return -1;
    return (per_us + n - 1) / n;
}

void post_redrive(void *ctx, struct http_request *req)
{
    static const char *const options[] = {"dryRun", "rate", "force", "who",
                                          NULL};
    struct host *h = ctx;
    json_t *body = needs_database(h, req) ? NULL : http_json(req);
    struct dead_redrive how = {
        .is_dry_run = json_is_true(json_object_get(body, "dryRun")),
        .is_forced = json_is_true(json_object_get(body, "force")),
        .every_us = every_of(json_object_get(body, "rate")),
        .who = api_who_of(req, body),
    };

    if (body && api_is_aimed(body, options, req)) {
        struct dead_filter f = api_filter_of(body);

        if (how.every_us < 0)
            http_problem(req, 400, "rate is \"100/s\", \"30/m\" or \"5/h\"");
        else
            deadletters_redrive(h->db, &f, &how, on_answer, req);
    }
    json_decref(body);
}

void post_redrive_one(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    struct dead_filter f = {.ids = http_param(req, 0)};
    struct dead_redrive how = {.who = api_who_of(req, NULL)};

    if (!needs_database(h, req))
        deadletters_redrive(h->db, &f, &how, on_answer, req);
}

/* --- discard ----------------------------------------------------------------------------- */

static void discard(struct host *h, struct http_request *req,
                    const struct dead_filter *f, const json_t *body)
{
    const char *reason = api_text_of(body, "reason");

    if (!reason || !*reason)
        http_problem(req, 400, "a discard needs a reason");
    else
        deadletters_discard(h->db, f, reason, api_who_of(req, body), on_answer,
                            req);
}

void post_discard(void *ctx, struct http_request *req)
{
    static const char *const options[] = {"reason", "who", NULL};
    struct host *h = ctx;
    json_t *body = needs_database(h, req) ? NULL : http_json(req);

    if (body && api_is_aimed(body, options, req)) {
        struct dead_filter f = api_filter_of(body);

        discard(h, req, &f, body);
    }
    json_decref(body);
}

void post_discard_one(void *ctx, struct http_request *req)
{
    static const char *const members[] = {"reason", "who", NULL};
    struct host *h = ctx;
    json_t *body = needs_database(h, req) ? NULL : http_json(req);
    struct dead_filter f = {.ids = http_param(req, 0)};

    if (body && knows_members(body, members, req))
        discard(h, req, &f, body);
    json_decref(body);
}

/* --- edit ----------------------------------------------------------------------------------- */

static bool is_fact(const char *name)
{
    for (int i = 0; i < FACT_COUNT; i++)
        if (strcmp(name, fact_name((enum fact)i)) == 0)
            return true;
    return false;
}

static bool is_object_text(const json_t *text)
{
    json_t *json = json_loads(json_string_value(text), 0, NULL);
    bool is = json_is_object(json);

    json_decref(json);
    return is;
}

/* The id stays: by it the inbox knows what was done. */
static bool facts_are_good(const json_t *facts, struct http_request *req)
{
    const char *name;
    json_t *value;

    if (facts && !json_is_object(facts))
        return api_refuse_member(req, "facts", "is no object");
    json_object_foreach((json_t *)(uintptr_t)facts, name, value) {
        if (strcmp(name, fact_name(FACT_ID)) == 0)
            return api_refuse_member(req, "facts.id", "cannot be changed");
        if (!is_fact(name))
            return api_refuse_member(req, name, "is no fact of an event");
        if (!json_is_string(value) && !json_is_null(value))
            return api_refuse_member(req, name, "is no text, nor null");
        if (strcmp(name, fact_name(FACT_METADATA)) == 0 &&
            json_is_string(value) && !is_object_text(value))
            return api_refuse_member(req, name, "is no text of a JSON object");
    }
    return true;
}

/* The payload's own bytes: parsed and written again, numbers would lose digits. */
static bool find_payload(struct http_request *req, const json_t *parsed,
                         struct scan *scan, struct slice *payload)
{
    struct err err;

    if (!json_is_object(parsed) && !json_is_array(parsed))
        return api_refuse_member(req, "payload", "is no object and no list");
    if (!scan_path(scan, http_body(req), "payload", payload, &err))
        return api_refuse_member(req, "payload", err.msg);
    return true;
}

static void edit(struct host *h, struct http_request *req, const json_t *body,
                 struct scan *scan)
{
    static const char *const members[] = {"payload", "facts", "reason", "who",
                                          NULL};
    const json_t *payload = json_object_get(body, "payload");
    struct dead_edit what = {
        .facts = json_object_get(body, "facts"),
        .reason = api_text_of(body, "reason"),
        .who = api_who_of(req, body),
    };

    if (!knows_members(body, members, req) || !facts_are_good(what.facts, req))
        return;
    if (payload && !find_payload(req, payload, scan, &what.payload))
        return;
    if (!what.payload.ptr && json_object_size(what.facts) == 0)
        http_problem(req, 400, "an edit has a payload or facts");
    else if (!what.reason || !*what.reason)
        http_problem(req, 400, "an edit needs a reason");
    else
        deadletters_edit(h->db, strtoll(http_param(req, 0), NULL, 10), &what,
                         on_answer, req);
}

void post_edit(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    json_t *body = needs_database(h, req) ? NULL : http_json(req);
    struct scan *scan = scan_new();

    if (body)
        edit(h, req, body, scan);
    scan_free(scan);
    json_decref(body);
}
