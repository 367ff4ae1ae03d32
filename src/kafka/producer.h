/*
 * Writes records: idempotent, acknowledged by all replicas. A record counts
 * only when its callback says so, which it does exactly once.
 *
 * Errors that end a librdkafka producer (fenced, sequence lost) are healed
 * inside: what was under way gets its error, and a new one is opened.
 */
#ifndef MT_KAFKA_PRODUCER_H
#define MT_KAFKA_PRODUCER_H

#include "base/slice.h"
#include "kafka/kept.h"
#include "kafka/settings.h"

struct ev_loop;
struct kafka_producer;

/* NULL: stored by all replicas in sync. Else the record is not, or it is not
 * known (code _TIMED_OUT, _MSG_TIMED_OUT): writing it again may double it. */
typedef void kafka_delivery_fn(void *arg, const struct err *err);

struct kafka_producer *kafka_producer_new(struct ev_loop *loop,
                                          const struct kafka_settings *settings,
                                          struct err *err) MUST_CHECK;

/* Waits up to `timeout_ms` for what is under way; callbacks of the rest come
 * with an error before this returns, and none after: for before whoever asked
 * goes away. What is still produced goes nowhere. NULL is allowed. */
void kafka_producer_end(struct kafka_producer *p, int timeout_ms);
/* Ends it first, unless that was done. NULL is allowed. */
void kafka_producer_free(struct kafka_producer *p, int timeout_ms);

/* Copies everything. `key` and `value` may be absent (ptr NULL); a negative
 * partition lets the key decide. The callback never runs inside this call. */
void kafka_produce(struct kafka_producer *p, const char *topic,
                   int32_t partition, struct slice key, struct slice value,
                   const struct kafka_header *headers, size_t nheaders,
                   kafka_delivery_fn *cb, void *arg);

/* Records whose callback has not come yet. */
size_t kafka_producer_pending(const struct kafka_producer *p);

struct ev_loop *kafka_producer_loop(const struct kafka_producer *p);

bool kafka_producer_connected(const struct kafka_producer *p);

#endif
