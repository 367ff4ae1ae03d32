/*
 * PostgreSQL on libev: a pool of non-blocking connections.
 *
 * Nothing here blocks the loop: names are resolved on a thread, connecting and
 * talking go through libev watchers. The pool opens connections when they are
 * wanted, keeps at least one, and reconnects by itself with backoff. All calls
 * and all callbacks happen on the loop's thread; a callback never runs inside
 * the call that asked for it.
 *
 * A failed statement gives its callback `err` (never NULL then) and, when the
 * server answered, the result that carries the SQLSTATE. pg_result_sqlstate()
 * works on NULL too: a lost connection is "08006".
 */
#ifndef MT_PG_PG_H
#define MT_PG_PG_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ev_loop;
struct pg_conn;
struct pg_pool;
struct pg_request;
struct pg_result;

/* Type oids that callers name or look at. */
enum {
    PG_BOOL = 16,
    PG_BYTEA = 17,
    PG_INT8 = 20,
    PG_INT2 = 21,
    PG_INT4 = 23,
    PG_TEXT = 25,
    PG_JSON = 114,
    PG_FLOAT4 = 700,
    PG_FLOAT8 = 701,
    PG_TIMESTAMP = 1114,
    PG_TIMESTAMPTZ = 1184,
    PG_NUMERIC = 1700,
    PG_JSONB = 3802,
};

/* One parameter. Text must end in a NUL; binary is in PostgreSQL's format. */
struct pg_param {
    const char *value; /* NULL is SQL NULL */
    int len;           /* bytes, for binary only */
    bool binary;
    uint32_t type; /* oid, or 0: the server decides */
};

/* `res` is borrowed for the call; keep it with pg_result_ref(). */
typedef void pg_result_fn(void *arg, const struct pg_result *res,
                          const struct err *err);

/* `conn` is pinned to the caller until pg_pool_release(). On failure (the pool
 * is being freed, or nothing came within queue_timeout_ms) `conn` is NULL. */
typedef void pg_acquire_fn(void *arg, struct pg_conn *conn,
                           const struct err *err);

/* Called for each notification, and with payload NULL after every connect:
 * whoever listens must look again then, for it may have missed some. */
typedef void pg_notify_fn(void *arg, const char *channel, const char *payload);

struct pg_pool_options {
    const char *url;              /* postgres:// or key=value; copied */
    const char *name;             /* for log lines; default "main" */
    const char *application_name; /* default "moontide" */
    const char *session_sql;      /* run after each connect; may be NULL */
    int size;                     /* most connections at once; default 4 */
    int64_t backoff_base_ms;      /* default 100 */
    int64_t backoff_cap_ms;       /* default 5000 */
    int64_t connect_timeout_ms;   /* default 10000 */
    int64_t queue_timeout_ms;     /* wait for a connection; 0: for ever */
    bool no_prepare;              /* for poolers in transaction mode */
    bool replication;             /* sessions of a walsender, see pg_tail.h */
    /* The first connection is up, or the last one is gone. May be NULL. */
    void (*on_state)(void *arg, bool connected);
    void *arg;
};

/* Is that a url, as far as can be told without connecting? The error never
 * quotes it, as libpq's own do: what was misread may be the password. */
bool pg_url_check(const char *url, struct err *err) MUST_CHECK;

/* Start connecting. The options are copied. NULL when the url makes no sense. */
struct pg_pool *pg_pool_new(struct ev_loop *loop,
                            const struct pg_pool_options *opts,
                            struct err *err) MUST_CHECK;

/* Close everything; what still waits gets its error first. Not from inside a
 * callback of this pool. NULL is allowed. */
void pg_pool_free(struct pg_pool *pool);

bool pg_pool_connected(const struct pg_pool *pool);

/* Why the last connection attempt failed, or NULL when connected. */
const struct err *pg_pool_error(const struct pg_pool *pool);

/* Run one statement on any connection, in a transaction of its own. Statement
 * and parameters are copied. The handle is good until the callback runs. */
struct pg_request *pg_pool_query(struct pg_pool *pool, const char *sql, int n,
                                 const struct pg_param *params,
                                 pg_result_fn *cb, void *arg);

/* Pin a connection, for a transaction or for COPY. */
struct pg_request *pg_pool_acquire(struct pg_pool *pool, pg_acquire_fn *cb,
                                   void *arg);

/* Forget a request: its callback will not run. What was already sent still
 * happens in the database. */
void pg_request_forget(struct pg_request *req);

/* Unpin. An open transaction is rolled back, and a statement still running is
 * cancelled; callbacks that have not run never will. */
