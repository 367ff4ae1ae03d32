/*
 * Between the sources and the pipeline: which partitions are open, where each
 * handler starts in them, and writing down how far it got.
 *
 *   opened    take positions (raises the epochs), create rows for handlers
 *             that have none, then start at the earliest
 *   each interval   save what moved, then let the source commit its watermark:
 *             never the other way round, the group's offset is only a hint
 *   closing   nothing new, wait for what runs (or the deadline), save, commit,
 *             give the partition back
 */
#include "host/host_priv.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/settings.h"
#include "sources/kafka_source.h"
#include "sources/outbox_source.h"
#include "sources/redrive_source.h"
#include "stores/positions.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "intake";

/* A row made before the source knows the real number; see start_from(). */
#define FINISH_MAX_US   5000000
#define STORED_EARLIEST 0
#define STORED_LATEST   (INT64_MAX - 1)

struct intake {
    struct host *host;
    struct source_sink sink;
    struct kafka_source *kafka;
    struct outbox_source *outbox;
    struct redrive_source *redrive;
    unsigned stopping; /* sources that are not stopped yet */
    bool is_stopping, is_saving, has_quiet;
    int64_t next_save_us;
};

/* --- opening ------------------------------------------------------------------- */

struct taking {
    struct intake *intake;
    struct partition *p;
    size_t n;
    struct handler **handlers;
};

static void taking_free(struct taking *t)
{
    free(t->handlers);
    free(t);
}

static void finish_closing(struct intake *in, struct partition *p);

/* All answers are there: read. */
static void start_if_ready(struct intake *in, struct partition *p)
{
    if (p->is_closing) {
        finish_closing(in, p);
        return;
    }
    if (p->state != PARTITION_OPENING || p->busy > 0)
        return;
    log_info("partition opened", "source=%s partition=%s",
             source_kind_name(p->ops->kind), p->name);
    pipeline_start(p);
}

static void on_created(void *arg, size_t n_fenced, const size_t *fenced,
                       const struct err *err)
{
    struct taking *t = arg;
    struct partition *p = t->p;
    struct intake *in = t->intake;

    (void)n_fenced;
    (void)fenced;
    if (err)
        log_error("positions not created", "partition=%s err=" LOG_Q, p->name,
                  err->msg);
    p->busy--;
    taking_free(t);
    start_if_ready(in, p);
}

/* Where a handler without a position starts. */
static int64_t fresh_start(const struct intake *in, const struct partition *p,
                           const struct handler *h, bool any_found,
                           int64_t furthest)
{
    const struct settings *s = &in->host->settings;
    const char *start =
        p->ops->kind == SOURCE_KAFKA ? s->kafka_start : s->outbox_start;

    if (!any_found && p->state == PARTITION_OPENING) /* never read before */
        return strcmp(start, "latest") == 0 ? POSITION_LATEST
                                            : POSITION_EARLIEST;
    if (h->spec && h->spec->start != POSITION_LATEST)
        return POSITION_EARLIEST; /* or a time: see min_occurred_us */
    return p->state == PARTITION_RUNNING ? p->next : furthest;
}

static int64_t unstored(int64_t next)
{
    if (next <= STORED_EARLIEST)
        return POSITION_EARLIEST;
    return next >= STORED_LATEST ? POSITION_LATEST : next;
}

static int64_t stored(int64_t next)
{
    if (next == POSITION_EARLIEST)
        return STORED_EARLIEST;
    return next == POSITION_LATEST ? STORED_LATEST : next;
}

/* Rows for the handlers that had none, so that the fence finds them. */
static void create_rows(struct taking *t, struct position_found *found)
{
    struct intake *in = t->intake;
    struct position_save *items = xcalloc(t->n, sizeof(*items));
    size_t n = 0;

    for (size_t i = 0; i < t->n; i++) {
        struct cursor *c = &t->p->cursors[t->handlers[i]->index];

        if (found[i].found)
            continue;
        items[n] = (struct position_save){
            .key = {t->handlers[i]->name, t->p->ops->kind, t->p->name,
                    t->p->source_id},
            .at = {.next = stored(c->from.next)},
            .epoch = found[i].epoch,
        };
        n++;
    }
    if (n > 0) {
        t->p->busy++;
        in->host->positions->ops->create(in->host->positions, n, items,
                                         on_created, t);
    } else {
        taking_free(t);
    }
    free(items);
}

