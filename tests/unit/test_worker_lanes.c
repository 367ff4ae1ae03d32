/* Order: lanes, what comes back after a failure, batches and their halving. */
#include "worker_harness.h"

/* Waits for a time, or for the end of event `after`. */
static const char sleeper[] =
    "local timer = require('moontide.timer') local order, done = {}, {} "
    "return { handle = function(event, ctx) local p = event.payload "
    "order[#order + 1] = p.n if p.wait then timer.sleep(p.wait) end "
    "while p.after and not done[p.after] do timer.sleep('1ms') end "
    "order[#order + 1] = -p.n done[p.n] = true "
    "if p.fail then return ctx.retry('failed') end "
    "return ctx.skip(table.concat(order, ' ')) end }";

static void test_one_at_a_time_in_order(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h, sleeper, "{}");
    harness_offer(&h, 1, 9, 0, "{\"n\":1,\"wait\":\"20ms\"}");
    harness_offer(&h, 2, 9, 0, "{\"n\":2,\"wait\":\"1ms\"}");
    harness_offer(&h, 3, 9, 0, "{\"n\":3}");
    harness_wait(&h, 3);
    assert_string_equal(h.seen[2].reason, "1 -1 2 -2 3 -3");
    harness_fini(&h);
}

static void test_lanes_run_side_by_side(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h, sleeper, "{}");
    harness_offer(&h, 1, 1, 0, "{\"n\":1,\"after\":2}");
    harness_offer(&h, 2, 2, 0, "{\"n\":2,\"after\":3}");
    harness_offer(&h, 3, 3, 0, "{\"n\":3}");
    harness_wait(&h, 3);
    assert_int_equal(h.seen[0].slot, 3);
    assert_int_equal(h.seen[1].slot, 2);
    assert_int_equal(h.seen[2].slot, 1);
    harness_fini(&h);
}

static void test_concurrency_bounds_lanes(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h, sleeper, "{\"concurrency\":1}");
    harness_offer(&h, 1, 1, 0, "{\"n\":1,\"wait\":\"10ms\"}");
    harness_offer(&h, 2, 2, 0, "{\"n\":2,\"wait\":\"1ms\"}");
    harness_offer(&h, 3, 3, 0, "{\"n\":3}");
    harness_wait(&h, 3);
    assert_string_equal(h.seen[2].reason, "1 -1 2 -2 3 -3");
    harness_fini(&h);
}

/* After a failure the rest of the lane comes back until a fresh one. */
static void test_back_until_fresh(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h, sleeper, "{}");
    harness_offer(&h, 1, 9, 0, "{\"n\":1,\"fail\":true}");
    harness_offer(&h, 2, 9, 0, "{\"n\":2}");
    harness_offer(&h, 3, 8, 0, "{\"n\":3}");
    harness_offer(&h, 4, 9, 0, "{\"n\":4}");
    harness_offer(&h, 5, 9, DELIVER_FRESH, "{\"n\":5}");
    harness_offer(&h, 6, 9, 0, "{\"n\":6}");
    harness_wait(&h, 6);
    assert_int_equal(h.seen[0].verdict, VERDICT_RETRY);
    assert_int_equal(h.seen[1].verdict, VERDICT_BACK);
    assert_int_equal(h.seen[2].verdict, VERDICT_SKIP);
    assert_int_equal(h.seen[3].verdict, VERDICT_BACK);
    assert_int_equal(h.seen[4].verdict, VERDICT_SKIP);
    assert_int_equal(h.seen[5].verdict, VERDICT_SKIP);
    assert_string_equal(h.seen[5].reason, "1 -1 3 -3 5 -5 6 -6");
    harness_fini(&h);
}

