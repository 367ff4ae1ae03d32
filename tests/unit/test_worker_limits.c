/* Time and memory limits, and every kind of error a handler can end with. */
#include "worker_harness.h"

#include "base/clock.h"
#include "worker/vm_internal.h"

#include <unistd.h>

/* Lua that never ends: the hook must stop each, and the next event runs. */
static const char *const endless[] = {
    "while true do end",
    "local i = 0 while true do i = i + 1 end",
    "repeat until false",
    "for i = 1, math.huge do end",
    "local function f() return f() end f()",
    "while true do pcall(function() while true do end end) end",
    "while true do pcall(error, 'x') end",
    "while true do coroutine.wrap(function() while true do end end)() end",
    "while true do local co = coroutine.create(function() end) "
    "coroutine.resume(co) end",
    "local t = {} while true do t[1] = 1 t[1] = nil end",
    "while true do local s = ('x'):rep(10) end",
    "local t = setmetatable({}, { __index = function(t, k) return t[k + 1] "
    "end }) local function f(k) return pcall(function() return t[k] end) end "
    "while true do f(1) end",
    "xpcall(function() while true do end end, function() while true do end "
    "end)",
    "table.sort({ 3, 2, 1 }, function() while true do end end)",
    "local t = {} for i = 1, 3e6 do t[i] = (i * 7919) % 1000003 end "
    "table.sort(t) table.sort(t) table.sort(t)",
    "('x'):gsub('x', function() while true do end end)",
    "tostring(setmetatable({}, { __tostring = function() while true do end "
    "end }))",
    "goto top ::top:: goto top",
};

/* Each of the bodies ends by the same limit, and says so. */
static void assert_each_is_killed(const char *const *bodies, size_t n,
                                  int soft_limit_ms, const char *code,
                                  const char *reason)
{
    for (size_t i = 0; i < n; i++) {
        struct seen seen = run_body_limited(bodies[i], "{}", soft_limit_ms);

        assert_end(bodies[i], &seen, VERDICT_RETRY, CLASS_LIMIT, reason);
        assert_string_equal(seen.reason, reason);
        assert_string_equal(seen.code, code);
    }
}

static void test_endless_loops_end(void **state)
{
    (void)state;
    assert_each_is_killed(endless, sizeof(endless) / sizeof(*endless), 0,
                          "time", "killed: soft time limit 100ms");
}

static const char *const bombs[] = {
    "local t = {} while true do t[#t + 1] = {} end",
    "local s = 'x' while true do s = s .. s end",
    "local t = {} while true do t[#t + 1] = ('x'):rep(1e6) .. #t end",
    "local s = ('x'):rep(1e9)",
    "local t = {} while true do t[#t + 1] = function() return t end end",
    "local t = {} while true do t[#t + 1] = coroutine.create(function() end) "
    "end",
    "local t = {} for i = 1, 1e6 do t[i] = 'abcdefgh' .. i end "
    "while true do t[#t + 1] = table.concat(t) end",
};

/* No time limit comes before the one of memory, however slow the machine. */
/* Longer than the limit, without using the processor. */
static int l_starve(lua_State *L)
{
    int64_t until = clock_mono_us() + 500000;

    (void)L;
    while (clock_mono_us() < until)
        usleep(10000);
    return 0;
}

/* As LuaJIT does now and then by itself while it unwinds an error. */
static int l_lose_hook(lua_State *L)
{
    while (atomic_load(&vm_of(L)->hook) != HOOK_SET)
        continue;
    lua_sethook(L, NULL, 0, 0);
    return 0;
}

