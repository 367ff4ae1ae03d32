/*
 * Why /readyz says 503.
 *
 * Ready is a host of which every running handler moves or has nothing to do. A
 * handler that is slow, or reads by itself, is ready as long as its oldest
 * delivery changes; who is held, and a host that is switched off, is idle by
 * somebody's wish.
 */
#include "host/host_priv.h"

#include "base/clock.h"
#include "base/jsontext.h"
#include "base/mem.h"
#include "pg/pg.h"

#include <stdio.h>
#include <stdlib.h>

#define STUCK_US 30000000 /* no progress for so long is not ready */

struct look {
    const struct host *host;
    json_t *reasons;
    int64_t now_us, wall_us;
};

/* What the oldest delivery of a handler waits for, in words. */
static const char *why_blocked(const struct delivery *d)
{
    switch ((enum delivery_state)d->state) {
    case DELIVERY_BACKOFF: return "waits for its next attempt";
    case DELIVERY_INFLIGHT: return "runs";
    case DELIVERY_STORING:
        if (d->is_parking)
            return "is being parked";
        return d->settling == VERDICT_DEAD ? "is being stored as a dead letter"
                                           : "is being stored as skipped";
    case DELIVERY_WAITING: return "waits for a worker";
    case DELIVERY_SETTLED:
    case DELIVERY_STATE_COUNT: break;
    }
    return "unknown";
}

static json_t *slice_json(struct slice s)
{
    return s.ptr ? json_string_lossy(s) : json_null();
}

static void add_blocking(struct look *look, const struct partition *p,
                         const struct handler *h, const struct delivery *d)
{
    const struct event *ev = d->event;
    int64_t since_us = p->cursors[h->index].moved_us;
    double lag = ev->occurred_us && ev->occurred_us < look->wall_us
                     ? (double)(look->wall_us - ev->occurred_us) / 1e6
                     : 0;
    char since[RFC3339_SIZE], why[300];

    snprintf(why, sizeof(why), "attempt %d %s%s%.200s", d->attempt,
             why_blocked(d), d->failures ? ": " : "",
             d->failures ? d->failures->error : "");
    json_array_append_new(
        look->reasons,
        json_pack(
            "{s:s, s:s, s:I, s:f, s:o, s:s, s:o}", "handler", h->name, "source",
            p->name, "position", (json_int_t)ev->place, "lagSeconds", lag,
            "blockingEvent", slice_json(ev->facts[FACT_ID]), "since",
            clock_format(look->wall_us - (look->now_us - since_us), since),
            "why", json_string_lossy(slice_of(why))));
}

static void add_of_source(struct look *look, const struct partition *p,
                          const char *handler, int64_t position,
                          const char *why)
{
    json_array_append_new(look->reasons,
                          json_pack("{s:s, s:s, s:I, s:s}", "handler", handler,
                                    "source", p->name, "position",
                                    (json_int_t)position, "why", why));
}

/* Who reads by itself and has nothing in memory waits for what it asked for. */
static void look_at_handler(struct look *look, const struct partition *p,
                            const struct handler *h)
{
    const struct cursor *c = &p->cursors[h->index];
    const struct delivery *oldest = pipeline_oldest(p, h);

    if (h->is_held || h->is_removed || look->now_us - c->moved_us <= STUCK_US)
        return;
    if (oldest)
        add_blocking(look, p, h, oldest);
    else if (c->mode == CURSOR_BEHIND && !p->trouble)
        add_of_source(look, p, h->name, c->from.next,
                      "it reads by itself, and nothing came for 30 seconds");
}

static bool has_reader(const struct partition *p)
{
    for (size_t i = 1; i < p->n_cursors; i++)
        if (p->cursors[i].mode == CURSOR_ATTACHED)
            return true;
    return false;
}

/* There is more, there is room for it, and yet nothing comes. */
static bool is_starved(const struct look *look, struct partition *p)
{
    return p->state == PARTITION_RUNNING && !p->is_closing && !p->is_paused &&
           p->events == 0 && look->now_us - p->moved_us > STUCK_US &&
           has_reader(p) && p->ops->backlog && p->ops->backlog(p) > 0;
}

static void look_at_partition(void *arg, struct partition *p)
{
    struct look *look = arg;
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers);

    if (p->trouble)
        add_of_source(look, p, "*", p->next, p->trouble);
    if (look->host->is_held)
        return;
    if (!p->trouble && is_starved(look, p))
        add_of_source(look, p, "*", p->next,
                      "there are events, but none could be read for 30 "
                      "seconds (is a transaction open?)");
    for (size_t i = 1; i < n; i++)
        look_at_handler(look, p, handlers[i]);
}

static void add(struct look *look, const char *why)
{
    json_array_append_new(look->reasons, json_pack("{s:s}", "why", why));
}

static void look_at_database(struct look *look)
{
    const struct host *h = look->host;
    const struct err *err = h->db ? pg_pool_error(h->db) : NULL;
    const char *trouble = intake_outbox_trouble(h->intake);
    char *why;

    if (h->db && !h->db_is_connected) {
        why = xasprintf("the database cannot be reached%s%s", err ? ": " : "",
                        err ? err->msg : "");
        json_array_append_new(
            look->reasons,
            json_pack("{s:o}", "why", json_string_lossy(slice_of(why))));
        free(why);
    } else if (h->db && !h->db_is_migrated) {
        add(look, "the database has no tables yet: run moontide migrate up");
    } else if (trouble) {
        json_array_append_new(look->reasons,
                              json_pack("{s:s, s:o}", "source", "outbox", "why",
                                        json_string_lossy(slice_of(trouble))));
    }
}

static void look_at_kafka(struct look *look)
{
    const struct host *h = look->host;
    const char *trouble = intake_trouble(h->intake);

    if (h->kafka && !h->kafka_is_connected)
        add(look, "no Kafka broker can be reached");
    if (trouble)
        add(look, trouble);
}

json_t *readiness_json(struct host *h)
{
    struct look look = {h, json_array(), clock_mono_us(), clock_wall_us()};

    if (h->is_draining)
        add(&look, "the host is draining");
    look_at_database(&look);
    look_at_kafka(&look);
    if (!supervisor_is_ready(h->supervisor))
        add(&look, "not all workers are up");
    else if (!catalogue_is_ready(h->catalogue))
        add(&look, "handlers are being loaded");
    pipeline_each(h->pipeline, look_at_partition, &look);
    return look.reasons;
}
