/* Reading handler files: what a good one becomes, what a bad one is told, dry
 * runs and specs. */
#include "worker_harness.h"

#include "worker/probe.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/moontide-probe-XXXXXX";

static void write_file(const char *name, const char *text)
{
    char *path = xasprintf("%s/%s", folder, name);
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    free(path);
}

static int make_folders(void **state)
{
    static const char *const names[] = {"handlers", "lua", "lua/billing",
                                        "templates"};

    (void)state;
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char *path = xasprintf("%s/%s", folder, names[i]);

        assert_int_equal(mkdir(path, 0700), 0);
        free(path);
    }
    write_file("lua/billing/tax.lua", "return { rate = 0.19 }\n");
    write_file("lua/loop.lua", "require 'loop'\n");
    write_file("templates/hello.hbs", "Hello {{name}}");
    write_file("secret", "s3cret\n");
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static int remove_folders(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

struct reading {
    struct runtime rt;
    json_t *bundle;
    struct err err;
};

static json_t *request_for(const char *settings)
{
    char *path = xasprintf("%s/handlers/h.lua", folder);
    char *root = xasprintf("%s/lua", folder);
    char *templates = xasprintf("%s/templates", folder);
    json_t *request = json_pack(
        "{s:s, s:s, s:s, s:o, s:{s:i}, s:b}", "path", path, "root", root,
        "templates", templates, "settings", json_loads(settings, 0, NULL),
        "defaults", "max_attempts", 7, "trust_allow", 1);

    free(path);
    free(root);
    free(templates);
    return request;
}

static void reading_init(struct reading *r)
{
    json_t *settings = json_object();

    memset(r, 0, sizeof(*r));
    runtime_init(&r->rt, ev_loop_new(0), settings);
    json_decref(settings);
    assert_true(watchdog_start(watchdog_new(&r->rt, 0), &r->err));
}

static void reading_fini(struct reading *r)
{
    struct watchdog *wd = r->rt.watchdog;
    struct ev_loop *loop = r->rt.loop;

    json_decref(r->bundle);
    runtime_fini(&r->rt);
    watchdog_free(wd);
    ev_loop_destroy(loop);
}

static void read_handler(struct reading *r, const char *source,
                         const char *settings)
{
    json_t *request = request_for(settings);

    reading_init(r);
    write_file("handlers/h.lua", source);
    r->bundle = probe_bundle(&r->rt, request, &r->err);
    json_decref(request);
}

static const json_t *decl(const struct reading *r, const char *name)
{
    return json_object_get(json_object_get(r->bundle, "decl"), name);
}

static void test_a_good_one(void **state)
{
    struct reading r;
    const json_t *retry;

    (void)state;
    read_handler(&r,
                 "local tax = require 'billing.tax'\n"
                 "local t = require('moontide.template').load('hello.hbs')\n"
                 "return {\n  description = 'x', subscribes = 'order.*',\n"
                 "  retry = { base = '1s', cap = '1m' }, timeout = 2.5,\n"
                 "  key = { A = 'payload.x' },\n"
                 "  allow = { http = { 'https://x.example/' }, db = true },\n"
                 "  config = { plain = 5, url = { required = true },\n"
                 "             key = { secret = true } },\n"
                 "  handle = function() return tax, t end,\n}\n",
                 "{\"config\":{\"url\":\"u\"},\"concurrency\":3}");
    if (!r.bundle)
        fail_msg("%s", r.err.msg);
    retry = decl(&r, "retry");
    assert_int_equal(json_integer_value(json_object_get(retry, "base_ms")),
                     1000);
    assert_int_equal(json_integer_value(json_object_get(retry, "max_attempts")),
                     7);
    assert_int_equal(json_integer_value(decl(&r, "timeout_ms")), 2500);
    assert_int_equal(json_integer_value(decl(&r, "concurrency")), 3);
    assert_string_equal(
        json_string_value(json_array_get(decl(&r, "subscribes"), 0)),
        "order.*");
    assert_string_equal(
        json_string_value(json_object_get(decl(&r, "config"), "url")), "u");
    assert_int_equal(
        json_integer_value(json_object_get(decl(&r, "config"), "plain")), 5);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(r.bundle, "modules"),
                                          "billing.tax")),
        "lua/billing/tax.lua");
    assert_string_equal(
        json_string_value(json_object_get(
            json_object_get(r.bundle, "templates"), "hello.hbs")),
        "Hello {{name}}");
    assert_int_equal(json_array_size(json_object_get(r.bundle, "files")), 3);
    assert_int_equal(
        strlen(json_string_value(json_object_get(r.bundle, "version"))), 12);
    reading_fini(&r);
}

