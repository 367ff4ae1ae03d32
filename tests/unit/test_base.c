/* Settings, times, logs, metrics and text. */
#include "base/buf.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/find.h"
#include "base/jsontext.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/settings.h"
#include "base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* --- settings ------------------------------------------------------------------ */

static int fresh(void **state)
{
    *state = xcalloc(1, sizeof(struct settings));
    settings_init(*state);
    return 0;
}

static int gone(void **state)
{
    settings_fini(*state);
    free(*state);
    return 0;
}

static bool apply(struct settings *s, const char *json, struct err *err)
{
    json_t *table = json_loads(json, 0, NULL);
    bool ok;

    assert_non_null(table);
    ok = settings_apply_json(s, table, "conf.lua", err);
    json_decref(table);
    return ok;
}

/* S4-11, S4-12, S4-13, S2-31, S2-32: later wins, and the names asked for. */
static void later_wins_default_file_environment_command_line(void **state)
{
    char *env[] = {(char[]){"KAFKA_GROUP_ID=from-env"},
                   (char[]){"KAFKA_BROKERS=one:9092,two:9092"},
                   (char[]){"KAFKA_CLIENT_ID=shop"},
                   (char[]){"EVENT_BUS_DELIVERY_INTERVAL_MS=250"},
                   (char[]){"EVENT_BUS_MAX_ATTEMPTS=9"},
                   (char[]){"MOONTIDE_WINDOW_EVENTS=128"},
                   (char[]){"HOME=/root"},
                   NULL};
    struct settings *s = *state;
    struct err err;

    assert_string_equal(s->kafka_group_id, "moontide");
    assert_true(apply(s,
                      "{\"kafka\":{\"group_id\":\"from-file\","
                      "\"topics\":[\"a\",\"^b.*\"]},"
                      "\"workers\":{\"soft_limit\":\"250ms\"}}",
                      &err));
    assert_string_equal(s->kafka_group_id, "from-file");
    assert_int_equal(json_array_size(s->kafka_topics), 2);
    assert_int_equal(s->workers_soft_limit, 250);
    assert_true(settings_apply_env(s, env, &err));
    assert_string_equal(s->kafka_group_id, "from-env");
    assert_string_equal(s->kafka_brokers, "one:9092,two:9092");
    assert_string_equal(s->kafka_client_id, "shop");
    assert_int_equal(s->outbox_interval, 250);
    assert_int_equal(s->max_attempts, 9);
    assert_int_equal(s->window_events, 128);
    assert_true(settings_apply_text(s, "kafka.group_id=from-line", &err));
    assert_string_equal(s->kafka_group_id, "from-line");
    assert_true(settings_apply_text(s, "rdkafka.security.protocol=SSL", &err));
    assert_string_equal(
        json_string_value(json_object_get(s->rdkafka, "security.protocol")),
        "SSL");
    assert_true(settings_apply_text(s, "handlers.audit.concurrency=4", &err));
    assert_true(settings_check(s, &err));
}

static void an_unknown_setting_names_the_nearest(void **state)
{
    char *env[] = {(char[]){"MOONTIDE_KAFKA_GRUOP=x"}, NULL};
    struct err err;

    assert_false(apply(*state, "{\"kafka\":{\"broker\":\"x\"}}", &err));
    assert_non_null(strstr(err.msg, "kafka.broker"));
    assert_non_null(strstr(err.msg, "did you mean \"kafka.brokers\"?"));
    assert_non_null(strstr(err.msg, "conf.lua"));
    assert_false(settings_apply_env(*state, env, &err));
    assert_non_null(strstr(err.msg, "MOONTIDE_KAFKA_GRUOP"));
    assert_false(settings_apply_text(*state, "window.event=3", &err));
    assert_non_null(strstr(err.msg, "window.events"));
}

