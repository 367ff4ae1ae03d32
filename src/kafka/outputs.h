/*
 * Records on their way out: what a handler produces, kept with its bytes until
 * Kafka has it. A list of them goes to Kafka in its order.
 */
#ifndef MT_KAFKA_OUTPUTS_H
#define MT_KAFKA_OUTPUTS_H

#include "kafka/kept.h"

struct kafka_output {
    const char *topic;
    struct slice key, value; /* absent: the record has none */
    size_t n_headers;
    struct kafka_header headers[]; /* the bytes of all come behind them */
};

/* {0} is an empty one. */
struct kafka_outputs {
    struct kafka_output **at;
    size_t n, cap;
    size_t bytes; /* of keys, values and headers */
};

/* Copies everything. */
void kafka_outputs_add(struct kafka_outputs *list, struct slice topic,
                       struct slice key, struct slice value,
                       const struct kafka_header *headers, size_t n);
/* Behind what is there; `from` is empty afterwards. */
void kafka_outputs_move(struct kafka_outputs *to, struct kafka_outputs *from);
void kafka_outputs_fini(struct kafka_outputs *list);

#endif
