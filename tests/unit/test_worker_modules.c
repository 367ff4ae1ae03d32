/* text, time, uuid, crypto, patterns, metric: expressions and what they give. */
#include "worker_harness.h"

#include <unistd.h>

static const struct {
    const char *expression, *expected;
} cases[] = {
    {"text.trim(' \\t a b \\n')", "a b"},
    {"text.trim('   ')", ""},
    {"#text.trim((' '):rep(1e5) .. 'x' .. (' '):rep(1e5))", "1"},
    {"table.concat(text.split('a,b,,c', ','), '|')", "a|b||c"},
    {"table.concat(text.split('a,b,c', ',', 2), '|')", "a|b,c"},
    {"table.concat(text.split('', ','), '|')", ""},
    {"text.redact('ann.b+x@mail.example.com')", "***"},
    {"text.redact('Call +1 (212) 555-0123 now')", "Call *** now"},
    {"text.redact('order 12 of 2026, a@b')", "order 12 of 2026, a@b"},
    {"text.redact('4111 1111 1111 1111')", "***"},
    {"text.redact('(212) 555-0123 ((1) (2))')", "***))"},
    {"#text.redact(('('):rep(3e5))", "300000"},
    {"#text.redact(('( '):rep(2e5) .. '1')", "400001"},
    {"text.starts_with('abc', 'ab')", "true"},
    {"text.starts_with('abc', 'abcd')", "false"},
    {"text.ends_with('abc', 'bc')", "true"},
    {"time.parse('2026-03-01T10:15:00.25Z') / 1e6", "1772360100.25"},
    {"time.parse('2026-03-01T12:15:00+02:00') / 1e6", "1772360100"},
    {"select('#', time.parse('never'))", "2"},
    {"time.format(1772360100250000)", "2026-03-01T10:15:00.250000Z"},
    {"time.format(1772360100250000, 'America/New_York')",
     "2026-03-01T05:15:00.250000-05:00"},
    {"time.format(1782360100000000, 'America/New_York')",
     "2026-06-25T00:01:40.000000-04:00"},
    {"time.format(1772360100000000, 'Asia/Kolkata')",
     "2026-03-01T15:45:00.000000+05:30"},
    {"time.format(4102444800000000, 'Europe/Berlin')",
     "2100-01-01T01:00:00.000000+01:00"},
    {"time.format(4118083200000000, 'Europe/Berlin')",
     "2100-07-01T02:00:00.000000+02:00"},
    {"time.format(4118083200000000, 'Australia/Sydney')",
     "2100-07-01T10:00:00.000000+10:00"},
    {"time.format(-1000000, 'UTC')", "1969-12-31T23:59:59.000000+00:00"},
    {"time.in_zone(1772360100250000, 'America/New_York').hour", "5"},
    {"time.in_zone(1772360100250000, 'America/New_York').wday", "7"},
    {"(select(2, time.in_zone(0, 'Mars/Base'))).code", "time_zone"},
    {"(select(2, time.in_zone(0, '../../etc/passwd'))).code", "time_zone"},
    {"(function() for i = 1, 2500 do time.in_zone(0, 'No/Zone' .. i) end "
     "return time.in_zone(0, 'Asia/Tokyo').hour end)()",
     "9"},
    {"(select(2, time.in_zone(0, 'Asia//Tokyo'))).code", "time_zone"},
    {"uuid.v5('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'www.example.com')",
     "2ed6657d-e927-568b-95e1-2665a8aea6a2"},
    {"#uuid.v4() .. uuid.v4():sub(15, 15)", "364"},
    {"uuid.v7():sub(15, 15)", "7"},
    {"uuid.v4() == uuid.v4()", "false"},
    {"crypto.hex(crypto.hash('sha256', 'abc'))",
     "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"crypto.hex(crypto.hash('sha1', 'abc'))",
     "a9993e364706816aba3e25717850c26c9cd0d89d"},
    {"crypto.hex(crypto.hmac('sha256', 'Jefe', 'what do ya want for "
     "nothing?'))",
     "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
    {"crypto.base64('any carnal pleas')", "YW55IGNhcm5hbCBwbGVhcw=="},
    {"#crypto.random(16)", "16"},
    {"crypto.equal('a', 'a')", "true"},
    {"crypto.equal('a', 'b')", "false"},
    {"crypto.equal('a', 'ab')", "false"},
    /* patterns: as Lua's own */
    {"('hello'):find('l+')", "3"},
    {"('hello'):find('xyz')", "nil"},
    {"('a.b'):find('.', 1, true)", "2"},
    {"('key = value'):match('^(%w+)%s*=%s*(%w+)$')", "key"},
    {"('  x  '):match('^%s*(.-)%s*$') .. '|'", "x|"},
    {"('THE (quick) fox'):find('%((%a+)%)')", "5"},
    {"('f(a(b)c)d'):match('%b()')", "(a(b)c)"},
    {"('THE fox'):match('%f[%a]%a+$')", "fox"},
    {"('abc'):match('()b()')", "2"},
    {"('abab'):match('(a)(b)%1%2')", "a"},
    {"('[x]'):match('[%[x%]]+')", "[x]"},
    {"('a-z'):match('[a%-z]+')", "a-z"},
    {"(('hello'):gsub('l', 'L'))", "heLLo"},
    {"(('hello'):gsub('', '-'))", "-h-e-l-l-o-"},
    {"(('hello world'):gsub('(%w+)', '<%1>'))", "<hello> <world>"},
    {"(('hello'):gsub('l', '%0%0', 1))", "helllo"},
    {"(('$name is $age'):gsub('%$(%w+)', { name = 'Ann', age = 5 }))",
     "Ann is 5"},
    {"(('abc'):gsub('%w', function(c) return c:upper() end))", "ABC"},
    {"(('abc'):gsub('^a', 'x'))", "xbc"},
    {"(('abc'):gsub('b*', function() return '-' end))", "-a--c-"},
    {"(function() local n = 0 for a, b in ('a=1 b=2'):gmatch('(%w)=(%w)') do "
     "n = n + b end return n end)()",
     "3"},
    {"(function() local n = 0 for _ in ('abc'):gmatch('') do n = n + 1 end "
     "return n end)()",
     "4"},
    {"pcall(string.find, 'a', '[a')", "false"},
    {"pcall(string.find, 'a', '%')", "false"},
    {"pcall(string.rep)", "false"},
    {"(function() local t = { 5, 2, 8, 1 } table.sort(t) return "
     "table.concat(t) end)()",
     "1258"},
    {"(function() local t = {} for i = 1, 999 do t[i] = (i * 7919) % 1009 end "
     "table.sort(t, function(a, b) return a > b end) for i = 2, #t do "
     "if t[i - 1] < t[i] then return 'unsorted' end end return 'ok' end)()",
     "ok"},
    {"(function() local t = { 1, 2 } table.insert(t, 2, 9) table.insert(t, 7) "
     "return table.concat(t) .. table.remove(t) .. table.remove(t, 1) end)()",
     "192771"},
    {"ctx.idempotency_key('mail')", "e-1:probe:mail"},
    {"ctx.idempotency_key() .. ctx.idempotency_key()",
     "e-1:probe:0e-1:probe:1"},
    {"ctx.handler .. ctx.version .. ctx.attempt .. ctx.mode", "probeabc1live"},
    {"ctx.now() > 1.7e9", "true"},
    {"select(2, pcall(function() metric.counter('Bad Name') end)) ~= nil",
     "true"},
    {"pcall(function() metric.counter('x'):inc(1, { nope = 'y' }) end)",
     "false"},
    {"pcall(function() metric.counter('x', { labels = { 'a' } })"
     ":inc(1, { a = 'y' }) end)",
     "true"},
    {"pcall(function() metric.gauge('x'):inc() end)", "false"},
    {"(function() local m = metric.counter('x', { labels = { 7 } }) "
     "for i = 1, 2000 do m.name, m.help = i % 2 + 0.5, i m:inc(1, { ['7'] = i "
     "% 3 }) end return 'ok' end)()",
     "ok"},
    {"os.date('!%Y-%m-%d', 0)", "1970-01-01"},
    {"tostring(tostring) == nil", "false"},
};

static void test_expressions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *body =
            xasprintf("local text, time, uuid, crypto, metric = "
                      "require('moontide.text'), require('moontide.time'), "
                      "require('moontide.uuid'), require('moontide.crypto'), "
                      "require('moontide.metric') "
                      "return ctx.skip(tostring((%s)))",
                      cases[i].expression);
        char *source = xasprintf(
            "local require = require for _, m in ipairs { 'text', 'time', "
            "'uuid', 'crypto', 'metric' } do require('moontide.' .. m) end "
            "return { handle = function(event, ctx) %s end }",
            body);
        struct seen seen = run_once(source, "{}", "{}");

        free(body);
        free(source);
        if (seen.verdict != VERDICT_SKIP ||
            strcmp(seen.reason, cases[i].expected) != 0)
            fail_msg("%s: %s", cases[i].expression, seen.reason);
    }
}

/* What goes to stderr while the handler runs. */
static void logged_by(const char *body, const char *payload, char *out,
                      size_t size)
{
    FILE *file = tmpfile();
    int before = dup(STDERR_FILENO);
    size_t len;

    assert_non_null(file);
    dup2(fileno(file), STDERR_FILENO);
    run_body(body, payload);
    dup2(before, STDERR_FILENO);
    close(before);
    rewind(file);
    len = fread(out, 1, size - 1, file);
    out[len] = '\0';
    fclose(file);
}

/* An object of an event is a table to handlers, also here. */
static void test_objects_of_events_are_fields(void **state)
{
    char out[2000];

    (void)state;
    logged_by("ctx.log.info('got', event.payload)",
              "{\"order\":\"o-1\",\"items\":[1,2],\"none\":null}", out,
              sizeof(out));
    assert_non_null(strstr(out, "order=\"o-1\""));
    assert_non_null(strstr(out, "items=[1,2]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),
        cmocka_unit_test(test_objects_of_events_are_fields),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
