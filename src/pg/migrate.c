/*
 * Each file is applied, or taken back, in one transaction that first takes an
 * advisory lock and then looks again whether somebody else has done it. The
 * lock belongs to the transaction and not to the session, so it also holds
 * through a transaction pooler.
 */
#include "pg/migrate.h"

#include "base/buf.h"
#include "base/mem.h"
#include "pg/pg_sync.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Any constant will do, as long as every moontide uses the same. */
#define LOCK "SELECT pg_advisory_xact_lock(7809644627822310)"

#define BOOTSTRAP                                                         \
    "CREATE TABLE IF NOT EXISTS moontide_migrations ("                    \
    " version text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT " \
    "now());"                                                             \
    "CREATE TABLE IF NOT EXISTS moontide_meta ("                          \
    " key text PRIMARY KEY, value text NOT NULL);"

struct migration {
    char *version;
    char *up, *down;
    char applied_at[40]; /* "" when it is not */
};

struct migrations {
    struct pg_sync *db;
    struct migration *list;
    size_t len;
    char ids[8];
};

/* --- files ---------------------------------------------------------------- */

static char *read_file(const char *dir, const char *name, struct err *err)
{
    char *path = xasprintf("%s/%s", dir, name);
    FILE *file = fopen(path, "re");
    struct buf text = {0};
    size_t n;

    if (!file) {
        err_set(err, ERR_PERMANENT, "%s: %m", path);
        free(path);
        return NULL;
    }
    do {
        n = fread(buf_reserve(&text, 4096), 1, 4096, file);
        text.len += n;
    } while (n > 0);
    fclose(file);
    free(path);
    buf_add_char(&text, '\0');
    return buf_give(&text);
}

static bool is_line(const char *line, const char *mark)
{
    size_t len = strlen(mark);

    return strncmp(line, mark, len) == 0 &&
           (line[len] == '\n' || line[len] == '\r' || line[len] == '\0' ||
            line[len] == ' ');
}

/* Cut `text` at its two marks; false when one is missing. */
static bool split_file(struct migration *m, char *text)
{
    char *up = NULL, *down = NULL;

    for (char *line = text; line && *line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (is_line(line, "-- migrate:up"))
            up = line;
        else if (is_line(line, "-- migrate:down"))
            down = line;
    }
    if (!up || !down || up > down)
        return false;
    m->up = xstrndup(up, (size_t)(down - up));
    m->down = xstrdup(down);
    return true;
}

static bool load_file(struct migrations *ms, const char *dir, const char *name,
                      struct err *err)
{
    char *text = read_file(dir, name, err);
    struct migration *m;
    bool ok;

    if (!text)
        return false;
    ms->list = xrealloc(ms->list, (ms->len + 1) * sizeof(*ms->list));
    m = &ms->list[ms->len++];
    *m = (struct migration){.version = xstrndup(name, strlen(name) - 4)};
    ok = split_file(m, text);
    free(text);
    if (!ok)
        return err_set(err, ERR_PERMANENT,
                       "%s/%s: needs -- migrate:up and then -- migrate:down",
                       dir, name);
    return true;
}

static int is_sql(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);

    return len > 4 && entry->d_name[0] != '.' &&
           strcmp(entry->d_name + len - 4, ".sql") == 0;
}

static bool load_files(struct migrations *ms, const char *dir, struct err *err)
{
    struct dirent **names;
    int n = scandir(dir, &names, is_sql, alphasort);
    bool ok = true;

    if (n < 0)
        return err_set(err, ERR_PERMANENT, "%s: %m", dir);
    for (int i = 0; i < n; i++) {
        ok = ok && load_file(ms, dir, names[i]->d_name, err);
        free(names[i]);
    }
    free(names);
    if (ok && n == 0)
        return err_set(err, ERR_PERMANENT, "%s has no .sql files", dir);
    return ok;
}

/* `sql` with every :ids: replaced; gives it. */
static char *with_ids(const char *sql, const char *ids)
{
    static const char mark[] = ":ids:";
    struct buf out = {0};

    for (const char *at; (at = strstr(sql, mark)); sql = at + strlen(mark)) {
        buf_add(&out, sql, (size_t)(at - sql));
        buf_add_text(&out, ids);
    }
    buf_add_text(&out, sql);
    buf_add_char(&out, '\0');
    return buf_give(&out);
}

/* --- the database's side -------------------------------------------------- */

