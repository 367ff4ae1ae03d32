/*
 * The happy path of a serve task never comes here: it takes one delivery after
 * the other inside one lua_resume(). What does: a coroutine that waits, wakes,
 * ends or is ended.
 */
#include "worker/task.h"

#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/settings.h"
#include "worker/watchdog.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* First value of a yield that comes from an API function, for the wrapper of
 * coroutine.resume to tell it from a handler's own. */
static const char api_yield;

#define SPARE_TASKS 64

void outcome_fini(struct outcome *o)
{
    free(o->reason);
    free(o->traceback);
    o->reason = o->traceback = NULL;
}

/* --- life ------------------------------------------------------------------------- */

static int new_coroutine(lua_State *L)
{
    struct task *task = vm_of(L)->call.arg;

    task->co = lua_newthread(L);
    task->co_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static bool make_coroutine(struct task *task)
{
    struct err err;

    task->co = NULL;
    task->co_ref = LUA_NOREF;
    return vm_protect(task->vm, new_coroutine, task, &err);
}

static void on_deadline(struct ev_loop *loop, ev_timer *timer, int events);

struct task *task_take(struct vm *vm)
{
    struct task *task;

    if (!list_is_empty(&vm->spare)) {
        task = CONTAINER_OF(vm->spare.next, struct task, link);
        list_remove(&task->link);
        vm->n_spare--;
    } else {
        task = xcalloc(1, sizeof(*task));
        task->vm = vm;
        task->tx_ref = LUA_NOREF;
        task->outputs_ref = LUA_NOREF;
        list_init(&task->link);
        list_init(&task->owned);
        ev_init(&task->timer, on_deadline);
        task->timer.data = task;
        if (!make_coroutine(task)) {
            free(task);
            return NULL;
        }
    }
    task->was_suspended = false;
    list_append(&vm->busy, &task->link);
    return task;
}

static void task_free(struct task *task)
{
    list_remove(&task->link);
    if (task->co && !task->vm->is_closing)
        luaL_unref(task->vm->L, LUA_REGISTRYINDEX, task->co_ref);
    free(task);
}

void tasks_free(struct vm *vm)
{
    while (!list_is_empty(&vm->spare))
        task_free(CONTAINER_OF(vm->spare.next, struct task, link));
    vm->n_spare = 0;
}

static void put_task(struct task *task, bool can_be_reused)
{
    struct vm *vm = task->vm;

    list_remove(&task->link);
    task->on_end = NULL;
    task->on_suspend = NULL;
    task->event = NULL;
    task->batch = NULL;
    task->batch_len = 0;
    if (!can_be_reused || vm->n_spare >= SPARE_TASKS) {
        task_free(task);
        return;
    }
    list_insert(vm->spare.next, &task->link);
    vm->n_spare++;
}

static void drop_all(struct task *task)
{
    while (!list_is_empty(&task->owned)) {
        struct owned *o = CONTAINER_OF(task->owned.next, struct owned, link);

        task_disown(o);
        o->drop(o);
    }
}

static void unref(struct task *task, int *ref)
{
    if (*ref != LUA_NOREF && !task->vm->is_closing)
        luaL_unref(task->vm->L, LUA_REGISTRYINDEX, *ref);
    *ref = LUA_NOREF;
}

void task_clean(struct task *task)
{
    if (!list_is_empty(&task->owned))
        drop_all(task);
    if (task->was_suspended)
        ev_timer_stop(task->vm->rt->loop, &task->timer);
    if (task->tx_ref != LUA_NOREF)
        unref(task, &task->tx_ref);
    if (task->outputs_ref != LUA_NOREF)
        unref(task, &task->outputs_ref);
    if (task->effects.ptr)
        buf_fini(&task->effects);
    task->waiting = NULL;
    task->was_suspended = false;
    task->calls = task->verdicts = 0;
    task->refused_until_us = 0;
    task->is_duplicate = false;
}

void task_end(struct task *task, struct outcome *failure)
{
    task->waiting = NULL;
    drop_all(task);
    if (task->on_end)
        task->on_end(task, failure);
    task_clean(task);
    put_task(task, false);
}

/* --- running ----------------------------------------------------------------------- */

static void suspend(struct task *task)
{
    struct vm *vm = task->vm;

    if (task->was_suspended)
        return;
    task->was_suspended = true;
    task->deadline_us = clock_mono_us() + vm->timeout_ms * 1000;
    if (task->event)
        record_keep(task->event->record);
    if (task->on_suspend)
        task->on_suspend(task);
    ev_timer_set(&task->timer, (double)vm->timeout_ms / 1000, 0);
    ev_now_update(vm->rt->loop);
    ev_timer_start(vm->rt->loop, &task->timer);
}

/* A coroutine that yielded by itself outside of one of its own. */
static void end_stray(struct task *task)
{
    struct outcome o = {
        .verdict = VERDICT_RETRY,
        .class = CLASS_BUG,
        .after_ms = -1,
        .reason = xstrdup("coroutine.yield outside of a coroutine of the "
                          "handler's own")};

    task_end(task, &o);
    outcome_fini(&o);
}

static void end_failed(struct task *task)
{
    struct outcome o = {
        .verdict = VERDICT_RETRY, .class = CLASS_BUG, .after_ms = -1};

    outcome_of_error(task, &o);
    task_end(task, &o);
    outcome_fini(&o);
}

static void end_well(struct task *task)
{
    if (task->on_end)
        task->on_end(task, NULL);
    task_clean(task);
    lua_settop(task->co, 0);
    put_task(task, !task->vm->killed && !task->vm->out_of_memory);
}

void task_run(struct task *task, int nargs)
{
    struct vm *vm = task->vm;
    int64_t start_us = clock_mono_us();
    int status;

    CHECK(!vm->task);
    vm->task = task;
    vm->rt->now_us = start_us;
    run_begin(vm->rt, vm);
    status = lua_resume(task->co, nargs);
    run_end(vm->rt, vm);
    vm->task = NULL;
    vm->cpu_us += clock_mono_us() - start_us;
    if (status == LUA_YIELD && task->waiting)
        suspend(task);
    else if (status == LUA_YIELD)
        end_stray(task);
    else if (status != 0)
        end_failed(task);
    else
        end_well(task);
}

static void on_deadline(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct task *task = timer->data;
    struct outcome o = {.verdict = VERDICT_RETRY,
                        .class = CLASS_TRANSIENT,
                        .code = "timeout",
                        .after_ms = -1};

    (void)loop;
    (void)events;
    o.reason = xasprintf("timeout: not done after %lldms",
                         (long long)task->vm->timeout_ms);
    task_end(task, &o);
    outcome_fini(&o);
}

const void *api_yield_mark(void)
{
    return &api_yield;
}

/* --- what C functions use --------------------------------------------------------- */

struct task *task_current(lua_State *L)
{
    return vm_of(L)->task;
}

struct task *task_enter(lua_State *L, const char *what)
{
    struct vm *vm = vm_of(L);

    if (!vm->task || vm->phase == PHASE_LOADING)
        luaL_error(L, "%s cannot be called while loading (only in: handle)",
                   what);
    if (!lua_isyieldable(L))
        luaL_error(L,
                   "%s cannot be called inside a callback such as "
                   "__tostring (only in: handle)",
                   what);
    return vm->task;
}

void task_own(struct task *task, struct owned *owned,
              void (*drop)(struct owned *owned))
{
    owned->task = task;
    owned->drop = drop;
    list_init(&owned->link);
    list_insert(task->owned.next, &owned->link);
}

void task_disown(struct owned *owned)
{
    if (!owned->task)
        return;
    if (owned->task->waiting == owned)
        owned->task->waiting = NULL;
    list_remove(&owned->link);
    owned->task = NULL;
}

int task_suspend(lua_State *L, struct owned *owned)
{
    struct task *task = vm_of(L)->task;

    CHECK(task && owned->task == task && !task->waiting);
    task->waiting = owned;
    /* Room for the results: pushing them must not fail then. */
    luaL_checkstack(task->co, 32, "waiting");
    lua_pushlightuserdata(L, (void *)(uintptr_t)&api_yield);
    return lua_yield(L, 1);
}

struct pushing {
    int (*push)(lua_State *L, void *arg);
    void *arg;
};

static int push_results(lua_State *L)
{
    const struct pushing *p = vm_of(L)->call.arg;

    return p->push(L, p->arg);
}

static void fail_resumed(struct task *task, const struct err *err)
{
    struct outcome o = {
        .verdict = VERDICT_RETRY, .class = CLASS_BUG, .after_ms = -1};

    if (task->vm->killed || task->vm->out_of_memory)
        outcome_limit(task->vm, &o);
    else
        o.reason = xstrdup(err->msg);
    task_end(task, &o);
    outcome_fini(&o);
}

void task_resume(struct owned *owned, int (*push)(lua_State *L, void *arg),
                 void *arg)
{
    struct task *task = owned->task;
    struct pushing p = {push, arg};
    struct err err;
    lua_State *L;
    int base, n;

    if (!task)
        return;
    CHECK(task->waiting == owned);
    task_disown(owned);
    L = task->vm->L;
    base = lua_gettop(L);
    if (!vm_protect(task->vm, push_results, &p, &err)) {
        fail_resumed(task, &err);
        return;
    }
    n = lua_gettop(L) - base;
    CHECK(n <= 16);
    lua_settop(task->co, 0); /* what was yielded */
    lua_xmove(L, task->co, n);
    task_run(task, n);
}

struct vm *task_vm(const struct task *task)
{
    return task->vm;
}

struct runtime *task_runtime(const struct task *task)
{
    return task->vm->rt;
}

int64_t task_left_ms(const struct task *task)
{
    if (!task->was_suspended)
        return task->vm->timeout_ms;
    return (task->deadline_us - clock_mono_us()) / 1000;
}

/* --- outcomes ------------------------------------------------------------------------- */

static char *copy_text(lua_State *L, int index, size_t max)
{
    size_t len;
    const char *text = lua_tolstring(L, index, &len);

    if (!text)
        return NULL;
    return xstrndup(text, len < max ? len : max);
}

void outcome_read(lua_State *L, int first, struct outcome *o)
{
    const char *kind = lua_tostring(L, first);
    const char *class = lua_tostring(L, first + 1);
    const char *code = lua_tostring(L, first + 2);

    o->verdict = VERDICT_RETRY;
    for (int v = 0; kind && v < VERDICT_COUNT; v++)
        if (strcmp(kind, verdict_name((enum verdict)v)) == 0)
            o->verdict = (enum verdict)v;
    o->class = CLASS_BUG;
    if (class)
        class_parse(class, &o->class);
    snprintf(o->code, sizeof(o->code), "%s", code ? code : "");
    o->reason = copy_text(L, first + 3, REASON_MAX);
    o->after_ms =
        lua_isnumber(L, first + 4) ? (int64_t)lua_tonumber(L, first + 4) : -1;
    if (lua_isstring(L, first + 5)) {
        free(o->traceback);
        o->traceback = copy_text(L, first + 5, TRACEBACK_MAX);
    }
}

void outcome_limit(const struct vm *vm, struct outcome *o)
{
    o->verdict = VERDICT_RETRY;
    o->class = CLASS_LIMIT;
    o->after_ms = -1;
    free(o->reason);
    if (vm->killed) {
        snprintf(o->code, sizeof(o->code), "time");
        o->reason = xasprintf("killed: soft time limit %lldms",
                              (long long)vm->soft_limit_us / 1000);
    } else {
        snprintf(o->code, sizeof(o->code), "memory");
        o->reason = xasprintf("killed: memory limit %zuMiB", vm->limit >> 20);
    }
}

struct describing {
    struct task *task;
    struct outcome *o;
    bool only_traceback;
};

static int describe(lua_State *L)
{
    struct describing *d = vm_of(L)->call.arg;
    lua_State *co = d->task->co;

    luaL_traceback(L, co, NULL, 0);
    d->o->traceback = copy_text(L, -1, TRACEBACK_MAX);
    if (d->only_traceback)
        return 0;
    vm_push_ref(L, vm_of(L), REF_DESCRIBE);
    lua_xmove(co, L, 1);
    lua_call(L, 1, 6);
    outcome_read(L, lua_gettop(L) - 5, d->o);
    return 0;
}

/* The limit is lifted a little to have room for words. */
void outcome_of_error(struct task *task, struct outcome *o)
{
    struct vm *vm = task->vm;
    bool is_limit = vm->killed || vm->out_of_memory;
    struct describing d = {task, o, is_limit};
    size_t limit = vm->limit;
    struct err err;

    vm->limit = 0;
    if (!vm_protect(vm, describe, &d, &err) && !o->reason)
        o->reason = xasprintf("error while describing an error: %s", err.msg);
    vm->limit = limit;
    if (is_limit || vm->killed)
        outcome_limit(vm, o);
    else if (o->class == CLASS_UNDECODABLE)
        o->verdict = VERDICT_DEAD;
}

/* --- errors as values -------------------------------------------------------------------- */

int push_err(lua_State *L, enum error_class class, const char *code,
             const char *fmt, ...)
{
    char message[REASON_MAX];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof(message), fmt, args);
    va_end(args);
    lua_pushnil(L);
    vm_push_ref(L, vm_of(L), REF_MAKE_ERR);
    lua_pushstring(L, class_name(class));
    lua_pushstring(L, code); /* NULL pushes nil */
    lua_pushstring(L, message);
    lua_call(L, 3, 1);
    return 2;
}

int64_t check_duration_ms(lua_State *L, int index, const char *what,
                          int64_t dflt)
{
    int64_t ms = -1;

    if (lua_isnoneornil(L, index))
        return dflt;
    if (lua_type(L, index) == LUA_TNUMBER && lua_tonumber(L, index) >= 0 &&
        lua_tonumber(L, index) < 1e10)
        ms = (int64_t)(lua_tonumber(L, index) * 1000 + 0.5);
    else if (lua_type(L, index) == LUA_TSTRING &&
             !duration_parse(lua_tostring(L, index), &ms))
        ms = -1;
    if (ms < 0)
        luaL_error(L, "%s: a duration such as \"200ms\" or seconds expected",
                   what);
    return ms;
}
