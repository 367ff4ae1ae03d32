/*
 * Running a handler without a host: dry runs and specs. Events are native
 * envelopes, verdicts and recorded effects become JSON.
 */
#include "worker/probe.h"

#include "base/buf.h"
#include "base/mem.h"
#include "worker/bundle.h"
#include "worker/letter.h"
#include "worker/unit.h"
#include "worker/watchdog.h"

#include <ev.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* What is being run, in rt->owner. */
struct trial {
    struct unit *unit;
    bool is_loaded, has_failed;
    struct err trouble;
    json_t *runs; /* by slot */
    int done;
};

static json_t *text_or_null(struct slice s)
{
    json_t *value = s.ptr && s.len ? json_stringn(s.ptr, s.len) : NULL;

    return value ? value : json_null();
}

static json_t *take_effects(struct task *task)
{
    struct buf text = {0};
    json_t *effects;

    if (!task || !task->effects.len)
        return json_array();
    buf_printf(&text, "[%.*s]", (int)task->effects.len, task->effects.ptr);
    effects = json_loadb(text.ptr, text.len, 0, NULL);
    buf_fini(&text);
    buf_clear(&task->effects);
    return effects ? effects : json_array();
}

static void on_verdict(struct runtime *rt, const struct verdict_msg *v,
                       struct task *task)
{
    struct trial *trial = rt->owner;
    json_t *run = json_array_get(trial->runs, v->slot);

    json_object_set_new(run, "verdict", json_string(verdict_name(v->verdict)));
    json_object_set_new(run, "reason", text_or_null(v->reason));
    json_object_set_new(run, "code", text_or_null(v->code));
    json_object_set_new(run, "traceback", text_or_null(v->traceback));
    if (v->verdict != VERDICT_ACK)
        json_object_set_new(run, "class", json_string(class_name(v->class)));
    if (v->after_ms >= 0)
        json_object_set_new(run, "after_ms", json_integer(v->after_ms));
    json_object_set_new(run, "effects", take_effects(task));
    trial->done++;
}

static void on_loaded(struct unit *unit, const struct err *err)
{
    struct trial *trial = unit_runtime(unit)->owner;

    trial->is_loaded = !err;
    trial->has_failed = err != NULL;
    if (err)
        trial->trouble = *err;
}

static bool trial_start(struct trial *trial, struct runtime *rt, json_t *bundle,
                        struct err *err)
{
    *trial = (struct trial){.runs = json_array()};
    rt->owner = trial;
    rt->verdict = on_verdict;
    trial->unit = unit_new(rt, 1, bundle, on_loaded);
    while (!trial->is_loaded && !trial->has_failed)
        ev_run(rt->loop, EVRUN_ONCE);
    if (trial->has_failed)
        *err = trial->trouble;
    return trial->is_loaded;
}

static void trial_end(struct trial *trial, struct runtime *rt)
{
    if (trial->unit)
        unit_free(trial->unit);
    vms_reap(rt);
    json_decref(trial->runs);
}

/* Each event in a lane of its own: one that fails holds back no other. */
static void give(struct trial *trial, const struct event_msg *m)
{
    struct delivery_msg d = {.slot = (uint32_t)json_array_size(trial->runs),
                             .vm = 1,
                             .attempt = 1,
                             .flags = DELIVER_FRESH,
                             .lane = json_array_size(trial->runs) + 1};
    struct runtime *rt = unit_runtime(trial->unit);
    struct record *record;

    json_array_append_new(trial->runs, json_object());
    record = record_take(rt);
    record->m = *m;
    unit_offer(trial->unit, record, &d);
    record_put(rt, record);
}

/* A native envelope. */
static void offer(struct trial *trial, const char *text)
{
    struct event_msg m = {.source = SOURCE_OUTBOX,
                          .form = BODY_NATIVE,
                          .topic = SLICE_LIT("domain_events"),
                          .partition = SLICE_LIT("0")};
    size_t len = strlen(text);
    char *padded = xcalloc(1, len + MSG_PADDING);

    memcpy(padded, text, len);
    m.body = (struct slice){padded, len};
    give(trial, &m);
    free(padded);
}

static void wait_for_all(struct trial *trial, struct runtime *rt)
{
    while (trial->done < (int)json_array_size(trial->runs)) {
        unit_flush(trial->unit);
        vms_reap(rt);
        if (trial->done < (int)json_array_size(trial->runs))
            ev_run(rt->loop, EVRUN_ONCE);
    }
}

static void name_run(struct trial *trial, const char *name, json_t *value)
{
    json_t *run = json_array_get(trial->runs, json_array_size(trial->runs) - 1);

    json_object_set(run, name, value ? value : json_null());
}

static void run_events(struct trial *trial, struct runtime *rt,
                       const json_t *events)
{
    json_t *event;
    size_t i;

    json_array_foreach(events, i, event) {
        char *text = json_dumps(event, JSON_COMPACT | JSON_ENCODE_ANY);

        offer(trial, text);
        name_run(trial, "event", json_object_get(event, "id"));
        free(text);
        wait_for_all(trial, rt);
    }
}

