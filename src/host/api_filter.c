/* The filters that lists and changes of deliveries share, from queries and from
 * bodies. */
#include "host/api_filter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dead_filter api_filter_of_query(const struct http_request *req,
                                       int limit)
{
    const char *cursor = http_query(req, "cursor");

    return (struct dead_filter){
        .handler = http_query(req, "handler"),
        .type = http_query(req, "type"),
        .aggregate = http_query(req, "aggregate"),
        .correlation = http_query(req, "correlation"),
        .class = http_query(req, "class"),
        .fingerprint = http_query(req, "fingerprint"),
        .state = http_query(req, "state"),
        .since = http_query(req, "since"),
        .until = http_query(req, "until"),
        .ids = http_query(req, "ids"),
        .cursor = cursor ? strtoll(cursor, NULL, 10) : 0,
        .limit = limit,
    };
}

const char *api_text_of(const json_t *body, const char *name)
{
    return json_string_value(json_object_get(body, name));
}

struct dead_filter api_filter_of(const json_t *body)
{
    return (struct dead_filter){
        .ids = api_text_of(body, "ids"),
        .handler = api_text_of(body, "handler"),
        .type = api_text_of(body, "type"),
        .aggregate = api_text_of(body, "aggregate"),
        .correlation = api_text_of(body, "correlation"),
        .class = api_text_of(body, "class"),
        .fingerprint = api_text_of(body, "fingerprint"),
        .since = api_text_of(body, "since"),
        .until = api_text_of(body, "until"),
    };
}

bool api_is_one_of(const char *name, const char *const *names)
{
    while (*names && strcmp(*names, name) != 0)
        names++;
    return *names != NULL;
}

bool api_refuse_member(struct http_request *req, const char *name,
                       const char *why)
{
    char detail[160];

    snprintf(detail, sizeof(detail), "%.64s %s", name, why);
    http_problem(req, 400, detail);
    return false;
}

/* An empty filter would mean all of them: that has to be said. */
bool api_is_aimed(json_t *body, const char *const *options,
                  struct http_request *req)
{
    static const char *const filters[] = {
        "ids",   "handler",     "type",  "aggregate", "correlation",
        "class", "fingerprint", "since", "until",     NULL};
    bool any = json_is_true(json_object_get(body, "all"));
    const char *name, *text;
    json_t *value;

    json_object_foreach(body, name, value) {
        text = api_is_one_of(name, filters) ? json_string_value(value) : NULL;
        any |= text && *text;
        if ((text && *text) || strcmp(name, "all") == 0 ||
            api_is_one_of(name, options))
            continue;
        return api_refuse_member(req, name, "is no filter, or not text");
    }
    if (!any)
        http_problem(req, 400, "name a filter, or say \"all\": true");
    return any;
}

/* Who it was: the token's name. Where there are none, only this machine can
 * ask, and says so itself. */
const char *api_who_of(const struct http_request *req, const json_t *body)
{
    const char *said = api_text_of(body, "who");

    if (http_who(req))
        return http_who(req);
    return said && *said ? said : "local";
}
