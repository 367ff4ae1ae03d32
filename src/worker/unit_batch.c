/*
 * Batches: what waits is handed to the handler together, one batch of a unit at
 * a time. A batch that a limit ended is run again in smaller ones, until the
 * event that cannot be run is alone.
 */
#include "worker/unit_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdlib.h>

static void end_batch_event(struct unit *unit, struct task *task, int i,
                            const struct outcome *o)
{
    struct event *ev = task->batch[i];

    task->batch[i] = NULL;
    end_event(unit, ev, o, task);
}

int unit_l_settle(lua_State *L)
{
    struct task *task = vm_of(L)->task;
    struct outcome o = {.after_ms = -1};
    int i = (int)luaL_checkinteger(L, 1) - 1;

    luaL_argcheck(L, task && i >= 0 && i < task->batch_len && task->batch[i], 1,
                  "no such event in this batch");
    outcome_read(L, 2, &o);
    o.is_duplicate = lua_toboolean(L, 8);
    mark_alive(vm_of(L)->rt);
    end_batch_event(task->arg, task, i, &o);
    outcome_fini(&o);
    return 0;
}

/* Put what a failed batch left back in front, to be run in smaller ones. */
static void run_again_smaller(struct unit *unit, struct task *task)
{
    struct list *front = unit->waiting.next;

    for (int i = 0; i < task->batch_len; i++) {
        if (!task->batch[i])
            continue;
        task->batch[i]->has_begun = false;
        event_leave_vm(task->batch[i]);
        mark_started(unit->rt, task->batch[i]->d.slot, false);
        list_insert(front, &task->batch[i]->link);
        unit->n_waiting++;
        task->batch[i] = NULL;
    }
}

static void on_batch_end(struct task *task, struct outcome *failure)
{
    struct unit *unit = task->arg;
    struct outcome bug = {.verdict = VERDICT_RETRY,
                          .class = CLASS_BUG,
                          .after_ms = -1,
                          .reason = xstrdup("the batch ended without a verdict "
                                            "for this event")};
    struct outcome *o = failure ? failure : &bug;

    mark_alive(unit->rt);
    mark_running(unit->rt, 0, 0);
    if (failure && task->batch_len > 1) {
        unit->batch_now = task->batch_len / 2;
        run_again_smaller(unit, task);
    } else {
        if (unit->batch_now < unit->batch_max)
            unit->batch_now *= 2;
        for (int i = 0; i < task->batch_len; i++)
            if (task->batch[i])
                end_batch_event(unit, task, i, o);
    }
    outcome_fini(&bug);
    free(task->batch);
    task->batch = NULL;
    unit->is_batch_running = false;
    unit->running--;
    if (unit->vm == task->vm && (task->vm->killed || task->vm->out_of_memory))
        replace_vm(unit);
    /* Not from here: the task is still on the stack. */
    ev_timer_stop(unit->rt->loop, &unit->batch_timer);
    ev_timer_set(&unit->batch_timer, 0, 0);
    ev_timer_start(unit->rt->loop, &unit->batch_timer);
}

static int push_batch(lua_State *L)
{
    struct task *task = vm_of(L)->call.arg;

    lua_createtable(L, task->batch_len, 0);
    for (int i = 0; i < task->batch_len; i++) {
        event_push(L, task->batch[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

static void take_batch(struct unit *unit, struct task *task)
{
    int n = unit->n_waiting;

    if (n > unit->batch_now)
        n = unit->batch_now;
    task->batch = xcalloc((size_t)n, sizeof(struct event *));
    task->batch_len = n;
    for (int i = 0; i < n; i++) {
        struct event *ev = unqueue_event(unit);

        begin_event(unit, ev);
        task->batch[i] = ev;
    }
}

static void fail_batch(struct task *task, const char *why)
{
    struct outcome o = {
        .verdict = VERDICT_RETRY, .class = CLASS_BUG, .after_ms = -1};

    if (task->vm->killed || task->vm->out_of_memory)
        outcome_limit(task->vm, &o);
    else
        o.reason = xstrdup(why);
    task_end(task, &o);
    outcome_fini(&o);
}

void start_batch(struct unit *unit)
{
    struct vm *vm = unit->vm;
    struct task *task = task_take(vm);
    struct err err;

    CHECK(task);
    task->arg = unit;
    task->on_end = on_batch_end;
    unit->rt->now_us = clock_mono_us();
    take_batch(unit, task);
    unit->is_batch_running = true;
    unit->running++;
    mark_running(unit->rt, task->batch[0]->d.slot + 1,
                 (uint32_t)task->batch_len);
    if (!vm_protect(vm, push_batch, task, &err)) {
        fail_batch(task, err.msg);
        return;
    }
    vm_push_ref(task->co, vm, REF_RUN_BATCH);
    lua_xmove(vm->L, task->co, 1);
    vm_push_ref(task->co, vm, REF_CTX);
    vm_push_ref(task->co, vm, REF_HANDLE);
    task_run(task, 3);
    mark_running(unit->rt, 0, 0);
}

bool is_batch_due(const struct unit *unit)
{
    if (unit->is_batch_running || !unit->n_waiting)
        return false;
    return unit->n_waiting >= unit->batch_now || !unit->batch_wait_ms ||
           !ev_is_active(&unit->batch_timer);
}

static void on_batch_timer(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct unit *unit = timer->data;

    (void)loop;
    (void)events;
    start_waiting(unit);
}

/* The first that waits starts the clock. */
void wait_for_company(struct unit *unit)
{
    if (!unit->batch_wait_ms || unit->is_batch_running ||
        ev_is_active(&unit->batch_timer))
        return;
    ev_timer_set(&unit->batch_timer, (double)unit->batch_wait_ms / 1000, 0);
    ev_timer_start(unit->rt->loop, &unit->batch_timer);
}

void batch_init(struct unit *unit, const json_t *decl)
{
    const json_t *batch = json_object_get(decl, "batch");
    json_int_t max = json_integer_value(json_object_get(batch, "max"));

    unit->is_batched = json_is_object(batch);
    unit->batch_max = max > 0 ? (int)max : 1;
    unit->batch_now = unit->batch_max;
    unit->batch_wait_ms = json_integer_value(json_object_get(batch, "wait_ms"));
    ev_init(&unit->batch_timer, on_batch_timer);
    unit->batch_timer.data = unit;
}
