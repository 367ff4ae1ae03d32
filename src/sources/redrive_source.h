/*
 * Dead letters that are to run again, as a source: rows of event_dead_letters
 * in state `redriving`, offered in their original order and to their own
 * handler only. How one ends is written to its row: redriven, dead again (by
 * the dead-letter store), or discarded when it was skipped.
 *
 * Of each handler's letters the host that has the lease gives out; it renews it
 * as long as there are any. A host that ends gives it back, and one that is gone
 * is missed after the lease's time (`lease_ms`; `node` names this one).
 *
 * Its one partition is "0"; a place is the id of a row, and no position is
 * kept: what is not settled is still in state `redriving`.
 */
#ifndef MT_SOURCES_REDRIVE_SOURCE_H
#define MT_SOURCES_REDRIVE_SOURCE_H

#include "core/source.h"

struct ev_loop;
struct pg_pool;
struct redrive_source;

struct redrive_source *redrive_source_new(struct ev_loop *loop,
                                          struct pg_pool *pool,
                                          const struct source_sink *sink,
                                          const char *node, int64_t lease_ms);

/* Close the partition; `done` comes when it is closed. */
void redrive_source_stop(struct redrive_source *s, void (*done)(void *arg),
                         void *arg);
void redrive_source_free(struct redrive_source *s); /* NULL is allowed */

/* There is something to do: look now. */
void redrive_source_wake(struct redrive_source *s);

#endif
