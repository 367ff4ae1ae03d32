/*
 * `moontide probe`: one JSON request on stdin, one JSON answer on stdout. It is
 * the only process that reads Lua files; what it reads becomes a bundle, so
 * that workers need no disk. A file that hangs or crashes takes only this
 * process with it. With --serve it forks one of these for each request.
 */
#include "worker/probe.h"

#include "base/buf.h"
#include "base/digest.h"
#include "base/log.h"
#include "base/mem.h"
#include "worker/bundle.h"
#include "worker/own_code.h"
#include "worker/probe_server.h"
#include "worker/unit.h"
#include "worker/watchdog.h"
#include "worker/worker.h"

#include <ev.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define LOAD_SOFT_LIMIT_MS 1000 /* of a file's top level */

static const char *text_in(const json_t *object, const char *name)
{
    return json_string_value(json_object_get(object, name));
}

/* --- bundles ---------------------------------------------------------------------- */

/* "handlers/audit.lua" → "audit", which must be a good name. */
static bool name_of(const char *path, char *name, size_t size, struct err *err)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    size_t len = strlen(base);

    if (len > 4 && strcmp(base + len - 4, ".lua") == 0)
        len -= 4;
    if (len == 0 || len > 63 || len >= size || base[0] < 'a' || base[0] > 'z' ||
        strspn(base, "abcdefghijklmnopqrstuvwxyz0123456789_") < len)
        return err_set(err, ERR_PERMANENT,
                       "%s: a handler's name is [a-z][a-z0-9_]{0,62}", path);
    snprintf(name, size, "%.*s", (int)len, base);
    return true;
}

struct checking {
    const json_t *request;
    const char *name;
    struct builder *builder;
    json_t *decl; /* out */
};

static void push_object(lua_State *L, const json_t *value)
{
    char *text = json_is_object(value) ? json_dumps(value, 0) : NULL;
    struct err err;
    bool ok = vm_decode(L, slice_of(text ? text : "{}"), &err);

    free(text);
    if (!ok)
        luaL_error(L, "%s", err.msg);
}

/* host.require("check")(handler, from) → text of the declaration */
static int check(lua_State *L)
{
    struct vm *vm = vm_of(L);
    struct checking *c = vm->call.arg;
    const json_t *trust = json_object_get(c->request, "trust_allow");
    const json_t *source =
        json_object_get(c->builder->sources, c->builder->main);

    vm_push_ref(L, vm, REF_HOST);
    lua_getfield(L, -1, "require");
    lua_pushliteral(L, "check");
    lua_call(L, 1, 1);
    vm_push_ref(L, vm, REF_HANDLER);
    lua_newtable(L);
    lua_pushlstring(L, json_string_value(source), json_string_length(source));
    lua_setfield(L, -2, "source");
    lua_pushstring(L, c->builder->main);
    lua_setfield(L, -2, "chunk");
    lua_pushstring(L, c->name);
    lua_setfield(L, -2, "name");
    push_object(L, json_object_get(c->request, "settings"));
    lua_setfield(L, -2, "settings");
    push_object(L, json_object_get(c->request, "defaults"));
    lua_setfield(L, -2, "defaults");
    lua_pushboolean(L, !trust || json_is_true(trust));
    lua_setfield(L, -2, "trust_allow");
    lua_call(L, 2, 1);
    c->decl = json_loads(lua_tostring(L, -1), 0, NULL);
    return 0;
}

static void set_version(json_t *bundle)
{
    json_t *parts = json_pack("[OOOO]", json_object_get(bundle, "decl"),
                              json_object_get(bundle, "sources"),
                              json_object_get(bundle, "modules"),
                              json_object_get(bundle, "templates"));
    char *text = json_dumps(parts, JSON_SORT_KEYS | JSON_COMPACT);
    char hex[SHA256_HEX_SIZE];

    digest_sha256(slice_of(text), hex);
    json_object_set_new(bundle, "version", json_stringn(hex, 12));
    free(text);
    json_decref(parts);
}

