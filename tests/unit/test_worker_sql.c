/*
 * SQL of handlers and their transactions, on a real server: MOONTIDE_TEST_PG is
 * its url; without one nothing runs.
 */
#include "worker_effects.h"
#include "worker_sql.h"

#include "base/clock.h"

#define DB "{\"allow\":{\"db\":true}}"

static void values_go_there_and_come_back(void **state)
{
    (void)state;
    assert_ack(run(
        "local big = require('moontide.json').decode('[9007199254740993]')[1]\n"
        "local rows, err = db.query([[SELECT $1::bigint AS big, $2::text AS"
        " nothing, $3::bool AS yes, $4::jsonb AS j, $5::int[] AS list,"
        " 1.50::numeric AS num, '2026-01-02 03:04:05+00'::timestamptz AS at]],"
        " big, nil, true, { k = { 1, 2 } }, db.array({ 3, 4 }))\n"
        "assert(rows, tostring(err)) local r = rows[1]\n"
        "assert(r.big == big and tostring(r.big) == '9007199254740993')\n"
        "assert(r.nothing == nil and r.yes == true)\n"
        "assert(r.j.k[2] == 2 and r.list[2] == 4 and r.num == '1.50')\n"
        "assert(r.at == '2026-01-02T03:04:05.000000Z', r.at)",
        DB, NULL));
}

/* A double in a numeric column has the digits that JSON writes for it. */
static void numbers_keep_their_digits(void **state)
{
    (void)state;
    assert_ack(run(
        "local r = assert(db.query([[SELECT $1::numeric AS a, $2::text AS b,"
        " ($3::numeric[])[1] AS c, $4::bigint AS d, $5::float8 AS e,"
        " $6::text AS f]], 2.45, 0.1, db.array({ 59.9 }), 1e17, 1/3, "
        "-0.5))[1]\n"
        "assert(r.a == '2.45', r.a) assert(r.b == '0.1', r.b)\n"
        "assert(r.c == '59.9', r.c)\n"
        "assert(tostring(r.d) == '100000000000000000', tostring(r.d))\n"
        "assert(r.e == 1/3) assert(r.f == '-0.5')",
        DB, NULL));
}

static void a_failed_statement_is_an_error_with_its_code(void **state)
{
    (void)state;
    assert_ack(run("local rows, err = db.query('SELECT nothing')\n"
                   "assert(rows == nil and err.code == '42703')\n"
                   "assert(err.class == 'permanent')",
                   DB, NULL));
}

static void copy_takes_rows_with_holes(void **state)
{
    (void)state;
    sql("TRUNCATE t");
    assert_ack(run("local n, err = db.copy('t', { 'a', 'b', 'c' }, { { 1,"
                   " 'x\\ty\\\\', { k = 1 } }, { 2, nil, nil } })\n"
                   "assert(n == 2, tostring(err))\n"
                   "local r = db.query('SELECT * FROM t ORDER BY a')\n"
                   "assert(r[1].b == 'x\\ty\\\\' and r[1].c.k == 1)\n"
                   "assert(r[2].b == nil)",
                   DB, NULL));
}

static void a_transaction_of_its_own_commits_or_does_not(void **state)
{
    (void)state;
    sql("TRUNCATE t");
    assert_ack(run(
        "assert(db.transaction(function(tx) tx:exec('INSERT INTO t VALUES (1)')"
        " end))\n"
        "local r, err = db.transaction(function(tx) tx:exec('INSERT INTO t"
        " VALUES (2)') tx:exec('bad') return 1 end)\n"
        "assert(r == nil and err.code == '42601')\n"
        "assert(not pcall(db.transaction, function(tx) tx:exec('INSERT INTO t"
        " VALUES (3)') error('x') end))\n"
        "local r, err = db.transaction(function(tx) tx:exec('INSERT INTO t"
        " VALUES (4)') return nil, 'no' end)\n"
        "assert(r == nil and err == 'no')",
        DB, NULL));
    assert_int_equal(asked("SELECT count(*) FROM t"), 1);
}

