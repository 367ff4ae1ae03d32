/* HTTP: metrics, health, readiness and /v1. One function a route. */
#include "host/api_deadletters.h"
#include "host/api_deliveries.h"
#include "host/api_sources.h"
#include "host/host_priv.h"
#include "host/upkeep.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/jsontext.h"
#include "base/mem.h"
#include "http/server.h"
#include "pg/pg.h"
#include "stores/flags.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BODY_MAX    (1 << 20)
#define PUBLISH_MAX 1000

struct api {
    struct host *host;
    struct http_server *server;
};

/* --- health --------------------------------------------------------------------- */

static void get_metrics(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    const char *accept = http_header(req, "Accept");
    bool open = accept && strstr(accept, "application/openmetrics-text");
    struct buf text = {0};

    metrics_render(h->metrics, open, &text);
    http_reply(req, 200,
               open ? "application/openmetrics-text; version=1.0.0; "
                      "charset=utf-8"
                    : "text/plain; version=0.0.4; charset=utf-8",
               (struct slice){text.ptr, text.len});
    buf_fini(&text);
}

static void get_health(void *ctx, struct http_request *req)
{
    struct host *h = ctx;

    http_reply_json(
        req, 200,
        json_pack("{s:s}", "status", h->is_draining ? "draining" : "up"));
}

static void get_ready(void *ctx, struct http_request *req)
{
    json_t *reasons = readiness_json(ctx);
    bool ready = json_array_size(reasons) == 0;

    http_reply_json(
        req, ready ? 200 : 503,
        json_pack("{s:b, s:o}", "ready", ready, "reasons", reasons));
}

/* --- status, settings, handlers ------------------------------------------------------ */

static json_t *kafka_json(const struct host *h)
{
    return json_pack("{s:b, s:s, s:s, s:b}", "connected", h->kafka_is_connected,
                     "bootstrap", host_bootstrap(h), "group",
                     h->settings.kafka_group_id, "embedded",
                     h->embedded != NULL);
}

json_t *status_json(struct host *h)
{
    struct pipeline_numbers n;
    char since[RFC3339_SIZE];
    json_t *json, *deliveries = json_object();
    json_t *store = upkeep_json(h->upkeep);

    pipeline_numbers(h->pipeline, &n);
    for (int i = 0; i < DELIVERY_SETTLED; i++) {
        char name[16];
        const char *state = delivery_state_name((enum delivery_state)i);
        size_t k = 0;

        for (; state[k] && k < sizeof(name) - 1; k++)
            name[k] = (char)(state[k] | 0x20);
        name[k] = '\0';
        json_object_set_new(deliveries, name,
                            json_integer((json_int_t)n.deliveries[i]));
    }
    json = json_pack(
        "{s:s, s:s, s:s, s:b, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o}",
        "version", MT_VERSION, "node", h->node, "since",
        clock_format(h->started_us, since), "draining", h->is_draining,
        "deliveries", deliveries, "windowEvents", (json_int_t)n.events,
        "windowBytes", (json_int_t)n.cost, "workers",
        supervisor_json(h->supervisor), "handlers",
        catalogue_json(h->catalogue, NULL), "flags", switches_json(h),
        "sources", intake_json(h->intake), "reasons", readiness_json(h),
        "warnings", upkeep_warnings(h->upkeep));
    if (h->kafka)
        json_object_set_new(json, "kafka", kafka_json(h));
    if (h->db)
        json_object_set_new(json, "database",
                            json_pack("{s:b, s:b}", "connected",
                                      h->db_is_connected, "migrated",
                                      h->db_is_migrated));
    if (store)
        json_object_set_new(json, "store", store);
    return json;
}

static void get_status(void *ctx, struct http_request *req)
{
    http_reply_json(req, 200, status_json(ctx));
}

static void get_settings(void *ctx, struct http_request *req)
{
    struct host *h = ctx;

    http_reply_json(req, 200, settings_json(&h->settings, false));
}

static void get_handlers(void *ctx, struct http_request *req)
{
    struct host *h = ctx;

    http_reply_json(
        req, 200,
        json_pack("{s:o}", "handlers", catalogue_json(h->catalogue, NULL)));
}

