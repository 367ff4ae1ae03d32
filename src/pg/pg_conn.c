/*
 * One connection: a state machine under two watchers.
 *
 * RESOLVING → CONNECTING → SETUP → UP, and from anywhere to DEAD, where it
 * ends; the pool makes a new one. One request runs at a time. Statements go
 * out in libpq's pipeline mode, so a request of one statement and a request of
 * five take the same path: send all, sync, read until the sync comes back.
 * Only then do callbacks run, with the connection already free for the next
 * request, so a callback may do anything with it.
 *
 * COPY and scripts are not possible in pipeline mode and leave it.
 *
 * pg_connect.c brings a connection up, here requests go out, pg_answer.c reads
 * what comes back.
 */
#include "pg/pg_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "pg";

static void stop_watchers(struct pg_conn *conn)
{
    ev_io_stop(conn->pool->loop, &conn->reader);
    ev_io_stop(conn->pool->loop, &conn->writer);
    ev_timer_stop(conn->pool->loop, &conn->deadline);
    ev_timer_stop(conn->pool->loop, &conn->cancelling);
}

static void set_watcher(struct pg_conn *conn, ev_io *w, bool on)
{
    if (on == (bool)ev_is_active(w))
        return;
    if (on)
        ev_io_start(conn->pool->loop, w);
    else
        ev_io_stop(conn->pool->loop, w);
}

void conn_set_state(struct pg_conn *conn, enum conn_state state)
{
    bool was_up = conn->state == CONN_UP;

    CHECK(conn->state != CONN_DEAD);
    conn->state = state;
    if (state == CONN_UP)
        pool_on_up(conn->pool, conn);
    else if (state == CONN_DEAD)
        pool_on_down(conn->pool, conn, was_up);
}

static void fail_queue(struct pg_conn *conn, const struct err *err)
{
    struct pg_request *req = conn->current;

    conn->current = NULL;
    if (req)
        request_finish(req, err);
    while (!list_is_empty(&conn->queue))
        request_finish(CONTAINER_OF(conn->queue.next, struct pg_request, link),
                       err);
}

void conn_fail(struct pg_conn *conn, const struct err *err)
{
    if (conn->state == CONN_DEAD)
        return;
    conn->lost = *err;
    stop_watchers(conn);
    resolver_abandon(conn->resolver);
    conn->resolver = NULL;
    PQfinish(conn->pq);
    conn->pq = NULL;
    conn_set_state(conn, CONN_DEAD);
    fail_queue(conn, err);
}

void conn_fail_by_libpq(struct pg_conn *conn)
{
    struct err err;

    result_error(NULL, conn->pq, &err);
    conn_fail(conn, &err);
}

void conn_free(struct pg_conn *conn)
{
    CHECK(conn->state == CONN_DEAD);
    list_remove(&conn->link);
    if (conn->building)
        request_free(conn->building);
    stmts_fini(&conn->stmts);
    free(conn);
}

/* --- sending -------------------------------------------------------------- */

void conn_flush(struct pg_conn *conn)
{
    int rc = PQflush(conn->pq);

    if (rc < 0)
        conn->broken = true;
    set_watcher(conn, &conn->writer, rc == 1);
}

static bool use_pipeline(struct pg_conn *conn, bool on)
{
    if ((PQpipelineStatus(conn->pq) != PQ_PIPELINE_OFF) == on)
        return true;
    return on ? PQenterPipelineMode(conn->pq) : PQexitPipelineMode(conn->pq);
}

static bool send_plain(struct pg_conn *conn, const struct op *op)
{
    return PQsendQueryParams(conn->pq, op->sql, op->n, op->types, op->values,
                             op->lens, op->formats, 0);
}

static bool send_op(struct pg_conn *conn, struct op *op)
{
    struct stmt *stmt;
    char name[32];

    if (conn->pool->opts.no_prepare || op->once)
        return send_plain(conn, op);
    stmt = stmts_use(&conn->stmts, op);
    if (stmt->uses < 2)
        return send_plain(conn, op);
    snprintf(name, sizeof(name), "mt%llu", (unsigned long long)stmt->id);
    op->stmt = stmt->id;
    if (!stmt->sent) {
        if (!PQsendPrepare(conn->pq, name, op->sql, op->n, op->types))
            return false;
        stmt->sent = op->preparing = true;
    }
    return PQsendQueryPrepared(conn->pq, name, op->n, op->values, op->lens,
                               op->formats, 0);
}

static bool send_pipeline(struct pg_conn *conn, struct pg_request *req)
{
    if (!use_pipeline(conn, true))
        return false;
    for (int i = 0; i < req->nops; i++)
        if (!send_op(conn, &req->ops[i]))
            return false;
    return PQpipelineSync(conn->pq);
}

static bool send_request(struct pg_conn *conn, struct pg_request *req)
{
    if (req->kind == REQUEST_PIPELINE)
        return send_pipeline(conn, req);
    return use_pipeline(conn, false) && PQsendQuery(conn->pq, req->ops[0].sql);
}

/* A request that cannot even be sent means that the connection is gone; its
 * callback waits for the kick, for this may be inside the asking call. */
