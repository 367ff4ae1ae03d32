/*
 * The pool without a server, and against a real one when MOONTIDE_TEST_PG
 * names it (tests/integration runs this program so).
 */
#include "pg/pg.h"

#include "base/log.h"

#include <dlfcn.h>
#include <ev.h>
#include <libpq-fe.h>
#include <netdb.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NOBODY "postgres://u@127.0.0.1:9/none"

static struct ev_loop *loop;

struct answer {
    int calls;
    bool failed;
    struct err err;
    char sqlstate[6];
    const struct pg_result *res;
    struct pg_conn *conn;
};

static void give_up(struct ev_loop *l, ev_timer *w, int revents)
{
    (void)revents;
    *(bool *)w->data = true;
    ev_break(l, EVBREAK_ALL);
}

/* Run the loop until `*n` reaches `want`; false after ten seconds. */
static bool wait_for(const int *n, int want)
{
    bool late = false;
    ev_timer limit;

    ev_timer_init(&limit, give_up, 10, 0);
    limit.data = &late;
    ev_timer_start(loop, &limit);
    while (*n < want && !late)
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &limit);
    return *n >= want;
}

static void on_result(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct answer *a = arg;

    a->calls++;
    a->failed = err != NULL;
    if (err)
        a->err = *err;
    snprintf(a->sqlstate, sizeof(a->sqlstate), "%s", pg_result_sqlstate(res));
    pg_result_unref(a->res);
    a->res = res ? pg_result_ref(res) : NULL;
}

static void on_acquired(void *arg, struct pg_conn *conn, const struct err *err)
{
    struct answer *a = arg;

    a->calls++;
    a->failed = err != NULL;
    if (err)
        a->err = *err;
    a->conn = conn;
}

static void answer_fini(struct answer *a)
{
    pg_result_unref(a->res);
    a->res = NULL;
}

static struct pg_pool *pool_to(const char *url, int size)
{
    struct err err;
    struct pg_pool_options opts = {
        .url = url, .size = size, .backoff_base_ms = 5, .backoff_cap_ms = 20};
    struct pg_pool *pool = pg_pool_new(loop, &opts, &err);

    assert_non_null(pool);
    return pool;
}

/* --- without a server ----------------------------------------------------- */

static void a_url_that_is_none_is_refused(void **state)
{
    struct err err;
    struct pg_pool_options opts = {.url = "postgres://[bad"};

    (void)state;
    assert_null(pg_pool_new(loop, &opts, &err));
    assert_int_equal(err.kind, ERR_PERMANENT);
    assert_non_null(strstr(err.msg, "database url"));
}

static void a_request_gives_up_when_nobody_answers(void **state)
{
    struct err err;
    struct pg_pool_options opts = {
        .url = NOBODY, .queue_timeout_ms = 50, .backoff_base_ms = 5};
    struct pg_pool *pool = pg_pool_new(loop, &opts, &err);
    struct answer query = {0}, pin = {0};

    (void)state;
    assert_non_null(pool);
    pg_pool_query(pool, "SELECT 1", 0, NULL, on_result, &query);
    pg_pool_acquire(pool, on_acquired, &pin);
    assert_int_equal(query.calls, 0);
    assert_true(wait_for(&pin.calls, 1));
    assert_int_equal(query.calls, 1);
    assert_true(query.failed && pin.failed);
    assert_null(pin.conn);
    assert_int_equal(query.err.kind, ERR_RETRIABLE);
    assert_string_equal(query.sqlstate, "08006");
    assert_false(pg_pool_connected(pool));
    assert_non_null(pg_pool_error(pool));
    pg_pool_free(pool);
}

static void a_forgotten_request_is_never_answered(void **state)
{
    struct pg_pool *pool = pool_to(NOBODY, 1);
    struct answer gone = {0}, told = {0};
    struct pg_request *req =
        pg_pool_query(pool, "SELECT 1", 0, NULL, on_result, &gone);

    (void)state;
    pg_pool_query(pool, "SELECT 1", 0, NULL, on_result, &told);
    pg_request_forget(req);
    pg_pool_free(pool);
    assert_int_equal(gone.calls, 0);
    assert_int_equal(told.calls, 1);
    assert_string_equal(told.err.msg, "shutting down");
}

