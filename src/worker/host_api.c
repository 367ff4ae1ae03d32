/*
 * The table `host` that our Lua modules get: primitives that handlers never
 * see. Also ctx, whose fields are partly the same for all deliveries (a table
 * made by runner.lua) and partly of the delivery that runs.
 */
#include "worker/api_effects.h"
#include "worker/bundle.h"
#include "worker/probe.h"
#include "worker/task.h"
#include "worker/unit.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/digest.h"

#include <inttypes.h>
#include <stdio.h>

/* --- phases and modes ---------------------------------------------------------- */

static const char *const modes[] = {"perform", "record", "test"};

static int l_mode(lua_State *L)
{
    lua_pushstring(L, modes[vm_of(L)->rt->mode]);
    return 1;
}

static int l_phase(lua_State *L)
{
    lua_pushstring(L, vm_phase_name(vm_of(L)->phase));
    return 1;
}

static int l_is_killed(lua_State *L)
{
    lua_pushboolean(L, vm_of(L)->killed);
    return 1;
}

static int l_check(lua_State *L)
{
    task_enter(L, luaL_checkstring(L, 1));
    return 0;
}

/* --- sources --------------------------------------------------------------------- */

static int l_main_source(lua_State *L)
{
    return bundle_push_main(L, vm_of(L));
}

static int l_module_source(lua_State *L)
{
    return bundle_push_module(L, vm_of(L), luaL_checkstring(L, 1));
}

static int l_template_source(lua_State *L)
{
    struct vm *vm = vm_of(L);
    const char *path = luaL_checkstring(L, 1);

    if (bundle_push_template(L, vm, path))
        return 1;
    if (vm->phase != PHASE_LOADING)
        return luaL_error(L,
                          "template.load of '%s' cannot be called in %s "
                          "(only in: loading)",
                          path, vm_phase_name(vm->phase));
    return luaL_error(L, "template '%s' not found", path);
}

/* (text, chunk, env) → function | nil, message */
static int l_load_text(lua_State *L)
{
    struct slice text;
    const char *chunk = luaL_checkstring(L, 2);

    text.ptr = luaL_checklstring(L, 1, &text.len);
    lua_pushfstring(L, "@%s", chunk);
    if (vm_load_text(L, text, lua_tostring(L, -1), 3))
        return 1;
    lua_pushnil(L);
    lua_insert(L, -2);
    return 2;
}

/* --- the delivery ---------------------------------------------------------------- */

static int l_note_verdict(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    if (task)
        task->verdicts++;
    return 0;
}

static int l_made_verdict(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    lua_pushboolean(L, task && task->verdicts > 0);
    return 1;
}

static int l_forget_verdicts(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    if (task)
        task->verdicts = 0;
    return 0;
}

/* (i | nil): of the batch, which one runs; ctx and log are about it. */
static int l_current(lua_State *L)
{
    struct task *task = vm_of(L)->task;
    int i = lua_isnil(L, 1) ? 0 : (int)luaL_checkinteger(L, 1);

    luaL_argcheck(L, i >= 0 && i <= task->batch_len, 1, "not in this batch");
    task->event = i ? task->batch[i - 1] : NULL;
    task->calls = 0;
    task->verdicts = 0;
    return 0;
}

static int l_note_duplicate(lua_State *L)
{
    vm_of(L)->task->is_duplicate = true;
    return 0;
}

