/*
 * A simple model around the pipeline: a log of events with few keys, workers
 * that keep a lane's order, random verdicts, deaths, holds and handlers that
 * fall behind, in virtual time.
 */
#ifndef PIPELINE_MODEL_H
#define PIPELINE_MODEL_H

#include "core/pipeline.h"

#include "base/buf.h"
#include "base/digest.h"
#include "base/hash.h"
#include "base/mem.h"
#include "ipc/channel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EVENTS   12000
#define KEYS     17
#define HANDLERS 3
#define WORKERS  3
#define SHARDS   4   /* partitions of one log, in some tests */
#define LONGEST  100 /* numbers drawn while a transaction is open, at most */

struct held {
    uint32_t slot, generation;
    uint64_t lane;
    int handler;
    int64_t place;
    bool fresh;
};

/* What a log of numbers in commit order knows of one: it may be taken before
 * it is visible, or for ever without (a transaction that rolled back). */
enum visible { VISIBLE, NOT_YET, NEVER };

/* A row of the parked queue, or (is_dead) a dead letter that is waited for. */
struct row {
    int64_t id, place;
    uint64_t lane;
    bool has_lane, is_dead, is_offered;
    enum park_reason reason;
    int handler, attempts;
    int64_t due_us;
};

/* Of the log, read again for a handler: for those of its shards that waited for
 * it when it was asked. */
struct piece {
    struct partition *p;
    struct handler *of;
    int64_t first, last;
    size_t max;
    bool shards[SHARDS];
    uint8_t visible[EVENTS];
};

struct parking {
    struct delivery *d;
    struct row row;
};

struct model {
    struct pipeline *pl;
    struct metrics *metrics;
    struct partition *p; /* the first of */
    struct partition *parts[SHARDS];
    int n_parts;
    struct handler *handlers[HANDLERS];
    uint64_t seed;
    int64_t now_us, reader; /* the source's next offset; -1: not started */
    bool is_paused, is_quiet, wants_spare, spare_up;
    struct held at[WORKERS + 1][8192];
    size_t n_at[WORKERS + 1];
    struct delivery *stores[EVENTS * HANDLERS];
    size_t n_stores;
    int done[HANDLERS][EVENTS];   /* how often it was settled well */
    int64_t last[HANDLERS][KEYS]; /* the latest place done, per key */
    int attempts[HANDLERS][EVENTS];
    int released;
    char keys[KEYS][8];
    bool ring_full, no_chaos;
    size_t n_sent, n_shared;      /* messages, deliveries beyond one in them */
    int rooms_again;              /* calls of room_again() */
    int n_returned;               /* calls of returned() */
    int n_behind, n_level;        /* handlers that left, and that came back */
    struct piece *pieces[SHARDS]; /* asked for, not answered yet */
    size_t n_pieces;
    int slow; /* this handler's deliveries hardly ever end; -1: none */
    /* An outbox: some numbers are invisible for a while, and gaps until then. */
    uint8_t visible[EVENTS];
    struct ranges gaps;
    /* The parked queue: rows, and those that are being written. */
    struct row rows[EVENTS * HANDLERS];
    struct parking parking[EVENTS * HANDLERS];
    size_t n_rows, n_parking, n_parked;
    int64_t next_row;
    struct flags flags;
    int64_t start_at; /* where POSITION_LATEST is */
};

static uint64_t chance(struct model *m, uint64_t n)
{
    m->seed = m->seed * 6364136223846793005u + 1442695040888963407u;
    return hash_mix(m->seed, 5) % n;
}

/* --- the source ------------------------------------------------------------- */

static void source_start(struct partition *p, const struct position *from)
{
    struct model *m = p->source;

    m->reader = from->next < 0 ? 0 : from->next;
    if (from->next == POSITION_LATEST)
        m->reader = m->start_at;
    m->is_paused = false;
    pipeline_advance(p, m->reader);
}