static atomic_bool look_up_began;
static sem_t look_up_may_end;

/* In the place of libc's: the host that is none is looked up for as long as the
 * test wants. */
int getaddrinfo(const char *name, const char *service,
                const struct addrinfo *hints, struct addrinfo **list)
{
    int (*libc)(const char *, const char *, const struct addrinfo *,
                struct addrinfo **);

    if (name && strcmp(name, "no-such-host.invalid") == 0) {
        atomic_store(&look_up_began, true);
        sem_wait(&look_up_may_end);
        return EAI_NONAME;
    }
    *(void **)&libc = dlsym(RTLD_NEXT, "getaddrinfo");
    return libc(name, service, hints, list);
}

static void a_name_is_looked_up_off_the_loop(void **state)
{
    struct pg_pool *pool =
        pool_to("postgres://u@no-such-host.invalid:5432/x", 1);

    (void)state;
    sem_init(&look_up_may_end, 0, 0);
    while (!atomic_load(&look_up_began)) /* in a thread, or this never ends */
        ev_run(loop, EVRUN_NOWAIT);
    ev_run(loop, EVRUN_NOWAIT);
    assert_null(pg_pool_error(pool));
    sem_post(&look_up_may_end);
    while (!pg_pool_error(pool))
        ev_run(loop, EVRUN_ONCE);
    assert_non_null(strstr(pg_pool_error(pool)->msg, "no-such-host"));
    pg_pool_free(pool);
}

static void sqlstates_say_whether_to_try_again(void **state)
{
    (void)state;
    assert_int_equal(pg_sqlstate_kind("40001"), ERR_RETRIABLE);
    assert_int_equal(pg_sqlstate_kind("55P03"), ERR_RETRIABLE);
    assert_int_equal(pg_sqlstate_kind("57014"), ERR_RETRIABLE);
    assert_int_equal(pg_sqlstate_kind("08006"), ERR_RETRIABLE);
    assert_int_equal(pg_sqlstate_kind("23505"), ERR_PERMANENT);
    assert_int_equal(pg_sqlstate_kind("42P01"), ERR_PERMANENT);
    assert_int_equal(pg_sqlstate_kind("25P02"), ERR_PERMANENT);
}

static void identifiers_are_quoted(void **state)
{
    char out[16];

    (void)state;
    assert_true(pg_quote_ident("a\"b", out, sizeof(out)));
    assert_string_equal(out, "\"a\"\"b\"");
    assert_false(pg_quote_ident("much_too_long_name", out, sizeof(out)));
}

/* --- with one ------------------------------------------------------------- */

static struct answer ask(struct pg_pool *pool, const char *sql, int n,
                         const struct pg_param *params)
{
    struct answer a = {0};

    pg_pool_query(pool, sql, n, params, on_result, &a);
    assert_true(wait_for(&a.calls, 1));
    return a;
}

static struct pg_conn *pin(struct pg_pool *pool)
{
    struct answer a = {0};

    pg_pool_acquire(pool, on_acquired, &a);
    assert_true(wait_for(&a.calls, 1));
    assert_non_null(a.conn);
    return a.conn;
}

static struct answer ask_on(struct pg_conn *conn, const char *sql)
{
    struct answer a = {0};

    pg_query(conn, sql, 0, NULL, on_result, &a);
    assert_true(wait_for(&a.calls, 1));
    return a;
}

static const char *server(void)
{
    return getenv("MOONTIDE_TEST_PG");
}

static void statements_with_parameters_give_rows(void **state)
{
    struct pg_pool *pool = pool_to(server(), 2);
    const struct pg_param params[] = {{.value = "41"}, {.value = NULL}};

    (void)state;
    for (int i = 0; i < 4; i++) { /* plain, prepared, twice from the cache */
        struct answer a =
            ask(pool, "SELECT $1::int + 1 AS n, $2::text AS t", 2, params);

        assert_false(a.failed);
        assert_int_equal(pg_result_nrows(a.res), 1);
        assert_int_equal(pg_result_col(a.res, "t"), 1);
        assert_string_equal(pg_result_value(a.res, 0, 0), "42");
        assert_true(pg_result_is_null(a.res, 0, 1));
        assert_int_equal(pg_result_type(a.res, 0), PG_INT4);
        answer_fini(&a);
    }
    pg_pool_free(pool);
}

