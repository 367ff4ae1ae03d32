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

enum { COPY_PIECE = 64 * 1024 };

static void stop_watchers(struct pg_conn *conn)
{
    ev_io_stop(conn->pool->loop, &conn->reader);
    ev_io_stop(conn->pool->loop, &conn->writer);
    ev_timer_stop(conn->pool->loop, &conn->deadline);
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

static void set_state(struct pg_conn *conn, enum conn_state state)
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
    set_state(conn, CONN_DEAD);
    fail_queue(conn, err);
}

static void fail_by_libpq(struct pg_conn *conn)
{
    struct err err;

    result_error(NULL, conn->pq, &err);
    conn_fail(conn, &err);
}

/* --- sending -------------------------------------------------------------- */

/* Keep the writer on while libpq has bytes it could not send. */
static void flush(struct pg_conn *conn)
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

    if (conn->pool->opts.no_prepare)
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
static void start_next(struct pg_conn *conn)
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
        flush(conn);
    if (conn->broken)
        pool_kick(conn->pool);
}

void conn_enqueue(struct pg_conn *conn, struct pg_request *req)
{
    list_append(&conn->queue, &req->link);
    if (conn->state == CONN_DEAD)
        pool_kick(conn->pool);
    else if (conn->state == CONN_UP || conn->state == CONN_SETUP)
        start_next(conn);
}

bool conn_is_free(const struct pg_conn *conn)
{
    return conn->state == CONN_UP && !conn->pinned && !conn->current &&
           !conn->broken && !conn->cancelled && !conn->listener &&
           list_is_empty(&conn->queue);
}

/* Hand the next piece to libpq; its buffer takes what the socket does not. */
static bool feed_copy(struct pg_conn *conn, struct pg_request *req)
{
    while (req->copy_sent < req->copy_len) {
        size_t left = req->copy_len - req->copy_sent;
        int piece = left < COPY_PIECE ? (int)left : COPY_PIECE;
        int rc = PQputCopyData(conn->pq, req->copy + req->copy_sent, piece);

        if (rc < 0)
            return false;
        if (rc == 0)
            break;
        req->copy_sent += (size_t)piece;
        if (PQflush(conn->pq) == 1)
            break;
    }
    return true;
}

/* --- reading -------------------------------------------------------------- */

/* Between two transactions of a connection nobody owns: forget old plans, and
 * never hand on a transaction that somebody left open. */
static bool housekeeping(struct pg_conn *conn)
{
    struct pg_request *req;
    char *sql = NULL;

    if (conn->pinned || conn->listener || !list_is_empty(&conn->queue))
        return false;
    if (PQtransactionStatus(conn->pq) != PQTRANS_IDLE)
        sql = xstrdup("ROLLBACK");
    else if (conn->stmts.nstale > 0)
        sql = stmts_stale_sql(&conn->stmts);
    if (!sql)
        return false;
    req = request_new(conn->pool, REQUEST_SCRIPT);
    request_add(req, sql, 0, NULL, NULL, NULL);
    free(sql);
    conn_enqueue(conn, req);
    return true;
}

/* A cancel may still be under way and would hit whoever comes next. */
static void retire(struct pg_conn *conn)
{
    struct err err;

    err_code(&err, ERR_RETRIABLE, "57014", "statement cancelled");
    conn_fail(conn, &err);
}

static void on_ready(struct pg_conn *conn)
{
    if (conn->cancelled && !conn->pinned) {
        retire(conn);
        return;
    }
    if (conn->state == CONN_SETUP)
        set_state(conn, CONN_UP);
    start_next(conn);
    if (!conn->current && conn->state == CONN_UP && !housekeeping(conn))
        pool_on_free(conn->pool, conn);
}

static bool setup_failed(struct pg_conn *conn, const struct pg_request *req)
{
    struct err err;

    if (conn->state != CONN_SETUP || !req->ops[0].failed)
        return false;
    err = req->ops[0].err;
    err_wrap(&err, "session settings");
    conn_fail(conn, &err);
    return true;
}