static void a_wrong_value_names_its_setting_and_origin(void **state)
{
    struct err err;

    assert_false(apply(*state, "{\"window\":{\"events\":\"many\"}}", &err));
    assert_string_equal(err.msg,
                        "conf.lua: window.events = \"many\" is not a number");
    assert_true(settings_apply_text(*state, "reload.gate=replay", &err));
    assert_false(settings_check(*state, &err));
    assert_non_null(strstr(err.msg, "reload.gate"));
    assert_true(settings_apply_text(*state, "reload.gate=compile", &err));
    assert_true(settings_apply_text(*state, "workers.count=100", &err));
    assert_false(settings_check(*state, &err));
    assert_non_null(strstr(err.msg, "workers.count"));
    assert_true(settings_apply_text(*state, "workers.count=1", &err));
    assert_true(settings_apply_text(*state, "database.lease=0", &err));
    assert_false(settings_check(*state, &err)); /* 0: sessions idle for ever */
    assert_non_null(strstr(err.msg, "database.lease"));
}

static void secrets_are_not_shown_and_can_come_from_files(void **state)
{
    char path[] = "/tmp/moontide-secret-XXXXXX";
    struct settings *s = *state;
    struct err err;
    int fd = mkstemp(path);
    char *table, *text;
    json_t *json;

    assert_int_equal(write(fd, "postgres://me:canary@db/x\n", 26), 26);
    close(fd);
    table = xasprintf("{\"database\":{\"url_file\":\"%s\"},\"rdkafka\":"
                      "{\"sasl.password\":\"canary\"},\"http\":{\"tokens\":"
                      "[{\"token\":\"canary\",\"rights\":[\"view\"]}]},"
                      "\"handlers\":{\"a\":{\"config\":{\"apiKey\":\"canary\","
                      "\"secrets\":[\"canary\",{\"b\":\"canary\"}]}}}}",
                      path);
    assert_true(apply(s, table, &err));
    assert_string_equal(s->database_url, "postgres://me:canary@db/x");
    json = settings_json(s, false);
    text = json_dumps(json, 0);
    assert_null(strstr(text, "canary"));
    assert_non_null(strstr(text, "view"));
    assert_false(
        settings_apply_text(s, "http.tokens=[{\"token\":\"canary\"", &err));
    assert_null(strstr(err.msg, "canary"));
    free(text);
    json_decref(json);
    free(table);
    unlink(path);
}

static void what_is_shown_can_be_read_again(void **state)
{
    struct settings again;
    struct settings *s = *state;
    struct err err;
    json_t *json;

    assert_true(settings_apply_text(s, "drain_timeout=7s", &err));
    assert_true(settings_apply_text(s, "kafka.topics=a,b", &err));
    json = settings_json(s, true);
    settings_init(&again);
    assert_true(settings_apply_json(&again, json, "shown", &err));
    assert_int_equal(again.drain_timeout, 7000);
    assert_int_equal(json_array_size(again.kafka_topics), 2);
    json_decref(json);
    settings_fini(&again);
}

static void durations_and_sizes_have_units(void **state)
{
    int64_t n;

    (void)state;
    assert_true(duration_parse("200ms", &n) && n == 200);
    assert_true(duration_parse("1.5s", &n) && n == 1500);
    assert_true(duration_parse("7d", &n) && n == 604800000);
    assert_true(duration_parse("3", &n) && n == 3000);
    assert_false(duration_parse("3 weeks", &n));
    assert_false(duration_parse("1e15d", &n)); /* more than 64 bits have */
    assert_false(duration_parse("-1s", &n));
    assert_false(duration_parse("nan", &n));

    assert_true(bytes_parse("4MiB", &n) && n == 4194304);
    assert_false(bytes_parse("4 parsecs", &n));
}

/* --- time, text ------------------------------------------------------------------- */

static void times_survive_printing_and_parsing(void **state)
{
    char text[RFC3339_SIZE];
    int64_t us = 1700000000123456;

    (void)state;
    clock_format(us, text);
    assert_string_equal(text, "2023-11-14T22:13:20.123456Z");
    assert_true(clock_parse(text, strlen(text)) == us);
    assert_true(clock_parse("2023-11-14 23:13:20.123456+01", 29) == us);
    assert_true(clock_parse("2023-11-14T22:13:20Z", 20) == 1700000000000000);
    assert_true(clock_parse("yesterday", 9) == INT64_MIN);
    assert_true(clock_parse("2023-13-14T22:13:20Z", 20) == INT64_MIN);
}

