/*
 * Making and ending Lua states, the counting allocator, protected calls.
 *
 * Everything that may raise runs under pcall; entering needs no allocation:
 * the protecting C function is kept in the registry and finds its work in the
 * vm, so a vm at its memory limit can still be entered.
 */
#include "worker/vm_internal.h"

#include "base/buf.h"
#include "base/check.h"
#include "base/mem.h"
#include "worker/own_code.h"
#include "worker/task.h"
#include "worker/watchdog.h"

#include <luajit.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>

#define DEFAULT_MEMORY  ((int64_t)64 << 20)
#define DEFAULT_SOFT_MS 100
#define DEFAULT_TIMEOUT 30000

const char *vm_phase_name(enum vm_phase phase)
{
    switch (phase) {
    case PHASE_LOADING: return "load";
    case PHASE_INIT: return "init";
    case PHASE_HANDLE: return "handle";
    case PHASE_UNLOAD: return "unload";
    }
    UNREACHABLE();
}

/* --- memory ------------------------------------------------------------------------ */

static void *allocate(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    struct vm *vm = ud;
    void *new_ptr;

    if (new_size == 0) {
        vm->used -= old_size;
        free(ptr);
        return NULL;
    }
    if (new_size > old_size && vm->limit &&
        vm->used + (new_size - old_size) > vm->limit) {
        vm->out_of_memory = true;
        return NULL;
    }
    new_ptr = realloc(ptr, new_size);
    if (new_ptr)
        vm->used += new_size - old_size;
    else if (new_size > old_size)
        vm->out_of_memory = true;
    return new_ptr;
}

struct vm *vm_of(lua_State *L)
{
    void *ud;

    lua_getallocf(L, &ud);
    return ud;
}

/* --- protected calls ------------------------------------------------------------------ */

void vm_set_ref(struct vm *vm, enum vm_ref ref)
{
    vm->refs[ref] = luaL_ref(vm->L, LUA_REGISTRYINDEX);
}

static int run_call(lua_State *L)
{
    return vm_of(L)->call.fn(L);
}

static void read_error(lua_State *L, struct err *err)
{
    const char *text = lua_tostring(L, -1);

    if (!text && lua_istable(L, -1)) {
        lua_pushliteral(L, "message");
        lua_rawget(L, -2);
        text = lua_tostring(L, -1);
        lua_insert(L, -2);
    }
    err_set(err, ERR_PERMANENT, "%s", text ? text : "an error without text");
}

bool vm_protect(struct vm *vm, int (*fn)(lua_State *L), void *arg,
                struct err *err)
{
    lua_State *L = vm->L;
    int base = lua_gettop(L);
    bool is_nested = atomic_load(&vm->rt->mark.number) & 1;
    int status;

    vm->call.fn = fn;
    vm->call.arg = arg;
    vm_push_ref(L, vm, REF_PROTECT);
    if (!is_nested)
        run_begin(vm->rt, vm);
    status = lua_pcall(L, 0, LUA_MULTRET, 0);
    if (!is_nested)
        run_end(vm->rt, vm);
    if (status == 0)
        return true;
    if (vm->killed)
        err_code(err, ERR_PERMANENT, "limit", "killed: soft time limit %lldms",
                 (long long)vm->soft_limit_us / 1000);
    else if (vm->out_of_memory)
        err_code(err, ERR_PERMANENT, "limit", "killed: memory limit %zuMiB",
                 vm->limit >> 20);
    else
        read_error(L, err);
    lua_settop(L, base);
    return false;
}

/* --- making --------------------------------------------------------------------------- */

bool vm_load_text(lua_State *L, struct slice text, const char *chunk, int env)
{
    if (luaL_loadbufferx(L, text.ptr, text.len, chunk, "t") != 0)
        return false;
    if (env) {
        lua_pushvalue(L, env);
        lua_setfenv(L, -2);
    }
    return true;
}

/* One of our own modules as a function with the real globals. */
static int l_load_own(lua_State *L)
{
    return own_code_push(L, luaL_checkstring(L, 1)) ? 1 : 0;
}

static void open_metatables(lua_State *L, struct vm *vm)
{
    lazy_open(L, vm);
    event_open(L, vm);
    ctx_open(L, vm);
}

