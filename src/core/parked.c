/*
 * The parked queue's half in the core: what goes there, and what comes back.
 *
 * Parked is what would else keep a window full for long: a retry whose next
 * attempt is far away, what a flag holds of a handler that goes on with the
 * rest, and whatever follows one of those in its lane (cursor->blocked), or
 * follows a dead letter that is waited for. Once it is in the store it is
 * settled for the window, so positions move on.
 *
 * It comes back through pipeline_offer_parked(), as an event of its partition
 * but of no cursor, and runs in its lane like any other. When one goes back to
 * the store, those of the queue that follow it in memory are given back too.
 */
#include "base/check.h"
#include "core/pipeline_priv.h"

#include <stdio.h>

static struct cursor *cursor_of(const struct delivery *d)
{
    return &d->event->partition->cursors[d->handler->index];
}

bool pipeline_lane(const struct delivery *d, uint64_t *lane)
{
    *lane = d->lane->id;
    return !d->lane->is_alone;
}

void pipeline_block(struct partition *p, const struct handler *h, uint64_t lane)
{
    lane_set_add(&p->cursors[h->index].blocked, lane);
    p->pipeline->has_blocked = true;
}

void pipeline_unblock(struct partition *p, const struct handler *h,
                      uint64_t lane)
{
    lane_set_remove(&p->cursors[h->index].blocked, lane);
}

static bool is_blocked(const struct delivery *d)
{
    const struct cursor *c = cursor_of(d);

    return c->blocked.cap > 0 && lane_set_has(&c->blocked, d->lane->id);
}

/* --- flags -------------------------------------------------------------------- */

enum part flags_say(const struct pipeline *pl, const struct delivery *d,
                    char name[static FLAG_NAME_SIZE])
{
    struct slice type = d->event->facts[FACT_AGGREGATE_TYPE];

    if (!pl->has_partial_flags)
        return PART_ON;
    for (int i = 0; i < 3; i++) {
        struct flag_value v;

        if (i == 0)
            snprintf(name, FLAG_NAME_SIZE, "%s", FLAG_ALL);
        else if (i == 1)
            snprintf(name, FLAG_NAME_SIZE, "handler:%s", d->handler->name);
        else
            snprintf(name, FLAG_NAME_SIZE, "aggregate:%.*s", (int)type.len,
                     type.ptr ? type.ptr : "");
        v = flags_get(pl->flags, name, NULL);
        if (flag_admits(&v, d->lane->key))
            continue;
        if (v.when_off == OFF_SKIP)
            return PART_SKIP;
        if (i == 2 || v.percent > 0) /* else it is held whole, in its place */
            return PART_HOLD;
    }
    return PART_ON;
}

/* --- going there ----------------------------------------------------------------- */

void park(struct pipeline *pl, struct delivery *d, enum park_reason reason,
          int64_t delay_ms, const char *flag)
{
    struct partition *p = d->event->partition;

    if (!d->lane->is_alone)
        pipeline_block(p, d->handler, d->lane->id);
    d->lane->is_cut |= d->event->parked_id != 0;
    d->is_parking = true;
    delivery_store(pl, d);
    pl->ops->park(pl->ctx, d, reason, delay_ms, flag);
}

/* Order comes first: what follows something parked is parked, whatever a flag
 * says of it. */
bool parked_instead(struct pipeline *pl, struct delivery *d)
{
    char flag[FLAG_NAME_SIZE];

    if (d->event->only_handler) /* somebody asked for just that */
        return false;
    if (is_blocked(d)) {
        if (d->lane->letters == 0) /* else when that is in the store */
            park(pl, d, PARK_BEHIND, 0, "");
        return true;
    }
    if (flags_say(pl, d, flag) != PART_HOLD)
        return false;
    series_add(d->handler->held, 1);
    park(pl, d, PARK_HELD, 0, flag);
    return true;
}

void pipeline_parked(struct pipeline *pl, struct delivery *d)
{
    struct partition *p = d->event->partition;

    CHECK(d->state == DELIVERY_STORING && d->is_parking);
    d->lane->storing--;
    p->inflight--;
    cursor_settled(d); /* it may be read no more */
    delivery_forget(pl, d);
    partition_may_be_quiet(pl, p);
}

void parked_clear(struct pipeline *pl, struct lane *lane)
{
    bool is_cut = lane->is_cut;

    if (!is_cut && !is_blocked(lane->head))
        return;
    lane->is_cut = false;
    lane->pins++;
    list_foreach_safe(link, &lane->deliveries) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_lane);

        if (d->state != DELIVERY_WAITING)
            continue;
        if (d->event->parked_id) {
            if (is_cut)
                delivery_drop(pl, d);
        } else if (lane->letters == 0 && is_blocked(d)) {
            park(pl, d, PARK_BEHIND, 0, "");
        }
    }
    lane->pins--;
}

/* --- coming back ----------------------------------------------------------------- */

static bool may_run(const struct partition *p, const struct handler *h)
{
    return p->state == PARTITION_RUNNING && !p->is_closing && h->spec &&
           (p->cursors[h->index].mode == CURSOR_ATTACHED ||
            p->cursors[h->index].mode == CURSOR_BEHIND);
}

static void deliver_parked(struct pipeline *pl, struct event *ev,
                           struct handler *h)
{
    struct delivery *d = delivery_new(pl, ev, h);
    char flag[FLAG_NAME_SIZE];

    d->attempt = (uint16_t)(ev->parked_attempts + 1);
    if (ev->parked_verdict != VERDICT_ACK) {
        d->attempt = (uint16_t)ev->parked_attempts;
        delivery_failed(d, CLASS_PERMANENT, SLICE_LIT("by_hand"),
                        slice_of(ev->parked_why), (struct slice){0},
                        pl->wall_us);
        delivery_end(pl, d, ev->parked_verdict);
        return;
    }
    if (flags_say(pl, d, flag) == PART_HOLD) {
        park(pl, d, PARK_HELD, 0, flag);
        return;
    }
    lane_wake(pl, d->lane);
}

void pipeline_offer_parked(struct pipeline *pl, struct event *ev,
                           struct handler *h)
{
    uint32_t extra;

    ev->pending = 1;
    ev->arrived_us = pl->now_us;
    ev->cost = (uint32_t)(sizeof(*ev) + ev->body.len);
    window_taken(pl, ev);
    if (may_run(ev->partition, h)) {
        deliver_parked(pl, ev, h);
        extra = (ev->pending - 1) * (uint32_t)sizeof(struct delivery);
        ev->cost += extra;
        pl->cost += extra;
    }
    event_done_with(pl, ev);
}

static struct delivery *first_to_drop(const struct partition *p,
                                      const struct handler *only)
{
    list_foreach(link, &p->parked) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_cursor);

        if ((!only || d->handler == only) &&
            (d->state == DELIVERY_WAITING || d->state == DELIVERY_BACKOFF))
            return d;
    }
    return NULL;
}

/* One that goes may take others of its lane along, so the list is looked at
 * anew each time. */
void parked_leave(struct pipeline *pl, struct partition *p,
                  const struct handler *only)
{
    struct delivery *d;

    while ((d = first_to_drop(p, only)))
        delivery_drop(pl, d);
    list_foreach(link, &p->parked) {
        d = CONTAINER_OF(link, struct delivery, in_cursor);
        if (!only || d->handler == only)
            d->is_dropped = true;
    }
}
