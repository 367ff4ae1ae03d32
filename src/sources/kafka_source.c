/*
 * An assignment goes through these steps, for all its partitions together:
 * opened() → the host reads positions and calls start() for each → bounds are
 * asked for those that start at the earliest or latest → assign → records.
 * Back: closing() for each → closed() for each → the last commit → unassign.
 */
#include "sources/kafka_source.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/handler.h"
#include "core/partition.h"
#include "kafka/consumer.h"
#include "kafka/reread.h"
#include "sources/kafka_event.h"
#include "sources/stopping.h"

#include <ev.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED     __attribute__((unused))
#define FAREWELL   3.0  /* seconds the last commit may take */
#define COMMIT_GAP 0.05 /* seconds in which commits are gathered */

static const char component[] = "kafka";

/* Where a reading stands still, and why. */
struct halt {
    char *text; /* NULL: it does not */
    int64_t at;
    bool is_undecodable;
};

struct place {
    struct kafka_source *source;
    struct kafka_part *part;
    struct partition *p; /* NULL once closed */
    int64_t start;       /* asked by the host */
    bool has_started;
    bool is_paused;
    struct halt halt;  /* what is read from there on shows that it is over */
    int64_t committed; /* last given to the group */
    int64_t settled;   /* to be committed; -1 nothing */
    struct handler *reader; /* of the piece that is read again, or NULL */
    int64_t piece;          /* its first offset */
    struct halt reader_halt;
};

struct kafka_source {
    struct ev_loop *loop;
    struct source_sink sink;
    struct kafka_consumer *consumer;
    struct kafka_events events;
    struct kafka_reread *reread; /* for handlers that are behind */
    void (*on_rebalance)(void *arg);
    void (*on_fatal)(void *arg, const struct err *err);
    void *arg; /* of both */
    bool is_dead;

    struct place **places;
    size_t n, open; /* in the assignment; not yet closed */
    bool is_reading, is_leaving, is_lost;
    ev_timer commit_soon, farewell;
    unsigned commits; /* under way */

    struct place *asking; /* for its bounds; NULL: nobody */
    kafka_bounds_of_fn *bounds;
    void *bounds_arg;
    int64_t low;

    struct stopping stopping;
};

static struct place *place_of(const struct partition *p)
{
    return p->place;
}

/* --- records --------------------------------------------------------------- */

static void halt_end(struct halt *halt)
{
    free(halt->text);
    *halt = (struct halt){0};
}

/* The partition's own trouble goes before that of a handler's own reading. */
static void tell_trouble(struct place *place)
{
    const char *text =
        place->halt.text ? place->halt.text : place->reader_halt.text;

    place->source->sink.trouble(place->source->sink.ctx, place->p, text);
}

/* librdkafka says it again and again: false when it is known. */
static bool halt_at(struct halt *halt, int64_t at, bool is_undecodable,
                    char *text)
{
    bool is_known =
        halt->text && halt->at == at && strcmp(halt->text, text) == 0;

    free(halt->text);
    *halt = (struct halt){text, at, is_undecodable};
    return !is_known;
}

/* It may have been a right taken away for a while, or a broker that did not
 * know the topic yet: nobody else would say that it has passed. */
static void read_again(struct place *place, int64_t offset)
{
    if (!place->halt.text || offset < place->halt.at)
        return;
    halt_end(&place->halt);
    log_info("partition is read again", "topic=%s partition=%d",
             place->part->topic, place->part->partition);
    tell_trouble(place);
}

static size_t room(void *arg)
{
    struct kafka_source *s = arg;

    return s->is_leaving ? SIZE_MAX : s->sink.room(s->sink.ctx);
}

static bool on_record(void *arg, struct kafka_record *record)
{
    struct kafka_source *s = arg;
    struct place *place = record->part->owner;
    struct event *event;

    if (!place || !place->p || s->is_leaving)
        return true; /* of no use any more: it is read again elsewhere */
    if (place->is_paused)
        return false;
    read_again(place, record->offset);
    event = s->sink.event_new(s->sink.ctx, place->p);
    kafka_event_fill(&s->events, event, record, place->part);
    s->sink.offer(s->sink.ctx, event);
    return true;
}

static void on_end(void *arg, struct kafka_part *part, int64_t offset)
{
    struct kafka_source *s = arg;
    struct place *place = part->owner;

    if (!place || !place->p || s->is_leaving)
        return;
    read_again(place, offset);
    if (place->p->next < offset)
        s->sink.advance(s->sink.ctx, place->p, offset);
}

