/*
 * Where each handler stands in a partition.
 *
 * A cursor lists a handler's unsettled deliveries in the order of arrival.
 * While it is attached, the reading of the partition is its own, and its
 * position is the first of them or where the reading stands. When it leaves
 * (held, behind, or the partition closes) `from` keeps exactly what it had, as
 * a next place and the gaps below it, and decides which events it takes when
 * they are read again. So nobody gets twice what it had.
 */
#include "base/check.h"
#include "core/pipeline_priv.h"

#include <stdlib.h>
#include <string.h>

/* Does its reading go on with the partition's? */
static bool follows(const struct partition *p, const struct cursor *c)
{
    return c->mode == CURSOR_ATTACHED && p->state == PARTITION_RUNNING;
}

static const struct ranges *open_gaps(const struct partition *p)
{
    static const struct ranges none;
    const struct ranges *open = p->ops->gaps ? p->ops->gaps(p) : NULL;

    return open ? open : &none;
}

/* Those of the source's open gaps that the handler has not had: the source
 * looks for what any of its handlers lacks. */
static void add_open(const struct partition *p, const struct cursor *c,
                     struct ranges *to)
{
    const struct ranges *open = open_gaps(p);

    ranges_unite_common(to, open, &c->from.gaps);
    for (size_t i = open->len; i-- > 0 && open->at[i].last >= c->from.next;)
        ranges_add(to,
                   open->at[i].first > c->from.next ? open->at[i].first
                                                    : c->from.next,
                   open->at[i].last);
}

/* What it has not had, whatever is in memory: a next place and gaps below. */
static void lacks(const struct partition *p, const struct cursor *c,
                  struct position *at)
{
    bool is_past =
        follows(p, c) && p->next >= c->from.next && p->next != POSITION_LATEST;

    at->next = is_past ? p->next : c->from.next;
    if (is_past)
        add_open(p, c, &at->gaps);
    else
        ranges_unite(&at->gaps, &c->from.gaps);
    ranges_cut(&at->gaps, at->next);
}

void cursor_wanted(const struct partition *p, const struct cursor *c,
                   struct ranges *wanted)
{
    const struct ranges *open = open_gaps(p);

    ranges_copy(wanted, &c->from.gaps);
    ranges_cut(wanted, c->from.next);
    for (size_t i = 0; i < open->len && wanted->len; i++)
        ranges_remove(wanted, open->at[i].first, open->at[i].last);
}

/* --- what it takes ------------------------------------------------------------ */

/* A row that appeared late while the handler has a reading of its own: taken at
 * once where that is past it, unless something before it is still to be read;
 * then its place is a gap that the own reading will come to. */
static bool accepts_late(const struct partition *p, const struct handler *h,
                         const struct event *ev)
{
    const struct cursor *c = &p->cursors[h->index];
    struct ranges wanted = {0};
    bool is_first;

    if (!ev->is_late || p->fetching == h || ev->place >= c->from.next ||
        !ranges_has(&c->from.gaps, ev->place))
        return false;
    cursor_wanted(p, c, &wanted);
    is_first = wanted.len == 0 || wanted.at[0].first >= ev->place;
    ranges_fini(&wanted);
    return is_first;
}

static bool is_before_start(const struct cursor *c, const struct event *ev)
{
    return c->min_occurred_us && ev->occurred_us &&
           ev->occurred_us < c->min_occurred_us;
}

bool cursor_accepts(const struct partition *p, const struct handler *h,
                    const struct event *ev)
{
    struct cursor *c = &p->cursors[h->index];

    if (ev->reader == h)
        return ev->is_wanted && !is_before_start(c, ev);
    switch (c->mode) {
    case CURSOR_CLOSED: return false;
    case CURSOR_BEHIND:
        if (accepts_late(p, h, ev))
            return true;
        /* fall through */
    case CURSOR_HELD:
        if (!c->behind_since_us)
            c->behind_since_us =
                ev->occurred_us ? ev->occurred_us : p->pipeline->wall_us;
        return false;
    case CURSOR_ATTACHED: break;
    }
    return !is_before_start(c, ev) &&
           (ev->place >= c->from.next || ranges_has(&c->from.gaps, ev->place));
}

/* Kept in the order of places: what was late, or is read again, may come after
 * what lies behind it. In memory from now on, so no gap any more. */