#define TX "{\"transaction\":true}"

static void a_delivery_commits_with_its_inbox_row(void **state)
{
    (void)state;
    sql("TRUNCATE t, event_inbox");
    assert_ack(run("ctx.tx:exec('INSERT INTO t VALUES (1)')", TX, NULL));
    assert_int_equal(asked("SELECT count(*) FROM t"), 1);
    assert_int_equal(asked("SELECT count(*) FROM event_inbox WHERE handler ="
                           " 'probe' AND event_id = 'e-1'"),
                     1);
    /* Delivered again: acked, not run. */
    assert_ack(run("ctx.tx:exec('INSERT INTO t VALUES (1)')", TX, NULL));
    assert_int_equal(asked("SELECT count(*) FROM t"), 1);
}

static void what_is_no_ack_rolls_back(void **state)
{
    struct seen seen;

    (void)state;
    sql("TRUNCATE t, event_inbox");
    seen = run("ctx.tx:exec('INSERT INTO t VALUES (1)') return ctx.dead('no')",
               TX, NULL);
    assert_int_equal(seen.verdict, VERDICT_DEAD);
    seen =
        run("ctx.tx:exec('INSERT INTO t VALUES (1)') error('boom')", TX, NULL);
    assert_int_equal(seen.verdict, VERDICT_RETRY);
    seen = run("ctx.tx:exec('INSERT INTO t VALUES (1)') ctx.tx:exec('bad')", TX,
               NULL);
    assert_int_equal(seen.verdict, VERDICT_RETRY);
    assert_string_equal(seen.code, "42601");
    assert_int_equal(asked("SELECT count(*) FROM t"), 0);
    assert_int_equal(asked("SELECT count(*) FROM event_inbox"), 0);
}

static void a_published_event_shares_the_transaction(void **state)
{
    static const char publish[] =
        "local id, err = events.publish { type = 'T', aggregate_type = 'A',"
        " aggregate_id = '6c1d9a52-6c8e-4b7e-9d0a-0a1b2c3d4e5f', payload = { a"
        " = 1 } }\nassert(id, tostring(err)) %s";
    char *dead = xasprintf(publish, "return ctx.dead('no')");
    char *fine = xasprintf(publish, "");

    (void)state;
    sql("TRUNCATE event_inbox");
    assert_int_equal(run(dead, TX, NULL).verdict, VERDICT_DEAD);
    assert_int_equal(asked("SELECT count(*) FROM domain_events"), 0);
    assert_ack(run(fine, TX, NULL));
    assert_int_equal(asked("SELECT count(*) FROM domain_events WHERE metadata"
                           " ->> 'causationId' = 'e-1' AND (metadata ->>"
                           " 'hops')::int = 1"),
                     1);
    free(dead);
    free(fine);
}

static void whoever_lost_the_partition_does_not_write(void **state)
{
    struct harness h;
    struct offer o;

    (void)state;
    sql("TRUNCATE t, event_inbox; INSERT INTO event_handler_positions"
        " (handler_name, source, partition, seq, epoch) VALUES ('probe',"
        " 'kafka', 'orders/3', 0, 6)");
    harness_init(&h,
                 "return { handle = function(event, ctx)"
                 " ctx.tx:exec('INSERT INTO t VALUES (1)') end }",
                 TX);
    set(&h, "database.url", getenv("MOONTIDE_TEST_PG"));
    set(&h, "database.schema", SCHEMA);
    o = harness_event(1, 1, "{}");
    o.d.epoch = 5;
    harness_give(&h, &o);
    harness_wait(&h, 1);
    assert_int_equal(h.seen[0].verdict, VERDICT_FENCED);
    o = harness_event(2, 2, "{}");
    o.d.epoch = 6;
    harness_give(&h, &o);
    harness_wait(&h, 2);
    assert_ack(h.seen[1]);
    harness_fini(&h);
    assert_int_equal(asked("SELECT count(*) FROM t"), 1);
}

