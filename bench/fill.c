/*
 * bench_fill BROKERS TOPIC EVENTS PARTITIONS KEYS SIZE [headers]
 *
 * Makes the topic and fills it with the samples, keyed by aggregate.
 */
#include "sample.h"

#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long failed;

static void on_delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *arg)
{
    (void)rk;
    (void)arg;
    if (m->err && !failed++)
        fprintf(stderr, "%s\n", rd_kafka_err2str(m->err));
}

static rd_kafka_t *connect_to(const char *brokers)
{
    static const char *const settings[][2] = {
        {"linger.ms", "20"},
        {"queue.buffering.max.messages", "200000"},
        {"batch.size", "900000"},
        {"compression.type", "none"},
    };
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char err[512];
    rd_kafka_t *rk;

    rd_kafka_conf_set(conf, "bootstrap.servers", brokers, err, sizeof(err));
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        rd_kafka_conf_set(conf, settings[i][0], settings[i][1], err,
                          sizeof(err));
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivered);
    rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, err, sizeof(err));
    if (!rk) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }
    return rk;
}

static void make_topic(rd_kafka_t *rk, const char *topic, int partitions)
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
                                   struct sample *s, int headers)
{
    if (!headers)
        return rd_kafka_producev(
            rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY(s->key, strlen(s->key)),
            RD_KAFKA_V_VALUE(s->value, s->value_len),
            RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
    return rd_kafka_producev(
        rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY(s->key, strlen(s->key)),
        RD_KAFKA_V_VALUE(s->value, s->value_len),
        RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
        RD_KAFKA_V_HEADER("id", s->id, -1),
        RD_KAFKA_V_HEADER("type", s->type, -1),
        RD_KAFKA_V_HEADER("version", "1", -1),
        RD_KAFKA_V_HEADER("aggregate_type", "Order", -1),
        RD_KAFKA_V_HEADER("occurred_at", s->occurred_at, -1), RD_KAFKA_V_END);
}

int main(int argc, char **argv)
{
    static struct sample s;
    rd_kafka_t *rk;
    long events;

    if (argc < 7) {
        fputs("bench_fill BROKERS TOPIC EVENTS PARTITIONS KEYS SIZE "
              "[headers]\n",
              stderr);
        return 2;
    }
    events = atol(argv[3]);
    rk = connect_to(argv[1]);
    make_topic(rk, argv[2], atoi(argv[4]));
    for (long i = 0; i < events; i++) {
        sample_make(&s, (uint64_t)i, (uint64_t)atol(argv[5]),
                    (size_t)atol(argv[6]));
        while (produce(rk, argv[2], &s, argc > 7) ==
               RD_KAFKA_RESP_ERR__QUEUE_FULL)
            rd_kafka_poll(rk, 50);
        if (i % 1000 == 0)
            rd_kafka_poll(rk, 0);
    }
    rd_kafka_flush(rk, 120000);
    failed += rd_kafka_outq_len(rk);
    rd_kafka_destroy(rk);
    return failed != 0;
}
