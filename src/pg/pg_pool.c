/*
 * The pool keeps requests in the order they came and gives each to the first
 * connection that is free. Connections are started when requests wait and the
 * pool may have more; after a failed attempt only one is tried at a time, each
 * try later than the one before it, so that a server that comes back is not
 * met by everybody at once.
 *
 * Callbacks that would run inside the call that caused them, and connections
 * that may still be on the stack, wait for the kick: a timer of zero seconds.
 */
#include "pg/pg_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "pg";

void pool_kick(struct pg_pool *pool)
{
    if (!pool->closing)
        ev_timer_start(pool->loop, &pool->kick);
}

/* --- opening connections -------------------------------------------------- */

static int count_conns(const struct pg_pool *pool, bool connecting_only)
{
    int n = 0;

    list_foreach(at, &pool->conns) {
        const struct pg_conn *c = CONTAINER_OF(at, struct pg_conn, link);

        if (!c->listener && c->state != CONN_DEAD)
            n += !connecting_only || c->state != CONN_UP;
    }
    return n;
}

static int count_waiting(const struct pg_pool *pool)
{
    int n = 0;

    list_foreach(at, &pool->waiting)
        n++;
    return n;
}

static void open_listeners(struct pg_pool *pool)
{
    list_foreach(at, &pool->listeners) {
        struct listener *l = CONTAINER_OF(at, struct listener, link);

        if (!l->conn && pool->up > 0)
            conn_start(pool, l);
    }
}

static void open_wanted(struct pg_pool *pool)
{
    int live = count_conns(pool, false), trying = count_conns(pool, true);
    int waiting = count_waiting(pool);

    if (pool->closing || ev_is_active(&pool->retry))
        return;
    while (live < pool->opts.size && (live == 0 || trying < waiting) &&
           (trying == 0 || pool->fails == 0)) {
        conn_start(pool, NULL);
        live++;
        trying++;
    }
    open_listeners(pool);
}

/* Between half of the backoff and all of it. */
static double backoff(const struct pg_pool *pool)
{
    int64_t ms = pool->opts.backoff_base_ms;

    for (int i = 1; i < pool->fails && ms < pool->opts.backoff_cap_ms; i++)
        ms *= 2;
    if (ms > pool->opts.backoff_cap_ms)
        ms = pool->opts.backoff_cap_ms;
    return (double)ms / 1000 *
           (0.5 + (double)arc4random() / (2.0 * UINT32_MAX));
}

static void schedule_retry(struct pg_pool *pool)
{
    pool->fails++;
    if (pool->closing || ev_is_active(&pool->retry))
        return;
    ev_timer_set(&pool->retry, backoff(pool), 0);
    ev_timer_start(pool->loop, &pool->retry);
}

static void on_retry(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    open_wanted(w->data);
}

/* --- what connections report ---------------------------------------------- */

void pool_on_up(struct pg_pool *pool, struct pg_conn *conn)
{
    ev_timer_stop(pool->loop, &conn->deadline);
    pool->fails = 0;
    if (conn->listener) {
        conn->notified = true;
        pool_kick(pool);
        return;
    }
    if (pool->up++ > 0)
        return;
    pool->has_error = false;
    log_info("database connected", "db=%s", pool->opts.name);
    if (pool->opts.on_state)
        pool->opts.on_state(pool->opts.arg, true);
    pool_kick(pool); /* listeners wait for a first connection */
}

static void remember_error(struct pg_pool *pool, const struct pg_conn *conn,
                           bool was_up)
{
    bool told = pool->has_error;

    pool->last_error = conn->lost;
    pool->has_error = true;
    if (was_up)
        log_warn("database connection lost", "db=%s err=" LOG_Q,
                 pool->opts.name, conn->lost.msg);
    else if (!told)
        log_warn("database not reached", "db=%s err=" LOG_Q " retry=on",
                 pool->opts.name, conn->lost.msg);
}

