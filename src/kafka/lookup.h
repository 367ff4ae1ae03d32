/*
 * Questions to the brokers that take a round trip: which topic this name means
 * today, and where a partition begins and ends. Asked again until answered;
 * a new question of the same kind replaces the former.
 */
#ifndef MT_KAFKA_LOOKUP_H
#define MT_KAFKA_LOOKUP_H

#include "kafka/client_internal.h"

struct kafka_lookup;

/* `ids[i]` belongs to `topics[i]`: cluster id, "/", topic id; NULL: it is not
 * there. Borrowed. */
typedef void kafka_ids_fn(void *arg, char *const *ids);

/* `offsets[i]` belongs to element i of the list that was asked. */
typedef void kafka_bounds_fn(void *arg, const int64_t *offsets, size_t n);

struct kafka_lookup *kafka_lookup_new(struct ev_loop *loop, rd_kafka_t *rk);
void kafka_lookup_free(struct kafka_lookup *l);

/* `until_all`: asks again until all of them are there. */
void kafka_lookup_ids(struct kafka_lookup *l, const char *const *topics,
                      size_t n, bool until_all, kafka_ids_fn *fn, void *arg);

/* Is there a question about ids that is not answered yet? */
bool kafka_lookup_is_asking(const struct kafka_lookup *l);

/* Takes `list`: each element's offset is RD_KAFKA_OFFSET_SPEC_EARLIEST or
 * RD_KAFKA_OFFSET_SPEC_LATEST. */
void kafka_lookup_bounds(struct kafka_lookup *l,
                         rd_kafka_topic_partition_list_t *list,
                         kafka_bounds_fn *fn, void *arg);

/* Forget what was asked; no callback comes any more. */
void kafka_lookup_cancel(struct kafka_lookup *l);

#endif
