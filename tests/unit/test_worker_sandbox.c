/* Ways out of the sandbox. Each body returns ctx.skip("escaped") when it got
 * somewhere; a clean end or an error is what is wanted. */
#include "worker_harness.h"

static const struct {
    const char *name, *body;
} escapes[] = {
#define GLOBAL(name)                                                 \
    {                                                                \
        "global " name,                                              \
            "if " name " ~= nil then return ctx.skip('escaped') end" \
    }
    GLOBAL("io"),
    GLOBAL("debug"),
    GLOBAL("package"),
    GLOBAL("ffi"),
    GLOBAL("jit"),
    GLOBAL("load"),
    GLOBAL("loadstring"),
    GLOBAL("loadfile"),
    GLOBAL("dofile"),
    GLOBAL("getfenv"),
    GLOBAL("setfenv"),
    GLOBAL("newproxy"),
    GLOBAL("collectgarbage"),
    GLOBAL("module"),
    GLOBAL("gcinfo"),
    GLOBAL("host"),
    GLOBAL("arg"),
    GLOBAL("os.execute"),
    GLOBAL("os.exit"),
    GLOBAL("os.getenv"),
    GLOBAL("os.remove"),
    GLOBAL("os.rename"),
    GLOBAL("os.tmpname"),
    GLOBAL("os.setlocale"),
    GLOBAL("string.dump"),
    GLOBAL("string.gfind"),
    GLOBAL("table.foreach"),
    GLOBAL("_G.io"),
    GLOBAL("_G.debug"),
    GLOBAL("require('string')"),
#undef GLOBAL
    {"require ffi", "require 'ffi' return ctx.skip('escaped')"},
    {"require debug", "require 'debug' return ctx.skip('escaped')"},
    {"require io", "require 'io' return ctx.skip('escaped')"},
    {"require jit", "require 'jit' return ctx.skip('escaped')"},
    {"require our insides",
     "require 'moontide.sandbox' return ctx.skip('escaped')"},
    {"require the runner",
     "require 'moontide.runner' return ctx.skip('escaped')"},
    {"require pattern",
     "require 'moontide.pattern' return ctx.skip('escaped')"},
    {"require a path", "require '../../etc/passwd' return ctx.skip('escaped')"},
    {"string metatable",
     "local mt = getmetatable('') if mt then return ctx.skip('escaped') end"},
    {"string methods have no dump",
     "if ('').dump then return ctx.skip('escaped') end"},
    {"string index is ours",
     "if ('').format ~= string.format then return ctx.skip('escaped') end"},
    {"number metatable",
     "if getmetatable(1) then return ctx.skip('escaped') end"},
    {"function metatable",
     "if getmetatable(print) then return ctx.skip('escaped') end"},
    {"thread metatable", "if getmetatable(coroutine.create(print)) then return "
                         "ctx.skip('escaped') end"},
    {"int64 metatable", "if getmetatable(event.payload.big) then return "
                        "ctx.skip('escaped') end"},
    {"null metatable", "if getmetatable(require('moontide.json').null) then "
                       "return ctx.skip('escaped') end"},
    {"finaliser", "setmetatable({}, {__gc = function() end}) return "
                  "ctx.skip('escaped')"},
    {"event's metatable",
     "if getmetatable(event) then return ctx.skip('escaped') end"},
    {"payload's metatable",
     "if getmetatable(event.payload) then return ctx.skip('escaped') end"},
    {"ctx's metatable",
     "if getmetatable(ctx) then return ctx.skip('escaped') end"},
    {"payload's new metatable",
     "setmetatable(event.payload, {}) return ctx.skip('escaped')"},
    {"event's new metatable",
     "setmetatable(event, {}) return ctx.skip('escaped')"},
    {"array's metatable", "if getmetatable(event.payload.list) then return "
                          "ctx.skip('escaped') end"},
    {"array's new metatable",
     "setmetatable(event.payload.list, {}) return ctx.skip('escaped')"},
    {"changing an event", "event.type = 'x' return ctx.skip('escaped')"},
    {"rawset on an event",
     "rawset(event, 'type', 'x') return ctx.skip('escaped')"},
    {"changing ctx", "ctx.handler = 'x' return ctx.skip('escaped')"},
    {"verdict's metatable", "local v = ctx.ack() local mt = getmetatable(v) "
                            "if type(mt) == 'table' then return "
                            "ctx.skip('escaped') end return v"},
    {"forged verdict", "local v = { kind = 'skip', reason = 'escaped' } "
                       "return v"},
    {"error's metatable",
     "local _, e = require('moontide.json').decode('{') "
     "if type(getmetatable(e)) == 'table' then return ctx.skip('escaped') end"},
    {"coroutine.wrap escape",
     "local co = coroutine.wrap(function() return getfenv end) "
     "if co() then return ctx.skip('escaped') end"},
    {"xpcall with traceback", "xpcall(function() error('x') end, function(e) "
                              "if debug then escaped = true end end) "
                              "if escaped then return ctx.skip('escaped') end"},
    {"os.date with a wild conversion",
     "os.date('%Ez') return ctx.skip('escaped')"},
    {"os.date far away", "os.date('%c', 1e300) return ctx.skip('escaped')"},
    {"table.insert far away",
     "table.insert({}, 2^31, 1) return ctx.skip('escaped')"},
    {"table.remove far away",
     "table.remove({}, 2^31) return ctx.skip('escaped')"},
    {"api yield from a handler",
     "local co = coroutine.create(function() coroutine.yield(1) end) "
     "local ok, v = coroutine.resume(co) if v ~= 1 then return "
     "ctx.skip('escaped') end"},
    {"yield from the delivery itself",
     "coroutine.yield() return ctx.skip('escaped')"},
    {"print is not stdout",
     "if print('x') ~= nil then return ctx.skip('escaped') end"},
    {"globals of modules", "require('moontide.json').encode = nil "
                           "if json then return ctx.skip('escaped') end"},
};