void pool_on_down(struct pg_pool *pool, struct pg_conn *conn, bool was_up)
{
    if (!pool->closing && !conn->cancelled)
        remember_error(pool, conn, was_up);
    if (conn->listener)
        conn->listener->conn = NULL;
    else if (was_up && --pool->up == 0 && pool->opts.on_state)
        pool->opts.on_state(pool->opts.arg, false);
    if (!conn->cancelled)
        schedule_retry(pool);
    if (!conn->pinned) {
        list_remove(&conn->link);
        list_append(&pool->dead, &conn->link);
    }
    pool_kick(pool);
}

static void give(struct pg_conn *conn, struct pg_request *req)
{
    list_remove(&req->link);
    if (req->kind != REQUEST_ACQUIRE) {
        conn_enqueue(conn, req);
        return;
    }
    conn->pinned = true;
    req->acquire_cb(req->arg, conn, NULL);
    request_free(req);
}

/* Called with the connection free and nothing of it on the stack that minds. */
void pool_on_free(struct pg_pool *pool, struct pg_conn *conn)
{
    while (!list_is_empty(&pool->waiting) && conn_is_free(conn))
        give(conn, CONTAINER_OF(pool->waiting.next, struct pg_request, link));
}

/* --- the kick ------------------------------------------------------------- */

static void tell_failed(struct pg_pool *pool)
{
    struct err err;

    err_code(&err, ERR_RETRIABLE, "08001",
             "no database connection within %lld "
             "ms%s%s",
             (long long)pool->opts.queue_timeout_ms,
             pool->has_error ? ": " : "",
             pool->has_error ? pool->last_error.msg : "");
    while (!list_is_empty(&pool->failed))
        request_finish(CONTAINER_OF(pool->failed.next, struct pg_request, link),
                       &err);
}

/* A connection whose send failed, or a pinned one that is asked though dead. */
static void tell_broken(struct pg_pool *pool)
{
    list_foreach_safe(at, &pool->conns) {
        struct pg_conn *conn = CONTAINER_OF(at, struct pg_conn, link);
        struct err err;

        if (conn->broken && conn->state != CONN_DEAD) {
            result_error(NULL, conn->pq, &err);
            conn_fail(conn, &err);
            pool_kick(pool);
            return; /* the list has changed: look again */
        }
        if (conn->state == CONN_DEAD && !list_is_empty(&conn->queue)) {
            request_finish(
                CONTAINER_OF(conn->queue.next, struct pg_request, link),
                &conn->lost);
            pool_kick(pool);
            return;
        }
    }
}

static void tell_listeners(struct pg_pool *pool)
{
    list_foreach_safe(at, &pool->listeners) {
        struct listener *l = CONTAINER_OF(at, struct listener, link);

        if (!l->conn || !l->conn->notified)
            continue;
        l->conn->notified = false;
        l->cb(l->arg, l->channel, NULL);
    }
}

static struct pg_conn *find_free(struct pg_pool *pool)
{
    list_foreach(at, &pool->conns) {
        struct pg_conn *conn = CONTAINER_OF(at, struct pg_conn, link);

        if (conn_is_free(conn))
            return conn;
    }
    return NULL;
}

static void serve_waiting(struct pg_pool *pool)
{
    struct pg_conn *conn;

    while (!list_is_empty(&pool->waiting) && (conn = find_free(pool)))
        give(conn, CONTAINER_OF(pool->waiting.next, struct pg_request, link));
}

static void free_dead(struct pg_pool *pool)
{
    list_foreach_safe(at, &pool->dead)
        conn_free(CONTAINER_OF(at, struct pg_conn, link));
}

static void on_kick(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct pg_pool *pool = w->data;

    (void)loop;
    (void)revents;
    tell_failed(pool);
    tell_broken(pool);
    tell_listeners(pool);
    serve_waiting(pool);
    free_dead(pool);
    open_wanted(pool);
}

/* Requests that have waited too long, looked for ten times a second. */
static void on_sweep(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct pg_pool *pool = w->data;
    double oldest = ev_now(loop) - (double)pool->opts.queue_timeout_ms / 1000;

    (void)revents;
    while (!list_is_empty(&pool->waiting)) {
        struct pg_request *req =
            CONTAINER_OF(pool->waiting.next, struct pg_request, link);

        if (req->since > oldest)
            break;
        list_remove(&req->link);
        list_append(&pool->failed, &req->link);
    }
    if (list_is_empty(&pool->waiting))
        ev_timer_stop(loop, w);
    if (!list_is_empty(&pool->failed))
        pool_kick(pool);
}

