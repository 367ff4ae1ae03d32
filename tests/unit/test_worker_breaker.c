/*
 * Circuit breakers as a handler meets them: a destination that does not answer
 * is left alone, and the deliveries wait for it without losing attempts.
 */
#include "worker_effects.h"

#include "base/clock.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

/* A port that refuses, until somebody listens. */
static int closed_port(int *fd)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof(at);

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*fd, (struct sockaddr *)&at, len), 0);
    getsockname(*fd, (struct sockaddr *)&at, &len);
    return ntohs(at.sin_port);
}

static void *answer_one(void *arg)
{
    static const char answer[] =
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    int fd = accept(*(int *)arg, NULL, NULL);
    char heard[4096];

    if (fd >= 0 && read(fd, heard, sizeof(heard)) > 0 &&
        write(fd, answer, sizeof(answer) - 1) < 0)
        return NULL;
    close(fd);
    return NULL;
}

static void begin(struct harness *h, int port, const char *end,
                  const char *breaker)
{
    char *source = xasprintf(
        "local http = require 'moontide.http'\n"
        "return { handle = function(event, ctx)\n"
        "  local res, err = http.get('http://127.0.0.1:%d/x') %s end }",
        port, end);
    char *decl = xasprintf(
        "{\"allow\":{\"http\":[\"http://127.0.0.1:%d/\"]}%s}", port, breaker);

    harness_init(h, source, decl);
    if (!h->is_loaded)
        fail_msg("%s", h->load_error);
    free(source);
    free(decl);
}

static struct seen next(struct harness *h, uint32_t slot)
{
    int n = h->n_seen;

    harness_offer(h, slot, 1, DELIVER_FRESH, "{}");
    harness_wait(h, n + 1);
    return h->seen[n % MAX_SEEN];
}

#define THREE ",\"breaker\":{\"calls\":3,\"open_ms\":%d}"

/* However the handler ends its run, if it is a retry. */
static void who_is_refused_waits_and_loses_no_attempt(void **state)
{
    static const char *const ends[] = {
        "if not res then return ctx.retry(err) end",
        "if not res then return ctx.retry('in my own words', '1ms') end",
        "assert(res, err)",
        "if not res then error('no answer') end",
    };
    char breaker[80];
    int fd, port = closed_port(&fd);

    (void)state;
    snprintf(breaker, sizeof(breaker), THREE, 60000);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        struct harness h;

        begin(&h, port, ends[i], breaker);
        for (uint32_t n = 0; n < 3; n++)
            assert_int_equal(next(&h, n).verdict, VERDICT_RETRY);
        for (uint32_t n = 3; n < 6; n++) {
            struct seen seen = next(&h, n);

            assert_int_equal(seen.verdict, VERDICT_SNOOZE);
            assert_in_range(seen.after_ms, 50000, 100000);
        }
        harness_fini(&h);
    }
    close(fd);
}

static void the_error_says_what_it_is(void **state)
{
    char breaker[80];
    struct harness h;
    struct seen seen;
    int fd, port = closed_port(&fd);

    (void)state;
    snprintf(breaker, sizeof(breaker), THREE, 60000);
    begin(&h, port,
          "if err.code ~= 'breaker_open' then return ctx.retry(err) end"
          " return ctx.skip(err.class .. ' ' .. err.message)",
          breaker);
    for (uint32_t n = 0; n < 3; n++)
        next(&h, n);
    seen = next(&h, 3);
    assert_int_equal(seen.verdict, VERDICT_SKIP); /* it had another way */
    assert_non_null(strstr(seen.reason, "transient http://127.0.0.1:"));
    harness_fini(&h);
    close(fd);
}

static void it_closes_when_the_probe_went_well(void **state)
{
    char breaker[80];
    struct harness h;
    struct seen seen;
    pthread_t thread;
    uint32_t n = 0;
    int fd, port = closed_port(&fd);

    (void)state;
    snprintf(breaker, sizeof(breaker), THREE, 30);
    begin(&h, port, "if not res then return ctx.retry(err) end", breaker);
    while (n < 3)
        next(&h, n++);
    do /* refused, until one is asked and fails */
        seen = next(&h, n++);
    while (seen.verdict == VERDICT_SNOOZE);
    assert_int_equal(seen.verdict, VERDICT_RETRY);
    assert_string_equal(seen.code, "connect");
    assert_int_equal(next(&h, n++).verdict, VERDICT_SNOOZE);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(pthread_create(&thread, NULL, answer_one, &fd), 0);
    do
        seen = next(&h, n++);
    while (seen.verdict == VERDICT_SNOOZE);
    assert_ack(seen);
    pthread_join(thread, NULL);
    harness_fini(&h);
    close(fd);
}

static void a_handler_may_do_without(void **state)
{
    struct harness h;
    int fd, port = closed_port(&fd);

    (void)state;
    begin(&h, port, "return ctx.retry(err)", ",\"breaker\":false");
    for (uint32_t n = 0; n < 30; n++)
        assert_int_equal(next(&h, n).verdict, VERDICT_RETRY);
    harness_fini(&h);
    begin(&h, port, "return ctx.retry(err)", ""); /* ten failures by default */
    for (uint32_t n = 0; n < 30; n++)
        assert_int_equal(next(&h, n).verdict,
                         n < 10 ? VERDICT_RETRY : VERDICT_SNOOZE);
    harness_fini(&h);
    close(fd);
}

/* No database at all: the transaction's handler is not run in vain either. */
static void databases_and_mail_servers_have_one_each(void **state)
{
    static const struct {
        const char *body, *allow;
    } cases[] = {
        {"local rows, err = require('moontide.db').query('SELECT 1')",
         "\"db\":true"},
        {"local ok, err = require('moontide.mail').send{ to = 'a@example.com',"
         " from = 'b@example.com', subject = 's', text = 't' }",
         "\"mail\":true"},
    };
    int fd, port = closed_port(&fd);

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char *source = xasprintf("return { handle = function(event, ctx) %s"
                                 " return ctx.retry(err) end }",
                                 cases[i].body);
        char *decl =
            xasprintf("{\"timeout_ms\":300,\"allow\":{%s},\"breaker\":{"
                      "\"calls\":2,\"open_ms\":60000}}",
                      cases[i].allow);
        char *url = xasprintf("postgres://127.0.0.1:%d/x", port);
        char *mail = xasprintf("smtp://127.0.0.1:%d", port);
        struct harness h;

        harness_init(&h, source, decl);
        assert_true(h.is_loaded);
        set(&h, "database.url", url);
        set(&h, "mail.url", mail);
        for (uint32_t n = 0; n < 4; n++)
            assert_int_equal(next(&h, n).verdict,
                             n < 2 ? VERDICT_RETRY : VERDICT_SNOOZE);
        harness_fini(&h);
        free(source);
        free(decl);
        free(url);
        free(mail);
    }
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_is_refused_waits_and_loses_no_attempt),
        cmocka_unit_test(the_error_says_what_it_is),
        cmocka_unit_test(it_closes_when_the_probe_went_well),
        cmocka_unit_test(a_handler_may_do_without),
        cmocka_unit_test(databases_and_mail_servers_have_one_each),
    };

    log_init(LOG_ERROR, LOG_HUMAN, "test");
    return cmocka_run_group_tests_name("worker breaker", tests, NULL, NULL);
}
