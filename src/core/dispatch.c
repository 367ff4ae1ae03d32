/*
 * From ready lanes to workers.
 *
 * A lane that can send is in exactly one list: its worker's ready list, its
 * handler's blocked list (the handler has enough in flight, or no version is
 * loaded), or the list for the spare worker. lane_wake() puts it there; the
 * pump takes it out. A lane keeps its worker and version while something of
 * it is in flight, so that the worker can keep its order.
 */
#include "base/check.h"
#include "base/hash.h"
#include "core/pipeline_priv.h"

#include <string.h>

#define STRIKES_TO_QUARANTINE 3

/* --- where a lane goes ------------------------------------------------------ */

static unsigned home_of(const struct pipeline *pl, const struct lane *lane)
{
    const struct handler *h = lane->handler;
    unsigned n = pl->config.n_workers;
    unsigned width = (unsigned)h->spec->concurrency;

    if (width >= n)
        return (unsigned)(hash_mix(lane->key, 3) % n);
    /* Fewer lanes at once than workers: the handler lives in some of them. */
    return (unsigned)((h->index + hash_mix(lane->key, 3) % width) % n);
}

unsigned pipeline_concurrency_at(const struct pipeline *pl,
                                 const struct handler *h, int concurrency,
                                 unsigned worker)
{
    unsigned n = pl->config.n_workers, width = (unsigned)concurrency;

    if (worker >= n)
        return 1; /* the spare worker runs one delivery at a time */
    if (width >= n)
        return width / n + (worker < width % n);
    return (worker + n - h->index % n) % n < width ? 1 : 0;
}

static bool wants_spare(const struct pipeline *pl, const struct lane *lane)
{
    return lane->head->is_suspect ||
           lane->handler->quarantined_until_us > pl->now_us;
}

static bool can_send(const struct lane *lane)
{
    return lane->head && lane->head->state == DELIVERY_WAITING &&
           !lane->is_broken && lane->storing == 0 &&
           lane->inflight < LANE_DEPTH &&
           (lane->inflight == 0 || lane->vm == lane->handler->vm);
}

static bool handler_is_full(const struct pipeline *pl, const struct handler *h)
{
    return h->vm == 0 || h->inflight >= h->inflight_max ||
           h->inflight_cost >= HANDLER_INFLIGHT_COST ||
           (h->is_rated &&
            bucket_tokens(&h->bucket, &h->spec->rate, pl->now_us) == 0);
}

static struct worker_slots *slots_of(struct pipeline *pl, unsigned worker)
{
    struct worker_slots *w = pl->workers[worker];

    if (w)
        return w;
    w = pl->workers[worker] = xcalloc(1, sizeof(*w));
    list_init(&w->ready);
    for (unsigned i = 0; i < CHANNEL_SLOTS; i++)
        w->free[i] = (uint16_t)(CHANNEL_SLOTS - 1 - i);
    w->n_free = CHANNEL_SLOTS;
    return w;
}

void lane_wake(struct pipeline *pl, struct lane *lane)
{
    if (!can_send(lane) || !list_is_empty(&lane->link))
        return;
    if (handler_is_full(pl, lane->handler)) {
        list_append(&lane->handler->blocked, &lane->link);
        return;
    }
    if (lane->inflight == 0) {
        if (wants_spare(pl, lane)) {
            list_append(&pl->spare_ready, &lane->link);
            return;
        }
        lane->worker = home_of(pl, lane);
    } else if (wants_spare(pl, lane) || lane->worker == pl->config.n_workers) {
        return; /* when what is in flight is back */
    }
    list_append(&slots_of(pl, lane->worker)->ready, &lane->link);
}

static uint32_t least(uint32_t room, int64_t tokens)
{
    return tokens < room ? (uint32_t)tokens : room;
}

/* The handler has room again, or a version. As many lanes as it may send: one
 * whose turn is over by then does not count. */