static bool run(struct pg_sync *db, const char *sql, int n,
                const struct pg_param *params, struct err *err)
{
    const struct pg_result *res = pg_sync_exec(db, sql, n, params, err);

    pg_result_unref(res);
    return res != NULL;
}

/* First column of the first row into `out`; "" when there is none. */
static bool ask(struct pg_sync *db, const char *sql, const char *param,
                char *out, size_t size, struct err *err)
{
    const struct pg_param params[] = {{.value = param}};
    const struct pg_result *res =
        pg_sync_exec(db, sql, param ? 1 : 0, params, err);

    if (!res)
        return false;
    snprintf(out, size, "%s",
             pg_result_nrows(res) > 0 ? pg_result_value(res, 0, 0) : "");
    pg_result_unref(res);
    return true;
}

static bool use_schema(struct pg_sync *db, const char *schema, bool create,
                       struct err *err)
{
    char name[140], *sql;
    bool ok;

    if (!schema || !*schema)
        return true;
    if (!pg_quote_ident(schema, name, sizeof(name)))
        return err_set(err, ERR_PERMANENT, "schema name is too long");
    sql = create && strcmp(schema, "public") != 0
              ? xasprintf("CREATE SCHEMA IF NOT EXISTS %s;"
                          "SET search_path = %s",
                          name, name)
              : xasprintf("SET search_path = %s", name);
    ok = pg_sync_script(db, sql, err);
    free(sql);
    return ok;
}

static bool is_bootstrapped(struct pg_sync *db, bool *yes, struct err *err)
{
    char found[80];

    if (!ask(db, "SELECT to_regclass('moontide_migrations')", NULL, found,
             sizeof(found), err))
        return false;
    *yes = found[0] != '\0';
    return true;
}

static struct migration *find(struct migrations *ms, const char *version)
{
    for (size_t i = 0; i < ms->len; i++)
        if (strcmp(ms->list[i].version, version) == 0)
            return &ms->list[i];
    return NULL;
}

static bool read_applied(struct migrations *ms, struct err *err)
{
    const struct pg_result *res;

    res = pg_sync_exec(ms->db,
                       "SELECT version, to_char(applied_at AT TIME ZONE 'UTC',"
                       " 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
                       " FROM moontide_migrations",
                       0, NULL, err);
    if (!res)
        return false;
    for (int i = 0; i < pg_result_nrows(res); i++) {
        struct migration *m = find(ms, pg_result_value(res, i, 0));

        if (m)
            snprintf(m->applied_at, sizeof(m->applied_at), "%s",
                     pg_result_value(res, i, 1));
    }
    pg_result_unref(res);
    return true;
}

/* The kind of ids is chosen once: columns have it from then on. */
static bool fix_ids(struct migrations *ms, const char *wanted, struct err *err)
{
    const struct pg_param param = {.value = wanted ? wanted : "uuid"};

    if (wanted && strcmp(wanted, "uuid") != 0 && strcmp(wanted, "text") != 0)
        return err_set(err, ERR_PERMANENT, "ids are uuid or text, not %s",
                       wanted);
    if (!run(ms->db,
             "INSERT INTO moontide_meta VALUES ('ids', $1)"
             " ON CONFLICT DO NOTHING",
             1, &param, err) ||
        !ask(ms->db, "SELECT value FROM moontide_meta WHERE key = 'ids'", NULL,
             ms->ids, sizeof(ms->ids), err))
        return false;
    if (wanted && strcmp(wanted, ms->ids) != 0)
        return err_set(err, ERR_PERMANENT,
                       "this database has %s ids: they cannot become %s",
                       ms->ids, wanted);
    return true;
}

static bool bootstrap(struct migrations *ms, const char *ids, struct err *err)
{
    return pg_sync_script(ms->db, "BEGIN;" LOCK ";" BOOTSTRAP, err) &&
           fix_ids(ms, ids, err) && pg_sync_script(ms->db, "COMMIT", err);
}

static void close_all(struct migrations *ms)
{
    for (size_t i = 0; i < ms->len; i++) {
        free(ms->list[i].version);
        free(ms->list[i].up);
        free(ms->list[i].down);
    }
    free(ms->list);
    pg_sync_close(ms->db);
}

/* Files and what of them is applied. With `create` the schema and the two
 * tables of this module are made when they are missing. */