static const char payload[] =
    "{\"big\":9007199254740993,\"list\":[1,2],\"text\":\"x\"}";

static void test_no_escape(void **state)
{
    (void)state;
    assert_true(sizeof(escapes) / sizeof(*escapes) >= 60);
    for (size_t i = 0; i < sizeof(escapes) / sizeof(*escapes); i++) {
        struct seen seen = run_body(escapes[i].body, payload);

        if (seen.verdict == VERDICT_SKIP)
            fail_msg("%s: escaped", escapes[i].name);
        if (seen.verdict != VERDICT_ACK && seen.verdict != VERDICT_RETRY)
            fail_msg("%s: verdict %d", escapes[i].name, (int)seen.verdict);
    }
}

static void test_bytecode_is_refused(void **state)
{
    struct seen seen = run_once("\x1bLJ\x02 garbage", "{}", "{}");

    (void)state;
    assert_int_equal(seen.verdict, VERDICT_COUNT);
    assert_non_null(strstr(seen.reason, "attempt to load"));
}

static void test_syntax_error_names_the_line(void **state)
{
    struct seen seen =
        run_once("return {\n  handle = funktion\n  x }", "{}", "{}");

    (void)state;
    assert_non_null(strstr(seen.reason, "handlers/probe.lua:3:"));
}

static void test_api_while_loading(void **state)
{
    static const char source[] = "require('moontide.timer').sleep(1) return {}";
    struct seen seen = run_once(source, "{}", "{}");

    (void)state;
    assert_end(source, &seen, VERDICT_COUNT, CLASS_COUNT,
               "timer.sleep cannot be called while loading (only in: handle)");
}

static void test_api_inside_a_c_callback(void **state)
{
    static const char body[] =
        "local timer = require('moontide.timer') "
        "local t = setmetatable({}, { __tostring = function() "
        "timer.sleep(1) return 'x' end }) string.format('%s', t)";
    struct seen seen = run_body(body, "{}");

    (void)state;
    assert_end(body, &seen, VERDICT_RETRY, CLASS_BUG,
               "timer.sleep cannot be called inside a callback");
}

/* gsub's and sort's functions are called from Lua: waiting works in them. */
static void test_waiting_in_our_callbacks(void **state)
{
    struct seen seen =
        run_body("local timer = require('moontide.timer') "
                 "local s = ('a b'):gsub('%a', function(c) timer.sleep(0.001) "
                 "return c:upper() end) "
                 "local t = { 3, 1, 2 } table.sort(t, function(a, b) "
                 "timer.sleep(0.001) return a < b end) "
                 "return ctx.skip(s .. t[1] .. t[2] .. t[3])",
                 "{}");

    (void)state;
    assert_string_equal(seen.reason, "A B123");
}

