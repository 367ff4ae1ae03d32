#include "kafka/pages.h"

#include "base/mem.h"
#include "kafka/client_internal.h"

#include <stdlib.h>

#define WAIT_MS 30000

struct kafka_pages {
    struct kafka_client client; /* first: librdkafka's opaque */
    rd_kafka_topic_t *topic;    /* NULL: not started */
    int32_t partition;
    int64_t at, end;
};

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
    "queued.max.messages.kbytes",
    "4096",
    NULL,
};

struct kafka_pages *kafka_pages_open(const struct kafka_settings *settings,
                                     struct err *err)
{
    struct kafka_pages *p = xcalloc(1, sizeof(*p));
    rd_kafka_conf_t *conf = kafka_conf_new(settings, defaults, &p->client, err);

    if (conf && kafka_client_open(&p->client, RD_KAFKA_CONSUMER, conf, err))
        return p;
    free(p);
    return NULL;
}

void kafka_pages_close(struct kafka_pages *p)
{
    if (!p)
        return;
    kafka_pages_stop(p);
    rd_kafka_destroy(p->client.rk);
    free(p);
}

void kafka_pages_stop(struct kafka_pages *p)
{
    if (!p->topic)
        return;
    rd_kafka_consume_stop(p->topic, p->partition);
    rd_kafka_topic_destroy(p->topic);
    p->topic = NULL;
}

bool kafka_pages_start(struct kafka_pages *p, const char *topic,
                       int32_t partition, struct err *err)
{
    rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(
        p->client.rk, topic, partition, &p->at, &p->end, WAIT_MS);

    if (code) {
        kafka_err(err, code, topic);
        return false;
    }
    p->topic = rd_kafka_topic_new(p->client.rk, topic, NULL);
    p->partition = partition;
    if (rd_kafka_consume_start(p->topic, partition, p->at) == 0)
        return true;
    kafka_err(err, rd_kafka_last_error(), topic);
    rd_kafka_topic_destroy(p->topic);
    p->topic = NULL;
    return false;
}

static void take(struct kafka_pages *p, rd_kafka_message_t *m,
                 kafka_page_fn *fn, void *arg)
{
    struct kafka_record record = {
        .offset = m->offset,
        .timestamp_ms = rd_kafka_message_timestamp(m, NULL),
        .key = {m->key, m->key_len},
        .value = {m->payload, m->len},
        .message = m,
    };

    p->at = m->offset + 1;
    if (m->offset < p->end)
        fn(arg, &record);
    if (record.message)
        rd_kafka_message_destroy(m);
}

bool kafka_pages_next(struct kafka_pages *p, size_t max, kafka_page_fn *fn,
                      void *arg, bool *is_end, struct err *err)
{
    rd_kafka_message_t *m;

    *is_end = p->at >= p->end;
    for (size_t n = 0; n < max && !*is_end; n++) {
        m = rd_kafka_consume(p->topic, p->partition, WAIT_MS);
        rd_kafka_poll(p->client.rk, 0);
        if (!m)
            return err_set(err, ERR_RETRIABLE, "no broker answers");
        if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            *is_end = true; /* what is left is of open transactions */
            rd_kafka_message_destroy(m);
        } else if (m->err) {
            kafka_err(err, m->err, rd_kafka_message_errstr(m));
            rd_kafka_message_destroy(m);
            return false;
        } else {
            take(p, m, fn, arg);
            *is_end = p->at >= p->end;
        }
    }
    return true;
}
