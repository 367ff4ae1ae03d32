#include "http/server.h"

#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/jsontext.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "http/listen.h"

#include <ev.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char component[] = "http";

#define PARAMS_MAX       4
#define CONNECTIONS_MAX  256
#define PER_ADDRESS_MAX  32
#define HEADER_MEMORY    (32 * 1024)
#define IDLE_S           30
#define REQUEST_LIMIT_US 30000000 /* from connection or last answer */

struct token {
    char hash[SHA256_HEX_SIZE];
    char *name;
    unsigned rights; /* bit 1 << enum http_right */
};

struct connection {
    struct list link;
    struct MHD_Connection *mhd;
    bool is_suspended;
    int64_t waiting_since_us; /* for a whole request; 0: one is being served */
};

struct http_request {
    struct http_server *server;
    struct MHD_Connection *mhd;
    struct connection *connection;
    const struct http_route *route;
    const struct token *token; /* the one that was shown */
    char *params[PARAMS_MAX];
    struct buf body;
    struct MHD_Response *response; /* the answer, once there is one */
    unsigned status;
    bool is_suspended, is_too_big, is_dispatched;
};

struct http_server {
    struct ev_loop *loop;
    struct http_options options;
    struct MHD_Daemon *daemon;
    struct token *tokens;
    size_t n_tokens;
    struct list connections;
    ev_io io;
    ev_timer timeout, sweep;
    char address[80];
    bool is_loopback;
};

/* --- what a route's function sees -------------------------------------------- */

const char *http_param(const struct http_request *req, size_t i)
{
    return i < PARAMS_MAX && req->params[i] ? req->params[i] : "";
}

const char *http_who(const struct http_request *req)
{
    return req->token ? req->token->name : NULL;
}

const char *http_query(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(req->mhd, MHD_GET_ARGUMENT_KIND, name);
}

const char *http_header(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(req->mhd, MHD_HEADER_KIND, name);
}

struct slice http_body(const struct http_request *req)
{
    return (struct slice){req->body.ptr, req->body.len};
}

json_t *http_json(struct http_request *req)
{
    char detail[300];
    json_error_t e;
    json_t *json = json_loadb(req->body.ptr ? req->body.ptr : "", req->body.len,
                              JSON_REJECT_DUPLICATES, &e);

    if (json)
        return json;
    snprintf(detail, sizeof(detail), "the body is not JSON: line %d: %s",
             e.line, e.text);
    http_problem(req, 400, detail);
    return NULL;
}

void http_reply(struct http_request *req, unsigned status, const char *type,
                struct slice body)
{
    CHECK(!req->response);
    req->response = MHD_create_response_from_buffer(
        body.len, (void *)(uintptr_t)(body.ptr ? body.ptr : ""),
        MHD_RESPMEM_MUST_COPY);
    CHECK(req->response);
    MHD_add_response_header(req->response, "Content-Type", type);
    MHD_add_response_header(req->response, "Cache-Control", "no-store");
    MHD_add_response_header(req->response, "X-Content-Type-Options", "nosniff");
    if (status == 401)
        MHD_add_response_header(req->response, "WWW-Authenticate", "Bearer");
    req->status = status;
    if (req->is_suspended) {
        req->is_suspended = false;
        if (req->connection)
            req->connection->is_suspended = false;
        MHD_resume_connection(req->mhd);
        ev_feed_event(req->server->loop, &req->server->io, EV_READ);
    }
}

static void reply_text(struct http_request *req, unsigned status,
                       const char *type, json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);

    http_reply(req, status, type, slice_of(text ? text : "{}"));
    free(text);
    json_decref(json);
}

void http_reply_json(struct http_request *req, unsigned status, json_t *json)
{
    reply_text(req, status, "application/json", json);
}

static const char *title_of(unsigned status)
{
    switch (status) {
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 422: return "Unprocessable Content";
    case 503: return "Service Unavailable";
    default: return "Error";
    }
}

void http_problem(struct http_request *req, unsigned status, const char *detail)
{
    reply_text(req, status, "application/problem+json",
               json_pack("{s:s, s:s, s:i, s:o}", "type", "about:blank", "title",
                         title_of(status), "status", (int)status, "detail",
                         json_string_lossy(slice_of(detail))));
}

