#include "host/upkeep.h"

#include "base/jsontext.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/host_priv.h"
#include "pg/pg.h"
#include "stores/deliveries.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "store";

#define CHORES_EVERY_US 600000000
#define LOOK_EVERY_US   10000000
#define FEW             2 /* partitions ahead: three are made each time */
#define COUNT_MOST      10000

struct upkeep {
    struct host *host;
    int64_t next_chores_us, next_look_us;
    bool is_looking;
    char *why_none_made; /* the last time they could not; NULL */

    bool is_known;
    bool is_by_time; /* partitioned by a time: the numbers below make sense */
    bool has_now;    /* a partition for what happens now */
    int64_t bytes, ahead;
    char *fallback; /* its default partition, quoted; NULL: none to look at */
    int64_t in_fallback;
    char *warned; /* what was logged last; NULL: nothing */
};

/* Partitions ahead count as far as there is no hole between them. A default
 * partition that we may not read is looked at by its size only. */
static const char look_sql[] =
    "WITH t AS (SELECT to_regclass($1)::oid AS oid),"
    " part AS MATERIALIZED (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound"
    "  FROM t JOIN pg_partitioned_table p ON p.partrelid = t.oid"
    "   AND p.partstrat = 'r' AND p.partnatts = 1"
    "  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = p.partattrs[0]"
    "   AND a.atttypid = ANY ('{timestamptz,timestamp,date}'::regtype[])"
    "  JOIN pg_inherits i ON i.inhparent = t.oid"
    "  JOIN pg_class c ON c.oid = i.inhrelid),"
    " span AS MATERIALIZED (SELECT"
    "  coalesce(substring(bound FROM 'FROM \\(''([^'']+)')::timestamptz,"
    "   '-infinity') AS low,"
    "  coalesce(substring(bound FROM ' TO \\(''([^'']+)')::timestamptz,"
    "   'infinity') AS high FROM part WHERE bound <> 'DEFAULT'),"
    " joined AS (SELECT low, bool_and(is_joined) OVER (ORDER BY low) AS reached"
    "  FROM (SELECT low, low <= now() OR coalesce(low = lag(high)"
    "   OVER (ORDER BY low), false) AS is_joined FROM span WHERE high > now())"
    "  AS s)"
    " SELECT oid IS NOT NULL, coalesce((SELECT"
    "  sum(pg_total_relation_size(relid)) FROM pg_partition_tree(oid)),"
    "  pg_total_relation_size(oid))::bigint,"
    " EXISTS (SELECT FROM part),"
    " (SELECT count(*) FROM joined WHERE low > now() AND reached),"
    " EXISTS (SELECT FROM span WHERE low <= now() AND high > now()),"
    " (SELECT partdefid::regclass FROM pg_partitioned_table WHERE partrelid"
    "  = oid AND partdefid <> 0 AND has_table_privilege(partdefid, 'SELECT'))"
    " FROM t";

/* --- what is wrong ------------------------------------------------------------------ */

/* One of them at a time, the worst first. Gives; NULL: nothing. */
static char *warning_of(const struct upkeep *u)
{
    const char *table = u->host->settings.outbox_table;

    if (!u->is_known || !u->is_by_time)
        return NULL;
    if (!u->has_now)
        return xasprintf("%s has no partition for what happens now%s", table,
                         u->fallback ? ": the default partition takes it"
                                     : ": publishing fails");
    if (u->ahead < FEW)
        return xasprintf("%s has only %lld partition%s ahead%s%s", table,
                         (long long)u->ahead, u->ahead == 1 ? "" : "s",
                         u->why_none_made ? ": " : "",
                         u->why_none_made ? u->why_none_made : "");
    return NULL;
}

static char *fallback_warning(const struct upkeep *u)
{
    if (!u->is_known || u->in_fallback == 0)
        return NULL;
    return xasprintf("the default partition %s holds %s%lld rows: their time "
                     "has no partition of its own",
                     u->fallback,
                     u->in_fallback == COUNT_MOST ? "at least " : "",
                     (long long)u->in_fallback);
}

static void add_warning(json_t *all, char *why)
{
    if (why)
        json_array_append_new(all,
                              json_pack("{s:s, s:o}", "what", "store", "why",
                                        json_string_lossy(slice_of(why))));
    free(why);
}

json_t *upkeep_warnings(const struct upkeep *u)
{
    json_t *all = json_array();

    add_warning(all, warning_of(u));
    add_warning(all, fallback_warning(u));
    return all;
}

json_t *upkeep_json(const struct upkeep *u)
{
    if (!u->is_known)
        return NULL;
    return json_pack(
        "{s:s, s:I, s:o, s:o}", "table", u->host->settings.outbox_table,
        "bytes", (json_int_t)u->bytes, "partitionsAhead",
        u->is_by_time ? json_integer(u->ahead) : json_null(), "defaultRows",
        u->fallback ? json_integer(u->in_fallback) : json_null());
}

