/*
 * An event's life (read this first, then dispatch.c and window.c):
 *
 *   offer    the source hands an event over; the router names its handlers;
 *            each gets a delivery, which joins the lane of its key
 *   send     dispatch.c gives ready lanes' deliveries to the workers
 *   verdict  ack and skip settle; retry waits in its lane; dead is stored
 *            first and settles then
 *   settle   the delivery leaves its lane and its handler's cursor: that is
 *            what moves positions (window.c). The last one of an event gives
 *            the event's memory back to the source
 *
 * A delivery that failed keeps its place at the head of its lane, so what
 * follows it waits while other lanes go on.
 */
#include "core/pipeline.h"

#include "base/check.h"
#include "base/digest.h"
#include "base/hash.h"
#include "base/scan.h"
#include "core/pipeline_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STRIKES_MAX    3
#define SNOOZE_MS      1000 /* where a snooze names no time */
#define OVERHEAD_BYTES 64   /* of malloc and lists, per event */
#define DELAY_MAX_MS   INT64_C(3153600000000) /* a century: no overflow */

struct pipeline *pipeline_new(const struct pipeline_config *config,
                              const struct pipeline_ops *ops, void *ctx,
                              struct metrics *metrics)
{
    struct pipeline *pl = xcalloc(1, sizeof(*pl));

    CHECK(config->n_workers >= 1 && config->n_workers < PIPELINE_WORKERS_MAX);
    pl->config = *config;
    pl->ops = ops;
    pl->ctx = ctx;
    pl->metrics = metrics;
    pl->router = router_new();
    list_init(&pl->partitions);
    list_init(&pl->spare_ready);
    pool_init(&pl->events, sizeof(struct event));
    pool_init(&pl->deliveries, sizeof(struct delivery));
    lanes_init(&pl->lanes);
    pl->scan = scan_new();
    pl->latency = metrics_get(metrics, M_DISPATCH_LATENCY);
    pl->latency_s = metrics_get(metrics, M_DISPATCH_LATENCY_S);
    for (int i = 0; i < SOURCE_KIND_COUNT; i++)
        pl->received[i] = metrics_get(metrics, M_RECEIVED,
                                      source_kind_name((enum source_kind)i));
    pipeline_handler(pl, "");
    return pl;
}

/* Whoever stores them hears of no answer any more. */
static void drop_stored(struct pipeline *pl, struct partition *p)
{
    for (size_t i = 0; i < p->n_cursors; i++)
        list_foreach_safe(link, &p->cursors[i].unsettled) {
            struct delivery *d = CONTAINER_OF(link, struct delivery, in_cursor);

            d->lane->storing--;
            p->inflight--;
            delivery_drop(pl, d);
        }
    list_foreach_safe(link, &p->parked) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_cursor);

        d->lane->storing--;
        p->inflight--;
        delivery_drop(pl, d);
    }
}

void pipeline_free(struct pipeline *pl)
{
    if (!pl)
        return;
    while (!list_is_empty(&pl->partitions)) {
        struct partition *p =
            CONTAINER_OF(pl->partitions.next, struct partition, link);

        pipeline_abandon(p); /* what is left then is being stored */
        drop_stored(pl, p);
        pipeline_close(p);
    }
    for (size_t i = 0; i < pl->n_handlers; i++)
        handler_free(pl->handlers[i]);
    for (int i = 0; i < PIPELINE_WORKERS_MAX; i++)
        free(pl->workers[i]);
    free(pl->handlers);
    router_free(pl->router);
    scan_free(pl->scan);
    timers_fini(&pl->timers);
    lanes_fini(&pl->lanes);
    pool_fini(&pl->deliveries);
    pool_fini(&pl->events);
    free(pl);
}

/* --- time ------------------------------------------------------------------ */