/* Where the handler starts when no position was found. */
static void choose_start(struct taking *t, struct handler *h,
                         struct position_found *found, bool any_found,
                         int64_t furthest)
{
    ranges_fini(&found->at.gaps);
    found->at = (struct position){
        .next = fresh_start(t->intake, t->p, h, any_found, furthest)};
    if (h->spec && h->spec->start != POSITION_LATEST &&
        h->spec->start != POSITION_EARLIEST)
        t->p->cursors[h->index].min_occurred_us = h->spec->start;
}

static void open_cursors(struct taking *t, struct position_found *found)
{
    struct partition *p = t->p;
    bool any = false, behind = false;
    int64_t furthest = POSITION_EARLIEST;

    for (size_t i = 0; i < t->n; i++) {
        found[i].at.next = unstored(found[i].at.next);
        any = any || found[i].found;
        if (found[i].found && found[i].at.next > furthest)
            furthest = found[i].at.next;
    }
    for (size_t i = 0; i < t->n; i++) {
        if (!found[i].found)
            choose_start(t, t->handlers[i], &found[i], any, furthest);
        behind = behind || found[i].at.next < p->next || found[i].at.gaps.len;
    }
    /* A newcomer wants older events. Before its cursor opens: freezing takes
     * an open one to be where the reading is. */
    if (p->state == PARTITION_RUNNING && behind)
        pipeline_quiet(p, true);
    for (size_t i = 0; i < t->n; i++)
        pipeline_open_cursor(p, t->handlers[i], &found[i].at, found[i].epoch);
}

static void on_taken(void *arg, size_t n, struct position_found *found)
{
    struct taking *t = arg;
    struct intake *in = t->intake;
    struct partition *p = t->p;

    CHECK(n == t->n);
    p->busy--;
    if (p->is_closing) {
        for (size_t i = 0; i < n; i++)
            ranges_fini(&found[i].at.gaps);
        taking_free(t);
    } else {
        open_cursors(t, found);
        create_rows(t, found); /* frees or passes on `t` */
    }
    start_if_ready(in, p);
}

static void take(struct intake *in, struct partition *p,
                 struct handler *const *handlers, size_t n)
{
    struct positions *store = in->host->positions;
    struct position_key *keys = xcalloc(n, sizeof(*keys));
    struct taking *t = xcalloc(1, sizeof(*t));

    t->intake = in;
    t->p = p;
    t->handlers = xcalloc(n, sizeof(struct handler *));
    for (; t->n < n; t->n++) {
        t->handlers[t->n] = handlers[t->n];
        keys[t->n] = (struct position_key){handlers[t->n]->name, p->ops->kind,
                                           p->name, p->source_id};
    }
    p->busy++;
    store->ops->take(store, n, keys, on_taken, t);
    free(keys);
}

/* A delivery from the dead letters is for one handler, whatever its place. */
static void open_redrive(struct partition *p, struct handler *h)
{
    struct position from = {.next = POSITION_EARLIEST};

    pipeline_open_cursor(p, h, &from, 0);
    p->cursors[h->index].is_detached = false;
}

static struct partition *on_opened(void *ctx, const struct source_ops *ops,
                                   void *source, const char *topic,
                                   int32_t number, const char *name,
                                   const char *source_id)
{
    struct intake *in = ctx;
    struct pipeline *pl = in->host->pipeline;
    struct partition *p =
        pipeline_open(pl, ops, source, topic, number, name, source_id);
    struct position all = {.next = POSITION_EARLIEST};
    struct handler *const *handlers;
    struct handler **known;
    size_t n = pipeline_handlers(pl, &handlers), n_known = 0;

    pipeline_open_cursor(p, handlers[0], &all, 0);
    known = xcalloc(n, sizeof(*known));
    for (size_t i = 1; i < n; i++)
        if (ops->kind == SOURCE_REDRIVE)
            open_redrive(p, handlers[i]);
        else if (handlers[i]->spec)
            known[n_known++] = handlers[i];
    if (n_known > 0)
        take(in, p, known, n_known);
    free(known);
    return p;
}

