#include "sources/outbox_sql.h"

#include "base/buf.h"
#include "base/mem.h"
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

#define COLUMNS (COLUMN_BODY - COLUMN_ID + 1)

struct preset {
    const char *name;
    const char *aggregate_id;
    const char *columns[COLUMNS]; /* from COLUMN_ID on */
};

/* The three known shapes of a table (native, Prisma's, Debezium's). Of times
 * to_json() makes the same text whatever the session's DateStyle. */
static const struct preset presets[] = {
    {"native",
     "aggregate_id",
     {"id::text", "event_type", "event_version::text", "aggregate_type",
      "aggregate_id::text", "aggregate_version::text",
      "to_json(occurred_at) #>> '{}'", "metadata::text", "event_data::text"}},
    {"camel",
     "\"aggregateId\"",
     {"\"id\"::text", "\"eventType\"", "NULL::text", "\"aggregateType\"",
      "\"aggregateId\"::text", "NULL::text", "to_json(\"occurredAt\") #>> '{}'",
      "\"metadata\"::text", "\"payload\"::text"}},
    {"debezium",
     "aggregateid",
     {"id::text", "\"type\"", "NULL::text", "aggregatetype",
      "aggregateid::text", "NULL::text", "NULL::text", "NULL::text",
      "payload::text"}},
};

/*
 * What the cursor relies on, checked and not assumed: without these an event
 * can be lost. The sequence is found by the default of the column.
 */
const char outbox_check_sql[] =
    "WITH RECURSIVE tree(oid) AS ("
    " SELECT to_regclass($1)::oid"
    " UNION ALL SELECT i.inhrelid FROM pg_inherits i"
    " JOIN tree t ON i.inhparent = t.oid),"
    " cols AS (SELECT t.oid, x.attnum AS xnum, s.attnum AS snum,"
    "  s.attnotnull AS sfull,"
    "  pg_get_expr(xd.adbin, xd.adrelid) AS xdef,"
    "  pg_get_expr(sd.adbin, sd.adrelid) AS sdef"
    " FROM tree t"
    " LEFT JOIN pg_attribute x ON x.attrelid = t.oid AND x.attname = 'xid'"
    "  AND NOT x.attisdropped"
    " LEFT JOIN pg_attribute s ON s.attrelid = t.oid AND s.attname = 'seq'"
    "  AND NOT s.attisdropped"
    " LEFT JOIN pg_attrdef xd ON xd.adrelid = t.oid AND xd.adnum = x.attnum"
    " LEFT JOIN pg_attrdef sd ON sd.adrelid = t.oid AND sd.adnum = s.attnum),"
    " named AS (SELECT to_regclass(substring(sdef"
    "  from 'nextval\\(''(.+)''::regclass\\)'))::oid AS oid"
    "  FROM cols WHERE oid = to_regclass($1)),"
    " faults AS ("
    " SELECT format('%s has no column xid or seq: run moontide migrate up',"
    "  oid::regclass) AS text FROM cols"
    "  WHERE oid IS NOT NULL AND (xnum IS NULL OR snum IS NULL)"
    " UNION ALL SELECT format('%s: column xid must stand before seq',"
    "  oid::regclass) FROM cols WHERE xnum > snum"
    " UNION ALL SELECT format('%s: the default of xid must be"
    " pg_current_xact_id()', oid::regclass) FROM cols WHERE xnum IS NOT NULL"
    "  AND coalesce(xdef, '') !~ 'pg_current_xact_id\\(\\)'"
    " UNION ALL SELECT format('%s: seq must be filled by a sequence"
    " (default nextval)', oid::regclass) FROM cols WHERE snum IS NOT NULL"
    "  AND coalesce(sdef, '') !~ '^nextval\\('"
    /* While a table is adopted its old rows get numbers below the new ones. */
    " UNION ALL SELECT format('%s: column seq must be NOT NULL: let moontide"
    " migrate adopt come to its end', oid::regclass) FROM cols"
    "  WHERE snum IS NOT NULL AND NOT sfull"
    " UNION ALL SELECT format('%s: the sequence must have increment 1, cache 1"
    " and no cycle', q.seqrelid::regclass) FROM pg_sequence q"
    "  JOIN named n ON n.oid = q.seqrelid"
    "  WHERE q.seqincrement <> 1 OR q.seqcache <> 1 OR q.seqcycle)"
    " SELECT to_regclass($1) IS NOT NULL,"
    " (SELECT system_identifier::text FROM pg_control_system()),"
    " (SELECT CASE WHEN NOT pg_is_in_recovery() THEN"
    "  substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END),"
    " (SELECT string_agg(text, '; ') FROM (SELECT text FROM faults LIMIT 3) f),"
    " (SELECT coalesce(pg_sequence_last_value(oid), 0) FROM named"
    "  WHERE oid IS NOT NULL),"
    " to_regclass('event_shards') IS NOT NULL"
    "  AND to_regprocedure('moontide_shard(text)') IS NOT NULL,"
    " EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass($1)"
    "  AND tgname = 'moontide_outbox_notify'),"
    " EXISTS (SELECT 1 FROM pg_publication"
    "  WHERE pubname = 'moontide_outbox'),"
    " (SELECT trouble FROM event_source_trouble WHERE source = 'outbox')";

