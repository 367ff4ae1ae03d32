/*
 * The circuit breaker in virtual time, against a plain model of what it is for.
 */
#include "base/digest.h"
#include "base/hash.h"
#include "worker/breaker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SECOND 1000000
#define CALLS  20000

static const struct breaker_policy policy = {
    .rate = 0.5, .calls = 10, .window_us = 30 * SECOND, .open_us = 10 * SECOND};

static void call(struct breaker *b, enum breaker_result result, int64_t now)
{
    uint32_t ticket;

    assert_true(breaker_enter(b, now, &ticket));
    breaker_leave(b, &policy, ticket, result, now, 0);
}

static void it_opens_at_the_rate_and_not_before_enough_calls(void **state)
{
    struct breaker few = {0}, good = {0}, bad = {0};

    (void)state;
    for (int i = 0; i < 9; i++)
        call(&few, BREAKER_FAILED, i);
    assert_int_equal(few.state, BREAKER_CLOSED);
    call(&few, BREAKER_FAILED, 9);
    assert_int_equal(few.state, BREAKER_OPEN);
    for (int i = 0; i < 1000; i++) /* one of three */
        call(&good, i % 3 == 0 ? BREAKER_FAILED : BREAKER_OK, i * 1000);
    assert_int_equal(good.state, BREAKER_CLOSED);
    for (int i = 0; i < 10; i++) /* the tenth is the fifth failure */
        call(&bad, i % 2 ? BREAKER_FAILED : BREAKER_OK, i * 1000);
    assert_int_equal(bad.state, BREAKER_OPEN);
}

static void what_is_long_ago_does_not_count(void **state)
{
    struct breaker b = {0};

    (void)state;
    for (int i = 0; i < 100; i++) /* nine in each thirty seconds */
        call(&b, BREAKER_FAILED, (int64_t)i * 4 * SECOND);
    assert_int_equal(b.state, BREAKER_CLOSED);
}

static void opened(struct breaker *b, int64_t now)
{
    for (int i = 0; i < 10; i++)
        call(b, BREAKER_FAILED, now);
    assert_int_equal(b->state, BREAKER_OPEN);
}

static void one_probe_decides(void **state)
{
    struct breaker b = {0};
    uint32_t probe, other;
    int64_t now = 11 * SECOND;

    (void)state;
    opened(&b, 0);
    assert_false(breaker_enter(&b, 10 * SECOND - 1, &probe));
    assert_int_equal(breaker_wait_us(&b, &policy, 4 * SECOND), 6 * SECOND);
    assert_true(breaker_enter(&b, now, &probe));
    assert_false(breaker_enter(&b, now, &other));
    assert_true(breaker_wait_us(&b, &policy, now) > 0);
    breaker_leave(&b, &policy, probe, BREAKER_FAILED, now, 0);
    assert_int_equal(b.state, BREAKER_OPEN);
    assert_int_equal(b.until_us, now + 10 * SECOND);
    now = b.until_us;
    assert_true(breaker_enter(&b, now, &probe));
    breaker_leave(&b, &policy, probe, BREAKER_UNKNOWN, now, 0);
    assert_true(breaker_enter(&b, now, &probe)); /* so another one is it */
    breaker_leave(&b, &policy, probe, BREAKER_OK, now, 0);
    assert_int_equal(b.state, BREAKER_CLOSED);
    call(&b, BREAKER_FAILED, now); /* what was before is forgotten */
    assert_int_equal(b.state, BREAKER_CLOSED);
}

/* Answers to what was asked before it opened come when it is half open. */
static void late_answers_decide_nothing(void **state)
{
    struct breaker b = {0};
    uint32_t late, probe;

    (void)state;
    assert_true(breaker_enter(&b, 0, &late));
    opened(&b, 0);
    breaker_leave(&b, &policy, late, BREAKER_OK, 1, 0);
    assert_int_equal(b.state, BREAKER_OPEN);
    assert_true(breaker_enter(&b, 20 * SECOND, &probe));
    breaker_leave(&b, &policy, late, BREAKER_OK, 20 * SECOND, 0);
    assert_int_equal(b.state, BREAKER_HALF_OPEN);
    assert_false(breaker_enter(&b, 20 * SECOND, &late));
}