static void source_pause(struct partition *p)
{
    ((struct model *)p->source)->is_paused = true;
}

static void source_resume(struct partition *p)
{
    ((struct model *)p->source)->is_paused = false;
}

static void source_release(struct event *ev)
{
    ((struct model *)ev->partition->source)->released++;
}

static void source_fetch(struct partition *p, struct handler *reader,
                         int64_t first, int64_t last, size_t max)
{
    struct model *m = p->source;
    struct piece *piece = xcalloc(1, sizeof(*piece));

    assert_true(last < p->next && max > 0 && m->n_pieces < SHARDS);
    *piece = (struct piece){.p = p,
                            .of = reader,
                            .first = first < 0 ? 0 : first,
                            .last = last,
                            .max = max};
    for (int i = 0; i < m->n_parts; i++)
        piece->shards[i] = m->parts[i]->fetching == reader;
    memcpy(piece->visible, m->visible, sizeof(m->visible));
    m->pieces[m->n_pieces++] = piece;
}

static const struct source_ops source = {
    .kind = SOURCE_KAFKA,
    .start = source_start,
    .pause = source_pause,
    .resume = source_resume,
    .fetch = source_fetch,
    .release = source_release,
};

static int shard_of(const struct model *m, int64_t place)
{
    return (int)(place % KEYS) % m->n_parts;
}

static void offer(struct model *m, int64_t place, struct handler *reader,
                  bool is_late)
{
    struct event *ev = pipeline_event_new(m->pl, m->parts[shard_of(m, place)]);

    ev->place = place;
    ev->reader = reader;
    ev->is_late = is_late;
    ev->facts[FACT_TYPE] = slice_of(place % 5 ? "CallCreated" : "order.paid");
    ev->facts[FACT_AGGREGATE_ID] = slice_of(m->keys[place % KEYS]);
    ev->body = SLICE_LIT("{}");
    pipeline_offer(m->pl, ev);
}

/* Some of a piece, and at its end the answer. */
static void read_piece(struct model *m, size_t most)
{
    size_t i = m->n_pieces ? chance(m, m->n_pieces) : 0;
    struct piece *piece = m->n_pieces ? m->pieces[i] : NULL;

    if (!piece)
        return;
    for (; most > 0 && piece->max > 0 && piece->first <= piece->last;
         piece->first++)
        if (piece->visible[piece->first] == VISIBLE &&
            piece->shards[shard_of(m, piece->first)]) {
            offer(m, piece->first, piece->of, false);
            most--;
            piece->max--;
        }
    if (piece->max > 0 && piece->first <= piece->last)
        return;
    m->pieces[i] = m->pieces[--m->n_pieces];
    pipeline_fetched(piece->p, piece->first);
    free(piece);
}

/* A transaction ends and its number appears. */
static void end_one(struct model *m, int64_t place)
{
    if (m->visible[place] == NOT_YET)
        m->visible[place] = VISIBLE;
}

/* Gaps come first: their numbers are lower. */
static void look_into_gaps(struct model *m)
{
    struct ranges then = {0};

    ranges_copy(&then, &m->gaps);
    for (size_t i = 0; i < then.len; i++)
        for (int64_t n = then.at[i].first; n <= then.at[i].last; n++) {
            if (m->visible[n] == NOT_YET ||
                (m->visible[n] == NEVER && chance(m, 4) > 0))
                continue;
            ranges_remove(&m->gaps, n, n);
            if (m->visible[n] == VISIBLE)
                offer(m, n, NULL, true);
        }
    ranges_fini(&then);
}