void pipeline_tick(struct pipeline *pl, int64_t now_us, int64_t wall_us)
{
    struct delivery *d;

    pl->now_us = now_us;
    pl->wall_us = wall_us;
    while ((d = timers_take(&pl->timers, now_us))) {
        delivery_set_state(d, DELIVERY_WAITING, pl->counts);
        lane_wake(pl, d->lane);
    }
    if (pl->has_rates)
        rates_tick(pl);
    window_tick(pl);
}

int64_t pipeline_next_tick(const struct pipeline *pl)
{
    return timers_next(&pl->timers);
}

/* --- handlers -------------------------------------------------------------- */

struct handler *pipeline_handler(struct pipeline *pl, const char *name)
{
    struct handler *h;

    for (size_t i = 0; i < pl->n_handlers; i++)
        if (strcmp(pl->handlers[i]->name, name) == 0)
            return pl->handlers[i];
    h = handler_new(name, pl->metrics);
    h->index = (uint32_t)pl->n_handlers;
    pl->handlers =
        xrealloc(pl->handlers, (pl->n_handlers + 1) * sizeof(struct handler *));
    pl->handlers[pl->n_handlers++] = h;
    list_foreach(link, &pl->partitions)
        partitions_add_cursor(pl, CONTAINER_OF(link, struct partition, link));
    router_set(pl->router, pl->handlers, pl->n_handlers);
    return h;
}

size_t pipeline_handlers(const struct pipeline *pl,
                         struct handler *const **handlers)
{
    *handlers = pl->handlers;
    return pl->n_handlers;
}

static uint32_t inflight_max(const struct handler_spec *spec)
{
    uint32_t most = (uint32_t)spec->batch_max * HANDLER_BATCHES;

    if (most > HANDLER_INFLIGHT_MOST)
        return HANDLER_INFLIGHT_MOST;
    return most > HANDLER_INFLIGHT_MAX ? most : HANDLER_INFLIGHT_MAX;
}

void pipeline_switch(struct pipeline *pl, struct handler *h,
                     struct handler_spec *spec, uint32_t vm)
{
    if (h->spec != spec)
        handler_spec_free(h->spec);
    h->spec = spec;
    h->vm = vm;
    h->is_removed = false;
    h->quarantined_until_us = 0; /* other code: judged afresh */
    h->strikes = 0;
    h->inflight_max = inflight_max(spec);
    h->is_rated = spec->rate.interval_ns > 0;
    pl->has_rates |= h->is_rated;
    if (h->is_rated)
        bucket_fit(&h->bucket, &spec->rate, pl->now_us);
    router_set(pl->router, pl->handlers, pl->n_handlers);
    handler_unblock(pl, h);
}

void pipeline_flags(struct pipeline *pl, const struct flags *flags, bool held)
{
    pl->flags = flags;
    pl->is_held = held;
    pl->has_partial_flags = false;
    for (size_t i = 0; flags && i < flags->len; i++)
        if (flags_get(flags, flags->at[i].name, NULL).percent < 100)
            pl->has_partial_flags = true;
    if (!held)
        pipeline_pump_all(pl);
}

/* --- events ---------------------------------------------------------------- */

struct event *pipeline_event_new(struct pipeline *pl, struct partition *p)
{
    struct event *ev = pool_take(&pl->events);

    memset(ev, 0, sizeof(*ev));
    list_init(&ev->deliveries);
    ev->partition = p;
    ev->ops = p->ops;
    return ev;
}

/* One delivery less (or the routing is over); the last one lets it go. */
void event_done_with(struct pipeline *pl, struct event *ev)
{
    CHECK(ev->pending > 0);
    if (--ev->pending > 0) {
        window_review(pl, ev);
        return;
    }
    ev->ops->release(ev);
    free(ev->undecodable);
    free(ev->only_handler);
    window_left(pl, ev);
    pool_put(&pl->events, ev);
}

/* A handler's own key, such as payload.phone. What does not parse has none:
 * the handler will say so when it touches the payload. */
