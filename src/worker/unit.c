#include "worker/unit.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "worker/watchdog.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const char component[] = "handler";

#define LANE_BUCKETS 512

/* Exists while a delivery of it runs or waits, or while it is broken. */
struct lane {
    struct lane *next; /* in its bucket */
    uint64_t id;
    bool is_busy, is_broken;
    struct list waiting; /* events behind the one that runs */
    uint64_t broken_at;  /* bytes written up when the verdict was */
    uint64_t read_until; /* bytes down that must be read before forgetting */
};

struct unit {
    struct runtime *rt;
    uint32_t id;
    json_t *bundle;
    struct vm *vm;
    enum unit_state state;
    struct err trouble; /* of UNIT_BROKEN */
    void (*on_loaded)(struct unit *unit, const struct err *err);
    void (*on_unloaded)(struct unit *unit);

    int running;     /* deliveries inside tasks; a batch counts as one */
    int concurrency;
    struct list waiting; /* events that may run as soon as there is room */
    int n_waiting;
    const struct delivery_msg *offered;

    struct lane **lanes; /* buckets, or NULL before the first */
    int n_lanes;

    bool is_batched;
    int batch_max, batch_now; /* the second shrinks after limits */
    int64_t batch_wait_ms;
    bool is_batch_running;
    ev_timer batch_timer;
    ev_timer unload_timer;
};

static void start_waiting(struct unit *unit);
static void replace_vm(struct unit *unit);

/* --- lanes -------------------------------------------------------------------------- */

static struct lane **bucket_of(struct unit *unit, uint64_t id)
{
    if (!unit->lanes)
        unit->lanes = xcalloc(LANE_BUCKETS, sizeof(*unit->lanes));
    return &unit->lanes[(id ^ id >> 32) % LANE_BUCKETS];
}

static struct lane *lane_find(struct unit *unit, uint64_t id)
{
    struct lane *lane;

    if (!unit->n_lanes)
        return NULL;
    for (lane = *bucket_of(unit, id); lane && lane->id != id; lane = lane->next)
        ;
    return lane;
}

static struct lane *lane_make(struct unit *unit, uint64_t id)
{
    struct lane *lane = lane_find(unit, id), **bucket;

    if (lane)
        return lane;
    bucket = bucket_of(unit, id);
    lane = xcalloc(1, sizeof(*lane));
    lane->id = id;
    list_init(&lane->waiting);
    lane->next = *bucket;
    *bucket = lane;
    unit->n_lanes++;
    return lane;
}

static void lane_remove(struct unit *unit, struct lane *lane)
{
    struct lane **at = bucket_of(unit, lane->id);

    CHECK(list_is_empty(&lane->waiting));
    while (*at != lane)
        at = &(*at)->next;
    *at = lane->next;
    unit->n_lanes--;
    free(lane);
}

static uint64_t bytes_up(const struct unit *unit)
{
    const struct channel_control *control = unit->rt->control;

    return control ? atomic_load(&control->up.head) : 0;
}

void unit_sweep(struct unit *unit, uint64_t host_read, uint64_t host_wrote,
                uint64_t we_read)
{
    if (!unit->n_lanes)
        return;
    for (int i = 0; i < LANE_BUCKETS; i++)
        for (struct lane *lane = unit->lanes[i], *next; lane; lane = next) {
            next = lane->next;
            if (!lane->is_broken || lane->is_busy ||
                host_read <= lane->broken_at)
                continue;
            if (!lane->read_until)
                lane->read_until = host_wrote + 1;
            else if (we_read + 1 >= lane->read_until)
                lane_remove(unit, lane);
        }
}

/* --- verdicts ------------------------------------------------------------------------- */

static void mark_started(struct runtime *rt, uint32_t slot, bool on)
{
    _Atomic uint64_t *word;
    uint64_t bits;

    if (!rt->control || slot >= CHANNEL_SLOTS)
        return;
    word = &rt->control->started[slot / 64];
    bits = atomic_load_explicit(word, memory_order_relaxed);
    if (on)
        bits |= (uint64_t)1 << (slot % 64);
    else
        bits &= ~((uint64_t)1 << (slot % 64));
    atomic_store_explicit(word, bits, memory_order_relaxed);
}