/* Records are compressed in batches, and librdkafka names the first one. */
static int64_t stands_at(const struct place *place, int64_t offset)
{
    return place->p->next > offset && place->p->next != POSITION_LATEST
               ? place->p->next
               : offset;
}

static void on_part_error(UNUSED void *arg, struct kafka_part *part,
                          int64_t offset, bool is_undecodable,
                          const struct err *err)
{
    struct place *place = part->owner;
    char *text;

    if (!place || !place->p)
        return;
    if (is_undecodable)
        offset = stands_at(place, offset);
    text = is_undecodable
               ? xasprintf("the record at offset %lld cannot be read: %s",
                           (long long)offset, err->msg)
               : xstrdup(err->msg);
    if (!halt_at(&place->halt, offset, is_undecodable, text))
        return;
    log_error("partition stopped",
              "topic=%s partition=%d offset=%lld code=%s err=" LOG_Q,
              part->topic, part->partition, (long long)offset, err->code, text);
    tell_trouble(place);
}

static void on_fatal(void *arg, const struct err *err)
{
    struct kafka_source *s = arg;

    log_error("Kafka consumer failed for good", "code=%s err=" LOG_Q, err->code,
              err->msg);
    s->is_dead = true;
    if (s->on_fatal)
        s->on_fatal(s->arg, err);
}

static void on_outdated(void *arg, const struct err *err)
{
    struct kafka_source *s = arg;

    if (s->on_fatal)
        s->on_fatal(s->arg, err);
}

/* --- assignment -------------------------------------------------------------- */

static const struct source_ops ops;

static struct place *open_place(struct kafka_source *s, struct kafka_part *part)
{
    struct place *place = xcalloc(1, sizeof(*place));
    char *name = xasprintf("%s/%d", part->topic, part->partition);

    place->source = s;
    place->part = part;
    place->settled = place->committed = -1;
    part->owner = place;
    place->p = s->sink.opened(s->sink.ctx, &ops, s, part->topic,
                              part->partition, name, part->source_id);
    place->p->place = place;
    free(name);
    return place;
}

static void read_from(struct kafka_source *s)
{
    int64_t *offsets = xcalloc(s->n + 1, sizeof(*offsets));
    struct err err;

    for (size_t i = 0; i < s->n; i++)
        offsets[i] = s->places[i]->start;
    s->is_reading = true;
    if (!kafka_consumer_assign(s->consumer, offsets, &err))
        log_warn("cannot start reading", "err=" LOG_Q, err.msg);
    free(offsets);
}

static bool is_named(int64_t start)
{
    return start == POSITION_EARLIEST || start == POSITION_LATEST;
}

/* `offsets` are of the places that started at a name, in order. */
static void on_found(void *arg, const int64_t *offsets, size_t n)
{
    struct kafka_source *s = arg;
    size_t at = 0;

    if (s->is_leaving || s->stopping.is_asked)
        return; /* the partitions are given back, or will be */
    for (size_t i = 0; i < s->n && at < n; i++) {
        struct place *place = s->places[i];

        if (!is_named(place->start))
            continue;
        place->start = offsets[at++];
        s->sink.advance(s->sink.ctx, place->p, place->start);
    }
    read_from(s);
}

static void start_all(struct kafka_source *s)
{
    struct kafka_part **parts = xcalloc(s->n + 1, sizeof(*parts));
    bool *ends = xcalloc(s->n + 1, sizeof(*ends));
    size_t named = 0;

    for (size_t i = 0; i < s->n; i++) {
        if (!is_named(s->places[i]->start))
            continue;
        ends[named] = s->places[i]->start == POSITION_LATEST;
        parts[named++] = s->places[i]->part;
    }
    if (named > 0)
        kafka_consumer_find(s->consumer, parts, ends, named, on_found, s);
    else
        read_from(s);
    free(parts);
    free(ends);
}

static void on_assigned(void *arg, struct kafka_part **parts, size_t n)
{
    struct kafka_source *s = arg;

    if (s->on_rebalance)
        s->on_rebalance(s->arg);
    if (s->stopping.is_asked)
        return; /* too late: nobody would close and save what is read now */
    s->places = xcalloc(n + 1, sizeof(*s->places));
    s->is_reading = s->is_leaving = s->is_lost = false;
    s->n = s->open = n;
    for (size_t i = 0; i < n; i++)
        s->places[i] = open_place(s, parts[i]);
    if (n == 0)
        read_from(s);
}

static void start(struct partition *p, const struct position *from)
{
    struct place *place = place_of(p);
    struct kafka_source *s = place->source;

    place->start = from->next;
    if (s->is_leaving)
        return;
    place->has_started = true;
    for (size_t i = 0; i < s->n; i++)
        if (!s->places[i]->has_started)
            return;
    start_all(s);
}