static void request_done(struct pg_conn *conn)
{
    struct pg_request *req = conn->current;

    if (setup_failed(conn, req))
        return;
    conn->current = NULL;
    if (conn->pinned)
        start_next(conn);
    request_finish(req, NULL);
    if (conn->state != CONN_DEAD && !conn->current)
        on_ready(conn);
}

static void op_fail(struct pg_conn *conn, struct op *op, PGresult *res)
{
    op->failed = true;
    op->res = result_new(res);
    result_error(res, conn->pq, &op->err);
    if (!op->stmt)
        return;
    if (op->preparing)
        stmts_drop(&conn->stmts, op->stmt, false);
    else if (strcmp(op->err.code, "0A000") == 0 ||
             strcmp(op->err.code, "26000") == 0) {
        /* A table changed under the plan: the next try makes a new one. */
        stmts_drop(&conn->stmts, op->stmt, op->err.code[0] == '0');
        op->err.kind = ERR_RETRIABLE;
    }
}

/* A plan never made because something before it failed is not there. */
static void op_skipped(struct pg_conn *conn, struct op *op)
{
    if (op->preparing)
        stmts_drop(&conn->stmts, op->stmt, false);
}

static bool is_copy(ExecStatusType status)
{
    return status == PGRES_COPY_IN || status == PGRES_COPY_OUT ||
           status == PGRES_COPY_BOTH;
}

/* COPY where it was not announced would leave the protocol in a state from
 * which only a new connection helps. */
static void refuse_copy(struct pg_conn *conn)
{
    struct err err;

    err_code(&err, ERR_PERMANENT, "0A000",
             "COPY is not possible as a plain statement");
    conn_fail(conn, &err);
}

static void keep_result(struct pg_conn *conn, struct op *op, PGresult *res)
{
    ExecStatusType status = PQresultStatus(res);

    if (status == PGRES_PIPELINE_ABORTED)
        op_skipped(conn, op);
    if (status == PGRES_PIPELINE_ABORTED || op->failed ||
        (op->preparing && status == PGRES_COMMAND_OK)) {
        PQclear(res);
        return;
    }
    if (status == PGRES_FATAL_ERROR || status == PGRES_BAD_RESPONSE) {
        op_fail(conn, op, res);
        return;
    }
    pg_result_unref(op->res); /* of a script the last one counts */
    op->res = result_new(res);
}

/* Returns false when the request is over or the connection is. */
static bool pipeline_step(struct pg_conn *conn, PGresult *res)
{
    struct pg_request *req = conn->current;
    struct op *op = &req->ops[req->at < req->nops ? req->at : req->nops - 1];

    if (!res) {
        if (op->preparing)
            op->preparing = false;
        else
            req->at++;
        return true;
    }
    if (PQresultStatus(res) == PGRES_PIPELINE_SYNC) {
        PQclear(res);
        request_done(conn);
        return false;
    }
    if (is_copy(PQresultStatus(res))) {
        PQclear(res);
        refuse_copy(conn);
        return false;
    }
    keep_result(conn, op, res);
    return true;
}

static bool copy_step(struct pg_conn *conn, struct pg_request *req)
{
    if (!feed_copy(conn, req))
        return false;
    if (req->copy_sent == req->copy_len && !req->copy_ended) {
        int rc = PQputCopyEnd(conn->pq, NULL);

        if (rc < 0)
            return false;
        req->copy_ended = rc == 1;
    }
    flush(conn);
    return true;
}

static bool script_step(struct pg_conn *conn, PGresult *res)
{
    struct pg_request *req = conn->current;

    if (!res) {
        request_done(conn);
        return false;
    }
    if (!is_copy(PQresultStatus(res))) {
        keep_result(conn, &req->ops[0], res);
        return true;
    }
    if (req->kind != REQUEST_COPY || PQresultStatus(res) != PGRES_COPY_IN) {
        PQclear(res);
        refuse_copy(conn);
        return false;
    }
    PQclear(res);
    if (!copy_step(conn, req)) {
        fail_by_libpq(conn);
        return false;
    }
    return req->copy_ended;
}