static void get_handler(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    json_t *json = catalogue_json(h->catalogue, http_param(req, 0));

    if (json)
        http_reply_json(req, 200, json);
    else
        http_problem(req, 404, "no handler has that name");
}

static void get_bundle(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    const char *bundle = catalogue_bundle(h->catalogue, http_param(req, 0));

    if (bundle)
        http_reply(req, 200, "application/json", slice_of(bundle));
    else
        http_problem(req, 404, "no handler of that name is running");
}

static void post_reload(void *ctx, struct http_request *req)
{
    struct host *h = ctx;
    const char *name = http_param(req, 0);

    if (*name && !catalogue_knows(h->catalogue, name)) {
        http_problem(req, 404, "no handler has that name");
        return;
    }
    catalogue_scan(h->catalogue, *name ? name : "*");
    http_reply_json(req, 202, json_pack("{s:s}", "status", "looking"));
}

/* --- flags ------------------------------------------------------------------------------ */

static void get_flags(void *ctx, struct http_request *req)
{
    http_reply_json(req, 200, json_pack("{s:o}", "flags", switches_json(ctx)));
}

static void on_flag_done(void *arg, const struct err *err)
{
    struct http_request *req = arg;

    if (err)
        http_problem(req, err->kind == ERR_PERMANENT ? 422 : 503, err->msg);
    else
        http_reply_json(req, 200, json_pack("{s:s}", "status", "set"));
}

/* {"state": "percent", "percent": 25} is the same as {"state": "25%"}. */
static const char *state_of_body(const json_t *body, char text[static 16])
{
    const char *state = json_string_value(json_object_get(body, "state"));
    const json_t *percent = json_object_get(body, "percent");

    if (!state || strcmp(state, "percent") != 0 || !json_is_integer(percent))
        return state;
    snprintf(text, 16, "%d%%", (int)json_integer_value(percent));
    return text;
}

static void set_flag(struct host *h, struct http_request *req, const char *name,
                     const json_t *body)
{
    char percent[16];
    const char *lasts = json_string_value(json_object_get(body, "for"));
    struct flag_set set = {
        .name = name,
        .state = state_of_body(body, percent),
        .when_off = json_string_value(json_object_get(body, "whenOff")),
        .reason = json_string_value(json_object_get(body, "reason")),
        .who = json_string_value(json_object_get(body, "who")),
    };

    if (!set.when_off)
        set.when_off = "hold";
    if (lasts && !duration_parse(lasts, &set.for_ms))
        http_problem(req, 400, "\"for\" is not a duration");
    else
        switches_set(h, &set, on_flag_done, req);
}

static void put_flag(void *ctx, struct http_request *req)
{
    json_t *body = http_json(req);

    if (!body)
        return;
    set_flag(ctx, req, http_param(req, 0), body);
    json_decref(body);
}

static void delete_flag(void *ctx, struct http_request *req)
{
    switches_unset(ctx, http_param(req, 0), on_flag_done, req);
}

/* Pause and resume of a handler are its flag. */
static void pause_or_resume(struct host *h, struct http_request *req,
                            const char *state)
{
    char name[100];
    json_t *body =
        json_pack("{s:s, s:s}", "state", state, "reason", "handlers pause");

    snprintf(name, sizeof(name), "handler:%s", http_param(req, 0));
    set_flag(h, req, name, body);
    json_decref(body);
}

static void post_pause(void *ctx, struct http_request *req)
{
    pause_or_resume(ctx, req, "off");
}

static void post_resume(void *ctx, struct http_request *req)
{
    pause_or_resume(ctx, req, "on");
}

/* --- publishing ------------------------------------------------------------------------------- */

static void on_published(void *arg, json_t *ids, const struct err *err)
{
    struct http_request *req = arg;

    if (err)
        http_problem(req, err->kind == ERR_RETRIABLE ? 503 : 422, err->msg);
    else
        http_reply_json(req, 202, json_pack("{s:o}", "ids", ids));
}

