/*
 * Lanes: the deliveries of one handler with the same ordering key. They run
 * one at a time, in order; several may be with the worker, which keeps to the
 * order by itself and gives back what follows a failure.
 *
 * A lane exists while it holds something. Its identity is a 64-bit hash: two
 * keys that collide share a lane, which costs speed and never order.
 */
#ifndef MT_CORE_LANE_H
#define MT_CORE_LANE_H

#include "base/list.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stdint.h>

struct delivery;
struct handler;

#define LANE_DEPTH 64 /* deliveries of one lane with a worker at once */

struct lane {
    struct lane *next; /* in its bucket */
    uint64_t id;
    uint64_t key; /* hash of the ordering key: the same key, the same worker */
    struct handler *handler;
    struct list deliveries; /* unsettled, in order */
    struct list link;       /* in a ready or blocked list, else alone */
    struct delivery *head;  /* the first one that is not with the worker yet */
    uint32_t inflight;      /* with the worker */
    uint32_t storing;       /* being stored: nothing may overtake them, */
    uint32_t letters;       /* dead letters among them */
    uint32_t worker, vm;    /* where they are, while inflight > 0 */
    uint32_t pins;          /* someone up the stack still looks at it */
    bool is_broken;         /* one failed: wait until all came back */
    bool is_alone;          /* of one event without a key: nothing follows */
    bool is_cut;            /* one from the parked queue went back there: so do
                               those of it that follow */
};

struct lanes {
    struct lane **buckets;
    size_t n_buckets, len;
    struct pool pool;
};

void lanes_init(struct lanes *l);
void lanes_fini(struct lanes *l);

struct lane *lanes_get(struct lanes *l, uint64_t id, uint64_t key,
                       struct handler *handler);
void lanes_drop(struct lanes *l, struct lane *lane); /* it is empty */

#endif