static void test_a_hook_that_got_lost_is_set_again(void **state)
{
    struct harness h;
    lua_State *L;

    (void)state;
    harness_init_limited(&h,
                         "return { handle = function() lose_hook()"
                         " while true do pcall(error, 'x') end end }",
                         "{}", 100);
    L = unit_vm(h.unit)->L;
    vm_push_ref(L, unit_vm(h.unit), REF_ENV);
    lua_pushcfunction(L, l_lose_hook);
    lua_setfield(L, -2, "lose_hook");
    lua_pop(L, 1);
    harness_offer(&h, 1, 1, 0, "{}");
    harness_wait(&h, 1);
    assert_int_equal(h.seen[0].class, CLASS_LIMIT);
    assert_string_equal(h.seen[0].code, "time");
    harness_fini(&h);
}

/* Time that others had on the processor is not the handler's. */
static void test_a_busy_machine_is_not_the_handler_s_fault(void **state)
{
    struct harness h;
    lua_State *L;

    (void)state;
    harness_init_limited(&h,
                         "return { handle = function() starve()"
                         " for i = 1, 1000 do end end }",
                         "{}", 100);
    L = unit_vm(h.unit)->L;
    vm_push_ref(L, unit_vm(h.unit), REF_ENV);
    lua_pushcfunction(L, l_starve);
    lua_setfield(L, -2, "starve");
    lua_pop(L, 1);
    harness_offer(&h, 1, 1, 0, "{}");
    harness_wait(&h, 1);
    assert_int_equal(h.seen[0].verdict, VERDICT_ACK);
    harness_fini(&h);
}

static void test_memory_bombs_end(void **state)
{
    (void)state;
    assert_each_is_killed(bombs, sizeof(bombs) / sizeof(*bombs), 60000,
                          "memory", "killed: memory limit 64MiB");
}

/* A vm that hit a limit is replaced: what it had is gone, the next event runs
 * in a new one. */
static void test_replaced_after_a_limit(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h,
                 "local n = 0 return { handle = function(event, ctx) "
                 "n = n + 1 if event.payload.loop then while true do end end "
                 "return ctx.skip(tostring(n)) end }",
                 "{}");
    harness_offer(&h, 1, 1, 0, "{}");
    harness_offer(&h, 2, 2, 0, "{\"loop\":true}");
    harness_offer(&h, 3, 3, 0, "{}");
    harness_wait(&h, 3);
    assert_string_equal(h.seen[0].reason, "1");
    assert_int_equal(h.seen[1].class, CLASS_LIMIT);
    assert_string_equal(h.seen[2].reason, "1");
    harness_fini(&h);
}

/* What waits in the old vm ends there. */
static void test_suspended_survive_a_replacement(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h,
                 "local timer = require('moontide.timer') local n = 0 "
                 "return { handle = function(event, ctx) n = n + 1 "
                 "if event.payload.loop then while true do end end "
                 "timer.sleep('30ms') return ctx.skip(tostring(n)) end }",
                 "{}");
    harness_offer(&h, 1, 1, 0, "{}");
    harness_offer(&h, 2, 2, 0, "{\"loop\":true}");
    harness_wait(&h, 2);
    assert_int_equal(h.seen[0].slot, 2);
    assert_int_equal(h.seen[1].slot, 1);
    assert_string_equal(h.seen[1].reason, "2");
    harness_fini(&h);
}

static void test_wall_timeout(void **state)
{
    struct seen seen = run_once("return { handle = function() "
                                "require('moontide.timer').sleep('1h') end }",
                                "{\"timeout_ms\":30}", "{}");

    (void)state;
    assert_int_equal(seen.verdict, VERDICT_RETRY);
    assert_string_equal(seen.code, "timeout");
    assert_int_equal(seen.class, CLASS_TRANSIENT);
}

