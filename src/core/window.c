/*
 * Partitions: what of them is in memory, and where each handler stands.
 *
 * A cursor lists a handler's unsettled deliveries in the order of arrival.
 * While the reading only goes forward, the handler's position is the first of
 * them. When the reading has to start again (a held handler comes back, a new
 * one wants old events), every cursor is frozen first: `from` keeps exactly
 * what was settled, as a next place and the gaps below it, and decides which
 * of the events read again are delivered. So nobody gets twice what it had.
 */
#include "base/buf.h"
#include "base/check.h"
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
    p->serial = ++pl->next_serial;
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
    c->is_open = true;
    c->is_detached = h->is_held || h->is_removed;
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
        any = any || p->cursors[i].is_open;
        any_attached = any_attached ||
                       (p->cursors[i].is_open && !p->cursors[i].is_detached);
    }
    for (size_t i = any ? 1 : 0; i < p->n_cursors; i++) {
        const struct cursor *c = &p->cursors[i];

        if (!c->is_open || (any_attached && c->is_detached))
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
    struct position start = start_of(p);

    CHECK(p->state == PARTITION_OPENING || p->state == PARTITION_QUIETING);
    p->state = PARTITION_RUNNING;
    p->wants_rewind = false;
    p->is_paused = false;
    p->next = start.next;
    if (start.next == POSITION_LATEST) /* whatever comes is for everybody */
        for (size_t i = 0; i < p->n_cursors; i++)
            if (!p->cursors[i].is_detached)
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

        if (!c->is_open || c->from.next != POSITION_LATEST)
            continue;
        c->from.next = next;
        if (p->ops->gaps && p->ops->gaps(p))
            ranges_copy(&c->from.gaps, p->ops->gaps(p));
    }
}