static bool open_all(struct migrations *ms, const struct migrate_options *opts,
                     bool create, struct err *err)
{
    bool known = false;

    *ms = (struct migrations){0};
    if (!load_files(ms, opts->dir, err))
        return false;
    ms->db = pg_sync_connect(opts->url, err);
    if (!ms->db || !use_schema(ms->db, opts->schema, create, err))
        return false;
    if (create && !bootstrap(ms, opts->ids, err))
        return false;
    if (!is_bootstrapped(ms->db, &known, err))
        return false;
    return !known || read_applied(ms, err);
}

static void report(migrate_fn *fn, void *arg, const struct migration *m,
                   bool changed)
{
    struct migrate_step step = {
        m->version, m->applied_at[0] ? m->applied_at : NULL, changed};

    if (fn)
        fn(arg, &step);
}

static bool is_applied(struct migrations *ms, const struct migration *m,
                       bool *yes, struct err *err)
{
    char found[8];

    if (!ask(ms->db, "SELECT 'yes' FROM moontide_migrations WHERE version = $1",
             m->version, found, sizeof(found), err))
        return false;
    *yes = found[0] != '\0';
    return true;
}

static bool note(struct migrations *ms, const struct migration *m, bool up,
                 struct err *err)
{
    const struct pg_param param = {.value = m->version};

    return run(ms->db,
               up ? "INSERT INTO moontide_migrations (version) VALUES ($1)"
                  : "DELETE FROM moontide_migrations WHERE version = $1",
               1, &param, err);
}

/* Inside the transaction: `*done` stays false when somebody else was first. */
static bool apply_locked(struct migrations *ms, struct migration *m, bool up,
                         bool *done, struct err *err)
{
    bool applied;
    char *sql;

    if (!is_applied(ms, m, &applied, err))
        return false;
    if (applied == up)
        return true;
    sql = with_ids(up ? m->up : m->down, ms->ids);
    *done = pg_sync_script(ms->db, sql, err) && note(ms, m, up, err);
    free(sql);
    return *done;
}

static bool apply(struct migrations *ms, struct migration *m, bool up,
                  bool *done, struct err *err)
{
    struct err ignored;

    *done = false;
    if (pg_sync_script(ms->db, "BEGIN;" LOCK, err) &&
        apply_locked(ms, m, up, done, err) &&
        pg_sync_script(ms->db, "COMMIT", err))
        return true;
    if (!pg_sync_script(ms->db, "ROLLBACK", &ignored))
        *done = false;
    return err_wrap(err, "%s of %s", up ? "applying" : "taking back",
                    m->version);
}

static bool up_all(struct migrations *ms, migrate_fn *fn, void *arg,
                   struct err *err)
{
    for (size_t i = 0; i < ms->len; i++) {
        struct migration *m = &ms->list[i];
        bool done;

        if (m->applied_at[0])
            continue;
        if (!apply(ms, m, true, &done, err))
            return false;
        if (done) {
            snprintf(m->applied_at, sizeof(m->applied_at), "now");
            report(fn, arg, m, true);
        }
    }
    return true;
}

static bool down_some(struct migrations *ms, size_t count, migrate_fn *fn,
                      void *arg, struct err *err)
{
    for (size_t i = ms->len; i-- > 0 && count > 0;) {
        struct migration *m = &ms->list[i];
        bool done;

        if (!m->applied_at[0])
            continue;
        if (!apply(ms, m, false, &done, err))
            return false;
        m->applied_at[0] = '\0';
        report(fn, arg, m, done);
        count--;
    }
    return true;
}

static bool read_ids(struct migrations *ms, struct err *err)
{
    return ask(ms->db, "SELECT value FROM moontide_meta WHERE key = 'ids'",
               NULL, ms->ids, sizeof(ms->ids), err);
}

/* For undoing; `known` false: nothing of ours is there. */
static bool open_applied(struct migrations *ms,
                         const struct migrate_options *opts, bool *known,
                         struct err *err)
{
    *known = false;
    return open_all(ms, opts, false, err) &&
           is_bootstrapped(ms->db, known, err) &&
           (!*known || read_ids(ms, err));
}

/* --- the commands --------------------------------------------------------- */

bool migrate_up(const struct migrate_options *opts, migrate_fn *fn, void *arg,
                struct err *err)
{
    struct migrations ms;
    bool ok = open_all(&ms, opts, true, err) && up_all(&ms, fn, arg, err);