static bool key_of_body(struct pipeline *pl, const struct event *ev,
                        const char *path, struct slice *key)
{
    char inner[256];
    struct err err;

    if (strncmp(path, "payload.", 8) != 0)
        return false;
    path += 8;
    if (ev->form == BODY_NATIVE || ev->form == BODY_CLOUDEVENTS) {
        snprintf(inner, sizeof(inner), "%s.%s",
                 ev->form == BODY_NATIVE ? "payload" : "data", path);
        path = inner;
    }
    return ev->form != BODY_BINARY &&
           scan_path(pl->scan, ev->body, path, key, &err) && key->ptr;
}

/* The ordering key's hash; an event without an aggregate id keeps the order
 * of its record key, and without that none at all (it is alone). */
static uint64_t key_hash(struct pipeline *pl, const struct event *ev,
                         const struct handler *h, bool *is_alone)
{
    struct slice key = ev->facts[FACT_AGGREGATE_ID], found;
    const char *path;

    *is_alone = h->spec->ordering == ORDER_NONE;
    switch (h->spec->ordering) {
    case ORDER_PARTITION: return 0;
    case ORDER_NONE: return hash_mix((uint64_t)ev->place, 1);
    case ORDER_KEY: break;
    }
    path = handler_key(h, ev->facts[FACT_TYPE]);
    if (path && key_of_body(pl, ev, path, &found))
        key = found;
    if (!key.ptr)
        key = ev->key;
    *is_alone = !key.ptr;
    if (!key.ptr)
        return hash_mix((uint64_t)ev->place, 1);
    return hash_bytes(key.ptr, key.len);
}

static struct lane *lane_for(struct pipeline *pl, const struct event *ev,
                             struct handler *h)
{
    bool is_alone = false;
    uint64_t key = h->spec ? key_hash(pl, ev, h, &is_alone) : 0;
    uint64_t id = hash_mix(key, h->hash);
    struct lane *lane;

    /* With a key of its own choice the handler wants exclusion over all
     * partitions; else a lane belongs to one. */
    if (!h->spec || h->spec->n_keys == 0)
        id = hash_mix(id, ev->partition->hash);
    lane = lanes_get(&pl->lanes, id, key, h);
    lane->is_alone = is_alone;
    return lane;
}

struct delivery *delivery_new(struct pipeline *pl, struct event *ev,
                              struct handler *h)
{
    struct delivery *d = pool_take(&pl->deliveries);
    struct cursor *c = &ev->partition->cursors[h->index];

    memset(d, 0, sizeof(*d));
    d->event = ev;
    d->handler = h;
    d->attempt = 1;
    d->lane = lane_for(pl, ev, h);
    d->state = DELIVERY_WAITING;
    pl->counts[DELIVERY_WAITING]++;
    d->is_aside = c->mode != CURSOR_ATTACHED || ev->parked_id;
    ev->live += !d->is_aside;
    ev->pending++;
    list_append(&ev->deliveries, &d->of_event);
    cursor_took(c, d);
    list_append(&d->lane->deliveries, &d->in_lane);
    if (!d->lane->head)
        d->lane->head = d;
    series_add(h->accepted, 1);
    return d;
}

/* The first delivery that a worker could take. */
void lane_rewind(struct lane *lane)
{
    lane->is_broken = false;
    lane->head = NULL;
    list_foreach(link, &lane->deliveries) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_lane);

        if (d->state != DELIVERY_STORING) {
            lane->head = d;
            return;
        }
    }
}

/* After a verdict: gone, on with what follows, or waiting for the rest. */
void lane_settle(struct pipeline *pl, struct lane *lane)
{
    if (lane->pins > 0)
        return;
    if ((lane->is_broken || !lane->head) && lane->inflight == 0)
        lane_rewind(lane);
    if (pl->has_blocked && lane->inflight == 0 && lane->head)
        parked_clear(pl, lane);
    if (list_is_empty(&lane->deliveries)) {
        lanes_drop(&pl->lanes, lane);
        return;
    }
    lane_wake(pl, lane);
}

