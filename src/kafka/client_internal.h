/* The inside of src/kafka: what its files share about a librdkafka handle. */
#ifndef MT_KAFKA_CLIENT_INTERNAL_H
#define MT_KAFKA_CLIENT_INTERNAL_H

#include "kafka/settings.h"

#include <ev.h>
#include <librdkafka/rdkafka.h>

#define UNUSED __attribute__((unused))

/* Embedded first in a consumer or producer: librdkafka's opaque. */
struct kafka_client {
    const char *role; /* "consumer" or "producer", for log lines */
    rd_kafka_t *rk;
    bool connected;
    bool is_dead; /* a fatal error: only to be closed */
    void (*on_state)(void *arg, bool connected);
    void *state_arg;
    /* NULL or called once, from within a poll, with the client. */
    void (*on_fatal)(void *client, const struct err *err);
};

/* Calls `on_ready` on the loop when `queue` turns from empty to non-empty;
 * whoever is called must read until empty. */
struct kafka_wake {
    struct ev_loop *loop;
    rd_kafka_queue_t *queue;
    ev_io io;
    void (*on_ready)(void *arg);
    void *arg;
};

/* A configuration with our callbacks, `defaults` (pairs ended by NULL) and, on
 * top of them, what `settings` says. Gives; NULL when a property is refused. */
rd_kafka_conf_t *kafka_conf_new(const struct kafka_settings *settings,
                                const char *const *defaults,
                                struct kafka_client *client,
                                struct err *err) MUST_CHECK;

bool kafka_conf_put(rd_kafka_conf_t *conf, const char *name, const char *value,
                    struct err *err) MUST_CHECK;

/* rd_kafka_new() that takes `conf` in any case. */
bool kafka_client_open(struct kafka_client *client, rd_kafka_type_t type,
                       rd_kafka_conf_t *conf, struct err *err) MUST_CHECK;

/* librdkafka has said _FATAL, by its callback or in a queue. */
void kafka_client_died(struct kafka_client *client);

/* A consumer leaves its group: the wait for the coordinator's answer ends after
 * some seconds, since there may be none. Then kafka_client_end(), with what this
 * says: without that answer librdkafka cannot be freed without waiting for the
 * broker to come back, so it stays until the process ends. */
bool kafka_client_leave(rd_kafka_t *rk);
void kafka_client_end(rd_kafka_t *rk, bool has_left);

/* `queue` is taken: given back to librdkafka at fini. */
void kafka_wake_init(struct kafka_wake *wake, struct ev_loop *loop,
                     rd_kafka_queue_t *queue, void (*on_ready)(void *arg),
                     void *arg);
void kafka_wake_fini(struct kafka_wake *wake);

/* What lies in the partition there cannot be read, however often it is
 * fetched. */
bool kafka_is_undecodable(rd_kafka_resp_err_t code);

/* An error of librdkafka with its name as the code. Returns false. */
bool kafka_err(struct err *err, rd_kafka_resp_err_t code, const char *what);

#endif