static const struct {
    const char *body;
    enum verdict verdict;
    enum error_class class;
    const char *reason;
} ends[] = {
    {"error('boom')", VERDICT_RETRY, CLASS_BUG, "handlers/probe.lua:1: boom"},
    {"error('boom', 0)", VERDICT_RETRY, CLASS_BUG, "boom"},
    {"error()", VERDICT_RETRY, CLASS_BUG, "nil was raised"},
    {"error({})", VERDICT_RETRY, CLASS_BUG, "table: 0x"},
    {"error(42)", VERDICT_RETRY, CLASS_BUG, "42"},
    {"error(true)", VERDICT_RETRY, CLASS_BUG, "true"},
    {"error(print)", VERDICT_RETRY, CLASS_BUG, "function: "},
    {"error(setmetatable({}, { __tostring = function() return 'mine' end }))",
     VERDICT_RETRY, CLASS_BUG, "mine"},
    {"error(setmetatable({}, { __tostring = function() error('x') end }))",
     VERDICT_RETRY, CLASS_BUG, "whose __tostring fails"},
    {"error(setmetatable({}, { __tostring = function() return {} end }))",
     VERDICT_RETRY, CLASS_BUG, "whose __tostring fails"},
    {"local x = nil + 1", VERDICT_RETRY, CLASS_BUG, "attempt to perform"},
    {"local _, e = require('moontide.json').decode('{') error(e)",
     VERDICT_RETRY, CLASS_PERMANENT, "JSON"},
    {"local _, e = require('moontide.json').decode('{') return ctx.dead(e)",
     VERDICT_DEAD, CLASS_PERMANENT, "JSON"},
    {"return 5", VERDICT_RETRY, CLASS_BUG, "handle returned a number"},
    {"return {}", VERDICT_RETRY, CLASS_BUG, "handle returned a table"},
    {"ctx.retry('x')", VERDICT_RETRY, CLASS_BUG, "neither returned nor raised"},
    {"return ctx.retry('x', '5s')", VERDICT_RETRY, CLASS_TRANSIENT, "x"},
    {"error(ctx.dead('x'))", VERDICT_DEAD, CLASS_PERMANENT, "x"},
    {"pcall(error, ctx.skip('x'))", VERDICT_RETRY, CLASS_BUG, "neither"},
    {"return ctx.skip('x')", VERDICT_SKIP, CLASS_PERMANENT, "x"},
    {"return ctx.snooze('1m', 'x')", VERDICT_SNOOZE, CLASS_TRANSIENT, "x"},
    {"return ctx.snooze('8d', 'x')", VERDICT_RETRY, CLASS_BUG, "7 days"},
    {"ctx.retry()", VERDICT_RETRY, CLASS_BUG, "needs a reason"},
    {"return ctx.retry('x', 'soon')", VERDICT_RETRY, CLASS_BUG, "a duration"},
    {"local function f() f() end f()", VERDICT_RETRY, CLASS_BUG,
     "stack overflow"},
    {"local function f() coroutine.wrap(f)() end f()", VERDICT_RETRY, CLASS_BUG,
     "too many nested coroutines"},
    {"local function f() ('x'):gsub('x', f) end f()", VERDICT_RETRY, CLASS_BUG,
     "stack overflow"},
    {"local function f() table.sort({ 1, 2 }, f) end f()", VERDICT_RETRY,
     CLASS_BUG, "stack overflow"},
    {"local p = ('a?'):rep(30) .. ('a'):rep(30) ; (('a'):rep(30)):find(p)",
     VERDICT_RETRY, CLASS_BUG, "pattern too complex"},
};

static void test_every_kind_of_end(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        char *body = xasprintf("local _ = 0 ; %s", ends[i].body);
        struct seen seen = run_body(body, "{}");

        free(body);
        assert_end(ends[i].body, &seen, ends[i].verdict, ends[i].class,
                   ends[i].reason);
    }
}

static void test_huge_error_is_cut(void **state)
{
    struct seen seen = run_body("error(('x'):rep(1e7), 0)", "{}");

    (void)state;
    assert_int_equal(strlen(seen.reason), REASON_MAX);
}

static void test_traceback_names_the_line(void **state)
{
    struct seen seen =
        run_body("local function deep() error('x') end deep()", "{}");

    (void)state;
    assert_non_null(strstr(seen.traceback, "in function 'deep'"));
}

