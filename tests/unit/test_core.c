/* The small parts of the core: patterns, ranges, backoff, flags, router. */
#include "base/buf.h"
#include "base/digest.h"
#include "core/backoff.h"
#include "core/bucket.h"
#include "core/flags.h"
#include "core/handler.h"
#include "core/pattern.h"
#include "core/ranges.h"
#include "core/router.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* C5, S2-04: exact, *, one segment, many, prefix, exclusion. */
static void subscriptions_match_by_segment(void **state)
{
    static const struct {
        const char *pattern, *type;
        bool matches;
    } cases[] = {
        {"CallCompleted", "CallCompleted", true},
        {"CallCompleted", "callcompleted", false},
        {"CallCompleted", "CallCompletedTwice", false},
        {"*", "anything.at.all", true},
        {"order.*", "order.paid", true},
        {"order.*", "order", false},
        {"order.*", "order.item.added", false},
        {"order.**", "order.item.added", true},
        {"order.**", "order.paid", true},
        {"order.**", "order", false},
        {"**.paid", "order.item.paid", true},
        {"*.paid", "order.paid", true},
        {"*.paid", "paid", false},
        {"Invoice*", "InvoicePaid", true},
        {"Invoice*", "Invoice", true},
        {"Invoice*", "Invoice.paid", false},
        {"order.pay*", "order.payment_failed", true},
        {"order.pay*", "order.shipped", false},
        {"a.**.z", "a.b.c.z", true},
        {"a.**.z", "a.z", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        if (pattern_match(cases[i].pattern, slice_of(cases[i].type)) !=
            cases[i].matches)
            fail_msg("%s against %s", cases[i].pattern, cases[i].type);
}

static void an_exclusion_wins_over_the_rest_of_the_list(void **state)
{
    const char *const list[] = {"order.**", "!order.debug.*"};
    const char *const only_not[] = {"!Call*"};

    (void)state;
    assert_true(patterns_match(list, 2, SLICE_LIT("order.paid")));
    assert_false(patterns_match(list, 2, SLICE_LIT("order.debug.trace")));
    assert_true(patterns_match(only_not, 1, SLICE_LIT("BidWon")));
    assert_false(patterns_match(only_not, 1, SLICE_LIT("CallFailed")));
}

static void a_senseless_pattern_is_refused_with_a_reason(void **state)
{
    struct err err;

    (void)state;
    assert_true(pattern_check("order.**", &err));
    assert_false(pattern_check("", &err));
    assert_false(pattern_check("a..b", &err));
    assert_non_null(strstr(err.msg, "empty segment"));
    assert_false(pattern_check("a*b", &err));
    assert_false(pattern_check("**.**.**", &err));
}

/* Against a plain array of booleans. */
static void ranges_are_a_set(void **state)
{
    enum { SIZE = 200 };
    uint64_t seed = random_u64();
    bool model[SIZE] = {false};
    struct ranges r = {0}, again = {0};
    struct buf text = {0};

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    srand((unsigned)seed);
    for (int i = 0; i < 5000; i++) {
        int a = rand() % SIZE, b = rand() % SIZE;
        bool add = rand() % 2;

        if (a > b) {
            int t = a;

            a = b;
            b = t;
        }
        if (b - a > 20)
            b = a + 20;
        for (int n = a; n <= b; n++)
            model[n] = add;
        if (add)
            ranges_add(&r, a, b);
        else
            ranges_remove(&r, a, b);
        for (int n = 0; n < SIZE; n++)
            assert_int_equal(ranges_has(&r, n), model[n]);
        for (size_t k = 1; k < r.len; k++) /* disjoint and not adjacent */
            assert_true(r.at[k - 1].last + 1 < r.at[k].first);
    }
    ranges_print(&r, &text);
    assert_true(ranges_parse(&again, buf_text(&text)));
    assert_int_equal(again.len, r.len);
    assert_memory_equal(again.at, r.at, r.len * sizeof(*r.at));
    ranges_cut(&again, 100);
    assert_false(ranges_has(&again, 100));
    assert_false(ranges_parse(&again, "{[1,2"));
    assert_false(ranges_parse(&again, "[1,2)"));
    buf_fini(&text);
    ranges_fini(&r);
    ranges_fini(&again);
}

/* S1-27, S2-12 */
/* Whenever it is asked, and whatever was given back: never more than the burst
 * and what came since, in any stretch of time, and never less when it is wanted. */
static void a_bucket_gives_its_rate_and_no_more(void **state)
{
    static const struct rate rates[] = {{10000000, 100},
                                        {333333334, 3},
                                        {1, 1000000},
                                        {1200000000000, 4},
                                        {1000000, 1}};

    (void)state;
    for (size_t i = 0; i < sizeof(rates) / sizeof(*rates); i++) {
        const struct rate *r = &rates[i];
        int64_t step_us = r->interval_ns / 2000 + 2, now_us = 1700000000000000;
        int64_t from_us = now_us, taken = 0, unused = 0;
        struct bucket b = {0};

        assert_int_equal(bucket_tokens(&b, r, now_us), r->burst);
        for (int n = 0; n < 20000; n++) {
            int64_t most;

            now_us += (int64_t)(random_u64() % (uint64_t)step_us);
            most = r->burst + (now_us - from_us) * 1000 / r->interval_ns + 1;
            for (int k = 0; k < 50 && bucket_tokens(&b, r, now_us) > 0; k++) {
                bucket_take(&b, r, now_us);
                taken++;
            }
            assert_true(taken <= most);
            if (taken > 0 && random_u64() % 50 == 0) {
                bucket_give(&b, r);
                taken--;
                unused++;
            }
            assert_true(bucket_tokens(&b, r, now_us) <= r->burst);
        }
        assert_true(unused > 0);
        while (bucket_tokens(&b, r, now_us) > 0) {
            bucket_take(&b, r, now_us);
            taken++;
        }
        if (r->interval_ns > 1 && r->burst >= 3) /* it was never full */
            assert_true(taken >=
                        r->burst + (now_us - from_us) * 1000 / r->interval_ns -
                            1);
    }
}

static void another_rate_finds_a_bucket_that_fits(void **state)
{
    static const struct rate slow = {3600000000000, 5}, fast = {1000000, 10};
    struct bucket b = {0};

    (void)state;
    for (int i = 0; i < 5; i++)
        bucket_take(&b, &slow, 1000);
    assert_int_equal(bucket_tokens(&b, &slow, 1000), 0);
    bucket_fit(&b, &fast, 1000);
    assert_int_equal(bucket_tokens(&b, &fast, 1000), 0);
    assert_int_equal(bucket_tokens(&b, &fast, 2000), 1);
}

static void backoff_grows_to_its_cap_with_jitter_below(void **state)
{
    struct retry_policy plain = {5, 200, 60000, false};
    struct retry_policy jitter = {5, 200, 60000, true};

    (void)state;
    assert_int_equal(backoff_ms(&plain, 1, 0), 200);
    assert_int_equal(backoff_ms(&plain, 2, 0), 400);
    assert_int_equal(backoff_ms(&plain, 4, 0), 1600);
    assert_int_equal(backoff_ms(&plain, 500, 0), 60000);
    for (int i = 0; i < 1000; i++) {
        int64_t ms = backoff_ms(&jitter, 4, random_u64());

        assert_true(ms >= 100 && ms <= 1600);
    }
}

/* S1-78, C11: the order of origins, and off wins for the switch of all. */
static void the_runtime_flag_decides_but_off_wins_for_all(void **state)
{
    struct flags f = {0};
    enum flag_origin origin;

    (void)state;
    assert_true(flags_get(&f, "handler:audit", NULL).is_on);
    flags_set(&f, "handler:audit", FLAG_FILE, 0, OFF_SKIP);
    assert_false(flags_get(&f, "handler:audit", &origin).is_on);
    assert_int_equal(origin, FLAG_FILE);
    flags_set(&f, "handler:audit", FLAG_RUNTIME, 100, OFF_HOLD);
    assert_true(flags_get(&f, "handler:audit", &origin).is_on);
    assert_int_equal(origin, FLAG_RUNTIME);
    flags_set(&f, FLAG_ALL, FLAG_ENV, 0, OFF_HOLD);
    flags_set(&f, FLAG_ALL, FLAG_RUNTIME, 100, OFF_HOLD);
    assert_false(flags_get(&f, FLAG_ALL, &origin).is_on);
    assert_int_equal(origin, FLAG_ENV);
    flags_clear(&f, FLAG_ENV);
    assert_true(flags_get(&f, FLAG_ALL, NULL).is_on);
    /* M7: a part of the keys, and who was in stays in as it grows. */
    for (int percent = 0, n = 0, before = 0; percent <= 100; percent += 25) {
        flags_set(&f, "handler:audit", FLAG_RUNTIME, percent, OFF_HOLD);
        struct flag_value v = flags_get(&f, "handler:audit", NULL), less = v;

        less.percent -= 25;
        for (uint64_t key = n = 0; key < 4000; key++) {
            n += flag_admits(&v, key * 0x9e3779b97f4a7c15u);
            if (percent > 25)
                assert_true(!flag_admits(&less, key) || flag_admits(&v, key));
        }
        assert_in_range(n, percent * 38, percent * 42);
        assert_true(n >= before);
        before = n;
    }
    assert_false(flag_name_is_known("handler:"));
    assert_true(flag_name_is_known("aggregate:order"));
    flags_fini(&f);
}

static struct handler *subscriber(struct metrics *m, const char *name,
                                  const char *pattern)
{
    struct handler *h = handler_new(name, m);

    h->spec = calloc(1, sizeof(*h->spec));
    h->spec->subscribes = calloc(1, sizeof(char *));
    h->spec->subscribes[0] = strdup(pattern);
    h->spec->n_subscribes = 1;
    return h;
}

/* S1-25 */
static void the_router_learns_and_forgets(void **state)
{
    struct metrics *m = metrics_new();
    struct handler *all[2] = {subscriber(m, "a", "*"),
                              subscriber(m, "b", "order.*")};
    struct router *r = router_new();
    char type[32];

    (void)state;
    router_set(r, all, 2);
    assert_int_equal(router_match(r, SLICE_LIT("order.paid"))->n, 2);
    assert_int_equal(router_match(r, SLICE_LIT("BidWon"))->n, 1);
    for (int i = 0; i < 20000; i++) { /* more types than are kept */
        snprintf(type, sizeof(type), "order.t%d", i);
        assert_int_equal(router_match(r, slice_of(type))->n, 2);
    }
    all[1]->is_removed = true;
    router_set(r, all, 2);
    assert_int_equal(router_match(r, SLICE_LIT("order.paid"))->n, 1);
    router_free(r);
    handler_free(all[0]);
    handler_free(all[1]);
    metrics_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(subscriptions_match_by_segment),
        cmocka_unit_test(an_exclusion_wins_over_the_rest_of_the_list),
        cmocka_unit_test(a_senseless_pattern_is_refused_with_a_reason),
        cmocka_unit_test(ranges_are_a_set),
        cmocka_unit_test(a_bucket_gives_its_rate_and_no_more),
        cmocka_unit_test(another_rate_finds_a_bucket_that_fits),
        cmocka_unit_test(backoff_grows_to_its_cap_with_jitter_below),
        cmocka_unit_test(the_runtime_flag_decides_but_off_wins_for_all),
        cmocka_unit_test(the_router_learns_and_forgets),
    };

    return cmocka_run_group_tests_name("core", tests, NULL, NULL);
}
