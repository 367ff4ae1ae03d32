/*
 * HTTP for handlers: one primitive that performs a request the Lua half has
 * put together. The url is checked against the handler's allow list here, next
 * to the socket, and so is the address that its name leads to.
 */
#include "base/buf.h"
#include "base/list.h"
#include "base/mem.h"
#include "worker/api_effects.h"
#include "worker/breakers.h"
#include "worker/http_allow.h"
#include "worker/runtime.h"
#include "worker/sched.h"
#include "worker/transfer.h"
#include "worker/vm.h"

#include <ctype.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ANSWER = 4 * 1024 * 1024,
    MAX_HEADERS = 64 * 1024,
    DEFAULT_TIMEOUT_MS = 30000,
};

struct http_op {
    struct owned owned;
    struct transfers *ts;
    CURL *easy;
    struct curl_slist *headers;
    char *body;
    struct buf answer, answer_headers;
    struct breaker_call call;
    json_t *allow;
    bool named;  /* the url's host is an address the handler lists */
    bool inside; /* refused: it leads to an address inside */
    bool too_big;
    CURLcode code;
    char why[CURL_ERROR_SIZE];
};

static void op_free(struct http_op *op)
{
    curl_easy_cleanup(op->easy);
    curl_slist_free_all(op->headers);
    buf_fini(&op->answer);
    buf_fini(&op->answer_headers);
    json_decref(op->allow);
    free(op->body);
    free(op);
}

static void drop_op(struct owned *owned)
{
    struct http_op *op = CONTAINER_OF(owned, struct http_op, owned);

    breakers_drop(&op->call);
    if (op->ts)
        transfer_abort(op->ts, op->easy);
    op_free(op);
}

static size_t take(struct http_op *op, struct buf *into, size_t limit,
                   const char *data, size_t len)
{
    if (into->len + len > limit) {
        op->too_big = true;
        return 0; /* curl ends the transfer */
    }
    buf_add(into, data, len);
    return len;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct http_op *op = arg;

    return take(op, &op->answer, MAX_ANSWER, data, size * n);
}

/* A status line begins anew: what came with "100 Continue" is not kept. */
static size_t on_header(char *data, size_t size, size_t n, void *arg)
{
    struct http_op *op = arg;
    size_t len = size * n;

    if (len > 5 && strncmp(data, "HTTP/", 5) == 0)
        buf_clear(&op->answer_headers);
    return take(op, &op->answer_headers, MAX_HEADERS, data, len);
}

static curl_socket_t on_open(void *arg, curlsocktype purpose,
                             struct curl_sockaddr *addr)
{
    struct http_op *op = arg;

    (void)purpose;
    if (!op->named && !http_address_allowed(&addr->addr, op->allow)) {
        op->inside = true;
        return CURL_SOCKET_BAD;
    }
    return socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol);
}

/* A connection kept from before may have been opened under the rules of
 * another handler. */
// NOLINTNEXTLINE(readability-non-const-parameter): curl says so
static int on_connection(void *arg, char *remote, char *local, int remote_port,
                         int local_port)
{
    struct http_op *op = arg;

    (void)local;
    (void)remote_port;
    (void)local_port;
    if (op->named || http_ip_allowed(remote, op->allow))
        return CURL_PREREQFUNC_OK;
    op->inside = true;
    return CURL_PREREQFUNC_ABORT;
}

/* --- the answer ----------------------------------------------------------- */

static const char *code_name(CURLcode code)
{
    switch ((int)code) {
    case CURLE_OPERATION_TIMEDOUT: return "timeout";
    case CURLE_COULDNT_RESOLVE_HOST: return "dns";
    case CURLE_COULDNT_CONNECT: return "connect";
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE: return "tls";
    default: return "http";
    }
}

static int push_failure(lua_State *L, const struct http_op *op)
{
    if (op->inside)
        return push_err(L, CLASS_PERMANENT, "refused",
                        "the name leads to an address inside, and allow.http"
                        " names no network that holds it");
    if (op->too_big)
        return push_err(L, CLASS_LIMIT, "too_large",
                        "the answer is larger than %d bytes", MAX_ANSWER);
    return push_err(L, CLASS_TRANSIENT, code_name(op->code), "%s",
                    op->why[0] ? op->why : curl_easy_strerror(op->code));
}

/* "Name: value" into the table on top; a name that comes again is joined. */
static void push_header(lua_State *L, const char *line, size_t len)
{
    const char *colon = memchr(line, ':', len);
    const char *end = line + len;
    luaL_Buffer name;

    if (!colon)
        return;
    luaL_buffinit(L, &name);
    for (const char *p = line; p < colon; p++)
        luaL_addlstring(&name, &(char){(char)tolower((unsigned char)*p)}, 1);
    luaL_pushresult(&name);
    for (colon++; colon < end && isspace((unsigned char)*colon);)
        colon++;
    while (end > colon && isspace((unsigned char)end[-1]))
        end--;
    lua_pushvalue(L, -1);
    lua_rawget(L, -3);
    if (lua_isstring(L, -1)) {
        lua_pushliteral(L, ", ");
        lua_pushlstring(L, colon, (size_t)(end - colon));
        lua_concat(L, 3);
    } else {
        lua_pop(L, 1);
        lua_pushlstring(L, colon, (size_t)(end - colon));
    }
    lua_rawset(L, -3);
}

static void push_headers(lua_State *L, const struct buf *raw)
{
    const char *p = raw->ptr, *end = raw->ptr + raw->len;

    lua_newtable(L);
    while (p && p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));

        if (!nl)
            nl = end;
        push_header(L, p, (size_t)(nl - p));
        p = nl + 1;
    }
}