static size_t used_after(struct harness *h, int deliveries)
{
    int n = h->n_seen;

    for (int i = 0; i < deliveries; i++) {
        harness_offer(h, 1, (uint64_t)i % 50, 0, "{}");
        if (i % 50 == 49)
            harness_wait(h, n + i + 1);
    }
    for (int i = 0; i < 3; i++)
        lua_gc(unit_vm(h->unit)->L, LUA_GCCOLLECT, 0);
    return unit_vm(h->unit)->used;
}

/* A VM lives for weeks: what a delivery leaves behind adds up. */
static void test_transactions_leave_nothing_behind(void **state)
{
    static const char *const decls[] = {
        "{\"transaction\":true,\"allow\":{\"mail\":true}}",
        "{\"transaction\":true}", /* shared ones */
    };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct harness h;
        size_t before, after;

        harness_init(&h,
                     "return { handle = function(event, ctx)"
                     " ctx.tx:exec('SELECT 1') end }",
                     decls[i]);
        h.rt.mode = MODE_TEST;
        before = used_after(&h, 200);
        after = used_after(&h, 2000);
        assert_int_equal(h.n_seen, 2200);
        assert_int_equal(h.seen[0].verdict, VERDICT_ACK);
        if (after > before + 10000)
            fail_msg("2000 deliveries left %zu bytes", after - before);
        harness_fini(&h);
    }
}

/* A worker may have to end while deliveries wait: they are given back. */
static void test_ending_while_deliveries_wait(void **state)
{
    static const char *const decls[] = {
        "{}", "{\"batch\":{\"max\":2,\"wait_ms\":0}}"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct harness h;

        harness_init(&h,
                     i ? "return { handle_batch = function()"
                         " require('moontide.timer').sleep(60) end }"
                       : "return { handle = function()"
                         " require('moontide.timer').sleep(60) end }",
                     decls[i]);
        assert_true(h.is_loaded);
        harness_offer(&h, 1, 1, 0, "{}");
        harness_offer(&h, 2, 1, 0, "{}");
        unit_flush(h.unit);
        assert_int_equal(h.n_seen, 0);
        harness_fini(&h);
    }
}

/* Whatever a delivery has touched, its end needs no memory: out of it outside a
 * protected call is the end of the worker. */
static void test_a_delivery_ends_without_memory(void **state)
{
    static const char *const touched[] = {"payload", "metadata", "source"};

    (void)state;
    for (size_t i = 0; i < sizeof(touched) / sizeof(*touched); i++) {
        char *source = xasprintf("return { handle = function(event, ctx) "
                                 "local it = event.%s "
                                 "require('moontide.timer').sleep(60) "
                                 "return it.x end }",
                                 touched[i]);
        struct harness h;

        harness_init(&h, source, "{\"timeout_ms\":5}");
        for (uint32_t slot = 1; slot <= 12; slot++)
            harness_offer(&h, slot, slot, 0, "{}");
        assert_int_equal(h.n_seen, 0);
        h.rt.vms->limit = 1;
        harness_wait(&h, 12);
        harness_fini(&h);
        free(source);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ending_while_deliveries_wait),
        cmocka_unit_test(test_transactions_leave_nothing_behind),
        cmocka_unit_test(test_a_delivery_ends_without_memory),
        cmocka_unit_test(test_endless_loops_end),
        cmocka_unit_test(test_a_hook_that_got_lost_is_set_again),
        cmocka_unit_test(test_a_busy_machine_is_not_the_handler_s_fault),
        cmocka_unit_test(test_memory_bombs_end),
        cmocka_unit_test(test_replaced_after_a_limit),
        cmocka_unit_test(test_suspended_survive_a_replacement),
        cmocka_unit_test(test_wall_timeout),
        cmocka_unit_test(test_every_kind_of_end),
        cmocka_unit_test(test_huge_error_is_cut),
        cmocka_unit_test(test_traceback_names_the_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
