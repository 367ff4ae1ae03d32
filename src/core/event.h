/*
 * An event on its way: facts for routing, a body nobody in the host looks
 * into, and its place in a source partition.
 *
 * A source makes it (event_new), fills it and offers it to the pipeline, which
 * owns it from then on. The bytes that the slices point at belong to the
 * source: they stay until the pipeline calls the source's release(), once per
 * event, when every delivery is settled.
 */
#ifndef MT_CORE_EVENT_H
#define MT_CORE_EVENT_H

#include "base/list.h"
#include "base/slice.h"
#include "base/words.h"

#include <stdint.h>

struct handler;
struct partition;
struct source_ops;

struct event {
    struct partition *partition;
    int64_t place; /* offset or seq */
    struct slice facts[FACT_COUNT];
    struct slice key; /* of the Kafka record, for dead letters; or absent */
    struct slice body;
    enum body_form form;
    bool is_late;        /* filled a gap: its place is below ones read before */
    int64_t arrived_us;  /* CLOCK_MONOTONIC */
    int64_t occurred_us; /* wall clock since 1970, 0 unknown: for the lag */
    uint32_t headers;    /* the source's own, e.g. how many bytes it pins */
    void *memory;        /* the source's: what release() gives back */

    /* Not NULL: cannot be decoded, and why. Heap text, the event owns it. */
    char *undecodable;
    /* Redrive: only this handler takes it; heap text, the event owns it. */
    char *only_handler;
    /* Whoever made it: hears how it ended and takes it back. At first the
     * partition's own. */
    const struct source_ops *ops;
    /* From the parked queue: its row (0: none) and the attempts it has had. */
    int64_t parked_id;
    int parked_attempts;
    /* Somebody has decided on it: VERDICT_SKIP or VERDICT_DEAD instead of a
     * run, and why; VERDICT_ACK (0): run it. Lives as long as the bytes. */
    enum verdict parked_verdict;
    const char *parked_why;
    /* Not NULL: read again for this handler, by ops->fetch(). */
    struct handler *reader;

    /* The pipeline's own. */
    bool is_wanted;         /* by its reader, who has not had it */
    uint32_t live;          /* deliveries of handlers that are attached */
    uint32_t aside_cost;    /* bytes it counts there */
    struct handler *aside;  /* there are none: counted for this one instead */
    struct list deliveries; /* not yet settled */
    uint32_t pending; /* deliveries not yet settled, + 1 while being routed */
    uint32_t cost;    /* bytes it counts in the window */
};

#endif