static const struct {
    const char *name;
    enum vm_ref ref;
} made_by_boot[] = {
    {"env", REF_ENV},
    {"serve", REF_SERVE},
    {"run_batch", REF_RUN_BATCH},
    {"call", REF_CALL},
    {"outcome", REF_OUTCOME},
    {"describe", REF_DESCRIBE},
    {"make_err", REF_MAKE_ERR},
    {"ctx_static", REF_CTX_STATIC},
};

/* Libraries, our primitives, boot.lua; before the memory limit counts. */
static int boot(lua_State *L)
{
    struct vm *vm = vm_of(L);

    luaL_openlibs(L); /* which switches the JIT on */
    if (!json_is_true(json_object_get(vm->decl, "jit")))
        luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    lua_pushcfunction(L, run_call);
    vm_set_ref(vm, REF_PROTECT);
    open_metatables(L, vm);
    host_open(L);
    lua_pushcfunction(L, l_load_own);
    lua_setfield(L, -2, "load_own");
    lua_pushvalue(L, -1);
    vm_set_ref(vm, REF_HOST);
    lua_pushcfunction(L, l_load_own);
    lua_pushliteral(L, "boot");
    lua_call(L, 1, 1);
    lua_insert(L, -2);
    lua_call(L, 1, 1);
    for (size_t i = 0; i < sizeof(made_by_boot) / sizeof(*made_by_boot); i++) {
        lua_getfield(L, -1, made_by_boot[i].name);
        if (lua_isnil(L, -1))
            return luaL_error(L, "boot.lua makes no %s", made_by_boot[i].name);
        vm_set_ref(vm, made_by_boot[i].ref);
    }
    return 0;
}

/* boot.lua gave functions; now the ones that need the handler's table:
 * host.adopt(table) returns handle as serve shall call it. */
static int adopt(lua_State *L)
{
    struct vm *vm = vm_of(L);

    vm_push_ref(L, vm, REF_HOST);
    lua_getfield(L, -1, "adopt");
    vm_push_ref(L, vm, REF_HANDLER);
    lua_call(L, 1, 2);
    vm_set_ref(vm, REF_HANDLERS);
    vm_set_ref(vm, REF_HANDLE);
    return 0;
}

static int load_main(lua_State *L)
{
    struct vm *vm = vm_of(L);

    vm_push_ref(L, vm, REF_HOST);
    lua_getfield(L, -1, "load_main");
    lua_call(L, 0, 1);
    vm_set_ref(vm, REF_HANDLER);
    return 0;
}

static int64_t bundle_int(const json_t *bundle, const char *name, int64_t dflt)
{
    const json_t *value = json_object_get(bundle, name);

    return json_is_integer(value) ? json_integer_value(value) : dflt;
}

static const char *bundle_text(const json_t *bundle, const char *name)
{
    const char *text = json_string_value(json_object_get(bundle, name));

    return text ? text : "?";
}

static struct vm *vm_alloc(struct runtime *rt, json_t *bundle)
{
    struct vm *vm = xcalloc(1, sizeof(*vm));
    int64_t soft_ms;

    vm->rt = rt;
    vm->bundle = json_incref(bundle);
    vm->decl = json_object_get(bundle, "decl");
    vm->name = bundle_text(bundle, "name");
    vm->version = bundle_text(bundle, "version");
    soft_ms = bundle_int(bundle, "soft_limit_ms", DEFAULT_SOFT_MS);
    vm->soft_limit_us = soft_ms * 1000;
    vm->timeout_ms = bundle_int(vm->decl, "timeout_ms", DEFAULT_TIMEOUT);
    breaker_rule_read(&vm->breaker, vm->decl);
    list_init(&vm->busy);
    list_init(&vm->spare);
    vm->next = rt->vms;
    rt->vms = vm;
    return vm;
}

static void vm_free(struct vm *vm)
{
    struct vm **at = &vm->rt->vms;

    while (*at != vm)
        at = &(*at)->next;
    *at = vm->next;
    watchdog_forget(vm->rt, vm);
    tasks_free(vm);
    vm->is_closing = true;
    vm->limit = 0; /* closing may allocate */
    if (vm->L)
        lua_close(vm->L);
    free(vm->free_slots);
    json_decref(vm->bundle);
    free(vm);
}