static void whatever_text_becomes_json(void **state)
{
    static const char bad[] = "a\xff\"\n\x01z\xed\xa0\x80";
    struct buf b = {0};
    json_t *json;

    (void)state;
    buf_add_json(&b, (struct slice){bad, sizeof(bad) - 1});
    json = json_loadb(b.ptr, b.len, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    json_decref(json);
    buf_fini(&b);
    json = json_string_lossy((struct slice){bad, sizeof(bad) - 1});
    assert_true(json_is_string(json));
    json_decref(json);
    assert_false(utf8_is_valid("\xc0\x80", 2));
    assert_true(utf8_is_valid("\xf0\x9f\x8c\x99", 4));
}

/* --- metrics ------------------------------------------------------------------------ */

/* Every byte at every place of every length, against the plain loop. */
static void finding_is_the_same_at_any_place(void **state)
{
    (void)state;
    for (size_t len = 0; len <= 40; len++)
        for (int byte = 0; byte < 256; byte++) {
            char *text = malloc(len + 1); /* so that a sanitizer sees more */
            char *end = text + len;
            size_t at = len ? (size_t)byte % len : 0;
            char c = (char)byte;

            memset(text, 'x', len);
            if (len)
                text[at] = c;
            assert_ptr_equal(find_either(text, end, '"', '\\'),
                             len && (c == '"' || c == '\\') ? text + at : end);
            assert_ptr_equal(find_structure(text, end),
                             len && c && strchr("\"{}[]", c) ? text + at : end);
            assert_ptr_equal(find_control_or(text, end, '\\'),
                             len && (byte < 0x20 || c == '\\') ? text + at
                                                               : end);
            free(text);
        }
}

static void metrics_render_as_prometheus_text(void **state)
{
    struct metrics *m = metrics_new();
    struct buf out = {0};
    const char *text;

    (void)state;
    series_add(metrics_get(m, M_DEAD_LETTER, "a\"b\\c\nd"), 3);
    series_observe(metrics_get(m, M_HANDLER_DURATION, "x"), 0.003, 2);
    metrics_render(m, false, &out);
    text = buf_text(&out);
    assert_non_null(strstr(text, "event_dead_letter_total{handler=\"a\\\"b\\\\"
                                 "c\\nd\"} 3\n"));
    assert_non_null(strstr(text, "moontide_handler_duration_seconds_bucket{"
                                 "handler=\"x\",le=\"0.0025\"} 0\n"));
    assert_non_null(strstr(text, "moontide_handler_duration_seconds_bucket{"
                                 "handler=\"x\",le=\"0.005\"} 2\n"));
    assert_non_null(strstr(text, "moontide_handler_duration_seconds_count{"
                                 "handler=\"x\"} 2\n"));
    assert_non_null(strstr(text, "# TYPE event_dispatch_latency histogram"));
    buf_fini(&out);
    metrics_free(m);
}

/* What is not known is absent, until it is known again. */
static void a_hidden_series_is_not_rendered(void **state)
{
    struct metrics *m = metrics_new();
    struct series *one = metrics_get(m, M_SOURCE_LAG, "kafka", "t/1");
    struct series *two = metrics_get(m, M_SOURCE_LAG, "kafka", "t/2");
    struct buf out = {0};

    (void)state;
    series_set(one, 5);
    series_set(two, 6);
    metrics_hide(m, M_SOURCE_LAG);
    series_set(two, 0);
    metrics_render(m, false, &out);
    assert_null(strstr(buf_text(&out), "t/1"));
    assert_non_null(strstr(out.ptr, "partition=\"t/2\"} 0\n"));
    out.len = 0;
    series_add(one, 2);
    metrics_render(m, false, &out);
    assert_non_null(strstr(buf_text(&out), "partition=\"t/1\"} 2\n"));
    buf_fini(&out);
    metrics_free(m);
}

/* Reliability 4: a hard cap on series, whatever comes in. */
static void a_flood_of_labels_ends_in_other(void **state)
{
    struct metrics *m = metrics_new();
    struct buf out = {0};
    char name[32];
    size_t lines = 0;

    (void)state;
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof(name), "type%d", i);
        series_add(metrics_get(m, M_EVENTS_RAISED, "order", name), 1);
    }
    metrics_render(m, false, &out);
    for (const char *p = buf_text(&out);
         (p = strstr(p, "\nevents_raised_total{")); p++)
        lines++;
    assert_true(lines <= METRIC_SERIES_MAX + 1);
    assert_non_null(strstr(out.ptr, "event_type=\"other\"} 3000"));
    buf_fini(&out);
    metrics_free(m);
}

