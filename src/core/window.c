/*
 * Partitions: opening, where their reading starts, quieting and closing; and
 * how much of them is in memory. cursor.c says where each handler stands,
 * behind.c reads for those that are behind.
 */
#include "base/check.h"
#include "base/hash.h"
#include "core/pipeline_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_US 100000 /* a window full for longer pauses its partition */
#define EVENT_BYTES 1500   /* a guess, to tell sources how many events fit */
#define ROOM_MAX    2000

/* --- open and close --------------------------------------------------------- */

static void cursor_init(struct cursor *c)
{
    memset(c, 0, sizeof(*c));
    list_init(&c->unsettled);
    c->saved_next = INT64_MIN;
}

/* Lists point at their heads, so growing the array means relinking. */
void partitions_add_cursor(struct pipeline *pl, struct partition *p)
{
    struct cursor *grown = xmalloc(pl->n_handlers * sizeof(*grown));

    for (size_t i = 0; i < pl->n_handlers; i++) {
        if (i >= p->n_cursors) {
            cursor_init(&grown[i]);
            continue;
        }
        grown[i] = p->cursors[i];
        list_init(&grown[i].unsettled);
        if (!list_is_empty(&p->cursors[i].unsettled)) {
            grown[i].unsettled = p->cursors[i].unsettled;
            grown[i].unsettled.next->prev = &grown[i].unsettled;
            grown[i].unsettled.prev->next = &grown[i].unsettled;
        }
    }
    free(p->cursors);
    p->cursors = grown;
    p->n_cursors = pl->n_handlers;
}

struct partition *pipeline_open(struct pipeline *pl,
                                const struct source_ops *ops, void *source,
                                const char *topic, int32_t number,
                                const char *name, const char *source_id)
{
    struct partition *p = xcalloc(1, sizeof(*p));

    p->ops = ops;
    p->source = source;
    p->topic = xstrdup(topic);
    p->number = number;
    p->name = xstrdup(name);
    p->source_id = xstrdup(source_id);
    p->next = POSITION_EARLIEST;
    p->committed = POSITION_EARLIEST;
    p->pipeline = pl;
    p->hash = hash_mix(hash_bytes(name, strlen(name)), ops->kind);
    list_init(&p->parked);
    partitions_add_cursor(pl, p);
    list_append(&pl->partitions, &p->link);
    return p;
}

void pipeline_open_cursor(struct partition *p, struct handler *h,
                          struct position *from, int64_t epoch)
{
    struct cursor *c = &p->cursors[h->index];

    ranges_fini(&c->from.gaps);
    c->from = *from;
    *from = (struct position){0};
    c->epoch = epoch;
    if (h->is_held || h->is_removed)
        cursor_set_mode(p, c, CURSOR_HELD);
    else
        cursor_return(p, c);
}

/* The furthest of those that are not held. */
static int64_t front_of(const struct partition *p)
{
    int64_t front = POSITION_EARLIEST;

    for (size_t i = 1; i < p->n_cursors; i++) {
        const struct cursor *c = &p->cursors[i];

        if (c->mode == CURSOR_ATTACHED && c->from.next != POSITION_LATEST &&
            c->from.next > front)
            front = c->from.next;
    }
    return front;
}

/* Whoever is further back than a window or two reads by itself. */
static void leave_the_far_behind(struct partition *p)
{
    int64_t front = front_of(p);
    int64_t near = 2 * (int64_t)p->pipeline->config.window_events;

    if (front == POSITION_EARLIEST || !p->ops->fetch)
        return;
    for (size_t i = 1; i < p->n_cursors; i++) {
        struct cursor *c = &p->cursors[i];

        if (c->mode == CURSOR_ATTACHED && c->from.next < front - near)
            cursor_set_mode(p, c, CURSOR_BEHIND);
    }
}

/* The lowest place that has to be read for this cursor. */
static int64_t lowest(const struct partition *p, const struct cursor *c)
{
    if (p->ops->kind == SOURCE_KAFKA && c->from.gaps.len &&
        c->from.gaps.at[0].first < c->from.next)
        return c->from.gaps.at[0].first;
    return c->from.next;
}

/* The earliest of all that are attached; of all, when none is. What cannot be
 * decoded has no position of its own: it counts when there is no handler. */
static struct position start_of(const struct partition *p)
{
    struct position start = {.next = POSITION_LATEST};
    bool any = false, any_attached = false;

