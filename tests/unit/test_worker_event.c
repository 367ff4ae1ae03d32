/* Events and JSON in Lua: lazy, lossless, byte for byte. */
#include "worker_harness.h"

static const char payload[] =
    "{ \"z\":1,\"a\": 9007199254740993, \"none\":null, \"list\":[1, null, "
    "3.10],"
    "\"empty\":[],\"obj\":{\"deep\":{\"x\":\"\\u00e9\\n\"}},"
    "\"big\":18446744073709551615,\"huge\":123456789012345678901234567890,"
    "\"price\":1.10,\"yes\":true }";

static const struct {
    const char *body; /* returns what is expected to be equal */
    const char *expected;
} cases[] = {
    /* integers beyond 2^53 */
    {"tostring(p.a)", "9007199254740993"},
    {"tostring(p.a + 1)", "9007199254740994"},
    {"tostring(p.a > 9007199254740992)", "true"},
    {"tostring(p.big)", "18446744073709551615"},
    {"type(p.a)", "cdata"},
    {"json.text(p, 'huge')", "123456789012345678901234567890"},
    {"type(p.huge)", "number"},
    {"json.encode(json.decode('[9007199254740993]'))", "[9007199254740993]"},
    /* null */
    {"tostring(p.none)", "nil"},
    {"tostring(json.is_null(p, 'none'))", "true"},
    {"tostring(json.is_null(p, 'nothing'))", "false"},
    {"tostring(json.is_null(p.list, 2))", "true"},
    {"tostring(json.is_null(p.list, 1))", "false"},
    {"tostring(p.list[3])", "3.1"},
    {"json.encode(p.list)", "[1,null,3.10]"},
    {"json.encode({ x = json.null })", "{\"x\":null}"},
    /* empty arrays, objects, order */
    {"json.encode(p.empty)", "[]"},
    {"json.encode({})", "{}"},
    {"json.encode(json.array {})", "[]"},
    {"json.encode(json.decode('{\"b\":1,\"a\":2}'))", "{\"b\":1,\"a\":2}"},
    /* byte for byte */
    {"tostring(json.encode(p) == event.raw)", "true"},
    {"tostring(event.raw == body)", "true"},
    {"json.encode(p.obj)", "{\"deep\":{\"x\":\"\\u00e9\\n\"}}"},
    {"json.text(p, 'price')", "1.10"},
    {"(function() p.obj.deep.x = nil return json.encode(p.obj) end)()",
     "{\"deep\":{}}"},
    {"(function() p.obj.deep.y = 1 return json.encode(p.obj) end)()",
     "{\"deep\":{\"x\":\"\\u00e9\\n\",\"y\":1}}"},
    {"(function() p.obj.deep.x = p.obj.deep.x return json.encode(p.obj) "
     "end)()",
     "{\"deep\":{\"x\":\"é\\n\"}}"},
    {"(function() p.list[1] = 7 return json.encode(p.list) end)()",
     "[7,null,3.10]"},
    {"(function() p.none = nil p.z = json.null "
     "return tostring(json.is_null(p, 'z')) .. tostring(p.z) end)()",
     "truenil"},
    {"(function() local l = json.decode('{\"l\":[1,null]}') l.l[3] = 'x' "
     "return json.encode(l) end)()",
     "{\"l\":[1,null,\"x\"]}"},
    {"(function() local l = json.decode('[null,null]') l[3] = 'x' l[4] = 'y' "
     "return json.encode(l) end)()",
     "[null,null,\"x\",\"y\"]"},
    {"(function() p.obj[5] = 'five' return json.encode(p.obj) end)()",
     "{\"deep\":{\"x\":\"\\u00e9\\n\"},\"5\":\"five\"}"},
    {"json.encode({ [1.5] = 1 })", "{\"1.5\":1}"},
    {"#json.encode({ [1.5] = 1, [2.5] = 2 })", "17"},
    /* like tables */
    {"type(p)", "table"},
    {"type(p.list)", "table"},
    {"tostring(p == event.payload)", "true"},
    {"tostring(p.obj == p.obj)", "true"},
    {"p.obj.deep.x", "é\n"},
    {"(function() local k = {} for key in pairs(p) do k[#k + 1] = key end "
     "return table.concat(k, ' ') end)()",
     "z a list empty obj big huge price yes"},
    {"(next(p))", "z"},
    {"(next(p, 'z'))", "a"},
    {"tostring(next(p, 'yes'))", "nil"},
    {"tostring(next(json.decode('{}')))", "nil"},
    {"(function() local n = 0 for _ in ipairs(p.list) do n = n + 1 end return "
     "tostring(n) end)()",
     "1"},
    {"(function() p.added = 1 local last for k in pairs(p) do last = k end "
     "return last end)()",
     "added"},
    /* a loop inside a loop over the same object, one left early, and next()
     * with a key from elsewhere */
    {"(function() local n = 0 for k in pairs(p) do for j in pairs(p) do "
     "n = n + 1 end end return tostring(n) end)()",
     "81"},
    {"(function() for k in pairs(p) do if k == 'list' then break end end "
     "local k = {} for key in pairs(p) do k[#k + 1] = key end "
     "return #k .. next(p, 'list') .. next(p, 'z') end)()",
     "9emptya"},
    {"(function() p.one = 1 p.two = 2 local k = {} for a in pairs(p) do "
     "for b in pairs(p) do if b == 'two' then k[#k + 1] = a end end end "
     "return #k .. k[10] .. k[11] end)()",
     "11onetwo"},
    {"tostring(select(2, pcall(next, p, 'nothing')))", "invalid key to 'next'"},
    {"(function() p.added = 1 p.more = 2 for k in pairs(p) do p[k] = nil end "
     "return json.encode(p) end)()",
     "{\"none\":null}"},
    {"(function() local o = json.decode('{\"a\":1,\"b\":2}') o.c = 3 local n = "
     "0 "
     "for k in pairs(o) do o[k] = nil for _ in pairs(o) do n = n + 1 end end "
     "return json.encode(o) .. n end)()",
     "{}3"},
    {"(function() local o, n = json.decode('{\"a\":1,\"a\":2,\"b\":3}'), 0 "
     "for _ in pairs(o) do for _ in pairs(o) do n = n + 1 end end "
     "return tostring(n < 10) end)()",
     "true"},
    {"(function() for i = 1, 3000 do p['k' .. i] = i end local n = 0 "
     "for _ in pairs(p) do n = n + 1 end return tostring(n) end)()",
     "3009"},
    {"tostring(pcall(next, p, 'nobody'))", "false"},
    {"tostring(rawget(p, 'z'))", "1"},
    {"tostring(#p)", "0"},
    {"tostring(p.nothing)", "nil"},
    {"tostring(p[1])", "nil"},
    /* the event */
    {"event.id", "e-1"},
    {"event.type", "order.paid"},
    {"event.aggregate_type .. event.aggregate_id", "Ordero-1"},
    {"tostring(event.version)", "2"},
    {"tostring(event.attempt)", "1"},
    {"tostring(event.aggregate_version)", "nil"},
    {"event.occurred_at", "2026-03-01T10:15:00.250000Z"},
    {"tostring(event.occurred_at_us)", "1.77236010025e+15"},
    {"event.source.kind .. event.source.topic .. event.source.partition .. "
     "event.source.offset",
     "kafkaorders37"},
    {"event.raw:sub(1, 6) .. event.raw:sub(-1)", "{ \"z\":}"},
    {"type(event.metadata)", "table"},
    {"type(event)", "table"},
    {"(function() local n = 0 for k in pairs(event) do n = n + 1 end return "
     "tostring(n) end)()",
     "12"},
    /* what cannot be written */
    {"tostring(select(2, pcall(json.encode, { f = print })))",
     "json.encode: cannot write function as JSON"},
    {"tostring(select(2, pcall(json.encode, 0/0)))",
     "json.encode: cannot write nan as JSON"},
    {"tostring(select(2, pcall(json.encode, '\\255')))",
     "json.encode: cannot write a string that is not UTF-8 as JSON"},
    {"(function() local t = {} t.t = t return tostring(select(2, "
     "pcall(json.encode, t))) end)()",
     "json.encode: cannot write a value nested this deep (a cycle?) as JSON"},
    {"tostring((json.decode('{')))", "nil"},
    {"(select(2, json.decode('{'))).class", "permanent"},
    {"json.encode { raw = json.raw '{\"x\": 1.0}' }", "{\"raw\":{\"x\": 1.0}}"},
    {"json.encode(1e100)", "1e+100"},
    {"json.encode(0.1)", "0.1"},
    {"json.encode(-0.0)", "0"},
    {"json.encode('a\\0b')", "\"a\\u0000b\""},
};

