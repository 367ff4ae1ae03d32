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
#include "host/intake_priv.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/settings.h"
#include "sources/kafka_source.h"
#include "sources/outbox_source.h"
#include "sources/parked_source.h"
#include "sources/redrive_source.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "intake";

#define FINISH_MAX_US 5000000
#define REOPEN_US     1000000
#define REOPEN_MAX_US 30000000

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

static void on_fetched(void *ctx, struct partition *p, int64_t next)
{
    (void)ctx;
    pipeline_fetched(p, next);
}

void intake_behind(const struct partition *p, const struct handler *h,
                   bool is_behind)
{
    const char *source = source_kind_name(p->ops->kind);

    /* A shard or a partition is a detail; that it began or is over is news. */
    if (is_behind && h->n_behind == 1)
        log_warn("handler is behind and reads by itself",
                 "handler=%s source=%s partition=%s", h->name, source, p->name);
    else if (h->n_behind == 0)
        log_info("handler has caught up", "handler=%s source=%s", h->name,
                 source);
    else
        log_debug(is_behind ? "behind" : "level",
                  "handler=%s source=%s partition=%s", h->name, source,
                  p->name);
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

/* --- closing ----------------------------------------------------------------------- */

void intake_finish_closing(struct intake *in, struct partition *p)
{
    if (!p->is_quiet || p->busy > 0 || p->inflight > 0 ||
        clock_mono_us() < p->save_again_us)
        return;
    if (!p->is_lost && !p->is_saved && intake_save_last(in, p))
        return;
    if (p->ops->kind == SOURCE_OUTBOX) /* said of all shards in one line */
        log_debug("partition closed", "source=outbox partition=%s lost=%d",
                  p->name, p->is_lost);
    else
        log_info("partition closed", "source=%s partition=%s lost=%d",
                 source_kind_name(p->ops->kind), p->name, p->is_lost);
    outputs_close(in->host, p);
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
    pipeline_quiet(p);
}

/* Called deep inside the pipeline: only remember. */
void intake_quiet(struct host *h, struct partition *p)
{
    p->is_quiet = true;
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
    pipeline_quiet(p);
    if (p->ops->fenced)
        p->ops->fenced(p);
}

static void after_quiet(void *arg, struct partition *p)
{
    struct intake *in = arg;

    if (p->ops->kind == SOURCE_REDRIVE && p->state == PARTITION_OPENING)
        intake_start_if_ready(in, p); /* it has no positions to wait for */
    if (p->is_closing && p->state == PARTITION_RUNNING &&
        (p->events == 0 || clock_mono_us() >= p->finish_by_us))
        pipeline_quiet(p);
    if (!p->is_quiet || p->state != PARTITION_QUIETING)
        return;
    if (p->is_closing)
        intake_finish_closing(in, p);
}

static void check_deadline(void *arg, struct partition *p)
{
    int64_t now_us = *(int64_t *)arg;

    if (!p->is_closing || !p->deadline_us || now_us < p->deadline_us)
        return;
    log_warn("partition closes before all is done",
             "partition=%s running=%u saved=%d", p->name, p->inflight,
             p->is_saved);
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

static void mend_kafka(struct intake *in, int64_t now_us);

void intake_save_soon(struct intake *in)
{
    in->next_save_us = 0;
}

void intake_tick(struct intake *in, int64_t now_us)
{
    mend_kafka(in, now_us);
    pipeline_each(in->host->pipeline, check_deadline, &now_us);
    in->has_quiet = true; /* whatever waited for a request of a store */
    if (now_us < in->next_save_us)
        return;
    in->next_save_us = now_us + in->host->settings.positions_interval * 1000;
    intake_save_all(in);
}

/* --- start and stop ------------------------------------------------------------------ */

static void on_rebalance(void *arg)
{
    struct host *h = arg;

    series_add(metrics_get(h->metrics, M_REBALANCES), 1);
}

/* Comes from within the consumer: the rest is for the next tick. */
static void on_fatal(void *arg, const struct err *err)
{
    struct intake *in = ((struct host *)arg)->intake;

    free(in->kafka_failed);
    in->kafka_failed = xasprintf(
        "the Kafka consumer %sis opened again: %s",
        err->kind == ERR_PERMANENT ? "failed for good and " : "", err->msg);
}

static bool start_kafka(struct intake *in, struct err *err)
{
    struct host *h = in->host;
    struct kafka_source_options opts = {
        .kafka = h->kafka,
        .format = h->settings.kafka_format,
        .max_bytes = h->settings.event_max_bytes,
        .on_rebalance = on_rebalance,
        .on_fatal = on_fatal,
        .arg = h,
    };

    if (!h->kafka || json_array_size(h->settings.kafka_topics) == 0)
        return true;
    in->kafka = kafka_source_new(h->loop, &opts, &in->sink, err);
    in->kafka_opened_us = clock_mono_us();
    return in->kafka != NULL;
}

const char *intake_trouble(const struct intake *in)
{
    return in->kafka_failed;
}

const char *intake_outbox_trouble(const struct intake *in)
{
    return in->outbox ? outbox_source_trouble(in->outbox) : NULL;
}

static void on_kafka_ended(void *arg)
{
    struct intake *in = arg;

    in->is_kafka_ended = true;
    if (in->is_stopping)
        in->stopping--;
}

/* Longer and longer, unless it went well for a while. */
static int64_t next_backoff(const struct intake *in, int64_t now_us)
{
    int64_t twice = 2 * in->kafka_backoff_us;

    if (!twice || now_us - in->kafka_opened_us > REOPEN_MAX_US)
        return REOPEN_US;
    return twice < REOPEN_MAX_US ? twice : REOPEN_MAX_US;
}

static void free_kafka(struct intake *in, int64_t now_us)
{
    kafka_source_free(in->kafka);
    in->kafka = NULL;
    in->is_kafka_ending = in->is_kafka_ended = false;
    in->kafka_backoff_us = next_backoff(in, now_us);
    in->kafka_again_us = now_us + in->kafka_backoff_us;
}

static void open_kafka_again(struct intake *in, int64_t now_us)
{
    struct err err;

    free(in->kafka_failed);
    in->kafka_failed = NULL;
    if (start_kafka(in, &err)) {
        log_info("Kafka consumer opened again", "%s", "");
        return;
    }
    in->kafka_failed = xstrdup(err.msg);
    in->kafka_again_us = now_us + in->kafka_backoff_us;
}

static void mend_kafka(struct intake *in, int64_t now_us)
{
    if (!in->kafka_failed || in->is_stopping)
        return;
    if (in->kafka && !in->is_kafka_ending) {
        in->is_kafka_ending = true;
        kafka_source_stop(in->kafka, on_kafka_ended, in);
    } else if (in->is_kafka_ended) {
        free_kafka(in, now_us);
    } else if (!in->kafka && now_us >= in->kafka_again_us) {
        open_kafka_again(in, now_us);
    }
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
        .wake = s->outbox_wake,
        .node = h->node,
        .lease_ms = s->database_lease,
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
    in->given_up = json_array();
    in->sink = (struct source_sink){
        .ctx = in,
        .opened = intake_opened,
        .room = on_room,
        .offer = on_offer,
        .event_new = on_event_new,
        .advance = on_advance,
        .fetched = on_fetched,
        .closing = on_closing,
        .trouble = on_trouble,
    };
    return in;
}

static bool start_parked(struct intake *in, struct err *err)
{
    struct host *h = in->host;
    struct parked_source_options opts = {
        .pool = h->db,
        .store = h->parked,
        .pipeline = h->pipeline,
        .outbox_table = h->settings.outbox_table,
        .outbox_columns = h->settings.outbox_columns,
    };

    if (h->db)
        in->parked = parked_source_new(h->loop, &opts, err);
    return in->parked || !h->db;
}

bool intake_start(struct intake *in, struct err *err)
{
    if (!start_kafka(in, err) || !start_outbox(in, err) ||
        !start_parked(in, err))
        return false;
    if (in->host->db)
        in->redrive = redrive_source_new(in->host->loop, in->host->db,
                                         &in->sink, in->host->node,
                                         in->host->settings.database_lease);
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
    if (in->is_kafka_ended)
        in->stopping--;
    else if (in->kafka && !in->is_kafka_ending)
        kafka_source_stop(in->kafka, on_stopped, in);
    if (in->outbox)
        outbox_source_stop(in->outbox, on_stopped, in);
    if (in->redrive)
        redrive_source_stop(in->redrive, on_stopped, in);
    if (in->parked)
        parked_source_stop(in->parked);
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
    free(in->kafka_failed);
    json_decref(in->given_up);
    outbox_source_free(in->outbox);
    redrive_source_free(in->redrive);
    parked_source_free(in->parked);
    free(in);
}
