#include "worker/http_allow.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static bool may(const char *list, const char *url)
{
    json_t *allow = json_loads(list, 0, NULL);
    struct err err;
    bool named, ok = http_url_allowed(url, allow, &named, &err);

    assert_true(ok || err.msg[0]);
    json_decref(allow);
    return ok;
}

static bool ip(const char *list, const char *address)
{
    json_t *allow = json_loads(list, 0, NULL);
    bool ok = http_ip_allowed(address, allow);

    json_decref(allow);
    return ok;
}

#define HOOKS "[\"https://hooks.example.com/v1\"]"

static void a_prefix_covers_whole_path_segments(void **state)
{
    (void)state;
    assert_true(may(HOOKS, "https://hooks.example.com/v1"));
    assert_true(may(HOOKS, "https://hooks.example.com/v1/x?q=1"));
    assert_true(may(HOOKS, "https://HOOKS.example.com:443/v1/x"));
    assert_false(may(HOOKS, "https://hooks.example.com/v10"));
    assert_false(may(HOOKS, "https://hooks.example.com/"));
    assert_true(may("[\"https://a.example\"]", "https://a.example/any/path"));
}

static void scheme_host_and_port_must_be_the_same(void **state)
{
    (void)state;
    assert_false(may(HOOKS, "http://hooks.example.com/v1"));
    assert_false(may(HOOKS, "https://hooks.example.com:8443/v1"));
    assert_false(may(HOOKS, "https://hooks.example.com.evil.test/v1"));
    assert_false(may(HOOKS, "https://evil.test/v1"));
    assert_false(may(HOOKS, "ftp://hooks.example.com/v1"));
    assert_false(may("[]", "https://hooks.example.com/v1"));
    assert_false(may("null", "https://hooks.example.com/v1"));
}

static void tricks_with_urls_are_refused(void **state)
{
    (void)state;
    assert_false(may(HOOKS, "https://hooks.example.com/v1/../admin"));
    assert_false(may(HOOKS, "https://hooks.example.com/v1/%2e%2e/admin"));
    assert_false(may(HOOKS, "https://hooks.example.com/v1/..%5cadmin"));
    assert_false(may(HOOKS, "https://hooks.example.com/v1/..%2fadmin"));
    assert_false(
        may(HOOKS, "https://hooks.example.com/v1/x%2F..%2f..%2Fadmin"));
    assert_false(may(HOOKS, "https://hooks.example.com/v1/x%2f.."));
    assert_false(may(HOOKS, "https://hooks.example.com/v1/..;a=b/admin"));
    assert_true(may(HOOKS, "https://hooks.example.com/v1/group%2Fproject"));
    assert_true(may(HOOKS, "https://hooks.example.com/v1/a..%2Fb/..c"));
    assert_false(may(HOOKS, "https://hooks.example.com@evil.test/v1"));
    assert_false(may(HOOKS, "https://u:p@hooks.example.com/v1"));
    assert_false(may(HOOKS, "not a url"));
    assert_false(may(HOOKS, ""));
}

static void addresses_inside_need_their_network_on_the_list(void **state)
{
    static const char *const inside[] = {
        "127.0.0.1", "10.1.2.3",    "172.16.0.1",       "192.168.1.1",
        "0.0.0.0",   "::1",         "169.254.169.254",  "fe80::1",
        "fd00::1",   "100.64.0.1",  "::ffff:127.0.0.1", "64:ff9b::7f00:1",
        "224.0.0.1", "not-address",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(inside) / sizeof(*inside); i++)
        assert_false(ip(HOOKS, inside[i]));
    assert_true(ip(HOOKS, "93.184.216.34"));
    assert_true(ip(HOOKS, "172.32.0.1"));
    assert_true(ip(HOOKS, "2606:2800:220:1::1"));
    assert_true(ip("[\"10.0.0.0/8\"]", "10.1.2.3"));
    assert_false(ip("[\"10.0.0.0/8\"]", "192.168.1.1"));
    assert_true(ip("[\"10.1.2.4/30\"]", "10.1.2.7"));
    assert_false(ip("[\"10.1.2.4/30\"]", "10.1.2.8"));
    assert_true(ip("[\"fd00::/8\"]", "fd12::1"));
}

static void an_address_in_the_prefix_names_it(void **state)
{
    json_t *allow = json_loads("[\"http://127.0.0.1:8080/\","
                               " \"http://localhost:1/\", \"http://n.test/\"]",
                               0, NULL);
    struct err err;
    bool named;

    (void)state;
    assert_true(
        http_url_allowed("http://127.0.0.1:8080/x", allow, &named, &err));
    assert_true(named);
    assert_true(http_url_allowed("http://localhost:1/", allow, &named, &err));
    assert_true(named);
    assert_true(http_url_allowed("http://n.test/", allow, &named, &err));
    assert_false(named);
    assert_false(
        http_url_allowed("http://127.0.0.2:8080/", allow, &named, &err));
    json_decref(allow);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prefix_covers_whole_path_segments),
        cmocka_unit_test(scheme_host_and_port_must_be_the_same),
        cmocka_unit_test(tricks_with_urls_are_refused),
        cmocka_unit_test(addresses_inside_need_their_network_on_the_list),
        cmocka_unit_test(an_address_in_the_prefix_names_it),
    };

    return cmocka_run_group_tests_name("http_allow", tests, NULL, NULL);
}
