/*
 * The store, kept in order and looked after: old inbox rows go, partitions of
 * the events' table are made some months ahead, and what a producer would
 * sooner or later suffer from is said before it does: few partitions ahead,
 * none for now, rows in the default one.
 */
#ifndef MT_HOST_UPKEEP_H
#define MT_HOST_UPKEEP_H

#include <jansson.h>
#include <stdint.h>

struct host;
struct upkeep;

struct upkeep *upkeep_new(struct host *h);
void upkeep_free(struct upkeep *u); /* after the pool; NULL is allowed */

void upkeep_tick(struct upkeep *u, int64_t now_us);

/* {table, bytes, partitionsAhead, defaultRows}; NULL when nothing is known.
 * Numbers that make no sense of this table are null. Gives. */
json_t *upkeep_json(const struct upkeep *u);

/* [{what, why}]: it runs, and somebody should do something. Gives. */
json_t *upkeep_warnings(const struct upkeep *u);

#endif
