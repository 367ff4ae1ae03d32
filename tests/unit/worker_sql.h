/* A schema with our tables and `t`, for tests of SQL on a real server. */
#ifndef WORKER_SQL_H
#define WORKER_SQL_H

#include "base/log.h"
#include "pg/migrate.h"
#include "pg/pg_sync.h"

#include <stdlib.h>

__attribute__((unused)) static void sql(const char *text)
{
    struct err err;
    struct pg_sync *db = pg_sync_connect(getenv("MOONTIDE_TEST_PG"), &err);

    if (!db || !pg_sync_script(db, "SET search_path = " SCHEMA, &err) ||
        !pg_sync_script(db, text, &err))
        fail_msg("%s", err.msg);
    pg_sync_close(db);
}

__attribute__((unused)) static int asked(const char *text)
{
    struct err err;
    struct pg_sync *db = pg_sync_connect(getenv("MOONTIDE_TEST_PG"), &err);
    const struct pg_result *res = NULL;
    int n;

    if (pg_sync_script(db, "SET search_path = " SCHEMA, &err))
        res = pg_sync_exec(db, text, 0, NULL, &err);
    if (!res)
        fail_msg("%s", err.msg);
    n = atoi(pg_result_value(res, 0, 0));
    pg_result_unref(res);
    pg_sync_close(db);
    return n;
}

static int make_schema(void **state)
{
    struct migrate_options opts = {.url = getenv("MOONTIDE_TEST_PG"),
                                   .dir = "migrations",
                                   .schema = SCHEMA};
    struct err err;

    (void)state;
    sql("DROP SCHEMA IF EXISTS " SCHEMA " CASCADE");
    if (!migrate_up(&opts, NULL, NULL, &err))
        fail_msg("%s", err.msg);
    sql("CREATE TABLE t (a int PRIMARY KEY, b text, c jsonb)");
    return 0;
}

static int drop_schema(void **state)
{
    (void)state;
    sql("DROP SCHEMA " SCHEMA " CASCADE");
    return 0;
}

#endif