/* Who is not known is asked who they are; who is known may not. */
static void refuse(struct http_request *req, unsigned rights)
{
    if (rights & 1u << RIGHT_KNOWN)
        http_problem(req, 403, "the token does not have the right this needs");
    else
        http_problem(req, 401,
                     http_header(req, "Authorization")
                         ? "the token is not known here"
                         : "this needs a token: Authorization: Bearer …");
}

/* --- routing ------------------------------------------------------------------ */

/* "/v1/handlers/{}" against the path; what {} stands for goes to `params`. */
static bool path_match(const char *pattern, const char *path,
                       char *params[PARAMS_MAX])
{
    size_t n = 0;

    while (*pattern) {
        size_t len;

        if (strncmp(pattern, "{}", 2) != 0) {
            if (*pattern++ != *path++)
                return false;
            continue;
        }
        len = strcspn(path, "/");
        if (len == 0 || n == PARAMS_MAX)
            return false;
        free(params[n]);
        params[n++] = xstrndup(path, len);
        path += len;
        pattern += 2;
    }
    return *path == '\0';
}

static const struct http_route *find_route(struct http_request *req,
                                           const char *method, const char *path,
                                           bool *other)
{
    const struct http_options *o = &req->server->options;

    *other = false;
    for (size_t i = 0; i < o->n_routes; i++) {
        if (!path_match(o->routes[i].path, path, req->params))
            continue;
        if (strcmp(o->routes[i].method, method) == 0 ||
            (strcmp(method, "HEAD") == 0 &&
             strcmp(o->routes[i].method, "GET") == 0))
            return &o->routes[i];
        *other = true;
    }
    return NULL;
}

static unsigned rights_of(struct http_request *req)
{
    const char *header = http_header(req, "Authorization");
    char hash[SHA256_HEX_SIZE];
    unsigned rights = 0;

    if (req->server->n_tokens == 0)
        return ~0u;
    if (!header || strncasecmp(header, "Bearer ", 7) != 0)
        return 1u << RIGHT_NONE;
    digest_sha256(slice_of(header + 7), hash);
    for (size_t i = 0; i < req->server->n_tokens; i++)
        if (digest_equal(hash, req->server->tokens[i].hash, sizeof(hash))) {
            req->token = &req->server->tokens[i];
            rights = req->token->rights | 1u << RIGHT_KNOWN;
        }
    return rights | 1u << RIGHT_NONE;
}

/* A name that resolves to us is not enough on loopback: a web page in the
 * operator's browser could point its own name here (DNS rebinding). */
static bool host_is_ours(const struct http_request *req)
{
    const char *host = http_header(req, "Host");

    return !req->server->is_loopback || !host || listen_is_loopback(host);
}

static bool comes_from_elsewhere(const struct http_request *req,
                                 const char *method)
{
    const char *site = http_header(req, "Sec-Fetch-Site");
    const char *origin = http_header(req, "Origin");
    const char *host = http_header(req, "Host");
    const char *name;

    if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0)
        return false;
    if (site && strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0)
        return true;
    if (!origin)
        return false;
    name = strstr(origin, "://");
    return !name || !host || strcmp(name + 3, host) != 0;
}

static void dispatch(struct http_request *req, const char *method,
                     const char *path)
{
    unsigned rights = rights_of(req);
    bool other;

    req->is_dispatched = true;
    req->route = find_route(req, method, path, &other);
    if (!host_is_ours(req))
        http_problem(req, 403, "the Host header names another host");
    else if (comes_from_elsewhere(req, method))
        http_problem(req, 403, "requests from other origins are refused");
    else if (!req->route && other)
        http_problem(req, 405, "this resource does not take that method");
    else if (!req->route)
        http_problem(req, 404, "there is nothing here");
    else if (!(rights & 1u << req->route->right))
        refuse(req, rights);
    else if (req->is_too_big)
        http_problem(req, 413, "the body is too large");
    else
        req->route->fn(req->server->options.ctx, req);
}

/* --- libmicrohttpd's side -------------------------------------------------------- */

static struct http_request *request_new(struct http_server *s,
                                        struct MHD_Connection *mhd)
{
    struct http_request *req = xcalloc(1, sizeof(*req));
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    req->server = s;
    req->mhd = mhd;
    req->connection = info ? info->socket_context : NULL;
    return req;
}