void pg_pool_release(struct pg_conn *conn);

/* What ran on it may have left something on the session (settings, locks,
 * temporary tables): the release cleans it before anybody else gets it. */
void pg_conn_soil(struct pg_conn *conn);

/* LISTEN on a connection of its own, kept up over reconnects. The channel must
 * be a plain identifier. */
void pg_pool_listen(struct pg_pool *pool, const char *channel, pg_notify_fn *cb,
                    void *arg);

/* --- on a pinned connection; requests run in the order they were made ----- */

void pg_query(struct pg_conn *conn, const char *sql, int n,
              const struct pg_param *params, pg_result_fn *cb, void *arg);

/* Between begin and sync statements are collected; sync sends all of them in
 * one go. After the first that fails the rest are not run and get its error.
 * `cb` of a statement or of sync may be NULL; the one of sync comes last, with
 * the first error and its result. Callbacks run when the whole pipeline is
 * done, in order. */
void pg_pipeline_begin(struct pg_conn *conn);
void pg_pipeline_queue(struct pg_conn *conn, const char *sql, int n,
                       const struct pg_param *params, pg_result_fn *cb,
                       void *arg);
/* One whose text hardly comes twice: it takes no place among the prepared. */
void pg_pipeline_queue_once(struct pg_conn *conn, const char *sql);
void pg_pipeline_sync(struct pg_conn *conn, pg_result_fn *cb, void *arg);

/* `sql` is a COPY … FROM STDIN; `rows` its whole input in the format it names.
 * Both are copied. */
void pg_copy_in(struct pg_conn *conn, const char *sql, const char *rows,
                size_t len, pg_result_fn *cb, void *arg);

/* `sql` starts a stream both ways (COPY BOTH: START_REPLICATION). Each message
 * goes to `data`, borrowed for the call; `cb` comes at its end, which is an
 * error unless the server ended it. */
typedef void pg_stream_fn(void *arg, const char *bytes, size_t len);
void pg_stream(struct pg_conn *conn, const char *sql, pg_stream_fn *data,
               pg_result_fn *cb, void *arg);
/* While it runs; false when it does not. */
bool pg_stream_send(struct pg_conn *conn, const char *bytes, size_t len);

/* Ask the server to stop what `conn` is running; the statement then fails. */
void pg_cancel(struct pg_conn *conn);

/* Process id of the backend; 0 when the connection is gone. */
int pg_conn_pid(const struct pg_conn *conn);

/* Is the connection up? A lost one fails every request until it is released. */
bool pg_conn_alive(const struct pg_conn *conn);

/* Is a transaction block open (healthy or failed)? Asked between requests. */
bool pg_conn_in_transaction(const struct pg_conn *conn);

/* --- results -------------------------------------------------------------- */

const struct pg_result *pg_result_ref(const struct pg_result *res);
void pg_result_unref(const struct pg_result *res); /* NULL is allowed */

int pg_result_nrows(const struct pg_result *res);
int pg_result_ncols(const struct pg_result *res);
const char *pg_result_name(const struct pg_result *res, int col);
uint32_t pg_result_type(const struct pg_result *res, int col);
int pg_result_col(const struct pg_result *res, const char *name); /* or -1 */

/* Text of a value, NUL-terminated; "" when NULL. */
const char *pg_result_value(const struct pg_result *res, int row, int col);
size_t pg_result_len(const struct pg_result *res, int row, int col);
bool pg_result_is_null(const struct pg_result *res, int row, int col);

/* The bytes of a bytea, which comes as text: on the heap, with a NUL behind
 * them; NULL where the value is NULL. Gives. */
char *pg_result_bytes(const struct pg_result *res, int row, int col,
                      size_t *len);

/* The command tag, such as "COMMIT", "ROLLBACK" or "INSERT 0 3". */
const char *pg_result_tag(const struct pg_result *res);
int64_t pg_result_affected(const struct pg_result *res); /* rows; 0 if none */

/* "00000" for success; "08006" for NULL, which means no answer came. */
const char *pg_result_sqlstate(const struct pg_result *res);

/* Detail and hint of a failed statement; "" when there is none. */
const char *pg_result_detail(const struct pg_result *res);

/* Is the same statement worth trying again, by this SQLSTATE? */
enum err_kind pg_sqlstate_kind(const char *sqlstate);

/* Quote an identifier into `out`; false when it does not fit or is no UTF-8. */
bool pg_quote_ident(const char *name, char *out, size_t size) MUST_CHECK;

#endif
