/*
 * Migrations: bad files without a server, and up, down and adopt against a
 * real one when MOONTIDE_TEST_PG names it (tests/integration runs this so).
 */
#include "pg/migrate.h"

#include "base/log.h"
#include "pg/pg_sync.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SCHEMA "mt_test_migrate"

static char folder[] = "/tmp/mt-migrate-XXXXXX";

static void write_file(const char *name, const char *text)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void remove_file(const char *name)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
}

static void a_file_without_its_two_marks_is_refused(void **state)
{
    struct migrate_options opts = {.url = "postgres://u@127.0.0.1:9/x",
                                   .dir = folder};
    struct err err;

    (void)state;
    write_file("0001_bad.sql", "-- migrate:up\nSELECT 1;\n");
    assert_false(migrate_up(&opts, NULL, NULL, &err));
    assert_non_null(strstr(err.msg, "0001_bad.sql: needs -- migrate:up"));
    remove_file("0001_bad.sql");
}

static void an_empty_or_missing_folder_is_named(void **state)
{
    struct migrate_options opts = {.url = "postgres://u@127.0.0.1:9/x",
                                   .dir = folder};
    struct err err;

    (void)state;
    assert_false(migrate_up(&opts, NULL, NULL, &err));
    assert_non_null(strstr(err.msg, "has no .sql files"));
    opts.dir = "/nowhere/at/all";
    assert_false(migrate_up(&opts, NULL, NULL, &err));
    assert_non_null(strstr(err.msg, "/nowhere/at/all"));
}

/* --- with a server -------------------------------------------------------- */

static struct migrate_options options(const char *dir)
{
    return (struct migrate_options){
        .url = getenv("MOONTIDE_TEST_PG"), .dir = dir, .schema = SCHEMA};
}

static void count(void *arg, const struct migrate_step *step)
{
    *(int *)arg += step->changed || (step->applied_at != NULL);
}

static void sql(const char *text)
{
    struct err err;
    struct pg_sync *db = pg_sync_connect(getenv("MOONTIDE_TEST_PG"), &err);

    assert_non_null(db);
    if (!pg_sync_script(db, text, &err))
        fail_msg("%s", err.msg);
    pg_sync_close(db);
}

static void ask(const char *text, char *out, size_t size)
{
    struct err err;
    struct pg_sync *db = pg_sync_connect(getenv("MOONTIDE_TEST_PG"), &err);
    const struct pg_result *res = pg_sync_exec(db, text, 0, NULL, &err);

    assert_non_null(res);
    snprintf(out, size, "%s",
             pg_result_nrows(res) ? pg_result_value(res, 0, 0) : "");
    pg_result_unref(res);
    pg_sync_close(db);
}

static int start_clean(void **state)
{
    (void)state;
    sql("DROP SCHEMA IF EXISTS " SCHEMA " CASCADE");
    return 0;
}

static void up_down_and_up_again(void **state)
{
    struct migrate_options opts = options("migrations");
    int first = 0, none = 0, back = 0, again = 0, listed = 0;
    struct err err;

    (void)state;
    assert_true(migrate_up(&opts, count, &first, &err));
    assert_true(first >= 5);
    assert_true(migrate_up(&opts, count, &none, &err));
    assert_int_equal(none, 0);
    assert_true(migrate_down(&opts, 2, count, &back, &err));
    assert_int_equal(back, 2);
    assert_true(migrate_up(&opts, count, &again, &err));
    assert_int_equal(again, 2);
    assert_true(migrate_status(&opts, count, &listed, &err));
    assert_int_equal(listed, first);
}