static void a_batch_gives_up_only_the_event_at_fault(void **state)
{
    struct harness h;
    static char ids[8][8];

    (void)state;
    sql("TRUNCATE t, event_inbox");
    harness_init(
        &h,
        "return { handle_batch = function(events, ctx)\n"
        "  local rows = {}\n"
        "  for i, e in ipairs(events) do rows[i] = { e.payload.n } end\n"
        "  ctx.tx:copy('t', { 'a' }, rows)\n"
        "end }",
        "{\"transaction\":true,\"batch\":{\"max\":8,\"wait_ms\":0}}");
    if (!h.is_loaded)
        fail_msg("%s", h.load_error);
    set(&h, "database.url", getenv("MOONTIDE_TEST_PG"));
    set(&h, "database.schema", SCHEMA);
    for (uint32_t i = 0; i < 8; i++) {
        char payload[32];
        struct offer o;

        snprintf(payload, sizeof(payload),
                 i == 5 ? "{\"n\":\"x\"}" : "{\"n\":%u}", i);
        snprintf(ids[i], sizeof(ids[i]), "e%u", i);
        o = harness_event(i, i, payload);
        o.m.facts[FACT_ID] = slice_of(ids[i]);
        harness_give(&h, &o);
    }
    harness_wait(&h, 8);
    for (int i = 0; i < 8; i++)
        assert_int_equal(h.seen[i].verdict,
                         h.seen[i].slot == 5 ? VERDICT_RETRY : VERDICT_ACK);
    harness_fini(&h);
    assert_int_equal(asked("SELECT count(*) FROM t"), 7);
    assert_int_equal(asked("SELECT count(*) FROM event_inbox"), 7);
}

static void a_timeout_ends_the_statement_and_the_delivery(void **state)
{
    static const char sleeping[] =
        "SELECT count(*) FROM pg_stat_activity WHERE query ="
        " 'SELECT pg_sleep(3600)' AND state = 'active'";
    static const char body[] = "db.query('SELECT pg_sleep(3600)')";
    int64_t deadline = clock_mono_us() + 20000000;
    struct seen seen =
        run(body, "{\"allow\":{\"db\":true},\"timeout_ms\":300}", NULL);

    (void)state;
    assert_end(body, &seen, VERDICT_RETRY, CLASS_TRANSIENT, "timeout");
    while (asked(sleeping) > 0 && clock_mono_us() < deadline)
        continue;
    assert_int_equal(asked(sleeping), 0);
}

static void a_handler_cannot_end_its_transaction(void **state)
{
    static const char *const ends[] = {
        "COMMIT",        "rollback",
        "End",           " ; /* a /* b */ */ -- c\\n commit work",
        "ABORT",         "ROLLBACK TRANSACTION AND CHAIN",
        "commit;",       "PREPARE TRANSACTION \\'x\\'",
        "ROLLBACK WORK",
    };

    (void)state;
    sql("TRUNCATE t, event_inbox");
    assert_ack(run("assert(ctx.tx.commit == nil and ctx.tx.session == nil)\n"
                   "assert(ctx.tx.rollback == nil)\n"
                   "assert(ctx.tx:exec('SAVEPOINT s'))\n"
                   "assert(ctx.tx:exec('INSERT INTO t VALUES (1)'))\n"
                   "assert(ctx.tx:exec('ROLLBACK TO s'))\n"
                   "assert(ctx.tx:exec('rollback work to savepoint s'))\n"
                   "assert(ctx.tx:exec('RELEASE s'))",
                   TX, NULL));
    assert_int_equal(asked("SELECT count(*) FROM event_inbox"), 1);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        char *body = xasprintf("ctx.tx:exec('INSERT INTO t VALUES (2)')\n"
                               "ctx.tx:exec('%s') return ctx.dead('no')",
                               ends[i]);
        struct seen seen;

        sql("TRUNCATE t, event_inbox");
        seen = run(body, TX, NULL);
        assert_end(body, &seen, VERDICT_RETRY, CLASS_BUG,
                   "ends with the function that it was given to");
        assert_int_equal(asked("SELECT count(*) FROM t"), 0);
        free(body);
    }
}

