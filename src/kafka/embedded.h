/*
 * librdkafka's in-process broker: a first run and tests of the host need no
 * Java then. It keeps little and forgets all; never for production. Programs
 * outside can write to it too, at kafka_embedded_bootstrap().
 */
#ifndef MT_KAFKA_EMBEDDED_H
#define MT_KAFKA_EMBEDDED_H

#include "base/err.h"

struct kafka_embedded;

struct kafka_embedded *kafka_embedded_new(struct err *err) MUST_CHECK;
void kafka_embedded_free(struct kafka_embedded *e); /* NULL is allowed */

/* host:port of its one broker, valid as long as `e`. */
const char *kafka_embedded_bootstrap(const struct kafka_embedded *e);

/* Topics that clients name come into being by themselves, with 4 partitions;
 * a consumer wants them to be there before. */
bool kafka_embedded_topic(struct kafka_embedded *e, const char *topic,
                          int partitions, struct err *err) MUST_CHECK;

#endif