/* Out of its lane; `next` in the lane moves up. */
static void leave_lane(struct pipeline *pl, struct delivery *d)
{
    struct lane *lane = d->lane;

    if (lane->head == d) {
        struct list *next = d->in_lane.next;

        lane->head = next == &lane->deliveries
                         ? NULL
                         : CONTAINER_OF(next, struct delivery, in_lane);
    }
    list_remove(&d->in_lane);
    lane_settle(pl, lane);
}

void delivery_forget(struct pipeline *pl, struct delivery *d)
{
    struct event *ev = d->event;

    delivery_set_state(d, DELIVERY_SETTLED, pl->counts);
    list_remove(&d->of_event);
    ev->live -= !d->is_aside;
    cursor_forgets(&ev->partition->cursors[d->handler->index], d);
    leave_lane(pl, d);
    delivery_forget_failures(d);
    pool_put(&pl->deliveries, d);
    event_done_with(pl, ev);
}

/* The one way a delivery ends: counted, off its cursor, its event one less. */
void delivery_settle(struct pipeline *pl, struct delivery *d, enum verdict how)
{
    struct event *ev = d->event;

    if (d->handler->settled[how])
        series_add(d->handler->settled[how], 1);
    if (how == VERDICT_DEAD)
        series_add(d->handler->dead, 1);
    if (ev->ops->settled)
        ev->ops->settled(ev, how, d->failures ? d->failures->error : "");
    cursor_settled(d);
    delivery_forget(pl, d);
}

/* Its partition closes, or its handler leaves: the cursor has noted the place
 * as not settled, the event comes again. */
void delivery_drop(struct pipeline *pl, struct delivery *d)
{
    if (d->state == DELIVERY_BACKOFF)
        timers_remove(&pl->timers, d);
    series_add(d->handler->given_back, 1);
    delivery_forget(pl, d);
}

/* Out of the way of what runs, until its outcome is in the store. */
void delivery_store(struct pipeline *pl, struct delivery *d)
{
    delivery_set_state(d, DELIVERY_STORING, pl->counts);
    d->lane->storing++;
    d->event->partition->inflight++;
    if (d->lane->head == d) { /* it was never sent */
        struct list *next = d->in_lane.next;

        d->lane->head = next == &d->lane->deliveries
                            ? NULL
                            : CONTAINER_OF(next, struct delivery, in_lane);
    }
}

static void store(struct pipeline *pl, struct delivery *d, enum verdict how)
{
    d->settling = (uint8_t)how;
    d->is_letter = how == VERDICT_DEAD;
    d->lane->letters += d->is_letter;
    delivery_store(pl, d);
    pl->ops->store(pl->ctx, d, how);
}

void pipeline_stored(struct pipeline *pl, struct delivery *d)
{
    struct partition *p = d->event->partition;

    CHECK(d->state == DELIVERY_STORING);
    d->lane->storing--;
    d->lane->letters -= d->is_letter;
    p->inflight--;
    if (d->settling == VERDICT_DEAD && d->handler->spec &&
        d->handler->spec->on_dead == ON_DEAD_STOP)
        pl->ops->stopped(pl->ctx, d->handler, d);
    delivery_settle(pl, d, (enum verdict)d->settling);
    partition_may_be_quiet(pl, p);
}

/* It ends here without a word: who has the partition decides on it. */
void pipeline_not_stored(struct pipeline *pl, struct delivery *d)
{
    pl->ops->fenced(pl->ctx, d->event->partition);
    d->settling = VERDICT_FENCED;
    pipeline_stored(pl, d);
}