static void a_failed_statement_names_its_sqlstate(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct answer a = ask(pool, "SELECT * FROM no_such_table", 0, NULL);

        assert_true(a.failed);
        assert_string_equal(a.sqlstate, "42P01");
        assert_string_equal(a.err.code, "42P01");
        assert_int_equal(a.err.kind, ERR_PERMANENT);
        answer_fini(&a);
    }
    pg_pool_free(pool);
}

static void a_pipeline_stops_at_its_first_error(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    struct pg_conn *conn = pin(pool);
    struct answer begin = {0}, bad = {0}, commit = {0}, all = {0};

    (void)state;
    pg_pipeline_begin(conn);
    pg_pipeline_queue(conn, "BEGIN", 0, NULL, on_result, &begin);
    pg_pipeline_queue(conn, "SELECT 1/0", 0, NULL, on_result, &bad);
    pg_pipeline_queue(conn, "COMMIT", 0, NULL, on_result, &commit);
    pg_pipeline_sync(conn, on_result, &all);
    assert_true(wait_for(&all.calls, 1));
    assert_false(begin.failed);
    assert_string_equal(bad.sqlstate, "22012");
    assert_true(commit.failed);
    assert_string_equal(commit.err.code, "22012");
    assert_string_equal(all.sqlstate, "22012");
    assert_true(pg_conn_in_transaction(conn));
    pg_pool_release(conn);

    /* The pool rolled it back before it gave the connection on. */
    conn = pin(pool);
    assert_false(pg_conn_in_transaction(conn));
    pg_pool_release(conn);
    answer_fini(&begin);
    answer_fini(&bad);
    answer_fini(&commit);
    answer_fini(&all);
    pg_pool_free(pool);
}

static void commit_of_a_failed_transaction_says_rollback(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    struct pg_conn *conn = pin(pool);
    struct answer a;

    (void)state;
    a = ask_on(conn, "BEGIN");
    answer_fini(&a);
    a = ask_on(conn, "SELECT 1/0");
    answer_fini(&a);
    a = ask_on(conn, "COMMIT");
    assert_false(a.failed);
    assert_string_equal(pg_result_tag(a.res), "ROLLBACK");
    answer_fini(&a);
    pg_pool_release(conn);
    pg_pool_free(pool);
}

static void copy_takes_more_than_a_socket_holds(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    struct pg_conn *conn = pin(pool);
    size_t rows = 400000, at = 0;
    char *text = malloc(rows * 16);
    struct answer a;

    (void)state;
    for (size_t i = 0; i < rows; i++)
        at += (size_t)sprintf(text + at, "%zu\tx\n", i);
    a = ask_on(conn, "CREATE TEMP TABLE c (n int, t text)");
    answer_fini(&a);
    a = (struct answer){0};
    pg_copy_in(conn, "COPY c FROM STDIN", text, at, on_result, &a);
    assert_true(wait_for(&a.calls, 1));
    assert_false(a.failed);
    assert_int_equal(pg_result_affected(a.res), rows);
    answer_fini(&a);

    /* Bad rows fail and leave a connection that works. */
    a = (struct answer){0};
    pg_copy_in(conn, "COPY c FROM STDIN", "x\ty\n", 4, on_result, &a);
    assert_true(wait_for(&a.calls, 1));
    assert_string_equal(a.sqlstate, "22P02");
    answer_fini(&a);
    a = (struct answer){0};
    pg_copy_in(conn, "COPY no_such FROM STDIN", text, at, on_result, &a);
    assert_true(wait_for(&a.calls, 1));
    assert_string_equal(a.sqlstate, "42P01");
    answer_fini(&a);
    memcpy(text, "bad", 3); /* the first of many rows: the end comes early */
    a = (struct answer){0};
    pg_copy_in(conn, "COPY c FROM STDIN", text, at, on_result, &a);
    assert_true(wait_for(&a.calls, 1));
    assert_string_equal(a.sqlstate, "22P02");
    answer_fini(&a);
    a = ask_on(conn, "SELECT count(*) FROM c");
    assert_string_equal(pg_result_value(a.res, 0, 0), "400000");
    answer_fini(&a);
    pg_pool_release(conn);
    pg_pool_free(pool);
    free(text);
}

