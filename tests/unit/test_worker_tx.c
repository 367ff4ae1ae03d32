/*
 * How deliveries share transactions: batches of handle_batch, and those that
 * handle() gets where SQL is all it does. On a real server (MOONTIDE_TEST_PG).
 */
#include "worker_effects.h"
#include "worker_sql.h"

#define EACH "{\"transaction\":true}"
#define MANY 20

static void start(struct harness *h, const char *source, const char *decl)
{
    sql("TRUNCATE t, event_inbox");
    harness_init(h, source, decl);
    if (!h->is_loaded)
        fail_msg("%s", h->load_error);
    set(h, "database.url", getenv("MOONTIDE_TEST_PG"));
    set(h, "database.schema", SCHEMA);
}

/* Event e<n> with payload { n = <n> }. */
static struct offer event(uint32_t n, uint64_t lane)
{
    static char ids[MANY][8];
    struct offer o;
    char payload[32];

    snprintf(payload, sizeof(payload), "{\"n\":%u}", n);
    snprintf(ids[n], sizeof(ids[n]), "e%u", n);
    o = harness_event(n, lane, payload);
    o.m.facts[FACT_ID] = slice_of(ids[n]);
    return o;
}

static void offer(struct harness *h, uint32_t n, uint64_t lane)
{
    struct offer o = event(n, lane);

    harness_give(h, &o);
}

static void offer_many(struct harness *h)
{
    for (uint32_t n = 0; n < MANY; n++)
        offer(h, n, n + 1);
    harness_wait(h, MANY);
}

static struct seen of(const struct harness *h, uint32_t slot)
{
    for (int i = 0; i < h->n_seen; i++)
        if (h->seen[i].slot == slot)
            return h->seen[i];
    fail_msg("no verdict for %u", slot);
    return h->seen[0];
}

static void lanes_share_a_transaction(void **state)
{
    struct harness h;

    (void)state;
    start(&h,
          "return { handle = function(event, ctx) ctx.tx:exec('INSERT INTO t"
          " VALUES ($1, pg_current_xact_id()::text)', event.payload.n) end }",
          EACH);
    offer_many(&h);
    for (uint32_t n = 0; n < MANY; n++)
        assert_ack(of(&h, n));
    harness_fini(&h);
    assert_int_equal(asked("SELECT count(*) FROM t"), MANY);
    assert_in_range(asked("SELECT count(DISTINCT b) FROM t"), 1, MANY / 4);
    assert_int_equal(asked("SELECT count(*) FROM event_inbox"), MANY);
}

/* By an error, a verdict, a statement and a body that is no JSON: each alone. */
static void who_fails_takes_nobody_along(void **state)
{
    static const enum verdict wanted[MANY] = {[3] = VERDICT_RETRY,
                                              [7] = VERDICT_DEAD,
                                              [8] = VERDICT_RETRY,
                                              [19] = VERDICT_SNOOZE};
    struct harness h;

    (void)state;
    start(&h,
          "return { handle = function(event, ctx)\n"
          "  local n = event.payload.n\n"
          "  ctx.tx:exec('INSERT INTO t VALUES ($1, $2)', n,"
          "              ctx.idempotency_key())\n"
          "  if n == 3 then error('three') end\n"
          "  if n == 7 then return ctx.dead('seven') end\n"
          "  if n == 8 then ctx.tx:exec('SELECT 1/0') end\n"
          "  if n == 19 then return ctx.snooze('1s') end\n"
          "end }",
          EACH);
    offer_many(&h);
    for (uint32_t n = 0; n < MANY; n++)
        assert_int_equal(of(&h, n).verdict, wanted[n]);
    assert_non_null(strstr(of(&h, 3).reason, "three"));
    assert_string_equal(of(&h, 8).code, "22012");
    harness_fini(&h);
    assert_int_equal(asked("SELECT count(*) FROM t"), MANY - 4);
    assert_int_equal(asked("SELECT count(*) FROM event_inbox"), MANY - 4);
    /* The first call's number, whoever ran before it in the transaction. */
    assert_int_equal(asked("SELECT count(*) FROM t WHERE b = 'e' || a ||"
                           " ':probe:0'"),
                     MANY - 4);
}