void intake_handler_added(struct intake *in, struct handler *h)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(in->host->pipeline, all, PARTITIONS_MAX);

    for (size_t i = 0; i < n; i++) {
        struct partition *p = all[i];

        if (p->is_closing || p->cursors[h->index].is_open)
            continue;
        if (p->ops->kind == SOURCE_REDRIVE)
            open_redrive(p, h);
        else
            take(in, p, &h, 1);
    }
}

/* --- events -------------------------------------------------------------------- */

static size_t on_room(void *ctx)
{
    return pipeline_room(((struct intake *)ctx)->host->pipeline);
}

static struct event *on_event_new(void *ctx, struct partition *p)
{
    return pipeline_event_new(((struct intake *)ctx)->host->pipeline, p);
}

static void on_offer(void *ctx, struct event *ev)
{
    pipeline_offer(((struct intake *)ctx)->host->pipeline, ev);
}

static void on_advance(void *ctx, struct partition *p, int64_t next)
{
    (void)ctx;
    if (p->state == PARTITION_RUNNING && !p->is_closing)
        pipeline_advance(p, next);
}

static void on_trouble(void *ctx, struct partition *p, const char *text)
{
    (void)ctx;
    if (text && (!p->trouble || strcmp(p->trouble, text) != 0))
        log_error("a partition needs an operator", "partition=%s why=" LOG_Q,
                  p->name, text);
    pipeline_trouble(p, text);
}

void intake_room_again(struct host *h)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(h->pipeline, all, PARTITIONS_MAX);
    const void *woken = NULL;

    /* Partitions of one source stand together: wake it once. */
    for (size_t i = 0; i < n; i++) {
        if (all[i]->source != woken && all[i]->state == PARTITION_RUNNING &&
            all[i]->ops->wake) {
            woken = all[i]->source;
            all[i]->ops->wake(all[i]->source);
        }
    }
}

/* --- saving ---------------------------------------------------------------------- */

struct saved_item {
    struct partition *p;
    struct handler *handler;
    int64_t next;
    uint64_t hash;
};

struct saving {
    struct intake *intake;
    struct position_save *save;
    struct saved_item *items;
    size_t n, cap;
    bool is_last; /* of a closing partition */
};

static uint64_t gaps_hash(const struct ranges *gaps)
{
    return gaps->len ? hash_bytes(gaps->at, gaps->len * sizeof(*gaps->at)) : 0;
}

static void add_item(struct saving *s, struct partition *p, struct handler *h)
{
    struct cursor *c = &p->cursors[h->index];
    struct position at;
    uint64_t hash;

    if (!pipeline_position(p, h, &at))
        return;
    hash = gaps_hash(&at.gaps);
    if (at.next == c->saved_next && hash == c->saved_hash) {
        ranges_fini(&at.gaps);
        return;
    }
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->save = xrealloc(s->save, s->cap * sizeof(*s->save));
        s->items = xrealloc(s->items, s->cap * sizeof(*s->items));
    }
    s->items[s->n] = (struct saved_item){p, h, at.next, hash};
    s->save[s->n++] = (struct position_save){
        .key = {h->name, p->ops->kind, p->name, p->source_id},
        .at = at,
        .epoch = c->epoch,
        .last_event_id = c->last_event_id[0] ? c->last_event_id : NULL,
        .last_event_us = c->last_event_us,
    };
}

static void add_partition(void *arg, struct partition *p)
{
    struct saving *s = arg;
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers);

    if (p->ops->kind == SOURCE_REDRIVE || p->state == PARTITION_OPENING ||
        p->is_lost || (p->is_closing && !s->is_last))
        return;
    for (size_t i = 1; i < n; i++)
        add_item(s, p, handlers[i]);
}

static void commit(struct partition *p)
{
    struct position at = {0};

    if (p->is_lost || !p->ops->commit || !pipeline_watermark(p, &at.next) ||
        at.next == p->committed)
        return;
    p->committed = at.next;
    p->ops->commit(p, &at);
}