static void place_free(struct place *place)
{
    halt_end(&place->halt);
    halt_end(&place->reader_halt);
    free(place);
}

static void end_asking(struct kafka_source *s, bool is_known, int64_t end)
{
    kafka_bounds_of_fn *fn = s->bounds;

    if (!s->asking)
        return;
    s->asking = NULL;
    fn(s->bounds_arg, is_known, s->low, end);
}

static void give_back(struct kafka_source *s)
{
    struct place **places = s->places;
    size_t n = s->n;

    ev_timer_stop(s->loop, &s->farewell);
    ev_timer_stop(s->loop, &s->commit_soon);
    s->places = NULL;
    s->n = s->open = 0;
    s->commits = 0; /* an answer that still comes is nobody's */
    end_asking(s, false, -1);
    for (size_t i = 0; i < n; i++) {
        places[i]->part->owner = NULL;
        place_free(places[i]);
    }
    free(places);
    s->is_leaving = false;
    if (s->stopping.is_asked) {
        stopping_tell(&s->stopping);
        return; /* leaving the group gives the parts back */
    }
    kafka_consumer_unassign(s->consumer);
}

static void close_all(struct kafka_source *s, bool lost)
{
    s->is_leaving = true;
    s->is_lost = lost;
    if (s->open == 0) {
        give_back(s);
        return;
    }
    for (size_t i = 0; i < s->n; i++)
        if (s->places[i]->p)
            s->sink.closing(s->sink.ctx, s->places[i]->p, lost);
}

static void on_revoked(void *arg, bool lost)
{
    struct kafka_source *s = arg;

    if (s->on_rebalance)
        s->on_rebalance(s->arg);
    if (!s->is_leaving)
        close_all(s, lost);
    else
        s->is_lost |= lost;
}

/* --- commits ------------------------------------------------------------------ */

static bool commit_now(struct kafka_source *s)
{
    struct kafka_part **parts = xcalloc(s->n + 1, sizeof(*parts));
    int64_t *offsets = xcalloc(s->n + 1, sizeof(*offsets));
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++) {
        struct place *place = s->places[i];

        if (place->settled < 0 || place->settled == place->committed)
            continue;
        parts[n] = place->part;
        offsets[n++] = place->committed = place->settled;
    }
    if (n > 0) {
        kafka_consumer_commit(s->consumer, parts, offsets, n);
        s->commits++;
    }
    free(parts);
    free(offsets);
    return n > 0;
}

static void on_committed(void *arg, const struct err *err)
{
    struct kafka_source *s = arg;

    if (s->commits > 0)
        s->commits--;
    if (err) {
        log_warn("commit failed", "code=%s err=" LOG_Q, err->code, err->msg);
        for (size_t i = 0; i < s->n; i++)
            s->places[i]->committed = -1; /* goes with the next one */
    }
    if (s->is_leaving && s->open == 0 && s->commits == 0)
        give_back(s);
}

static void on_commit_soon(UNUSED struct ev_loop *loop, ev_timer *timer,
                           UNUSED int events)
{
    commit_now(timer->data);
}

static void on_farewell(UNUSED struct ev_loop *loop, ev_timer *timer,
                        UNUSED int events)
{
    struct kafka_source *s = timer->data;

    log_warn("last commit not answered", "waited_s=%g", FAREWELL);
    give_back(s);
}

static void commit(struct partition *p, const struct position *settled)
{
    struct place *place = place_of(p);
    struct kafka_source *s = place->source;

    place->settled = settled->next;
    if (s->is_lost || ev_is_active(&s->commit_soon))
        return;
    ev_timer_set(&s->commit_soon, COMMIT_GAP, 0.);
    ev_timer_start(s->loop, &s->commit_soon);
}

static void closed(struct partition *p)
{
    struct place *place = place_of(p);
    struct kafka_source *s = place->source;

    kafka_reread_cancel(s->reread, place->part->topic, place->part->partition);
    place->p = NULL;
    CHECK(s->open > 0);
    if (--s->open > 0)
        return;
    ev_timer_stop(s->loop, &s->commit_soon);
    if (!s->is_lost)
        commit_now(s);
    if (s->is_lost || s->commits == 0) {
        give_back(s);
        return;
    }
    ev_timer_set(&s->farewell, FAREWELL, 0.);
    ev_timer_start(s->loop, &s->farewell);
}

/* --- the rest of the seam -------------------------------------------------- */

static void pause_reading(struct partition *p)
{
    place_of(p)->is_paused = true;
}

