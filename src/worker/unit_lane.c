/*
 * Lanes of a unit, and the ends of deliveries: both belong together, for the
 * verdict decides what becomes of the lane.
 */
#include "worker/unit_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/mem.h"

#include <stdlib.h>

/* --- lanes -------------------------------------------------------------------------- */

static struct lane **bucket_of(struct unit *unit, uint64_t id)
{
    if (!unit->lanes)
        unit->lanes = xcalloc(LANE_BUCKETS, sizeof(*unit->lanes));
    return &unit->lanes[(id ^ id >> 32) % LANE_BUCKETS];
}

struct lane *lane_find(struct unit *unit, uint64_t id)
{
    struct lane *lane;

    if (!unit->n_lanes)
        return NULL;
    for (lane = *bucket_of(unit, id); lane && lane->id != id; lane = lane->next)
        ;
    return lane;
}

struct lane *lane_make(struct unit *unit, uint64_t id)
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

void lane_remove(struct unit *unit, struct lane *lane)
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

void mark_started(struct runtime *rt, uint32_t slot, bool on)
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

void mark_running(struct runtime *rt, uint32_t slot_plus_1, uint32_t n)
{
    if (!rt->control)
        return;
    atomic_store_explicit(&rt->control->running_count, n, memory_order_relaxed);
    atomic_store_explicit(&rt->control->running, slot_plus_1,
                          memory_order_release);
}

void mark_alive(struct runtime *rt)
{
    rt->now_us = clock_mono_us();
    if (rt->control)
        atomic_store_explicit(&rt->control->busy_since_us, rt->now_us,
                              memory_order_relaxed);
}

void begin_event(struct unit *unit, struct event *ev)
{
    ev->has_begun = true;
    ev->started_us = unit->rt->now_us;
    mark_started(unit->rt, ev->d.slot, true);
}

/* A run that failed because a breaker let a call not pass is nobody's attempt,
 * and need not come before the breaker may let one pass. Not all of them at that
 * very moment. */
static void wait_for_breaker(const struct unit *unit, const struct task *task,
                             struct verdict_msg *v)
{
    int64_t wait_ms;

    if (!task || !task->refused_until_us || v->verdict != VERDICT_RETRY ||
        v->class == CLASS_LIMIT)
        return;
    wait_ms = (task->refused_until_us - unit->rt->now_us) / 1000;
    wait_ms = wait_ms > 0 ? wait_ms + 1 : 1;
    wait_ms += (int64_t)(random_u64() % (uint64_t)(wait_ms / 4 + 50));
    v->verdict = VERDICT_SNOOZE;
    if (v->after_ms < wait_ms)
        v->after_ms = wait_ms;
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

    wait_for_breaker(unit, task, &v);
    if (ev->has_begun)
        v.duration_us = (uint32_t)(unit->rt->now_us - ev->started_us);
    unit->rt->verdict(unit->rt, &v, task);
    if (ev->has_begun)
        mark_started(unit->rt, ev->d.slot, false);
}

void give_back(struct unit *unit, struct event *ev)
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
        give_back(unit, CONTAINER_OF(lane->waiting.next, struct event, link));
    list_foreach_safe(at, &unit->waiting) {
        struct event *ev = CONTAINER_OF(at, struct event, link);

        if (ev->d.lane != lane->id)
            continue;
        take_waiting(unit, ev);
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

void queue_event(struct unit *unit, struct event *ev)
{
    list_append(&unit->waiting, &ev->link);
    unit->n_waiting++;
    unit->n_ready += unit->is_batched && !is_strand_busy(unit, ev);
}

void take_waiting(struct unit *unit, struct event *ev)
{
    CHECK(unit->n_waiting > 0);
    list_remove(&ev->link);
    unit->n_waiting--;
    unit->n_ready -= unit->is_batched && !is_strand_busy(unit, ev);
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
void end_event(struct unit *unit, struct event *ev, const struct outcome *o,
               struct task *task)
{
    uint64_t lane = ev->d.lane;

    send_verdict(unit, ev, o, task);
    if (unit->n_lanes || !keeps_lane_whole(o->verdict))
        lane_ended(unit, lane, o->verdict);
    event_put(unit->rt, ev);
}

/* The first that waits in the unit. */
struct event *unqueue_event(struct unit *unit)
{
    struct event *ev = CONTAINER_OF(unit->waiting.next, struct event, link);

    take_waiting(unit, ev);
    return ev;
}

void lanes_free(struct unit *unit)
{
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
}