/* The next delivery, of any handler, may get the same session. */
static void a_handler_leaves_no_settings_behind(void **state)
{
    static const char *const bad[] = {
        "SET search_path = pg_catalog", "set session statement_timeout = 0",
        "SET TIME ZONE \\'Asia/Tokyo\\'", "RESET ALL", "DISCARD ALL"};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        char *body = xasprintf(
            "local ok, err = pcall(db.transaction, function(tx)\n"
            "  tx:exec('%s') end)\n"
            "assert(not ok and err:find('SET LOCAL', 1, true), tostring(err))\n"
            "ok, err = pcall(db.exec, '%s')\n"
            "assert(not ok and err:find('SET LOCAL', 1, true), tostring(err))\n"
            "for _ = 1, 8 do\n"
            "  local r = assert(db.query([[SELECT current_setting("
            "'search_path') AS s]]))[1]\n"
            "  assert(r.s:find('" SCHEMA "'), r.s)\n"
            "end",
            bad[i], bad[i]);

        assert_ack(run(body, DB, NULL));
        free(body);
    }
    assert_ack(run("assert(db.transaction(function(tx)\n"
                   "  tx:exec('SET LOCAL search_path = pg_catalog')\n"
                   "  tx:exec('set transaction read only')\n"
                   "end))",
                   DB, NULL));
}

/* A session of somebody else, in the middle of a transaction with `text`. */
static struct pg_sync *busy_elsewhere(const char *text)
{
    struct err err;
    struct pg_sync *db = pg_sync_connect(getenv("MOONTIDE_TEST_PG"), &err);

    if (!db ||
        !pg_sync_script(db, "SET search_path = " SCHEMA "; BEGIN", &err) ||
        !pg_sync_script(db, text, &err))
        fail_msg("%s", err.msg);
    return db;
}

/* Only the wait for the inbox row is nobody's fault: a lock that the handler
 * itself does not get is a failed attempt, or it would be tried for ever. */
static void a_lock_not_got_counts_unless_it_is_the_inbox(void **state)
{
    static const char body[] = "ctx.tx:exec('UPDATE t SET b = 1')";
    static const char decl[] = "{\"transaction\":true,\"timeout_ms\":400}";
    struct pg_sync *other;
    struct seen seen;

    (void)state;
    sql("TRUNCATE t, event_inbox");
    other = busy_elsewhere("LOCK TABLE t");
    seen = run(body, decl, NULL);
    pg_sync_close(other);
    assert_end(body, &seen, VERDICT_RETRY, CLASS_TRANSIENT, "lock timeout");
    assert_string_equal(seen.code, "55P03");
    other = busy_elsewhere("INSERT INTO event_inbox (handler, event_id)"
                           " VALUES ('probe', 'e-1')");
    seen = run(body, decl, NULL);
    pg_sync_close(other);
    assert_end(body, &seen, VERDICT_AGAIN, CLASS_TRANSIENT, "inbox row");
}

/* Design 13.9, P9: the database gave this transaction up for another's sake.
 * However the handler says so, and whoever's the transaction is. */