static void check(const char *expression, const char *body,
                  const char *expected)
{
    char *code = xasprintf("local json = require('moontide.json') "
                           "local p = event.payload local body = [==[%s]==] "
                           "return ctx.skip(%s)",
                           body, expression);
    struct seen seen = run_body(code, body);

    free(code);
    if (seen.verdict != VERDICT_SKIP || strcmp(seen.reason, expected) != 0)
        fail_msg("%s: %s", expression, seen.reason);
}

static void test_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        check(cases[i].body, payload, cases[i].expected);
}

static void test_undecodable_is_dead(void **state)
{
    static const char *const bad[] = {
        "{",         "{\"a\":}",        "[1,]", "nul", "{} x",
        "\"\\ud800", "{\"a\":\"\xff\"}"};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct seen seen = run_body("local x = event.payload", bad[i]);

        assert_int_equal(seen.verdict, VERDICT_DEAD);
        assert_int_equal(seen.class, CLASS_UNDECODABLE);
        assert_non_null(strstr(seen.reason, "the body is not JSON"));
        seen = run_body("pcall(function() return event.payload end)", bad[i]);
        assert_int_equal(seen.class, CLASS_UNDECODABLE);
    }
}

static void test_too_deep_is_undecodable(void **state)
{
    char deep[5000];
    struct seen seen;

    (void)state;
    memset(deep, '[', 2499);
    memset(deep + 2499, ']', 2499);
    deep[4998] = '\0';
    seen = run_body("local x = event.payload", deep);
    assert_int_equal(seen.class, CLASS_UNDECODABLE);
}

