#include "worker/db_pools.h"

#include "base/mem.h"
#include "base/settings.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dbs {
    struct list list;
};

static void on_state(void *arg, bool connected)
{
    struct db *db = arg;

    runtime_database_state(db->rt, db->name, connected);
}

static void dbs_free(void *ptr)
{
    struct dbs *dbs = ptr;

    list_foreach_safe(at, &dbs->list) {
        struct db *db = CONTAINER_OF(at, struct db, link);

        pg_pool_free(db->pool);
        free(db->name);
        free(db);
    }
    free(dbs);
}

static struct dbs *dbs_of(struct runtime *rt)
{
    struct dbs *dbs = rt->parts[PART_DB].ptr;

    if (dbs)
        return dbs;
    dbs = xcalloc(1, sizeof(*dbs));
    list_init(&dbs->list);
    rt->parts[PART_DB].ptr = dbs;
    rt->parts[PART_DB].free = dbs_free;
    return dbs;
}

static const char *url_of(const struct runtime *rt, const char *name)
{
    const json_t *all = runtime_setting(rt, "databases");
    const json_t *url;

    if (strcmp(name, "main") == 0)
        return runtime_text(rt, "database.url", NULL);
    url = json_object_get(json_object_get(all, name), "url");
    return json_string_value(url);
}

static int64_t setting_int(const struct runtime *rt, const char *name,
                           int64_t dflt)
{
    const json_t *value = runtime_setting(rt, name);

    return json_is_integer(value) ? json_integer_value(value) : dflt;
}

/* The worker's settings carry durations as they were written. */
static int64_t setting_ms(const struct runtime *rt, const char *name,
                          int64_t dflt)
{
    const char *text = runtime_text(rt, name, "");
    int64_t ms;

    return *text && duration_parse(text, &ms) ? ms : dflt;
}

int64_t db_idle_limit_ms(const struct runtime *rt)
{
    return setting_ms(rt, "database.lease", 6000) * 8 / 10;
}

/* Statements outside a transaction get a limit that no delivery's timeout
 * exceeds by far; those inside get the delivery's own. */
static char *session_sql(const struct runtime *rt, bool main)
{
    int64_t idle = db_idle_limit_ms(rt);
    const char *schema = runtime_text(rt, "database.schema", "public");
    char quoted[140];

    if (!main || !pg_quote_ident(schema, quoted, sizeof(quoted)))
        snprintf(quoted, sizeof(quoted), "public");
    return xasprintf("SET client_connection_check_interval = '1s';"
                     "SET idle_in_transaction_session_timeout = %" PRId64 ";"
                     "SET statement_timeout = '60s'; SET lock_timeout = '10s';"
                     "SET TimeZone = 'UTC'; SET DateStyle = 'ISO';"
                     "SET search_path = %s%s",
                     idle, quoted,
                     strcmp(quoted, "\"public\"") == 0 ? "" : ", public");
}

#define NODE_MOST 40 /* so that PostgreSQL does not cut the name */

/* Whose worker it is: who takes the host's shards over ends its sessions
 * (sources/outbox_lease.c). */
static char *session_name(const struct runtime *rt)
{
    const char *node = rt->node ? rt->node : "";
    size_t len = strlen(node);

    return xasprintf("moontide %s%sworker %d",
                     len > NODE_MOST ? node + len - NODE_MOST : node,
                     len ? " " : "", rt->index);
}

bool db_prepares(const struct runtime *rt)
{
    return !json_is_false(runtime_setting(rt, "database.prepare"));
}

static struct db *db_open(struct runtime *rt, const char *name, struct err *err)
{
    bool main = strcmp(name, "main") == 0;
    const char *url = url_of(rt, name);
    char *sql, *app;
    struct db *db;

    if (!url || !*url) {
        err_code(err, ERR_PERMANENT, "no_database", "%s%s.url is not set",
                 main ? "" : "databases.", main ? "database" : name);
        return NULL;
    }
    db = xcalloc(1, sizeof(*db));
    db->name = xstrdup(name);
    db->rt = rt;
    sql = session_sql(rt, main);
    app = session_name(rt);
    struct pg_pool_options opts = {
        .url = url,
        .name = name,
        .application_name = app,
        .session_sql = sql,
        .size = (int)setting_int(rt, "database.pool", 4),
        .no_prepare = !db_prepares(rt),
        .on_state = on_state,
        .arg = db,
    };
    db->pool = pg_pool_new(rt->loop, &opts, err);
    free(sql);
    free(app);
    if (!db->pool) {
        free(db->name);
        free(db);
        return NULL;
    }
    list_append(&dbs_of(rt)->list, &db->link);
    return db;
}

struct db *db_pools_find(struct runtime *rt, const char *name, struct err *err)
{
    struct dbs *dbs = dbs_of(rt);

    list_foreach(at, &dbs->list) {
        struct db *db = CONTAINER_OF(at, struct db, link);

        if (strcmp(db->name, name) == 0)
            return db;
    }
    return db_open(rt, name, err);
}
