/*
 * PostgreSQL without a loop, for commands that do one thing and exit.
 *
 * Never called by the host's or a worker's loop: every function here waits.
 */
#ifndef MT_PG_PG_SYNC_H
#define MT_PG_PG_SYNC_H

#include "pg/pg.h"

struct pg_sync;

struct pg_sync *pg_sync_connect(const char *url, struct err *err) MUST_CHECK;
void pg_sync_close(struct pg_sync *db); /* NULL is allowed */

/* Run one statement. Gives the result (pg_result_unref), or NULL and `err`;
 * pg_sync_sqlstate() then says which error it was. */
const struct pg_result *pg_sync_exec(struct pg_sync *db, const char *sql, int n,
                                     const struct pg_param *params,
                                     struct err *err) MUST_CHECK;

/* Run a script of several statements; without BEGIN of its own it is one
 * transaction. */
bool pg_sync_script(struct pg_sync *db, const char *sql,
                    struct err *err) MUST_CHECK;

/* The SQLSTATE of the last failure. */
const char *pg_sync_sqlstate(const struct pg_sync *db);

#endif