    close_all(&ms);
    return ok;
}

bool migrate_down(const struct migrate_options *opts, int count, migrate_fn *fn,
                  void *arg, struct err *err)
{
    struct migrations ms;
    bool known;
    bool ok = open_applied(&ms, opts, &known, err);

    if (ok && known)
        ok = down_some(&ms, (size_t)count, fn, arg, err);
    close_all(&ms);
    return ok;
}

bool migrate_status(const struct migrate_options *opts, migrate_fn *fn,
                    void *arg, struct err *err)
{
    struct migrations ms;
    bool ok = open_all(&ms, opts, false, err);

    for (size_t i = 0; ok && i < ms.len; i++)
        report(fn, arg, &ms.list[i], false);
    close_all(&ms);
    return ok;
}

static bool drop_rest(struct migrations *ms, const char *schema,
                      struct err *err)
{
    char name[140], *sql;
    bool ok = pg_sync_script(
        ms->db, "DROP TABLE moontide_migrations, moontide_meta", err);

    if (!ok || !schema || strcmp(schema, "public") == 0 ||
        !pg_quote_ident(schema, name, sizeof(name)))
        return ok;
    /* A schema of ours that holds something else stays. */
    sql = xasprintf("DO $$ BEGIN DROP SCHEMA %s; EXCEPTION WHEN"
                    " dependent_objects_still_exist THEN NULL; END $$",
                    name);
    ok = pg_sync_script(ms->db, sql, err);
    free(sql);
    return ok;
}

bool migrate_uninstall(const struct migrate_options *opts, migrate_fn *fn,
                       void *arg, struct err *err)
{
    struct migrations ms;
    bool known;
    bool ok = open_applied(&ms, opts, &known, err);

    if (ok && known)
        ok = down_some(&ms, ms.len, fn, arg, err) &&
             drop_rest(&ms, opts->schema, err);
    close_all(&ms);
    return ok;
}

/* --- tables of other programs --------------------------------------------- */

/* Columns that tell the age of a row, by preset, best first. */
static const char *const age_columns[][4] = {
    {"native", "created_at", "occurred_at", "id"},
    {"camel", "createdAt", "occurredAt", "id"},
    {"debezium", "created_at", "timestamp", "occurred_at"},
};

static bool find_age(struct pg_sync *db, const char *table, const char *preset,
                     char *age, size_t size, struct err *err)
{
    for (size_t i = 0; i < sizeof(age_columns) / sizeof(*age_columns); i++) {
        const char *const *c = age_columns[i];
        const struct pg_param params[] = {{.value = table},
                                          {.value = c[1]},
                                          {.value = c[2]},
                                          {.value = c[3]}};
        const struct pg_result *res;

        if (strcmp(preset, c[0]) != 0)
            continue;
        res = pg_sync_exec(
            db,
            "SELECT string_agg(quote_ident(attname), ', ' ORDER"
            " BY array_position(ARRAY[$2, $3, $4], attname::text))"
            " FROM pg_attribute WHERE attrelid = $1::regclass AND"
            " attname = ANY (ARRAY[$2, $3, $4]) AND NOT attisdropped",
            4, params, err);
        if (!res)
            return false;
        snprintf(age, size, "%s", pg_result_value(res, 0, 0));
        pg_result_unref(res);
        /* Debezium's own table has no time and random ids: where a row lies
         * is the best that is known of its age. */
        if (!*age && strcmp(preset, "debezium") == 0)
            snprintf(age, size, "ctid");
        return *age || err_set(err, ERR_PERMANENT,
                               "none of the columns %s, %s, %s is there to tell"
                               " the age of a row",
                               c[1], c[2], c[3]);
    }
    return err_set(err, ERR_PERMANENT,
                   "preset %s is not one of native, camel, debezium", preset);
}

/*
 * Step 1, under a short exclusive lock: the columns, empty for old rows, and
 * the defaults for new ones, with the numbers 1…n left free for the n rows
 * that are there. Step 2 numbers those in order of age while producers go on.
 * Step 3 forbids what the reader could not bear. The formats stand in the calls,
 * where the compiler sees that every argument is used: a hardened libc ends the
 * program at one that is left out.
 */