/* A value kept beyond its delivery raises, it is not another event's. */
static void test_kept_values_are_over(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h,
                 "local kept, list return { handle = function(event, ctx) "
                 "local p = event.payload "
                 "if not kept then kept, list = p, p.list return end "
                 "local ok, err = pcall(function() return kept.x end) "
                 "return ctx.skip(tostring(ok) .. list[1] .. err) end }",
                 "{}");
    harness_offer(&h, 1, 1, 0, "{\"x\":1,\"list\":[5]}");
    harness_offer(&h, 2, 2, 0, "{\"x\":2,\"list\":[6]}");
    harness_wait(&h, 2);
    assert_non_null(strstr(h.seen[1].reason, "false5"));
    assert_non_null(strstr(h.seen[1].reason, "whose delivery is over"));
    harness_fini(&h);
}

/* The bytes are copied when a delivery waits: the ring's go to the next. */
static void test_values_survive_waiting(void **state)
{
    struct harness h;

    (void)state;
    harness_init(&h,
                 "local timer = require('moontide.timer') "
                 "local json = require('moontide.json') "
                 "return { handle = function(event, ctx) "
                 "local p = event.payload local first = p.obj "
                 "timer.sleep('10ms') "
                 "return ctx.skip(first.x .. p.n .. json.encode(p) .. "
                 "event.raw .. event.id) end }",
                 "{}");
    for (uint32_t i = 0; i < 20; i++) {
        char text[64];

        snprintf(text, sizeof(text), "{\"n\":%u, \"obj\":{\"x\":\"v%u\"}}", i,
                 i);
        harness_offer(&h, i, i, 0, text);
    }
    harness_wait(&h, 20);
    for (int i = 0; i < 20; i++) {
        unsigned n = h.seen[i].slot;
        char text[200];

        snprintf(text, sizeof(text),
                 "v%u%u{\"n\":%u, \"obj\":{\"x\":\"v%u\"}}{\"n\":%u, "
                 "\"obj\":{\"x\":\"v%u\"}}e-1",
                 n, n, n, n, n, n);
        assert_string_equal(h.seen[i].reason, text);
    }
    harness_fini(&h);
}

static void offer_envelope(struct harness *h, enum body_form form,
                           const char *text)
{
    struct offer o = harness_event(1, 1, text);

    memset(o.m.facts, 0, sizeof(o.m.facts));
    o.m.form = form;
    harness_give(h, &o);
    harness_wait(h, 1);
}

static void test_facts_from_envelopes(void **state)
{
    static const char source[] =
        "return { handle = function(event, ctx) return ctx.skip(table.concat({"
        "event.id, event.type, event.aggregate_type, event.aggregate_id, "
        "event.version, event.occurred_at, event.payload.x, "
        "event.metadata.correlationId, event.correlation_id, event.raw }, "
        "' ')) end }";
    static const char expected[] =
        "7 order.paid Order o-1 3 2026-01-01T00:00:00Z 5 c-1 c-1 {\"x\" :5}";
    struct harness h;

    (void)state;
    harness_init(&h, source, "{}");
    offer_envelope(&h, BODY_NATIVE,
                   "{\"id\":\"7\",\"eventType\":\"order.paid\","
                   "\"eventVersion\":3,\"aggregateType\":\"Order\","
                   "\"aggregateId\":\"o-1\",\"occurredAt\":"
                   "\"2026-01-01T00:00:00Z\",\"payload\":{\"x\" :5},"
                   "\"metadata\":{\"correlationId\":\"c-1\"}}");
    assert_string_equal(h.seen[0].reason, expected);
    harness_fini(&h);
    harness_init(&h, source, "{}");
    offer_envelope(&h, BODY_CLOUDEVENTS,
                   "{\"specversion\":\"1.0\",\"id\":\"7\",\"type\":"
                   "\"order.paid\",\"dataversion\":\"3\",\"aggregatetype\":"
                   "\"Order\",\"subject\":\"o-1\",\"time\":"
                   "\"2026-01-01T00:00:00Z\",\"data\":{\"x\" :5},"
                   "\"correlationid\":\"c-1\"}");
    assert_string_equal(h.seen[0].reason, expected);
    harness_fini(&h);
}

