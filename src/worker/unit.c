#include "worker/unit_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "worker/watchdog.h"

#include <stdio.h>
#include <stdlib.h>

static const char component[] = "handler";

/* --- one delivery at a time -------------------------------------------------------------- */

static bool may_serve(const struct unit *unit, const struct vm *vm)
{
    return unit->state == UNIT_READY && unit->vm == vm && !vm->killed &&
           !vm->out_of_memory;
}

/* The next delivery in the ring, if it is for this unit. */
static struct event *event_from_ring(struct unit *unit)
{
    struct runtime *rt = unit->rt;
    struct delivery_msg d;
    struct record *record;
    struct event *ev;

    if (!rt->next || !rt->next(rt, unit->id, &record, &d))
        return NULL;
    ev = event_take(rt, record, &d);
    record_put(rt, record);
    return ev;
}

/* What a serve task runs next, or NULL. */
static struct event *next_event(struct unit *unit, struct task *task)
{
    struct event *ev = unit->offered;

    if (ev) {
        unit->offered = NULL;
        return ev;
    }
    if (!may_serve(unit, task->vm) || unit->running >= unit->concurrency)
        return NULL;
    if (unit->n_waiting)
        return unqueue_event(unit);
    return unit->n_lanes ? NULL : event_from_ring(unit);
}

int unit_l_begin(lua_State *L)
{
    struct vm *vm = vm_of(L);
    struct task *task = vm->task;
    struct unit *unit = task->arg;
    struct event *ev = next_event(unit, task);

    task->event = ev;
    if (!ev)
        return 0;
    unit->running++;
    run_next(unit->rt);
    begin_event(unit, ev);
    mark_running(unit->rt, ev->d.slot + 1, 1);
    event_push(L, ev);
    vm_push_ref(L, vm, REF_CTX);
    return 2;
}

static void deliver_outcome(struct task *task, const struct outcome *o)
{
    struct unit *unit = task->arg;
    struct event *ev = task->event;

    mark_alive(unit->rt);
    mark_running(unit->rt, 0, 0);
    task->event = NULL;
    unit->running--;
    end_event(unit, ev, o, task);
}

void outcome_undecodable(const struct event *ev, struct outcome *o)
{
    o->verdict = VERDICT_DEAD;
    o->class = CLASS_UNDECODABLE;
    o->after_ms = -1;
    snprintf(o->code, sizeof(o->code), "json");
    free(o->reason);
    o->reason = xstrdup(ev->record->trouble);
}

int unit_l_finish(lua_State *L)
{
    struct vm *vm = vm_of(L);
    struct task *task = vm->task;
    struct outcome o = {.verdict = VERDICT_ACK, .after_ms = -1};

    CHECK(task->event);
    if (lua_gettop(L) > 0 || task->verdicts) {
        lua_settop(L, 1);
        vm_push_ref(L, vm, REF_OUTCOME);
        lua_insert(L, 1);
        lua_pushboolean(L, task->verdicts > 0);
        lua_call(L, 2, 6);
        outcome_read(L, 1, &o);
    }
    o.is_duplicate = task->is_duplicate;
    if (task->event->is_undecodable)
        outcome_undecodable(task->event, &o);
    deliver_outcome(task, &o);
    outcome_fini(&o);
    task_clean(task);
    return 0;
}

static void on_serve_end(struct task *task, struct outcome *failure)
{
    struct unit *unit = task->arg;

    if (failure && task->event) {
        if (task->event->is_undecodable && failure->class != CLASS_LIMIT)
            outcome_undecodable(task->event, failure);
        deliver_outcome(task, failure);
    }
    if (unit->vm == task->vm && (task->vm->killed || task->vm->out_of_memory))
        replace_vm(unit);
}

/* The delivery waits: its lane is taken until it ends. */
static void on_serve_suspend(struct task *task)
{
    struct unit *unit = task->arg;

    if (task->event)
        lane_make(unit, task->event->d.lane)->is_busy = true;
}

static void wait_in_unit(struct unit *unit, struct event *ev)
{
    record_keep(ev->record);
    queue_event(unit, ev);
    if (!unit->is_batched || unit->is_by_lane)
        lane_make(unit, ev->d.lane)->is_busy = true;
}

static void start_serving(struct unit *unit)
{
    struct task *task = task_take(unit->vm);

    CHECK(task);
    task->arg = unit;
    task->on_end = on_serve_end;
    task->on_suspend = on_serve_suspend;
    unit->rt->now_us = clock_mono_us();
    vm_push_ref(task->co, unit->vm, REF_SERVE);
    vm_push_ref(task->co, unit->vm, REF_BEGIN);
    vm_push_ref(task->co, unit->vm, REF_FINISH);
    vm_push_ref(task->co, unit->vm, REF_HANDLE);
    task_run(task, 3);
    mark_running(unit->rt, 0, 0);
    if (unit->offered) { /* no memory even to begin: the next vm has it */
        struct event *ev = unit->offered;

        unit->offered = NULL;
        wait_in_unit(unit, ev);
    }
}

