#include "kafka/reread.h"

#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/client_internal.h"

#include <stdlib.h>
#include <string.h>

#define BATCH     100 /* records a turn: a piece goes on between live ones */
#define IDLE_S    1.0 /* then a partition is not fetched any more */
#define UNALIGNED INT64_MIN

static const char component[] = "kafka";

/* A partition that is being fetched. */
struct stream {
    struct list link;
    struct kafka_reread *reread;
    char *name;
    int32_t partition;
    rd_kafka_topic_t *topic;
    struct kafka_wake wake;
    ev_timer again; /* the queue was not empty when our turn ended */
    ev_timer idle;
    int64_t at; /* the next record has this offset or a later one */
    bool is_asked;
    struct kafka_piece piece;
};

struct kafka_reread {
    struct kafka_client client; /* first: librdkafka's opaque */
    struct ev_loop *loop;
    struct kafka_settings settings;
    const struct kafka_reread_ops *ops;
    void *arg;
    struct kafka_wake wake; /* log lines and statistics */
    struct list streams;
};

/* --- streams ----------------------------------------------------------------- */

static struct stream *find(struct kafka_reread *r, const char *topic,
                           int32_t partition)
{
    list_foreach(link, &r->streams) {
        struct stream *s = CONTAINER_OF(link, struct stream, link);

        if (s->partition == partition && strcmp(s->name, topic) == 0)
            return s;
    }
    return NULL;
}

static void stream_free(struct stream *s)
{
    list_remove(&s->link);
    ev_timer_stop(s->reread->loop, &s->again);
    ev_timer_stop(s->reread->loop, &s->idle);
    rd_kafka_consume_stop(s->topic, s->partition);
    kafka_wake_fini(&s->wake);
    rd_kafka_topic_destroy(s->topic);
    free(s->name);
    free(s);
}

static void done(struct stream *s, int64_t next)
{
    s->is_asked = false;
    ev_timer_set(&s->idle, IDLE_S, 0.);
    ev_timer_start(s->reread->loop, &s->idle);
    s->reread->ops->on_done(s->reread->arg, s->piece.owner, next);
}

static void take(struct stream *s, rd_kafka_message_t *m)
{
    struct kafka_record record = {
        .offset = m->offset,
        .timestamp_ms = rd_kafka_message_timestamp(m, NULL),
        .key = {m->key, m->key_len},
        .value = {m->payload, m->len},
        .message = m,
    };

    s->at = m->offset + 1;
    s->piece.max--;
    s->reread->ops->on_record(s->reread->arg, s->piece.owner, &record);
    if (record.message)
        rd_kafka_message_destroy(m);
}

/* True when the piece ends with it. The news of an earlier end may still lie in
 * the queue. */
static bool on_error(struct stream *s, const rd_kafka_message_t *m)
{
    struct err err;

    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
        return m->offset > s->piece.last;
    kafka_err(&err, m->err, rd_kafka_message_errstr(m));
    if (m->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET ||
        m->err == RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE ||
        kafka_is_undecodable(m->err))
        s->reread->ops->on_fault(s->reread->arg, s->piece.owner,
                                 s->at == UNALIGNED ? s->piece.first : s->at,
                                 kafka_is_undecodable(m->err), &err);
    else
        log_warn("cannot read again",
                 "topic=%s partition=%d code=%s err=" LOG_Q, s->name,
                 s->partition, err.code, err.msg);
    return false;
}

/* One of the batch; true when the piece is over, and where: what follows it
 * in the batch is dropped and read again when it is asked for. */
static bool take_one(struct stream *s, rd_kafka_message_t *m, int64_t *next)
{
    if (m->err) {
        bool is_end = on_error(s, m);

        rd_kafka_message_destroy(m);
        *next = s->piece.last + 1;
        if (is_end)
            s->at = *next;
        return is_end;
    }
    if (m->offset > s->piece.last) {
        rd_kafka_message_destroy(m);
        s->at = UNALIGNED;
        *next = s->piece.last + 1;
        return true;
    }
    take(s, m);
    *next = s->at;
    return s->piece.max == 0 || s->at > s->piece.last;
}

static void read_soon(struct stream *s)
{
    ev_timer_set(&s->again, 0., 0.);
    ev_timer_start(s->reread->loop, &s->again);
}

static void read_queue(struct stream *s)
{
    rd_kafka_message_t *batch[BATCH];
    size_t most = s->piece.max < BATCH ? s->piece.max : BATCH;
    bool is_over = false;
    int64_t next = 0;
    ssize_t n;

    if (!s->is_asked)
        return; /* it stays in librdkafka's queue until it is wanted */
    n = rd_kafka_consume_batch_queue(s->wake.queue, 0, batch, most);
    for (ssize_t i = 0; i < n; i++) {
        if (is_over) {
            rd_kafka_message_destroy(batch[i]);
            s->at = UNALIGNED;
        } else {
            is_over = take_one(s, batch[i], &next);
        }
    }
    if (is_over)
        done(s, next);
    else if (n > 0)
        read_soon(s);
}