const char outbox_other_sql[] =
    "SELECT min(source_id) FROM event_handler_positions"
    " WHERE source = 'outbox' AND source_id NOT IN ('', $1)";

/* What several hosts miss becomes one range. */
const char outbox_halt_sql[] =
    "INSERT INTO event_source_trouble AS t (source, trouble, ends_at,"
    " first_lost, last_lost, node) VALUES ('outbox', $1, $2::bigint,"
    " $3::bigint, $4::bigint, $5) ON CONFLICT (source) DO UPDATE SET"
    " ends_at = least(t.ends_at, excluded.ends_at),"
    " first_lost = least(t.first_lost, excluded.first_lost),"
    " last_lost = greatest(t.last_lost, excluded.last_lost)";

/* Who may still own a missing number: the oldest transaction that writes, in
 * any database, or one that was prepared and forgotten. */
const char outbox_holder_sql[] =
    "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint,"
    " left(coalesce(query, ''), 200), coalesce(state, ''),"
    " coalesce(usename::text, ''), coalesce(application_name, ''),"
    " coalesce(datname::text, '')"
    " FROM (SELECT pid, xact_start, query, state, usename, application_name,"
    "  datname, age(backend_xid) AS xid_age FROM pg_stat_activity"
    "  WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
    "  UNION ALL SELECT 0, prepared, 'prepared transaction ' || gid,"
    "  'prepared', owner, '', database, age(transaction)"
    "  FROM pg_prepared_xacts) t ORDER BY xid_age DESC LIMIT 1";

/* The first row is the statement's snapshot. Its number is the smallest there
 * is, so that PostgreSQL merges it with the rows and sorts nothing. */
#define SNAPSHOT_ROW                                                    \
    "SELECT '-9223372036854775808'::bigint AS seq, NULL::int AS shard," \
    " pg_current_snapshot()::text, NULL, NULL, NULL, NULL, NULL, NULL," \
    " NULL, NULL UNION ALL "

/* Rows of the table with their shard, and whether that is ours. The names are
 * such that no column of a table has them. */
static char *rows_sql(const char *table, const struct preset *preset)
{
    return xasprintf("SELECT t.*, f.moontide_shard_,"
                     " ($4::bool[])[f.moontide_shard_ + 1] AS moontide_ours_"
                     " FROM %s t CROSS JOIN LATERAL (SELECT"
                     " moontide_shard(t.%s::text)) f(moontide_shard_)",
                     table, preset->aggregate_id);
}

/* The columns for the caller: of what is not ours only the number, so that
 * PostgreSQL fetches no body for it. */
static char *columns_sql(const struct preset *preset)
{
    struct buf sql = {0};

    buf_add_text(&sql, "seq, moontide_shard_ AS shard");
    for (int i = 0; i < COLUMNS; i++)
        buf_printf(&sql, ", CASE WHEN moontide_ours_ THEN %s END",
                   preset->columns[i]);
    return buf_give(&sql);
}

#define NEWS                                                           \
    "(%2$s WHERE t.seq > $1::bigint AND t.seq <= $2::bigint ORDER BY " \
    "t.seq LIMIT $3::int)"

static char *read_sql(const char *rows, const char *columns)
{
    return xasprintf(SNAPSHOT_ROW "(SELECT %1$s FROM " NEWS " n) ORDER BY seq",
                     columns, rows);
}

/* The limit holds for gaps and news together, lowest numbers first: news may
 * not overtake a filled gap that did not fit. An unchanged snapshot shows no
 * more of the gaps than the last one did. */
