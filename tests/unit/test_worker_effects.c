/*
 * db, http and mail as a handler uses them, in a real VM. What needs a server
 * of SQL runs when MOONTIDE_TEST_PG names one (tests/integration does); HTTP and
 * SMTP are answered by a thread of this program.
 */
#include "worker_effects.h"

#include "base/clock.h"

#include "base/log.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- a server that says what it is told ----------------------------------- */

struct server {
    int fd, port;
    pthread_t thread;
    const char *const *answers; /* one for each line it waits for, NULL ends */
    bool speaks_first;
    char heard[65536];
};

static void hear(struct server *s, int fd, const char *end)
{
    size_t len = strlen(s->heard), from = len;

    while (!strstr(s->heard + from, end) && len < sizeof(s->heard) - 1) {
        ssize_t n = read(fd, s->heard + len, sizeof(s->heard) - 1 - len);

        if (n <= 0)
            return;
        len += (size_t)n;
        s->heard[len] = '\0';
    }
}

static void *serve(void *arg)
{
    struct server *s = arg;
    int fd = accept(s->fd, NULL, NULL);

    for (const char *const *a = s->answers; *a && fd >= 0; a++) {
        const char *end = strncmp(*a, "250 taken", 9) == 0 ? "\r\n.\r\n" : "\n";

        if (!s->speaks_first)
            end = "\r\n\r\n";
        if (!s->speaks_first || a > s->answers)
            hear(s, fd, end);
        if (write(fd, *a, strlen(*a)) < 0)
            break;
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}

static void server_start(struct server *s, const char *const *answers,
                         bool speaks_first)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof(at);

    memset(s, 0, sizeof(*s));
    s->answers = answers;
    s->speaks_first = speaks_first;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&at, len), 0);
    assert_int_equal(listen(s->fd, 4), 0);
    getsockname(s->fd, (struct sockaddr *)&at, &len);
    s->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s)
{
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
}

/* --- http and mail -------------------------------------------------------- */

static void http_carries_body_headers_and_a_key(void **state)
{
    static const char *const answers[] = {
        "HTTP/1.1 201 Created\r\nX-One: a\r\nX-One: b\r\n"
        "Content-Length: 10\r\n\r\n{\"ok\":123}",
        NULL};
    struct server s;
    char *body, *decl;

    (void)state;
    server_start(&s, answers, false);
    body = xasprintf(
        "local res, err = http.post('http://127.0.0.1:%d/hook', { json = { x ="
        " 'y' }, headers = { ['X-A'] = 'b' } })\n"
        "assert(res, tostring(err)) assert(res.status == 201)\n"
        "assert(res.headers['x-one'] == 'a, b')\n"
        "assert(res:json().ok == 123)",
        s.port);
    decl =
        xasprintf("{\"allow\":{\"http\":[\"http://127.0.0.1:%d/\"]}}", s.port);
    assert_ack(run(body, decl, NULL));
    server_stop(&s);
    assert_non_null(strstr(s.heard, "POST /hook HTTP/1.1"));
    assert_non_null(strstr(s.heard, "X-A: b"));
    assert_non_null(strstr(s.heard, "Idempotency-Key: e-1:probe:"));
    assert_non_null(strstr(s.heard, "Content-Type: application/json"));
    free(body);
    free(decl);
}

static void http_asks_only_what_is_allowed(void **state)
{
    (void)state;
    assert_ack(run("local res, err = http.get('http://127.0.0.1:9/x')\n"
                   "assert(res == nil and err.class == 'permanent')\n"
                   "assert(err.code == 'not_allowed', err.code)",
                   "{}", NULL));
}

static void http_that_gets_no_answer_is_transient(void **state)
{
    (void)state;
    assert_ack(run("local res, err = http.get('http://127.0.0.1:9/x')\n"
                   "assert(res == nil and err.class == 'transient')\n"
                   "assert(err.code == 'connect', err.code)",
                   "{\"allow\":{\"http\":[\"http://127.0.0.1:9/\"]}}", NULL));
}

/* A mail server with these answers, and a handler that sends to it. */
static void mail_to(struct server *s, const char *const *answers,
                    const char *body)
{
    char *url;

    server_start(s, answers, true);
    url = xasprintf("smtp://127.0.0.1:%d", s->port);
    assert_ack(run(body, "{\"allow\":{\"mail\":true}}", url));
    server_stop(s);
    free(url);
}