#define OK_PARTS "subscribes = { 'a' }, handle = function() end"

static const struct {
    const char *source, *settings, *message;
} bad[] = {
    {"return 5", "{}", "handlers/h.lua:1: a handler file returns a table"},
    {"x = = 1", "{}", "handlers/h.lua:1: unexpected symbol"},
    {"\n\nerror('at load')", "{}", "handlers/h.lua:3: at load"},
    {"return {\n subscribes = { 'a' },\n}", "{}",
     "handle or handle_batch is missing"},
    {"return {\n handle = function() end,\n}", "{}", "subscribes: is missing"},
    {"return {\n " OK_PARTS ",\n\n timout = '5s',\n}", "{}",
     "handlers/h.lua:4: timout: unknown field (did you mean \"timeout\"?)"},
    {"return {\n " OK_PARTS ",\n retry = {\n  bse = '5s' },\n}", "{}",
     "handlers/h.lua:4: retry.bse: unknown field (did you mean \"base\"?)"},
    {"return {\n " OK_PARTS ",\n timeout = 'soon',\n}", "{}",
     "handlers/h.lua:3: timeout: a duration"},
    {"return {\n " OK_PARTS ",\n concurrency = 0,\n}", "{}",
     "handlers/h.lua:3: concurrency: an integer from 1 to 100000"},
    {"return {\n " OK_PARTS ",\n concurrency = 1.5,\n}", "{}",
     "concurrency: an integer"},
    {"return {\n " OK_PARTS ",\n ordering = 'random',\n}", "{}",
     "handlers/h.lua:3: ordering: \"key\", \"partition\", \"none\" expected"},
    {"return {\n " OK_PARTS ",\n breaker = { rate = 2 },\n}", "{}",
     "breaker.rate: a share of the calls expected"},
    {"return {\n " OK_PARTS ",\n breaker = true,\n}", "{}",
     "handlers/h.lua:3: breaker: a table expected, got a boolean"},
    {"return {\n " OK_PARTS ",\n}", "{\"breaker\":{\"opn\":\"1s\"}}",
     "handlers.h.breaker.opn: unknown field (did you mean \"open\"?)"},
    {"return {\n " OK_PARTS ",\n rate = '10/d',\n}", "{}",
     "handlers/h.lua:3: rate: a rate such as \"100/s\""},
    {"return {\n " OK_PARTS ",\n}", "{\"rate\":\"0/s\"}",
     "handlers.h.rate: a rate such as"},
    {"return {\n " OK_PARTS ",\n rate = { rate = '1000/s', burst = 5 },\n}",
     "{}", "rate.burst: at least 40 for this rate"},
    {"return {\n " OK_PARTS ",\n rate = { burst = 5 },\n}", "{}",
     "rate: rate is missing"},
    {"return {\n " OK_PARTS ",\n on_dead = 1,\n}", "{}",
     "on_dead: \"continue\", \"park\", \"stop\" expected"},
    {"return {\n " OK_PARTS ",\n}", "{\"on_dead\":\"never\"}",
     "handlers.h.on_dead: \"continue\", \"park\", \"stop\" expected"},
    {"return {\n " OK_PARTS ",\n replayable = true,\n}", "{}",
     "handlers/h.lua:3: replayable: is not supported by this version"},
    {"return {\n " OK_PARTS ",\n transaction = 'yes',\n}", "{}",
     "transaction: true, false or \"kafka\" expected"},
    {"return {\n " OK_PARTS ",\n allow = { kafka = { 'a b' } },\n}", "{}",
     "allow.kafka: \"a b\" is no name of a topic"},
    {"return {\n " OK_PARTS ",\n start = 'tomorrow',\n}", "{}", "start: "},
    {"return {\n " OK_PARTS ",\n batch = { max = 5 },\n}", "{}",
     "batch: needs handle_batch"},
    {"return {\n subscribes = { 'a' }, handle_batch = print,\n}", "{}",
     "handle_batch: needs batch"},
    {"return {\n subscribes = {}, handle = print,\n}", "{}",
     "subscribes: at least one"},
    {"return {\n subscribes = { 5 }, handle = print,\n}", "{}",
     "subscribes: text expected, got a number"},
    {"return {\n subscribes = { 'a b' }, handle = print,\n}", "{}",
     "\"a b\" is no event type"},
    {"return {\n subscribes = 'a', handle = 5,\n}", "{}",
     "handle: a function expected, got a number"},
    {"return {\n " OK_PARTS ",\n allow = { htp = {} },\n}", "{}",
     "allow.htp: unknown field (did you mean \"http\"?)"},
    {"return {\n " OK_PARTS ",\n allow = { http = { 'ftp://x' } },\n}", "{}",
     "allow.http: \"ftp://x\" is no url prefix"},
    {"return {\n " OK_PARTS ",\n timers = {},\n}", "{}",
     "timers: is not supported by this version"},
    {"return {\n " OK_PARTS ",\n config = { url = { required = true } },\n}",
     "{}", "config.url: is required and not set"},
    {"return {\n " OK_PARTS ",\n config = { n = 5 },\n}",
     "{\"config\":{\"n\":\"x\"}}",
     "handlers.h.config.n: a number expected, got a string"},
    {"return {\n " OK_PARTS ",\n config = { number = 5 },\n}",
     "{\"config\":{\"nmber\":1}}",
     "handlers.h.config.nmber: unknown field (did you mean \"number\"?)"},
    {"return {\n " OK_PARTS ",\n}", "{\"timeout\":\"never\"}",
     "handlers.h.timeout: a duration"},
    {"return {\n " OK_PARTS ",\n}", "{\"tmeout\":\"1s\"}",
     "handlers.h.tmeout: unknown field (did you mean \"timeout\"?)"},
    {"require 'nothing.here'", "{}", "module 'nothing.here' not found"},
    {"require '../secret'", "{}", "not found"},
    {"require 'loop'", "{}", "module 'loop' requires itself"},
    {"require('moontide.template').load('missing.hbs')", "{}",
     "template 'missing.hbs' not found"},
    {"require('moontide.template').load('../secret')", "{}", "not found"},
    {"while true do end", "{}", "killed: soft time limit"},
    {"local t = {} while true do t[#t + 1] = {} end", "{}",
     "killed: memory limit"},
    {"require('moontide.db').query('SELECT 1')", "{}",
     "db.query cannot be called while loading (only in: handle)"},
};