void handler_unblock(struct pipeline *pl, struct handler *h)
{
    uint32_t room =
        h->inflight < h->inflight_max ? h->inflight_max - h->inflight : 0;

    if (h->is_rated)
        room =
            least(room, bucket_tokens(&h->bucket, &h->spec->rate, pl->now_us));
    else if (h->inflight > 0 && room > 2)
        room = 2; /* a verdict made room for one; the tick sees to the rest */
    while (room > 0 && !list_is_empty(&h->blocked) && !handler_is_full(pl, h)) {
        struct lane *lane = CONTAINER_OF(h->blocked.next, struct lane, link);

        list_remove(&lane->link);
        lane_wake(pl, lane);
        room -= !list_is_empty(&lane->link);
    }
}

/* Tokens have come: their lanes go on. */
void rates_tick(struct pipeline *pl)
{
    for (size_t i = 0; i < pl->n_handlers; i++)
        if (pl->handlers[i]->is_rated)
            handler_unblock(pl, pl->handlers[i]);
}

/* --- sending ---------------------------------------------------------------- */

static void compose(struct event_msg *m, const struct event *ev)
{
    const struct partition *p = ev->partition;

    *m = (struct event_msg){
        .place = ev->place,
        .arrived_us = ev->arrived_us,
        .source = p->ops->kind,
        .form = ev->form,
        .topic = slice_of(p->topic),
        .partition = slice_of(p->name),
        .body = ev->body,
    };
    memcpy(m->facts, ev->facts, sizeof(m->facts));
}

static void address(struct delivery_msg *m, const struct delivery *d,
                    uint32_t slot, uint32_t generation)
{
    const struct event *ev = d->event;

    *m = (struct delivery_msg){
        .slot = slot,
        .generation = generation,
        .vm = d->handler->vm,
        .attempt = d->attempt,
        .flags = (uint16_t)((d->lane->inflight == 0 ? DELIVER_FRESH : 0) |
                            (ev->only_handler ? DELIVER_INBOX : 0)),
        .lane = d->lane->id,
        .epoch = ev->partition->cursors[d->handler->index].epoch,
    };
}

/* Could this one be sent to that worker just as well, now? */
static bool may_come_along(const struct pipeline *pl, const struct delivery *d,
                           unsigned worker)
{
    const struct lane *lane = d->lane;

    return lane->head == d && can_send(lane) &&
           !handler_is_full(pl, lane->handler) && !wants_spare(pl, lane) &&
           (lane->inflight > 0 ? lane->worker : home_of(pl, lane)) == worker;
}

/* `first` and those of the same event that can go with it: the event crosses
 * the ring, and is parsed there, once for all of them. */
static size_t gather(const struct pipeline *pl, unsigned worker,
                     struct delivery *first,
                     struct delivery *all[static DELIVER_MAX])
{
    struct list *event = &first->event->deliveries;
    size_t n = 0, most = DELIVER_MAX;

    all[n++] = first;
    if (event->next == event->prev || worker == pl->config.n_workers)
        return n;
    if (most > pl->workers[worker]->n_free)
        most = pl->workers[worker]->n_free;
    list_foreach(at, event) {
        struct delivery *d = CONTAINER_OF(at, struct delivery, of_event);

        if (n < most && d != first && may_come_along(pl, d, worker))
            all[n++] = d;
    }
    return n;
}

/* In the worker's table from now on. */
static void is_sent(struct pipeline *pl, unsigned worker, struct delivery *d)
{
    struct worker_slots *w = pl->workers[worker];
    struct lane *lane = d->lane;
    struct list *next = d->in_lane.next;

    d->slot = w->free[--w->n_free];
    w->generation[d->slot]++;
    w->at[d->slot] = d;
    delivery_set_state(d, DELIVERY_INFLIGHT, pl->counts);
    d->handler->inflight++;
    d->handler->inflight_cost += d->event->body.len;
    if (d->handler->is_rated)
        bucket_take(&d->handler->bucket, &d->handler->spec->rate, pl->now_us);
    d->event->partition->inflight++;
    lane->inflight++;
    lane->worker = worker;
    lane->vm = d->handler->vm;
    lane->head = next == &lane->deliveries
                     ? NULL
                     : CONTAINER_OF(next, struct delivery, in_lane);
}

