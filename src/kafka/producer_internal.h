/* What src/kafka/topics.c needs of a producer. */
#ifndef MT_KAFKA_PRODUCER_INTERNAL_H
#define MT_KAFKA_PRODUCER_INTERNAL_H

#include "base/list.h"
#include "kafka/client_internal.h"
#include "kafka/producer.h"

/* Replaced after a fatal error: not to be kept. */
rd_kafka_t *kafka_producer_handle(struct kafka_producer *p);

/* The broker is our own: topics come into being when a producer names them, and
 * it knows no request that makes one. */
bool kafka_producer_is_embedded(const struct kafka_producer *p);

/* Topics being made with this handle; cancelled before it goes. */
struct list *kafka_producer_creations(struct kafka_producer *p);
void kafka_topics_cancel(struct list *creations);

#endif
