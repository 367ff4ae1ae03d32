/* The sources and partitions as JSON, and their metrics. */
#include "base/clock.h"
#include "host/intake_priv.h"
#include "sources/kafka_source.h"
#include "sources/outbox_source.h"

/* Of the outbox only who does not stand where its shard does: 64 shards of a
 * thousand handlers would be a megabyte. */
static void add_positions(json_t *json, const struct partition *p)
{
    bool is_shard = p->ops->kind == SOURCE_OUTBOX;
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers);
    json_t *positions = json_object();

    for (size_t i = 1; i < n; i++) {
        struct position at;

        if (!pipeline_position(p, handlers[i], &at))
            continue;
        if (!is_shard || at.next != p->next)
            json_object_set_new(positions, handlers[i]->name,
                                json_integer(at.next));
        ranges_fini(&at.gaps);
    }
    json_object_set_new(json, "positions", positions);
}

/* How far each is behind that has a reading of its own, in places. */
static void add_behind(json_t *json, const struct partition *p)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers);
    json_t *behind = json_object();

    for (size_t i = 1; p->n_behind > 0 && i < n; i++) {
        const struct cursor *c = &p->cursors[i];

        if (c->mode != CURSOR_BEHIND)
            continue;
        json_object_set_new(behind, handlers[i]->name,
                            c->from.next > 0
                                ? json_integer(p->next - c->from.next)
                                : json_null());
    }
    json_object_set_new(json, "behind", behind);
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
    add_behind(json, p);
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
    json_object_set(json, "givenUp", in->given_up);
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
    int64_t backlog = p->ops->backlog ? p->ops->backlog(p) : -1;
    int64_t wall_us = clock_wall_us();

    series_add(metrics_get(h->metrics, M_WINDOW_EVENTS, source), p->events);
    if (p->ops->kind == SOURCE_REDRIVE)
        backlog = 0;  /* what it has not taken is counted as dead letters */
    if (backlog >= 0) /* not known is not 0: then all would look well */
        series_set(metrics_get(h->metrics, M_SOURCE_LAG, source, p->name),
                   (double)(backlog + p->events));
    for (size_t i = 1; i < n; i++) {
        struct series *s =
            metrics_get(h->metrics, M_HANDLER_LAG, handlers[i]->name);
        double lag = lag_of(p, handlers[i], wall_us);

        if (lag > series_value(s))
            series_set(s, lag);
        series_add(metrics_get(h->metrics, M_PENDING, handlers[i]->name),
                   p->cursors[i].len);
    }
}

void intake_collect(struct intake *in)
{
    struct metrics *m = in->host->metrics;

    metrics_zero(m, M_WINDOW_EVENTS);
    metrics_hide(m, M_SOURCE_LAG); /* others tell of what was taken away */
    metrics_zero(m, M_HANDLER_LAG);
    metrics_zero(m, M_PENDING);
    pipeline_each(in->host->pipeline, collect, in->host);
    series_set(metrics_get(m, M_OUTBOX_SHARDS),
               in->outbox ? outbox_source_shards(in->outbox) : 0);
    series_set(metrics_get(m, M_OUTBOX_GAP_AGE),
               in->outbox ? outbox_source_gap_age(in->outbox) : 0);
}