static void on_saved(void *arg, size_t n_fenced, const size_t *fenced,
                     const struct err *err)
{
    struct saving *s = arg;
    struct intake *in = s->intake;
    bool is_last = s->is_last;
    struct partition *last = NULL;

    if (err)
        log_error("positions not saved", "err=" LOG_Q, err->msg);
    for (size_t i = 0; i < s->n; i++) {
        struct saved_item *item = &s->items[i];
        struct cursor *c = &item->p->cursors[item->handler->index];

        item->p->busy--;
        last = item->p;
        if (!err) {
            c->saved_next = item->next;
            c->saved_hash = item->hash;
        }
    }
    for (size_t i = 0; i < n_fenced; i++)
        intake_fenced(in->host, s->items[fenced[i]].p);
    if (!is_last)
        in->is_saving = false;
    for (size_t i = 0; !err && i < s->n; i++)
        if (is_last || !s->items[i].p->is_closing)
            commit(s->items[i].p);
    if (is_last && last)
        last->is_saved = true;
    for (size_t i = 0; i < s->n; i++)
        if (s->items[i].p->is_closing &&
            (i + 1 == s->n || s->items[i + 1].p != s->items[i].p))
            finish_closing(in, s->items[i].p);
    free(s->save);
    free(s->items);
    free(s);
}

/* Sends it off; false when there is nothing to save. */
static bool saving_send(struct saving *s)
{
    struct positions *store = s->intake->host->positions;
    size_t n = s->n;
    bool any = n > 0;

    for (size_t i = 0; i < n; i++)
        s->items[i].p->busy++;
    if (any) {
        struct position_save *save = s->save;

        store->ops->save(store, n, save, on_saved, s);
        for (size_t i = 0; i < n; i++)
            ranges_fini(&save[i].at.gaps);
        return true;
    }
    free(s->save);
    free(s->items);
    free(s);
    return false;
}

static void save_all(struct intake *in)
{
    struct saving *s;

    if (in->is_saving)
        return;
    s = xcalloc(1, sizeof(*s));
    s->intake = in;
    pipeline_each(in->host->pipeline, add_partition, s);
    in->is_saving = true;
    if (!saving_send(s))
        in->is_saving = false;
}

/* --- closing ----------------------------------------------------------------------- */

/* Quiet and nothing under way: save once more, then give it back. */
static void finish_closing(struct intake *in, struct partition *p)
{
    struct saving *s;

    if (!p->is_quiet || p->busy > 0 || p->inflight > 0)
        return;
    if (!p->is_lost && !p->is_saved) {
        s = xcalloc(1, sizeof(*s));
        s->intake = in;
        s->is_last = true;
        add_partition(s, p);
        if (saving_send(s))
            return;
        commit(p);
    }
    log_info("partition closed", "source=%s partition=%s lost=%d",
             source_kind_name(p->ops->kind), p->name, p->is_lost);
    p->ops->closed(p);
    pipeline_close(p);
}

/* How long a closing partition may finish what it has taken. */
static int64_t finish_us(const struct intake *in)
{
    int64_t half_us = in->host->settings.drain_timeout * 500;

    return half_us < FINISH_MAX_US ? half_us : FINISH_MAX_US;
}

static void on_closing(void *ctx, struct partition *p, bool lost)
{
    struct intake *in = ctx;

    p->is_closing = true;
    p->is_lost = p->is_lost || lost;
    p->deadline_us = clock_mono_us() + in->host->settings.drain_timeout * 1000;
    if (p->is_lost) {
        pipeline_abandon(p);
    } else if (p->state == PARTITION_RUNNING && p->events > 0) {
        /* What was taken may still end: a delivery dropped below one that was
         * acked would bring that one again. */
        p->finish_by_us = clock_mono_us() + finish_us(in);
        in->has_quiet = true;
        return;
    }
    pipeline_quiet(p, false);
}

/* Called deep inside the pipeline: only remember. */
void intake_quiet(struct host *h, struct partition *p)
{
    p->is_quiet = true;
    if (h->intake)
        h->intake->has_quiet = true;
}

void intake_fenced(struct host *h, struct partition *p)
{
    (void)h;
    if (p->is_lost || p->is_closing)
        return;
    p->is_lost = true;
    log_error("partition fenced: another host has it", "partition=%s", p->name);
    pipeline_trouble(p, "another host has taken this partition over");
    pipeline_quiet(p, false);
}

