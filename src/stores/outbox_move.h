/*
 * An operator's word that the outbox goes on after it went back in time:
 * moontide_outbox_move() of migration 0013. It leaves the trail, mends the
 * positions and takes every host's shards away, so that each begins with what
 * is stored.
 */
#ifndef MT_STORES_OUTBOX_MOVE_H
#define MT_STORES_OUTBOX_MOVE_H

#include "base/err.h"

#include <jansson.h>

struct pg_pool;

struct outbox_move {
    const char *table;
    bool is_latest; /* give up what is there; else where handlers stand */
    const char *reason, *who;
};

/* `answer` {partition, next, givenUp: [{handler, first, last}]} is given; NULL
 * with err. */
typedef void outbox_move_fn(void *arg, json_t *answer, const struct err *err);
/* Copies. Refused when nothing stands still. */
void outbox_move(struct pg_pool *pool, const struct outbox_move *move,
                 outbox_move_fn *done, void *arg);

#endif