/* The lane's next delivery, in company; false when the ring is full. */
static bool send_one(struct pipeline *pl, unsigned worker, struct lane *lane)
{
    struct worker_slots *w = pl->workers[worker];
    struct delivery *all[DELIVER_MAX];
    struct delivery_msg to[DELIVER_MAX];
    size_t n = gather(pl, worker, lane->head, all);
    struct event_msg ev;

    compose(&ev, lane->head->event);
    for (size_t i = 0; i < n; i++) {
        uint32_t slot = w->free[w->n_free - 1 - i];

        address(&to[i], all[i], slot, w->generation[slot] + 1);
    }
    if (!pl->ops->send(pl->ctx, worker, &ev, to, n))
        return false;
    for (size_t i = 0; i < n; i++)
        is_sent(pl, worker, all[i]);
    return true;
}

/* Everything the lane may send now; false when the worker takes no more. */
static bool send_lane(struct pipeline *pl, unsigned worker, struct lane *lane)
{
    while (can_send(lane)) {
        if (handler_is_full(pl, lane->handler) ||
            (wants_spare(pl, lane) && worker != pl->config.n_workers))
            return true;
        if (pl->workers[worker]->n_free == 0 || !send_one(pl, worker, lane))
            return false;
    }
    return true;
}

void pipeline_pump(struct pipeline *pl, unsigned worker)
{
    struct worker_slots *w = pl->workers[worker];

    if (!w || !w->is_up || pl->is_held)
        return;
    while (!list_is_empty(&w->ready)) {
        struct lane *lane = CONTAINER_OF(w->ready.next, struct lane, link);

        if (lane->inflight == 0 && can_send(lane) &&
            (wants_spare(pl, lane) || home_of(pl, lane) != worker)) {
            list_remove(&lane->link); /* moved since it became ready */
            lane_wake(pl, lane);
            continue;
        }
        if (!send_lane(pl, worker, lane))
            return;
        list_remove(&lane->link);
        lane_wake(pl, lane); /* into the blocked list, if that is why */
    }
}

/* The spare worker: one delivery at a time, so that whatever kills it has a
 * name (design: suspects, and handlers in quarantine). */
void spare_pump(struct pipeline *pl)
{
    unsigned spare = pl->config.n_workers;
    struct worker_slots *w = slots_of(pl, spare);

    if (pl->is_held || list_is_empty(&pl->spare_ready))
        return;
    if (!w->is_up) {
        pl->ops->want_spare(pl->ctx);
        return;
    }
    while (w->n_free == CHANNEL_SLOTS && !list_is_empty(&pl->spare_ready)) {
        struct lane *lane =
            CONTAINER_OF(pl->spare_ready.next, struct lane, link);

        list_remove(&lane->link);
        if (!can_send(lane) || handler_is_full(pl, lane->handler) ||
            !wants_spare(pl, lane)) {
            lane_wake(pl, lane);
            continue;
        }
        if (!send_one(pl, spare, lane)) {
            list_append(&pl->spare_ready, &lane->link);
            return;
        }
    }
}

void pipeline_pump_all(struct pipeline *pl)
{
    for (unsigned i = 0; i < pl->config.n_workers; i++)
        pipeline_pump(pl, i);
    spare_pump(pl);
    window_give_room(pl); /* the verdicts of this turn may have made it */
}

/* --- life of a worker --------------------------------------------------------- */

void pipeline_worker_up(struct pipeline *pl, unsigned worker)
{
    slots_of(pl, worker)->is_up = true;
    if (worker == pl->config.n_workers)
        spare_pump(pl);
    else
        pipeline_pump(pl, worker);
}

bool pipeline_worker_is_idle(const struct pipeline *pl, unsigned worker)
{
    const struct worker_slots *w = pl->workers[worker];

    return !w || w->n_free == CHANNEL_SLOTS;
}

static bool has_started(const struct worker_death *death, uint32_t slot)
{
    return death->started[slot / 64] >> (slot % 64) & 1;
}

