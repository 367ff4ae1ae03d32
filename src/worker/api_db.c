/*
 * The database for handlers, in C: sessions. A session is a pinned connection
 * that belongs to the task that took it; everything about it ends with the
 * task, by rollback. lua/moontide/db.lua makes the public module of it.
 *
 * BEGIN travels with the first statement and the fence with COMMIT, so that a
 * transaction of n statements is n + 1 round trips and a frozen worker never
 * sits on the fence's lock.
 */
#include "base/check.h"
#include "base/list.h"
#include "base/mem.h"
#include "ipc/channel.h"
#include "pg/pg.h"
#include "worker/api_effects.h"
#include "worker/breakers.h"
#include "worker/db_pools.h"
#include "worker/db_sql.h"
#include "worker/db_values.h"
#include "worker/journal.h"
#include "worker/runtime.h"
#include "worker/sched.h"
#include "worker/vm.h"

#include <inttypes.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SESSION "moontide.db.session"

/* --- sessions ------------------------------------------------------------- */

struct session {
    struct owned owned; /* by the task, from its start to its end */
    struct runtime *rt;
    struct pg_conn *conn; /* NULL: over */
    struct op *op;        /* what the task waits for, or has abandoned */
    struct channel_backend *backend;
    bool orphan; /* Lua has no handle to it yet */
    bool transaction, begun;
    int64_t limit_ms; /* of a statement */
    bool enter_failed;
    struct err enter_err;
    struct breaker_call call; /* from taking it to its end */
    bool has_failed;          /* the database, not the statement */
};

/* What Lua holds of it. */
struct handle {
    struct session *session;
};

static struct session *session_at(lua_State *L)
{
    return ((struct handle *)luaL_checkudata(L, 1, SESSION))->session;
}

enum want { WANT_ROWS, WANT_COUNT, WANT_COMMIT, WANT_SESSION };

struct op {
    struct owned owned;
    struct session *session;
    struct pg_request *acquiring;
    enum want want;
    bool dropped;
    struct db_params params;
    struct buf rows, raw;
    struct runtime *rt;
    const struct pg_pool *pool; /* acquiring */
    struct breaker_call call;   /* acquiring */
    bool transaction;
    const struct pg_result *res;
    bool failed;
    struct err err;
};

static void op_free(struct op *op)
{
    db_params_fini(&op->params);
    buf_fini(&op->rows);
    buf_fini(&op->raw);
    pg_result_unref(op->res);
    free(op);
}

static int push_db_err(lua_State *L, const struct err *err)
{
    enum error_class class =
        err->kind == ERR_RETRIABLE ? CLASS_TRANSIENT : CLASS_PERMANENT;

    return push_err(L, class, err->code[0] ? err->code : NULL, "%s", err->msg);
}

/* The host ends this session when the worker dies in the middle of it. */
static void backend_enter(struct session *s)
{
    for (int i = 0; s->rt->backends && i < CHANNEL_BACKENDS; i++) {
        int32_t none = 0;

        if (atomic_compare_exchange_strong(&s->rt->backends[i].pid, &none,
                                           pg_conn_pid(s->conn))) {
            s->backend = &s->rt->backends[i];
            return;
        }
    }
}

/* Is it the database that failed? Not when others were in the way, nor when the
 * statement is to blame. */
static bool is_trouble(const struct err *err)
{
    static const char *const ours[] = {"40", "55", "26000", "MT001"};

    for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
        if (strncmp(err->code, ours[i], strlen(ours[i])) == 0)
            return false;
    return err->kind == ERR_RETRIABLE;
}

/* Gives the connection back; callbacks that have not come never will. */
static void session_end(struct session *s)
{
    task_disown(&s->owned);
    if (!s->conn)
        return;
    if (s->op && !s->has_failed) /* it has not answered */
        breakers_drop(&s->call);
    breakers_leave(&s->call, s->has_failed ? BREAKER_FAILED : BREAKER_OK);
    if (s->backend)
        atomic_store(&s->backend->pid, 0);
    s->backend = NULL;
    pg_pool_release(s->conn);
    s->conn = NULL;
    if (s->op)
        op_free(s->op);
    s->op = NULL;
}

static void drop_session(struct owned *owned)
{
    struct session *s = CONTAINER_OF(owned, struct session, owned);
    bool orphan = s->orphan;

    session_end(s);
    if (orphan)
        free(s);
}

/* The session ends right after, and with it this operation. */
static void drop_op(struct owned *owned)
{
    struct op *op = CONTAINER_OF(owned, struct op, owned);

    op->dropped = true;
    if (!op->session || op->session->op != op)
        op_free(op);
}