static void assert_refused(const struct reading *r, const char *source,
                           const char *message)
{
    bool says_why = !r->bundle && strstr(r->err.msg, message);

    if (!says_why)
        print_error("%s\n    %s\n", source,
                    r->bundle ? "was accepted" : r->err.msg);
    assert_null(r->bundle);
    assert_true(says_why);
}

static void test_bad_ones(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct reading r;

        read_handler(&r, bad[i].source, bad[i].settings);
        assert_refused(&r, bad[i].source, bad[i].message);
        reading_fini(&r);
    }
}

static void test_secret_from_a_file(void **state)
{
    char *settings =
        xasprintf("{\"config\":{\"key_file\":\"%s/secret\"}}", folder);
    struct reading r;

    (void)state;
    read_handler(&r,
                 "return { subscribes = 'a', handle = print, "
                 "config = { key = { secret = true } } }",
                 settings);
    assert_string_equal(
        json_string_value(json_object_get(decl(&r, "config"), "key")),
        "s3cret");
    assert_string_equal(
        json_string_value(json_array_get(decl(&r, "secrets"), 0)), "key");
    reading_fini(&r);
    free(settings);
}

/* The version is the content: a template's change is another version. */
static void test_version_is_content(void **state)
{
    static const char source[] =
        "local t = require('moontide.template').load('hello.hbs') "
        "return { subscribes = 'a', handle = function() return t end }";
    char versions[3][16];

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct reading r;

        write_file("templates/hello.hbs", i == 2 ? "Bye" : "Hello {{name}}");
        read_handler(&r, source, "{}");
        snprintf(versions[i], sizeof(versions[i]), "%s",
                 json_string_value(json_object_get(r.bundle, "version")));
        reading_fini(&r);
    }
    assert_string_equal(versions[0], versions[1]);
    assert_string_not_equal(versions[1], versions[2]);
    write_file("templates/hello.hbs", "Hello {{name}}");
}