enum guilt { GUILT_NONE, GUILT_SUSPECT, GUILT_CERTAIN };

/* What executed did it; of a batch, or when nothing executed, all that had
 * started are suspects; alone in the spare worker there is no doubt. */
static enum guilt guilt_of(const struct pipeline *pl, unsigned worker,
                           uint32_t slot, const struct worker_death *death)
{
    struct delivery *d = pl->workers[worker]->at[slot];
    struct delivery *ran =
        death->something_ran && death->running < CHANNEL_SLOTS
            ? pl->workers[worker]->at[death->running]
            : NULL;

    if (worker == pl->config.n_workers)
        return has_started(death, slot) || ran == d ? GUILT_CERTAIN
                                                    : GUILT_NONE;
    if (ran && death->run_count <= 1)
        return ran == d ? GUILT_CERTAIN : GUILT_NONE;
    if (death->is_from_outside)
        return GUILT_NONE;
    if (ran && d->handler != ran->handler)
        return GUILT_NONE;
    return has_started(death, slot) || ran == d ? GUILT_SUSPECT : GUILT_NONE;
}

static void take_back(struct pipeline *pl, struct worker_slots *w,
                      uint32_t slot)
{
    struct delivery *d = w->at[slot];

    w->at[slot] = NULL;
    w->free[w->n_free++] = (uint16_t)slot;
    d->handler->inflight--;
    d->handler->inflight_cost -= d->event->body.len;
    d->event->partition->inflight--;
    d->lane->inflight--;
    d->lane->pins++;
    delivery_returned(pl, d);
    delivery_set_state(d, DELIVERY_WAITING, pl->counts);
}

/* One crash may be bad luck: its delivery is rerun alone. Several within the
 * time of a quarantine, and the handler moves there. */
static void blame(struct pipeline *pl, struct handler *h)
{
    if (pl->now_us - h->first_strike_us > pl->config.quarantine_us) {
        h->first_strike_us = pl->now_us;
        h->strikes = 0;
    }
    if (++h->strikes >= STRIKES_TO_QUARANTINE)
        h->quarantined_until_us = pl->now_us + pl->config.quarantine_us;
}

static void punish(struct pipeline *pl, struct delivery *d,
                   const struct worker_death *death)
{
    struct verdict_msg v = {
        .verdict = VERDICT_RETRY,
        .class = death->class,
        .after_ms = -1,
        .reason = slice_of(death->reason),
    };

    if (!death->is_from_outside)
        blame(pl, d->handler);
    d->is_suspect = !death->is_from_outside;
    d->crashes++;
    delivery_set_state(d, DELIVERY_INFLIGHT, pl->counts); /* it had run */
    attempt_failed(pl, d, &v);
}

void pipeline_worker_died(struct pipeline *pl, unsigned worker,
                          const struct worker_death *death)
{
    struct worker_slots *w = slots_of(pl, worker);
    uint8_t guilt[CHANNEL_SLOTS];
    struct delivery *held[CHANNEL_SLOTS];
    size_t n = 0;

    w->is_up = false;
    for (uint32_t slot = 0; slot < CHANNEL_SLOTS; slot++)
        if (w->at[slot]) {
            guilt[n] = (uint8_t)guilt_of(pl, worker, slot, death);
            held[n++] = w->at[slot];
        }
    for (size_t i = 0; i < n; i++)
        take_back(pl, w, held[i]->slot);
    for (size_t i = 0; i < n; i++) {
        struct delivery *d = held[i];
        struct lane *lane = d->lane;
        struct partition *p = d->event->partition;

        lane->is_broken = true; /* start again at the first one */
        if (d->is_dropped)
            delivery_drop(pl, d);
        else if (guilt[i] == GUILT_CERTAIN)
            punish(pl, d, death);
        else if (guilt[i] == GUILT_SUSPECT)
            d->is_suspect = true;
        lane->pins--;
        lane_settle(pl, lane);
        partition_may_be_quiet(pl, p);
    }
    for (size_t i = 0; i < pl->n_handlers; i++)
        handler_unblock(pl, pl->handlers[i]);
}
