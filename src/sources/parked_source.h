/*
 * The parked queue as a source: rows of event_parked whose time has come, of
 * the partitions that this host has, offered to the pipeline as events of those
 * partitions (pipeline_offer_parked). How one ends removes its row, or a dead
 * letter takes its place; one that is parked again stays what it is.
 *
 * Of a lane the head comes with some that follow it, in their order: the lane
 * runs them one after the other, and gives back the rest when one goes back.
 */
#ifndef MT_SOURCES_PARKED_SOURCE_H
#define MT_SOURCES_PARKED_SOURCE_H

#include "base/err.h"

#include <stdbool.h>

struct ev_loop;
struct parked_source;
struct parked_store;
struct pg_pool;
struct pipeline;

struct parked_source_options {
    struct pg_pool *pool;
    struct parked_store *store;
    struct pipeline *pipeline;
    const char *outbox_table, *outbox_columns; /* where references lead */
};

struct parked_source *
parked_source_new(struct ev_loop *loop,
                  const struct parked_source_options *opts,
                  struct err *err) MUST_CHECK;
/* No event of it is in the pipeline any more. NULL is allowed. */
void parked_source_free(struct parked_source *s);

/* Offer nothing more. */
void parked_source_stop(struct parked_source *s);
/* Something may be due: look now. */
void parked_source_wake(struct parked_source *s);

#endif