static int push_answer(lua_State *L, void *arg)
{
    struct http_op *op = arg;
    long status = 0;

    if (op->code != CURLE_OK)
        return push_failure(L, op);
    curl_easy_getinfo(op->easy, CURLINFO_RESPONSE_CODE, &status);
    lua_createtable(L, 0, 4);
    lua_pushinteger(L, (lua_Integer)status);
    lua_setfield(L, -2, "status");
    push_headers(L, &op->answer_headers);
    lua_setfield(L, -2, "headers");
    lua_pushlstring(L, op->answer.len ? op->answer.ptr : "", op->answer.len);
    lua_setfield(L, -2, "body");
    return 1;
}

/* No answer, or one that says the server is in trouble. What was refused here
 * says nothing about it. */
static enum breaker_result result_of(const struct http_op *op)
{
    long status = 0;

    if (op->inside || op->too_big)
        return BREAKER_UNKNOWN;
    curl_easy_getinfo(op->easy, CURLINFO_RESPONSE_CODE, &status);
    return op->code != CURLE_OK || status >= 500 ? BREAKER_FAILED : BREAKER_OK;
}

static void on_done(void *arg, CURLcode code)
{
    struct http_op *op = arg;

    op->code = code;
    op->ts = NULL;
    breakers_leave(&op->call, result_of(op));
    task_resume(&op->owned, push_answer, op);
    op_free(op);
}

/* --- the request ---------------------------------------------------------- */

static void set_headers(lua_State *L, int index, struct http_op *op)
{
    int n = (int)lua_objlen(L, index);

    /* curl's own "Expect: 100-continue" costs a round trip or a second, and
     * its own type is that of a form, whatever the body is. */
    op->headers = curl_slist_append(op->headers, "Expect:");
    op->headers = curl_slist_append(op->headers, "Content-Type:");
    for (int i = 1; i <= n; i++) {
        lua_rawgeti(L, index, i);
        op->headers = curl_slist_append(op->headers, lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    curl_easy_setopt(op->easy, CURLOPT_HTTPHEADER, op->headers);
}

static bool has_length(const char *method)
{
    return strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0 ||
           strcmp(method, "PATCH") == 0;
}

/* No body has a length, too, where a server expects one. */
static void set_body(lua_State *L, int index, const char *method,
                     struct http_op *op)
{
    size_t len = 0;
    const char *body = lua_tolstring(L, index, &len);

    if (!body && has_length(method))
        body = "";
    if (!body)
        return;
    op->body = xmalloc(len + 1);
    memcpy(op->body, body, len);
    curl_easy_setopt(op->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
    curl_easy_setopt(op->easy, CURLOPT_POSTFIELDS, op->body);
}

static void set_safety(struct http_op *op)
{
    CURL *easy = op->easy;

    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(easy, CURLOPT_PROXY, ""); /* it would connect for us */
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, op);
    curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_connection);
    curl_easy_setopt(easy, CURLOPT_PREREQDATA, op);
}

static void set_answer(struct http_op *op)
{
    CURL *easy = op->easy;

    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, op->why);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, op);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, op);
    curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "");
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "moontide/" MT_VERSION);
}

static struct http_op *op_new(struct task *task, const json_t *allow,
                              bool named)
{
    struct http_op *op = xcalloc(1, sizeof(*op));

    op->easy = curl_easy_init();
    op->allow = json_deep_copy(allow ? allow : json_null());
    op->named = named;
    task_own(task, &op->owned, drop_op);
    return op;
}

/* False when the breaker of the url's origin is open; then nil, err is pushed. */
static bool enter(lua_State *L, struct task *task, const char *url,
                  struct breaker_call *call)
{
    char *origin = url_origin(url);
    bool ok = breakers_enter(task, origin ? origin : url, call);

    if (!ok)
        push_breaker_open(L, origin ? origin : url);
    free(origin);
    return ok;
}

/* perform(method, url, headers, body or nil, timeout_ms or nil)
 * → { status, headers, body } | nil, err */
static int l_perform(lua_State *L)
{
    const char *method = luaL_checkstring(L, 1);
    const char *url = luaL_checkstring(L, 2);
    struct task *task = task_enter(L, "http");
    const json_t *allow = json_object_get(vm_allow(task_vm(task)), "http");
    long timeout = (long)luaL_optinteger(L, 5, DEFAULT_TIMEOUT_MS);
    struct breaker_call call;
    struct http_op *op;
    struct err err;
    bool named;

    luaL_checktype(L, 3, LUA_TTABLE);
    if (!http_url_allowed(url, allow, &named, &err))
        return push_err(L, CLASS_PERMANENT, "not_allowed", "%s", err.msg);
    if (!enter(L, task, url, &call))
        return 2;
    op = op_new(task, allow, named);
    op->call = call;
    curl_easy_setopt(op->easy, CURLOPT_URL, url);
    set_body(L, 4, method, op);
    curl_easy_setopt(op->easy, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(op->easy, CURLOPT_NOBODY,
                     strcmp(method, "HEAD") == 0 ? 1L : 0L);
    curl_easy_setopt(op->easy, CURLOPT_TIMEOUT_MS, timeout > 0 ? timeout : 1L);
    set_headers(L, 3, op);
    set_safety(op);
    set_answer(op);
    op->ts = transfers_of(task_runtime(task));
    transfer_start(op->ts, op->easy, on_done, op);
    return task_suspend(L, &op->owned);
}

/* escape(text) → percent-encoded */
static int l_escape(lua_State *L)
{
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);
    char *out = curl_easy_escape(NULL, text, (int)len);

    lua_pushstring(L, out ? out : "");
    curl_free(out);
    return 1;
}

int api_http_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"perform", l_perform},
        {"escape", l_escape},
        {NULL, NULL},
    };

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
