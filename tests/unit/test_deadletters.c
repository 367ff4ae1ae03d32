#include "stores/clean.h"
#include "stores/deadletters.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static void assert_same(const char *a, const char *b)
{
    char x[17], y[17];

    fingerprint(CLASS_BUG, a, "v1", x);
    fingerprint(CLASS_BUG, b, "v1", y);
    assert_string_equal(x, y);
}

static void assert_differs(const char *a, const char *b)
{
    char x[17], y[17];

    fingerprint(CLASS_BUG, a, "v1", x);
    fingerprint(CLASS_BUG, b, "v1", y);
    assert_string_not_equal(x, y);
}

static void equal_failures_have_one_fingerprint(void **state)
{
    (void)state;
    assert_same("order 17 is missing", "order 4711 is missing");
    assert_same("no row for 'abc'", "no row for 'x y'");
    assert_same("id 5a0e-11 gone", "id 77bf-1c gone");
    assert_same("first line\nstack a", "first line\nstack b");
    assert_differs("order is missing", "order is late");
}

static void class_and_version_are_part_of_it(void **state)
{
    char a[17], b[17], c[17];

    (void)state;
    fingerprint(CLASS_BUG, "x", "v1", a);
    fingerprint(CLASS_LIMIT, "x", "v1", b);
    fingerprint(CLASS_BUG, "x", "v2", c);
    assert_string_not_equal(a, b);
    assert_string_not_equal(a, c);
}

static void text_for_postgresql_is_clean(void **state)
{
    struct slice dirty = {"a\0b\xff\xc3\xa4", 6};
    char *clean = clean_text(dirty);

    (void)state;
    assert_string_equal(clean, "a\xef\xbf\xbd"
                               "b\xef\xbf\xbd\xc3\xa4");
    free(clean);
    clean = clean_text((struct slice){NULL, 0});
    assert_string_equal(clean, "");
    free(clean);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_failures_have_one_fingerprint),
        cmocka_unit_test(class_and_version_are_part_of_it),
        cmocka_unit_test(text_for_postgresql_is_clean),
    };

    return cmocka_run_group_tests_name("deadletters", tests, NULL, NULL);
}