/* Whatever a producer wrote there, a handler may look into the metadata. */
static void test_metadata_is_a_table(void **state)
{
    static const char *const odd[] = {"null", "7",   "\"text\"",
                                      "true", "[1]", "{}"};

    (void)state;
    for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
        struct harness h;
        struct offer o = harness_event(1, 1, "{}");
        char padded[64] = "";

        snprintf(padded, sizeof(padded), "%s", odd[i]);
        o.m.facts[FACT_METADATA] = (struct slice){padded, strlen(odd[i])};
        harness_init(&h,
                     "local json = require('moontide.json') return { handle ="
                     " function(event, ctx) return ctx.skip("
                     "tostring(event.metadata.x) .. type(event.metadata)"
                     " .. json.encode(event.metadata)) end }",
                     "{}");
        harness_give(&h, &o);
        harness_wait(&h, 1);
        assert_string_equal(h.seen[0].reason, "niltable{}");
        harness_fini(&h);
    }
}

/* What several deliveries share is parsed once; each has values of its
 * own, which end with it. */
static void test_a_shared_record_is_parsed_once(void **state)
{
    struct record *record;
    const uint64_t *tape;
    struct harness h;
    struct offer o;

    (void)state;
    harness_init(&h,
                 "local kept return { handle = function(event, ctx)\n"
                 "  local ok = kept and pcall(function() return kept.n end)\n"
                 "  kept = event.payload\n"
                 "  local was = kept.n kept.n = 99\n"
                 "  return ctx.skip(was .. tostring(ok)) end }",
                 "{}");
    o = harness_event(1, 1, "{\"n\":7}");
    record = record_take(&h.rt);
    record->m = o.m;
    unit_offer(h.unit, record, &o.d);
    assert_true(record->is_parsed);
    tape = record->body.tape;
    o.d.slot = o.d.lane = 2;
    unit_offer(h.unit, record, &o.d);
    assert_ptr_equal(record->body.tape, tape);
    assert_int_equal(record->holders, 1);
    record_put(&h.rt, record);
    assert_string_equal(h.seen[0].reason, "7nil");
    assert_string_equal(h.seen[1].reason, "7false");
    harness_fini(&h);
}

/* One handler touched a body that is no JSON; another, that did not, is well. */
static void test_a_broken_body_is_the_one_s_who_touched_it(void **state)
{
    struct record *record;
    struct harness h;
    struct offer o;

    (void)state;
    harness_init(&h,
                 "local first = true return { handle = function(event)\n"
                 "  if first then first = false return event.payload.n end\n"
                 "end }",
                 "{}");
    o = harness_event(1, 1, "{\"n\":");
    record = record_take(&h.rt);
    record->m = o.m;
    unit_offer(h.unit, record, &o.d);
    o.d.slot = o.d.lane = 2;
    unit_offer(h.unit, record, &o.d);
    record_put(&h.rt, record);
    assert_int_equal(h.seen[0].verdict, VERDICT_DEAD);
    assert_int_equal(h.seen[0].class, CLASS_UNDECODABLE);
    assert_int_equal(h.seen[1].verdict, VERDICT_ACK);
    harness_fini(&h);
}

/* A version is a number, or the text that was given for one. */
static void test_versions_are_numbers_or_text(void **state)
{
    static const char *const versions[][2] = {
        {"2", "number2"},
        {"v2", "stringv2"},
        {"1.10", "string1.10"},
        {"0x10", "string0x10"},
        {"-1", "number-1"},
        {"20260301103000123456", "string20260301103000123456"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(versions) / sizeof(*versions); i++) {
        struct harness h;
        struct offer o = harness_event(1, 1, "{}");

        o.m.facts[FACT_VERSION] = slice_of(versions[i][0]);
        harness_init(&h,
                     "return { handle = function(event, ctx) return"
                     " ctx.skip(type(event.version) .. event.version) end }",
                     "{}");
        harness_give(&h, &o);
        harness_wait(&h, 1);
        assert_string_equal(h.seen[0].reason, versions[i][1]);
        harness_fini(&h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_undecodable_is_dead),
        cmocka_unit_test(test_too_deep_is_undecodable),
        cmocka_unit_test(test_kept_values_are_over),
        cmocka_unit_test(test_values_survive_waiting),
        cmocka_unit_test(test_facts_from_envelopes),
        cmocka_unit_test(test_metadata_is_a_table),
        cmocka_unit_test(test_a_shared_record_is_parsed_once),
        cmocka_unit_test(test_a_broken_body_is_the_one_s_who_touched_it),
        cmocka_unit_test(test_versions_are_numbers_or_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
