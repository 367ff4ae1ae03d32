/*
 * How to reach Kafka: what a consumer and a producer share.
 *
 * All callbacks come on the loop's thread: librdkafka's own threads only put
 * things into queues.
 */
#ifndef MT_KAFKA_SETTINGS_H
#define MT_KAFKA_SETTINGS_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kafka_settings {
    const char *brokers;   /* bootstrap servers */
    const char *client_id; /* "" for librdkafka's default */
    const char *group_id;
    const char *instance_id; /* "" for dynamic membership */
    /* "" except for an embedded broker, which has no topic ids: a text that is
     * new at each start, since what was read from the last one says nothing. */
    const char *incarnation;
    const json_t *topics;  /* array of names; ^… is a regular expression */
    const json_t *rdkafka; /* object of librdkafka's own properties, or NULL */
    /* A first broker is connected, or none is any more. May be NULL. */
    void (*on_state)(void *arg, bool connected);
    void *arg;
};

/* Is this property the host's own? Setting it would break a promise. */
bool kafka_property_is_ours(const char *name);

/* Does librdkafka accept all of this? Connects to nothing. */
bool kafka_settings_check(const struct kafka_settings *settings,
                          struct err *err) MUST_CHECK;

#endif