static json_t *finish_bundle(const struct checking *c)
{
    const json_t *defaults = json_object_get(c->request, "defaults");
    json_t *soft = json_object_get(defaults, "soft_limit_ms");
    json_t *memory = json_object_get(defaults, "memory_limit");
    json_t *bundle =
        json_pack("{s:s, s:s, s:O, s:O, s:O, s:O, s:O}", "name", c->name,
                  "main", c->builder->main, "decl", c->decl, "files",
                  c->builder->files, "sources", c->builder->sources, "modules",
                  c->builder->modules, "templates", c->builder->template_texts);

    if (json_is_integer(soft))
        json_object_set(bundle, "soft_limit_ms", soft);
    if (json_is_integer(memory))
        json_object_set(bundle, "memory_limit", memory);
    set_version(bundle);
    return bundle;
}

/* What a file runs with while it is only read. */
static json_t *provisional(const char *name, const json_t *request,
                           int64_t soft_limit_ms)
{
    json_t *memory =
        json_object_get(json_object_get(request, "defaults"), "memory_limit");
    json_t *bundle =
        json_pack("{s:s, s:s, s:{}, s:I}", "name", name, "version", "loading",
                  "decl", "soft_limit_ms", (json_int_t)soft_limit_ms);

    if (json_is_integer(memory))
        json_object_set(bundle, "memory_limit", memory);
    return bundle;
}

/* Messages name the file that they are about. */
static void name_file(const struct builder *b, struct err *err)
{
    if (!strstr(err->msg, ".lua:") && strncmp(err->msg, "handlers.", 9) != 0)
        err_wrap(err, "%s", b->main);
}

json_t *probe_bundle(struct runtime *rt, const json_t *request, struct err *err)
{
    const char *path = text_in(request, "path");
    json_t *bundle = NULL, *loading;
    struct builder builder;
    struct checking c = {.request = request, .builder = &builder};
    struct vm *vm;
    char name[64];

    if (!path || !name_of(path, name, sizeof(name), err)) {
        if (!path)
            err_set(err, ERR_PERMANENT, "the request has no path");
        return NULL;
    }
    c.name = name;
    builder_init(&builder, path, text_in(request, "root"),
                 text_in(request, "templates"));
    loading = provisional(name, request, LOAD_SOFT_LIMIT_MS);
    vm = vm_new_building(rt, loading, &builder, err);
    if (vm && vm_protect(vm, check, &c, err))
        bundle = finish_bundle(&c);
    else
        name_file(&builder, err);
    if (vm) {
        vm_retire(vm);
        vms_reap(rt);
    }
    json_decref(c.decl);
    json_decref(loading);
    builder_fini(&builder);
    return bundle;
}

/* --- configuration ------------------------------------------------------------------ */

static int encode_config(lua_State *L)
{
    struct vm *vm = vm_of(L);
    json_t **config = vm->call.arg;
    struct buf text = {0};
    struct err err;
    bool ok;

    vm_push_ref(L, vm, REF_HANDLER);
    if (!lua_istable(L, -1))
        return luaL_error(L, "the configuration file returns no table");
    ok = vm_encode(L, lua_gettop(L), &text, &err);
    if (ok)
        *config = json_loadb(text.ptr, text.len, 0, NULL);
    buf_fini(&text);
    return ok ? 0 : luaL_error(L, "%s", err.msg);
}

static json_t *read_config(struct runtime *rt, const json_t *request,
                           struct err *err)
{
    const char *path = text_in(request, "path");
    json_t *config = NULL, *answer = NULL, *loading;
    struct builder builder;
    struct vm *vm;

    if (!path) {
        err_set(err, ERR_PERMANENT, "the request has no path");
        return NULL;
    }
    builder_init(&builder, path, NULL, NULL);
    snprintf(builder.main, sizeof(builder.main), "%s", path);
    builder.is_config = true;
    loading = provisional("config", request, LOAD_SOFT_LIMIT_MS);
    vm = vm_new_building(rt, loading, &builder, err);
    if (vm && vm_protect(vm, encode_config, &config, err) && config)
        answer = json_pack("{s:O}", "config", config);
    else
        name_file(&builder, err);
    json_decref(config);
    json_decref(loading);
    if (vm) {
        vm_retire(vm);
        vms_reap(rt);
    }
    builder_fini(&builder);
    return answer;
}

/* --- the process ------------------------------------------------------------------------ */

static json_t *answer_to(struct runtime *rt, const json_t *request,
                         struct err *err)
{
    const char *op = text_in(request, "op");
    json_t *bundle;

