/*
 * The shards that are ours, as partitions: what the host asks of each becomes a
 * change of who follows which reading (outbox_readings.h).
 */
#include "base/log.h"
#include "base/mem.h"
#include "sources/outbox_priv.h"

#include <stdio.h>
#include <stdlib.h>

#define UNUSED __attribute__((unused))

static const char component[] = "outbox";

void outbox_shards_init(struct outbox_source *s)
{
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        s->shards[i] = (struct outbox_shard){.source = s, .number = i};
}

unsigned outbox_shards_opened(const struct outbox_source *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < SHARDS_MAX; i++)
        n += s->shards[i].p && !s->shards[i].is_closing;
    return n;
}

/* --- the latest ----------------------------------------------------------------- */

bool outbox_shards_want_latest(const struct outbox_source *s)
{
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (s->shards[i].wants_latest)
            return true;
    return false;
}

void outbox_shards_start_latest(struct outbox_source *s, int64_t next)
{
    for (unsigned i = 0; i < SHARDS_MAX; i++) {
        struct outbox_shard *shard = &s->shards[i];

        if (!shard->wants_latest)
            continue;
        shard->wants_latest = false;
        readings_start(&s->readings, i, next, NULL);
        s->sink.advance(s->sink.ctx, shard->p, next);
    }
}

/* --- the seam --------------------------------------------------------------------- */

static void start(struct partition *p, const struct position *from)
{
    struct outbox_shard *shard = p->place;
    struct outbox_source *s = shard->source;
    bool is_first = from->next == POSITION_EARLIEST;

    s->delay = SOON;
    shard->wants_latest = from->next == POSITION_LATEST;
    if (shard->wants_latest) {
        readings_leave(&s->readings, shard->number);
    } else {
        readings_start(&s->readings, shard->number, is_first ? 1 : from->next,
                       &from->gaps);
        if (is_first)
            s->sink.advance(s->sink.ctx, p, 1);
        s->is_checked = false; /* compare the position with the sequence */
        s->failed_us = 0;
    }
    outbox_step_soon(s);
}

static void pause_reading(struct partition *p)
{
    struct outbox_shard *shard = p->place;

    readings_pause(&shard->source->readings, shard->number);
}

static void resume_reading(struct partition *p)
{
    struct outbox_shard *shard = p->place;

    if (shard->is_closing)
        return;
    readings_resume(&shard->source->readings, shard->number);
    outbox_step_soon(shard->source);
}

static void wake(void *source)
{
    struct outbox_source *s = source;

    if (s->is_starved)
        outbox_step_soon(s);
    s->is_starved = false;
}

static void fetch(struct partition *p, struct handler *reader, int64_t first,
                  int64_t last, size_t max)
{
    struct outbox_shard *shard = p->place;

    outbox_fetch(shard->source->fetch, p, reader, first, last, max);
}

static void release(struct event *event)
{
    free(event->memory);
}

/* The positions table says it all; nobody else wants to know. */
static void commit(UNUSED struct partition *p,
                   UNUSED const struct position *settled)
{
}

static void fenced(struct partition *p)
{
    struct outbox_shard *shard = p->place;

    outbox_lease_fenced(shard->source->lease, shard->number);
}

static void closed(struct partition *p)
{
    struct outbox_shard *shard = p->place;
    struct outbox_source *s = shard->source;

    outbox_fetch_cancel(s->fetch, p);
    shard->p = NULL;
    shard->is_closing = shard->wants_latest = false;
    readings_leave(&s->readings, shard->number);
    if (s->trouble)
        outbox_tell_trouble(s);
    outbox_lease_closed(s->lease, shard->number);
}

static const struct ranges *gaps(const struct partition *p)
{
    const struct outbox_shard *shard = p->place;
    const struct reading *r =
        readings_of(&shard->source->readings, shard->number);

    return r ? &r->cursor.gaps : NULL;
}

/* A shard's part of what is not read yet, which only the sequence tells. */
static int64_t backlog(struct partition *p)
{
    const struct outbox_shard *shard = p->place;
    const struct outbox_source *s = shard->source;
    const struct reading *r = readings_of(&s->readings, shard->number);
    int64_t left;

    if (!r)
        return -1;
    if (r->is_caught_up && !r->is_paused && !outbox_cursor_is_full(&r->cursor))
        return 0;
    left = s->sequence - r->cursor.last;
    return left > 0 ? (left + SHARDS_MAX - 1) / SHARDS_MAX : 0;
}

static const struct source_ops ops = {
    .kind = SOURCE_OUTBOX,
    .start = start,
    .pause = pause_reading,
    .resume = resume_reading,
    .fetch = fetch,
    .fetches_all = true,
    .wake = wake,
    .release = release,
    .commit = commit,
    .fenced = fenced,
    .closed = closed,
    .gaps = gaps,
    .backlog = backlog,
};

/* --- by the lease ------------------------------------------------------------------- */

void outbox_shard_open(struct outbox_source *s, unsigned number)
{
    struct outbox_shard *shard = &s->shards[number];
    char name[16];

    snprintf(name, sizeof(name), "%u", number);
    shard->p = s->sink.opened(s->sink.ctx, &ops, s, s->table, (int32_t)number,
                              name, s->system);
    shard->p->place = shard;
    log_debug("shard taken", "table=%s shard=%u", s->table, number);
    if (s->trouble)
        outbox_tell_trouble(s);
}

/* Its place stays known until its positions are written. */
void outbox_shard_close(struct outbox_source *s, unsigned number, bool lost)
{
    struct outbox_shard *shard = &s->shards[number];

    if (!shard->p)
        return;
    shard->is_closing = true;
    shard->wants_latest = false;
    readings_pause(&s->readings, number);
    s->sink.closing(s->sink.ctx, shard->p, lost);
}
