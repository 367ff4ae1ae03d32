/*
 * Batches: what waits is handed to the handler together. Two may run side by
 * side, of lanes that are not in both. A batch that a limit ended is run again
 * in smaller ones, until the event that cannot be run is alone.
 *
 * Handlers whose deliveries share a transaction without a handle_batch are
 * batches, too, but lanes keep their order as elsewhere (what waits is of
 * different ones), and several run at a time, each with a session.
 */
#include "worker/unit_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>

static const char component[] = "handler";

#define BATCHES_AT_ONCE 2
#define ALL_STRANDS     ((1u << BATCHES_AT_ONCE) - 1)

/* By lane. What is there is spread over sessions, but not in crumbs. */
#define SHARED_AT_ONCE 8
#define SHARED_LEAST   8
#define SHARED_MOST    100
#define SHARED_US      200000 /* longer than this they hold their locks too long */

/* --- strands ----------------------------------------------------------------- */

/* Lanes are spread over strands; of a strand one batch runs at a time. */
static unsigned strand_of(const struct event *ev)
{
    return 1u << ev->d.lane % BATCHES_AT_ONCE;
}

bool is_strand_busy(const struct unit *unit, const struct event *ev)
{
    return unit->busy_strands & strand_of(ev);
}

static void count_ready(struct unit *unit)
{
    unit->n_ready = 0;
    list_foreach(at, &unit->waiting)
        unit->n_ready +=
            !is_strand_busy(unit, CONTAINER_OF(at, struct event, link));
}

/* All that are free; of plenty one, so that there is a batch to run beside. */
static unsigned choose_strands(const struct unit *unit)
{
    if (unit->n_ready < unit->batch_now || unit->concurrency < BATCHES_AT_ONCE)
        return ~unit->busy_strands & ALL_STRANDS;
    list_foreach(at, &unit->waiting) {
        struct event *ev = CONTAINER_OF(at, struct event, link);

        if (!is_strand_busy(unit, ev))
            return strand_of(ev);
    }
    UNREACHABLE();
}

static void leave_strands(struct unit *unit, struct task *task)
{
    unit->busy_strands &= ~task->strands;
    task->strands = 0;
    count_ready(unit);
}

/* --- the end of a batch -------------------------------------------------------- */

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
    if (task->batch[i]->is_undecodable && o.verdict != VERDICT_BACK)
        outcome_undecodable(task->batch[i], &o);
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

static int least_of(int a, int b)
{
    return a < b ? a : b;
}

static bool is_slow(const struct unit *unit, const struct task *task)
{
    return unit->is_by_lane &&
           unit->rt->now_us - task->batch_began_us > SHARED_US;
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
        unit->batch_now = is_slow(unit, task)
                              ? (task->batch_len + 1) / 2
                              : least_of(unit->batch_now * 2, unit->batch_max);
        for (int i = 0; i < task->batch_len; i++)
            if (task->batch[i])
                end_batch_event(unit, task, i, o);
    }
    outcome_fini(&bug);
    free(task->batch);
    task->batch = NULL;
    unit->n_batches--;
    leave_strands(unit, task);
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

static int next_size(const struct unit *unit)
{
    int n = unit->n_ready, free = SHARED_AT_ONCE - unit->n_batches;

    if (unit->is_by_lane && unit->batch_max > 1) {
        n = (n + free - 1) / free;
        n = least_of(n < SHARED_LEAST ? SHARED_LEAST : n, unit->n_ready);
    }
    return least_of(n, unit->batch_now);
}

/* In the order of arrival, but what belongs to a batch that runs. */
static void take_batch(struct unit *unit, struct task *task)
{
    int most = next_size(unit);

    task->batch = xcalloc((size_t)most, sizeof(struct event *));
    if (!unit->is_by_lane)
        task->strands = choose_strands(unit);
    list_foreach_safe(at, &unit->waiting) {
        struct event *ev = CONTAINER_OF(at, struct event, link);

        if (task->batch_len == most)
            break;
        if (!unit->is_by_lane && !(task->strands & strand_of(ev)))
            continue;
        take_waiting(unit, ev);
        begin_event(unit, ev);
        task->batch[task->batch_len++] = ev;
    }
    unit->busy_strands |= task->strands;
    count_ready(unit);
}

/* () : deliveries of this handler get in each other's way. */
int unit_l_stop_sharing(lua_State *L)
{
    struct task *task = vm_of(L)->task;
    struct unit *unit = task->arg;

    if (unit->batch_max > 1)
        log_info("deliveries wait for each other's rows: from now on each has a"
                 " transaction of its own",
                 "handler=%s", unit_name(unit));
    unit->batch_max = unit->batch_now = 1;
    return 0;
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
    unit->rt->now_us = task->batch_began_us = clock_mono_us();
    take_batch(unit, task);
    unit->n_batches++;
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

/* Beside one that runs only a good one starts: what is little waits for it and
 * is more then. */
bool is_batch_due(const struct unit *unit)
{
    bool is_full = unit->n_ready >= unit->batch_now;
    bool is_good = unit->n_ready >= (unit->batch_now + 1) / 2;

    if (unit->is_by_lane)
        return unit->n_ready > 0 && unit->running < unit->concurrency &&
               (unit->n_batches < SHARED_AT_ONCE || unit->batch_max == 1);
    if (unit->n_batches > 0)
        return is_good && unit->n_batches < BATCHES_AT_ONCE &&
               unit->running < unit->concurrency;
    return unit->n_ready > 0 && (is_full || !unit->batch_wait_ms ||
                                 !ev_is_active(&unit->batch_timer));
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
    if (!unit->batch_wait_ms || unit->n_batches > 0 ||
        ev_is_active(&unit->batch_timer))
        return;
    ev_timer_set(&unit->batch_timer, (double)unit->batch_wait_ms / 1000, 0);
    ev_timer_start(unit->rt->loop, &unit->batch_timer);
}

bool unit_is_grouped(const json_t *decl, enum effect_mode mode)
{
    return mode == MODE_PERFORM &&
           json_is_true(json_object_get(decl, "transaction")) &&
           !json_object_get(decl, "batch") &&
           json_object_size(json_object_get(decl, "allow")) == 0;
}

void batch_init(struct unit *unit, const json_t *decl)
{
    const json_t *batch = json_object_get(decl, "batch");
    json_int_t max = json_integer_value(json_object_get(batch, "max"));

    unit->is_by_lane = unit_is_grouped(decl, unit->rt->mode);
    unit->is_batched = json_is_object(batch) || unit->is_by_lane;
    unit->batch_max = max > 0 ? (int)max : unit->is_by_lane ? SHARED_MOST : 1;
    unit->batch_now = unit->batch_max;
    unit->batch_wait_ms = json_integer_value(json_object_get(batch, "wait_ms"));
    ev_init(&unit->batch_timer, on_batch_timer);
    unit->batch_timer.data = unit;
}
