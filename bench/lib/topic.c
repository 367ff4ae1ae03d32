#include "topic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static void on_delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *arg)
{
    (void)rk;
    (void)arg;
    if (m->err)
        die(rd_kafka_err2str(m->err));
}

rd_kafka_t *topic_connect(const char *brokers, const char *linger_ms)
{
    const char *const settings[][2] = {
        {"bootstrap.servers", brokers},
        {"linger.ms", linger_ms},
        {"queue.buffering.max.messages", "200000"},
        {"batch.size", "900000"},
        {"compression.type", "none"},
    };
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char err[512];
    rd_kafka_t *rk;

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], err,
                              sizeof(err)))
            die(err);
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivered);
    rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, err, sizeof(err));
    if (!rk)
        die(err);
    return rk;
}

void topic_make(rd_kafka_t *rk, const char *topic, int partitions)
{
    char err[512];
    rd_kafka_NewTopic_t *wanted =
        rd_kafka_NewTopic_new(topic, partitions, 1, err, sizeof(err));
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);

    rd_kafka_CreateTopics(rk, &wanted, 1, NULL, queue);
    rd_kafka_event_destroy(rd_kafka_queue_poll(queue, 30000));
    rd_kafka_queue_destroy(queue);
    rd_kafka_NewTopic_destroy(wanted);
}

static rd_kafka_resp_err_t produce(rd_kafka_t *rk, const char *topic,
                                   const struct sample *s, bool headers)
{
    void *value = (void *)(uintptr_t)s->value; /* copied, not written to */

    if (!headers)
        return rd_kafka_producev(
            rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY(s->key, strlen(s->key)),
            RD_KAFKA_V_VALUE(value, s->value_len),
            RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
    return rd_kafka_producev(
        rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY(s->key, strlen(s->key)),
        RD_KAFKA_V_VALUE(value, s->value_len),
        RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
        RD_KAFKA_V_HEADER("id", s->id, -1),
        RD_KAFKA_V_HEADER("type", s->type, -1),
        RD_KAFKA_V_HEADER("version", "1", -1),
        RD_KAFKA_V_HEADER("aggregate_type", "Order", -1),
        RD_KAFKA_V_HEADER("occurred_at", s->occurred_at, -1), RD_KAFKA_V_END);
}

void topic_put(rd_kafka_t *rk, const char *topic, const struct sample *s,
               bool headers)
{
    rd_kafka_resp_err_t err;

    while ((err = produce(rk, topic, s, headers)) ==
           RD_KAFKA_RESP_ERR__QUEUE_FULL)
        rd_kafka_poll(rk, 50);
    if (err)
        die(rd_kafka_err2str(err));
}

void topic_end(rd_kafka_t *rk)
{
    rd_kafka_flush(rk, 120000);
    if (rd_kafka_outq_len(rk))
        die("events are left that the broker did not take");
    rd_kafka_destroy(rk);
}