static void wait_in_line(struct pg_pool *pool, struct pg_request *req)
{
    list_append(&pool->waiting, &req->link);
    pool_kick(pool);
    if (pool->opts.queue_timeout_ms > 0 && !pool->closing)
        ev_timer_start(pool->loop, &pool->sweep);
}

/* --- public --------------------------------------------------------------- */

struct pg_request *pg_pool_query(struct pg_pool *pool, const char *sql, int n,
                                 const struct pg_param *params,
                                 pg_result_fn *cb, void *arg)
{
    struct pg_request *req = request_new(pool, REQUEST_PIPELINE);
    struct pg_conn *conn =
        list_is_empty(&pool->waiting) ? find_free(pool) : NULL;

    request_add(req, sql, n, params, cb, arg);
    if (conn)
        conn_enqueue(conn, req);
    else
        wait_in_line(pool, req);
    return req;
}

struct pg_request *pg_pool_acquire(struct pg_pool *pool, pg_acquire_fn *cb,
                                   void *arg)
{
    struct pg_request *req = request_new(pool, REQUEST_ACQUIRE);

    req->acquire_cb = cb;
    req->arg = arg;
    wait_in_line(pool, req);
    return req;
}

void pg_request_forget(struct pg_request *req)
{
    request_mute(req);
    if (!req->running)
        request_free(req);
}

static void drop_requests(struct pg_conn *conn)
{
    list_foreach_safe(at, &conn->queue)
        request_free(CONTAINER_OF(at, struct pg_request, link));
    request_free(conn->building);
    conn->building = NULL;
}

/* All that a session can carry over, except the plans that are ours; those of
 * PREPARE as a statement are somebody else's. */
static const char cleaning[] =
    "RESET SESSION AUTHORIZATION; RESET ALL; CLOSE ALL; UNLISTEN *;"
    "SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES;"
    "DO $$ DECLARE plan text; BEGIN"
    " FOR plan IN SELECT name FROM pg_prepared_statements WHERE from_sql LOOP"
    " EXECUTE format('DEALLOCATE %I', plan); END LOOP; END $$;";

/* A session that could not be cleaned is for nobody. */
static void on_cleaned(void *arg, const struct pg_result *res,
                       const struct err *err)
{
    struct pg_conn *conn = arg;

    (void)res;
    conn->cancelled |= err != NULL;
}

/* Behind a pooler in transaction mode the script would meet another session
 * than the one that it is for. */
static void clean_session(struct pg_conn *conn)
{
    const struct pg_pool_options *opts = &conn->pool->opts;
    bool is_open = PQtransactionStatus(conn->pq) != PQTRANS_IDLE;
    bool is_soiled = conn->soiled && !opts->no_prepare;
    struct pg_request *req;
    char *sql;

    conn->soiled = false;
    if (!is_open && !is_soiled)
        return;
    sql = xasprintf("%s%s%s", is_open ? "ROLLBACK;" : "",
                    is_soiled ? cleaning : "",
                    is_soiled && opts->session_sql ? opts->session_sql : "");
    req = request_new(conn->pool, REQUEST_SCRIPT);
    request_add(req, sql, 0, NULL, is_soiled ? on_cleaned : NULL, conn);
    free(sql);
    conn_enqueue(conn, req);
}

/* The pool gets the connection back at the next kick, or when what is still
 * running has ended. */
void pg_pool_release(struct pg_conn *conn)
{
    struct pg_pool *pool = conn->pool;

    CHECK(conn->pinned);
    conn->pinned = false;
    drop_requests(conn);
    if (conn->state == CONN_DEAD) {
        list_remove(&conn->link);
        list_append(&pool->dead, &conn->link);
        pool_kick(pool);
        return;
    }
    if (conn->current) {
        request_mute(conn->current);
        pg_cancel(conn);
    } else if (conn->cancelled) {
        conn->broken = true;
    } else {
        clean_session(conn);
    }
    pool_kick(pool);
}