static int push_op(lua_State *L, void *arg)
{
    struct op *op = arg;

    if (op->failed)
        return push_db_err(L, &op->err);
    switch (op->want) {
    case WANT_ROWS: db_push_rows(L, op->res); break;
    case WANT_COUNT: vm_push_int64(L, pg_result_affected(op->res)); break;
    case WANT_COMMIT: lua_pushboolean(L, 1); break;
    case WANT_SESSION: UNREACHABLE();
    }
    return 1;
}

/* The statements after one that failed only say that one has. */
static void blame_first(struct op *op)
{
    if (op->failed && op->session && op->session->enter_failed)
        op->err = op->session->enter_err;
}

static void keep_answer(struct op *op, const struct pg_result *res,
                        const struct err *err)
{
    op->res = res ? pg_result_ref(res) : NULL;
    op->failed = err != NULL;
    if (err)
        op->err = *err;
    else if (op->want == WANT_COMMIT &&
             strcmp(pg_result_tag(res), "COMMIT") != 0)
        op->failed = !err_code(&op->err, ERR_RETRIABLE, "25P02",
                               "the transaction was rolled back: a statement"
                               " in it had failed");
    blame_first(op);
}

static void on_result(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct op *op = arg;
    struct session *s = op->session;

    s->op = NULL;
    s->has_failed |= err && is_trouble(err);
    if (op->dropped) {
        op_free(op);
        return;
    }
    keep_answer(op, res, err);
    if (op->want == WANT_COMMIT)
        session_end(s);
    task_resume(&op->owned, push_op, op); /* may end and free the session */
    op_free(op);
}

static struct session *check_session(lua_State *L)
{
    struct session *s = session_at(L);

    if (!s->conn)
        luaL_error(L, "the transaction is over");
    if (s->owned.task != task_enter(L, "tx"))
        luaL_error(L, "the transaction belongs to another delivery");
    if (s->op)
        luaL_error(L, "the transaction is busy with another statement");
    return s;
}

static struct op *op_new(lua_State *L, struct session *s, enum want want)
{
    struct op *op = xcalloc(1, sizeof(*op));

    op->session = s;
    op->want = want;
    task_own(task_enter(L, "db"), &op->owned, drop_op);
    return op;
}

/* What could not even be sent. */
static int op_refuse(lua_State *L, struct op *op)
{
    struct err err = op->err;

    task_disown(&op->owned);
    op_free(op);
    return push_db_err(L, &err);
}

/* --- statements ----------------------------------------------------------- */

/* Not set_config(): a SELECT takes a snapshot, and after one the transaction
 * cannot choose its isolation level any more. */
static void queue_limit(struct session *s, const char *name, int64_t ms)
{
    char sql[96];

    snprintf(sql, sizeof(sql), "SET LOCAL %s = %" PRId64, name, ms);
    pg_pipeline_queue_once(s->conn, sql);
}

/* A pooler in transaction mode may give any session, also one that has not seen
 * session_sql(): what promises rest on is said again in each transaction. */
static void queue_session_limits(struct session *s)
{
    queue_limit(s, "idle_in_transaction_session_timeout",
                db_idle_limit_ms(s->rt));
}

/* BEGIN with limits below the delivery's own: the server gives up before the
 * worker does, and the session is in no doubt. */
static void queue_begin(struct session *s)
{
    int64_t lock_ms = s->limit_ms / 2 < 5000 ? s->limit_ms / 2 : 5000;

    if (!s->transaction || s->begun)
        return;
    s->begun = true;
    pg_pipeline_queue(s->conn, "BEGIN", 0, NULL, NULL, NULL);
    queue_limit(s, "statement_timeout", s->limit_ms);
    queue_limit(s, "lock_timeout", lock_ms);
    if (!db_prepares(s->rt))
        queue_session_limits(s);
}

static const char *check_sql(lua_State *L, const struct session *s)
{
    const char *sql = luaL_checkstring(L, 2);

    if (sql_changes_session(sql))
        luaL_error(L, "sessions are shared by all deliveries: only SET LOCAL,"
                      " in a transaction, ends with it");
    if (s->transaction && sql_ends_transaction(sql))
        luaL_error(L, "a transaction ends with the function that it was given"
                      " to, not with a statement");
    return sql;
}