static void read_some(struct model *m, size_t most)
{
    size_t room = pipeline_room(m->pl);

    if (m->reader < 0 || m->is_paused)
        return;
    for (int64_t n = m->reader - LONGEST; n < m->reader - LONGEST / 2; n++)
        if (n >= 0)
            end_one(m, n);
    look_into_gaps(m);
    for (; most > 0 && room > 0 && m->reader < EVENTS; most--, room--) {
        if (m->visible[m->reader] == VISIBLE) {
            offer(m, m->reader++, NULL, false);
        } else {
            ranges_add(&m->gaps, m->reader, m->reader);
            m->reader++;
        }
    }
    for (int i = 0; i < m->n_parts; i++)
        pipeline_advance(m->parts[i], m->reader);
}

static const struct ranges *source_gaps(const struct partition *p)
{
    return &((const struct model *)p->source)->gaps;
}

static const struct source_ops shards = {
    .kind = SOURCE_OUTBOX,
    .start = source_start,
    .pause = source_pause,
    .resume = source_resume,
    .fetch = source_fetch,
    .fetches_all = true,
    .release = source_release,
    .gaps = source_gaps,
};

static const struct source_ops outbox = {
    .kind = SOURCE_OUTBOX,
    .start = source_start,
    .pause = source_pause,
    .resume = source_resume,
    .fetch = source_fetch,
    .release = source_release,
    .gaps = source_gaps,
};

/* --- the host's side ----------------------------------------------------------- */

static bool op_send(void *ctx, unsigned worker, const struct event_msg *ev,
                    const struct delivery_msg *to, size_t n)
{
    struct model *m = ctx;

    if (m->n_at[worker] >= 150 + worker || (m->ring_full && chance(m, 3) == 0))
        return false;
    if (worker == WORKERS)
        assert_int_equal(m->n_at[worker] + (int)n, 1); /* one at a time */
    for (size_t i = 0; i < n; i++)
        m->at[worker][m->n_at[worker]++] = (struct held){
            to[i].slot,        to[i].generation, to[i].lane,
            (int)to[i].vm - 1, ev->place,        to[i].flags & DELIVER_FRESH};
    m->n_sent++;
    m->n_shared += (int)n - 1;
    return true;
}

static void op_store(void *ctx, struct delivery *d, enum verdict how)
{
    struct model *m = ctx;

    (void)how;
    m->stores[m->n_stores++] = d;
}

static void op_quiet(void *ctx, struct partition *p)
{
    (void)p;
    ((struct model *)ctx)->is_quiet = true;
}

static void op_room_again(void *ctx)
{
    ((struct model *)ctx)->rooms_again++;
}

static void op_fenced(void *ctx, struct partition *p)
{
    (void)ctx;
    (void)p;
    fail_msg("nobody fenced");
}

static void op_want_spare(void *ctx)
{
    ((struct model *)ctx)->wants_spare = true;
}

static void op_behind(void *ctx, struct partition *p, struct handler *h,
                      bool is_behind)
{
    struct model *m = ctx;

    (void)p;
    (void)h;
    m->n_behind += is_behind;
    m->n_level += !is_behind;
}

/* --- the model of what must be true ---------------------------------------------- */

static void settled_well(struct model *m, const struct held *h)
{
    int64_t *last = &m->last[h->handler][h->place % KEYS];

    assert_true(h->place > *last); /* in the order of its key */
    *last = h->place;
    m->done[h->handler][h->place]++;
}

/* --- the parked queue ------------------------------------------------------------ */

static void op_park(void *ctx, struct delivery *d, enum park_reason reason,
                    int64_t delay_ms, const char *flag)
{
    struct model *m = ctx;
    struct parking *k = &m->parking[m->n_parking++];

    *k = (struct parking){.d = d,
                          .row = {.id = d->event->parked_id,
                                  .place = d->event->place,
                                  .reason = reason,
                                  .handler = (int)d->handler->vm - 1,
                                  .attempts = d->attempt - 1,
                                  .due_us = m->now_us + delay_ms * 1000}};
    k->row.has_lane = pipeline_lane(d, &k->row.lane);
    (void)flag;
}