/* Not to a worker but to the store: parked or skipped. */
static bool goes_elsewhere(struct pipeline *pl, struct delivery *d)
{
    char flag[FLAG_NAME_SIZE], *why;

    if (parked_instead(pl, d))
        return true;
    if (flags_say(pl, d, flag) != PART_SKIP)
        return false;
    why = xasprintf("flag %s", flag);
    delivery_failed(d, CLASS_TRANSIENT, (struct slice){0}, slice_of(why),
                    (struct slice){0}, pl->wall_us);
    free(why);
    series_add(d->handler->attempts[VERDICT_SKIP], 1);
    store(pl, d, VERDICT_SKIP);
    return true;
}

static void deliver(struct pipeline *pl, struct event *ev, struct handler *h)
{
    struct delivery *d;

    if (!cursor_accepts(ev->partition, h, ev))
        return;
    d = delivery_new(pl, ev, h);
    if ((pl->has_partial_flags || pl->has_blocked) && goes_elsewhere(pl, d))
        return;
    lane_wake(pl, d->lane);
}

/* Read again for one handler it was stored before, unless nobody ever came by:
 * storing it twice does no harm. */
static void deliver_undecodable(struct pipeline *pl, struct event *ev)
{
    struct handler *h = pl->handlers[0];
    struct delivery *d;

    if (!cursor_accepts(ev->partition, h, ev) ||
        (ev->reader && ev->place >= ev->partition->began))
        return;
    d = delivery_new(pl, ev, h);
    delivery_failed(d, CLASS_UNDECODABLE, (struct slice){0},
                    slice_of(ev->undecodable), (struct slice){0}, pl->wall_us);
    series_add(h->errors[CLASS_UNDECODABLE], 1);
    store(pl, d, VERDICT_DEAD);
}

/* What no worker's ring would take. Sources bound the body only. */
static void check_size(const struct pipeline *pl, struct event *ev)
{
    size_t size = ev->body.len;

    for (int i = 0; i < FACT_COUNT; i++)
        size += ev->facts[i].len;
    if (size > pl->config.event_bytes && !ev->undecodable)
        ev->undecodable = xasprintf("%zu bytes with id, type, metadata and "
                                    "headers are more than a worker takes "
                                    "(%zu)",
                                    size, pl->config.event_bytes);
}

static void route(struct pipeline *pl, struct event *ev)
{
    const struct route *to;

    check_size(pl, ev);
    if (ev->undecodable) {
        deliver_undecodable(pl, ev);
        return;
    }
    if (ev->only_handler) {
        deliver(pl, ev, pipeline_handler(pl, ev->only_handler));
        return;
    }
    if (ev->reader) {
        if (handler_wants(ev->reader, ev->facts[FACT_TYPE]))
            deliver(pl, ev, ev->reader);
        return;
    }
    to = router_match(pl->router, ev->facts[FACT_TYPE]);
    for (size_t i = 0; i < to->n; i++)
        deliver(pl, ev, to->handlers[i]);
}

/* It came with the partition's own reading, which so has passed its place. */
static void read_on(struct partition *p, const struct event *ev)
{
    series_add(p->pipeline->received[p->ops->kind], 1);
    if (p->next == POSITION_LATEST)
        pipeline_advance(p, ev->place); /* so this is where it stands */
    pipeline_advance(p, ev->place + 1);
}

void pipeline_offer(struct pipeline *pl, struct event *ev)
{
    struct partition *p = ev->partition;
    uint32_t extra;

    ev->pending = 1;
    ev->arrived_us = pl->now_us;
    ev->cost = (uint32_t)(sizeof(*ev) + OVERHEAD_BYTES + ev->body.len);
    window_taken(pl, ev);
    if (p->state == PARTITION_RUNNING && !p->is_closing) {
        if (ev->reader)
            ev->is_wanted = behind_takes(ev);
        else
            read_on(p, ev);
        route(pl, ev);
        extra = (ev->pending - 1) * (uint32_t)sizeof(struct delivery);
        ev->cost += extra;
        pl->cost += extra;
    }
    event_done_with(pl, ev);
}

/* --- verdicts --------------------------------------------------------------- */