/* session:query(sql, …) → rows | nil, err; exec the same → count. */
static int run_statement(lua_State *L, enum want want)
{
    struct session *s = check_session(L);
    const char *sql = check_sql(L, s);
    struct op *op = op_new(L, s, want);

    if (!db_params_read(L, 3, &op->params, &op->err))
        return op_refuse(L, op);
    s->op = op;
    if (sql_may_soil(sql))
        pg_conn_soil(s->conn);
    pg_pipeline_begin(s->conn);
    queue_begin(s);
    pg_pipeline_queue(s->conn, sql, op->params.n, op->params.list, on_result,
                      op);
    pg_pipeline_sync(s->conn, NULL, NULL);
    return task_suspend(L, &op->owned);
}

static int l_query(lua_State *L)
{
    return run_statement(L, WANT_ROWS);
}

static int l_exec(lua_State *L)
{
    return run_statement(L, WANT_COUNT);
}

static void on_entered(void *arg, const struct pg_result *res,
                       const struct err *err)
{
    struct session *s = arg;

    (void)res;
    s->enter_failed = err != NULL;
    s->has_failed |= err && is_trouble(err);
    if (err)
        s->enter_err = *err;
}

/* session:enter(sql, …): sent with BEGIN and not waited for. When it fails so
 * does all that follows, with its error, and entered() tells. → true | nil, err
 * of the parameters */
static int l_enter(lua_State *L)
{
    struct session *s = check_session(L);
    const char *sql = luaL_checkstring(L, 2);
    struct op *op = op_new(L, s, WANT_COUNT); /* owns what is read */

    if (!db_params_read(L, 3, &op->params, &op->err))
        return op_refuse(L, op);
    pg_pipeline_begin(s->conn);
    queue_begin(s);
    pg_pipeline_queue(s->conn, sql, op->params.n, op->params.list, on_entered,
                      s);
    pg_pipeline_sync(s->conn, NULL, NULL);
    task_disown(&op->owned);
    op_free(op);
    lua_pushboolean(L, 1);
    return 1;
}

/* session:entered() → true | nil, err: as far as is known by now. */
static int l_entered(lua_State *L)
{
    const struct session *s = session_at(L);

    if (s->enter_failed)
        return push_db_err(L, &s->enter_err);
    lua_pushboolean(L, 1);
    return 1;
}

static bool read_rows(lua_State *L, int rows, int columns, struct op *op)
{
    int n = (int)lua_objlen(L, rows);

    for (int i = 1; i <= n; i++) {
        bool ok;

        lua_rawgeti(L, rows, i);
        if (!lua_istable(L, -1))
            return err_set(&op->err, ERR_PERMANENT, "row %d is no table", i);
        ok = db_copy_row(L, lua_gettop(L), columns, &op->rows, &op->raw,
                         &op->err);
        lua_pop(L, 1);
        if (!ok)
            return err_wrap(&op->err, "row %d", i);
    }
    return true;
}

/* session:copy(sql, columns, rows) → count | nil, err. */
static int l_copy(lua_State *L)
{
    struct session *s = check_session(L);
    const char *sql = luaL_checkstring(L, 2);
    int columns = (int)luaL_checkinteger(L, 3);
    struct op *op;

    luaL_checktype(L, 4, LUA_TTABLE);
    luaL_checkstack(L, 16, "copy");
    op = op_new(L, s, WANT_COUNT);
    if (!read_rows(L, 4, columns, op))
        return op_refuse(L, op);
    s->op = op;
    if (s->transaction && !s->begun) {
        pg_pipeline_begin(s->conn);
        queue_begin(s);
        pg_pipeline_sync(s->conn, NULL, NULL);
    }
    pg_copy_in(s->conn, sql, op->rows.len ? op->rows.ptr : "", op->rows.len,
               on_result, op);
    return task_suspend(L, &op->owned);
}

/* session:commit() or session:commit(handler, sources, partitions, epochs),
 * the last three as db.arrays → true | nil, err. The session is over. */
static int l_commit(lua_State *L)
{
    struct session *s = check_session(L);
    struct op *op = op_new(L, s, WANT_COMMIT);

    if (!db_params_read(L, 2, &op->params, &op->err))
        return op_refuse(L, op);
    s->op = op;
    pg_pipeline_begin(s->conn);
    queue_begin(s);
    if (op->params.n > 0)
        pg_pipeline_queue(s->conn, "SELECT moontide_fence($1, $2, $3, $4)",
                          op->params.n, op->params.list, NULL, NULL);
    pg_pipeline_queue(s->conn, "COMMIT", 0, NULL, on_result, op);
    pg_pipeline_sync(s->conn, NULL, NULL);
    return task_suspend(L, &op->owned);
}

/* session:release(): an open transaction is rolled back. Also when it is over:
 * cleaning up twice is no error. */
