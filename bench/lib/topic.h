/* A producer of the samples. What fails ends the program. */
#ifndef MT_BENCH_TOPIC_H
#define MT_BENCH_TOPIC_H

#include "sample.h"

#include <librdkafka/rdkafka.h>
#include <stdbool.h>

rd_kafka_t *topic_connect(const char *brokers, const char *linger_ms);
void topic_make(rd_kafka_t *rk, const char *topic, int partitions);
/* Keyed by aggregate, with the routing facts in headers or without; waits for
 * room. */
void topic_put(rd_kafka_t *rk, const char *topic, const struct sample *s,
               bool headers);
/* All that was put is with the broker; the producer is gone. */
void topic_end(rd_kafka_t *rk);

#endif