static void resume_reading(struct partition *p)
{
    struct place *place = place_of(p);

    if (!place->is_paused)
        return;
    place->is_paused = false;
    kafka_consumer_continue(place->source->consumer, place->part);
}

static void release(struct event *event)
{
    const struct kafka_source *s = event->partition->source;

    if (event->memory) /* not of one that could not even be read */
        kafka_kept_free(s->events.keeper, event->memory);
}

/* --- pieces for handlers that are behind --------------------------------------- */

static void fetch(struct partition *p, struct handler *reader, int64_t first,
                  int64_t last, size_t max)
{
    struct place *place = place_of(p);
    struct kafka_source *s = place->source;
    struct kafka_piece piece = {
        .topic = place->part->topic,
        .partition = place->part->partition,
        .first = first == POSITION_EARLIEST ? KAFKA_OFFSET_BEGIN : first,
        .last = last,
        .max = max,
        .owner = place,
    };
    struct err err;

    place->reader = reader;
    place->piece = first;
    if (!kafka_reread_start(s->reread, &piece, &err))
        s->sink.trouble(s->sink.ctx, p, err.msg);
}

static void on_piece_record(void *arg, void *owner, struct kafka_record *record)
{
    struct kafka_source *s = arg;
    struct place *place = owner;
    struct event *event = s->sink.event_new(s->sink.ctx, place->p);

    kafka_event_fill(&s->events, event, record, place->part);
    event->reader = place->reader;
    s->sink.offer(s->sink.ctx, event);
}

static void on_piece_done(void *arg, void *owner, int64_t next)
{
    struct kafka_source *s = arg;

    struct place *place = owner;

    place->reader = NULL;
    s->sink.fetched(s->sink.ctx, place->p, next);
}

static void on_piece_fault(UNUSED void *arg, void *owner, int64_t offset,
                           bool is_undecodable, const struct err *err)
{
    struct place *place = owner;
    char *text = xasprintf("handler %s, who reads by itself, stands at offset "
                           "%lld: %s",
                           place->reader->name, (long long)offset, err->msg);

    if (halt_at(&place->reader_halt, offset, is_undecodable, text))
        tell_trouble(place);
}

/* --- an operator's way out -------------------------------------------------------- */

bool kafka_source_trouble(const struct partition *p, const struct handler *h,
                          struct kafka_trouble *trouble)
{
    const struct place *place = place_of(p);
    const struct halt *halt = h ? &place->reader_halt : &place->halt;

    if (!halt->text || (h && place->reader != h))
        return false;
    *trouble =
        (struct kafka_trouble){halt->at, halt->is_undecodable, halt->text};
    return true;
}

static void on_end_found(void *arg, const int64_t *offsets, UNUSED size_t n)
{
    end_asking(arg, true, offsets[0]);
}

static void on_begin_found(void *arg, const int64_t *offsets, UNUSED size_t n)
{
    struct kafka_source *s = arg;
    bool wants_end = true;

    s->low = offsets[0];
    kafka_consumer_find(s->consumer, &s->asking->part, &wants_end, 1,
                        on_end_found, s);
}

bool kafka_source_bounds(struct partition *p, kafka_bounds_of_fn *fn, void *arg)
{
    struct place *place = place_of(p);
    struct kafka_source *s = place->source;
    bool wants_end = false;

    if (!s->is_reading || s->is_leaving || s->asking)
        return false;
    s->asking = place;
    s->bounds = fn;
    s->bounds_arg = arg;
    kafka_consumer_find(s->consumer, &place->part, &wants_end, 1,
                        on_begin_found, s);
    return true;
}

void kafka_source_letters(struct partition *p, struct handler *h, int64_t first,
                          int64_t next)
{
    struct place *place = place_of(p);
    const struct halt *halt = h ? &place->reader_halt : &place->halt;
    struct kafka_source *s = place->source;

    for (int64_t at = first; at < next; at++) {
        struct event *event = s->sink.event_new(s->sink.ctx, p);

        event->place = at;
        event->form = BODY_BINARY;
        event->reader = h;
        event->undecodable = xstrdup(halt->text ? halt->text : "given up");
        s->sink.offer(s->sink.ctx, event);
    }
}

/* What is fetched for it may be from before. */
static void read_piece_anew(struct place *place)
{
    struct kafka_source *s = place->source;

    if (!place->reader)
        return;
    kafka_reread_cancel(s->reread, place->part->topic, place->part->partition);
    place->reader = NULL;
    s->sink.fetched(s->sink.ctx, place->p, place->piece);
}