void cursor_took(struct cursor *c, struct delivery *d)
{
    int64_t place = d->event->place;
    struct list *before = &c->unsettled;

    c->taken++;
    if (d->event->parked_id) { /* the position has passed it */
        list_append(&d->event->partition->parked, &d->in_cursor);
        return;
    }
    while (
        before->prev != &c->unsettled &&
        CONTAINER_OF(before->prev, struct delivery, in_cursor)->event->place >
            place)
        before = before->prev;
    list_insert(before, &d->in_cursor);
    if (c->unsettled.next == &d->in_cursor)
        c->moved_us = d->event->arrived_us;
    c->len++;
    if (place < c->from.next && c->from.gaps.len)
        ranges_remove(&c->from.gaps, place, place);
}

void cursor_forgets(struct cursor *c, struct delivery *d)
{
    if (c->unsettled.next == &d->in_cursor)
        c->moved_us = d->event->partition->pipeline->now_us;
    list_remove(&d->in_cursor);
    if (d->event->parked_id)
        return;
    c->len--;
    c->dropped -= d->is_dropped;
}

void cursor_settled(struct delivery *d)
{
    const struct event *ev = d->event;
    struct cursor *c = &ev->partition->cursors[d->handler->index];
    struct slice id = ev->facts[FACT_ID];

    if (ev->parked_id)
        return;
    c->settled++;
    if (ev->place < c->from.next && c->from.gaps.len)
        ranges_remove(&c->from.gaps, ev->place, ev->place);
#ifdef MUTANT_MAX_OFFSET /* the highest settled, whatever lies below it */
    if (ev->place >= c->from.next)
        c->from.next = ev->place + 1;
#endif
    c->last_event_us = ev->occurred_us;
    if (id.ptr && id.len < sizeof(c->last_event_id)) {
        memcpy(c->last_event_id, id.ptr, id.len);
        c->last_event_id[id.len] = '\0';
    }
}

/* --- positions ------------------------------------------------------------------ */

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

static int64_t lowest_unsettled(const struct cursor *c, int64_t next)
{
    const struct delivery *first = first_of(&c->unsettled);

    return first && first->event->place < next ? first->event->place : next;
}

/* Kafka reads in order, so the first hole says it all. */
static void kafka_position(const struct partition *p, const struct cursor *c,
                           struct position *at)
{
    lacks(p, c, at);
#if defined(MUTANT_AUTO_STORE) /* what was read counts as done */
    ranges_clear(&at->gaps);
    return;
#elif defined(MUTANT_MAX_OFFSET)
    at->next = c->from.next;
    ranges_clear(&at->gaps);
    return;
#endif
    if (at->gaps.len && at->gaps.at[0].first < at->next)
        at->next = at->gaps.at[0].first;
    ranges_clear(&at->gaps);
    at->next = lowest_unsettled(c, at->next);
    at->next = lowest_unsettled(&p->cursors[0], at->next);
}

static void add_unsettled(const struct cursor *c, struct position *at)
{
    list_foreach(link, &c->unsettled) {
        int64_t place =
            CONTAINER_OF(link, struct delivery, in_cursor)->event->place;

        if (place < at->next)
            ranges_add(&at->gaps, place, place);
    }
}

/* The outbox: as few gaps as the truth allows, by going no further than the
 * first row of the forward reading that is not settled. */
static void outbox_position(const struct partition *p, const struct cursor *c,
                            struct position *at)
{
    lacks(p, c, at);
    if (follows(p, c) && p->next >= c->from.next)
        list_foreach(link, &c->unsettled) {
            const struct event *ev =
                CONTAINER_OF(link, struct delivery, in_cursor)->event;

            if (!ev->is_late && !ev->reader) {
                if (ev->place < at->next)
                    at->next = ev->place;
                break;
            }
        }
    ranges_cut(&at->gaps, at->next);
    add_unsettled(c, at);
    add_unsettled(&p->cursors[0], at);
}

bool pipeline_position(const struct partition *p, const struct handler *h,
                       struct position *at)
{
    const struct cursor *c = &p->cursors[h->index];

    *at = (struct position){0};
    if (c->mode == CURSOR_CLOSED)
        return false;
    if (p->ops->kind == SOURCE_KAFKA)
        kafka_position(p, c, at);
    else
        outbox_position(p, c, at);
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

        if (c->mode != CURSOR_CLOSED && c->from.next != POSITION_LATEST &&
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

        if (p->cursors[i].mode != CURSOR_ATTACHED ||
            !pipeline_position(p, pl->handlers[i], &at))
            continue;
        if (!any || at.next < *next)
            *next = at.next;
        any = true;
        ranges_fini(&at.gaps);
    }
    return any;
}

/* --- leaving ---------------------------------------------------------------------- */

static bool may_be_dropped(const struct delivery *d)
{
    return d->state == DELIVERY_WAITING || d->state == DELIVERY_BACKOFF;
}

