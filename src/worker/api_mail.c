/*
 * Mail for handlers: one primitive that hands a message to the SMTP server of
 * mail.url. libcurl builds the MIME parts; the Lua half the headers.
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

#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MS = 30000 };

struct mail_op {
    struct owned owned;
    struct transfers *ts;
    CURL *easy;
    curl_mime *mime;
    struct curl_slist *headers, *recipients;
    struct breaker_call call;
    CURLcode code;
    char why[CURL_ERROR_SIZE];
};

static void op_free(struct mail_op *op)
{
    curl_easy_cleanup(op->easy);
    curl_mime_free(op->mime);
    curl_slist_free_all(op->headers);
    curl_slist_free_all(op->recipients);
    free(op);
}

static void drop_op(struct owned *owned)
{
    struct mail_op *op = CONTAINER_OF(owned, struct mail_op, owned);

    breakers_drop(&op->call);
    if (op->ts)
        transfer_abort(op->ts, op->easy);
    op_free(op);
}

/* The server's own word decides: 5xx will not change, all else may. */
static int push_answer(lua_State *L, void *arg)
{
    struct mail_op *op = arg;
    long reply = 0;
    char code[16];

    if (op->code == CURLE_OK) {
        lua_pushboolean(L, 1);
        return 1;
    }
    curl_easy_getinfo(op->easy, CURLINFO_RESPONSE_CODE, &reply);
    snprintf(code, sizeof(code), "%ld", reply);
    return push_err(L, reply >= 500 ? CLASS_PERMANENT : CLASS_TRANSIENT,
                    reply > 0 ? code : "smtp", "%s",
                    op->why[0] ? op->why : curl_easy_strerror(op->code));
}

#define SMTP_CLOSING 421 /* "service not available" */

/* A server that answers is well, but for the one answer that says otherwise:
 * most refusals are about the message or whom it is for. */
static enum breaker_result result_of(const struct mail_op *op)
{
    long reply = 0;

    curl_easy_getinfo(op->easy, CURLINFO_RESPONSE_CODE, &reply);
    if (op->code == CURLE_OK || (reply >= 400 && reply != SMTP_CLOSING))
        return BREAKER_OK;
    return BREAKER_FAILED;
}

static void on_done(void *arg, CURLcode code)
{
    struct mail_op *op = arg;

    op->code = code;
    op->ts = NULL;
    breakers_leave(&op->call, result_of(op));
    task_resume(&op->owned, push_answer, op);
    op_free(op);
}

static struct curl_slist *read_list(lua_State *L, int index)
{
    struct curl_slist *list = NULL;
    int n = (int)lua_objlen(L, index);

    for (int i = 1; i <= n; i++) {
        lua_rawgeti(L, index, i);
        list = curl_slist_append(list, lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    return list;
}

static void add_text(curl_mime *mime, const char *type, const char *text,
                     size_t len)
{
    curl_mimepart *part = curl_mime_addpart(mime);

    curl_mime_data(part, text, len);
    curl_mime_type(part, type);
    curl_mime_encoder(part, "quoted-printable");
}

/* Both forms of the text are alternatives of one part; readers show the last
 * they can. */
static void add_body(lua_State *L, struct mail_op *op, int text, int html)
{
    curl_mime *both = curl_mime_init(op->easy);
    curl_mimepart *part = curl_mime_addpart(op->mime);
    size_t len;
    const char *body;

    if ((body = lua_tolstring(L, text, &len)))
        add_text(both, "text/plain; charset=utf-8", body, len);
    if ((body = lua_tolstring(L, html, &len)))
        add_text(both, "text/html; charset=utf-8", body, len);
    curl_mime_subparts(part, both);
    curl_mime_type(part, "multipart/alternative");
}

/* { name, type, data } of each. */
static void add_attachments(lua_State *L, struct mail_op *op, int list)
{
    int n = (int)lua_objlen(L, list);

    for (int i = 1; i <= n; i++) {
        curl_mimepart *part = curl_mime_addpart(op->mime);
        size_t len;
        const char *data;

        lua_rawgeti(L, list, i);
        lua_rawgeti(L, -1, 1);
        lua_rawgeti(L, -2, 2);
        lua_rawgeti(L, -3, 3);
        data = lua_tolstring(L, -1, &len);
        curl_mime_data(part, data, len);
        curl_mime_type(part, lua_tostring(L, -2));
        curl_mime_filename(part, lua_tostring(L, -3));
        curl_mime_encoder(part, "base64");
        lua_pop(L, 4);
    }
}

static void set_server(const struct runtime *rt, CURL *easy, const char *url,
                       long timeout)
{
    const char *ca = runtime_text(rt, "mail.ca_file", "");
    bool has_user = strchr(url, '@') != NULL;

    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "smtp,smtps");
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    /* A password does not travel in the clear. */
    curl_easy_setopt(easy, CURLOPT_USE_SSL,
                     has_user ? (long)CURLUSESSL_ALL : (long)CURLUSESSL_TRY);
    if (*ca)
        curl_easy_setopt(easy, CURLOPT_CAINFO, ca);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, timeout > 0 ? timeout : 1L);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
}

/* False when the mail server's breaker is open; then nil, err is pushed. */
static bool enter(lua_State *L, struct task *task, const char *url,
                  struct breaker_call *call)
{
    char *server = url_origin(url);
    bool ok = breakers_enter(task, server ? server : "mail", call);

    if (!ok)
        push_breaker_open(L, server ? server : "mail");
    free(server);
    return ok;
}

/* send(from, recipients, headers, text, html, attachments, timeout_ms)
 * → true | nil, err. Lists of text, text or nil, lists of three. */
static int l_send(lua_State *L)
{
    const char *from = luaL_checkstring(L, 1);
    struct task *task = task_enter(L, "mail.send");
    struct runtime *rt = task_runtime(task);
    const char *url = runtime_text(rt, "mail.url", "");
    struct breaker_call call;
    struct mail_op *op;

    luaL_checktype(L, 2, LUA_TTABLE);
    luaL_checktype(L, 3, LUA_TTABLE);
    luaL_checktype(L, 6, LUA_TTABLE);
    if (!*url)
        return push_err(L, CLASS_PERMANENT, "no_mail_server",
                        "mail.url is not set");
    if (!enter(L, task, url, &call))
        return 2;
    op = xcalloc(1, sizeof(*op));
    op->easy = curl_easy_init();
    op->call = call;
    task_own(task, &op->owned, drop_op);
    op->mime = curl_mime_init(op->easy);
    op->recipients = read_list(L, 2);
    op->headers = read_list(L, 3);
    add_body(L, op, 4, 5);
    add_attachments(L, op, 6);
    set_server(rt, op->easy, url, (long)luaL_optinteger(L, 7, TIMEOUT_MS));
    curl_easy_setopt(op->easy, CURLOPT_MAIL_FROM, from);
    curl_easy_setopt(op->easy, CURLOPT_MAIL_RCPT, op->recipients);
    curl_easy_setopt(op->easy, CURLOPT_HTTPHEADER, op->headers);
    curl_easy_setopt(op->easy, CURLOPT_MIMEPOST, op->mime);
    curl_easy_setopt(op->easy, CURLOPT_ERRORBUFFER, op->why);
    op->ts = transfers_of(rt);
    transfer_start(op->ts, op->easy, on_done, op);
    return task_suspend(L, &op->owned);
}

int api_mail_open(lua_State *L)
{
    static const luaL_Reg functions[] = {{"send", l_send}, {NULL, NULL}};

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