static bool run_letters(struct trial *trial, struct runtime *rt,
                        const json_t *letters, struct err *err)
{
    json_t *one;
    size_t i;

    json_array_foreach(letters, i, one) {
        struct letter letter;

        if (!letter_read(&letter, one, err))
            return err_wrap(err, "letter %zu", i + 1);
        give(trial, &letter.m);
        name_run(trial, "event", json_object_get(one, "eventId"));
        name_run(trial, "letter", json_object_get(one, "id"));
        wait_for_all(trial, rt);
        letter_fini(&letter);
    }
    return true;
}

json_t *probe_dry_run(struct runtime *rt, const json_t *request,
                      struct err *err)
{
    json_t *bundle = json_object_get(request, "bundle"), *answer = NULL;
    const json_t *events = json_object_get(request, "events");
    const json_t *letters = json_object_get(request, "letters");
    struct trial trial;

    if (!json_is_object(bundle) ||
        !(json_is_array(events) || json_is_array(letters))) {
        err_set(err, ERR_PERMANENT,
                "dry_run needs a bundle, and events or letters");
        return NULL;
    }
    if (trial_start(&trial, rt, bundle, err)) {
        run_events(&trial, rt, events);
        if (run_letters(&trial, rt, letters, err))
            answer = json_pack("{s:O}", "runs", trial.runs);
    }
    trial_end(&trial, rt);
    return answer;
}

/* --- specs ---------------------------------------------------------------------------- */

#define MAX_TRIALS    256
#define SPEC_LIMIT_MS 30000

/* The handlers that a spec made, and what it was called with. */
struct spec {
    const json_t *request;
    struct trial trials[MAX_TRIALS];
    int n_trials;
};

static struct spec *spec_of(lua_State *L)
{
    return vm_of(L)->builder->spec;
}

static struct trial *check_trial(lua_State *L, int index)
{
    struct spec *spec = spec_of(L);
    int id = (int)luaL_checkinteger(L, index);

    luaL_argcheck(L, id >= 1 && id <= spec->n_trials, index, "no such handler");
    return &spec->trials[id - 1];
}

/* The spec's VM pauses while the handler's runs. */
static void pause_run(lua_State *L)
{
    run_end(vm_of(L)->rt, vm_of(L));
}

static void go_on(lua_State *L)
{
    run_begin(vm_of(L)->rt, vm_of(L));
}

/* In the handler's VM: answers instead of effects, and the time. */
static int prepare_vm(lua_State *L)
{
    const double *now = vm_of(L)->call.arg;

    vm_push_ref(L, vm_of(L), REF_HOST);
    lua_getfield(L, -1, "require");
    lua_pushliteral(L, "answers");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "get");
    lua_setfield(L, -3, "answer_of");
    if (*now >= 0) {
        lua_pushnumber(L, *now);
        lua_setfield(L, -3, "fixed_now");
    }
    return 0;
}

static json_t *handler_request(const struct spec *spec, const char *name,
                               const char *config)
{
    const char *path =
        json_string_value(json_object_get(spec->request, "path"));
    const char *slash = strrchr(path, '/');
    json_t *request = json_copy((json_t *)(uintptr_t)spec->request);
    json_t *settings = json_object();
    char *sibling = xasprintf("%.*s%s.lua", slash ? (int)(slash - path) + 1 : 0,
                              path, name);

    json_object_set_new(request, "path", json_string(sibling));
    json_object_set_new(settings, "config", json_loads(config, 0, NULL));
    json_object_set_new(request, "settings", settings);
    free(sibling);
    return request;
}

static bool start_trial(struct spec *spec, struct runtime *rt, const char *name,
                        const char *config, double now, struct err *err)
{
    json_t *request = handler_request(spec, name, config);
    json_t *bundle = probe_bundle(rt, request, err);
    struct trial *trial = &spec->trials[spec->n_trials];
    bool ok = false;

    json_decref(request);
    if (!bundle)
        return false;
    spec->n_trials++;
    ok = trial_start(trial, rt, bundle, err) &&
         vm_protect(unit_vm(trial->unit), prepare_vm, &now, err);
    json_decref(bundle);
    return ok;
}

/* (name, config as JSON, now) → id */
static int l_load(lua_State *L)
{
    struct spec *spec = spec_of(L);
    const char *name = luaL_checkstring(L, 1);
    const char *config = luaL_checkstring(L, 2);
    double now = luaL_optnumber(L, 3, -1);
    struct err err;
    bool ok;

    if (spec->n_trials == MAX_TRIALS)
        return luaL_error(L, "more than %d handlers in one spec", MAX_TRIALS);
    pause_run(L);
    ok = start_trial(spec, vm_of(L)->rt, name, config, now, &err);
    go_on(L);
    if (!ok)
        return luaL_error(L, "%s", err.msg);
    lua_pushinteger(L, spec->n_trials);
    return 1;
}