static char *read_gaps_sql(const char *rows, const char *columns)
{
    return xasprintf(
        SNAPSHOT_ROW
        "(SELECT %1$s FROM ("
        "(SELECT r.* FROM unnest($5::bigint[], $6::bigint[]) g(a, b)"
        " CROSS JOIN LATERAL (%2$s"
        " WHERE t.seq BETWEEN g.a AND g.b AND t.seq <@ $7::int8multirange) r"
        " WHERE pg_current_snapshot()::text <> $8 ORDER BY r.seq"
        " LIMIT $3::int)"
        " UNION ALL " NEWS ") u ORDER BY seq LIMIT $3::int) ORDER BY seq",
        columns, rows);
}

/* Of some shards, what lies between two numbers. */
static char *fetch_sql(const char *rows, const char *columns)
{
    return xasprintf("SELECT %1$s FROM (%2$s WHERE t.seq >= $1::bigint"
                     " AND t.seq <= $2::bigint"
                     " AND ($4::bool[])[f.moontide_shard_ + 1]"
                     " ORDER BY t.seq LIMIT $3::int) n ORDER BY seq",
                     columns, rows);
}

static char *plain_columns(const struct preset *preset)
{
    struct buf sql = {0};

    for (int i = 0; i < COLUMNS; i++)
        buf_printf(&sql, "%s%s", i ? ", " : "", preset->columns[i]);
    return buf_give(&sql);
}

/* One part of a name, which may stand in quotes already. */
static bool quote_part(const char *part, size_t len, char *out, size_t size)
{
    bool is_quoted = len > 2 && part[0] == '"' && part[len - 1] == '"';
    char *bare = is_quoted ? xstrndup(part + 1, len - 2) : xstrndup(part, len);
    bool ok = pg_quote_ident(bare, out, size);

    free(bare);
    return ok;
}

/* "schema.table" or "table", each part quoted. */
static bool quote_table(const char *table, char **quoted, struct err *err)
{
    const char *dot = strchr(table, '.');
    const char *name = dot ? dot + 1 : table;
    char first[150] = "", second[150];

    if ((dot &&
         !quote_part(table, (size_t)(dot - table), first, sizeof(first))) ||
        !quote_part(name, strlen(name), second, sizeof(second)))
        return err_set(err, ERR_PERMANENT,
                       "outbox.table: '%s' is no name of "
                       "a table",
                       table);
    *quoted = dot ? xasprintf("%s.%s", first, second) : xstrdup(second);
    return true;
}

bool outbox_sql_init(struct outbox_sql *sql, const char *table,
                     const char *preset, struct err *err)
{
    const struct preset *found = NULL;
    char *rows, *columns;

    memset(sql, 0, sizeof(*sql));
    for (size_t i = 0; i < sizeof(presets) / sizeof(presets[0]); i++)
        if (strcmp(presets[i].name, preset) == 0)
            found = &presets[i];
    if (!found)
        return err_set(err, ERR_PERMANENT,
                       "outbox.columns: '%s' is not native, camel or debezium",
                       preset);
    if (!quote_table(table, &sql->table, err))
        return false;
    rows = rows_sql(sql->table, found);
    columns = columns_sql(found);
    sql->read = read_sql(rows, columns);
    sql->read_gaps = read_gaps_sql(rows, columns);
    sql->fetch = fetch_sql(rows, columns);
    sql->columns = plain_columns(found);
    free(rows);
    free(columns);
    sql->highest =
        xasprintf("SELECT coalesce(max(seq), 0) FROM %s", sql->table);
    sql->missing = xasprintf(
        "SELECT k.seq, k.id, (SELECT t.id::text FROM %1$s t"
        " WHERE t.seq = k.seq), EXISTS (SELECT FROM %1$s t WHERE t.seq < k.seq)"
        " FROM unnest($1::bigint[], $2::text[]) k(seq, id) WHERE NOT EXISTS"
        " (SELECT FROM %1$s t WHERE t.seq = k.seq AND t.id::text = k.id)"
        " ORDER BY k.seq",
        sql->table);
    return true;
}

void outbox_sql_fini(struct outbox_sql *sql)
{
    free(sql->table);
    free(sql->read);
    free(sql->read_gaps);
    free(sql->highest);
    free(sql->missing);
    free(sql->fetch);
    free(sql->columns);
    memset(sql, 0, sizeof(*sql));
}

void outbox_shards_text(shard_set shards, char text[static 2 * SHARDS_MAX + 2])
{
    char *at = text;

    for (unsigned i = 0; i < SHARDS_MAX; i++) {
        *at++ = i ? ',' : '{';
        *at++ = shards & SHARD(i) ? 't' : 'f';
    }
    *at++ = '}';
    *at = '\0';
}