static void what_the_inbox_knows_is_not_run_again(void **state)
{
    static const char *const sources[][2] = {
        {EACH, "return { handle = function(event, ctx) ctx.tx:exec('INSERT INTO"
               " t VALUES ($1)', event.payload.n) end }"},
        {"{\"transaction\":true,\"batch\":{\"max\":20,\"wait_ms\":0}}",
         "return { handle_batch = function(events, ctx) local rows = {}\n"
         "  for i, e in ipairs(events) do rows[i] = { e.payload.n } end\n"
         "  ctx.tx:copy('t', { 'a' }, rows) end }"},
    };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct harness h;

        start(&h, sources[i][1], sources[i][0]);
        sql("INSERT INTO event_inbox VALUES ('probe', 'e4'), ('probe', 'e11')");
        offer_many(&h);
        for (uint32_t n = 0; n < MANY; n++)
            assert_ack(of(&h, n));
        harness_fini(&h);
        assert_int_equal(asked("SELECT count(*) FROM t"), MANY - 2);
        assert_int_equal(asked("SELECT count(*) FROM t WHERE a IN (4, 11)"), 0);
        assert_int_equal(asked("SELECT count(*) FROM event_inbox"), MANY);
    }
}

/* Each would be well alone. Together they take two rows in either order. */
/* Two transactions with several deliveries each hold a row and want the
 * other's: one is given up, and its deliveries are run each by itself. */
static void who_waits_for_each_other_is_parted(void **state)
{
    struct harness h;

    (void)state;
    start(&h,
          "local sleep = require('moontide.timer').sleep\n"
          "local seen, there, hold = {}, 0, 0\n"
          "return { handle = function(event, ctx)\n"
          "  local function mark(row) ctx.tx:exec('UPDATE t SET b = b || $2'"
          "    .. ' WHERE a = $1', row, '+') end\n"
          "  local id = 'SELECT pg_current_xact_id()::text AS id'\n"
          "  local mine = ctx.tx:query(id)[1].id\n"
          "  seen[mine] = (seen[mine] or 0) + 1\n"
          "  if there == 2 or seen[mine] ~= 2 then return end\n"
          "  local first = there\n"
          "  there = there + 1\n"
          "  mark(first)\n"
          "  hold = hold + 1\n"
          "  while hold < 2 do sleep('1ms') end\n"
          "  mark(1 - first)\n"
          "end }",
          EACH);
    sql("INSERT INTO t VALUES (0, ''), (1, '')");
    offer_many(&h);
    for (uint32_t n = 0; n < MANY; n++)
        assert_ack(of(&h, n));
    harness_fini(&h);
    assert_int_equal(asked("SELECT sum(length(b)) FROM t"), 2);
    assert_int_equal(asked("SELECT count(*) FROM event_inbox"), MANY);
}

/* A batch in which a statement lost to somebody else's is nobody's failure,
 * whatever handle_batch makes of it. */
static void a_deadlock_in_a_batch_is_no_attempt(void **state)
{
    static const char *const ends[] = {"", "error('mine')",
                                       "return ctx.retry('mine')"};
    char source[300];

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct harness h;

        snprintf(source, sizeof(source),
                 "return { handle_batch = function(events, ctx) ctx.tx:exec("
                 "\"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01';"
                 " END $$\") %s end }",
                 ends[i]);
        start(&h, source,
              "{\"transaction\":true,\"batch\":{\"max\":20,\"wait_ms\":0}}");
        offer_many(&h);
        for (uint32_t n = 0; n < MANY; n++)
            assert_int_equal(of(&h, n).verdict, VERDICT_AGAIN);
        harness_fini(&h);
    }
}

/* The second is a duplicate of the first only when that has committed. */
static void one_event_twice_is_done_once_or_not_at_all(void **state)
{
    static const char *const ends[] = {"", "error('never')"};
    char source[200];

    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct harness h;
        struct offer o;

        snprintf(source, sizeof(source),
                 "return { handle = function(event, ctx) ctx.tx:exec('INSERT"
                 " INTO t VALUES ($1)', event.payload.n) %s end }",
                 ends[fails]);
        start(&h, source, EACH);
        offer(&h, 0, 1);
        o = event(1, 2);
        o.m.facts[FACT_ID] = SLICE_LIT("e0");
        harness_give(&h, &o);
        harness_wait(&h, 2);
        for (uint32_t n = 0; n < 2; n++)
            assert_int_equal(of(&h, n).verdict,
                             fails ? VERDICT_RETRY : VERDICT_ACK);
        harness_fini(&h);
        assert_int_equal(asked("SELECT count(*) FROM t"), !fails);
    }
}