struct answering {
    const char *name;
    struct slice text;
};

static int set_answer(lua_State *L)
{
    const struct answering *a = vm_of(L)->call.arg;

    vm_push_ref(L, vm_of(L), REF_HOST);
    lua_getfield(L, -1, "require");
    lua_pushliteral(L, "answers");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "set");
    lua_pushstring(L, a->name);
    lua_pushlstring(L, a->text.ptr, a->text.len);
    lua_call(L, 2, 0);
    return 0;
}

/* (id, effect, answer as JSON) */
static int l_answer(lua_State *L)
{
    struct trial *trial = check_trial(L, 1);
    struct answering a = {.name = luaL_checkstring(L, 2)};
    struct err err;
    bool ok;

    a.text.ptr = luaL_checklstring(L, 3, &a.text.len);
    pause_run(L);
    ok = vm_protect(unit_vm(trial->unit), set_answer, &a, &err);
    go_on(L);
    return ok ? 0 : luaL_error(L, "%s", err.msg);
}

static char *result_text(struct trial *trial)
{
    json_t *effects = json_array(), *run, *result;
    size_t i;
    char *text;

    json_array_foreach(trial->runs, i, run)
        json_array_extend(effects, json_object_get(run, "effects"));
    result =
        json_pack("{s:O, s:o}", "verdicts", trial->runs, "effects", effects);
    text = json_dumps(result, JSON_COMPACT);
    json_decref(result);
    return text;
}

/* (id, { envelope… }) → { verdicts, effects } as JSON */
static int l_run(lua_State *L)
{
    struct trial *trial = check_trial(L, 1);
    struct runtime *rt = vm_of(L)->rt;
    struct buf text = {0};
    char *result;

    luaL_checktype(L, 2, LUA_TTABLE);
    for (size_t i = 1; i <= lua_objlen(L, 2); i++) {
        lua_rawgeti(L, 2, (int)i);
        luaL_checkstring(L, -1);
        lua_pop(L, 1);
    }
    rt->owner = trial;
    json_array_clear(trial->runs);
    trial->done = 0;
    pause_run(L);
    for (size_t i = 1; i <= lua_objlen(L, 2); i++) {
        lua_rawgeti(L, 2, (int)i);
        offer(trial, lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    wait_for_all(trial, rt);
    go_on(L);
    result = result_text(trial);
    buf_add_text(&text, result);
    free(result);
    return push_buf(L, &text);
}

int testing_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"load", l_load}, {"answer", l_answer}, {"run", l_run}, {NULL, NULL}};

    luaL_newlib(L, functions);
    return 1;
}

static int take_results(lua_State *L)
{
    json_t **results = vm_of(L)->call.arg;

    vm_push_ref(L, vm_of(L), REF_HOST);
    lua_getfield(L, -1, "require");
    lua_pushliteral(L, "testing");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "results");
    lua_call(L, 0, 1);
    *results = json_loads(lua_tostring(L, -1), 0, NULL);
    return 0;
}

static json_t *run_spec(struct runtime *rt, struct builder *builder,
                        struct err *err)
{
    json_t *bundle =
        json_pack("{s:s, s:s, s:{}, s:i}", "name", "spec", "version", "spec",
                  "decl", "soft_limit_ms", SPEC_LIMIT_MS);
    struct vm *vm = vm_new_building(rt, bundle, builder, err);
    json_t *results = NULL;

    json_decref(bundle);
    if (vm && vm_protect(vm, take_results, &results, err) && !results)
        err_set(err, ERR_PERMANENT, "the spec's results are no JSON");
    if (vm) {
        vm_retire(vm);
        vms_reap(rt);
    }
    return results;
}

static json_t *with_failures(json_t *results)
{
    const json_t *one;
    json_int_t failed = 0;
    size_t i;

    json_array_foreach(results, i, one)
        failed += !json_is_true(json_object_get(one, "ok"));
    return json_pack("{s:o, s:I}", "results", results, "failed", failed);
}

json_t *probe_spec(struct runtime *rt, const json_t *request, struct err *err)
{
    const char *path = json_string_value(json_object_get(request, "path"));
    size_t len = path ? strlen(path) : 0;
    struct spec *spec = xcalloc(1, sizeof(*spec));
    struct builder builder;
    char file[PATH_MAX];
    json_t *results = NULL;

    if (len < 4 || len > sizeof(file) - 16) {
        err_set(err, ERR_PERMANENT, "the request has no path");
        free(spec);
        return NULL;
    }
    snprintf(file, sizeof(file), "%.*s_spec.lua", (int)len - 4, path);
    spec->request = request;
    builder_init(&builder, file,
                 json_string_value(json_object_get(request, "root")), NULL);
    builder.is_spec = true;
    builder.spec = spec;
    results = run_spec(rt, &builder, err);
    for (int i = 0; i < spec->n_trials; i++)
        trial_end(&spec->trials[i], rt);
    builder_fini(&builder);
    free(spec);
    return results ? with_failures(results) : NULL;
}