static void mark_running(struct runtime *rt, uint32_t slot_plus_1, uint32_t n)
{
    if (!rt->control)
        return;
    atomic_store_explicit(&rt->control->running_count, n,
                          memory_order_relaxed);
    atomic_store_explicit(&rt->control->running, slot_plus_1,
                          memory_order_release);
}

static void mark_alive(struct runtime *rt)
{
    rt->now_us = clock_mono_us();
    if (rt->control)
        atomic_store_explicit(&rt->control->busy_since_us, rt->now_us,
                              memory_order_relaxed);
}

static void begin_event(struct unit *unit, struct event *ev)
{
    ev->has_begun = true;
    ev->started_us = unit->rt->now_us;
    mark_started(unit->rt, ev->d.slot, true);
}

static void send_verdict(struct unit *unit, struct event *ev,
                         const struct outcome *o, struct task *task)
{
    struct verdict_msg v = {
        .slot = ev->d.slot,
        .generation = ev->d.generation,
        .verdict = o->verdict,
        .class = o->class,
        .is_duplicate = o->is_duplicate,
        .after_ms = o->after_ms,
        .code = slice_of(o->code),
        .reason = slice_of(o->reason),
        .traceback = slice_of(o->traceback),
    };

    if (ev->has_begun)
        v.duration_us = (uint32_t)(unit->rt->now_us - ev->started_us);
    unit->rt->verdict(unit->rt, &v, task);
    if (ev->has_begun)
        mark_started(unit->rt, ev->d.slot, false);
}

static void give_back(struct unit *unit, struct event *ev)
{
    struct outcome o = {.verdict = VERDICT_BACK, .after_ms = -1};

    list_remove(&ev->link);
    send_verdict(unit, ev, &o, NULL);
    event_put(unit->rt, ev);
}

static bool keeps_lane_whole(enum verdict verdict)
{
    return verdict == VERDICT_ACK || verdict == VERDICT_SKIP;
}

/* Deliveries of a broken lane that wait anywhere in this unit. */
static void give_back_lane(struct unit *unit, struct lane *lane)
{
    while (!list_is_empty(&lane->waiting))
        give_back(unit,
                  CONTAINER_OF(lane->waiting.next, struct event, link));
    list_foreach_safe(at, &unit->waiting) {
        struct event *ev = CONTAINER_OF(at, struct event, link);

        if (ev->d.lane != lane->id)
            continue;
        unit->n_waiting--;
        give_back(unit, ev);
    }
}

static void break_lane(struct unit *unit, uint64_t id)
{
    struct lane *lane = lane_make(unit, id);

    lane->is_busy = false;
    lane->is_broken = true;
    lane->broken_at = bytes_up(unit);
    lane->read_until = 0;
    give_back_lane(unit, lane);
}

static void queue_event(struct unit *unit, struct event *ev)
{
    list_append(&unit->waiting, &ev->link);
    unit->n_waiting++;
}

static void lane_ended(struct unit *unit, uint64_t id, enum verdict verdict)
{
    struct lane *lane;
    struct event *ev;

    if (!keeps_lane_whole(verdict)) {
        break_lane(unit, id);
        return;
    }
    lane = lane_find(unit, id);
    if (!lane || !lane->is_busy)
        return;
    if (list_is_empty(&lane->waiting)) {
        lane_remove(unit, lane);
        return;
    }
    ev = CONTAINER_OF(lane->waiting.next, struct event, link);
    list_remove(&ev->link);
    queue_event(unit, ev); /* the lane stays busy */
}

/* A delivery has ended: tell the host, let its lane go on, forget the event. */
static void end_event(struct unit *unit, struct event *ev,
                      const struct outcome *o, struct task *task)
{
    uint64_t lane = ev->d.lane;

    send_verdict(unit, ev, o, task);
    if (unit->n_lanes || !keeps_lane_whole(o->verdict))
        lane_ended(unit, lane, o->verdict);
    event_put(unit->rt, ev);
}

/* --- one delivery at a time -------------------------------------------------------------- */