#define ADOPT_ADD                                                         \
    "BEGIN; SET LOCAL lock_timeout = '10s';"                              \
    "LOCK TABLE %1$s IN ACCESS EXCLUSIVE MODE;"                           \
    "CREATE SEQUENCE %2$s AS bigint CACHE 1 NO CYCLE;"                    \
    "SELECT setval('%2$s', count(*) + 1, false) FROM %1$s;"               \
    "ALTER TABLE %1$s ADD COLUMN xid xid8, ADD COLUMN seq bigint;"        \
    "ALTER TABLE %1$s ALTER COLUMN xid SET DEFAULT pg_current_xact_id()," \
    " ALTER COLUMN seq SET DEFAULT nextval('%2$s');"                      \
    "ALTER SEQUENCE %2$s OWNED BY %1$s.seq;"                              \
    "COMMIT"
#define ADOPT_NUMBER                                               \
    "UPDATE %1$s AS t SET xid = pg_current_xact_id(), seq = old.n" \
    " FROM (SELECT ctid AS at, tableoid AS part,"                  \
    "              row_number() OVER (ORDER BY %2$s) AS n"         \
    "       FROM %1$s WHERE seq IS NULL) AS old"                   \
    " WHERE t.ctid = old.at AND t.tableoid = old.part AND t.seq IS NULL"
#define ADOPT_FIX                                     \
    "ALTER TABLE %1$s ALTER COLUMN xid SET NOT NULL," \
    " ALTER COLUMN seq SET NOT NULL;"                 \
    "CREATE INDEX ON %1$s (seq)"

/* Takes `sql`. */
static bool adopt_step(struct pg_sync *db, char *sql, struct err *err)
{
    bool ok = pg_sync_script(db, sql, err);

    free(sql);
    return ok;
}

/* What of the three steps is left: "all", "rest" or "" when there is nothing,
 * "half" when only one of the columns is there. */
static const char adopt_left[] =
    "SELECT CASE count(*) WHEN 0 THEN 'all' WHEN 1 THEN 'half'"
    " ELSE CASE WHEN bool_and(attnotnull) THEN '' ELSE 'rest' END END"
    " FROM pg_attribute WHERE attrelid = $1::regclass"
    " AND attname IN ('xid', 'seq') AND NOT attisdropped";

static bool add_columns(struct pg_sync *db, const char *table, const char *seq,
                        struct err *err)
{
    struct err ignored;

    if (adopt_step(db, xasprintf(ADOPT_ADD, table, seq), err))
        return true;
    if (!pg_sync_script(db, "ROLLBACK", &ignored))
        return err_wrap(err, "%s", ignored.msg);
    return false;
}

static bool adopt(struct pg_sync *db, const char *table, const char *preset,
                  struct err *err)
{
    char name[140], seq[160], age[400], left[8];

    if (!ask(db, "SELECT $1::regclass::text", table, name, sizeof(name), err) ||
        !find_age(db, table, preset, age, sizeof(age), err) ||
        !ask(db, adopt_left, table, left, sizeof(left), err) ||
        !ask(db,
             "SELECT format('%I', relname || '_moontide_seq') FROM pg_class"
             " WHERE oid = $1::regclass",
             table, seq, sizeof(seq), err))
        return false;
    if (strcmp(left, "half") == 0)
        return err_set(err, ERR_PERMANENT,
                       "it has one of the columns xid and"
                       " seq: rename or drop it first");
    if (strcmp(left, "all") == 0 && !add_columns(db, name, seq, err))
        return false;
    return !left[0] ||
           (adopt_step(db, xasprintf(ADOPT_NUMBER, name, age), err) &&
            adopt_step(db, xasprintf(ADOPT_FIX, name), err));
}

/* "Table" or "schema.Table" means exactly that, as in outbox.table; who writes
 * quotes has said it in SQL already. Gives. */
static char *exact_name(const char *table)
{
    const char *dot = strchr(table, '.');

    if (strchr(table, '"'))
        return xstrdup(table);
    if (dot)
        return xasprintf("\"%.*s\".\"%s\"", (int)(dot - table), table, dot + 1);
    return xasprintf("\"%s\"", table);
}

bool migrate_adopt(const struct migrate_options *opts, const char *table,
                   const char *preset, struct err *err)
{
    struct pg_sync *db = pg_sync_connect(opts->url, err);
    char *name = exact_name(table);
    bool ok =
        db && use_schema(db, opts->schema, false, err) &&
        (adopt(db, name, preset, err) || err_wrap(err, "table %s", table));

    free(name);
    pg_sync_close(db);
    return ok;
}