static struct row *row_of(struct model *m, int64_t id)
{
    for (size_t i = 0; i < m->n_rows; i++)
        if (m->rows[i].id == id)
            return &m->rows[i];
    return NULL;
}

static void put_row(struct model *m, struct row row)
{
    struct row *old = row.id ? row_of(m, row.id) : NULL;

    if (old) {
        row.is_offered = true; /* until it is released */
        *old = row;
        return;
    }
    row.id = ++m->next_row;
    m->rows[m->n_rows++] = row;
    m->n_parked++;
}

/* The store writes them in their order. */
static void park_one(struct model *m)
{
    struct parking k = m->parking[0];

    m->n_parking--;
    memmove(m->parking, m->parking + 1, m->n_parking * sizeof(k));
    put_row(m, k.row);
    pipeline_parked(m->pl, k.d);
}

static bool same_lane(const struct row *a, const struct row *b)
{
    return a->has_lane && b->has_lane && a->lane == b->lane &&
           a->handler == b->handler;
}

/* The first of the lane of a random row. */
static struct row *any_head(struct model *m)
{
    struct row *head = m->n_rows ? &m->rows[chance(m, m->n_rows)] : NULL;

    for (size_t i = 0; head && i < m->n_rows; i++)
        if (same_lane(&m->rows[i], head) && m->rows[i].place < head->place)
            head = &m->rows[i];
    return head;
}

/* The last of its lane frees it, unless more is on its way there. */
static void remove_row(struct model *m, int64_t id)
{
    struct row *at = row_of(m, id), row = *at;

    *at = m->rows[m->n_rows - 1];
    m->n_rows--;
    for (size_t i = 0; i < m->n_rows; i++)
        if (same_lane(&m->rows[i], &row))
            return;
    for (size_t i = 0; i < m->n_parking; i++)
        if (same_lane(&m->parking[i].row, &row))
            return;
    if (row.has_lane)
        pipeline_unblock(m->p, m->handlers[row.handler], row.lane);
}

static void parked_release(struct event *ev)
{
    struct model *m = ev->partition->source;
    struct row *row = row_of(m, ev->parked_id);

    if (row)
        row->is_offered = false;
}

static void parked_settled(struct event *ev, enum verdict how,
                           const char *reason)
{
    (void)reason;
    if (how != VERDICT_DEAD || row_of(ev->partition->source, ev->parked_id))
        remove_row(ev->partition->source, ev->parked_id);
}

static const struct source_ops parked = {
    .kind = SOURCE_KAFKA,
    .release = parked_release,
    .settled = parked_settled,
};

static void offer_row(struct model *m, struct row *row)
{
    struct event *ev = pipeline_event_new(m->pl, m->p);

    row->is_offered = true;
    ev->place = row->place;
    ev->ops = &parked;
    ev->parked_id = row->id;
    ev->parked_attempts = row->attempts;
    ev->facts[FACT_TYPE] =
        slice_of(row->place % 5 ? "CallCreated" : "order.paid");
    ev->facts[FACT_AGGREGATE_ID] = slice_of(m->keys[row->place % KEYS]);
    ev->body = SLICE_LIT("{}");
    pipeline_offer_parked(m->pl, ev, m->handlers[row->handler]);
}

static struct row *next_of_lane(struct model *m, const struct row *row)
{
    struct row *next = NULL;

    for (size_t i = 0; i < m->n_rows; i++)
        if (same_lane(&m->rows[i], row) && m->rows[i].place > row->place &&
            (!next || m->rows[i].place < next->place))
            next = &m->rows[i];
    return next;
}

/* The head of a lane whose time has come, and some that follow it. */
static void offer_parked(struct model *m)
{
    struct row *row = any_head(m), offered;

    if (!row || row->is_dead || row->is_offered ||
        (row->reason == PARK_RETRY && row->due_us > m->now_us))
        return;
    for (size_t n = 0; n < 3 && row; n++) {
        offered = *row;
        offer_row(m, row);
        row = next_of_lane(m, &offered);
        if (row &&
            (row->is_offered || row->is_dead || row->reason != PARK_BEHIND))
            return;
    }
}