static void test_waiting_ones_come_back_too(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h, sleeper, "{}");
    harness_offer(&h, 1, 9, 0, "{\"n\":1,\"wait\":\"10ms\",\"fail\":true}");
    harness_offer(&h, 2, 9, 0, "{\"n\":2}");
    harness_offer(&h, 3, 9, 0, "{\"n\":3}");
    harness_wait(&h, 3);
    assert_int_equal(h.seen[0].verdict, VERDICT_RETRY);
    assert_int_equal(h.seen[1].verdict, VERDICT_BACK);
    assert_int_equal(h.seen[2].verdict, VERDICT_BACK);
    assert_int_equal(h.seen[1].slot, 2);
    harness_fini(&h);
}

/* A broken lane is forgotten once nothing of it can be on its way. */
static void test_sweep_forgets_broken_lanes(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h, sleeper, "{}");
    harness_offer(&h, 1, 9, 0, "{\"n\":1,\"fail\":true}");
    unit_sweep(h.unit, 100, 500, 400); /* the host saw the verdict */
    harness_offer(&h, 2, 9, 0, "{\"n\":2}");
    assert_int_equal(h.seen[1].verdict, VERDICT_BACK);
    unit_sweep(h.unit, 100, 500, 500); /* and all it wrote before is read */
    harness_offer(&h, 3, 9, 0, "{\"n\":3}");
    assert_int_equal(h.seen[2].verdict, VERDICT_SKIP);
    harness_fini(&h);
}

/* --- batches --------------------------------------------------------------------- */

static const char batcher[] =
    "local runs = {} return { handle_batch = function(events, ctx) "
    "local names = {} for i, e in ipairs(events) do names[i] = "
    "tostring(e.payload.n) end runs[#runs + 1] = table.concat(names, '+') "
    "local verdicts = {} for i, e in ipairs(events) do local p = e.payload "
    "if p.raise then error('raised by ' .. p.n, 0) end "
    "if p.loop then while true do end end "
    "verdicts[i] = p.dead and ctx.dead('dead ' .. p.n) "
    "or ctx.skip(table.concat(runs, ' ')) end return verdicts end }";

static struct seen *seen_of(struct harness *h, uint32_t slot)
{
    for (int i = 0; i < h->n_seen; i++)
        if (h->seen[i].slot == slot)
            return &h->seen[i];
    fail_msg("no verdict of %u", slot);
    return NULL;
}

static void batch_of(struct harness *h, const char *const *payloads, int n,
                     uint64_t lane)
{
    harness_init(h, batcher, "{\"batch\":{\"max\":100,\"wait_ms\":0}}");
    assert_true(h->is_loaded);
    for (int i = 0; i < n; i++)
        harness_offer(h, (uint32_t)i + 1, lane ? lane : (uint64_t)i + 1, 0,
                      payloads[i]);
    harness_wait(h, n);
}

static void test_batch_in_one_call(void **state)
{
    const char *const p[] = {"{\"n\":1}", "{\"n\":2}", "{\"n\":3}"};
    struct harness h;

    (void)state;
    batch_of(&h, p, 3, 0);
    for (uint32_t i = 1; i <= 3; i++)
        assert_string_equal(seen_of(&h, i)->reason, "1+2+3");
    harness_fini(&h);
}

static void test_halving_finds_the_one(void **state)
{
    const char *const p[] = {"{\"n\":1}", "{\"n\":2}",
                             "{\"n\":3,\"raise\":true}", "{\"n\":4}"};
    struct harness h;

    (void)state;
    batch_of(&h, p, 4, 0);
    assert_int_equal(seen_of(&h, 1)->verdict, VERDICT_SKIP);
    assert_int_equal(seen_of(&h, 2)->verdict, VERDICT_SKIP);
    assert_int_equal(seen_of(&h, 3)->verdict, VERDICT_RETRY);
    assert_string_equal(seen_of(&h, 3)->reason, "raised by 3");
    assert_int_equal(seen_of(&h, 4)->verdict, VERDICT_SKIP);
    assert_string_equal(seen_of(&h, 4)->reason, "1+2+3+4 1+2 3+4 3 4");
    harness_fini(&h);
}