static void after_quiet(void *arg, struct partition *p)
{
    struct intake *in = arg;

    if (p->ops->kind == SOURCE_REDRIVE && p->state == PARTITION_OPENING)
        start_if_ready(in, p); /* it has no positions to wait for */
    if (p->is_closing && p->state == PARTITION_RUNNING &&
        (p->events == 0 || clock_mono_us() >= p->finish_by_us))
        pipeline_quiet(p, false);
    if (!p->is_quiet || p->state != PARTITION_QUIETING)
        return;
    if (p->is_closing)
        finish_closing(in, p);
    else if (p->wants_rewind && p->inflight == 0 && p->busy == 0) {
        p->is_quiet = false;
        log_info("partition rewinds", "source=%s partition=%s",
                 source_kind_name(p->ops->kind), p->name);
        pipeline_start(p);
    }
}

static void check_deadline(void *arg, struct partition *p)
{
    int64_t now_us = *(int64_t *)arg;

    if (!p->is_closing || !p->deadline_us || now_us < p->deadline_us)
        return;
    log_warn("partition closes with deliveries still running",
             "partition=%s running=%u", p->name, p->inflight);
    p->deadline_us = 0;
    pipeline_abandon(p);
}

void intake_turn(struct intake *in)
{
    if (!in->has_quiet)
        return;
    in->has_quiet = false;
    pipeline_each(in->host->pipeline, after_quiet, in);
}

void intake_tick(struct intake *in, int64_t now_us)
{
    pipeline_each(in->host->pipeline, check_deadline, &now_us);
    in->has_quiet = true; /* whatever waited for a request of a store */
    if (now_us < in->next_save_us)
        return;
    in->next_save_us = now_us + in->host->settings.positions_interval * 1000;
    save_all(in);
}

/* --- start and stop ------------------------------------------------------------------ */

static void on_rebalance(void *arg)
{
    struct host *h = arg;

    series_add(metrics_get(h->metrics, M_REBALANCES), 1);
}

static bool start_kafka(struct intake *in, struct err *err)
{
    struct host *h = in->host;
    struct kafka_source_options opts = {
        .kafka = h->kafka,
        .format = h->settings.kafka_format,
        .max_bytes = h->settings.event_max_bytes,
        .on_rebalance = on_rebalance,
        .arg = h,
    };

    if (!h->kafka || json_array_size(h->settings.kafka_topics) == 0)
        return true;
    in->kafka = kafka_source_new(h->loop, &opts, &in->sink, err);
    return in->kafka != NULL;
}

static bool start_outbox(struct intake *in, struct err *err)
{
    struct host *h = in->host;
    const struct settings *s = &h->settings;
    char *session = host_session_sql(h);
    struct outbox_options opts = {
        .url = s->database_url,
        .session_sql = session,
        .table = s->outbox_table,
        .columns = s->outbox_columns,
        .interval_ms = s->outbox_interval,
        .batch = (int)s->outbox_batch,
        .max_bytes = s->event_max_bytes,
        .must_exist = strcmp(s->outbox_enabled, "on") == 0,
        .no_prepare = !s->database_prepare,
    };

    if (h->db && strcmp(s->outbox_enabled, "off") != 0)
        in->outbox = outbox_source_new(h->loop, &opts, &in->sink, err);
    free(session);
    return in->outbox || !h->db || strcmp(s->outbox_enabled, "off") == 0;
}

struct intake *intake_new(struct host *h)
{
    struct intake *in = xcalloc(1, sizeof(*in));

    in->host = h;
    in->sink = (struct source_sink){
        .ctx = in,
        .opened = on_opened,
        .room = on_room,
        .offer = on_offer,
        .event_new = on_event_new,
        .advance = on_advance,
        .closing = on_closing,
        .trouble = on_trouble,
    };
    return in;
}

bool intake_start(struct intake *in, struct err *err)
{
    if (!start_kafka(in, err) || !start_outbox(in, err))
        return false;
    if (in->host->db)
        in->redrive =
            redrive_source_new(in->host->loop, in->host->db, &in->sink);
    return true;
}

static void on_stopped(void *arg)
{
    ((struct intake *)arg)->stopping--;
}

void intake_stop(struct intake *in)
{
    if (in->is_stopping)
        return;
    in->is_stopping = true;
    in->stopping =
        (in->kafka != NULL) + (in->outbox != NULL) + (in->redrive != NULL);
    if (in->kafka)
        kafka_source_stop(in->kafka, on_stopped, in);
    if (in->outbox)
        outbox_source_stop(in->outbox, on_stopped, in);
    if (in->redrive)
        redrive_source_stop(in->redrive, on_stopped, in);
}