static bool boot_protected(struct vm *vm, struct err *err)
{
    int status = lua_cpcall(vm->L, boot, NULL);

    if (status == 0)
        return true;
    err_set(err, ERR_FATAL, "starting lua: %s", lua_tostring(vm->L, -1));
    return false;
}

static void set_limit(struct vm *vm)
{
    int64_t limit = bundle_int(vm->bundle, "memory_limit", DEFAULT_MEMORY);

    lua_gc(vm->L, LUA_GCCOLLECT, 0);
    vm->limit = vm->used + (size_t)limit;
}

struct vm *vm_new_building(struct runtime *rt, json_t *bundle,
                           struct builder *builder, struct err *err)
{
    struct vm *vm = vm_alloc(rt, bundle);

    vm->builder = builder;
    vm->L = lua_newstate(allocate, vm);
    if (!vm->L) {
        err_set(err, ERR_FATAL, "this LuaJIT takes no allocator of ours");
        goto fail;
    }
    if (!boot_protected(vm, err))
        goto fail;
    set_limit(vm);
    if (!vm_protect(vm, load_main, NULL, err))
        goto fail;
    if (!builder && !vm_protect(vm, adopt, NULL, err))
        goto fail;
    lua_settop(vm->L, 0);
    return vm;

fail:
    vm_free(vm);
    return NULL;
}

struct vm *vm_new(struct runtime *rt, json_t *bundle, struct err *err)
{
    return vm_new_building(rt, bundle, NULL, err);
}

bool vm_has(struct vm *vm, const char *name)
{
    bool has;

    vm_push_ref(vm->L, vm, REF_HANDLERS);
    lua_getfield(vm->L, -1, name);
    has = lua_isfunction(vm->L, -1);
    lua_pop(vm->L, 2);
    return has;
}

/* --- ending --------------------------------------------------------------------------- */

void vm_retire(struct vm *vm)
{
    vm->is_retired = true;
}

void vms_reap(struct runtime *rt)
{
    for (struct vm *vm = rt->vms, *next; vm; vm = next) {
        next = vm->next;
        if (vm->is_retired && list_is_empty(&vm->busy))
            vm_free(vm);
    }
}

static void end_tasks(struct vm *vm)
{
    while (!list_is_empty(&vm->busy)) {
        struct outcome o = {.verdict = VERDICT_BACK, .after_ms = -1};

        task_end(CONTAINER_OF(vm->busy.next, struct task, link), &o);
    }
}

void vms_end_tasks(struct runtime *rt, const struct unit *unit)
{
    for (struct vm *vm = rt->vms; vm; vm = vm->next)
        if (vm->unit == unit)
            end_tasks(vm);
}

void vms_free(struct runtime *rt)
{
    while (rt->vms) {
        struct vm *vm = rt->vms;

        end_tasks(vm);
        vm_free(vm);
    }
}

/* --- what others ask --------------------------------------------------------------------- */

struct runtime *vm_runtime(const struct vm *vm)
{
    return vm->rt;
}

const char *vm_handler(const struct vm *vm)
{
    return vm->name;
}

const char *vm_version(const struct vm *vm)
{
    return vm->version;
}

const json_t *vm_allow(const struct vm *vm)
{
    return json_object_get(vm->decl, "allow");
}

const json_t *vm_config(const struct vm *vm)
{
    return json_object_get(vm->decl, "config");
}

static int push_buf_text(lua_State *L)
{
    const struct slice *text = lua_touserdata(L, 1);

    lua_pushlstring(L, text->ptr, text->len);
    return 1;
}

int push_buf(lua_State *L, struct buf *buf)
{
    struct slice text = {buf->ptr ? buf->ptr : "", buf->len};
    int status;

    lua_pushcfunction(L, push_buf_text);
    lua_pushlightuserdata(L, &text);
    status = lua_pcall(L, 1, 1, 0);
    buf_fini(buf);
    return status == 0 ? 1 : lua_error(L);
}