/* Somebody redrives a dead letter that is waited for; here it always passes. */
static void redrive_one(struct model *m)
{
    const struct row *row = any_head(m);
    struct held h;

    if (!row || !row->is_dead)
        return;
    h = (struct held){.handler = row->handler, .place = row->place};
    settled_well(m, &h);
    remove_row(m, row->id);
}

static void op_stopped(void *ctx, struct handler *h, const struct delivery *d)
{
    (void)ctx;
    (void)h;
    (void)d;
    fail_msg("nobody stops");
}

static void op_returned(void *ctx, const struct delivery *d)
{
    struct model *m = ctx;

    assert_true(d->handler->spec->in_kafka);
    m->n_returned++;
}

static const struct pipeline_ops ops = {
    op_send,   op_store,      op_park,       op_stopped, op_quiet,
    op_fenced, op_room_again, op_want_spare, op_behind,  op_returned};

/* --- workers ------------------------------------------------------------------------ */

static void take_out(struct model *m, unsigned w, size_t i)
{
    memmove(&m->at[w][i], &m->at[w][i + 1],
            (m->n_at[w] - i - 1) * sizeof(struct held));
    m->n_at[w]--;
}

static void verdict(struct model *m, unsigned w, size_t i, enum verdict how)
{
    struct held h = m->at[w][i];
    struct verdict_msg v = {.slot = h.slot,
                            .generation = h.generation,
                            .verdict = how,
                            .after_ms = how == VERDICT_SNOOZE ? 5 : -1,
                            .reason = SLICE_LIT("because")};

    take_out(m, w, i);
    if (how == VERDICT_ACK)
        settled_well(m, &h);
    pipeline_verdict(m->pl, w, &v);
}

/* The first of its lane among those the worker has. */
static size_t first_of_lane(const struct model *m, unsigned w, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (m->at[w][k].lane == m->at[w][i].lane)
            return k;
    return i;
}

/* The first of a random lane. */
static size_t pick(struct model *m, unsigned w)
{
    return first_of_lane(m, w, chance(m, m->n_at[w]));
}

static enum verdict roll(struct model *m, const struct held *h)
{
    uint64_t r = m->no_chaos ? 99 : chance(m, 100);

    m->attempts[h->handler][h->place]++;
    if (r < 8)
        return VERDICT_RETRY;
    if (r < 10)
        return VERDICT_DEAD;
    if (r < 13)
        return VERDICT_SNOOZE;
    if (r < 15)
        return VERDICT_AGAIN;
    return VERDICT_ACK;
}

static void run_one(struct model *m, unsigned w)
{
    size_t i = pick(m, w);
    uint64_t lane = m->at[w][i].lane;
    enum verdict how;

    if (m->at[w][i].handler == m->slow && chance(m, 100) > 0)
        return;
    how = roll(m, &m->at[w][i]);

    verdict(m, w, i, how);
    if (how == VERDICT_ACK)
        return;
    for (size_t k = 0; k < m->n_at[w];)
        if (m->at[w][k].lane == lane)
            verdict(m, w, k, VERDICT_BACK);
        else
            k++;
}

static void kill_worker(struct model *m, unsigned w)
{
    uint64_t started[CHANNEL_SLOTS / 64] = {0};
    struct worker_death death = {
        .started = started, .class = CLASS_CRASH, .reason = "killed: SIGSEGV"};

    if (m->n_at[w] > 0) {
        size_t i = pick(m, w);

        started[m->at[w][i].slot / 64] |= 1ull << (m->at[w][i].slot % 64);
        death.something_ran = chance(m, 2);
        death.running = m->at[w][i].slot;
        death.run_count = 1;
    }
    m->n_at[w] = 0;
    pipeline_worker_died(m->pl, w, &death);
    pipeline_worker_up(m->pl, w);
}