    for (size_t i = 1; i < p->n_cursors; i++) {
        any = any || p->cursors[i].mode != CURSOR_CLOSED;
        any_attached = any_attached || p->cursors[i].mode == CURSOR_ATTACHED;
    }
    for (size_t i = any ? 1 : 0; i < p->n_cursors; i++) {
        const struct cursor *c = &p->cursors[i];

        if (c->mode == CURSOR_CLOSED ||
            (any_attached && c->mode != CURSOR_ATTACHED))
            continue;
        if (lowest(p, c) < start.next)
            start.next = lowest(p, c);
        if (p->ops->kind != SOURCE_KAFKA)
            ranges_unite(&start.gaps, &c->from.gaps);
    }
    return start;
}

void pipeline_start(struct partition *p)
{
    struct position start;

    CHECK(p->state == PARTITION_OPENING);
    leave_the_far_behind(p);
    start = start_of(p);
    p->state = PARTITION_RUNNING;
    p->moved_us = p->pipeline->now_us;
    p->next = p->began = start.next;
    if (start.next == POSITION_LATEST) /* whatever comes is for everybody */
        for (size_t i = 0; i < p->n_cursors; i++)
            if (p->cursors[i].mode != CURSOR_HELD)
                p->cursors[i].from.next = POSITION_EARLIEST;
    p->ops->start(p, &start);
    ranges_fini(&start.gaps);
}

/* The source says where its end is: there goes on whoever is held meanwhile
 * or came before that was known. */
static void end_is_known(struct partition *p, int64_t next)
{
    for (size_t i = 1; i < p->n_cursors; i++) {
        struct cursor *c = &p->cursors[i];

        if (c->mode == CURSOR_CLOSED || c->from.next != POSITION_LATEST)
            continue;
        c->from.next = next;
        if (p->ops->gaps && p->ops->gaps(p))
            ranges_copy(&c->from.gaps, p->ops->gaps(p));
    }
}

void pipeline_advance(struct partition *p, int64_t next)
{
    if (p->next == POSITION_LATEST) {
        end_is_known(p, next);
        p->next = p->began = next;
    }
    if (next <= p->next)
        return;
    p->next = next;
    p->moved_us = p->pipeline->now_us;
}

void pipeline_trouble(struct partition *p, const char *text)
{
    free(p->trouble);
    p->trouble = text ? xstrdup(text) : NULL;
}

size_t pipeline_partitions(struct pipeline *pl, struct partition **all,
                           size_t max)
{
    size_t n = 0;

    list_foreach(link, &pl->partitions)
        if (n < max)
            all[n++] = CONTAINER_OF(link, struct partition, link);
    return n;
}

void pipeline_each(struct pipeline *pl, pipeline_partition_fn *fn, void *arg)
{
    list_foreach_safe(link, &pl->partitions)
        fn(arg, CONTAINER_OF(link, struct partition, link));
}

/* --- quieting and closing ------------------------------------------------------- */

void pipeline_quiet(struct partition *p)
{
    struct pipeline *pl = p->pipeline;

    if (p->state == PARTITION_RUNNING)
        for (size_t i = 0; i < p->n_cursors; i++)
            if (p->cursors[i].mode != CURSOR_HELD)
                cursor_leave(pl, p, &p->cursors[i], p->cursors[i].mode, 0);
    p->state = PARTITION_QUIETING;
    partition_may_be_quiet(pl, p);
}

void partition_may_be_quiet(struct pipeline *pl, struct partition *p)
{
    if (p->state == PARTITION_QUIETING && p->inflight == 0)
        pl->ops->quiet(pl->ctx, p);
}

void pipeline_abandon(struct partition *p)
{
    struct pipeline *pl = p->pipeline;

    pipeline_quiet(p);
    for (unsigned w = 0; w < PIPELINE_WORKERS_MAX; w++) {
        struct worker_slots *slots = pl->workers[w];

        for (uint32_t i = 0; slots && i < CHANNEL_SLOTS; i++) {
            struct delivery *d = slots->at[i];

            if (!d || d->event->partition != p)
                continue;
            slots->at[i] = NULL;
            slots->generation[i]++;
            slots->free[slots->n_free++] = (uint16_t)i;
            d->handler->inflight--;
            d->handler->inflight_cost -= d->event->body.len;
            d->lane->inflight--;
            p->inflight--;
            delivery_drop(pl, d);
        }
    }
}

