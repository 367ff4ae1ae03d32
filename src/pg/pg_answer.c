/*
 * What the server answers: results of the request under way, one piece at a
 * time, until its sync (or, of a script, its end) has come.
 */
#include "pg/pg_internal.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { COPY_PIECE = 64 * 1024 };

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
        conn_set_state(conn, CONN_UP);
    conn_start_next(conn);
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
        conn_start_next(conn);
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
    conn_flush(conn);
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
    if (req->kind == REQUEST_STREAM && PQresultStatus(res) == PGRES_COPY_BOTH) {
        PQclear(res);
        req->is_streaming = true;
        return true;
    }
    if (req->kind != REQUEST_COPY || PQresultStatus(res) != PGRES_COPY_IN) {
        PQclear(res);
        refuse_copy(conn);
        return false;
    }
    PQclear(res);
    if (!copy_step(conn, req)) {
        conn_fail_by_libpq(conn);
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

/* True when all that came is read; what follows its end are results again. */
static bool read_stream(struct pg_conn *conn)
{
    struct pg_request *req = conn->current;
    char *bytes;
    int len;

    while (conn->current == req && (len = PQgetCopyData(conn->pq, &bytes, 1))) {
        if (len < 0) {
            req->is_streaming = false;
            return false;
        }
        if (req->stream)
            req->stream(req->arg, bytes, (size_t)len);
        PQfreemem(bytes);
    }
    return true;
}

static void take_results(struct pg_conn *conn)
{
    if (conn->current && conn->current->is_streaming && read_stream(conn))
        return;
    while (conn->state != CONN_DEAD && conn->current &&
           !copy_is_feeding(conn) && !PQisBusy(conn->pq))
        if (!step(conn, PQgetResult(conn->pq)) ||
            (conn->current->is_streaming && read_stream(conn)))
            break;
    if (conn->state != CONN_DEAD && PQstatus(conn->pq) == CONNECTION_BAD)
        conn_fail_by_libpq(conn);
}

void conn_read_results(struct pg_conn *conn)
{
    if (!PQconsumeInput(conn->pq)) {
        conn_fail_by_libpq(conn);
        return;
    }
    tell_notifications(conn);
    if (conn->state != CONN_DEAD)
        take_results(conn);
}

/* While rows are fed the answer may have come already: an error does not wait
 * for their end, and no readable event would follow. */
void conn_write_more(struct pg_conn *conn)
{
    bool feeding = copy_is_feeding(conn);

    if (feeding && !copy_step(conn, conn->current)) {
        conn_fail_by_libpq(conn);
        return;
    }
    conn_flush(conn);
    if (conn->broken)
        conn_fail_by_libpq(conn);
    else if (feeding)
        take_results(conn);
}