static void on_ready(void *arg)
{
    read_queue(arg);
}

static void on_again(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    read_queue(timer->data);
}

static void on_idle(UNUSED struct ev_loop *loop, ev_timer *timer,
                    UNUSED int events)
{
    stream_free(timer->data);
}

/* --- the client ---------------------------------------------------------------- */

/* As the group's member reads, with little in advance. */
static const char *const defaults[] = {
    "enable.auto.commit",
    "false",
    "enable.auto.offset.store",
    "false",
    "auto.offset.reset",
    "error",
    "enable.partition.eof",
    "true",
    "isolation.level",
    "read_committed",
    "fetch.queue.backoff.ms",
    "1",
    "fetch.wait.max.ms",
    "10",
    "fetch.error.backoff.ms",
    "200",
    "queued.max.messages.kbytes",
    "1024",
    "queued.min.messages",
    "2000",
    "fetch.message.max.bytes",
    "262144",
    "fetch.max.bytes",
    "1048576",
    NULL,
};

static void on_main(void *arg)
{
    struct kafka_reread *r = arg;

    while (rd_kafka_poll(r->client.rk, 0) > 0)
        ;
}

static bool open_client(struct kafka_reread *r, struct err *err)
{
    rd_kafka_conf_t *conf =
        kafka_conf_new(&r->settings, defaults, &r->client, err);

    if (!conf || !kafka_client_open(&r->client, RD_KAFKA_CONSUMER, conf, err))
        return false;
    kafka_wake_init(&r->wake, r->loop, rd_kafka_queue_get_main(r->client.rk),
                    on_main, r);
    return true;
}

struct kafka_reread *kafka_reread_new(struct ev_loop *loop,
                                      const struct kafka_settings *settings,
                                      const struct kafka_reread_ops *ops,
                                      void *arg)
{
    struct kafka_reread *r = xcalloc(1, sizeof(*r));

    r->loop = loop;
    r->settings = *settings;
    r->settings.on_state = NULL;
    r->ops = ops;
    r->arg = arg;
    list_init(&r->streams);
    return r;
}

void kafka_reread_free(struct kafka_reread *r)
{
    if (!r)
        return;
    list_foreach_safe(link, &r->streams)
        stream_free(CONTAINER_OF(link, struct stream, link));
    if (r->client.rk) {
        kafka_wake_fini(&r->wake);
        rd_kafka_destroy(r->client.rk);
    }
    free(r);
}

/* --- pieces ---------------------------------------------------------------------- */

static bool seek(struct stream *s, int64_t offset, struct err *err)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new(1);
    rd_kafka_error_t *fault;

    rd_kafka_topic_partition_list_add(list, s->name, s->partition)->offset =
        offset;
    fault = rd_kafka_seek_partitions(s->reread->client.rk, list, 0);
    rd_kafka_topic_partition_list_destroy(list);
    if (!fault)
        return true;
    kafka_err(err, rd_kafka_error_code(fault), "seek");
    rd_kafka_error_destroy(fault);
    return false;
}

static struct stream *stream_new(struct kafka_reread *r,
                                 const struct kafka_piece *piece,
                                 struct err *err)
{
    struct stream *s = xcalloc(1, sizeof(*s));
    rd_kafka_queue_t *queue = rd_kafka_queue_new(r->client.rk);

    s->reread = r;
    s->name = xstrdup(piece->topic);
    s->partition = piece->partition;
    s->topic = rd_kafka_topic_new(r->client.rk, s->name, NULL);
    ev_timer_init(&s->again, on_again, 0., 0.);
    ev_timer_init(&s->idle, on_idle, IDLE_S, 0.);
    s->again.data = s->idle.data = s;
    list_append(&r->streams, &s->link);
    kafka_wake_init(&s->wake, r->loop, queue, on_ready, s);
    if (!rd_kafka_consume_start_queue(s->topic, s->partition, piece->first,
                                      queue))
        return s;
    kafka_err(err, rd_kafka_last_error(), piece->topic);
    stream_free(s);
    return NULL;
}

bool kafka_reread_start(struct kafka_reread *r, const struct kafka_piece *piece,
                        struct err *err)
{
    struct stream *s = find(r, piece->topic, piece->partition);

    if (!r->client.rk && !open_client(r, err))
        return false;
    if (!s) {
        s = stream_new(r, piece, err);
        if (!s)
            return false;
    } else if (s->at != piece->first && !seek(s, piece->first, err)) {
        stream_free(s);
        return false;
    }
    s->at = piece->first;
    s->piece = *piece;
    s->piece.topic = s->name;
    s->is_asked = true;
    ev_timer_stop(r->loop, &s->idle);
    read_soon(s); /* some of it may be there already */
    return true;
}

void kafka_reread_cancel(struct kafka_reread *r, const char *topic,
                         int32_t partition)
{
    struct stream *s = find(r, topic, partition);

    if (s)
        stream_free(s);
}