static bool step(struct pg_conn *conn, PGresult *res)
{
    if (conn->current->kind == REQUEST_PIPELINE)
        return pipeline_step(conn, res);
    return script_step(conn, res);
}

static void tell_notifications(struct pg_conn *conn)
{
    PGnotify *note;

    while (conn->state != CONN_DEAD && (note = PQnotifies(conn->pq))) {
        if (conn->listener)
            conn->listener->cb(conn->listener->arg, note->relname, note->extra);
        PQfreemem(note);
    }
}

static bool copy_is_feeding(const struct pg_conn *conn)
{
    const struct pg_request *req = conn->current;

    return req && req->kind == REQUEST_COPY && req->copy_sent > 0 &&
           !req->copy_ended;
}

static void take_results(struct pg_conn *conn)
{
    while (conn->state != CONN_DEAD && conn->current &&
           !copy_is_feeding(conn) && !PQisBusy(conn->pq))
        if (!step(conn, PQgetResult(conn->pq)))
            break;
    if (conn->state != CONN_DEAD && PQstatus(conn->pq) == CONNECTION_BAD)
        fail_by_libpq(conn);
}

static void read_results(struct pg_conn *conn)
{
    if (!PQconsumeInput(conn->pq)) {
        fail_by_libpq(conn);
        return;
    }
    tell_notifications(conn);
    if (conn->state != CONN_DEAD)
        take_results(conn);
}

/* While rows are fed the answer may have come already: an error does not wait
 * for their end, and no readable event would follow. */
static void write_more(struct pg_conn *conn)
{
    bool feeding = copy_is_feeding(conn);

    if (feeding && !copy_step(conn, conn->current)) {
        fail_by_libpq(conn);
        return;
    }
    flush(conn);
    if (conn->broken)
        fail_by_libpq(conn);
    else if (feeding)
        take_results(conn);
}

/* --- connecting ----------------------------------------------------------- */

/* Session settings and LISTEN are one script, and the connection is up when it
 * has run. An empty one is run too: it proves that the server answers. */
static void set_up(struct pg_conn *conn)
{
    const char *sql = conn->pool->opts.session_sql;
    struct pg_request *req = request_new(conn->pool, REQUEST_SCRIPT);
    char *script =
        xasprintf("%s;%s%s", sql ? sql : "", conn->listener ? "LISTEN " : "",
                  conn->listener ? conn->listener->channel : "");

    PQsetnonblocking(conn->pq, 1);
    conn->state = CONN_SETUP;
    request_add(req, script, 0, NULL, NULL, NULL);
    free(script);
    list_insert(conn->queue.next, &req->link);
    start_next(conn);
}

static void watch_socket(struct pg_conn *conn, bool want_write)
{
    int fd = PQsocket(conn->pq);

    ev_io_stop(conn->pool->loop, &conn->reader);
    ev_io_stop(conn->pool->loop, &conn->writer);
    ev_io_set(&conn->reader, fd, EV_READ);
    ev_io_set(&conn->writer, fd, EV_WRITE);
    ev_io_start(conn->pool->loop, want_write ? &conn->writer : &conn->reader);
}

/* libpq may move to another socket between two polls (several addresses, or
 * TLS refused), so the watchers are set anew each time. */
static void poll_connect(struct pg_conn *conn)
{
    switch (PQconnectPoll(conn->pq)) {
    case PGRES_POLLING_READING: watch_socket(conn, false); return;
    case PGRES_POLLING_WRITING: watch_socket(conn, true); return;
    case PGRES_POLLING_OK:
        watch_socket(conn, false);
        set_up(conn);
        return;
    case PGRES_POLLING_ACTIVE:
    case PGRES_POLLING_FAILED: fail_by_libpq(conn); return;
    }
    UNREACHABLE();
}