static enum MHD_Result on_access(void *ctx, struct MHD_Connection *mhd,
                                 const char *path, const char *method,
                                 const char *version, const char *data,
                                 size_t *len, void **state)
{
    struct http_request *req = *state;

    (void)version;
    if (!req) {
        *state = request_new(ctx, mhd);
        return MHD_YES;
    }
    if (*len) {
        if (req->body.len + *len > req->server->options.body_max)
            req->is_too_big = true;
        else
            buf_add(&req->body, data, *len);
        *len = 0;
        return MHD_YES;
    }
    if (req->connection)
        req->connection->waiting_since_us = 0;
    if (!req->is_dispatched)
        dispatch(req, method, path);
    if (req->response)
        return MHD_queue_response(mhd, req->status, req->response);
    req->is_suspended = true;
    if (req->connection)
        req->connection->is_suspended = true;
    MHD_suspend_connection(mhd);
    return MHD_YES;
}

static void on_completed(void *ctx, struct MHD_Connection *mhd, void **state,
                         enum MHD_RequestTerminationCode why)
{
    struct http_request *req = *state;

    (void)ctx;
    (void)mhd;
    (void)why;
    if (!req)
        return;
    if (req->connection)
        req->connection->waiting_since_us = clock_mono_us();
    if (req->response)
        MHD_destroy_response(req->response);
    for (int i = 0; i < PARAMS_MAX; i++)
        free(req->params[i]);
    buf_fini(&req->body);
    free(req);
    *state = NULL;
}

static void on_connection(void *ctx, struct MHD_Connection *mhd, void **state,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http_server *s = ctx;
    struct connection *c;

    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        c = xcalloc(1, sizeof(*c));
        c->mhd = mhd;
        c->waiting_since_us = clock_mono_us();
        list_append(&s->connections, &c->link);
        *state = c;
        return;
    }
    c = *state;
    if (c) {
        list_remove(&c->link);
        free(c);
    }
}

static void run(struct http_server *s)
{
    MHD_UNSIGNED_LONG_LONG ms;

    MHD_run(s->daemon);
    ev_timer_stop(s->loop, &s->timeout);
    if (MHD_get_timeout(s->daemon, &ms) == MHD_YES) {
        ev_timer_set(&s->timeout, (double)ms / 1e3, 0);
        ev_timer_start(s->loop, &s->timeout);
    }
}