/* Back into its lane, to go on at a later time. */
void delivery_wait(struct pipeline *pl, struct delivery *d, int64_t delay_ms)
{
    if (delay_ms > DELAY_MAX_MS) /* a worker wrote it */
        delay_ms = DELAY_MAX_MS;
    d->due_us = pl->now_us + delay_ms * 1000;
    delivery_set_state(d, DELIVERY_BACKOFF, pl->counts);
    timers_put(&pl->timers, d);
}

/* Otherwise than by an ack. A letter that is waited for keeps its lane. */
void delivery_end(struct pipeline *pl, struct delivery *d, enum verdict how)
{
    if (how == VERDICT_DEAD && d->handler->spec->on_dead == ON_DEAD_PARK &&
        !d->lane->is_alone && !d->event->only_handler) {
        pipeline_block(d->event->partition, d->handler, d->lane->id);
        d->lane->is_cut |= d->event->parked_id != 0;
    }
    store(pl, d, how);
}

/* On in its lane at a later time, or, when that is far away, in the store. */
static void go_on_later(struct pipeline *pl, struct delivery *d,
                        int64_t delay_ms)
{
    if (pl->config.park_after_ms > 0 && delay_ms >= pl->config.park_after_ms &&
        !d->is_suspect && !d->event->only_handler &&
        !d->handler->spec->in_kafka)
        park(pl, d, PARK_RETRY, delay_ms, "");
    else
        delivery_wait(pl, d, delay_ms);
}

/* A failed attempt: another one later, or a dead letter. */
void attempt_failed(struct pipeline *pl, struct delivery *d,
                    const struct verdict_msg *v)
{
    struct handler *h = d->handler;
    const struct retry_policy *policy = &h->spec->retry;
    int64_t delay = v->after_ms;

    delivery_failed(d, v->class, v->code, v->reason, v->traceback, pl->wall_us);
    series_add(h->attempts[v->verdict], 1);
    series_add(h->errors[v->class], 1);
    series_add(h->failures, 1);
    if (v->verdict == VERDICT_DEAD || d->attempt >= policy->max_attempts ||
        d->crashes >= STRIKES_MAX) {
        delivery_end(pl, d, VERDICT_DEAD);
        return;
    }
    if (delay < 0)
        delay = backoff_ms(policy, d->attempt, random_u64());
    d->attempt++;
    go_on_later(pl, d, delay);
}

/* Two transactions were in each other's way, and the database gave up on this
 * one. Nobody's fault, so no attempt; but what never gets through must not try
 * for ever. */
static void run_again(struct pipeline *pl, struct delivery *d,
                      const struct verdict_msg *v)
{
    static const struct retry_policy soon = {
        .base_ms = 10, .cap_ms = 1000, .jitter = true};
    int64_t delay = v->after_ms;

    if (d->agains >= DELIVERY_AGAINS_MAX) {
        struct verdict_msg failed = *v;

        failed.verdict = VERDICT_RETRY;
        d->agains = 0;
        attempt_failed(pl, d, &failed);
        return;
    }
    d->agains++;
    series_add(d->handler->again, 1);
    if (delay < 0)
        delay = backoff_ms(&soon, d->agains, random_u64());
    delivery_wait(pl, d, delay);
}

static void settle_well(struct pipeline *pl, struct delivery *d,
                        const struct verdict_msg *v)
{
    double latency = (double)(pl->now_us - d->event->arrived_us) / 1e6;

    series_add(d->handler->attempts[v->verdict], 1);
    if (v->is_duplicate)
        series_add(d->handler->duplicates, 1);
    series_observe(d->handler->duration, v->duration_us / 1e6, 1);
    series_observe(pl->latency, latency, 1);
    series_observe(pl->latency_s, latency, 1);
    if (v->verdict == VERDICT_SKIP) {
        delivery_failed(d, v->class, v->code, v->reason, (struct slice){0},
                        pl->wall_us);
        store(pl, d, VERDICT_SKIP);
        return;
    }
    delivery_settle(pl, d, VERDICT_ACK);
}

