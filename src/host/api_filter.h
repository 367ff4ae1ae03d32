/* What a request says of the deliveries it means: interfaces, "filters". */
#ifndef MT_HOST_API_FILTER_H
#define MT_HOST_API_FILTER_H

#include "http/server.h"
#include "stores/deadletters.h"

/* Both borrow from the request or the body. */
struct dead_filter api_filter_of_query(const struct http_request *req,
                                       int limit);
struct dead_filter api_filter_of(const json_t *body);

/* Does the body name some, or say "all", and nothing else but `options`
 * (NULL-terminated)? Else the request is answered. */
bool api_is_aimed(json_t *body, const char *const *options,
                  struct http_request *req);

/* Who asks: the token's name, or what this machine says. */
const char *api_who_of(const struct http_request *req, const json_t *body);

const char *api_text_of(const json_t *body, const char *name); /* or NULL */
bool api_is_one_of(const char *name, const char *const *names);
/* Answers 400; false. */
bool api_refuse_member(struct http_request *req, const char *name,
                       const char *why);

#endif