void pipeline_advance(struct partition *p, int64_t next)
{
    if (p->next == POSITION_LATEST)
        end_is_known(p, next);
    if (next > p->next || p->next == POSITION_LATEST)
        p->next = next;
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

/* --- cursors ------------------------------------------------------------------ */

static bool is_frozen(const struct partition *p, const struct cursor *c)
{
    return c->is_detached || p->state != PARTITION_RUNNING;
}

bool cursor_accepts(const struct partition *p, const struct handler *h,
                    const struct event *ev)
{
    struct cursor *c = &p->cursors[h->index];

    if (!c->is_open)
        return false;
    if (c->is_detached) {
        if (!c->behind_since_us)
            c->behind_since_us =
                ev->occurred_us ? ev->occurred_us : p->pipeline->wall_us;
        return false;
    }
    if (c->min_occurred_us && ev->occurred_us &&
        ev->occurred_us < c->min_occurred_us)
        return false;
    return ev->place >= c->from.next || ranges_has(&c->from.gaps, ev->place);
}

void cursor_settled(struct delivery *d)
{
    const struct event *ev = d->event;
    struct cursor *c = &ev->partition->cursors[d->handler->index];
    struct slice id = ev->facts[FACT_ID];

    if (ev->place < c->from.next && c->from.gaps.len)
        ranges_remove(&c->from.gaps, ev->place, ev->place);
    c->last_event_us = ev->occurred_us;
    if (id.ptr && id.len < sizeof(c->last_event_id)) {
        memcpy(c->last_event_id, id.ptr, id.len);
        c->last_event_id[id.len] = '\0';
    }
}

static struct delivery *first_of(const struct list *unsettled)
{
    return list_is_empty(unsettled)
               ? NULL
               : CONTAINER_OF(unsettled->next, struct delivery, in_cursor);
}

const struct delivery *pipeline_oldest(const struct partition *p,
                                       const struct handler *h)
{
    return first_of(&p->cursors[h->index].unsettled);
}

/* Exactly what is settled: everything below next but the gaps. */
static void full_position(const struct partition *p, const struct cursor *c,
                          struct position *at)
{
    bool catches_up = p->next < c->from.next;

    at->next = catches_up || is_frozen(p, c) ? c->from.next : p->next;
    if (catches_up || is_frozen(p, c))
        ranges_unite(&at->gaps, &c->from.gaps);
    if (p->ops->gaps && p->ops->gaps(p))
        ranges_unite(&at->gaps, p->ops->gaps(p));
    list_foreach(link, &c->unsettled) {
        const struct delivery *d =
            CONTAINER_OF(link, struct delivery, in_cursor);

        ranges_add(&at->gaps, d->event->place, d->event->place);
    }
    ranges_cut(&at->gaps, at->next);
}

/* Kafka reads in order, so the first hole says it all. */
static int64_t low_offset(const struct partition *p, const struct cursor *c)
{
    bool uses_from = p->next < c->from.next || is_frozen(p, c);
    int64_t next = uses_from ? c->from.next : p->next;
    const struct delivery *first = first_of(&c->unsettled);

    if (uses_from && c->from.gaps.len && c->from.gaps.at[0].first < next)
        next = c->from.gaps.at[0].first;
    if (first && first->event->place < next)
        next = first->event->place;
    return next;
}

/* The outbox: as few gaps as the truth allows, by going no further than the
 * first row of the forward reading that is not settled. */
static void outbox_position(const struct partition *p, const struct cursor *c,
                            struct position *at)
{
    full_position(p, c, at);
    if (p->next < c->from.next || is_frozen(p, c))
        return;
    list_foreach(link, &c->unsettled) {
        const struct delivery *d =
            CONTAINER_OF(link, struct delivery, in_cursor);

        if (!d->event->is_late) {
            if (d->event->place < at->next)
                at->next = d->event->place;
            break;
        }
    }
    ranges_cut(&at->gaps, at->next);
}

bool pipeline_position(const struct partition *p, const struct handler *h,
                       struct position *at)
{
    const struct cursor *c = &p->cursors[h->index];
    const struct cursor *undecodable = &p->cursors[0];

    *at = (struct position){0};
    if (!c->is_open)
        return false;
    if (p->ops->kind == SOURCE_KAFKA) {
        const struct delivery *bad = first_of(&undecodable->unsettled);

        at->next = low_offset(p, c);
        if (bad && bad->event->place < at->next)
            at->next = bad->event->place;
    } else {
        outbox_position(p, c, at);
        list_foreach(link, &undecodable->unsettled) {
            int64_t place =
                CONTAINER_OF(link, struct delivery, in_cursor)->event->place;

            if (place < at->next)
                ranges_add(&at->gaps, place, place);
        }
    }
    if (at->next != POSITION_EARLIEST && at->next != POSITION_LATEST)
        return true;
    ranges_fini(&at->gaps); /* nobody else would, after a no */
    return false;
}

int64_t pipeline_front(const struct partition *p)
{
    int64_t front = p->next;

    for (size_t i = 1; i < p->n_cursors; i++) {
        const struct cursor *c = &p->cursors[i];

        if (c->is_open && c->from.next != POSITION_LATEST &&
            c->from.next > front)
            front = c->from.next;
    }
    return front;
}

bool pipeline_watermark(const struct partition *p, int64_t *next)
{
    const struct pipeline *pl = p->pipeline;
    bool any = false;

    for (size_t i = 1; i < pl->n_handlers; i++) {
        struct position at;

        if (p->cursors[i].is_detached ||
            !pipeline_position(p, pl->handlers[i], &at))
            continue;
        if (!any || at.next < *next)
            *next = at.next;
        any = true;
        ranges_fini(&at.gaps);
    }
    return any;
}

/* --- freezing and quieting ----------------------------------------------------- */

static void freeze(struct pipeline *pl, struct partition *p, struct cursor *c)
{
    struct position full = {0};

    if (!c->is_open || is_frozen(p, c))
        return;
    full_position(p, c, &full);
    ranges_fini(&c->from.gaps);
    c->from = full;
    list_foreach_safe(link, &c->unsettled) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_cursor);

        if (d->state == DELIVERY_WAITING || d->state == DELIVERY_BACKOFF)
            delivery_drop(pl, d);
        else
            d->is_dropped = true;
    }
}