static int l_set_tx(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    luaL_unref(L, LUA_REGISTRYINDEX, task->tx_ref);
    task->tx_ref = LUA_NOREF;
    lua_settop(L, 1);
    if (!lua_isnil(L, 1))
        task->tx_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static int l_get_tx(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    if (!task || task->tx_ref == LUA_NOREF)
        lua_pushnil(L);
    else
        lua_rawgeti(L, LUA_REGISTRYINDEX, task->tx_ref);
    return 1;
}

/* (table | nil): what the delivery gives out when it has ended well. */
static int l_set_outputs(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    luaL_unref(L, LUA_REGISTRYINDEX, task->outputs_ref);
    task->outputs_ref = LUA_NOREF;
    lua_settop(L, 1);
    if (!lua_isnil(L, 1))
        task->outputs_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static int l_get_outputs(lua_State *L)
{
    struct task *task = vm_of(L)->task;

    if (!task || task->outputs_ref == LUA_NOREF)
        lua_pushnil(L);
    else
        lua_rawgeti(L, LUA_REGISTRYINDEX, task->outputs_ref);
    return 1;
}

static struct event *current_event(const struct vm *vm)
{
    struct task *task = vm->task;

    if (!task)
        return NULL;
    if (!task->event && task->batch_len == 1)
        return task->batch[0];
    return task->event;
}

static int l_event(lua_State *L)
{
    struct event *ev = current_event(vm_of(L));

    if (ev)
        event_push(L, ev);
    else
        lua_pushnil(L);
    return 1;
}

/* (name | nil, event | nil) → "event id:handler:name" */
static int l_idempotency_key(lua_State *L)
{
    struct vm *vm = vm_of(L);
    struct event *ev = current_event(vm);
    struct slice id;
    char number[16];

    lua_settop(L, 2);
    if (!lua_isnil(L, 2)) {
        lua_getfield(L, 2, "id");
        id.ptr = luaL_checklstring(L, -1, &id.len);
    } else if (ev) {
        id = event_fact(ev, vm->rt, FACT_ID);
    } else {
        return luaL_error(L, "idempotency_key needs an event: in a batch give "
                             "it as the second argument");
    }
    snprintf(number, sizeof(number), "%d", vm->task ? vm->task->calls : 0);
    if (lua_isnil(L, 1) && vm->task)
        vm->task->calls++;
    lua_pushlstring(L, id.ptr ? id.ptr : "", id.len);
    lua_pushfstring(L, "%s:%s:%s", lua_tostring(L, -1), vm->name,
                    lua_isnil(L, 1) ? number : luaL_checkstring(L, 1));
    return 1;
}

/* --- effects ------------------------------------------------------------------------- */

static enum effect_class check_class(lua_State *L, int index)
{
    const char *name = luaL_checkstring(L, index);

    for (int i = 0; i < EFFECT_COUNT; i++)
        if (strcmp(name, effect_class_name((enum effect_class)i)) == 0)
            return (enum effect_class)i;
    luaL_error(L, "no such class of effects: %s", name);
    return EFFECT_COUNT;
}

static int l_effect(lua_State *L)
{
    enum effect_class class = check_class(L, 1);
    const char *name = luaL_checkstring(L, 2);

    lua_settop(L, 3);
    if (!journal_effect(L, class, name, lua_isnil(L, 3) ? 0 : 3)) {
        lua_pushboolean(L, 0);
        return 1;
    }
    lua_pushboolean(L, 1);
    lua_insert(L, -3);
    return 3;
}

static int l_effect_done(lua_State *L)
{
    journal_done(L, check_class(L, 1), lua_toboolean(L, 2));
    return 0;
}

/* --- small things ------------------------------------------------------------------- */

/* As written in an error: at the caller of the module's function. */
static int l_duration(lua_State *L)
{
    int64_t ms = check_duration_ms(L, 1, luaL_optstring(L, 2, "duration"), -1);

    if (ms < 0)
        lua_pushnil(L);
    else
        lua_pushnumber(L, (double)ms);
    return 1;
}

/* Seconds; a spec's h.now in test mode. */
static int l_now(lua_State *L)
{
    vm_push_ref(L, vm_of(L), REF_HOST);
    lua_getfield(L, -1, "fixed_now");
    if (lua_isnil(L, -1))
        lua_pushnumber(L, (double)clock_wall_us() / 1e6);
    return 1;
}

static int l_seed(lua_State *L)
{
    lua_pushnumber(L, (double)(random_u64() >> 12));
    return 1;
}

static int l_is_array(lua_State *L)
{
    lua_pushboolean(L, vm_is_array(L, 1));
    return 1;
}

static void push_json(lua_State *L, const json_t *value)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    struct err err;
    bool ok;

    if (!text) {
        lua_pushnil(L);
        return;
    }
    ok = vm_decode(L, slice_of(text), &err);
    free(text);
    if (!ok)
        luaL_error(L, "%s", err.msg);
}

/* A secret's file, for config's *_file. Only while a bundle is made. */
static int l_read_text(lua_State *L)
{
    struct err err;
    char *text;
    size_t len;

    if (!vm_of(L)->builder)
        return luaL_error(L, "not here");
    if (!read_whole_file(luaL_checkstring(L, 1), &text, &len, &err)) {
        lua_pushnil(L);
        lua_pushstring(L, err.msg);
        return 2;
    }
    while (len && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        len--;
    lua_pushlstring(L, text, len);
    free(text);
    return 1;
}

static int l_setting(lua_State *L)
{
    push_json(L, runtime_setting(vm_of(L)->rt, luaL_checkstring(L, 1)));
    return 1;
}

/* --- calls to the host --------------------------------------------------------------- */

struct call {
    struct owned owned;
    struct list link; /* in rt->calls */
    uint32_t id;
    bool ok;
    struct slice answer;
};

static void drop_call(struct owned *owned)
{
    struct call *call = CONTAINER_OF(owned, struct call, owned);

    list_remove(&call->link);
    free(call);
}

/* {"error":{class,code,message}}, as the host refuses. */
static int push_refusal(lua_State *L, struct slice text)
{
    json_t *json = json_loadb(text.ptr, text.len, 0, NULL);
    const char *class_text = "", *code = "host", *message = "refused";
    enum error_class class = CLASS_TRANSIENT;
    int n;

    (void)!json_unpack(json, "{s:{s:s, s:s, s:s}}", "error", "class",
                       &class_text, "code", &code, "message", &message);
    (void)!class_parse(class_text, &class);
    n = push_err(L, class, code, "%s", message);
    json_decref(json);
    return n;
}

static int push_answer(lua_State *L, void *arg)
{
    const struct call *call = arg;

    if (!call->ok)
        return push_refusal(L, call->answer);
    lua_pushlstring(L, call->answer.ptr, call->answer.len);
    return 1;
}

void runtime_reply(struct runtime *rt, uint32_t id, bool ok,
                   struct slice answer)
{
    list_foreach(at, &rt->calls) {
        struct call *call = CONTAINER_OF(at, struct call, link);

        if (call->id != id)
            continue;
        call->ok = ok;
        call->answer = answer;
        list_remove(&call->link);
        task_resume(&call->owned, push_answer, call);
        free(call);
        return;
    }
}

static int l_call(lua_State *L)
{
    struct task *task = task_enter(L, "host.call");
    struct runtime *rt = vm_of(L)->rt;
    struct slice request;
    struct call *call;

    request.ptr = luaL_checklstring(L, 1, &request.len);
    if (!rt->call || !rt->call(rt, rt->last_call + 1, request))
        return push_err(L, CLASS_TRANSIENT, "host",
                        "the host cannot be asked now");
    call = calloc(1, sizeof(*call));
    if (!call)
        return luaL_error(L, "not enough memory");
    call->id = ++rt->last_call;
    list_append(&rt->calls, &call->link);
    task_own(task, &call->owned, drop_call);
    return task_suspend(L, &call->owned);
}

/* --- ctx -------------------------------------------------------------------------------- */

static int l_ctx_index(lua_State *L)
{
    struct vm *vm = vm_of(L);
    struct event *ev = current_event(vm);
    const char *name;

    vm_push_ref(L, vm, REF_CTX_STATIC);
    lua_pushvalue(L, 2);
    lua_rawget(L, -2);
    if (!lua_isnil(L, -1) || lua_type(L, 2) != LUA_TSTRING)
        return 1;
    name = lua_tostring(L, 2);
    if (strcmp(name, "attempt") == 0) {
        lua_pushinteger(L, ev ? (lua_Integer)ev->d.attempt : 1);
        return 1;
    }
    if (strcmp(name, "tx") == 0)
        return l_get_tx(L);
    return 1;
}

static int l_ctx_newindex(lua_State *L)
{
    return luaL_error(L, "ctx cannot be changed");
}

void ctx_open(lua_State *L, struct vm *vm)
{
    static const luaL_Reg meta[] = {
        {"__index", l_ctx_index}, {"__newindex", l_ctx_newindex}, {NULL, NULL}};

    lua_newuserdata(L, 1);
    lua_newtable(L);
    luaL_setfuncs(L, meta, 0);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    vm->ctx_mt = lua_topointer(L, -1);
    lua_setmetatable(L, -2);
    vm_set_ref(vm, REF_CTX);
    lua_pushcfunction(L, unit_l_begin);
    vm_set_ref(vm, REF_BEGIN);
    lua_pushcfunction(L, unit_l_finish);
    vm_set_ref(vm, REF_FINISH);
}

/* boot.lua's makers of 64-bit integers; with them values can be made, so the
 * bundle's tables come now, too. */
static int l_start_values(lua_State *L)
{
    struct vm *vm = vm_of(L);

    lua_settop(L, 2);
    vm_set_ref(vm, REF_MAKE_UINT64);
    vm_set_ref(vm, REF_MAKE_INT64);
    vm_push_ref(L, vm, REF_HOST);
    push_json(L, vm_config(vm));
    lua_setfield(L, -2, "config");
    push_json(L, vm_allow(vm));
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_newtable(L);
    }
    lua_setfield(L, -2, "allow");
    return 0;
}

/* --- the table ----------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*open)(lua_State *L);
    bool is_public; /* as it is: no Lua half */
} parts[] = {
    {"json", json_open, true},
    {"text", text_open, true},
    {"time", time_open, true},
    {"crypto", crypto_open, true},
    {"uuid", uuid_open, true},
    {"metric", metric_open, true},
    {"log", log_open, true},
    {"timer", timer_open, true},
    {"pattern", pattern_open, false},
    {"db", api_db_open, false},
    {"http", api_http_open, false},
    {"mail", api_mail_open, false},
    {"events", api_events_open, false},
};