/* Each row fails by its own name when it is no longer so. */
static void the_store_is_as_it_was_asked_for(void **state)
{
    static const char *const columns[] = {
        "id uuid not null",
        "aggregate_id uuid not null",
        "aggregate_type character varying(100) not null",
        "event_type character varying(100) not null",
        "event_version integer not null",
        "event_data jsonb not null",
        "metadata jsonb not null",
        "occurred_at timestamp with time zone not null",
        "created_at timestamp with time zone not null",
    };
    static const char *const indexes[] = {
        "idx_events_aggregate (aggregate_id, event_version)",
        "idx_events_type_time (event_type, occurred_at)",
        "idx_events_occurred (occurred_at)",
        "domain_events_pkey (occurred_at, id)",
    };
    struct migrate_options opts = options("migrations");
    struct err err;
    char found[4000];
    int n = 0;

    (void)state;
    assert_true(migrate_up(&opts, count, &n, &err));
    ask("SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod)"
        " || CASE WHEN attnotnull THEN ' not null' ELSE '' END, '; ')"
        " FROM pg_attribute WHERE attnum > 0"
        " AND attrelid = '" SCHEMA ".domain_events'::regclass",
        found, sizeof(found));
    for (size_t i = 0; i < sizeof(columns) / sizeof(*columns); i++)
        if (!strstr(found, columns[i]))
            fail_msg("no column %s in: %s", columns[i], found);
    ask("SELECT string_agg(indexname || ' ' || substring(indexdef from"
        " 'USING btree (.*)'), '; ') FROM pg_indexes WHERE schemaname = "
        "'" SCHEMA "' AND tablename = 'domain_events'",
        found, sizeof(found));
    for (size_t i = 0; i < sizeof(indexes) / sizeof(*indexes); i++)
        if (!strstr(found, indexes[i]))
            fail_msg("no index %s in: %s", indexes[i], found);
    ask("SELECT pg_get_partkeydef('" SCHEMA ".domain_events'::regclass)", found,
        sizeof(found));
    assert_string_equal(found, "RANGE (occurred_at)");
    ask("SELECT count(*) FROM generate_series(0, 3) AS i WHERE "
        "to_regclass('" SCHEMA
        ".domain_events_' || to_char((now() AT TIME ZONE 'UTC') +"
        " make_interval(months => i), 'YYYY_MM')) IS NOT NULL",
        found, sizeof(found));
    assert_string_equal(found, "4");
    ask("SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute"
        " WHERE attnum > 0 AND attrelid = '" SCHEMA
        ".event_handler_positions'::regclass",
        found, sizeof(found));
    assert_non_null(strstr(found, "handler_name source partition"));
    assert_non_null(strstr(found, "last_processed_id last_processed_at"
                                  " updated_at"));
}

static void uninstall_leaves_nothing(void **state)
{
    struct migrate_options opts = options("migrations");
    struct err err;
    char found[16];
    int n = 0;

    (void)state;
    assert_true(migrate_up(&opts, count, &n, &err));
    assert_true(migrate_uninstall(&opts, count, &n, &err));
    ask("SELECT count(*) FROM pg_namespace WHERE nspname = '" SCHEMA "'", found,
        sizeof(found));
    assert_string_equal(found, "0");
}

static void the_kind_of_ids_is_chosen_once(void **state)
{
    struct migrate_options opts = options("migrations");
    struct err err;
    char found[64];
    int n = 0;

    (void)state;
    opts.ids = "text";
    assert_true(migrate_up(&opts, count, &n, &err));
    ask("SELECT " SCHEMA ".publish_event('T', 'order', 'cuid-1', '{}')", found,
        sizeof(found));
    assert_int_equal(strlen(found), 36);
    opts.ids = "uuid";
    assert_false(migrate_up(&opts, count, &n, &err));
    assert_non_null(strstr(err.msg, "text ids"));
    opts.ids = "int";
    assert_false(migrate_up(&opts, count, &n, &err));
}

static void a_failing_file_leaves_no_half(void **state)
{
    struct migrate_options opts = options(folder);
    struct err err;
    char found[16];
    int n = 0;

    (void)state;
    write_file("0001_a.sql", "-- migrate:up\nCREATE TABLE a (id :ids:);\n"
                             "-- migrate:down\nDROP TABLE a;\n");
    write_file("0002_b.sql", "-- migrate:up\nCREATE TABLE b (x int);\n"
                             "SELECT nothing;\n-- migrate:down\n");
    assert_false(migrate_up(&opts, count, &n, &err));
    assert_int_equal(n, 1);
    assert_non_null(strstr(err.msg, "0002_b"));
    ask("SELECT count(*) FROM pg_tables WHERE schemaname = '" SCHEMA "'"
        " AND tablename IN ('a', 'b')",
        found, sizeof(found));
    assert_string_equal(found, "1");
    remove_file("0001_a.sql");
    remove_file("0002_b.sql");
}

