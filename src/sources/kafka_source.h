/*
 * Kafka topics as a source: one struct partition for each partition that the
 * group gives us. See core/source.h for the life of a partition and
 * sources/decode.h for the formats.
 */
#ifndef MT_SOURCES_KAFKA_SOURCE_H
#define MT_SOURCES_KAFKA_SOURCE_H

#include "base/err.h"
#include "core/source.h"
#include "kafka/settings.h"

#include <jansson.h>

struct ev_loop;
struct kafka_source;

struct kafka_source_options {
    const struct kafka_settings *kafka;
    const char *format; /* auto, native, cloudevents, debezium */
    int64_t max_bytes;  /* a larger record is undecodable */
    /* Counts assignments and revocations. May be NULL. */
    void (*on_rebalance)(void *arg);
    void *arg;
};

struct kafka_source *kafka_source_new(struct ev_loop *loop,
                                      const struct kafka_source_options *opts,
                                      const struct source_sink *sink,
                                      struct err *err) MUST_CHECK;

/* Close every partition; `done` comes when all of them are closed and their
 * last offsets committed, or the group did not answer in time. */
void kafka_source_stop(struct kafka_source *s, void (*done)(void *arg),
                       void *arg);

/* Leaves the group. No partition may be open except after stop(). */
void kafka_source_free(struct kafka_source *s);

bool kafka_source_connected(const struct kafka_source *s);

/* For /v1/status: the partitions with their places. Gives. */
json_t *kafka_source_json(const struct kafka_source *s);

#endif
