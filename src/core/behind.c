/*
 * Handlers that are behind, so that none stops another.
 *
 * A handler that alone keeps a window full, one that comes back after a hold,
 * and a new one that wants old events get a reading of their own: bounded
 * pieces, through ops->fetch(), of what the partition's reading has passed.
 * When one is level with that again it is attached, and takes part as before.
 *
 *            held ◄──────────► (resumed)
 *             ▲                    │
 *             ▼                    ▼
 *   attached ─── slow ─────────► behind ─── level ───► attached
 *
 * Level means: nothing is left below the partition's reading. As that goes on
 * meanwhile, the last piece is read while it waits (p->is_joining), for a
 * moment.
 *
 * All such readings share a quarter of the window's bytes and stand back while
 * the partitions' own readings need the room.
 */
#include "base/check.h"
#include "core/pipeline_priv.h"

#define EVERY_US      4000   /* between looks at who wants to read */
#define PATIENCE_US   100000 /* nearly full for longer: who is it? */
#define STAND_BACK_US 20000  /* for what is live; then a piece all the same */
#define JOIN_US       250000 /* the partition's reading waits no longer */
#define JOIN_ROUNDS   4
#define JOIN_EVENTS   500 /* so close that it may wait */
#define PIECE_MAX     500 /* events at once */
#define PIECE_LEAST   8
#define NEIGHBOURS    1000 /* gaps that close are read as one */
#define EVENT_BYTES   1500 /* a guess, where none was seen */

/* --- who has to leave -------------------------------------------------------- */

static bool may_leave(const struct partition *p, size_t i)
{
    return i > 0 && p->ops->fetch && p->state == PARTITION_RUNNING &&
           !p->is_closing && p->cursors[i].mode == CURSOR_ATTACHED;
}

/* The load of one handler in one partition, or in all. */
static uint64_t load_of(const struct pipeline *pl, const struct partition *only,
                        size_t i, bool *takes_part)
{
    uint64_t load = 0;

    list_foreach(link, &pl->partitions) {
        const struct partition *p = CONTAINER_OF(link, struct partition, link);

        if ((only && p != only) || !may_leave(p, i))
            continue;
        load += p->cursors[i].len;
        *takes_part = *takes_part || p->cursors[i].taken > 0;
    }
    return load;
}

static void leave(struct pipeline *pl, const struct partition *only, size_t i)
{
    list_foreach(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);
        struct cursor *c = &p->cursors[i];

        if ((only && p != only) || !may_leave(p, i) || c->len == 0)
            continue;
        cursor_leave(pl, p, c, CURSOR_BEHIND, pl->config.window_events / 8);
        c->behind_since_us = 0;
        pl->ops->behind(pl->ctx, p, pl->handlers[i], true);
    }
}

/* Who holds most of what is taken leaves, if there is somebody who does not:
 * where all are slow, reading less is right. */
static void detach_the_slow(struct pipeline *pl, const struct partition *only,
                            uint64_t events)
{
    bool has_fast = false;

    for (size_t i = 1; i < pl->n_handlers && !has_fast; i++) {
        bool takes_part = false;

        has_fast =
            load_of(pl, only, i, &takes_part) <= events / 8 && takes_part;
    }
    for (size_t i = 1; has_fast && i < pl->n_handlers; i++) {
        bool takes_part = false;

        if (load_of(pl, only, i, &takes_part) >= events / 2 && takes_part)
            leave(pl, only, i);
    }
}

/* True once it has been so for a while. */
static bool is_pressed(struct pipeline *pl, bool now, int64_t *since_us)
{
    if (!now) {
        *since_us = 0;
        return false;
    }
    if (!*since_us)
        *since_us = pl->now_us;
    if (pl->now_us - *since_us < PATIENCE_US)
        return false;
    *since_us = pl->now_us;
    return true;
}

static void look_for_the_slow(struct pipeline *pl)
{
    uint64_t all = 0;

    list_foreach(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);
        uint32_t live = window_live(p);

        all += live;
        if (is_pressed(pl, live >= pl->config.window_events / 4 * 3,
                       &p->pressed_since_us))
            detach_the_slow(pl, p, live);
    }
    if (is_pressed(pl, window_live_cost(pl) >= window_live_bytes(pl) / 4 * 3,
                   &pl->pressed_since_us))
        detach_the_slow(pl, NULL, all);
}

/* --- what is read next ------------------------------------------------------- */