void pipeline_quiet(struct partition *p, bool rewind)
{
    struct pipeline *pl = p->pipeline;

    if (p->state == PARTITION_RUNNING)
        for (size_t i = 0; i < p->n_cursors; i++)
            freeze(pl, p, &p->cursors[i]);
    if (p->state != PARTITION_QUIETING)
        p->wants_rewind = rewind;
    else
        p->wants_rewind = p->wants_rewind && rewind;
    p->state = PARTITION_QUIETING;
    partition_may_be_quiet(pl, p);
}

void partition_may_be_quiet(struct pipeline *pl, struct partition *p)
{
    if (p->state == PARTITION_QUIETING && p->inflight == 0)
        pl->ops->quiet(pl->ctx, p);
}

void pipeline_detach(struct pipeline *pl, struct handler *h, bool is_removed)
{
    h->is_held = h->is_held || !is_removed;
    h->is_removed = h->is_removed || is_removed;
    list_foreach(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);
        struct cursor *c = &p->cursors[h->index];

        freeze(pl, p, c);
        c->is_detached = true;
    }
}

/* Did the reading pass anything that the held handler has not had? */
static bool missed_something(const struct partition *p, const struct cursor *c)
{
    struct ranges holes = {0};
    bool missed;

    if (c->behind_since_us || !list_is_empty(&c->unsettled))
        return true;
    ranges_copy(&holes, &c->from.gaps);
    if (p->ops->gaps && p->ops->gaps(p)) {
        const struct ranges *open = p->ops->gaps(p);

        for (size_t i = 0; i < open->len; i++)
            ranges_remove(&holes, open->at[i].first, open->at[i].last);
    }
    missed = holes.len > 0 || c->from.next < p->next;
    ranges_fini(&holes);
    return missed;
}

void pipeline_attach(struct pipeline *pl, struct handler *h)
{
    h->is_held = false;
    h->is_removed = false;
    list_foreach_safe(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);
        struct cursor *c = &p->cursors[h->index];
        bool missed = c->is_open && missed_something(p, c);

        if (!c->is_detached)
            continue;
        if (missed && p->state == PARTITION_RUNNING)
            pipeline_quiet(p, true);
        c->is_detached = false;
        c->behind_since_us = 0;
    }
    handler_unblock(pl, h);
}

void pipeline_abandon(struct partition *p)
{
    struct pipeline *pl = p->pipeline;

    pipeline_quiet(p, false);
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
    for (size_t i = 0; i < p->n_cursors; i++)
        ranges_fini(&p->cursors[i].from.gaps);
    free(p->cursors);
    free(p->trouble);
    free(p->topic);
    free(p->name);
    free(p->source_id);
    free(p);
}

/* --- back-pressure -------------------------------------------------------------- */

void window_taken(struct pipeline *pl, struct event *ev)
{
    struct partition *p = ev->partition;

    pl->n_events++;
    pl->cost += ev->cost;
    if (++p->events >= pl->config.window_events && !p->full_since_us) {
        p->full_since_us = pl->now_us;
        pl->n_full++;
    }
}

void window_left(struct pipeline *pl, struct partition *p, uint32_t cost)
{
    pl->n_events--;
    pl->cost -= cost;
    if (--p->events >= pl->config.window_events / 4 * 3 || !p->full_since_us)
        return;
    p->full_since_us = 0;
    if (p->is_paused) {
        p->is_paused = false;
        if (p->state == PARTITION_RUNNING)
            p->ops->resume(p);
    } else {
        pl->n_full--;
    }
}

size_t pipeline_room(struct pipeline *pl)
{
    uint64_t left = pl->config.window_bytes > pl->cost
                        ? (pl->config.window_bytes - pl->cost) / EVENT_BYTES
                        : 0;

    if (pl->is_held || pl->n_full > 0)
        left = 0;
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
        pl->cost >= pl->config.window_bytes / 4 * 3)
        return;
    pl->room_refused = false;
    pl->ops->room_again(pl->ctx);
}
