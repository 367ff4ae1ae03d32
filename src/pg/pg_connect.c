/*
 * How a connection comes up: names are resolved on a thread, libpq connects
 * under our watchers, then the session's settings run as its first request.
 */
#include "pg/pg_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>

static const char component[] = "pg";

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
    conn_start_next(conn);
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
    case PGRES_POLLING_FAILED: conn_fail_by_libpq(conn); return;
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
                                "replication",
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
                                  opts->replication ? "database" : NULL,
                                  at->host,
                                  at->hostaddr,
                                  at->port,
                                  NULL};

    conn->pq = PQconnectStartParams(keys, values, 1);
    CHECK(conn->pq);
    if (PQstatus(conn->pq) == CONNECTION_BAD) {
        conn_fail_by_libpq(conn);
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
        conn_write_more(conn);
    if (conn->state != CONN_DEAD && (revents & EV_READ))
        conn_read_results(conn);
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