static void a_deadlock_is_no_attempt(void **state)
{
#define RAISE(code) \
    "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '" code "'; END $$"
#define IN_TX "{\"transaction\":true,\"allow\":{\"db\":true}}"
#define PLAIN "{\"allow\":{\"db\":true}}"
    static const struct {
        const char *decl, *body;
    } cases[] = {
        {IN_TX, "ctx.tx:exec(\"" RAISE("40P01") "\")"},
        {IN_TX, "ctx.tx:exec(\"" RAISE("40001") "\") error('in my own words')"},
        {IN_TX, "ctx.tx:exec(\"" RAISE("40001") "\") return ctx.retry('mine')"},
        {"{\"transaction\":true}",
         "ctx.tx:exec(\"" RAISE("40001") "\") error('in my own words')"},
        {PLAIN, "return ctx.retry(select(2, db.exec(\"" RAISE("40P01") "\")))"},
        {PLAIN, "assert(db.transaction(function(tx)"
                " tx:exec(\"" RAISE("40001") "\") end))"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct seen seen = run(cases[i].body, cases[i].decl, NULL);

        assert_end(cases[i].body, &seen, VERDICT_AGAIN, CLASS_TRANSIENT, "x");
        assert_int_equal(seen.after_ms, -1);
    }
    struct seen dead =
        run("ctx.tx:exec(\"" RAISE(
                "40P01") "\")"
                         " return ctx.dead('for another reason')",
            IN_TX, NULL);

    assert_end("dead", &dead, VERDICT_DEAD, CLASS_PERMANENT, "another reason");
}

/* What statements leave on a session though they are no SET. */
static void a_session_is_clean_for_the_next(void **state)
{
    static const char *const dirt[] = {
        "SELECT set_config('search_path', 'pg_catalog', false)",
        "SELECT set_config('role', 'pg_monitor', false)",
        "SELECT set_config('statement_timeout', '1', false)",
        "SELECT pg_advisory_lock(4711)",
        "CREATE TEMP TABLE t (x int)",
        "SELECT 1 AS x INTO TEMP t",
        "PREPARE mine AS SELECT 1",
        "DO $$ BEGIN PERFORM set_config('search_path', 'x', false); END $$",
    };
    static const char check[] =
        "for i = 1, 8 do\n"
        "  local r = assert(db.query([[SELECT current_setting('search_path') AS"
        " path, current_setting('statement_timeout') AS t, current_user ="
        " session_user AS own, (SELECT count(*) FROM pg_locks WHERE locktype ="
        " 'advisory' AND pid = pg_backend_pid()) AS locks,"
        " to_regclass('pg_temp.t') IS NULL AS gone, (SELECT count(*) FROM"
        " pg_prepared_statements WHERE from_sql) AS prepared]]))[1]\n"
        "  assert(r.path:find('" SCHEMA "', 1, true), r.path)\n"
        "  assert(r.t == '1min' and r.own and r.locks == 0 and r.gone,"
        " r.t .. r.locks) assert(r.prepared == 0)\n"
        "end";

    (void)state;
    for (size_t i = 0; i < sizeof(dirt) / sizeof(*dirt); i++) {
        char *alone = xasprintf("assert(db.query([[%s]]))\n%s", dirt[i], check);
        char *inside = xasprintf("db.transaction(function(tx) tx:exec([[%s]])"
                                 " return true end)\n%s",
                                 dirt[i], check);

        assert_ack(run(alone, DB, NULL));
        assert_ack(run(inside, DB, NULL));
        free(alone);
        free(inside);
    }
}

static void a_clean_session_keeps_its_plans(void **state)
{
    (void)state;
    assert_ack(run("local function pid() return assert(db.query([[SELECT"
                   " pg_backend_pid() AS pid, (SELECT count(*) FROM"
                   " pg_prepared_statements) AS n]]))[1] end\n"
                   "pid() pid() local before = pid()\n"
                   "assert(db.query('SELECT pg_advisory_lock(1)'))\n"
                   "local after = pid()\n"
                   "assert(before.pid == after.pid and after.n >= 1 and"
                   " before.n >= 1)",
                   DB, NULL));
}

/* The limits of a transaction must not be its first statement that sees data:
 * after one the level cannot be chosen any more. */
static void a_transaction_can_choose_its_isolation(void **state)
{
    (void)state;
    assert_ack(
        run("for _ = 1, 3 do assert(db.transaction(function(tx)\n"
            "  tx:exec('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ')\n"
            "  local r = tx:query([[SELECT"
            " current_setting('transaction_isolation') AS level,"
            " current_setting('statement_timeout') AS t,"
            " current_setting('lock_timeout') AS l]])[1]\n"
            "  assert(r.level == 'repeatable read', r.level)\n"
            "  assert(r.t ~= '1min' and r.l == '5s', r.t .. r.l)\n"
            "end)) end",
            DB, NULL));
}

#define READS                                                  \
    "SELECT sum(seq_tup_read + idx_tup_fetch) FROM"            \
    " pg_stat_user_tables WHERE schemaname = '" SCHEMA "' AND" \
    " relname LIKE 'domain_events%'"

/* Pages go on where the one before ended: reading all for each of the 25 would
 * be 300000 rows. */
static void a_type_is_read_once(void **state)
{
    int64_t deadline = clock_mono_us() + 20000000;
    int before, reads;

    (void)state;
    sql("INSERT INTO domain_events (aggregate_id, aggregate_type, event_type,"
        " event_data, occurred_at) SELECT gen_random_uuid(), 'A', CASE n % 2"
        " WHEN 0 THEN 'Paged' ELSE 'Other' || n END, jsonb_build_object('n', "
        "n),"
        " now() - n / 7 * interval '1 second' FROM generate_series(1, 24000) n;"
        " ANALYZE domain_events");
    before = asked(READS);
    assert_ack(run("local n, last, seen = 0, '', {}\n"
                   "for e in events.by_type('Paged') do\n"
                   "  assert(e.occurred_at >= last and not seen[e.id])\n"
                   "  n, last, seen[e.id] = n + 1, e.occurred_at, true\n"
                   "end assert(n == 12000, n)",
                   "{}", NULL));
    do { /* counted when the backend has ended */
        reads = asked(READS) - before;
    } while (reads < 12000 && clock_mono_us() < deadline);
    assert_in_range(reads, 12000, 60000);
}

/* A delivery that is run again after it has published publishes nothing more,
 * also when it has no transaction that would know. */
static void a_retried_publish_stores_one_event(void **state)
{
    static const char body[] =
        "local id, err = events.publish { type = 'Once', aggregate_type = 'A',"
        " aggregate_id = '6c1d9a52-6c8e-4b7e-9d0a-0a1b2c3d4e5f', payload = {"
        " a = 1 }, expected_version = 0 }\nassert(id, tostring(err))\n"
        "return ctx.retry(id)";
    struct seen first, second;

    (void)state;
    sql("TRUNCATE event_inbox");
    first = run(body, "{}", NULL);
    second = run(body, "{}", NULL);
    assert_int_equal(strlen(first.reason), 36);
    assert_string_equal(first.reason, second.reason);
    assert_int_equal(asked("SELECT count(*) FROM domain_events WHERE"
                           " event_type = 'Once'"),
                     1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_go_there_and_come_back),
        cmocka_unit_test(numbers_keep_their_digits),
        cmocka_unit_test(a_failed_statement_is_an_error_with_its_code),
        cmocka_unit_test(copy_takes_rows_with_holes),
        cmocka_unit_test(a_transaction_of_its_own_commits_or_does_not),
        cmocka_unit_test(a_delivery_commits_with_its_inbox_row),
        cmocka_unit_test(what_is_no_ack_rolls_back),
        cmocka_unit_test(a_published_event_shares_the_transaction),
        cmocka_unit_test(whoever_lost_the_partition_does_not_write),
        cmocka_unit_test(a_batch_gives_up_only_the_event_at_fault),
        cmocka_unit_test(a_timeout_ends_the_statement_and_the_delivery),
        cmocka_unit_test(a_handler_cannot_end_its_transaction),
        cmocka_unit_test(a_handler_leaves_no_settings_behind),
        cmocka_unit_test(a_lock_not_got_counts_unless_it_is_the_inbox),
        cmocka_unit_test(a_deadlock_is_no_attempt),
        cmocka_unit_test(a_session_is_clean_for_the_next),
        cmocka_unit_test(a_clean_session_keeps_its_plans),
        cmocka_unit_test(a_transaction_can_choose_its_isolation),
        cmocka_unit_test(a_type_is_read_once),
        cmocka_unit_test(a_retried_publish_stores_one_event),
    };

    log_init(LOG_ERROR, LOG_HUMAN, "test");
    if (!getenv("MOONTIDE_TEST_PG"))
        return 0;
    return cmocka_run_group_tests_name("sql", tests, make_schema, drop_schema);
}