static void mail_reaches_the_server(void **state)
{
    static const char *const answers[] = {
        "220 hello\r\n", "250 here\r\n", "250 sender\r\n",
        "250 rcpt\r\n",  "250 rcpt\r\n", "354 go on\r\n",
        "250 taken\r\n", "221 bye\r\n",  NULL};
    struct server s;

    (void)state;
    mail_to(&s, answers,
            "local ok, err = mail.send { to = { 'Ann <ann@example.com>',"
            " 'bob@example.com' }, subject = 'Grüße', text ="
            " 'one\\ntwo', html = '<b>one</b>' }\n"
            "assert(ok, tostring(err))");
    assert_non_null(strstr(s.heard, "MAIL FROM:<tide@example.com>"));
    assert_non_null(strstr(s.heard, "RCPT TO:<bob@example.com>"));
    assert_non_null(strstr(s.heard, "Subject: =?UTF-8?B?R3LDvMOfZQ==?="));
    assert_non_null(strstr(s.heard, "Message-ID: <"));
    assert_non_null(strstr(s.heard, "one\r\ntwo"));
}

/* What mail.send writes itself comes once, and from its own fields only. */
static void mail_writes_its_own_headers_alone(void **state)
{
    static const char *const own[] = {
        "From",         "to",
        "CC",           "bcc",
        "subject",      "Date",
        "message-id",   "Mime-Version",
        "Content-Type", "content-transfer-encoding"};

    (void)state;
    for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++) {
        char *body = xasprintf(
            "local ok, err = mail.send { to = 'a@b.c', subject = 's', text ="
            " 't', headers = { ['%s'] = 'e@f.g' } }\n"
            "assert(not ok and err.code == 'bad_message', tostring(err))\n"
            "assert(err.message:find('%s', 1, true), err.message)",
            own[i], own[i]);

        assert_ack(
            run(body, "{\"allow\":{\"mail\":true}}", "smtp://127.0.0.1:9"));
        free(body);
    }
}

/* The longest line of what was heard, without its end. */
static size_t longest_line(const char *text)
{
    size_t longest = 0;

    while (*text) {
        size_t len = strcspn(text, "\r\n");

        longest = len > longest ? len : longest;
        text += len + strspn(text + len, "\r\n");
    }
    return longest;
}

static void long_headers_of_mail_are_folded(void **state)
{
    static const char *const answers[] = {
        "220 hello\r\n", "250 here\r\n",  "250 sender\r\n", "250 rcpt\r\n",
        "354 go on\r\n", "250 taken\r\n", "221 bye\r\n",    NULL};
    struct server s;

    (void)state;
    mail_to(&s, answers,
            "assert(mail.send { to = 'ann@example.com', subject ="
            " ('words '):rep(300) .. 'end', text = 't', headers = { ['X-A'] ="
            " ('x'):rep(2000), ['X-B'] = ('ü'):rep(300) } })");
    assert_non_null(strstr(s.heard, "Subject: words words"));
    assert_non_null(strstr(s.heard, "words\r\n words"));
    assert_non_null(strstr(s.heard, "X-A: =?UTF-8?B?eHh4"));
    *strstr(s.heard, "\r\n\r\n") = '\0'; /* the parts are libcurl's */
    assert_in_range(longest_line(s.heard), 78, 80); /* and a Content-Type */
}

static void mail_that_is_refused_says_so(void **state)
{
    static const char *const answers[] = {"220 hello\r\n",  "250 here\r\n",
                                          "250 sender\r\n", "550 who\r\n",
                                          "221 bye\r\n",    NULL};
    struct server s;

    (void)state;
    mail_to(&s, answers,
            "local ok, err = mail.send { to = 'x@example.com', subject ="
            " 's', text = 't' }\n"
            "assert(not ok and err.class == 'permanent')\n"
            "assert(err.code == '550', err.code)");
    assert_null(strstr(s.heard, "DATA"));
}

static void headers_cannot_be_smuggled(void **state)
{
    (void)state;
    assert_ack(run("local ok, err = mail.send { to = 'a@b.c', subject ="
                   " 'x\\r\\nBcc: e@f.g', text = 't' }\n"
                   "assert(not ok and err.code == 'bad_message')\n"
                   "ok, err = http.get('http://127.0.0.1:9/', { headers = { a ="
                   " 'b\\nc: d' } })\n"
                   "assert(not ok and err.code == 'bad_header')",
                   "{\"allow\":{\"mail\":true,"
                   "\"http\":[\"http://127.0.0.1:9/\"]}}",
                   NULL));
}

/* What allow.http grants is a host, not whoever shares its address. */
static void a_request_keeps_its_host_and_length(void **state)
{
    static const char *const bad[] = {
        "{ headers = { Host = 'other.example' } }",
        "{ headers = { ['transfer-encoding'] = 'chunked' } }",
        "{ headers = { ['Content-Length'] = '3' } }",
        "{ headers = { ['Host: other.example\\tX'] = 'y' } }",
        "{ headers = { [''] = 'y' } }",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        char *body =
            xasprintf("local ok, err = http.post('http://127.0.0.1:9/', %s)\n"
                      "assert(not ok and err.code == 'bad_header', err.code)",
                      bad[i]);

        assert_ack(run(body, "{\"allow\":{\"http\":[\"http://127.0.0.1:9/\"]}}",
                       NULL));
        free(body);
    }
}