/* Later ones of a failed one's lane are kept back. */
static void test_batch_keeps_lanes(void **state)
{
    const char *const p[] = {"{\"n\":1}", "{\"n\":2,\"dead\":true}",
                             "{\"n\":3}"};
    struct harness h;

    (void)state;
    batch_of(&h, p, 3, 7);
    assert_int_equal(seen_of(&h, 1)->verdict, VERDICT_SKIP);
    assert_int_equal(seen_of(&h, 2)->verdict, VERDICT_DEAD);
    assert_int_equal(seen_of(&h, 3)->verdict, VERDICT_BACK);
    harness_fini(&h);
}

/* A limit kills the vm; smaller batches in a new one find the culprit. */
static void test_limit_in_a_batch(void **state)
{
    const char *const p[] = {"{\"n\":1}", "{\"n\":2}",
                             "{\"n\":3,\"loop\":true}", "{\"n\":4}"};
    struct harness h;

    (void)state;
    batch_of(&h, p, 4, 0);
    assert_int_equal(seen_of(&h, 1)->verdict, VERDICT_SKIP);
    assert_int_equal(seen_of(&h, 2)->verdict, VERDICT_SKIP);
    assert_int_equal(seen_of(&h, 3)->class, CLASS_LIMIT);
    assert_int_equal(seen_of(&h, 4)->verdict, VERDICT_SKIP);
    harness_fini(&h);
}

/* --- life of a version -------------------------------------------------------------- */

static bool is_unloaded;

static void on_unloaded(struct unit *unit)
{
    (void)unit;
    is_unloaded = true;
}

static void test_unload_finishes_what_runs(void **state)
{
    struct harness h;

    (void)state;
    is_unloaded = false;
    harness_init(&h,
                 "local timer = require('moontide.timer') "
                 "return { handle = function(event, ctx) timer.sleep('20ms') "
                 "return ctx.skip('done') end, on_unload = function() "
                 "timer.sleep('5ms') end }",
                 "{}");
    harness_offer(&h, 1, 1, 0, "{}");
    unit_unload(h.unit, on_unloaded);
    while (!is_unloaded)
        ev_run(h.rt.loop, EVRUN_ONCE);
    assert_string_equal(h.seen[0].reason, "done");
    harness_fini(&h);
}

static void test_init_runs_before_deliveries(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h,
                 "local timer = require('moontide.timer') local ready "
                 "return { init = function(ctx) timer.sleep('20ms') "
                 "ready = ctx.handler end, handle = function(event, ctx) "
                 "return ctx.skip(ready) end }",
                 "{}");
    assert_false(h.is_loaded);
    harness_offer(&h, 1, 1, 0, "{}");
    harness_wait(&h, 1);
    assert_true(h.is_loaded);
    assert_string_equal(h.seen[0].reason, "probe");
    harness_fini(&h);
}

static void test_failing_init_is_not_loaded(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h,
                 "return { init = function() error('no luck', 0) end, "
                 "handle = function() end }",
                 "{}");
    assert_false(h.is_loaded);
    assert_string_equal(h.load_error, "init: no luck");
    harness_fini(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_at_a_time_in_order),
        cmocka_unit_test(test_lanes_run_side_by_side),
        cmocka_unit_test(test_concurrency_bounds_lanes),
        cmocka_unit_test(test_back_until_fresh),
        cmocka_unit_test(test_waiting_ones_come_back_too),
        cmocka_unit_test(test_sweep_forgets_broken_lanes),
        cmocka_unit_test(test_batch_in_one_call),
        cmocka_unit_test(test_halving_finds_the_one),
        cmocka_unit_test(test_batch_keeps_lanes),
        cmocka_unit_test(test_limit_in_a_batch),
        cmocka_unit_test(test_unload_finishes_what_runs),
        cmocka_unit_test(test_init_runs_before_deliveries),
        cmocka_unit_test(test_failing_init_is_not_loaded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