/* --- one step of chance ---------------------------------------------------------------- */

static void store_one(struct model *m)
{
    size_t i = chance(m, m->n_stores);
    struct delivery *d = m->stores[i];
    struct held h = {.handler = (int)d->handler->vm - 1,
                     .place = d->event->place};
    struct row letter;

    m->stores[i] = m->stores[--m->n_stores];
    letter =
        (struct row){.place = h.place, .handler = h.handler, .is_dead = true};
    letter.has_lane = pipeline_lane(d, &letter.lane);
    if (d->handler->spec->on_dead == ON_DEAD_PARK)
        put_row(m, letter);
    else
        settled_well(m, &h);
    pipeline_stored(m->pl, d);
}

/* One of them is slow for a while, or none. */
static void slow_down(struct model *m)
{
    m->slow = (int)chance(m, HANDLERS + 1) - 1;
}

static void hold_or_release(struct model *m)
{
    struct handler *h = m->handlers[chance(m, HANDLERS)];

    if (h->is_held)
        pipeline_attach(m->pl, h);
    else
        pipeline_detach(m->pl, h, false);
}

static void run_some(struct model *m)
{
    for (int i = 0; i < 8; i++) {
        unsigned w = (unsigned)chance(m, WORKERS + 1);

        if (m->n_at[w] > 0)
            run_one(m, w);
    }
}

static void step(struct model *m)
{
    uint64_t r = chance(m, 1000);
    unsigned w = (unsigned)chance(m, WORKERS + 1);

    m->now_us += 1000;
    pipeline_tick(m->pl, m->now_us, 1700000000000000 + m->now_us);
    m->ring_full = r % 7 == 0;
    if (r < 200 && (m->no_chaos || m->now_us / 500000 % 8 == 0))
        read_some(m, 1 + chance(m, 30)); /* it comes in bursts */
    else if (r < 300)
        read_piece(m, 1 + chance(m, 30));
    else if (r < 400)
        end_one(m, (int64_t)chance(m, EVENTS));
    else if (r < 900)
        run_some(m);
    else if (r < 960 && m->n_stores > 0)
        store_one(m);
    else if (r < 963 && !m->no_chaos && w < WORKERS)
        kill_worker(m, w);
    else if (r < 966 && !m->no_chaos)
        hold_or_release(m);
    else if (r < 971 && !m->no_chaos)
        slow_down(m);
    else if (r < 980 && m->n_parking > 0)
        park_one(m);
    else if (r < 995)
        offer_parked(m);
    else
        redrive_one(m);
    if (m->wants_spare && !m->spare_up) {
        m->spare_up = true;
        pipeline_worker_up(m->pl, WORKERS);
    }
    pipeline_pump_all(m->pl);
}

static bool is_finished(struct model *m)
{
    struct pipeline_numbers n;

    for (int i = 0; i < m->n_parts; i++)
        if (m->parts[i]->n_behind > 0 ||
            m->parts[i]->state != PARTITION_RUNNING)
            return false;
    pipeline_numbers(m->pl, &n);
    return m->reader == EVENTS && n.events == 0 && m->gaps.len == 0 &&
           m->n_rows == 0 && m->n_parking == 0;
}

static bool is_due(const struct model *m, int h, int64_t place)
{
    return m->visible[place] == VISIBLE &&
           handler_wants(m->handlers[h],
                         slice_of(place % 5 ? "CallCreated" : "order.paid"));
}

static bool is_in_queue(const struct model *m, int h, int64_t place)
{
    for (size_t i = 0; i < m->n_rows; i++)
        if (m->rows[i].handler == h && m->rows[i].place == place)
            return true;
    return false;
}

/* No position may be beyond something that is not settled, and no gap may be
 * what is settled. */
