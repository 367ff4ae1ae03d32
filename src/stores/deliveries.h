/*
 * Outcomes that were not a plain ack: skips by a flag, one row each in
 * event_deliveries, written in batches; the callback per row comes after the
 * commit. And which version of a handler ran where, event_handler_versions.
 * Without PostgreSQL skips are logged and counted, and settle at once.
 */
#ifndef MT_STORES_DELIVERIES_H
#define MT_STORES_DELIVERIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct delivery_store;
struct event;
struct ev_loop;
struct pg_pool;

/* `fenced`: not stored, another host has the partition by now. */
typedef void delivery_stored_fn(void *arg, bool fenced);

struct delivery_store *delivery_store_new(struct ev_loop *loop,
                                          struct pg_pool *pool);
void delivery_store_free(struct delivery_store *s);

struct delivery_row { /* borrowed during the call */
    const char *handler, *version;
    const struct event *event;
    int64_t epoch;       /* of the handler's position: the fence */
    const char *outcome; /* skip */
    const char *reason;
    int attempts;
};

/* Retried inside until it is stored. */
void delivery_store_put(struct delivery_store *s,
                        const struct delivery_row *row,
                        delivery_stored_fn *done, void *arg);

struct version_row { /* borrowed during the call */
    const char *handler, *partition, *version;
    int64_t from_place;
};

/* The versions that ran from these places on; each handler and partition once.
 * Those that ran there last are nothing new. */
void delivery_store_versions(struct delivery_store *s, size_t n,
                             const struct version_row *rows);

/* Remove inbox rows older than `seconds` that no dead letter needs. */
void delivery_store_prune(struct delivery_store *s, int64_t seconds);

#endif