/* Modules with a Lua half that handlers may require. */
static const char *const lua_halves[] = {"db",     "http",  "mail",
                                         "events", "kafka", "template"};

static void open_parts(lua_State *L)
{
    lua_newtable(L); /* modules that are C alone */
    lua_newtable(L); /* names that require "moontide.x" knows */
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        parts[i].open(L);
        if (parts[i].is_public) {
            lua_setfield(L, -3, parts[i].name);
            lua_pushboolean(L, 1);
            lua_setfield(L, -2, parts[i].name);
        } else {
            lua_setfield(L, -4, parts[i].name);
        }
    }
    if (vm_of(L)->builder && vm_of(L)->builder->is_spec) {
        lua_pushboolean(L, 1);
        lua_setfield(L, -2, "testing");
    }
    for (size_t i = 0; i < sizeof(lua_halves) / sizeof(*lua_halves); i++) {
        lua_pushboolean(L, 1);
        lua_setfield(L, -2, lua_halves[i]);
    }
    lua_setfield(L, -3, "api_modules");
    lua_setfield(L, -2, "modules");
}

int host_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"mode", l_mode},
        {"phase", l_phase},
        {"check", l_check},
        {"is_killed", l_is_killed},
        {"main_source", l_main_source},
        {"module_source", l_module_source},
        {"template_source", l_template_source},
        {"load_text", l_load_text},
        {"note_verdict", l_note_verdict},
        {"made_verdict", l_made_verdict},
        {"forget_verdicts", l_forget_verdicts},
        {"current", l_current},
        {"note_duplicate", l_note_duplicate},
        {"set_tx", l_set_tx},
        {"get_tx", l_get_tx},
        {"set_outputs", l_set_outputs},
        {"get_outputs", l_get_outputs},
        {"slot", unit_l_slot},
        {"event", l_event},
        {"place", unit_l_place},
        {"fence", unit_l_fence},
        {"settle", unit_l_settle},
        {"stop_sharing", unit_l_stop_sharing},
        {"idempotency_key", l_idempotency_key},
        {"effect", l_effect},
        {"effect_done", l_effect_done},
        {"duration", l_duration},
        {"now", l_now},
        {"seed", l_seed},
        {"is_array", l_is_array},
        {"setting", l_setting},
        {"read_text", l_read_text},
        {"call", l_call},
        {"start_values", l_start_values},
        {NULL, NULL},
    };
    struct vm *vm = vm_of(L);

    luaL_newlib(L, functions);
    lazy_functions(L);
    lua_setfield(L, -2, "values");
    open_parts(L);
    lua_pushstring(L, vm->name);
    lua_setfield(L, -2, "handler");
    lua_pushstring(L, vm->version);
    lua_setfield(L, -2, "version");
    lua_pushboolean(L, json_is_true(json_object_get(vm->decl, "transaction")));
    lua_setfield(L, -2, "is_transaction");
    lua_pushboolean(L,
                    json_is_string(json_object_get(vm->decl, "transaction")) &&
                        vm->rt->mode == MODE_PERFORM);
    lua_setfield(L, -2, "is_kafka_transaction");
    lua_pushboolean(L, json_object_size(vm_allow(vm)) == 0);
    lua_setfield(L, -2, "is_sql_only");
    lua_pushboolean(L, unit_is_grouped(vm->decl, vm->rt->mode));
    lua_setfield(L, -2, "is_grouped");
    if (vm->builder && vm->builder->is_spec) {
        testing_open(L);
        lua_setfield(L, -2, "testing");
    }
    lua_pushboolean(L, vm->builder && vm->builder->is_config);
    lua_setfield(L, -2, "is_config");
    lua_pushlightuserdata(L, (void *)(uintptr_t)api_yield_mark());
    lua_setfield(L, -2, "api_yield");
    return 1;
}