/* Waits pass through coroutines of the handler's own. */
static void test_waiting_in_own_coroutines(void **state)
{
    struct seen seen =
        run_body("local timer = require('moontide.timer') "
                 "local gen = coroutine.wrap(function() for i = 1, 3 do "
                 "timer.sleep(0.001) coroutine.yield(i) end end) "
                 "return ctx.skip(gen() .. gen() .. gen())",
                 "{}");

    (void)state;
    assert_string_equal(seen.reason, "123");
}

/* A coroutine that waits in a call belongs to the delivery that waits: woken
 * by another it would answer that call with whatever it is given. */
static void test_waiting_coroutines_are_not_resumed_by_others(void **state)
{
    static const char source[] =
        "local timer = require('moontide.timer') local sleeper\n"
        "return { handle = function(event, ctx)\n"
        "  if event.payload.first then\n"
        "    sleeper = coroutine.create(function()\n"
        "      return timer.sleep(0.05) end)\n"
        "    local ok, slept = coroutine.resume(sleeper)\n"
        "    return ctx.skip(tostring(ok) .. ' ' .. tostring(slept))\n"
        "  end\n"
        "  local ok, why = coroutine.resume(sleeper, 'stolen')\n"
        "  return ctx.skip(tostring(ok) .. ' ' .. tostring(why))\n"
        "end }";
    struct harness h;

    (void)state;
    harness_init(&h, source, "{}");
    harness_offer(&h, 1, 1, 0, "{\"first\":true}");
    harness_offer(&h, 2, 2, 0, "{}");
    harness_wait(&h, 2);
    assert_int_equal(h.seen[0].slot, 2);
    assert_string_equal(h.seen[0].reason,
                        "false the coroutine waits for a call");
    assert_string_equal(h.seen[1].reason, "true true");
    harness_fini(&h);
}

/* The coroutine of a delivery is the worker's: run by another delivery it
 * would end that one with its own verdict. */
static void test_deliveries_are_not_resumed(void **state)
{
    static const char source[] =
        "local timer = require('moontide.timer') local delivery\n"
        "return { handle = function(event, ctx)\n"
        "  if event.payload.first then\n"
        "    delivery = coroutine.running()\n"
        "    timer.sleep(0.05)\n"
        "    return ctx.skip('first')\n"
        "  end\n"
        "  local ok = coroutine.resume(delivery)\n"
        "  return ctx.dead(tostring(ok))\n"
        "end }";
    struct harness h;

    (void)state;
    harness_init(&h, source, "{}");
    harness_offer(&h, 1, 1, 0, "{\"first\":true}");
    harness_offer(&h, 2, 2, 0, "{}");
    harness_wait(&h, 2);
    assert_int_equal(h.seen[0].slot, 2);
    assert_int_equal(h.seen[0].verdict, VERDICT_DEAD);
    assert_string_equal(h.seen[0].reason, "false");
    assert_int_equal(h.seen[1].slot, 1);
    assert_string_equal(h.seen[1].reason, "first");
    harness_fini(&h);
}

/* What a handler does to its copies of the libraries does not reach ours. */
static void test_our_own_code_keeps_its_functions(void **state)
{
    struct seen seen =
        run_body("local json = require('moontide.json')\n"
                 "string.format = function() return 'mine' end\n"
                 "string.shout = function(s) return s:upper() .. '!' end\n"
                 "json.decode = nil\n"
                 "return ctx.skip(('%d'):format(1) .. ('x'):shout() ..\n"
                 "  string.format('%d', 2) .. "
                 "tostring(require('moontide.json').decode))",
                 "{}");

    (void)state;
    assert_string_equal(seen.reason, "1X!minenil");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waiting_coroutines_are_not_resumed_by_others),
        cmocka_unit_test(test_deliveries_are_not_resumed),
        cmocka_unit_test(test_our_own_code_keeps_its_functions),
        cmocka_unit_test(test_no_escape),
        cmocka_unit_test(test_bytecode_is_refused),
        cmocka_unit_test(test_syntax_error_names_the_line),
        cmocka_unit_test(test_api_while_loading),
        cmocka_unit_test(test_api_inside_a_c_callback),
        cmocka_unit_test(test_waiting_in_our_callbacks),
        cmocka_unit_test(test_waiting_in_own_coroutines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