/* --- what arrives -------------------------------------------------------------------------------- */

static void fail_waiting(struct unit *unit)
{
    while (unit->n_waiting) {
        struct outcome o = {.verdict = VERDICT_RETRY,
                            .class = CLASS_BUG,
                            .after_ms = -1,
                            .reason = unit->trouble.msg};
        end_event(unit, unqueue_event(unit), &o, NULL);
    }
}

void start_waiting(struct unit *unit)
{
    if (unit->state == UNIT_BROKEN)
        fail_waiting(unit);
    while (unit->state == UNIT_READY && unit->is_batched && is_batch_due(unit))
        start_batch(unit);
    while (unit->state == UNIT_READY && !unit->is_batched && unit->n_waiting &&
           unit->running < unit->concurrency)
        start_serving(unit);
}

void unit_flush(struct unit *unit)
{
    if (unit->n_waiting)
        start_waiting(unit);
}

/* Lanes decide; true when the delivery was dealt with. */
static bool lane_takes(struct unit *unit, struct record *record,
                       const struct delivery_msg *d)
{
    struct lane *lane = lane_find(unit, d->lane);
    struct event *ev;

    if (!lane)
        return false;
    if (lane->is_broken && (d->flags & DELIVER_FRESH)) {
        lane->is_broken = false;
        if (!lane->is_busy)
            lane_remove(unit, lane);
        return false;
    }
    if (!lane->is_broken && !lane->is_busy)
        return false;
    ev = event_take(unit->rt, record, d);
    list_append(&lane->waiting, &ev->link);
    if (lane->is_broken)
        give_back(unit, ev);
    else
        record_keep(record);
    return true;
}

void unit_offer(struct unit *unit, struct record *record,
                const struct delivery_msg *d)
{
    if (unit->n_lanes && lane_takes(unit, record, d))
        return;
    if (unit->is_batched) {
        wait_in_unit(unit, event_take(unit->rt, record, d));
        wait_for_company(unit);
        if (unit->n_ready >= unit->batch_now)
            start_waiting(unit);
        return;
    }
    if (unit->state != UNIT_READY || unit->n_waiting ||
        unit->running >= unit->concurrency) {
        wait_in_unit(unit, event_take(unit->rt, record, d));
        start_waiting(unit);
        return;
    }
    unit->offered = event_take(unit->rt, record, d);
    start_serving(unit);
}

static struct event *event_at(lua_State *L, int index)
{
    struct task *task = vm_of(L)->task;
    struct event *ev = task ? task->event : NULL;
    lua_Integer i = lua_tointeger(L, index);

    if (task && i >= 1 && i <= task->batch_len)
        ev = task->batch[i - 1];
    if (!ev)
        luaL_error(L, "there is no event now");
    return ev;
}

static void push_source(lua_State *L, const struct event_msg *m)
{
    lua_pushstring(L, source_kind_name(m->source));
    lua_pushlstring(L, m->partition.ptr ? m->partition.ptr : "",
                    m->partition.len);
}

/* (i|nil) → id, lane (a number to compare), source, partition */
int unit_l_place(lua_State *L)
{
    struct event *ev = event_at(L, 1);
    const struct event_msg *m = &ev->record->m;
    struct slice id = event_fact(ev, vm_of(L)->rt, FACT_ID);

    if (id.ptr)
        lua_pushlstring(L, id.ptr, id.len);
    else
        lua_pushnil(L);
    /* As many bits as a number has: lanes that then look alike are given back
     * together, which costs time and no order. */
    lua_pushnumber(L, (double)(ev->d.lane & (((uint64_t)1 << 53) - 1)));
    push_source(L, m);
    return 4;
}

/* () → slot, generation: how the host knows this delivery */
int unit_l_slot(lua_State *L)
{
    const struct event *ev = event_at(L, 1);

    lua_pushnumber(L, ev->d.slot);
    lua_pushnumber(L, ev->d.generation);
    return 2;
}

/* (i|nil) → source, partition, epoch */
int unit_l_fence(lua_State *L)
{
    const struct event *ev = event_at(L, 1);
    const struct event_msg *m = &ev->record->m;

    push_source(L, m);
    lua_pushnumber(L, (double)ev->d.epoch);
    return 3;
}

/* --- loading and unloading -------------------------------------------------------------------------- */

static void loaded(struct unit *unit, const struct err *err)
{
    void (*tell)(struct unit *, const struct err *) = unit->on_loaded;

    if (err) {
        unit->state = UNIT_BROKEN;
        unit->trouble = *err;
        if (!tell)
            log_error("handler could not be loaded again",
                      "handler=%s err=" LOG_Q, unit_name(unit), err->msg);
    } else {
        unit->state = UNIT_READY;
    }
    unit->on_loaded = NULL;
    if (tell)
        tell(unit, err);
}

static void on_init_end(struct task *task, struct outcome *failure)
{
    struct unit *unit = task->arg;
    struct err err;

    task->vm->phase = PHASE_HANDLE;
    if (!failure) {
        loaded(unit, NULL);
        return;
    }
    err_code(&err, ERR_PERMANENT, class_name(failure->class), "init: %s",
             failure->reason ? failure->reason : "failed");
    loaded(unit, &err);
}