static void check_position(const struct model *m, int shard, int h)
{
    struct position at;

    if (!pipeline_position(m->parts[shard], m->handlers[h], &at))
        return;
    for (int64_t place = 0; place < EVENTS; place++)
        if (shard_of(m, place) != shard)
            continue;
        else if (ranges_has(&at.gaps, place))
            assert_int_equal(m->done[h][place], 0);
        else if (place < at.next && is_due(m, h, place) &&
                 !is_in_queue(m, h, place))
            assert_int_equal(m->done[h][place], 1);
    ranges_fini(&at.gaps);
}

static void check_positions(struct model *m)
{
    for (int shard = 0; shard < m->n_parts; shard++)
        for (int h = 0; h < HANDLERS; h++)
            check_position(m, shard, h);
}

static struct handler_spec *spec(const char *pattern, enum ordering ordering,
                                 int concurrency)
{
    struct handler_spec *s = xcalloc(1, sizeof(*s));

    s->version = xstrdup("v");
    s->subscribes = xcalloc(1, sizeof(char *));
    s->subscribes[0] = xstrdup(pattern);
    s->n_subscribes = 1;
    s->ordering = ordering;
    s->concurrency = concurrency;
    s->retry = (struct retry_policy){50, 3, 20, true};
    s->start = POSITION_LATEST;
    return s;
}

static void set_up_parking(struct model *m, uint64_t seed,
                           uint64_t window_bytes, int64_t park_after_ms)
{
    static const char *const patterns[HANDLERS] = {"*", "order.*", "Call*"};
    struct pipeline_config config = {.window_events = 200,
                                     .window_bytes = window_bytes,
                                     .event_bytes = 1 << 20,
                                     .n_workers = WORKERS,
                                     .quarantine_us = 50000,
                                     .park_after_ms = park_after_ms};
    struct position from = {.next = POSITION_EARLIEST};

    memset(m, 0, sizeof(*m));
    memset(m->last, 0xff, sizeof(m->last));
    m->seed = seed;
    m->reader = m->slow = -1;
    m->metrics = metrics_new();
    m->pl = pipeline_new(&config, &ops, m, m->metrics);
    m->now_us = 1000;
    pipeline_tick(m->pl, m->now_us, 1700000000000000);
    for (int i = 0; i < KEYS; i++)
        snprintf(m->keys[i], sizeof(m->keys[i]), "key%d", i);
    for (int i = 0; i < HANDLERS; i++) {
        m->handlers[i] = pipeline_handler(m->pl, patterns[i]);
        pipeline_switch(m->pl, m->handlers[i],
                        spec(patterns[i], ORDER_KEY, i == 2 ? 2 : 16),
                        (uint32_t)i + 1);
    }
    m->p = pipeline_open(m->pl, &source, m, "calls", 0, "calls/0", "id");
    m->parts[0] = m->p;
    m->n_parts = 1;
    pipeline_open_cursor(m->p, pipeline_handler(m->pl, ""), &from, 0);
    for (int i = 0; i < HANDLERS; i++) {
        from = (struct position){.next = POSITION_EARLIEST};
        pipeline_open_cursor(m->p, m->handlers[i], &from, 1);
    }
    pipeline_start(m->p);
    for (unsigned w = 0; w < WORKERS; w++)
        pipeline_worker_up(m->pl, w);
}

static void set_up(struct model *m, uint64_t seed, uint64_t window_bytes)
{
    set_up_parking(m, seed, window_bytes, 0);
}

static void drain(struct model *m)
{
    m->no_chaos = true;
    m->slow = -1;
    for (int i = 0; i < HANDLERS; i++)
        if (m->handlers[i]->is_held)
            pipeline_attach(m->pl, m->handlers[i]);
    for (int i = 0; i < 2000000 && !is_finished(m); i++)
        step(m);
    assert_true(is_finished(m));
}

#endif