void pg_pool_listen(struct pg_pool *pool, const char *channel, pg_notify_fn *cb,
                    void *arg)
{
    struct listener *l = xcalloc(1, sizeof(*l));

    for (const char *p = channel; *p; p++)
        CHECK(isalnum((unsigned char)*p) || *p == '_');
    l->channel = xstrdup(channel);
    l->cb = cb;
    l->arg = arg;
    list_append(&pool->listeners, &l->link);
    pool_kick(pool);
}

bool pg_pool_connected(const struct pg_pool *pool)
{
    return pool->up > 0;
}

const struct err *pg_pool_error(const struct pg_pool *pool)
{
    return pool->has_error && pool->up == 0 ? &pool->last_error : NULL;
}

static void copy_options(struct pg_pool *pool, const struct pg_pool_options *o)
{
    pool->opts = *o;
    pool->opts.url = xstrdup(o->url);
    pool->opts.name = xstrdup(o->name ? o->name : "main");
    pool->opts.application_name =
        xstrdup(o->application_name ? o->application_name : "moontide");
    pool->opts.session_sql = o->session_sql ? xstrdup(o->session_sql) : NULL;
    if (o->size <= 0)
        pool->opts.size = 4;
    if (o->backoff_base_ms <= 0)
        pool->opts.backoff_base_ms = 100;
    if (o->backoff_cap_ms <= 0)
        pool->opts.backoff_cap_ms = 5000;
    if (o->connect_timeout_ms <= 0)
        pool->opts.connect_timeout_ms = 10000;
}

struct pg_pool *pg_pool_new(struct ev_loop *loop,
                            const struct pg_pool_options *opts, struct err *err)
{
    struct pg_pool *pool;

    if (!pg_url_check(opts->url, err))
        return NULL;
    pool = xcalloc(1, sizeof(*pool));
    pool->loop = loop;
    list_init(&pool->conns);
    list_init(&pool->dead);
    list_init(&pool->waiting);
    list_init(&pool->failed);
    list_init(&pool->listeners);
    copy_options(pool, opts);
    ev_timer_init(&pool->kick, on_kick, 0, 0);
    ev_timer_init(&pool->retry, on_retry, 0, 0);
    ev_timer_init(&pool->sweep, on_sweep, 0.1, 0.1);
    pool->kick.data = pool->retry.data = pool->sweep.data = pool;
    pool_kick(pool);
    return pool;
}

static void finish_all(struct list *requests, const struct err *err)
{
    struct list taken;

    /* What a callback asks for now is not answered any more. */
    list_init(&taken);
    while (!list_is_empty(requests)) {
        struct list *first = requests->next;

        list_remove(first);
        list_append(&taken, first);
    }
    while (!list_is_empty(&taken))
        request_finish(CONTAINER_OF(taken.next, struct pg_request, link), err);
}

/* The options are const for the rest of the pool, but they are ours. */
static void free_text(const char *text)
{
    void *own;

    memcpy(&own, &text, sizeof(own));
    free(own);
}

static void free_all(struct pg_pool *pool)
{
    list_foreach_safe(at, &pool->waiting)
        request_free(CONTAINER_OF(at, struct pg_request, link));
    list_foreach_safe(at, &pool->listeners) {
        struct listener *l = CONTAINER_OF(at, struct listener, link);

        free(l->channel);
        free(l);
    }
    free_text(pool->opts.url);
    free_text(pool->opts.name);
    free_text(pool->opts.application_name);
    free_text(pool->opts.session_sql);
    free(pool);
}

void pg_pool_free(struct pg_pool *pool)
{
    struct err err;

    if (!pool)
        return;
    err_code(&err, ERR_RETRIABLE, "57P01", "shutting down");
    pool->closing = true;
    ev_timer_stop(pool->loop, &pool->kick);
    ev_timer_stop(pool->loop, &pool->retry);
    ev_timer_stop(pool->loop, &pool->sweep);
    finish_all(&pool->failed, &err);
    finish_all(&pool->waiting, &err);
    while (!list_is_empty(&pool->conns)) {
        struct pg_conn *conn =
            CONTAINER_OF(pool->conns.next, struct pg_conn, link);

        conn_fail(conn, &err);
        list_remove(&conn->link);
        list_append(&pool->dead, &conn->link);
    }
    free_dead(pool);
    free_all(pool);
}