    if (!op) {
        err_set(err, ERR_PERMANENT, "the request has no op");
        return NULL;
    }
    if (strcmp(op, "config") == 0)
        return read_config(rt, request, err);
    if (strcmp(op, "handler") == 0) {
        bundle = probe_bundle(rt, request, err);
        return bundle ? json_pack("{s:o}", "bundle", bundle) : NULL;
    }
    if (strcmp(op, "dry_run") == 0) {
        rt->mode = MODE_RECORD;
        return probe_dry_run(rt, request, err);
    }
    if (strcmp(op, "spec") == 0) {
        rt->mode = MODE_TEST;
        return probe_spec(rt, request, err);
    }
    err_set(err, ERR_PERMANENT, "unknown op %s", op);
    return NULL;
}

static json_t *read_request(struct err *err)
{
    json_error_t error;
    json_t *request = json_loadf(stdin, 0, &error);

    if (!request)
        err_set(err, ERR_PERMANENT, "the request is no JSON: %s", error.text);
    return request;
}

static void write_answer(json_t *answer, const struct err *err)
{
    char *text;

    if (answer)
        json_object_set_new(answer, "ok", json_true());
    else
        answer = json_pack("{s:b, s:s}", "ok", 0, "error", err->msg);
    if (!answer) /* the message was not UTF-8 */
        answer = json_pack("{s:b, s:s}", "ok", 0, "error",
                           "an error whose "
                           "message is not UTF-8");
    text = json_dumps(answer, JSON_COMPACT);
    fputs(text, stdout);
    fputc('\n', stdout);
    fflush(stdout);
    free(text);
    json_decref(answer);
}

struct serving {
    json_t *request;
    struct runtime rt;
};

/* Tidying up, of libcrypto above all, would take as long as the request. Only
 * sanitizers want it: one looks for leaks, one waits for our other thread. */
static void leave(void)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    _exit(0);
#endif
}

static void *lua_thread(void *arg)
{
    struct serving *s = arg;
    struct err err = {0};

    write_answer(answer_to(&s->rt, s->request, &err), &err);
    leave();
    watchdog_stop_only(s->rt.watchdog);
    return NULL;
}

/* As in a worker: the main thread is the watchdog. */
static bool run(struct serving *s)
{
    struct watchdog *wd = watchdog_new(&s->rt, 0);
    pthread_attr_t attr;
    pthread_t thread;
    bool ok;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, LUA_STACK_BYTES);
    ok = pthread_create(&thread, &attr, lua_thread, s) == 0;
    pthread_attr_destroy(&attr);
    if (ok) {
        watchdog_run(wd);
        pthread_join(thread, NULL);
    }
    runtime_fini(&s->rt);
    watchdog_free(wd);
    return ok;
}

/* One request, from stdin to stdout. */
static int serve_one(void)
{
    struct err err = {0};
    struct serving s = {.request = read_request(&err)};
    json_t *settings = json_object_get(s.request, "settings");
    struct ev_loop *loop;
    bool ok;

    if (!s.request) {
        write_answer(NULL, &err);
        return 1;
    }
    loop = ev_loop_new(EVFLAG_AUTO);
    settings = settings ? json_incref(settings) : json_object();
    runtime_init(&s.rt, loop, settings);
    json_decref(settings);
    ok = run(&s);
    ev_loop_destroy(loop);
    json_decref(s.request);
    return ok ? 0 : 1;
}

/* What each child would do anew, and none of it by chance: see the promise in
 * probe_server.h. */
static void warm_up(void)
{
    char hex[SHA256_HEX_SIZE];
    struct doc_parser *parser = doc_parser_new();
    struct doc doc = {0};
    struct err err;

    digest_sha256(slice_of(""), hex);
    (void)!doc_parse(parser, &doc, slice_of("{}"), false, &err);
    doc_fini(&doc);
    doc_parser_free(parser);
    own_code_compile();
}

static bool is_child_of_server(void)
{
    warm_up();
    return probe_serve();
}

int probe_main(int argc, char **argv)
{
    struct rlimit none = {0, 0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setrlimit(RLIMIT_CORE, &none);
    mallopt(M_ARENA_MAX, 1); /* all work is one thread's */
    log_init(LOG_WARN, LOG_HUMAN, "probe");
    if (argc > 1 && strcmp(argv[1], "--serve") == 0 && !is_child_of_server())
        return 0;
    return serve_one();
}