static bool may_serve(const struct unit *unit, const struct vm *vm)
{
    return unit->state == UNIT_READY && unit->vm == vm && !vm->killed &&
           !vm->out_of_memory;
}

/* What a serve task runs next, or NULL. */
static struct event *next_event(struct unit *unit, struct task *task)
{
    struct delivery_msg d;
    struct event *ev;

    if (unit->offered) {
        ev = event_take(unit->rt, unit->offered);
        unit->offered = NULL;
        return ev;
    }
    if (!may_serve(unit, task->vm))
        return NULL;
    if (unit->n_waiting) {
        if (unit->running >= unit->concurrency)
            return NULL;
        ev = CONTAINER_OF(unit->waiting.next, struct event, link);
        list_remove(&ev->link);
        unit->n_waiting--;
        return ev;
    }
    if (unit->n_lanes || unit->running >= unit->concurrency ||
        !unit->rt->next || !unit->rt->next(unit->rt, unit->id, &d))
        return NULL;
    return event_take(unit->rt, &d);
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

static void undecodable(const struct event *ev, struct outcome *o)
{
    o->verdict = VERDICT_DEAD;
    o->class = CLASS_UNDECODABLE;
    o->after_ms = -1;
    snprintf(o->code, sizeof(o->code), "json");
    free(o->reason);
    o->reason = xstrdup(ev->trouble);
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
        undecodable(task->event, &o);
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
            undecodable(task->event, failure);
        deliver_outcome(task, failure);
    }
    if (unit->vm == task->vm &&
        (task->vm->killed || task->vm->out_of_memory))
        replace_vm(unit);
}

/* The delivery waits: its lane is taken until it ends. */
static void on_serve_suspend(struct task *task)
{
    struct unit *unit = task->arg;

    if (task->event)
        lane_make(unit, task->event->d.lane)->is_busy = true;
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
}

/* --- batches --------------------------------------------------------------------------------- */

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

    luaL_argcheck(L, task && i >= 0 && i < task->batch_len && task->batch[i],
                  1, "no such event in this batch");
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
        struct event *ev =
            CONTAINER_OF(unit->waiting.next, struct event, link);

        list_remove(&ev->link);
        unit->n_waiting--;
        begin_event(unit, ev);
        task->batch[i] = ev;
    }
}

static void fail_batch(struct task *task, const char *why)
{
    struct outcome o = {.verdict = VERDICT_RETRY, .class = CLASS_BUG,
                        .after_ms = -1};

    if (task->vm->killed || task->vm->out_of_memory)
        outcome_limit(task->vm, &o);
    else
        o.reason = xstrdup(why);
    task_end(task, &o);
    outcome_fini(&o);
}

static void start_batch(struct unit *unit)
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

static bool is_batch_due(const struct unit *unit)
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
static void wait_for_company(struct unit *unit)
{
    if (!unit->batch_wait_ms || unit->is_batch_running ||
        ev_is_active(&unit->batch_timer))
        return;
    ev_timer_set(&unit->batch_timer, (double)unit->batch_wait_ms / 1000, 0);
    ev_timer_start(unit->rt->loop, &unit->batch_timer);
}

/* --- what arrives -------------------------------------------------------------------------------- */

static void fail_waiting(struct unit *unit)
{
    while (unit->n_waiting) {
        struct outcome o = {.verdict = VERDICT_RETRY, .class = CLASS_BUG,
                            .after_ms = -1, .reason = unit->trouble.msg};
        struct event *ev =
            CONTAINER_OF(unit->waiting.next, struct event, link);

        list_remove(&ev->link);
        unit->n_waiting--;
        end_event(unit, ev, &o, NULL);
    }
}

static void start_waiting(struct unit *unit)
{
    if (unit->state == UNIT_BROKEN)
        fail_waiting(unit);
    while (unit->state == UNIT_READY && unit->is_batched &&
           is_batch_due(unit))
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
static bool lane_takes(struct unit *unit, const struct delivery_msg *d)
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
    ev = event_take(unit->rt, d);
    list_append(&lane->waiting, &ev->link);
    if (lane->is_broken)
        give_back(unit, ev);
    else
        event_keep(ev);
    return true;
}