static void copy_as_a_plain_statement_is_refused(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    struct answer a = ask(pool, "COPY pg_class TO STDOUT", 0, NULL);

    (void)state;
    assert_true(a.failed);
    assert_non_null(strstr(a.err.msg, "COPY"));
    answer_fini(&a);
    a = ask(pool, "SELECT 1", 0, NULL);
    assert_false(a.failed);
    answer_fini(&a);
    pg_pool_free(pool);
}

static void a_lost_connection_is_told_and_replaced(void **state)
{
    struct pg_pool *pool = pool_to(server(), 2);
    struct pg_conn *conn = pin(pool);
    struct answer sleeping = {0}, after = {0}, a;
    char sql[80];

    (void)state;
    pg_query(conn, "SELECT pg_sleep(3600)", 0, NULL, on_result, &sleeping);
    snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)",
             pg_conn_pid(conn));
    a = ask(pool, sql, 0, NULL);
    answer_fini(&a);
    assert_true(wait_for(&sleeping.calls, 1));
    assert_true(sleeping.failed);
    assert_int_equal(sleeping.err.kind, ERR_RETRIABLE);
    pg_query(conn, "SELECT 1", 0, NULL, on_result, &after);
    assert_int_equal(after.calls, 0);
    assert_true(wait_for(&after.calls, 1));
    assert_true(after.failed);
    assert_false(pg_conn_alive(conn));
    pg_pool_release(conn);
    a = ask(pool, "SELECT 1", 0, NULL);
    assert_false(a.failed);
    answer_fini(&a);
    answer_fini(&sleeping);
    pg_pool_free(pool);
}

static void release_cancels_what_still_runs(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    struct pg_conn *conn = pin(pool);
    struct answer never = {0}, a;

    (void)state;
    pg_query(conn, "SELECT pg_sleep(3600)", 0, NULL, on_result, &never);
    ev_run(loop, EVRUN_NOWAIT);
    pg_pool_release(conn);
    a = ask(pool, "SELECT 1", 0, NULL);
    assert_false(a.failed);
    assert_int_equal(never.calls, 0);
    answer_fini(&a);
    pg_pool_free(pool);
}

static atomic_int cancels_to_lose;

/* In the place of libpq's: a cancel that overtakes its statement is lost. */
int PQcancel(PGcancel *cancel, char *why, int size)
{
    int (*libpq)(PGcancel *, char *, int);

    if (atomic_load(&cancels_to_lose) > 0) {
        atomic_fetch_sub(&cancels_to_lose, 1);
        return 1;
    }
    *(void **)&libpq = dlsym(RTLD_NEXT, "PQcancel");
    return libpq(cancel, why, size);
}

static void a_cancel_that_is_lost_is_sent_again(void **state)
{
    atomic_store(&cancels_to_lose, 1);
    release_cancels_what_still_runs(state);
    assert_int_equal(atomic_load(&cancels_to_lose), 0);
}

static void requests_share_a_small_pool_in_order(void **state)
{
    struct pg_pool *pool = pool_to(server(), 2);
    struct answer a[200] = {0};
    int done = 0;

    (void)state;
    for (int i = 0; i < 200; i++)
        pg_pool_query(pool, "SELECT pg_backend_pid()", 0, NULL, on_result,
                      &a[i]);
    for (int i = 0; i < 200; i++) {
        assert_true(wait_for(&a[i].calls, 1));
        done += !a[i].failed;
        answer_fini(&a[i]);
    }
    assert_int_equal(done, 200);
    pg_pool_free(pool);
}

static void many_statements_outgrow_the_plan_cache(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    char sql[64];

    (void)state;
    for (int i = 0; i < 300; i++) {
        struct answer a;

        snprintf(sql, sizeof(sql), "SELECT %d", i / 3);
        a = ask(pool, sql, 0, NULL);
        assert_false(a.failed);
        answer_fini(&a);
    }
    sprintf(sql, "SELECT count(*) FROM pg_prepared_statements");
    struct answer a = ask(pool, sql, 0, NULL);

    assert_true(atoi(pg_result_value(a.res, 0, 0)) <= 64);
    answer_fini(&a);
    pg_pool_free(pool);
}

