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
    /* Nothing comes any more: stop it, free it, and make another. Not to be
     * freed from within. */
    void (*on_fatal)(void *arg, const struct err *err);
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

/* --- when a partition stands still ------------------------------------------ */

struct handler;

/* Its reading, or the one that `h` has for itself, stands at an offset that is
 * not there any more, or that cannot be read. */
struct kafka_trouble {
    int64_t at;
    bool is_undecodable;
    const char *text; /* borrowed */
};
/* False: there is none. `h` NULL: the partition's. */
bool kafka_source_trouble(const struct partition *p, const struct handler *h,
                          struct kafka_trouble *trouble);

/* Where the partition begins and ends; false: it was given back meanwhile. */
typedef void kafka_bounds_of_fn(void *arg, bool is_known, int64_t low,
                                int64_t end);
/* False: it is not being read, or somebody else asks just now. */
bool kafka_source_bounds(struct partition *p, kafka_bounds_of_fn *fn,
                         void *arg) MUST_CHECK;

/* What cannot be read from `first` up to below `next` is offered as events that
 * cannot be decoded, so that each gets a dead letter. */
void kafka_source_letters(struct partition *p, struct handler *h, int64_t first,
                          int64_t next);

/* The pipeline's places were changed: read there. `h`: only its own reading. */
bool kafka_source_go_on(struct partition *p, const struct handler *h,
                        struct err *err) MUST_CHECK;

/* For /v1/status: the partitions with their places. Gives. */
json_t *kafka_source_json(const struct kafka_source *s);

#endif
