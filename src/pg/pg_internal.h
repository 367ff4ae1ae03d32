/* What the files of this folder share; nobody else includes it. */
#ifndef MT_PG_PG_INTERNAL_H
#define MT_PG_PG_INTERNAL_H

#include "base/list.h"
#include "pg/pg.h"

#include <ev.h>
#include <libpq-fe.h>
#include <stdatomic.h>

/* --- results -------------------------------------------------------------- */

struct pg_result {
    PGresult *pg;
    atomic_int refs;
};

struct pg_result *result_new(PGresult *pg); /* takes `pg` */

/* Fill `err` from a failed result, or from the connection when there is none. */
void result_error(const PGresult *res, const PGconn *pq, struct err *err);

/* --- requests ------------------------------------------------------------- */

enum request_kind {
    REQUEST_PIPELINE, /* statements with parameters, one sync */
    REQUEST_SCRIPT,   /* simple protocol, several statements */
    REQUEST_COPY,
    REQUEST_STREAM,
    REQUEST_ACQUIRE,
};

struct op {
    char *sql;
    int n;
    const char **values; /* one allocation holds the arrays and the bytes */
    int *lens, *formats;
    Oid *types;
    pg_result_fn *cb;
    void *arg;
    uint64_t stmt; /* id in the connection's cache while preparing, or 0 */
    bool preparing;
    bool once; /* never prepared */
    const struct pg_result *res;
    bool failed;
    struct err err;
};

struct pg_request {
    struct list link; /* pool->waiting, conn->queue, or pool->failed */
    struct pg_pool *pool;
    enum request_kind kind;
    struct op *ops;
    int nops, cap;
    int at; /* the op whose results come next */
    bool running;
    char *copy;
    size_t copy_len, copy_sent;
    bool copy_ended;
    pg_stream_fn *stream; /* where messages go */
    bool is_streaming;
    pg_result_fn *sync_cb;
    pg_acquire_fn *acquire_cb;
    void *arg;
    double since; /* loop time it was queued */
};

struct pg_request *request_new(struct pg_pool *pool, enum request_kind kind);
void request_free(struct pg_request *req);
struct op *request_add(struct pg_request *req, const char *sql, int n,
                       const struct pg_param *params, pg_result_fn *cb,
                       void *arg);

/* Drop all callbacks: whoever asked is gone. */
void request_mute(struct pg_request *req);

/* Run the callbacks and free. `lost`: the connection went before the end. */
void request_finish(struct pg_request *req, const struct err *lost);

/* --- prepared statements of one connection -------------------------------- */

struct stmt {
    struct list link;
    uint64_t hash, id;
    char *sql;
    int uses;
    bool sent;
};

struct stmts {
    struct list lru; /* the most recently used first */
    int len;
    uint64_t next_id;
    uint64_t *stale; /* to be deallocated when the connection is idle */
    int nstale, stale_cap;
};

void stmts_init(struct stmts *stmts);
void stmts_fini(struct stmts *stmts);
struct stmt *stmts_use(struct stmts *stmts, const struct op *op);
void stmts_drop(struct stmts *stmts, uint64_t id, bool prepared);
char *stmts_stale_sql(struct stmts *stmts); /* gives, or NULL */

/* --- name resolution ------------------------------------------------------ */

/* Comma lists as libpq takes them; all NULL when nothing had to be resolved. */
struct addresses {
    char *host, *hostaddr, *port;
};

struct resolver;
typedef void resolved_fn(void *arg, struct addresses *found,
                         const struct err *err);

/* Does the url name a host that needs looking up? */
bool resolver_is_needed(const char *url);

/* Look up on a thread; `cb` is called once, later, unless abandoned. */
struct resolver *resolver_start(struct ev_loop *loop, const char *url,
                                resolved_fn *cb, void *arg);
void resolver_abandon(struct resolver *resolver);
void addresses_fini(struct addresses *found);

/* --- connections ---------------------------------------------------------- */

enum conn_state {
    CONN_RESOLVING,
    CONN_CONNECTING,
    CONN_SETUP, /* session_sql and LISTEN are running */
    CONN_UP,
    CONN_DEAD,
};

struct pg_conn {
    struct list link; /* pool->conns, or pool->dead */
    struct pg_pool *pool;
    PGconn *pq;
    enum conn_state state;
    bool pinned, broken, notified;
    bool cancelled; /* once was: not for reuse after its release */
    bool soiled;    /* its session is to be cleaned at its release */
    ev_io reader, writer;
    ev_timer deadline;   /* of connecting */
    ev_timer cancelling; /* until what was cancelled has ended */
    struct resolver *resolver;
    struct pg_request *current;
    struct list queue;
    struct pg_request *building; /* between pipeline begin and sync */
    struct stmts stmts;
    struct listener *listener; /* this connection only listens */
    struct err lost;           /* why it is dead */
};

struct listener {
    struct list link;
    struct pg_conn *conn; /* NULL while down */
    char *channel;
    pg_notify_fn *cb;
    void *arg;
};

struct pg_pool {
    struct ev_loop *loop;
    struct pg_pool_options opts;
    struct list conns, dead;
    struct list waiting; /* requests without a connection, in order */
    struct list failed;  /* requests whose error is still to be told */
    struct list listeners;
    ev_timer kick, retry, sweep;
    int fails; /* connection attempts in a row */
    int up;    /* connections in state CONN_UP, listeners apart */
    bool closing;
    struct err last_error;
    bool has_error;
};

struct pg_conn *conn_start(struct pg_pool *pool, struct listener *listener);
void conn_free(struct pg_conn *conn);
void conn_enqueue(struct pg_conn *conn, struct pg_request *req);
bool conn_is_free(const struct pg_conn *conn); /* for a request of the pool */

/* The connection is of no more use: tell every request, hand it to the pool. */
void conn_fail(struct pg_conn *conn, const struct err *err);
void conn_fail_by_libpq(struct pg_conn *conn); /* for the reason libpq gives */

void conn_set_state(struct pg_conn *conn, enum conn_state state);
/* Send the first that waits, unless one is under way. */
void conn_start_next(struct pg_conn *conn);
/* Keep the writer on while libpq has bytes it could not send. */
void conn_flush(struct pg_conn *conn);

/* pg_answer.c: the socket can be read, or written. */
void conn_read_results(struct pg_conn *conn);
void conn_write_more(struct pg_conn *conn);

/* --- the pool, as its connections see it ---------------------------------- */

void pool_kick(struct pg_pool *pool); /* look at everything, soon */
void pool_on_up(struct pg_pool *pool, struct pg_conn *conn);
void pool_on_down(struct pg_pool *pool, struct pg_conn *conn, bool was_up);
void pool_on_free(struct pg_pool *pool, struct pg_conn *conn);

#endif