/* Once for each kind of trouble, and when it is over; not for each number. */
static void tell(struct upkeep *u)
{
    json_t *warnings = upkeep_warnings(u), *warning;
    char *kind =
        xasprintf("%d%d%d", u->has_now, u->ahead<FEW, u->in_fallback> 0);
    size_t n = json_array_size(warnings), i;

    if (n > 0 && (!u->warned || strcmp(u->warned, kind) != 0))
        json_array_foreach(warnings, i, warning)
            log_warn("the store needs somebody", "why=" LOG_Q,
                     json_string_value(json_object_get(warning, "why")));
    if (n == 0 && u->warned)
        log_info("the store is in order again", "table=%s",
                 u->host->settings.outbox_table);
    free(u->warned);
    u->warned = n > 0 ? kind : NULL;
    if (n == 0)
        free(kind);
    json_decref(warnings);
}

/* --- looking ------------------------------------------------------------------------- */

static void set_or_hide(struct upkeep *u, enum metric_id id, bool is_known,
                        int64_t value)
{
    struct series *s = metrics_get(u->host->metrics, id);

    if (is_known)
        series_set(s, (double)value);
    else
        series_hide(s);
}

static void looked(struct upkeep *u)
{
    u->is_looking = false;
    set_or_hide(u, M_STORE_BYTES, u->is_known, u->bytes);
    set_or_hide(u, M_STORE_PARTITIONS_AHEAD, u->is_known && u->is_by_time,
                u->ahead);
    set_or_hide(u, M_STORE_DEFAULT_ROWS, u->is_known && u->fallback,
                u->in_fallback);
    tell(u);
}

static void on_counted(void *arg, const struct pg_result *res,
                       const struct err *err)
{
    struct upkeep *u = arg;

    if (!err)
        u->in_fallback = strtoll(pg_result_value(res, 0, 0), NULL, 10);
    looked(u);
}

/* More than so many are as bad as so many. */
static void count_fallback(struct upkeep *u)
{
    char *sql = xasprintf("SELECT count(*) FROM (SELECT FROM %s LIMIT %d) AS t",
                          u->fallback, COUNT_MOST);

    pg_pool_query(u->host->db, sql, 0, NULL, on_counted, u);
    free(sql);
}

static void on_look(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct upkeep *u = arg;

    if (err) { /* away: what was known stays; who cannot look has nothing */
        u->is_looking = false;
        if (err->kind != ERR_RETRIABLE)
            log_debug("the store cannot be looked at", "err=" LOG_Q, err->msg);
        return;
    }
    u->is_known = *pg_result_value(res, 0, 0) == 't';
    u->bytes = strtoll(pg_result_value(res, 0, 1), NULL, 10);
    u->is_by_time = *pg_result_value(res, 0, 2) == 't';
    u->ahead = strtoll(pg_result_value(res, 0, 3), NULL, 10);
    u->has_now = *pg_result_value(res, 0, 4) == 't';
    free(u->fallback);
    u->fallback = pg_result_is_null(res, 0, 5)
                      ? NULL
                      : xstrdup(pg_result_value(res, 0, 5));
    if (u->fallback) {
        count_fallback(u);
    } else {
        u->in_fallback = 0;
        looked(u);
    }
}

static void look(struct upkeep *u)
{
    struct pg_param table = {.value = u->host->settings.outbox_table};

    u->is_looking = true;
    pg_pool_query(u->host->db, look_sql, 1, &table, on_look, u);
}

/* --- chores --------------------------------------------------------------------------- */

static void on_partitions(void *arg, const struct pg_result *res,
                          const struct err *err)
{
    struct upkeep *u = arg;

    (void)res;
    if (err)
        log_warn("no partitions made ahead", "err=" LOG_Q, err->msg);
    free(u->why_none_made);
    u->why_none_made = err ? xstrdup(err->msg) : NULL;
    u->next_look_us = 0;
}

/* A producer must never meet a month without a partition. */
static void do_chores(struct upkeep *u)
{
    struct host *h = u->host;

    delivery_store_prune(h->deliveries, h->settings.dedupe_for / 1000);
    pg_pool_query(h->db, "SELECT moontide_create_partitions(3)", 0, NULL,
                  on_partitions, u);
}

void upkeep_tick(struct upkeep *u, int64_t now_us)
{
    if (!u->host->db_is_migrated)
        return;
    if (now_us >= u->next_chores_us) {
        u->next_chores_us = now_us + CHORES_EVERY_US;
        u->next_look_us = now_us + LOOK_EVERY_US; /* else when that is done */
        do_chores(u);
    }
    if (now_us >= u->next_look_us && !u->is_looking) {
        u->next_look_us = now_us + LOOK_EVERY_US;
        look(u);
    }
}

struct upkeep *upkeep_new(struct host *h)
{
    struct upkeep *u = xcalloc(1, sizeof(*u));

    u->host = h;
    metrics_hide(h->metrics, M_STORE_BYTES);
    metrics_hide(h->metrics, M_STORE_PARTITIONS_AHEAD);
    metrics_hide(h->metrics, M_STORE_DEFAULT_ROWS);
    return u;
}

void upkeep_free(struct upkeep *u)
{
    if (!u)
        return;
    free(u->why_none_made);
    free(u->fallback);
    free(u->warned);
    free(u);
}