/* Everything it lacks below the partition's reading, piece by piece. */
static bool next_piece(const struct partition *p, const struct cursor *c,
                       int64_t *first, int64_t *last)
{
    struct ranges wanted = {0};

    if (p->next == POSITION_EARLIEST || p->next == POSITION_LATEST)
        return false; /* where the end is, is not known yet */
    cursor_wanted(p, c, &wanted);
    *first = c->from.next;
    *last = p->next - 1;
    if (wanted.len) {
        *first = wanted.at[0].first;
        *last = wanted.at[0].last;
        for (size_t i = 1;
             i < wanted.len && wanted.at[i].first - *last <= NEIGHBOURS; i++)
            *last = wanted.at[i].last;
    }
    ranges_fini(&wanted);
    return *first <= *last;
}

static bool is_level(const struct partition *p, const struct cursor *c)
{
    int64_t first, last;

    return p->next != POSITION_LATEST && c->from.next >= p->next &&
           !next_piece(p, c, &first, &last);
}

static void end_joining(struct partition *p)
{
    if (!p->is_joining)
        return;
    p->is_joining = false;
    if (!p->is_paused && p->state == PARTITION_RUNNING)
        p->ops->resume(p);
}

/* How many events it may have now; 0: it has enough. Who has none may always
 * have some: another one may have left with more than all shares together,
 * because it ran, and keep that for ever. */
static size_t room_for(const struct pipeline *pl, const struct handler *h)
{
    uint64_t all = pl->config.window_bytes / 4;
    uint64_t share = all / pl->n_behind;
    uint64_t each =
        pl->n_aside ? pl->aside_cost / pl->n_aside + 1 : EVENT_BYTES;
    uint64_t has = h->aside_cost + h->asked * each;

    if (share < PIECE_LEAST * each)
        share = PIECE_LEAST * each;
    if (has > share / 2 || (has > 0 && pl->aside_cost >= all + share))
        return 0;
    share = (share - has) / each;
    if (share > PIECE_MAX)
        return PIECE_MAX;
    return share < PIECE_LEAST ? PIECE_LEAST : (size_t)share;
}

/* Level, and not so slow that it would have to leave again. */
static void may_attach(struct partition *p, struct handler *h)
{
    struct cursor *c = &p->cursors[h->index];

    if (!is_level(p, c) || room_for(p->pipeline, h) == 0)
        return;
    cursor_set_mode(p, c, CURSOR_ATTACHED);
    c->behind_since_us = 0;
    p->pipeline->ops->behind(p->pipeline->ctx, p, h, false);
}

static bool stands_back(const struct pipeline *pl, const struct partition *p)
{
    return window_live_cost(pl) >= window_live_bytes(pl) / 2 &&
           pl->now_us - p->asked_us < STAND_BACK_US;
}

/* What was dropped while it ran is not read again before it has come back. */
static bool may_fetch(const struct partition *p, const struct handler *h)
{
    const struct cursor *c = &p->cursors[h->index];

    return c->mode == CURSOR_BEHIND && c->dropped == 0 && !p->fetching &&
           p->state == PARTITION_RUNNING && !p->is_closing;
}

static void ask_of(struct partition *p, struct handler *h, int64_t first,
                   int64_t last)
{
    struct cursor *c = &p->cursors[h->index];

    c->first = first;
    c->last = last;
    c->is_void = false;
    ranges_clear(&c->open_then);
    if (p->ops->gaps && p->ops->gaps(p))
        ranges_copy(&c->open_then, p->ops->gaps(p));
    p->fetching = h;
    p->asked_us = p->pipeline->now_us;
}

/* A piece of a log that is read as one is for all of its partitions that wait:
 * one at a time for a handler, or its answer would count for others, too. */
static bool is_asked_already(const struct partition *p, const struct handler *h)
{
    list_foreach(link, &p->pipeline->partitions) {
        const struct partition *q = CONTAINER_OF(link, struct partition, link);

        if (q->source == p->source && q->fetching == h)
            return true;
    }
    return false;
}

/* The others of a log that is read as one: whoever lacks nothing before it
 * takes part in this piece. */
static void ask_of_the_others(struct partition *p, struct handler *h,
                              int64_t first, int64_t last)
{
    list_foreach(link, &p->pipeline->partitions) {
        struct partition *q = CONTAINER_OF(link, struct partition, link);
        int64_t from, to;

        if (q->source == p->source && q != p && may_fetch(q, h) &&
            next_piece(q, &q->cursors[h->index], &from, &to) && from >= first &&
            from <= last)
            ask_of(q, h, from, last);
    }
}

/* Of a log that is read as one, the partition whose handler lacks the first. */
static struct partition *earliest(struct partition *p, struct handler *h,
                                  int64_t *first, int64_t *last)
{
    struct partition *found = p;

    list_foreach(link, &p->pipeline->partitions) {
        struct partition *q = CONTAINER_OF(link, struct partition, link);
        int64_t from, to;

        if (q->source != p->source || !may_fetch(q, h) ||
            !next_piece(q, &q->cursors[h->index], &from, &to) || from >= *first)
            continue;
        found = q;
        *first = from;
        *last = to;
    }
    return found;
}