static void a_plan_survives_a_changed_table(void **state)
{
    struct pg_pool *pool = pool_to(server(), 1);
    struct pg_conn *conn = pin(pool);
    struct answer a = ask_on(conn, "CREATE TEMP TABLE p (a int)");

    (void)state;
    answer_fini(&a);
    for (int i = 0; i < 3; i++) {
        a = ask_on(conn, "SELECT * FROM p");
        assert_false(a.failed);
        answer_fini(&a);
    }
    a = ask_on(conn, "ALTER TABLE p ADD b int");
    answer_fini(&a);
    a = ask_on(conn, "SELECT * FROM p");
    assert_true(a.failed);
    assert_int_equal(a.err.kind, ERR_RETRIABLE);
    answer_fini(&a);
    a = ask_on(conn, "SELECT * FROM p");
    assert_false(a.failed);
    assert_int_equal(pg_result_ncols(a.res), 2);
    answer_fini(&a);
    pg_pool_release(conn);
    pg_pool_free(pool);
}

struct heard {
    int calls, connects;
    char last[32];
};

static void on_note(void *arg, const char *channel, const char *payload)
{
    struct heard *h = arg;

    assert_string_equal(channel, "mt_test");
    if (payload)
        snprintf(h->last, sizeof(h->last), "%s", payload);
    else
        h->connects++;
    h->calls++;
}

static void notifications_arrive_also_after_a_loss(void **state)
{
    struct pg_pool *pool = pool_to(server(), 2);
    struct heard heard = {0};
    struct answer a;

    (void)state;
    pg_pool_listen(pool, "mt_test", on_note, &heard);
    assert_true(wait_for(&heard.connects, 1));
    a = ask(pool, "NOTIFY mt_test, 'one'", 0, NULL);
    answer_fini(&a);
    assert_true(wait_for(&heard.calls, 2));
    assert_string_equal(heard.last, "one");
    a = ask(pool,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE '%LISTEN mt_test%' AND pid <> pg_backend_pid()",
            0, NULL);
    answer_fini(&a);
    assert_true(wait_for(&heard.connects, 2));
    a = ask(pool, "NOTIFY mt_test, 'two'", 0, NULL);
    answer_fini(&a);
    assert_true(wait_for(&heard.calls, 4));
    assert_string_equal(heard.last, "two");
    pg_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(a_url_that_is_none_is_refused),
        cmocka_unit_test(a_request_gives_up_when_nobody_answers),
        cmocka_unit_test(a_forgotten_request_is_never_answered),
        cmocka_unit_test(a_name_is_looked_up_off_the_loop),
        cmocka_unit_test(sqlstates_say_whether_to_try_again),
        cmocka_unit_test(identifiers_are_quoted),
    };
    const struct CMUnitTest with_server[] = {
        cmocka_unit_test(statements_with_parameters_give_rows),
        cmocka_unit_test(a_failed_statement_names_its_sqlstate),
        cmocka_unit_test(a_pipeline_stops_at_its_first_error),
        cmocka_unit_test(commit_of_a_failed_transaction_says_rollback),
        cmocka_unit_test(copy_takes_more_than_a_socket_holds),
        cmocka_unit_test(copy_as_a_plain_statement_is_refused),
        cmocka_unit_test(a_lost_connection_is_told_and_replaced),
        cmocka_unit_test(release_cancels_what_still_runs),
        cmocka_unit_test(a_cancel_that_is_lost_is_sent_again),
        cmocka_unit_test(requests_share_a_small_pool_in_order),
        cmocka_unit_test(many_statements_outgrow_the_plan_cache),
        cmocka_unit_test(a_plan_survives_a_changed_table),
        cmocka_unit_test(notifications_arrive_also_after_a_loss),
    };
    int failed;

    log_init(LOG_ERROR, LOG_HUMAN, "test");
    loop = ev_default_loop(0);
    failed = cmocka_run_group_tests_name("pg", alone, NULL, NULL);
    if (server())
        failed += cmocka_run_group_tests_name("pg with a server", with_server,
                                              NULL, NULL);
    ev_loop_destroy(loop);
    return failed;
}