static bool is_last_of_lane(const struct delivery *d)
{
    return d->in_lane.next == &d->lane->deliveries;
}

static void put_aside(struct pipeline *pl, struct delivery *d)
{
    if (d->is_aside)
        return;
    d->is_aside = true;
    d->event->live--;
    window_review(pl, d->event);
}

/* Newest first, so that what stays of a lane is its beginning: what is read
 * again comes behind it. */
static void keep_the_oldest(struct pipeline *pl, struct cursor *c,
                            uint32_t keep)
{
    struct list *link = c->unsettled.prev;

    while (link != &c->unsettled && c->len > keep) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_cursor);

        link = link->prev;
        if (!may_be_dropped(d) || !is_last_of_lane(d))
            continue;
        ranges_add(&c->from.gaps, d->event->place, d->event->place);
        delivery_drop(pl, d);
    }
    list_foreach(kept, &c->unsettled)
        put_aside(pl, CONTAINER_OF(kept, struct delivery, in_cursor));
}

/* What runs or is being stored may still go well: then its gap closes. */
static void keep_nothing(struct pipeline *pl, struct cursor *c)
{
    list_foreach_safe(link, &c->unsettled) {
        struct delivery *d = CONTAINER_OF(link, struct delivery, in_cursor);

        ranges_add(&c->from.gaps, d->event->place, d->event->place);
        if (may_be_dropped(d)) {
            delivery_drop(pl, d);
        } else if (!d->is_dropped) {
            d->is_dropped = true;
            c->dropped++;
            put_aside(pl, d);
        }
    }
}

void cursor_leave(struct pipeline *pl, struct partition *p, struct cursor *c,
                  enum cursor_mode mode, uint32_t keep)
{
    struct position had = {0};

    if (c->mode == CURSOR_CLOSED)
        return;
    lacks(p, c, &had);
    ranges_fini(&c->from.gaps);
    c->from = had;
    cursor_set_mode(p, c, mode);
    c->is_void = true;
    if (keep > 0)
        keep_the_oldest(pl, c, keep);
    else
        keep_nothing(pl, c);
    if (mode != CURSOR_BEHIND || keep == 0)
        parked_leave(pl, p, p->pipeline->handlers[c - p->cursors]);
    ranges_cut(&c->from.gaps, c->from.next);
}

void cursor_set_mode(struct partition *p, struct cursor *c,
                     enum cursor_mode mode)
{
    struct handler *h = p->pipeline->handlers[c - p->cursors];
    bool was = c->mode == CURSOR_BEHIND, is = mode == CURSOR_BEHIND;

    c->mode = mode;
    c->moved_us = p->pipeline->now_us;
    p->n_behind += (uint32_t)(is - was);
    h->n_behind += (uint32_t)(is - was);
    if (is && !was && h->n_behind == 1)
        p->pipeline->n_behind++;
    if (was && !is && h->n_behind == 0)
        p->pipeline->n_behind--;
}

/* --- what an operator gives up ---------------------------------------------------- */

void pipeline_would_lose(const struct partition *p, const struct handler *h,
                         const struct given_up *what, struct ranges *lost)
{
    const struct cursor *c = &p->cursors[h->index];
    struct range parts[2] = {{INT64_MIN, what->low - 1},
                             {what->first, what->next - 1}};
    struct position at = {0};

    if (c->mode == CURSOR_CLOSED)
        return;
    lacks(p, c, &at);
    ranges_add(&at.gaps, at.next, INT64_MAX - 1);
    for (int i = 0; i < 2; i++) {
        struct ranges part = {&parts[i], 1, 1};

        /* Who has no place yet misses nothing of what is gone. */
        if (at.next == POSITION_LATEST ||
            (i == 0 && at.next == POSITION_EARLIEST))
            continue;
        if (parts[i].first <= parts[i].last)
            ranges_unite_common(lost, &at.gaps, &part);
    }
    ranges_fini(&at.gaps);
}

void cursor_give_up(struct cursor *c, const struct given_up *what)
{
    struct position *at = &c->from;

    c->is_void = true;
    if (at->next == POSITION_LATEST)
        return;
    if (what->low > INT64_MIN)
        ranges_remove(&at->gaps, INT64_MIN, what->low - 1);
    if (at->next < what->low)
        at->next = what->low;
    if (what->first >= what->next)
        return;
    ranges_remove(&at->gaps, what->first, what->next - 1);
    if (at->next >= what->next)
        return;
    if (at->next < what->first)
        ranges_add(&at->gaps, at->next, what->first - 1);
    at->next = what->next;
}