static void apply(struct pipeline *pl, struct delivery *d,
                  const struct verdict_msg *v)
{
    switch (v->verdict) {
    case VERDICT_ACK:
    case VERDICT_SKIP: settle_well(pl, d, v); return;
    case VERDICT_RETRY:
    case VERDICT_DEAD: attempt_failed(pl, d, v); return;
    case VERDICT_SNOOZE:
        go_on_later(pl, d, v->after_ms < 0 ? SNOOZE_MS : v->after_ms);
        return;
    case VERDICT_AGAIN: run_again(pl, d, v); return;
    case VERDICT_BACK:
        if (d->handler->is_rated) /* it did not run */
            bucket_give(&d->handler->bucket, &d->handler->spec->rate);
        delivery_set_state(d, DELIVERY_WAITING, pl->counts);
        return;
    case VERDICT_FENCED:
        delivery_wait(pl, d, SNOOZE_MS);
        pl->ops->fenced(pl->ctx, d->event->partition);
        return;
    case VERDICT_COUNT: break;
    }
    UNREACHABLE();
}

/* What was dropped while it ran: if it went well it need not come again. */
static void apply_dropped(struct pipeline *pl, struct delivery *d,
                          const struct verdict_msg *v)
{
    if (v->verdict == VERDICT_ACK)
        delivery_settle(pl, d, VERDICT_ACK);
    else
        delivery_drop(pl, d);
}

static struct delivery *delivery_at(const struct pipeline *pl, unsigned worker,
                                    uint32_t slot, uint32_t generation)
{
    const struct worker_slots *w = pl->workers[worker];

    return w && slot < CHANNEL_SLOTS && w->generation[slot] == generation
               ? w->at[slot]
               : NULL;
}

const struct delivery *pipeline_running(const struct pipeline *pl,
                                        unsigned worker, uint32_t slot,
                                        uint32_t generation)
{
    return delivery_at(pl, worker, slot, generation);
}

void delivery_returned(struct pipeline *pl, const struct delivery *d)
{
    if (d->handler->spec->in_kafka)
        pl->ops->returned(pl->ctx, d);
}

void pipeline_verdict(struct pipeline *pl, unsigned worker,
                      const struct verdict_msg *v)
{
    struct worker_slots *w = pl->workers[worker];
    struct delivery *d = delivery_at(pl, worker, v->slot, v->generation);
    struct partition *p;
    struct lane *lane;
    struct handler *h;

    if (!d)
        return; /* late, or a lie: either way not ours any more */
    p = d->event->partition;
    h = d->handler;
    lane = d->lane;
    w->at[v->slot] = NULL;
    w->free[w->n_free++] = (uint16_t)v->slot;
    h->inflight--;
    h->inflight_cost -= d->event->body.len;
    p->inflight--;
    lane->inflight--;
    d->is_suspect = d->is_suspect && v->verdict == VERDICT_BACK;
    if (v->verdict != VERDICT_ACK && v->verdict != VERDICT_SKIP) {
        lane->is_broken = true;
        delivery_returned(pl, d);
    }
    lane->pins++; /* it outlives its last delivery until we are done */
    if (d->is_dropped)
        apply_dropped(pl, d, v);
    else
        apply(pl, d, v);
    lane->pins--;
    lane_settle(pl, lane);
    if (!list_is_empty(&h->blocked))
        handler_unblock(pl, h);
    partition_may_be_quiet(pl, p);
}

void pipeline_numbers(const struct pipeline *pl, struct pipeline_numbers *n)
{
    memcpy(n->deliveries, pl->counts, sizeof(n->deliveries));
    n->events = pl->n_events;
    n->cost = pl->cost;
    n->lanes = pl->lanes.len;
    n->received = 0;
    for (int i = 0; i < SOURCE_KIND_COUNT; i++)
        n->received += series_value(pl->received[i]);
}
