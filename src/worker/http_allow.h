/*
 * Which urls a handler may talk to.
 *
 * An entry of `allow.http` is a url prefix, compared by scheme, host, port and
 * whole path segments, or a network such as 10.0.0.0/8. A name that leads to a
 * loopback, private or link-local address is refused unless a network on the
 * list holds that address; a prefix that is itself such an address, or
 * localhost, names it.
 */
#ifndef MT_WORKER_HTTP_ALLOW_H
#define MT_WORKER_HTTP_ALLOW_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>

struct sockaddr;

/* May `url` be asked for? `*named` tells whether its host is an address that
 * the list names literally. */
bool http_url_allowed(const char *url, const json_t *allow, bool *named,
                      struct err *err) MUST_CHECK;

/* scheme://host:port of a url that is one, as a name for where it leads: in
 * lower case, without user and password. Gives; NULL for none. */
char *url_origin(const char *url);

/* May a name lead to this address? */
bool http_address_allowed(const struct sockaddr *addr, const json_t *allow);
bool http_ip_allowed(const char *ip, const json_t *allow);

#endif
