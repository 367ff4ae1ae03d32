#include "base/mem.h"
#include "base/scan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const names[] = {"id", "type", "version", "meta", "gone"};
#define N (sizeof(names) / sizeof(names[0]))

static int set_up(void **state)
{
    *state = scan_new();
    return 0;
}

static int tear_down(void **state)
{
    scan_free(*state);
    return 0;
}

static void assert_slice(struct slice value, const char *text)
{
    if (!text) {
        assert_null(value.ptr);
        return;
    }
    assert_non_null(value.ptr);
    assert_int_equal(value.len, strlen(text));
    assert_memory_equal(value.ptr, text, value.len);
}

/* The same text where it lies, with bytes behind it that would go on. */
static bool scan_in_place(struct scan *s, const char *json,
                          struct slice values[N])
{
    static const char behind[] = "1234567890\"}]}\\u0041,\"type\":\"other\"}";
    static char place[4096];
    size_t len = strlen(json);
    struct err err;

    assert_true(len + SCAN_PADDING <= sizeof(place));
    memcpy(place, json, len);
    for (size_t i = 0; i < SCAN_PADDING; i++)
        place[len + i] = behind[i % (sizeof(behind) - 1)];
    return scan_members(s, (struct slice){place, len}, true, names, N, values,
                        &err);
}

static bool scan(struct scan *s, const char *json, struct slice values[N])
{
    struct slice here[N];
    struct err err;
    bool ok = scan_in_place(s, json, here);
    char *kept[N] = {0};

    for (size_t i = 0; ok && i < N; i++) /* a call ends the former's values */
        kept[i] = here[i].ptr ? xstrndup(here[i].ptr, here[i].len) : NULL;
    assert_int_equal(
        scan_members(s, slice_of(json), false, names, N, values, &err), ok);
    for (size_t i = 0; ok && i < N; i++) {
        assert_slice(values[i], kept[i]);
        free(kept[i]);
    }
    return ok;
}

static void members_come_back_as_text(void **state)
{
    const char *json = " {\"x\":[1,{}],\"type\" : \"T\", \"version\": 12 ,"
                       "\"meta\":{\"a\": [1, 2]}, \"id\":\"\", \"gone\":null}";
    struct slice values[N];

    assert_true(scan(*state, json, values));
    assert_slice(values[0], "");
    assert_slice(values[1], "T");
    assert_slice(values[2], "12");
    assert_slice(values[3], "{\"a\": [1, 2]}");
    assert_slice(values[4], NULL);
    assert_true(values[1].ptr > json && values[1].ptr < json + strlen(json));
}

static void escapes_are_resolved(void **state)
{
    struct slice values[N];

    assert_true(scan(*state, "{\"id\":\"a\\\"b\\u00e4\",\"\\u0074ype\":\"t\"}",
                     values));
    assert_slice(values[0], "a\"b\xc3\xa4");
    assert_slice(values[1], "t");
}

static void the_first_of_two_counts(void **state)
{
    struct slice values[N];

    assert_true(scan(*state, "{\"id\":\"1\",\"id\":\"2\"}", values));
    assert_slice(values[0], "1");
}

static void what_is_no_object_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        " ",
        "[]",
        "1",
        "\"x\"",
        "null",
        "{",
        "{\"id\":}",
        "{\"id\":\"x\"",
        "{\"id\":1} x",
        "{\"id\":1}{}",
        "\xef\xbb\xbf{}",
        "{\"id\":\"\xff\"}",
        "{\"id\":nul}",
        "{\"version\":1e}",
        "{id:1}",
    };
    struct slice values[N];

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (scan(*state, bad[i], values))
            fail_msg("taken: %s", bad[i]);
}

static void a_path_leads_into_objects(void **state)
{
    const char *json = "{\"a\":{\"b\":{\"c\":\"x\"},\"n\":7},\"s\":\"t\"}";
    struct slice value;
    struct err err;

    assert_true(scan_path(*state, slice_of(json), "a.b.c", &value, &err));
    assert_slice(value, "x");
    assert_true(scan_path(*state, slice_of(json), "a.n", &value, &err));
    assert_slice(value, "7");
    assert_true(scan_path(*state, slice_of(json), "a.x.c", &value, &err));
    assert_slice(value, NULL);
    assert_true(scan_path(*state, slice_of(json), "s.t", &value, &err));
    assert_slice(value, NULL);
    assert_false(scan_path(*state, slice_of("{\"a\":"), "a.b", &value, &err));
}

#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(members_come_back_as_text), CASE(escapes_are_resolved),
        CASE(the_first_of_two_counts),   CASE(what_is_no_object_is_refused),
        CASE(a_path_leads_into_objects),
    };

    return cmocka_run_group_tests_name("scan", tests, NULL, NULL);
}