/* So near the end that the partition's reading waits for this piece. */
static void may_join(struct partition *p, int64_t first, int64_t last,
                     size_t room)
{
    if (p->is_joining || last != p->next - 1 || first == POSITION_EARLIEST ||
        last - first >= JOIN_EVENTS || (uint64_t)(last - first) >= room)
        return;
    p->is_joining = true;
    p->joins = 0;
    p->ops->pause(p);
}

/* True when it was asked. */
static bool fetch(struct pipeline *pl, struct partition *p, struct handler *h)
{
    int64_t first, last;
    size_t room;

    if (!may_fetch(p, h) || pl->is_held || stands_back(pl, p) ||
        (p->ops->fetches_all && is_asked_already(p, h)))
        return false;
    room = room_for(pl, h);
    if (room == 0 || !next_piece(p, &p->cursors[h->index], &first, &last))
        return false;
    if (p->ops->fetches_all)
        p = earliest(p, h, &first, &last);
    may_join(p, first, last, room);
    ask_of(p, h, first, last);
    if (p->ops->fetches_all)
        ask_of_the_others(p, h, first, last);
    p->asked = room;
    h->asked += room;
    p->ops->fetch(p, h, first, last, room);
    return true;
}

/* --- the answer ------------------------------------------------------------------ */

/* Its own reading has passed everything below `next`. A number that was open
 * when the piece was asked for may have been invisible to it: a gap still. */
static void passed(struct cursor *c, int64_t next)
{
    if (next <= c->first)
        return;
    ranges_remove(&c->from.gaps, c->first, next - 1);
    if (c->open_then.len) {
        struct range below = {c->first, next - 1};
        struct ranges piece = {&below, 1, 1};

        ranges_unite_common(&c->from.gaps, &c->open_then, &piece);
    }
    if (next > c->from.next)
        c->from.next = next;
    c->first = next;
}

bool behind_takes(const struct event *ev)
{
    struct partition *p = ev->partition;
    struct handler *h = ev->reader;
    struct cursor *c = &p->cursors[h->index];
    bool is_wanted;

    if (c->mode != CURSOR_BEHIND || p->fetching != h || c->is_void ||
        ev->place < c->first || ev->place > c->last)
        return false;
    is_wanted =
        ev->place >= c->from.next || ranges_has(&c->from.gaps, ev->place);
    ranges_remove(&c->open_then, ev->place, ev->place);
    passed(c, ev->place + 1);
    if (c->len == 0)
        c->moved_us = p->pipeline->now_us;
    if (ev->occurred_us)
        c->behind_since_us = ev->occurred_us;
    return is_wanted;
}

static void answered(struct partition *p, struct handler *h, int64_t next)
{
    struct cursor *c = &p->cursors[h->index];

    p->fetching = NULL;
    if (c->is_void || c->mode != CURSOR_BEHIND)
        return;
    if (next > c->first && c->len == 0)
        c->moved_us = p->pipeline->now_us;
    passed(c, next <= c->last ? next : c->last + 1);
    may_attach(p, h);
}

void pipeline_fetched(struct partition *p, int64_t next)
{
    struct pipeline *pl = p->pipeline;
    struct handler *h = p->fetching;

    CHECK(h);
    h->asked -= p->asked;
    p->asked = 0;
    answered(p, h, next);
    if (p->ops->fetches_all)
        list_foreach(link, &pl->partitions) {
            struct partition *q = CONTAINER_OF(link, struct partition, link);

            if (q->source == p->source && q->fetching == h)
                answered(q, h, next);
        }
    /* What was still offered when the reading was asked to wait. */
    if (p->is_joining && ++p->joins < JOIN_ROUNDS &&
        p->cursors[h->index].mode == CURSOR_BEHIND && fetch(pl, p, h))
        return;
    end_joining(p);
}

/* --- now and then ------------------------------------------------------------- */

/* Whose turn it is: in a circle, so that none waits for another's end. */
static void fetch_next(struct pipeline *pl, struct partition *p)
{
    for (size_t n = 0; n < p->n_cursors && !p->fetching; n++) {
        uint32_t i = p->fetch_turn++ % (uint32_t)p->n_cursors;
        struct cursor *c = &p->cursors[i];

        if (c->mode != CURSOR_BEHIND || c->dropped > 0)
            continue;
        may_attach(p, pl->handlers[i]);
        fetch(pl, p, pl->handlers[i]);
    }
}