static int l_release(lua_State *L)
{
    session_end(session_at(L));
    return 0;
}

static int l_gc(lua_State *L)
{
    struct session *s = session_at(L);

    if (!s)
        return 0;
    session_end(s);
    free(s);
    return 0;
}

/* --- taking one ----------------------------------------------------------- */

static int push_session(lua_State *L, void *arg)
{
    struct op *op = arg;
    struct handle *handle;

    if (op->failed)
        return push_db_err(L, &op->err);
    handle = lua_newuserdata(L, sizeof(*handle));
    handle->session = NULL;
    luaL_getmetatable(L, SESSION);
    lua_setmetatable(L, -2);
    handle->session = op->session;
    op->session->orphan = false;
    return 1;
}

static void on_acquired(void *arg, struct pg_conn *conn, const struct err *err)
{
    struct op *op = arg;
    struct task *task = op->owned.task;
    struct session *s;

    op->acquiring = NULL;
    op->failed = err != NULL;
    if (err) { /* none was free in time, or none can be had */
        breakers_leave(&op->call, pg_pool_connected(op->pool) ? BREAKER_UNKNOWN
                                                              : BREAKER_FAILED);
        op->err = *err;
    } else {
        s = xcalloc(1, sizeof(*s));
        s->rt = op->rt;
        s->call = op->call;
        s->conn = conn;
        s->orphan = true;
        s->transaction = op->transaction;
        s->limit_ms = op->rt->mode == MODE_RECORD
                          ? 2000
                          : task_left_ms(task) * 9 / 10 + 1;
        backend_enter(s);
        task_own(task, &s->owned, drop_session);
        op->session = s;
    }
    task_resume(&op->owned, push_session, op);
    op_free(op);
}

static void drop_acquire(struct owned *owned)
{
    struct op *op = CONTAINER_OF(owned, struct op, owned);

    if (pg_pool_connected(op->pool)) /* only there was none free */
        breakers_leave(&op->call, BREAKER_UNKNOWN);
    breakers_drop(&op->call);
    pg_request_forget(op->acquiring);
    op_free(op);
}

/* acquire(name, transaction) → session | nil, err */
static int l_acquire(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    struct task *task = task_enter(L, "db");
    struct runtime *rt = task_runtime(task);
    struct err err;
    struct db *db = db_pools_find(rt, name, &err);
    struct breaker_call call;
    char destination[80];
    struct op *op;

    if (!db)
        return push_db_err(L, &err);
    snprintf(destination, sizeof(destination), "database:%s", name);
    if (!breakers_enter(task, destination, &call))
        return push_breaker_open(L, destination);
    op = xcalloc(1, sizeof(*op));
    op->want = WANT_SESSION;
    op->pool = db->pool;
    op->call = call;
    op->rt = rt;
    op->transaction = lua_toboolean(L, 2);
    task_own(task, &op->owned, drop_acquire);
    op->acquiring = pg_pool_acquire(db->pool, on_acquired, op);
    return task_suspend(L, &op->owned);
}

/* ident(name) → quoted; a dot separates schema and table. */
static int l_ident(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    char quoted[260];
    luaL_Buffer out;

    luaL_buffinit(L, &out);
    for (const char *end;; name = end + 1) {
        char part[130];

        end = strchr(name, '.');
        snprintf(part, sizeof(part), "%.*s",
                 end ? (int)(end - name) : (int)strlen(name), name);
        if (!pg_quote_ident(part, quoted, sizeof(quoted)))
            return luaL_error(L, "the identifier is too long");
        luaL_addstring(&out, quoted);
        if (!end)
            break;
        luaL_addlstring(&out, ".", 1);
    }
    luaL_pushresult(&out);
    return 1;
}

/* The metatable that marks a db.array. */
static int l_array_mark(lua_State *L)
{
    luaL_newmetatable(L, DB_ARRAY);
    return 1;
}

static void make_session_type(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"query", l_query},     {"exec", l_exec},       {"copy", l_copy},
        {"enter", l_enter},     {"entered", l_entered}, {"commit", l_commit},
        {"release", l_release}, {NULL, NULL},
    };

    luaL_newmetatable(L, SESSION);
    lua_pushcfunction(L, l_gc);
    lua_setfield(L, -2, "__gc");
    lua_newtable(L);
    luaL_register(L, NULL, methods);
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "database session");
    lua_setfield(L, -2, "__metatable");
    lua_pop(L, 1);
}

int api_db_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"acquire", l_acquire},
        {"ident", l_ident},
        {"array_mark", l_array_mark},
        {NULL, NULL},
    };

    make_session_type(L);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