/* --- by chance --------------------------------------------------------------- */

struct world {
    struct breaker b;
    uint64_t seed;
    int64_t now;
    bool is_down;
    struct {
        int64_t at;
        bool failed;
    } log[CALLS];
    int n, from; /* in the log; since it last closed */
    uint32_t tickets[64];
    int under_way, asked_while_open;
};

static uint64_t chance(struct world *w, uint64_t n)
{
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return hash_mix(w->seed, 5) % n;
}

/* Had it reason to open? The window is counted in slices, so up to one of them
 * shorter than said. */
static bool had_reason(const struct world *w)
{
    int calls = 0, failures = 0;

    for (int i = w->from; i < w->n; i++)
        if (w->log[i].at > w->now - policy.window_us - 10) {
            calls++;
            failures += w->log[i].failed;
        }
    return calls >= policy.calls && failures > 0;
}

static void answer(struct world *w)
{
    enum breaker_state before = w->b.state;
    uint32_t ticket = w->tickets[--w->under_way];
    bool failed = w->is_down ? chance(w, 10) < 9 : chance(w, 100) == 0;

    if (ticket == w->b.turn && w->n < CALLS && before == BREAKER_CLOSED) {
        w->log[w->n].at = w->now;
        w->log[w->n++].failed = failed;
    }
    breaker_leave(&w->b, &policy, ticket, failed ? BREAKER_FAILED : BREAKER_OK,
                  w->now, chance(w, UINT32_MAX));
    if (before == BREAKER_CLOSED && w->b.state == BREAKER_OPEN)
        assert_true(had_reason(w));
    if (before != BREAKER_CLOSED && w->b.state == BREAKER_CLOSED) {
        assert_int_equal(before, BREAKER_HALF_OPEN);
        assert_false(failed);
        w->from = w->n;
    }
    if (w->b.state == BREAKER_OPEN && before != BREAKER_OPEN) {
        assert_in_range(w->b.until_us, w->now + 10 * SECOND,
                        w->now + 12 * SECOND);
        w->asked_while_open = 0;
    }
}

static void ask(struct world *w)
{
    enum breaker_state before = w->b.state;
    uint32_t ticket;

    if (!breaker_enter(&w->b, w->now, &ticket)) {
        assert_int_not_equal(before, BREAKER_CLOSED);
        return;
    }
    if (before != BREAKER_CLOSED) { /* alone, and not before it is time */
        assert_true(before == BREAKER_HALF_OPEN || w->now >= w->b.until_us);
        assert_int_equal(++w->asked_while_open, 1);
    }
    w->tickets[w->under_way++] = ticket;
}

static void chance_finds_no_call_that_should_not_be(void **state)
{
    const char *fixed = getenv("MOONTIDE_TEST_SEED");
    uint64_t seed = fixed ? strtoull(fixed, NULL, 10) : random_u64() >> 1;
    struct world *w = calloc(1, sizeof(*w));
    int times_open = 0;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    w->seed = seed;
    for (int i = 0; i < CALLS; i++) {
        bool was_open = w->b.state != BREAKER_CLOSED;

        w->now += (int64_t)chance(w, SECOND / 2);
        if (chance(w, 500) == 0)
            w->is_down = !w->is_down;
        if (w->under_way < 64 && chance(w, 2))
            ask(w);
        else if (w->under_way > 0)
            answer(w);
        times_open += !was_open && w->b.state == BREAKER_OPEN;
    }
    assert_true(times_open > 2);
    w->is_down = false; /* well again: it closes, and soon */
    while (w->under_way > 0)
        answer(w);
    for (int i = 0; i < 2000 && w->b.state != BREAKER_CLOSED; i++) {
        w->now += SECOND / 10;
        ask(w);
        if (w->under_way > 0)
            answer(w);
    }
    assert_int_equal(w->b.state, BREAKER_CLOSED);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_opens_at_the_rate_and_not_before_enough_calls),
        cmocka_unit_test(what_is_long_ago_does_not_count),
        cmocka_unit_test(one_probe_decides),
        cmocka_unit_test(late_answers_decide_nothing),
        cmocka_unit_test(chance_finds_no_call_that_should_not_be),
    };

    return cmocka_run_group_tests_name("breaker", tests, NULL, NULL);
}
