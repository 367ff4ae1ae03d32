/*
 * A handler as the core sees it: what its running version declares, where its
 * deliveries may go, and its counters. Its code lives in the workers.
 */
#ifndef MT_CORE_HANDLER_H
#define MT_CORE_HANDLER_H

#include "base/list.h"
#include "base/metrics.h"
#include "base/slice.h"
#include "base/words.h"
#include "core/backoff.h"
#include "core/bucket.h"

#include <stddef.h>

enum ordering { ORDER_KEY, ORDER_PARTITION, ORDER_NONE };

/* Deliveries of one handler with workers at once: enough to keep every ring
 * busy, little enough that a slow handler does not fill the workers' heaps. One
 * with batches has two that run and one to come, as far as slots go. */
#define HANDLER_INFLIGHT_MAX  1024
#define HANDLER_BATCHES       3
#define HANDLER_INFLIGHT_MOST 3072
#define HANDLER_INFLIGHT_COST (4 << 20)

/* What a dead letter does to what follows it in its lane. */
enum on_dead {
    ON_DEAD_CONTINUE, /* nothing */
    ON_DEAD_PARK,     /* that waits until the letter is redriven or discarded */
    ON_DEAD_STOP,     /* the whole handler waits until somebody resumes it */
};

struct key_path {
    char *type; /* of the event; NULL: any */
    char *path; /* such as payload.phone */
};

struct handler_spec {
    char *version;
    char **subscribes;
    size_t n_subscribes;
    enum ordering ordering;
    struct key_path *keys; /* none: the aggregate id */
    size_t n_keys;
    int concurrency;
    struct retry_policy retry;
    struct rate rate; /* deliveries over time, on this host */
    enum on_dead on_dead;
    int batch_max; /* 0: no batches */
    bool is_transactional;
    bool
        in_kafka; /* its position moves in a Kafka transaction with its output */
    int64_t start; /* POSITION_EARLIEST, POSITION_LATEST ("now"), or µs */
};

void handler_spec_free(struct handler_spec *spec);

struct handler {
    uint64_t hash; /* of its name: part of a lane's identity */
    char *name;    /* "": the one that takes what cannot be decoded */
    uint32_t index;
    struct handler_spec *spec; /* NULL: no version was ever loaded */
    uint32_t vm;               /* where new deliveries run; 0: they wait */
    bool is_held;              /* a flag or a pause: detached everywhere */
    bool is_removed;           /* its file is gone */
    uint32_t n_behind;         /* partitions in which it is */
    uint64_t aside_cost;       /* bytes of events that wait for it alone */
    size_t asked;              /* events its own readings have asked for */
    int64_t quarantined_until_us;
    int64_t first_strike_us; /* of the last ones, see dispatch.c */
    int strikes;

    uint32_t inflight, inflight_max;
    size_t inflight_cost;
    bool is_rated; /* its version has a rate */
    struct bucket bucket;
    struct list blocked; /* lanes that wait for inflight to fall, for a vm or
                            for their turn by the rate */

    struct series *attempts[VERDICT_COUNT]; /* NULL where it has no outcome */
    struct series *settled[VERDICT_COUNT];
    struct series *errors[CLASS_COUNT];
    struct series *held, *accepted, *given_back;
    struct series *duplicates, *failures, *dead, *duration, *again;
};

struct handler *handler_new(const char *name, struct metrics *metrics);
void handler_free(struct handler *h);

/* Do deliveries wait for nothing but its rate? */
bool handler_is_limited(const struct handler *h);

/* Where this type's ordering key is; NULL: the aggregate id. */
const char *handler_key(const struct handler *h, struct slice type);

bool handler_wants(const struct handler *h, struct slice type);

#endif
