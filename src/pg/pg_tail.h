/*
 * The end of the write-ahead log as a bell: rings when a transaction commits
 * that inserted into a table of a publication. It carries no data and keeps
 * nothing: the slot is temporary, and whoever hears the bell reads the tables.
 *
 * Wants wal_level = logical, a free replication slot, and a role that may
 * REPLICATE. A session of a walsender is kept up over reconnects; after each
 * the bell rings once, for it may have missed something. While the slot is
 * being made the server waits for all transactions that run. One loop, its
 * thread; the bell never rings inside a call.
 */
#ifndef MT_PG_PG_TAIL_H
#define MT_PG_PG_TAIL_H

#include "base/err.h"

struct ev_loop;
struct pg_tail;

typedef void pg_tail_fn(void *arg);

struct pg_tail *pg_tail_new(struct ev_loop *loop, const char *url,
                            const char *publication, pg_tail_fn *ring,
                            void *arg, struct err *err) MUST_CHECK;
void pg_tail_free(struct pg_tail *tail); /* NULL is allowed */

/* Does it hear? */
bool pg_tail_is_live(const struct pg_tail *tail);

#endif
