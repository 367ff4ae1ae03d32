/*
 * What deliveries of one handler in one partition gave out for Kafka and what
 * is not committed yet, by their places. {0} holds nothing.
 */
#ifndef MT_STORES_HELD_H
#define MT_STORES_HELD_H

#include "kafka/outputs.h"

struct held_item {
    int64_t place;
    struct kafka_outputs outputs;
};

struct held {
    struct held_item *at; /* places rise */
    size_t n, cap;
    size_t records, bytes; /* of all */
};

/* Instead of what that place gave before. `outputs` is empty afterwards. */
void held_put(struct held *held, int64_t place, struct kafka_outputs *outputs);
/* It does not count: its delivery did not end well. */
void held_drop(struct held *held, int64_t place);
/* All below `next`, in the order of places, are added to `to` and held no more. */
void held_take(struct held *held, int64_t next, struct kafka_outputs *to);
void held_fini(struct held *held);

#endif