void pipeline_close(struct partition *p)
{
    CHECK(p->state == PARTITION_QUIETING && p->inflight == 0 && p->events == 0);
    if (p->full_since_us && !p->is_paused)
        p->pipeline->n_full--;
    list_remove(&p->link);
    behind_close(p);
    for (size_t i = 0; i < p->n_cursors; i++) {
        ranges_fini(&p->cursors[i].from.gaps);
        ranges_fini(&p->cursors[i].open_then);
        lane_set_fini(&p->cursors[i].blocked);
    }
    free(p->cursors);
    free(p->trouble);
    free(p->topic);
    free(p->name);
    free(p->source_id);
    free(p);
}

/* --- back-pressure -------------------------------------------------------------- */

/*
 * A window bounds what attached handlers wait for. An event that only handlers
 * wait for which are not (held, behind) is put aside: it counts for them.
 */
uint32_t window_live(const struct partition *p)
{
    return p->events - p->aside;
}

uint64_t window_live_cost(const struct pipeline *pl)
{
    return pl->cost - pl->aside_cost;
}

void window_taken(struct pipeline *pl, struct event *ev)
{
    struct partition *p = ev->partition;

    pl->n_events++;
    pl->cost += ev->cost;
    p->events++;
    if (window_live(p) >= pl->config.window_events && !p->full_since_us) {
        p->full_since_us = pl->now_us;
        pl->n_full++;
    }
}

static void may_go_on(struct pipeline *pl, struct partition *p)
{
    if (window_live(p) >= pl->config.window_events / 4 * 3 || !p->full_since_us)
        return;
    p->full_since_us = 0;
    if (p->is_paused) {
        p->is_paused = false;
        if (p->state == PARTITION_RUNNING && !p->is_joining)
            p->ops->resume(p);
    } else {
        pl->n_full--;
    }
}

void window_review(struct pipeline *pl, struct event *ev)
{
    if (ev->live > 0 || ev->aside || list_is_empty(&ev->deliveries))
        return;
    ev->aside =
        CONTAINER_OF(ev->deliveries.next, struct delivery, of_event)->handler;
    ev->aside_cost = ev->cost;
    ev->aside->aside_cost += ev->cost;
    pl->aside_cost += ev->cost;
    pl->n_aside++;
    ev->partition->aside++;
    may_go_on(pl, ev->partition);
}

void window_left(struct pipeline *pl, struct event *ev)
{
    struct partition *p = ev->partition;

    pl->n_events--;
    pl->cost -= ev->cost;
    p->events--;
    if (ev->aside) {
        ev->aside->aside_cost -= ev->aside_cost;
        pl->aside_cost -= ev->aside_cost;
        pl->n_aside--;
        p->aside--;
    }
    may_go_on(pl, p);
}

/* What is aside takes half of it at the most. */
uint64_t window_live_bytes(const struct pipeline *pl)
{
    uint64_t half = pl->config.window_bytes / 2;

    return pl->config.window_bytes -
           (pl->aside_cost < half ? pl->aside_cost : half);
}

size_t pipeline_room(struct pipeline *pl)
{
    uint64_t used = window_live_cost(pl), left = 0;

    if (window_live_bytes(pl) > used && !pl->is_held && pl->n_full == 0)
        left = (window_live_bytes(pl) - used) / EVENT_BYTES;
    if (left == 0) /* whoever asks next must not forget who was refused */
        pl->room_refused = true;
    /* A batch may be for one partition: its window is overrun by a quarter at
     * the most. */
    if (left > pl->config.window_events / 4)
        left = pl->config.window_events / 4;
    return left < ROOM_MAX ? (size_t)left : ROOM_MAX;
}

/* A partition that stays full while others could flow is paused. */
static void pause_the_slow(struct pipeline *pl)
{
    list_foreach(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);

        if (!p->full_since_us || p->is_paused ||
            p->state != PARTITION_RUNNING ||
            pl->now_us - p->full_since_us < PATIENCE_US)
            continue;
        p->is_paused = true;
        pl->n_full--;
        p->ops->pause(p);
    }
}

void window_tick(struct pipeline *pl)
{
    behind_tick(pl);
    if (pl->n_full > 0)
        pause_the_slow(pl);
    for (size_t i = 0; i < pl->n_handlers; i++)
        if (!list_is_empty(&pl->handlers[i]->blocked))
            handler_unblock(pl, pl->handlers[i]);
    window_give_room(pl);
}

void window_give_room(struct pipeline *pl)
{
    if (!pl->room_refused || pl->is_held || pl->n_full > 0 ||
        window_live_cost(pl) >= window_live_bytes(pl) / 4 * 3)
        return;
    pl->room_refused = false;
    pl->ops->room_again(pl->ctx);
}
