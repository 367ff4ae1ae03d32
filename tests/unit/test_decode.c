#include "sources/decode.h"

#include "base/scan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

struct fixture {
    struct scan *scan;
    struct kafka_keeper *keeper;
    struct kafka_kept *kept;
    struct decoded out;
    struct err err;
};

static int set_up(void **state)
{
    static struct fixture f;

    f = (struct fixture){.scan = scan_new(),
                         .keeper = kafka_keeper_new(0, NULL)};
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    if (f->kept)
        kafka_kept_free(f->keeper, f->kept);
    kafka_keeper_free(f->keeper);
    scan_free(f->scan);
    return 0;
}

/* `headers`: name, value, …, NULL. */
static bool decode(struct fixture *f, enum format format, const char *key,
                   const char *value, const char *const *headers)
{
    struct kafka_header list[20];
    size_t n = 0;

    for (; headers && headers[2 * n]; n++)
        list[n] = (struct kafka_header){slice_of(headers[2 * n]),
                                        slice_of(headers[2 * n + 1])};
    if (f->kept)
        kafka_kept_free(f->keeper, f->kept);
    f->kept =
        kafka_kept_new(f->keeper, slice_of(key), slice_of(value), list, n);
    return decode_record(f->scan, format, f->kept, &f->out, &f->err);
}

static void assert_fact(struct fixture *f, enum fact fact, const char *text)
{
    struct slice value = f->out.facts[fact];

    if (!text) {
        assert_null(value.ptr);
        return;
    }
    assert_non_null(value.ptr);
    if (!slice_is(value, text))
        fail_msg("%s is '%.*s', not '%s'", fact_name(fact), (int)value.len,
                 value.ptr, text);
}

#define ENVELOPE                                                       \
    "{\"id\":\"e1\",\"eventType\":\"CallCreated\",\"eventVersion\":2," \
    "\"aggregateType\":\"Call\",\"aggregateId\":\"c1\","               \
    "\"occurredAt\":\"2026-01-31T12:00:00Z\",\"payload\":{\"a\":1},"   \
    "\"metadata\":{\"actorId\":\"x\"}}"

static void a_native_envelope_says_it_all(void **state)
{
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_AUTO, "k", ENVELOPE, NULL));
    assert_fact(f, FACT_ID, "e1");
    assert_fact(f, FACT_TYPE, "CallCreated");
    assert_fact(f, FACT_VERSION, "2");
    assert_fact(f, FACT_AGGREGATE_TYPE, "Call");
    assert_fact(f, FACT_AGGREGATE_ID, "c1");
    assert_fact(f, FACT_METADATA, "{\"actorId\":\"x\"}");
    assert_int_equal(f->out.form, BODY_NATIVE);
    assert_true(slice_is(f->out.body, ENVELOPE));
}

static void headers_win_and_spare_the_body(void **state)
{
    static const char *const headers[] = {
        "id", "h1", "type", "T", "aggregate_type", "A", "correlation_id",
        "c",  NULL,
    };
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_AUTO, "key", ENVELOPE, headers));
    assert_fact(f, FACT_ID, "h1");
    assert_fact(f, FACT_TYPE, "T");
    assert_fact(f, FACT_AGGREGATE_ID, "key");
    assert_fact(f, FACT_CORRELATION_ID, "c");
    assert_fact(f, FACT_METADATA, NULL);
}

static void the_envelope_fills_what_headers_lack(void **state)
{
    static const char *const headers[] = {"type", "T", NULL};
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_AUTO, NULL, ENVELOPE, headers));
    assert_fact(f, FACT_ID, "e1");
    assert_fact(f, FACT_TYPE, "T");
    assert_fact(f, FACT_AGGREGATE_ID, "c1");
}

static void an_escaped_id_is_resolved(void **state)
{
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_NATIVE, "k",
                       "{\"id\":\"a\\/b\",\"eventType\":\"T\"}", NULL));
    assert_fact(f, FACT_ID, "a/b");
    assert_fact(f, FACT_AGGREGATE_ID, "k");
}

static void a_binary_cloudevent(void **state)
{
    static const char *const headers[] = {
        "ce_specversion",
        "1.0",
        "ce_id",
        "7",
        "ce_source",
        "/shop",
        "ce_type",
        "order.paid",
        "ce_subject",
        "o1",
        "ce_time",
        "2026-01-31T12:00:00Z",
        "ce_actorid",
        "me",
        "content-type",
        "application/json",
        NULL,
    };
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_AUTO, "k", "{\"a\":1}", headers));
    assert_fact(f, FACT_ID, "/shop#7");
    assert_fact(f, FACT_TYPE, "order.paid");
    assert_fact(f, FACT_AGGREGATE_ID, "o1");
    assert_fact(f, FACT_METADATA, "{\"actorid\":\"me\"}");
    assert_int_equal(f->out.form, BODY_PAYLOAD);
    assert_true(decode(f, FORMAT_AUTO, "k", NULL, headers));
    assert_true(slice_is(f->out.body, "null"));
    assert_true(decode(f, FORMAT_AUTO, "k", "", headers));
    assert_true(slice_is(f->out.body, "null"));
}