/* The line as JSON, of what `write_it` logs. */
static json_t *logged(void (*write_it)(void))
{
    char line[4096];
    int pipes[2], saved = dup(STDERR_FILENO);
    ssize_t n;
    json_t *json;

    assert_int_equal(pipe(pipes), 0);
    dup2(pipes[1], STDERR_FILENO);
    log_init(LOG_INFO, LOG_JSON, "host");
    write_it();
    dup2(saved, STDERR_FILENO);
    n = read(pipes[0], line, sizeof(line) - 1);
    assert_true(n > 0);
    line[n] = '\0';
    assert_ptr_equal(strchr(line, '\n'), line + n - 1);
    json = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    log_init(LOG_INFO, LOG_HUMAN, "host");
    close(pipes[0]);
    close(pipes[1]);
    close(saved);
    return json;
}

static void assert_logged(const json_t *json, const char *key, const char *text)
{
    assert_string_equal(json_string_value(json_object_get(json, key)), text);
}

static const char component[] = "test";

static void log_a_line_break(void)
{
    log_info("thing happened", "err=" LOG_Q " n=%d", "a\n{\"level\":\"x\"}", 5);
}

static void log_pairs_in_a_value(void)
{
    log_info("thing happened", "err=" LOG_Q " n=%d why=" LOG_Q,
             "a\" level=\"x\" n=7 who=\"me", 5, "say \"b\" n=8");
}

static void log_pairs_of_a_handler(void)
{
    log_info("thing happened", "%s",
             "handler=h text=\"a\\\" level=x\" n=5 list=\"[\\\"b c=1\\\"]\"");
}

static void a_log_line_cannot_be_forged(void **state)
{
    json_t *json = logged(log_a_line_break);

    (void)state;
    assert_logged(json, "message", "thing happened");
    assert_logged(json, "n", "5");
    json_decref(json);
    json = logged(log_pairs_in_a_value);
    assert_logged(json, "level", "info");
    assert_logged(json, "err", "a\" level=\"x\" n=7 who=\"me");
    assert_logged(json, "why", "say \"b\" n=8");
    assert_null(json_object_get(json, "who"));
    json_decref(json);
    json = logged(log_pairs_of_a_handler);
    assert_logged(json, "level", "info");
    assert_logged(json, "n", "5");
    assert_null(json_object_get(json, "c"));
    json_decref(json);
}

#define WITH_SETTINGS(fn) cmocka_unit_test_setup_teardown(fn, fresh, gone)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SETTINGS(later_wins_default_file_environment_command_line),
        WITH_SETTINGS(an_unknown_setting_names_the_nearest),
        WITH_SETTINGS(a_wrong_value_names_its_setting_and_origin),
        WITH_SETTINGS(secrets_are_not_shown_and_can_come_from_files),
        WITH_SETTINGS(what_is_shown_can_be_read_again),
        cmocka_unit_test(durations_and_sizes_have_units),
        cmocka_unit_test(times_survive_printing_and_parsing),
        cmocka_unit_test(whatever_text_becomes_json),
        cmocka_unit_test(finding_is_the_same_at_any_place),
        cmocka_unit_test(metrics_render_as_prometheus_text),
        cmocka_unit_test(a_hidden_series_is_not_rendered),
        cmocka_unit_test(a_flood_of_labels_ends_in_other),
        cmocka_unit_test(a_log_line_cannot_be_forged),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