void conn_start_next(struct pg_conn *conn)
{
    struct pg_request *req;

    if (conn->current || conn->broken || list_is_empty(&conn->queue))
        return;
    req = CONTAINER_OF(conn->queue.next, struct pg_request, link);
    list_remove(&req->link);
    conn->current = req;
    req->running = true;
    if (!send_request(conn, req))
        conn->broken = true;
    else
        conn_flush(conn);
    if (conn->broken)
        pool_kick(conn->pool);
}

void conn_enqueue(struct pg_conn *conn, struct pg_request *req)
{
    list_append(&conn->queue, &req->link);
    if (conn->state == CONN_DEAD)
        pool_kick(conn->pool);
    else if (conn->state == CONN_UP || conn->state == CONN_SETUP)
        conn_start_next(conn);
}

bool conn_is_free(const struct pg_conn *conn)
{
    return conn->state == CONN_UP && !conn->pinned && !conn->current &&
           !conn->broken && !conn->cancelled && !conn->listener &&
           list_is_empty(&conn->queue);
}

/* --- for whoever pinned it ------------------------------------------------ */

int pg_conn_pid(const struct pg_conn *conn)
{
    return conn->pq ? PQbackendPID(conn->pq) : 0;
}

bool pg_conn_alive(const struct pg_conn *conn)
{
    return conn->state == CONN_UP && !conn->broken;
}

bool pg_conn_in_transaction(const struct pg_conn *conn)
{
    return conn->pq && PQtransactionStatus(conn->pq) != PQTRANS_IDLE;
}

void pg_conn_soil(struct pg_conn *conn)
{
    conn->soiled = true;
}

void pg_query(struct pg_conn *conn, const char *sql, int n,
              const struct pg_param *params, pg_result_fn *cb, void *arg)
{
    struct pg_request *req = request_new(conn->pool, REQUEST_PIPELINE);

    CHECK(!conn->building);
    request_add(req, sql, n, params, cb, arg);
    conn_enqueue(conn, req);
}

void pg_pipeline_begin(struct pg_conn *conn)
{
    CHECK(!conn->building);
    conn->building = request_new(conn->pool, REQUEST_PIPELINE);
}

void pg_pipeline_queue(struct pg_conn *conn, const char *sql, int n,
                       const struct pg_param *params, pg_result_fn *cb,
                       void *arg)
{
    CHECK(conn->building);
    request_add(conn->building, sql, n, params, cb, arg);
}

void pg_pipeline_queue_once(struct pg_conn *conn, const char *sql)
{
    CHECK(conn->building);
    request_add(conn->building, sql, 0, NULL, NULL, NULL)->once = true;
}

void pg_pipeline_sync(struct pg_conn *conn, pg_result_fn *cb, void *arg)
{
    struct pg_request *req = conn->building;

    CHECK(req && req->nops > 0);
    conn->building = NULL;
    req->sync_cb = cb;
    req->arg = arg;
    conn_enqueue(conn, req);
}

void pg_copy_in(struct pg_conn *conn, const char *sql, const char *rows,
                size_t len, pg_result_fn *cb, void *arg)
{
    struct pg_request *req = request_new(conn->pool, REQUEST_COPY);

    request_add(req, sql, 0, NULL, cb, arg);
    req->copy = xmalloc(len + 1);
    memcpy(req->copy, rows, len);
    req->copy_len = len;
    conn_enqueue(conn, req);
}

void pg_stream(struct pg_conn *conn, const char *sql, pg_stream_fn *data,
               pg_result_fn *cb, void *arg)
{
    struct pg_request *req = request_new(conn->pool, REQUEST_STREAM);

    request_add(req, sql, 0, NULL, cb, arg);
    req->stream = data;
    req->arg = arg;
    conn_enqueue(conn, req);
}

bool pg_stream_send(struct pg_conn *conn, const char *bytes, size_t len)
{
    if (!conn->current || !conn->current->is_streaming ||
        PQputCopyData(conn->pq, bytes, (int)len) != 1)
        return false;
    conn_flush(conn);
    return true;
}

/* PQcancel() opens a connection of its own and waits for it. */
static void *cancel_thread(void *arg)
{
    char why[256];

    if (!PQcancel(arg, why, sizeof(why)))
        log_debug("cancel failed", "err=" LOG_Q, why);
    PQfreeCancel(arg);
    return NULL;
}

static void send_cancel(struct pg_conn *conn)
{
    PGcancel *cancel = conn->pq ? PQgetCancel(conn->pq) : NULL;
    pthread_t thread;

    if (!cancel)
        return;
    conn->cancelled = true;
    if (pthread_create(&thread, NULL, cancel_thread, cancel) == 0)
        pthread_detach(thread);
    else
        PQfreeCancel(cancel);
}

/* A server that has not read the statement yet drops its cancel. Once released
 * nothing follows that a second one could hit. */
static void on_cancel_again(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct pg_conn *conn = w->data;

    (void)revents;
    if (conn->current && !conn->pinned)
        send_cancel(conn);
    else
        ev_timer_stop(loop, w);
}

void pg_cancel(struct pg_conn *conn)
{
    send_cancel(conn);
    if (!conn->cancelled || ev_is_active(&conn->cancelling))
        return;
    ev_timer_init(&conn->cancelling, on_cancel_again, 1, 1);
    conn->cancelling.data = conn;
    ev_timer_start(conn->pool->loop, &conn->cancelling);
}