static void wait_in_unit(struct unit *unit, const struct delivery_msg *d)
{
    struct event *ev = event_take(unit->rt, d);

    event_keep(ev);
    queue_event(unit, ev);
    if (!unit->is_batched)
        lane_make(unit, d->lane)->is_busy = true;
}

void unit_offer(struct unit *unit, const struct delivery_msg *d)
{
    if (unit->n_lanes && lane_takes(unit, d))
        return;
    if (unit->is_batched) {
        wait_in_unit(unit, d);
        wait_for_company(unit);
        if (unit->n_waiting >= unit->batch_now)
            start_waiting(unit);
        return;
    }
    if (unit->state != UNIT_READY || unit->n_waiting ||
        unit->running >= unit->concurrency) {
        wait_in_unit(unit, d);
        start_waiting(unit);
        return;
    }
    unit->offered = d;
    start_serving(unit);
}

/* (i|nil) → id, source, partition, epoch, lane */
int unit_l_place(lua_State *L)
{
    struct vm *vm = vm_of(L);
    struct task *task = vm->task;
    struct event *ev = task ? task->event : NULL;
    struct slice id;
    char lane[24];

    if (task && lua_isnumber(L, 1) && lua_tointeger(L, 1) >= 1 &&
        lua_tointeger(L, 1) <= task->batch_len)
        ev = task->batch[lua_tointeger(L, 1) - 1];
    if (!ev)
        return luaL_error(L, "there is no event now");
    id = event_fact(ev, vm->rt, FACT_ID);
    if (id.ptr)
        lua_pushlstring(L, id.ptr, id.len);
    else
        lua_pushnil(L);
    lua_pushstring(L, source_kind_name(ev->d.source));
    lua_pushlstring(L, ev->d.partition.ptr ? ev->d.partition.ptr : "",
                    ev->d.partition.len);
    lua_pushnumber(L, (double)ev->d.epoch);
    snprintf(lane, sizeof(lane), "%" PRIx64, ev->d.lane);
    lua_pushstring(L, lane);
    return 5;
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

static void replace_vm(struct unit *unit)
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
    const json_t *batch = json_object_get(decl, "batch");

    unit->rt = rt;
    unit->id = id;
    unit->bundle = json_incref(bundle);
    unit->on_loaded = on_loaded;
    list_init(&unit->waiting);
    unit->concurrency = (int)number(bundle, "concurrency_here",
                                    number(decl, "concurrency", 16));
    if (unit->concurrency < 1)
        unit->concurrency = 1;
    unit->is_batched = json_is_object(batch);
    unit->batch_max = (int)number(batch, "max", 1);
    unit->batch_wait_ms = number(batch, "wait_ms", 0);
    unit->batch_now = unit->batch_max;
    ev_init(&unit->batch_timer, on_batch_timer);
    unit->batch_timer.data = unit;
    ev_init(&unit->unload_timer, NULL);
    load(unit);
    return unit;
}

void unit_free(struct unit *unit)
{
    ev_timer_stop(unit->rt->loop, &unit->batch_timer);
    ev_timer_stop(unit->rt->loop, &unit->unload_timer);
    if (unit->vm)
        vm_retire(unit->vm);
    while (unit->n_waiting) {
        struct event *ev =
            CONTAINER_OF(unit->waiting.next, struct event, link);

        list_remove(&ev->link);
        unit->n_waiting--;
        event_put(unit->rt, ev);
    }
    for (int i = 0; unit->lanes && i < LANE_BUCKETS; i++)
        while (unit->lanes[i]) {
            struct lane *lane = unit->lanes[i];

            while (!list_is_empty(&lane->waiting)) {
                struct event *ev =
                    CONTAINER_OF(lane->waiting.next, struct event, link);

                list_remove(&ev->link);
                event_put(unit->rt, ev);
            }
            lane_remove(unit, lane);
        }
    free(unit->lanes);
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
    const char *name =
        json_string_value(json_object_get(unit->bundle, "name"));

    return name ? name : "?";
}

struct vm *unit_vm(const struct unit *unit)
{
    return unit->vm;
}
