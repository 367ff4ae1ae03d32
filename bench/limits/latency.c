/*
 * What librdkafka alone needs from produce to consume: limit_latency BROKERS
 * TOPIC EVENTS. Says "ready", then prints one latency (µs) a line, by the time
 * that the producer wrote into each event, or else by the record's own time, to
 * the millisecond.
 */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PARTITIONS 8

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static rd_kafka_t *assign(const char *brokers, const char *topic)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new(PARTITIONS);
    char err[512];
    rd_kafka_t *rk;

    rd_kafka_conf_set(conf, "bootstrap.servers", brokers, err, sizeof(err));
    rd_kafka_conf_set(conf, "group.id", "latency", err, sizeof(err));
    rd_kafka_conf_set(conf, "fetch.wait.max.ms", "100", err, sizeof(err));
    rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, err, sizeof(err));
    rd_kafka_poll_set_consumer(rk);
    for (int i = 0; i < PARTITIONS; i++)
        rd_kafka_topic_partition_list_add(list, topic, i)->offset =
            RD_KAFKA_OFFSET_END;
    rd_kafka_assign(rk, list);
    rd_kafka_topic_partition_list_destroy(list);
    return rk;
}

static double sent_us(const rd_kafka_message_t *m)
{
    const char *sent = memmem(m->payload, m->len, "sent_us\": ", 10);

    return sent ? strtod(sent + 10, NULL)
                : (double)rd_kafka_message_timestamp(m, NULL) * 1e3;
}

int main(int argc, char **argv)
{
    rd_kafka_t *rk;
    long events;

    if (argc < 4)
        return 2;
    events = atol(argv[3]);
    rk = assign(argv[1], argv[2]);
    rd_kafka_consumer_poll(rk, 3000); /* nothing yet: it finds its brokers */
    puts("ready");
    fflush(stdout);
    while (events > 0) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(rk, 1000);

        if (!m)
            continue;
        if (!m->err) {
            printf("%.1f\n", now_us() - sent_us(m));
            events--;
        }
        rd_kafka_message_destroy(m);
    }
    rd_kafka_destroy(rk);
    return 0;
}