static void post_events(void *ctx, struct http_request *req)
{
    json_t *body = http_json(req), *list = body;

    if (!body)
        return;
    if (json_is_object(body))
        list = json_pack("[O]", body);
    else
        json_incref(list);
    if (!json_is_array(list) || json_array_size(list) == 0 ||
        json_array_size(list) > PUBLISH_MAX)
        http_problem(req, 400, "the body is one event or a list of 1 to 1000");
    else
        publish_events(ctx, list, on_published, req);
    json_decref(list);
    json_decref(body);
}

/* --- table ---------------------------------------------------------------------------------------- */

static const struct http_route routes[] = {
    {"GET", "/metrics", RIGHT_VIEW, get_metrics},
    {"GET", "/healthz", RIGHT_NONE, get_health},
    {"GET", "/readyz", RIGHT_NONE, get_ready},
    {"GET", "/v1/status", RIGHT_VIEW, get_status},
    {"GET", "/v1/settings", RIGHT_VIEW, get_settings},
    {"GET", "/v1/sources", RIGHT_VIEW, get_sources},
    {"GET", "/v1/sources/moves", RIGHT_VIEW, get_moves},
    {"POST", "/v1/sources/move", RIGHT_OPERATE, post_move},
    {"GET", "/v1/handlers", RIGHT_VIEW, get_handlers},
    {"GET", "/v1/handlers/{}", RIGHT_VIEW, get_handler},
    {"GET", "/v1/handlers/{}/bundle", RIGHT_OPERATE, get_bundle},
    {"POST", "/v1/handlers/{}/reload", RIGHT_OPERATE, post_reload},
    {"POST", "/v1/handlers/{}/pause", RIGHT_OPERATE, post_pause},
    {"POST", "/v1/handlers/{}/resume", RIGHT_OPERATE, post_resume},
    {"POST", "/v1/reload", RIGHT_OPERATE, post_reload},
    {"GET", "/v1/flags", RIGHT_VIEW, get_flags},
    {"PUT", "/v1/flags/{}", RIGHT_OPERATE, put_flag},
    {"DELETE", "/v1/flags/{}", RIGHT_OPERATE, delete_flag},
    {"GET", "/v1/deliveries", RIGHT_VIEW, get_deliveries},
    {"POST", "/v1/deliveries/retry", RIGHT_REDRIVE, post_deliveries_retry},
    {"POST", "/v1/deliveries/skip", RIGHT_REDRIVE, post_deliveries_skip},
    {"POST", "/v1/deliveries/dead", RIGHT_REDRIVE, post_deliveries_dead},
    {"GET", "/v1/dead-letters", RIGHT_VIEW, get_dead_letters},
    {"GET", "/v1/dead-letters/groups", RIGHT_VIEW, get_dead_groups},
    {"GET", "/v1/dead-letters/{}", RIGHT_VIEW, get_dead_letter},
    {"POST", "/v1/dead-letters/redrive", RIGHT_REDRIVE, post_redrive},
    {"POST", "/v1/dead-letters/discard", RIGHT_REDRIVE, post_discard},
    {"POST", "/v1/dead-letters/{}/redrive", RIGHT_REDRIVE, post_redrive_one},
    {"POST", "/v1/dead-letters/{}/discard", RIGHT_REDRIVE, post_discard_one},
    {"POST", "/v1/dead-letters/{}/edit", RIGHT_REDRIVE, post_edit},
    {"POST", "/v1/events", RIGHT_PUBLISH, post_events},
};

struct api *api_new(struct host *h, struct err *err)
{
    struct http_options options = {
        .listen = h->settings.http_listen,
        .tokens = h->settings.http_tokens,
        .routes = routes,
        .n_routes = sizeof(routes) / sizeof(*routes),
        .body_max = BODY_MAX,
        .ctx = h,
    };
    struct api *a = xcalloc(1, sizeof(*a));

    a->host = h;
    a->server = http_server_new(h->loop, &options, err);
    if (!a->server) {
        free(a);
        return NULL;
    }
    return a;
}

void api_free(struct api *a)
{
    if (!a)
        return;
    http_server_free(a->server);
    free(a);
}