/* Run one function of the handler's table as a task. */
static void call_task(struct unit *unit, const char *name, enum vm_phase phase,
                      void (*on_end)(struct task *, struct outcome *))
{
    struct vm *vm = unit->vm;
    struct task *task = task_take(vm);

    CHECK(task);
    vm->phase = phase;
    task->arg = unit;
    task->on_end = on_end;
    vm_push_ref(task->co, vm, REF_CALL);
    vm_push_ref(task->co, vm, REF_HANDLERS);
    lua_getfield(task->co, -1, name);
    lua_remove(task->co, -2);
    vm_push_ref(task->co, vm, REF_CTX);
    task_run(task, 2);
}

static void load(struct unit *unit)
{
    struct err err;

    unit->state = UNIT_LOADING;
    unit->vm = vm_new(unit->rt, unit->bundle, &err);
    if (!unit->vm) {
        loaded(unit, &err);
        return;
    }
    unit->vm->unit = unit;
    if (vm_has(unit->vm, "init")) {
        call_task(unit, "init", PHASE_INIT, on_init_end);
        return;
    }
    unit->vm->phase = PHASE_HANDLE;
    loaded(unit, NULL);
}

void replace_vm(struct unit *unit)
{
    log_warn("vm replaced after a limit", "handler=%s version=%s",
             unit->vm->name, unit->vm->version);
    vm_retire(unit->vm);
    load(unit);
}

static int64_t number(const json_t *object, const char *name, int64_t dflt)
{
    const json_t *value = json_object_get(object, name);

    return json_is_integer(value) ? json_integer_value(value) : dflt;
}

struct unit *unit_new(struct runtime *rt, uint32_t id, json_t *bundle,
                      void (*on_loaded)(struct unit *unit,
                                        const struct err *err))
{
    struct unit *unit = xcalloc(1, sizeof(*unit));
    const json_t *decl = json_object_get(bundle, "decl");

    unit->rt = rt;
    unit->id = id;
    unit->bundle = json_incref(bundle);
    unit->on_loaded = on_loaded;
    list_init(&unit->waiting);
    unit->concurrency = (int)number(bundle, "concurrency_here",
                                    number(decl, "concurrency", 16));
    if (unit->concurrency < 1)
        unit->concurrency = 1;
    batch_init(unit, decl);
    ev_init(&unit->unload_timer, NULL);
    load(unit);
    return unit;
}

void unit_free(struct unit *unit)
{
    vms_end_tasks(unit->rt, unit); /* their ends need the unit */
    ev_timer_stop(unit->rt->loop, &unit->batch_timer);
    ev_timer_stop(unit->rt->loop, &unit->unload_timer);
    if (unit->vm)
        vm_retire(unit->vm);
    while (unit->n_waiting)
        event_put(unit->rt, unqueue_event(unit));
    lanes_free(unit);
    json_decref(unit->bundle);
    free(unit);
}

bool unit_is_idle(const struct unit *unit)
{
    return !unit->running && !unit->n_waiting && unit->state != UNIT_LOADING;
}

static void unloaded(struct unit *unit)
{
    unit->on_unloaded(unit);
}

static void on_unload_end(struct task *task, struct outcome *failure)
{
    struct unit *unit = task->arg;

    if (failure)
        log_warn("on_unload failed", "handler=%s err=" LOG_Q, unit_name(unit),
                 failure->reason ? failure->reason : "");
    unit->state = UNIT_BROKEN; /* over: the poll below sees it */
}

static void on_unload_poll(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct unit *unit = timer->data;

    (void)events;
    if (unit->state == UNIT_UNLOADING) /* on_unload still runs */
        return;
    if (!unit_is_idle(unit))
        return;
    if (unit->state == UNIT_READY && vm_has(unit->vm, "on_unload")) {
        unit->state = UNIT_UNLOADING;
        call_task(unit, "on_unload", PHASE_UNLOAD, on_unload_end);
        return;
    }
    ev_timer_stop(loop, timer);
    unloaded(unit);
}

void unit_unload(struct unit *unit, void (*done)(struct unit *unit))
{
    unit->on_unloaded = done;
    ev_timer_stop(unit->rt->loop, &unit->unload_timer);
    ev_init(&unit->unload_timer, on_unload_poll);
    unit->unload_timer.data = unit;
    ev_timer_set(&unit->unload_timer, 0, 0.01);
    ev_timer_start(unit->rt->loop, &unit->unload_timer);
}

uint32_t unit_id(const struct unit *unit)
{
    return unit->id;
}

struct runtime *unit_runtime(const struct unit *unit)
{
    return unit->rt;
}

const char *unit_name(const struct unit *unit)
{
    const char *name = json_string_value(json_object_get(unit->bundle, "name"));

    return name ? name : "?";
}

struct vm *unit_vm(const struct unit *unit)
{
    return unit->vm;
}