static void test_allow_only_from_settings(void **state)
{
    json_t *request = request_for("{}");
    struct reading r;

    (void)state;
    reading_init(&r);
    write_file("handlers/h.lua", "return { subscribes = 'a', handle = print, "
                                 "allow = { db = true } }");
    json_object_set_new(request, "trust_allow", json_false());
    r.bundle = probe_bundle(&r.rt, request, &r.err);
    assert_int_equal(json_object_size(decl(&r, "allow")), 0);
    json_decref(request);
    reading_fini(&r);
}

/* Effects are written down, not done; later modules come from the bundle. */
/* The file has run before its table is read: what it changed must not decide
 * what the reader writes. */
static void test_a_file_cannot_grant_itself(void **state)
{
    static const char *const tricks[] = {
        "local json = require 'moontide.json' local encode = json.encode\n"
        "json.encode = function(d) d.allow = { db = true } return encode(d) "
        "end",
        "string.find = function() return 1 end",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(tricks) / sizeof(*tricks); i++) {
        char *source =
            xasprintf("%s\nreturn { " OK_PARTS ", subscribes = { 'no type' } }",
                      tricks[i]);
        char *fine = xasprintf("%s\nreturn { " OK_PARTS " }", tricks[i]);
        struct reading r;

        read_handler(&r, fine, "{}");
        if (!r.bundle)
            fail_msg("%s", r.err.msg);
        assert_int_equal(json_object_size(decl(&r, "allow")), 0);
        reading_fini(&r);
        read_handler(&r, source, "{}");
        assert_null(r.bundle);
        reading_fini(&r);
        free(source);
        free(fine);
    }
}

static void test_dry_run(void **state)
{
    struct reading r;
    json_t *request =
        json_loads("{\"events\":[{\"id\":\"1\",\"eventType\":\"a\","
                   "\"payload\":{\"n\":1}},{\"id\":\"2\",\"payload\":{}}]}",
                   0, NULL);
    json_t *answer, *runs;

    (void)state;
    read_handler(&r,
                 "local http = require 'moontide.http' "
                 "return { subscribes = 'a', "
                 "allow = { http = { 'https://x.example/' } }, "
                 "handle = function(event, ctx) "
                 "if not event.payload.n then error('no n', 0) end "
                 "local res = http.post('https://x.example/hook', "
                 "{ json = { n = event.payload.n } }) "
                 "return ctx.skip(ctx.mode .. res.status) end }",
                 "{}");
    r.rt.mode = MODE_RECORD;
    json_object_set(request, "bundle", r.bundle);
    answer = probe_dry_run(&r.rt, request, &r.err);
    runs = json_object_get(answer, "runs");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(runs, 0), "reason")),
        "dry-run200");
    assert_string_equal(
        json_string_value(json_object_get(
            json_array_get(json_object_get(json_array_get(runs, 0), "effects"),
                           0),
            "name")),
        "http.post");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(runs, 1), "reason")),
        "no n");
    json_decref(answer);
    json_decref(request);
    reading_fini(&r);
}

