/*
 * The databases of this process: the host's own, "main", and those of
 * databases.<name>, each a pool that is opened when a handler first takes a
 * session of it. They are closed with the runtime. The loop's thread.
 */
#ifndef MT_WORKER_DB_POOLS_H
#define MT_WORKER_DB_POOLS_H

#include "base/list.h"
#include "pg/pg.h"
#include "worker/runtime.h"

struct db {
    struct list link;
    char *name;
    struct pg_pool *pool;
    struct runtime *rt;
};

/* Opened when it is not yet. NULL when its url is not set or makes no sense. */
struct db *db_pools_find(struct runtime *rt, const char *name, struct err *err);

/* How long a session may idle in a transaction: it must not outlive its worker
 * by much, nor its lease (design 13.2, 13.9). */
int64_t db_idle_limit_ms(const struct runtime *rt);

/* Behind a pooler in transaction mode nothing is prepared. */
bool db_prepares(const struct runtime *rt);

#endif