static void on_notice(void *arg, const char *text)
{
    const struct pg_conn *conn = arg;

    log_debug("notice", "db=%s text=" LOG_Q, conn->pool->opts.name, text);
}

/* What stands before dbname the url may override; what stands after it wins. */
static void connect_to(struct pg_conn *conn, const struct addresses *at)
{
    const struct pg_pool_options *opts = &conn->pool->opts;
    const char *const keys[] = {"application_name",
                                "keepalives_idle",
                                "keepalives_interval",
                                "tcp_user_timeout",
                                "client_encoding",
                                "dbname",
                                at->host ? "host" : NULL,
                                "hostaddr",
                                "port",
                                NULL};
    const char *const values[] = {opts->application_name,
                                  "30",
                                  "10",
                                  "30000",
                                  "UTF8",
                                  opts->url,
                                  at->host,
                                  at->hostaddr,
                                  at->port,
                                  NULL};

    conn->pq = PQconnectStartParams(keys, values, 1);
    CHECK(conn->pq);
    if (PQstatus(conn->pq) == CONNECTION_BAD) {
        fail_by_libpq(conn);
        return;
    }
    PQsetNoticeProcessor(conn->pq, on_notice, conn);
    conn->state = CONN_CONNECTING;
    watch_socket(conn, true);
}

static void on_resolved(void *arg, struct addresses *found,
                        const struct err *err)
{
    struct pg_conn *conn = arg;

    conn->resolver = NULL;
    if (err)
        conn_fail(conn, err);
    else
        connect_to(conn, found);
}

static void on_deadline(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct pg_conn *conn = w->data;
    struct err err;

    (void)loop;
    (void)revents;
    if (conn->state == CONN_UP)
        return;
    err_code(&err, ERR_RETRIABLE, "08001", "no connection within %lld ms",
             (long long)conn->pool->opts.connect_timeout_ms);
    conn_fail(conn, &err);
}

static void on_io(struct ev_loop *loop, ev_io *w, int revents)
{
    struct pg_conn *conn = w->data;

    (void)loop;
    if (conn->state == CONN_CONNECTING) {
        poll_connect(conn);
        return;
    }
    if (revents & EV_WRITE)
        write_more(conn);
    if (conn->state != CONN_DEAD && (revents & EV_READ))
        read_results(conn);
}

struct pg_conn *conn_start(struct pg_pool *pool, struct listener *listener)
{
    struct pg_conn *conn = xcalloc(1, sizeof(*conn));
    double limit = (double)pool->opts.connect_timeout_ms / 1000;

    conn->pool = pool;
    conn->listener = listener;
    if (listener)
        listener->conn = conn;
    list_init(&conn->queue);
    stmts_init(&conn->stmts);
    list_append(&pool->conns, &conn->link);
    ev_init(&conn->reader, on_io);
    ev_init(&conn->writer, on_io);
    ev_timer_init(&conn->deadline, on_deadline, limit, 0);
    conn->reader.data = conn->writer.data = conn->deadline.data = conn;
    ev_timer_start(pool->loop, &conn->deadline);
    conn->state = CONN_RESOLVING;
    if (resolver_is_needed(pool->opts.url))
        conn->resolver =
            resolver_start(pool->loop, pool->opts.url, on_resolved, conn);
    if (!conn->resolver)
        connect_to(conn, &(struct addresses){0});
    return conn;
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

/* PQcancel() opens a connection of its own and waits for it. */
static void *cancel_thread(void *arg)
{
    char why[256];

    if (!PQcancel(arg, why, sizeof(why)))
        log_debug("cancel failed", "err=" LOG_Q, why);
    PQfreeCancel(arg);
    return NULL;
}

void pg_cancel(struct pg_conn *conn)
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