static void a_binary_cloudevent_that_is_not_json(void **state)
{
    static const char *const headers[] = {
        "ce_specversion", "1.0",       "ce_id", "7", "ce_type", "t",
        "content-type",   "image/png", NULL,
    };
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_AUTO, "k", "\x89PNG", headers));
    assert_int_equal(f->out.form, BODY_BINARY);
}

static void a_structured_cloudevent(void **state)
{
    struct fixture *f = *state;

    assert_true(decode(f, FORMAT_AUTO, "k",
                       "{\"specversion\":\"1.0\",\"id\":\"7\",\"source\":\"s\","
                       "\"type\":\"t\",\"subject\":\"o1\",\"dataversion\":3,"
                       "\"time\":\"2026-01-31T12:00:00Z\",\"data\":{}}",
                       NULL));
    assert_fact(f, FACT_ID, "s#7");
    assert_fact(f, FACT_TYPE, "t");
    assert_fact(f, FACT_VERSION, "3");
    assert_fact(f, FACT_AGGREGATE_ID, "o1");
    assert_int_equal(f->out.form, BODY_CLOUDEVENTS);
}

static void debezium_payloads_in_three_wrappings(void **state)
{
    static const char *const values[] = {
        "{\"a\":1}",
        "\"{\\\"a\\\":1}\"",
        "{\"schema\":{\"type\":\"string\"},\"payload\":\"{\\\"a\\\":1}\"}",
    };
    static const char *const headers[] = {"id", "d1", "eventType", "T", NULL};
    struct fixture *f = *state;

    for (size_t i = 0; i < 3; i++) {
        assert_true(decode(f, FORMAT_AUTO, "agg", values[i], headers));
        assert_fact(f, FACT_ID, "d1");
        assert_fact(f, FACT_TYPE, "T");
        assert_fact(f, FACT_AGGREGATE_ID, "agg");
        assert_int_equal(f->out.form, BODY_PAYLOAD);
        assert_true(slice_is(f->out.body, "{\"a\":1}"));
    }
}

static void what_cannot_be_decoded_says_why(void **state)
{
    static const struct {
        const char *value, *word;
    } bad[] = {
        {NULL, "tombstone"},
        {"", "empty"},
        {"\xef\xbb\xbf{}", "byte order mark"},
        {"hello", "JSON"},
        {"{\"eventType\":", "JSON"},
        {"{\"id\":\"x\"}", "no event type"},
        {"{\"eventType\":\"T\",\"x\":\"\xff\"}", "JSON"},
        {"[1]", "JSON"},
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_false(decode(f, FORMAT_AUTO, "k", bad[i].value, NULL));
        if (!strstr(f->err.msg, bad[i].word))
            fail_msg("%s: '%s'", bad[i].word, f->err.msg);
    }
}

/* It is a key in several tables, whose indexes have a limit of their own, and
 * in SQL it would end at a NUL: two events could be one. */
static void an_id_that_no_table_can_hold_is_refused(void **state)
{
    struct fixture *f = *state;
    char id[1025], value[1100];
    const char *const headers[] = {"id", id, NULL};

    memset(id, 'x', sizeof(id));
    id[1024] = '\0';
    assert_true(decode(f, FORMAT_NATIVE, "k", ENVELOPE, headers));
    snprintf(value, sizeof(value), "{\"id\":\"%sx\",\"eventType\":\"T\"}", id);
    assert_false(decode(f, FORMAT_AUTO, "k", value, NULL));
    assert_string_equal(f->err.code, "id");
    assert_false(decode(f, FORMAT_AUTO, "k",
                        "{\"id\":\"a\\u0000b\",\"eventType\":\"T\"}", NULL));
    assert_string_equal(f->err.code, "id");
}

#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_native_envelope_says_it_all),
        CASE(headers_win_and_spare_the_body),
        CASE(the_envelope_fills_what_headers_lack),
        CASE(an_escaped_id_is_resolved),
        CASE(a_binary_cloudevent),
        CASE(a_binary_cloudevent_that_is_not_json),
        CASE(a_structured_cloudevent),
        CASE(debezium_payloads_in_three_wrappings),
        CASE(what_cannot_be_decoded_says_why),
        CASE(an_id_that_no_table_can_hold_is_refused),
    };

    return cmocka_run_group_tests_name("decode", tests, NULL, NULL);
}
