/*
 * What librdkafka alone can do: limit_consume BROKERS TOPIC EVENTS [three]
 *
 * A member of a group, as we are, that takes batches from the consumer's queue
 * and commits now and then; with `three`, simdjson reads the type and two
 * fields of each payload. Prints one line of JSON.
 */
#include "three.h"
#include "usage.h"

#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BATCH        1000
#define COMMIT_EVERY 200000 /* events */

static rd_kafka_t *join(const char *brokers, const char *topic)
{
    char group[64], err[512];
    const char *const settings[][2] = {
        {"bootstrap.servers", brokers},
        {"group.id", group},
        {"enable.auto.commit", "false"},
        {"auto.offset.reset", "earliest"},
        {"fetch.queue.backoff.ms", "1"},
        {"queued.max.messages.kbytes", "8192"},
        {"queued.min.messages", "100000"},
        {"fetch.message.max.bytes", "524288"},
        {"fetch.max.bytes", "4194304"},
    };
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_topic_partition_list_t *topics =
        rd_kafka_topic_partition_list_new(1);
    rd_kafka_t *rk;

    snprintf(group, sizeof(group), "limit-%ld-%d", (long)time(NULL), getpid());
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], err,
                              sizeof(err))) {
            fprintf(stderr, "%s\n", err);
            exit(1);
        }
    rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, err, sizeof(err));
    rd_kafka_poll_set_consumer(rk);
    rd_kafka_topic_partition_list_add(topics, topic, RD_KAFKA_PARTITION_UA);
    rd_kafka_subscribe(rk, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    return rk;
}

static void count(rd_kafka_message_t *m, struct three *three, long *n,
                  long *found)
{
    if (!m->err) {
        ++*n;
        if (three)
            *found += three_read(three, m->payload, m->len);
    }
    rd_kafka_message_destroy(m);
}

int main(int argc, char **argv)
{
    struct three *three = argc > 4 ? three_new() : NULL;
    rd_kafka_message_t *batch[BATCH];
    long events, n = 0, found = 0, committed = 0;
    struct usage start = {0};
    rd_kafka_queue_t *queue;
    rd_kafka_t *rk;

    if (argc < 4)
        return 2;
    events = atol(argv[3]);
    rk = join(argv[1], argv[2]);
    queue = rd_kafka_queue_get_consumer(rk);
    while (n < events) {
        ssize_t got = rd_kafka_consume_batch_queue(queue, 100, batch, BATCH);

        if (got > 0 && !n)
            start = usage_start();
        for (ssize_t i = 0; i < got; i++)
            count(batch[i], three, &n, &found);
        if (n - committed >= COMMIT_EVERY || n >= events) {
            rd_kafka_commit(rk, NULL, n < events);
            committed = n;
        }
    }
    usage_print(&start, n, "fields", found);
    rd_kafka_queue_destroy(queue);
    rd_kafka_consumer_close(rk);
    rd_kafka_destroy(rk);
    three_free(three);
    return 0;
}