/* The brokers' assignment is one: the other partitions go on where they are. */
bool kafka_source_go_on(struct partition *p, const struct handler *h,
                        struct err *err)
{
    struct place *place = place_of(p);
    struct kafka_source *s = place->source;
    int64_t *offsets;
    bool ok;

    if (!h || place->reader == h) {
        read_piece_anew(place);
        halt_end(&place->reader_halt);
    }
    if (h) {
        tell_trouble(place);
        return true;
    }
    halt_end(&place->halt);
    tell_trouble(place);
    offsets = xcalloc(s->n, sizeof(*offsets));
    for (size_t i = 0; i < s->n; i++)
        offsets[i] = s->places[i]->p->next;
    ok = kafka_consumer_assign(s->consumer, offsets, err);
    free(offsets);
    return ok;
}

static const struct kafka_reread_ops reread_ops = {
    .on_record = on_piece_record,
    .on_done = on_piece_done,
    .on_fault = on_piece_fault,
};

static int64_t backlog(struct partition *p)
{
    struct place *place = place_of(p);
    int64_t end = kafka_consumer_end(place->source->consumer, place->part);

    if (end < 0 || p->next < 0 || p->next == POSITION_LATEST)
        return -1; /* the end, or where we start, is not known yet */
    return end > p->next ? end - p->next : 0;
}

static void wake(void *source)
{
    kafka_consumer_wake(((struct kafka_source *)source)->consumer);
}

static const struct source_ops ops = {
    .kind = SOURCE_KAFKA,
    .start = start,
    .pause = pause_reading,
    .resume = resume_reading,
    .fetch = fetch,
    .wake = wake,
    .release = release,
    .commit = commit,
    .closed = closed,
    .backlog = backlog,
};

static const struct kafka_consumer_ops consumer_ops = {
    .on_assigned = on_assigned,
    .on_revoked = on_revoked,
    .room = room,
    .on_record = on_record,
    .on_end = on_end,
    .on_part_error = on_part_error,
    .on_fatal = on_fatal,
    .on_outdated = on_outdated,
    .on_committed = on_committed,
};

struct kafka_source *kafka_source_new(struct ev_loop *loop,
                                      const struct kafka_source_options *opts,
                                      const struct source_sink *sink,
                                      struct err *err)
{
    struct kafka_source *s = xcalloc(1, sizeof(*s));

    s->loop = loop;
    s->sink = *sink;
    s->on_rebalance = opts->on_rebalance;
    s->on_fatal = opts->on_fatal;
    s->arg = opts->arg;
    ev_timer_init(&s->commit_soon, on_commit_soon, COMMIT_GAP, 0.);
    ev_timer_init(&s->farewell, on_farewell, FAREWELL, 0.);
    s->commit_soon.data = s->farewell.data = s;
    s->reread = kafka_reread_new(loop, opts->kafka, &reread_ops, s);
    if (!kafka_events_init(&s->events, opts->format, opts->max_bytes, err))
        goto fail;
    s->consumer = kafka_consumer_new(loop, opts->kafka, &consumer_ops, s, err);
    if (s->consumer)
        return s;

fail:
    kafka_source_free(s);
    return NULL;
}

void kafka_source_stop(struct kafka_source *s, void (*done)(void *arg),
                       void *arg)
{
    stopping_ask(&s->stopping, done, arg);
    if (!s->is_leaving)
        close_all(s, s->is_dead); /* who is fenced has lost all */
}

void kafka_source_free(struct kafka_source *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->commit_soon);
    ev_timer_stop(s->loop, &s->farewell);
    kafka_consumer_free(s->consumer);
    for (size_t i = 0; i < s->n; i++)
        place_free(s->places[i]);
    free(s->places);
    kafka_reread_free(s->reread);
    kafka_events_fini(&s->events);
    free(s);
}

bool kafka_source_connected(const struct kafka_source *s)
{
    return kafka_consumer_connected(s->consumer);
}

json_t *kafka_source_json(const struct kafka_source *s)
{
    json_t *list = json_array();

    for (size_t i = 0; i < s->n; i++) {
        const struct place *place = s->places[i];

        json_array_append_new(
            list,
            json_pack("{s:s, s:i, s:s, s:I, s:I, s:b}", "topic",
                      place->part->topic, "partition", place->part->partition,
                      "sourceId", place->part->source_id, "end",
                      (json_int_t)kafka_consumer_end(s->consumer, place->part),
                      "committed", (json_int_t)place->committed, "paused",
                      place->is_paused || kafka_consumer_paused(place->part)));
    }
    return json_pack("{s:s, s:b, s:o}", "kind", "kafka", "connected",
                     kafka_consumer_connected(s->consumer), "partitions", list);
}
