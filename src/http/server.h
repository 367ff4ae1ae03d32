/*
 * A small HTTP server on the host's loop (libmicrohttpd, one thread).
 *
 * A route names method, path and the right it needs; its function answers now
 * or later, exactly once. Errors are application/problem+json (RFC 9457).
 * Limits: headers 16 KiB, body as configured, 256 connections, 32 per address,
 * and absolute deadlines for sending a request, which libmicrohttpd's own
 * timeout (inactivity) does not give.
 */
#ifndef MT_HTTP_SERVER_H
#define MT_HTTP_SERVER_H

#include "base/err.h"
#include "base/slice.h"

#include <jansson.h>
#include <stddef.h>

struct ev_loop;
struct http_request;
struct http_server;

enum http_right {
    RIGHT_NONE, /* health: open to everybody who can connect */
    RIGHT_VIEW,
    RIGHT_PUBLISH,
    RIGHT_REDRIVE,
    RIGHT_OPERATE,
    RIGHT_KNOWN, /* any token of http.tokens has it */
};

typedef void http_handler_fn(void *ctx, struct http_request *req);

struct http_route {
    const char *method; /* "GET", "POST", "PUT", "DELETE" */
    const char *path;   /* "/v1/handlers/{}": {} is one segment */
    enum http_right right;
    http_handler_fn *fn;
};

struct http_options {
    const char *listen;   /* "127.0.0.1:7600", "[::1]:0" */
    const json_t *tokens; /* [{name, token_file|token, rights: […]}] or empty */
    const struct http_route *routes;
    size_t n_routes;
    size_t body_max;
    void *ctx; /* for every route's function */
};

/* Refused when not on loopback and without tokens. */
struct http_server *http_server_new(struct ev_loop *loop,
                                    const struct http_options *options,
                                    struct err *err) MUST_CHECK;
void http_server_free(struct http_server *s); /* NULL is allowed */

/* host:port that it listens on, with the real port. */
const char *http_server_address(const struct http_server *s);

/* --- in a route's function; borrowed until the answer ---------------------- */

/* The i-th {} of the path, percent-decoded; "" when there is none. */
const char *http_param(const struct http_request *req, size_t i);
/* A query parameter, or NULL. */
const char *http_query(const struct http_request *req, const char *name);
const char *http_header(const struct http_request *req, const char *name);
struct slice http_body(const struct http_request *req);
/* The body as JSON; NULL after answering 400. Gives. */
json_t *http_json(struct http_request *req);

/* The name of the token that was shown ("token 2" where it has none); NULL
 * where no tokens are needed. */
const char *http_who(const struct http_request *req);

void http_reply(struct http_request *req, unsigned status, const char *type,
                struct slice body);
/* Takes `json`. */
void http_reply_json(struct http_request *req, unsigned status, json_t *json);
void http_problem(struct http_request *req, unsigned status,
                  const char *detail);

#endif