static void tick_partition(struct pipeline *pl, struct partition *p)
{
    if (p->is_joining && pl->now_us - p->asked_us > JOIN_US)
        end_joining(p);
    if (p->n_behind > 0 && !p->fetching && p->state == PARTITION_RUNNING)
        fetch_next(pl, p);
}

/* The room is little: each time another partition comes first. */
static void read_for_all(struct pipeline *pl)
{
    size_t n = 0, at, skip;

    list_foreach(link, &pl->partitions)
        n++;
    skip = n > 0 ? pl->behind_turn++ % n : 0;
    for (int round = 0; round < 2; round++) {
        at = 0;
        list_foreach(link, &pl->partitions)
            if ((at++ < skip) == (round == 1))
                tick_partition(pl, CONTAINER_OF(link, struct partition, link));
    }
}

void behind_tick(struct pipeline *pl)
{
    if (pl->now_us < pl->behind_again_us)
        return;
    pl->behind_again_us = pl->now_us + EVERY_US;
    look_for_the_slow(pl);
    if (pl->n_behind > 0)
        read_for_all(pl);
}

/* Its readings end with it. */
void behind_close(struct partition *p)
{
    struct handler *h = p->fetching;

    if (h)
        h->asked -= p->asked;
    for (size_t i = 0; i < p->n_cursors; i++)
        cursor_set_mode(p, &p->cursors[i], CURSOR_CLOSED);
    if (!h || !p->asked || !p->ops->fetches_all)
        return;
    list_foreach(link, &p->pipeline->partitions) {
        struct partition *q = CONTAINER_OF(link, struct partition, link);

        if (q->source == p->source && q->fetching == h)
            q->fetching = NULL; /* it was part of that, too */
    }
}

/* --- held, and back ------------------------------------------------------------- */

void pipeline_detach(struct pipeline *pl, struct handler *h, bool is_removed)
{
    h->is_held = h->is_held || !is_removed;
    h->is_removed = h->is_removed || is_removed;
    list_foreach(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);
        struct cursor *c = &p->cursors[h->index];

        if (c->mode != CURSOR_HELD)
            cursor_leave(pl, p, c, CURSOR_HELD, 0);
    }
}

/* Where it takes part from now on: with the others, or by itself at first. */
void cursor_return(struct partition *p, struct cursor *c)
{
    bool is_known =
        p->state == PARTITION_RUNNING && c - p->cursors > 0 && p->ops->fetch;

    if (is_known && (c->len > 0 || !is_level(p, c)))
        cursor_set_mode(p, c, CURSOR_BEHIND);
    else
        cursor_set_mode(p, c, CURSOR_ATTACHED);
}

void pipeline_attach(struct pipeline *pl, struct handler *h)
{
    h->is_held = false;
    h->is_removed = false;
    list_foreach(link, &pl->partitions) {
        struct partition *p = CONTAINER_OF(link, struct partition, link);
        struct cursor *c = &p->cursors[h->index];

        if (c->mode != CURSOR_HELD)
            continue;
        c->behind_since_us = 0;
        cursor_return(p, c);
    }
    handler_unblock(pl, h);
}

/* --- given up ------------------------------------------------------------------- */

static void give_up_of(struct partition *p, struct handler *h,
                       const struct given_up *what)
{
    struct cursor *c = &p->cursors[h->index];

    if (c->mode == CURSOR_ATTACHED)
        cursor_leave(p->pipeline, p, c, CURSOR_BEHIND, UINT32_MAX);
    if (c->mode != CURSOR_CLOSED)
        cursor_give_up(c, what);
}

/* The log ends before the place of the reading: new events will have the
 * numbers of those that are gone. */
static void go_back(struct partition *p, int64_t next)
{
    for (size_t i = 1; i < p->n_cursors; i++) {
        struct cursor *c = &p->cursors[i];

        if (c->mode == CURSOR_CLOSED || c->from.next <= next)
            continue;
        ranges_cut(&c->from.gaps, next);
        c->from.next = next;
        c->is_void = true;
    }
    p->next = p->began = next;
}

void pipeline_give_up(struct partition *p, struct handler *h,
                      const struct given_up *what)
{
    if (h) {
        give_up_of(p, h, what);
        return;
    }
    for (size_t i = 1; i < p->n_cursors; i++)
        if (p->cursors[i].mode != CURSOR_ATTACHED &&
            p->cursors[i].mode != CURSOR_CLOSED)
            cursor_give_up(&p->cursors[i], what);
    if (what->next < p->next)
        go_back(p, what->next);
    else
        pipeline_advance(p, what->next);
}