bool intake_is_stopped(const struct intake *in)
{
    return in->is_stopping && in->stopping == 0;
}

void intake_free(struct intake *in)
{
    if (!in)
        return;
    kafka_source_free(in->kafka);
    outbox_source_free(in->outbox);
    redrive_source_free(in->redrive);
    free(in);
}

/* --- showing ---------------------------------------------------------------------------- */

static void add_positions(json_t *json, const struct partition *p)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers);
    json_t *positions = json_object();

    for (size_t i = 1; i < n; i++) {
        struct position at;

        if (!pipeline_position(p, handlers[i], &at))
            continue;
        json_object_set_new(positions, handlers[i]->name,
                            json_integer(at.next));
        ranges_fini(&at.gaps);
    }
    json_object_set_new(json, "positions", positions);
}

static void add_json(void *arg, struct partition *p)
{
    static const char *const states[] = {"opening", "running", "quieting",
                                         "closed"};
    bool is_known = p->next != POSITION_EARLIEST && p->next != POSITION_LATEST;
    json_t *json = json_pack("{s:s, s:s, s:s, s:o, s:i, s:b}", "source",
                             source_kind_name(p->ops->kind), "partition",
                             p->name, "state", states[p->state], "next",
                             is_known ? json_integer(p->next) : json_null(),
                             "window", (int)p->events, "paused", p->is_paused);

    if (p->trouble)
        json_object_set_new(json, "trouble", json_string(p->trouble));
    if (p->ops->backlog && p->ops->backlog(p) >= 0)
        json_object_set_new(json, "backlog", json_integer(p->ops->backlog(p)));
    add_positions(json, p);
    json_array_append_new(arg, json);
}

json_t *intake_json(const struct intake *in)
{
    json_t *json = json_object(), *partitions = json_array();

    if (in->kafka)
        json_object_set_new(json, "kafka", kafka_source_json(in->kafka));
    if (in->outbox)
        json_object_set_new(json, "outbox", outbox_source_json(in->outbox));
    pipeline_each(in->host->pipeline, add_json, partitions);
    json_object_set_new(json, "partitions", partitions);
    return json;
}

/* How long the oldest event of a handler has been waiting, in seconds. */
static double lag_of(const struct partition *p, const struct handler *h,
                     int64_t wall_us)
{
    const struct cursor *c = &p->cursors[h->index];
    const struct delivery *oldest = pipeline_oldest(p, h);
    int64_t since = c->behind_since_us;

    if (oldest && oldest->event->occurred_us &&
        (!since || oldest->event->occurred_us < since))
        since = oldest->event->occurred_us;
    return since && since < wall_us ? (double)(wall_us - since) / 1e6 : 0;
}

static void collect(void *arg, struct partition *p)
{
    struct host *h = arg;
    struct handler *const *handlers;
    size_t n = pipeline_handlers(h->pipeline, &handlers);
    const char *source = source_kind_name(p->ops->kind);
    int64_t backlog = p->ops->backlog ? p->ops->backlog(p) : 0;
    int64_t wall_us = clock_wall_us();

    series_add(metrics_get(h->metrics, M_WINDOW_EVENTS, source), p->events);
    series_set(metrics_get(h->metrics, M_SOURCE_LAG, source, p->name),
               (double)((backlog > 0 ? backlog : 0) + p->events));
    for (size_t i = 1; i < n; i++) {
        struct series *s =
            metrics_get(h->metrics, M_HANDLER_LAG, handlers[i]->name);
        double lag = lag_of(p, handlers[i], wall_us);

        if (lag > series_value(s))
            series_set(s, lag);
    }
}

void intake_collect(struct intake *in)
{
    struct metrics *m = in->host->metrics;

    metrics_zero(m, M_WINDOW_EVENTS);
    metrics_zero(m, M_SOURCE_LAG);
    metrics_zero(m, M_HANDLER_LAG);
    pipeline_each(in->host->pipeline, collect, in->host);
    series_set(metrics_get(m, M_OUTBOX_GAP_AGE),
               in->outbox ? outbox_source_gap_age(in->outbox) : 0);
}
