#include "pg/pg_internal.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

struct pg_request *request_new(struct pg_pool *pool, enum request_kind kind)
{
    struct pg_request *req = xcalloc(1, sizeof(*req));

    list_init(&req->link);
    req->pool = pool;
    req->kind = kind;
    req->since = ev_now(pool->loop);
    return req;
}

static size_t param_size(const struct pg_param *p)
{
    if (!p->value)
        return 0;
    return p->binary ? (size_t)p->len : strlen(p->value) + 1;
}

/* All arrays and bytes of the parameters in one piece, values first. */
static void copy_params(struct op *op, const struct pg_param *params)
{
    size_t n = (size_t)op->n, bytes = 0;
    char *at;

    for (size_t i = 0; i < n; i++)
        bytes += param_size(&params[i]);
    op->values = xmalloc(
        n * (sizeof(*op->values) + 2 * sizeof(int) + sizeof(Oid)) + bytes + 1);
    op->lens = (int *)(void *)(op->values + n);
    op->formats = op->lens + n;
    op->types = (Oid *)(op->formats + n);
    at = (char *)(op->types + n);
    for (size_t i = 0; i < n; i++) {
        size_t size = param_size(&params[i]);

        op->values[i] = params[i].value ? at : NULL;
        op->lens[i] = params[i].len;
        op->formats[i] = params[i].binary;
        op->types[i] = params[i].type;
        if (size > 0)
            memcpy(at, params[i].value, size);
        at += size;
    }
}

struct op *request_add(struct pg_request *req, const char *sql, int n,
                       const struct pg_param *params, pg_result_fn *cb,
                       void *arg)
{
    struct op *op;

    if (req->nops == req->cap) {
        req->cap = req->cap ? 2 * req->cap : 1;
        req->ops = xrealloc(req->ops, (size_t)req->cap * sizeof(*req->ops));
    }
    op = &req->ops[req->nops++];
    *op = (struct op){.sql = xstrdup(sql), .n = n, .cb = cb, .arg = arg};
    if (n > 0)
        copy_params(op, params);
    return op;
}

void request_free(struct pg_request *req)
{
    if (!req)
        return;
    list_remove(&req->link);
    for (int i = 0; i < req->nops; i++) {
        free(req->ops[i].sql);
        free(req->ops[i].values);
        pg_result_unref(req->ops[i].res);
    }
    free(req->ops);
    free(req->copy);
    free(req);
}

void request_mute(struct pg_request *req)
{
    for (int i = 0; i < req->nops; i++)
        req->ops[i].cb = NULL;
    req->sync_cb = NULL;
    req->acquire_cb = NULL;
    req->stream = NULL;
}

static void finish_op(struct op *op, const struct err *lost,
                      const struct err *earlier)
{
    if (!op->cb)
        return;
    if (lost)
        op->cb(op->arg, NULL, lost);
    else if (op->failed)
        op->cb(op->arg, op->res, &op->err);
    else
        op->cb(op->arg, op->res, op->res ? NULL : earlier);
}

static const struct op *first_failed(const struct pg_request *req)
{
    for (int i = 0; i < req->nops; i++)
        if (req->ops[i].failed)
            return &req->ops[i];
    return NULL;
}

/* With a lost connection nothing is known of any statement, also of those
 * whose answer had come: the transaction around them may not have ended. */
void request_finish(struct pg_request *req, const struct err *lost)
{
    const struct op *bad = lost ? NULL : first_failed(req);
    const struct err *err = bad ? &bad->err : lost;

    list_remove(&req->link);
    for (int i = 0; i < req->nops; i++)
        finish_op(&req->ops[i], lost, err);
    if (req->sync_cb)
        req->sync_cb(req->arg, bad ? bad->res : NULL, err);
    if (req->acquire_cb)
        req->acquire_cb(req->arg, NULL, lost);
    request_free(req);
}

/*
 * A statement is sent as it is the first time and prepared the second: what
 * runs once is not worth a plan, and the cache holds what repeats. A statement
 * is dropped from the server only between transactions, because DEALLOCATE
 * inside a failed one fails.
 */
enum { STMTS_MAX = 64 };

void stmts_init(struct stmts *stmts)
{
    *stmts = (struct stmts){.next_id = 1};
    list_init(&stmts->lru);
}

static void stmt_free(struct stmts *stmts, struct stmt *stmt)
{
    list_remove(&stmt->link);
    stmts->len--;
    free(stmt->sql);
    free(stmt);
}

void stmts_fini(struct stmts *stmts)
{
    list_foreach_safe(at, &stmts->lru)
        stmt_free(stmts, CONTAINER_OF(at, struct stmt, link));
    free(stmts->stale);
    stmts->stale = NULL;
    stmts->nstale = stmts->stale_cap = 0;
}

/* FNV-1a over the text and the parameters' types, which a plan is bound to. */
static uint64_t op_hash(const struct op *op)
{
    uint64_t h = 14695981039346656037u;

    for (const char *p = op->sql; *p; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    for (int i = 0; i < op->n; i++)
        h = (h ^ op->types[i]) * 1099511628211u;
    return h;
}

static void make_stale(struct stmts *stmts, uint64_t id)
{
    if (stmts->nstale == stmts->stale_cap) {
        stmts->stale_cap = stmts->stale_cap ? 2 * stmts->stale_cap : 8;
        stmts->stale = xrealloc(stmts->stale, (size_t)stmts->stale_cap *
                                                  sizeof(*stmts->stale));
    }
    stmts->stale[stmts->nstale++] = id;
}

static void evict(struct stmts *stmts)
{
    struct stmt *old = CONTAINER_OF(stmts->lru.prev, struct stmt, link);

    if (old->sent)
        make_stale(stmts, old->id);
    stmt_free(stmts, old);
}

struct stmt *stmts_use(struct stmts *stmts, const struct op *op)
{
    uint64_t hash = op_hash(op);
    struct stmt *stmt = NULL;

    list_foreach(at, &stmts->lru) {
        struct stmt *known = CONTAINER_OF(at, struct stmt, link);

        if (known->hash == hash && strcmp(known->sql, op->sql) == 0) {
            stmt = known;
            break;
        }
    }
    if (stmt) {
        list_remove(&stmt->link);
    } else {
        if (stmts->len == STMTS_MAX)
            evict(stmts);
        stmt = xcalloc(1, sizeof(*stmt));
        stmt->hash = hash;
        stmt->sql = xstrdup(op->sql);
        stmt->id = stmts->next_id++;
        stmts->len++;
    }
    list_insert(stmts->lru.next, &stmt->link);
    stmt->uses++;
    return stmt;
}

void stmts_drop(struct stmts *stmts, uint64_t id, bool prepared)
{
    list_foreach_safe(at, &stmts->lru) {
        struct stmt *stmt = CONTAINER_OF(at, struct stmt, link);

        if (stmt->id != id)
            continue;
        if (prepared)
            make_stale(stmts, id);
        stmt_free(stmts, stmt);
        return;
    }
}

char *stmts_stale_sql(struct stmts *stmts)
{
    char *sql = NULL;

    while (stmts->nstale > 0) {
        uint64_t id = stmts->stale[--stmts->nstale];
        char *more = xasprintf("%sDEALLOCATE mt%llu;", sql ? sql : "",
                               (unsigned long long)id);

        free(sql);
        sql = more;
    }
    return sql;
}
