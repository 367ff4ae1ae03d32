/*
 * Holds what a handler has done against the store and the topics that it has a
 * position in: accepted = done + dead + skipped + parked + pending, event by
 * event, in pages, in one snapshot of the database. For a command: every call
 * waits. `settings` must outlive it.
 *
 * What can be proven depends on the handler. One with transaction = true leaves
 * an inbox row for each event it has done, kept for `dedupe_for`; of the others
 * only the position says that an event was settled.
 */
#ifndef MT_HOST_RECONCILE_H
#define MT_HOST_RECONCILE_H

#include "base/settings.h"

#include <jansson.h>

struct reconcile;

struct reconcile *reconcile_open(const struct settings *s,
                                 struct err *err) MUST_CHECK;
void reconcile_close(struct reconcile *r); /* NULL is allowed */

/* The names of all handlers that have a position. Gives; NULL with err. */
json_t *reconcile_handlers(struct reconcile *r, struct err *err);

/* An event that does not fit: {handler, event, type, partition (of a topic's),
 * place, why}; borrowed. */
typedef void reconcile_fault_fn(void *arg, const json_t *fault);

/* `decl` is what the handler's file declares. Gives the sums: {handler, proof,
 * accepted, done, dead, skipped, parked, pending, byPosition, beforeStart,
 * faults, notes}; NULL with err. */
json_t *reconcile_handler(struct reconcile *r, const char *name,
                          const json_t *decl, reconcile_fault_fn *fault_fn,
                          void *arg, struct err *err);

#endif
