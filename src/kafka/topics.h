/*
 * Topics of our own: made when missing, and read whole.
 */
#ifndef MT_KAFKA_TOPICS_H
#define MT_KAFKA_TOPICS_H

#include "base/slice.h"
#include "kafka/settings.h"

struct ev_loop;
struct kafka_producer;
struct kafka_reading;

/* Make the topic unless it is there. `err` NULL: it is there now. Partitions
 * below 1 and the replication are the broker's defaults. */
typedef void kafka_topic_fn(void *arg, const struct err *err);
void kafka_topic_create(struct kafka_producer *p, const char *topic,
                        int partitions, bool is_compacted, kafka_topic_fn *fn,
                        void *arg);

/* A record of a topic that is read from its beginning to its present end. */
typedef void kafka_reading_fn(void *arg, struct slice key, struct slice value);

/* Comes once, `err` NULL when the end was reached. */
typedef void kafka_read_fn(void *arg, const struct err *err);

/* A topic of one partition. The reading frees itself after `done`. */
struct kafka_reading *
kafka_read_topic(struct ev_loop *loop, const struct kafka_settings *settings,
                 const char *topic, kafka_reading_fn *record,
                 kafka_read_fn *done, void *arg, struct err *err) MUST_CHECK;
/* Stop early: neither callback comes any more. */
void kafka_reading_cancel(struct kafka_reading *r);

#endif