static void events_and_audit_rows_cannot_be_changed(void **state)
{
    static const char *const tries[] = {
        "UPDATE " SCHEMA ".domain_events SET event_type = 'x'",
        "DELETE FROM " SCHEMA ".domain_events",
        "TRUNCATE " SCHEMA ".domain_events",
        "TRUNCATE " SCHEMA ".event_audit_log",
    };
    struct migrate_options opts = options("migrations");
    struct err err;
    int n = 0;

    (void)state;
    assert_true(migrate_up(&opts, count, &n, &err));
    sql("SELECT " SCHEMA ".publish_event('T', 'order',"
        " gen_random_uuid()::text, '{}')");
    for (size_t i = 0; i < sizeof(tries) / sizeof(*tries); i++) {
        struct pg_sync *db = pg_sync_connect(opts.url, &err);

        assert_false(pg_sync_script(db, tries[i], &err));
        assert_string_equal(err.code, "MT003");
        pg_sync_close(db);
    }
}

/* Our functions run as their owner; a table of the caller's own, with a
 * trigger, would do so, too. */
static void temporary_tables_hide_none_of_ours(void **state)
{
    struct migrate_options opts = options("migrations");
    char stored[20], open[20];
    struct err err;
    int n = 0;

    (void)state;
    assert_true(migrate_up(&opts, count, &n, &err));
    sql("CREATE TEMP TABLE domain_events (LIKE " SCHEMA ".domain_events);"
        "SELECT " SCHEMA ".publish_event('T', 'order',"
        " gen_random_uuid()::text, '{}')");
    ask("SELECT count(*) FROM " SCHEMA ".domain_events", stored,
        sizeof(stored));
    assert_string_equal(stored, "1");
    ask("SELECT count(*) FROM pg_proc WHERE prosecdef AND pronamespace = "
        "'" SCHEMA
        "'::regnamespace AND NOT proconfig @> ARRAY['search_path=" SCHEMA
        ", pg_temp']",
        open, sizeof(open));
    assert_string_equal(open, "0");
}

static void a_foreign_table_gets_numbers_by_age(void **state)
{
    struct migrate_options opts = options("migrations");
    struct err err;
    char found[64];

    (void)state;
    sql("CREATE SCHEMA " SCHEMA "; SET search_path = " SCHEMA ";"
        "CREATE TABLE \"Outbox\" (id text, \"createdAt\" timestamptz);"
        "INSERT INTO \"Outbox\" SELECT 'e' || i, now() - make_interval(secs =>"
        " i) FROM generate_series(1, 5) AS i");
    assert_true(migrate_adopt(&opts, "\"Outbox\"", "camel", &err));
    assert_true(migrate_adopt(&opts, "\"Outbox\"", "camel", &err));
    sql("INSERT INTO " SCHEMA ".\"Outbox\" VALUES ('new', now())");
    ask("SELECT string_agg(id, ' ' ORDER BY seq) FROM " SCHEMA ".\"Outbox\"",
        found, sizeof(found));
    assert_string_equal(found, "e5 e4 e3 e2 e1 new");
    assert_false(migrate_adopt(&opts, "nowhere", "camel", &err));
    assert_string_equal(err.code, "42P01");
}

#define CASE(fn) cmocka_unit_test_setup(fn, start_clean)

int main(void)
{
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(a_file_without_its_two_marks_is_refused),
        cmocka_unit_test(an_empty_or_missing_folder_is_named),
    };
    const struct CMUnitTest with_server[] = {
        CASE(up_down_and_up_again),
        CASE(the_store_is_as_it_was_asked_for),
        CASE(uninstall_leaves_nothing),
        CASE(the_kind_of_ids_is_chosen_once),
        CASE(a_failing_file_leaves_no_half),
        CASE(events_and_audit_rows_cannot_be_changed),
        CASE(temporary_tables_hide_none_of_ours),
        CASE(a_foreign_table_gets_numbers_by_age),
    };
    int failed;

    log_init(LOG_ERROR, LOG_HUMAN, "test");
    if (!mkdtemp(folder))
        return 1;
    failed = cmocka_run_group_tests_name("migrate", alone, NULL, NULL);
    if (getenv("MOONTIDE_TEST_PG")) {
        failed += cmocka_run_group_tests_name("migrate with a server",
                                              with_server, NULL, NULL);
        start_clean(NULL);
    }
    rmdir(folder);
    return failed;
}