static void http_sends_a_body_or_says_why_not(void **state)
{
    struct seen seen;

    (void)state;
    seen = run("http.post('http://127.0.0.1:9/', { body = { a = 1 } })",
               "{\"allow\":{\"http\":[\"http://127.0.0.1:9/\"]}}", NULL);
    assert_int_equal(seen.class, CLASS_BUG);
    assert_non_null(strstr(seen.reason, "the body of a request is text"));
}

/* Without a length a server waits for one, or says 411. */
static void http_says_that_there_is_no_body(void **state)
{
    static const char *const answers[] = {
        "HTTP/1.1 204 None\r\nContent-Length: 0\r\n\r\n", NULL};
    struct server s;
    char *body, *decl;

    (void)state;
    server_start(&s, answers, false);
    body = xasprintf("assert(http.post('http://127.0.0.1:%d/', {}))", s.port);
    decl =
        xasprintf("{\"allow\":{\"http\":[\"http://127.0.0.1:%d/\"]}}", s.port);
    assert_ack(run(body, decl, NULL));
    server_stop(&s);
    assert_non_null(strstr(s.heard, "POST / HTTP/1.1"));
    assert_non_null(strstr(s.heard, "Content-Length: 0"));
    assert_null(strstr(s.heard, "Content-Type"));
    free(body);
    free(decl);
}

static void http_sends_empty_headers(void **state)
{
    static const char *const answers[] = {
        "HTTP/1.1 204 None\r\nContent-Length: 0\r\n\r\n", NULL};
    struct server s;
    char *body, *decl;

    (void)state;
    server_start(&s, answers, false);
    body = xasprintf("assert(http.get('http://127.0.0.1:%d/', { headers ="
                     " { ['X-Empty'] = '' } }))",
                     s.port);
    decl =
        xasprintf("{\"allow\":{\"http\":[\"http://127.0.0.1:%d/\"]}}", s.port);
    assert_ack(run(body, decl, NULL));
    server_stop(&s);
    assert_non_null(strstr(s.heard, "X-Empty:"));
    free(body);
    free(decl);
}

/* The names of attachments come from events as often as subjects do. */
static void attachments_carry_no_headers(void **state)
{
    static const char *const bad[] = {
        "{ name = 'a\\r\\nBcc: e@f.g', data = 'x' }",
        "{ name = 'a', data = 'x', type = 'text/plain\\r\\nX-Evil: 1' }",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        char *body =
            xasprintf("local ok, err = mail.send { to = 'a@b.c', subject = 's',"
                      " text = 't', attachments = { %s } }\n"
                      "assert(not ok and err.code == 'bad_message', err.code)",
                      bad[i]);

        assert_ack(
            run(body, "{\"allow\":{\"mail\":true}}", "smtp://127.0.0.1:9"));
        free(body);
    }
}

static void a_subject_that_is_no_text_ends(void **state)
{
    (void)state;
    assert_ack(run("local ok, err = mail.send { to = 'a@b.c', subject ="
                   " ('\\128'):rep(100), text = 't' }\n"
                   "assert(not ok and err.code == 'no_mail_server', err.code)",
                   "{\"allow\":{\"mail\":true}}", NULL));
}

static void what_is_not_granted_is_a_misuse(void **state)
{
    struct seen seen;

    (void)state;
    seen = run("mail.send { to = 'a@b.c', subject = 's', text = 't' }", "{}",
               NULL);
    assert_int_equal(seen.verdict, VERDICT_RETRY);
    assert_int_equal(seen.class, CLASS_BUG);
    assert_non_null(strstr(seen.reason, "mail.send needs allow"));
    seen = run_body("require('moontide.db').query('SELECT 1')", "{}");
    assert_non_null(strstr(seen.reason, "db.query needs allow"));
}

int main(void)
{
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(http_carries_body_headers_and_a_key),
        cmocka_unit_test(http_asks_only_what_is_allowed),
        cmocka_unit_test(http_that_gets_no_answer_is_transient),
        cmocka_unit_test(mail_reaches_the_server),
        cmocka_unit_test(mail_that_is_refused_says_so),
        cmocka_unit_test(mail_writes_its_own_headers_alone),
        cmocka_unit_test(long_headers_of_mail_are_folded),
        cmocka_unit_test(headers_cannot_be_smuggled),
        cmocka_unit_test(a_request_keeps_its_host_and_length),
        cmocka_unit_test(http_sends_a_body_or_says_why_not),
        cmocka_unit_test(http_says_that_there_is_no_body),
        cmocka_unit_test(http_sends_empty_headers),
        cmocka_unit_test(attachments_carry_no_headers),
        cmocka_unit_test(a_subject_that_is_no_text_ends),
        cmocka_unit_test(what_is_not_granted_is_a_misuse),
    };

    log_init(LOG_ERROR, LOG_HUMAN, "test");
    return cmocka_run_group_tests_name("effects", alone, NULL, NULL);
}