/* Who shares a transaction with a partition that was lost keeps its own. */
static void only_the_lost_partition_is_fenced(void **state)
{
    struct harness h;

    (void)state;
    start(&h,
          "return { handle = function(event, ctx) ctx.tx:exec('INSERT INTO t"
          " VALUES ($1)', event.payload.n) end }",
          EACH);
    sql("INSERT INTO event_handler_positions (handler_name, source, partition,"
        " seq, epoch) VALUES ('probe', 'kafka', 'orders/1', 0, 6), ('probe',"
        " 'kafka', 'orders/2', 0, 7)");
    for (uint32_t n = 0; n < MANY; n++) {
        struct offer o = event(n, n + 1);

        o.m.partition = n % 2 ? SLICE_LIT("orders/1") : SLICE_LIT("orders/2");
        o.d.epoch = 6;
        harness_give(&h, &o);
    }
    harness_wait(&h, MANY);
    for (uint32_t n = 0; n < MANY; n++)
        assert_int_equal(of(&h, n).verdict,
                         n % 2 ? VERDICT_ACK : VERDICT_FENCED);
    harness_fini(&h);
    assert_int_equal(asked("SELECT count(*) FROM t"), MANY / 2);
    sql("TRUNCATE event_handler_positions");
}

/* Mail or HTTP would go out once more when another delivery failed. */
static void other_effects_have_a_transaction_each(void **state)
{
    struct harness h;

    (void)state;
    start(&h,
          "return { handle = function(event, ctx) ctx.tx:exec('INSERT INTO t"
          " VALUES ($1, pg_current_xact_id()::text)', event.payload.n) end }",
          "{\"transaction\":true,\"allow\":{\"mail\":true}}");
    offer_many(&h);
    harness_fini(&h);
    assert_int_equal(asked("SELECT count(DISTINCT b) FROM t"), MANY);
}

/* The most batches that were inside their handler at once; the first stays there
 * until there are `wanted`. */
static int most_at_once(const char *decl, uint64_t lanes, int wanted)
{
    char *source =
        xasprintf("local sleep = require('moontide.timer').sleep\n"
                  "local inside, most = 0, 0 return {\n"
                  "handle_batch = function(events, ctx)\n"
                  "  inside = inside + 1 most = math.max(most, inside)\n"
                  "  while most < %d do sleep('1ms') end\n"
                  "  ctx.tx:exec('SELECT 1')\n"
                  "  inside = inside - 1\n"
                  "  return ctx.skip(tostring(most)) end }",
                  wanted);
    struct harness h;
    int most = 0;

    start(&h, source, decl);
    for (uint32_t n = 0; n < MANY; n++)
        offer(&h, n, n % lanes);
    harness_wait(&h, MANY);
    for (uint32_t n = 0; n < MANY; n++) {
        int seen = atoi(of(&h, n).reason);

        most = seen > most ? seen : most;
    }
    harness_fini(&h);
    free(source);
    return most;
}

/* While the database works for one batch the next is made, if no lane is in
 * both. */
static void batches_of_other_lanes_run_beside(void **state)
{
#define FIVE "\"transaction\":true,\"batch\":{\"max\":5,\"wait_ms\":0}"

    (void)state;
    assert_int_equal(most_at_once("{" FIVE "}", MANY, 2), 2);
    assert_int_equal(most_at_once("{" FIVE "}", 1, 1), 1);
    assert_int_equal(most_at_once("{" FIVE ",\"concurrency\":1}", MANY, 1), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lanes_share_a_transaction),
        cmocka_unit_test(who_fails_takes_nobody_along),
        cmocka_unit_test(what_the_inbox_knows_is_not_run_again),
        cmocka_unit_test(who_waits_for_each_other_is_parted),
        cmocka_unit_test(a_deadlock_in_a_batch_is_no_attempt),
        cmocka_unit_test(one_event_twice_is_done_once_or_not_at_all),
        cmocka_unit_test(only_the_lost_partition_is_fenced),
        cmocka_unit_test(other_effects_have_a_transaction_each),
        cmocka_unit_test(batches_of_other_lanes_run_beside),
    };

    log_init(LOG_ERROR, LOG_HUMAN, "test");
    if (!getenv("MOONTIDE_TEST_PG"))
        return 0;
    return cmocka_run_group_tests_name("tx", tests, make_schema, drop_schema);
}