/* A dead letter is the event it was: its form, its facts, its bytes. */
static void test_dry_run_of_letters(void **state)
{
    struct reading r;
    json_t *request = json_loads(
        "{\"letters\":[{\"id\":7,\"eventId\":\"e\",\"format\":\"payload\","
        "\"source\":\"kafka\",\"partition\":\"orders/3\",\"place\":9,"
        "\"facts\":{\"id\":\"e\",\"type\":\"a\",\"metadata\":"
        "\"{\\\"actorId\\\":\\\"me\\\"}\"},\"bodyHex\":\"7b226e223a317d\"},"
        "{\"id\":8,\"format\":\"binary\",\"facts\":{},\"bodyHex\":\"ff00\"}]}",
        0, NULL);
    json_t *answer, *runs;

    (void)state;
    read_handler(&r,
                 "return { subscribes = 'a', handle = function(event, ctx) "
                 "if #event.raw == 2 then error('two bytes', 0) end "
                 "return ctx.skip(table.concat({ event.type, event.payload.n, "
                 "event.metadata.actorId, event.source.topic, "
                 "event.source.offset }, ' ')) end }",
                 "{}");
    r.rt.mode = MODE_RECORD;
    json_object_set(request, "bundle", r.bundle);
    answer = probe_dry_run(&r.rt, request, &r.err);
    runs = json_object_get(answer, "runs");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(runs, 0), "reason")),
        "a 1 me orders 9");
    assert_int_equal(
        json_integer_value(json_object_get(json_array_get(runs, 0), "letter")),
        7);
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(runs, 1), "reason")),
        "two bytes");
    json_decref(answer);
    json_object_set_new(json_array_get(json_object_get(request, "letters"), 1),
                        "bodyHex", json_string("zz"));
    assert_null(probe_dry_run(&r.rt, request, &r.err));
    assert_string_equal(r.err.msg, "letter 2: bodyHex is no hexadecimal");
    json_decref(request);
    reading_fini(&r);
}

static void test_spec(void **state)
{
    json_t *request = request_for("{}"), *answer, *results;
    struct reading r;

    (void)state;
    read_handler(&r,
                 "local http = require 'moontide.http' "
                 "return { subscribes = 'a', config = { to = 'x' }, "
                 "allow = { http = { 'https://x.example/' } }, "
                 "handle = function(event, ctx) "
                 "local res, err = http.post('https://x.example/', "
                 "{ body = ctx.config.to }) "
                 "if not res then return ctx.retry(err) end end }",
                 "{}");
    write_file(
        "handlers/h_spec.lua",
        "local testing = require 'moontide.testing'\n"
        "describe('h', function()\n"
        "  local h\n"
        "  before_each(function()\n"
        "    h = testing.handler('h', { config = { to = 'me' } }) end)\n"
        "  it('posts', function()\n"
        "    local run = h:run(testing.event('a', {}))\n"
        "    assert.equal('ack', run.verdict)\n"
        "    assert.equal('me', run.effects:of('http.post')[1].args.body)\n"
        "  end)\n"
        "  it('retries', function()\n"
        "    h:answer('http.post', nil, { class = 'transient', "
        "message = 'down' })\n"
        "    local run = h:run(testing.event('a'))\n"
        "    assert.equal('retry', run.verdict)\n"
        "    assert.equal('down', run.reason)\n"
        "  end)\n"
        "  it('fails', function() assert.equal(1, 2) end)\n"
        "end)\n");
    r.rt.mode = MODE_TEST;
    answer = probe_spec(&r.rt, request, &r.err);
    if (!answer)
        fail_msg("%s", r.err.msg);
    results = json_object_get(answer, "results");
    assert_int_equal(json_array_size(results), 3);
    assert_int_equal(json_integer_value(json_object_get(answer, "failed")), 1);
    for (size_t i = 0; i < 3; i++) {
        const json_t *one = json_array_get(results, i);
        const char *error = json_string_value(json_object_get(one, "error"));

        if (i < 2 && error)
            fail_msg("%s", error);
        if (i == 2)
            assert_non_null(strstr(error, "expected 1, got 2"));
    }
    json_decref(answer);
    json_decref(request);
    reading_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_good_one),
        cmocka_unit_test(test_bad_ones),
        cmocka_unit_test(test_secret_from_a_file),
        cmocka_unit_test(test_version_is_content),
        cmocka_unit_test(test_allow_only_from_settings),
        cmocka_unit_test(test_a_file_cannot_grant_itself),
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_dry_run_of_letters),
        cmocka_unit_test(test_spec),
    };

    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