/* A drip of one byte a second is activity, but never becomes a request. */
static void on_sweep(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct http_server *s = timer->data;
    int64_t now = clock_mono_us();

    (void)loop;
    (void)events;
    list_foreach(link, &s->connections) {
        struct connection *c = CONTAINER_OF(link, struct connection, link);
        const union MHD_ConnectionInfo *info;

        if (!c->waiting_since_us ||
            now - c->waiting_since_us < REQUEST_LIMIT_US)
            continue;
        info =
            MHD_get_connection_info(c->mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (info)
            shutdown(info->connect_fd, SHUT_RDWR);
    }
    /* Without a descriptor left libmicrohttpd no longer accepts, and looks
     * whether there is one again when it next runs: nothing else wakes it. */
    run(s);
}

static void on_io(struct ev_loop *loop, ev_io *io, int events)
{
    (void)loop;
    (void)events;
    run(io->data);
}

static void on_timeout(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop;
    (void)events;
    run(timer->data);
}

static void quiet_log(void *ctx, const char *fmt, va_list ap)
{
    char text[256];

    (void)ctx;
    vsnprintf(text, sizeof(text), fmt, ap);
    log_debug("libmicrohttpd", "text=" LOG_Q, text);
}

/* --- opening ------------------------------------------------------------------------ */

static bool right_of(const char *name, unsigned *bits)
{
    static const struct {
        const char *name;
        unsigned bits;
    } rights[] = {
        {"view", 1u << RIGHT_VIEW},
        {"publish", 1u << RIGHT_PUBLISH},
        {"redrive", 1u << RIGHT_REDRIVE | 1u << RIGHT_VIEW},
        {"operate",
         1u << RIGHT_OPERATE | 1u << RIGHT_REDRIVE | 1u << RIGHT_VIEW},
    };

    for (size_t i = 0; i < sizeof(rights) / sizeof(*rights); i++)
        if (strcmp(rights[i].name, name) == 0) {
            *bits |= rights[i].bits;
            return true;
        }
    return false;
}

/* The token's text, from its file or the table itself; gives. */
static char *token_text(const json_t *item, size_t i, struct err *err)
{
    const char *path = json_string_value(json_object_get(item, "token_file"));
    const char *plain = json_string_value(json_object_get(item, "token"));
    char text[512];
    size_t len;
    FILE *file;

    if (plain)
        return xstrdup(plain);
    file = path ? fopen(path, "re") : NULL;
    if (!file) {
        err_set(err, ERR_PERMANENT, "http.tokens[%zu]: cannot read %s", i + 1,
                path ? path : "token_file (not given)");
        return NULL;
    }
    len = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    while (len > 0 && strchr(" \r\n\t", text[len - 1]))
        len--;
    return xstrndup(text, len);
}

static bool add_token(struct http_server *s, const json_t *item, size_t i,
                      struct err *err)
{
    const char *name = json_string_value(json_object_get(item, "name"));
    char *text = token_text(item, i, err);
    struct token *t = &s->tokens[s->n_tokens];
    json_t *right;
    size_t k;

    if (!text)
        return false;
    if (strlen(text) < 16) {
        free(text);
        return err_set(err, ERR_PERMANENT,
                       "http.tokens[%zu]: a token has at least 16 characters",
                       i + 1);
    }
    digest_sha256(slice_of(text), t->hash);
    free(text);
    json_array_foreach(json_object_get(item, "rights"), k, right)
        if (!json_is_string(right) ||
            !right_of(json_string_value(right), &t->rights))
            return err_set(err, ERR_PERMANENT,
                           "http.tokens[%zu]: rights "
                           "are view, publish, "
                           "redrive, operate",
                           i + 1);
    t->name = name ? xstrdup(name) : xasprintf("token %zu", i + 1);
    s->n_tokens++;
    return true;
}

static bool read_tokens(struct http_server *s, struct err *err)
{
    const json_t *tokens = s->options.tokens;
    json_t *item;
    size_t i;

    s->tokens = xcalloc(json_array_size(tokens) + 1, sizeof(*s->tokens));
    json_array_foreach(tokens, i, item)
        if (!add_token(s, item, i, err))
            return false;
    if (s->n_tokens == 0 && !s->is_loopback)
        return err_set(err, ERR_PERMANENT,
                       "http.listen = \"%s\" is not loopback: that needs "
                       "http.tokens",
                       s->options.listen);
    return true;
}

static bool start_daemon(struct http_server *s, int fd, struct err *err)
{
    const union MHD_DaemonInfo *info;

    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL,
        NULL, on_access, s, MHD_OPTION_EXTERNAL_LOGGER, quiet_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        NULL, MHD_OPTION_NOTIFY_CONNECTION, on_connection, s,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)PER_ADDRESS_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (!s->daemon) {
        close(fd);
        return err_set(err, ERR_PERMANENT, "cannot start the HTTP server");
    }
    info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    CHECK(info);
    ev_io_init(&s->io, on_io, info->epoll_fd, EV_READ);
    ev_io_start(s->loop, &s->io);
    return true;
}

struct http_server *http_server_new(struct ev_loop *loop,
                                    const struct http_options *options,
                                    struct err *err)
{
    struct http_server *s = xcalloc(1, sizeof(*s));
    struct listen_address address;
    int fd;

    s->loop = loop;
    s->options = *options;
    list_init(&s->connections);
    ev_timer_init(&s->timeout, on_timeout, 0, 0);
    ev_timer_init(&s->sweep, on_sweep, 5, 5);
    ev_init(&s->io, on_io);
    s->io.data = s->timeout.data = s->sweep.data = s;
    if (!listen_parse(options->listen, &address, err))
        goto fail;
    s->is_loopback = address.is_loopback;
    if (!read_tokens(s, err) ||
        (fd = listen_open(&address, options->listen, err)) < 0)
        goto fail;
    listen_name(fd, s->address, sizeof(s->address));
    if (!start_daemon(s, fd, err))
        goto fail;
    ev_timer_start(loop, &s->sweep);
    log_info("listening", "addr=%s", s->address);
    return s;
fail:
    http_server_free(s);
    return NULL;
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    ev_io_stop(s->loop, &s->io);
    ev_timer_stop(s->loop, &s->timeout);
    ev_timer_stop(s->loop, &s->sweep);
    if (s->daemon) {
        list_foreach(link, &s->connections) {
            struct connection *c = CONTAINER_OF(link, struct connection, link);

            if (c->is_suspended)
                MHD_resume_connection(c->mhd);
        }
        MHD_stop_daemon(s->daemon);
    }
    for (size_t i = 0; i < s->n_tokens; i++)
        free(s->tokens[i].name);
    free(s->tokens);
    free(s);
}

const char *http_server_address(const struct http_server *s)
{
    return s->address;
}
