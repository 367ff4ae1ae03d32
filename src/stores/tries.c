#include "stores/tries.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "pg/pg.h"

#include <ev.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused))
#define SOON   0.05 /* s: deadlocks, lost connections */
#define SLOWLY 2.0  /* s: refused; somebody has to mend something */

static const char component[] = "store";

struct
try {
    struct list link;
    struct tries *tries;
    const char *what, *sql;
    int n;
    struct pg_param params[TRY_PARAMS_MAX];
    struct pg_request *request; /* NULL while waiting for the timer */
    ev_timer timer;
    unsigned failures;
    try_done_fn *done;
    try_once_fn *once;
    void (*forgotten)(void *arg);
    void *arg;
};

void tries_init(struct tries *t, struct ev_loop *loop, struct pg_pool *pool)
{
    t->loop = loop;
    t->pool = pool;
    list_init(&t->open);
}

static void try_free(struct try *q)
{
    list_remove(&q->link);
    ev_timer_stop(q->tries->loop, &q->timer);
    for (int i = 0; i < q->n; i++)
        free((char *)(uintptr_t)q->params[i].value);
    free(q);
}

void tries_fini(struct tries *t)
{
    list_foreach_safe(item, &t->open) {
        struct try *q = CONTAINER_OF(item, struct try, link);

        if (q->request)
            pg_request_forget(q->request);
        if (q->forgotten)
            q->forgotten(q->arg);
        try_free(q);
    }
}

static void send(struct try *q);

static void on_timer(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    send(timer->data);
}

static void again(struct try *q, const struct err *err)
{
    bool is_refused = err->kind != ERR_RETRIABLE;

    if (q->failures++ % 30 == 0)
        log_warn("statement failed, trying again",
                 "what=" LOG_Q " code=%s err=" LOG_Q, q->what, err->code,
                 err->msg);
    ev_timer_set(&q->timer, is_refused ? SLOWLY : SOON, 0.);
    ev_timer_start(q->tries->loop, &q->timer);
}

static void on_result(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct try *q = arg;

    q->request = NULL;
    if (err && (!q->once || err->kind == ERR_RETRIABLE)) {
        again(q, err);
        return;
    }
    if (q->once)
        q->once(q->arg, res, err);
    else
        q->done(q->arg, res);
    try_free(q);
}

static void send(struct try *q)
{
    q->request =
        pg_pool_query(q->tries->pool, q->sql, q->n, q->params, on_result, q);
}

struct try *try_new(struct tries *t, const char *what, const char *sql)
{
    struct try *q = xcalloc(1, sizeof(*q));

    q->tries = t;
    q->what = what;
    q->sql = sql;
    ev_timer_init(&q->timer, on_timer, 0., 0.);
    q->timer.data = q;
    list_append(&t->open, &q->link);
    return q;
}

static void add(struct try *q, struct pg_param param)
{
    CHECK(q->n < TRY_PARAMS_MAX);
    q->params[q->n++] = param;
}

void try_text(struct try *q, const char *text)
{
    add(q, (struct pg_param){.value = text ? xstrdup(text) : NULL});
}

void try_slice(struct try *q, struct slice text)
{
    add(q, (struct pg_param){.value = text.ptr ? xstrndup(text.ptr, text.len)
                                               : NULL});
}

void try_bytea(struct try *q, struct slice bytes)
{
    char *copy = bytes.ptr ? xmalloc(bytes.len + 1) : NULL;

    if (copy && bytes.len)
        memcpy(copy, bytes.ptr, bytes.len);
    add(q, (struct pg_param){.value = copy,
                             .len = (int)bytes.len,
                             .binary = true,
                             .type = PG_BYTEA});
}

void try_number(struct try *q, int64_t number)
{
    add(q, (struct pg_param){.value = xasprintf("%" PRId64, number)});
}

void try_time(struct try *q, int64_t wall_us)
{
    char text[RFC3339_SIZE];

    try_text(q, wall_us ? clock_format(wall_us, text) : NULL);
}

void try_buf(struct try *q, struct buf *text)
{
    add(q, (struct pg_param){.value = buf_give(text)});
}

void try_forgotten(struct try *q, void (*free_arg)(void *arg))
{
    q->forgotten = free_arg;
}

void try_send(struct try *q, try_done_fn *done, void *arg)
{
    q->done = done;
    q->arg = arg;
    send(q);
}

void try_send_once(struct try *q, try_once_fn *done, void *arg)
{
    q->once = done;
    q->arg = arg;
    send(q);
}

void array_begin(struct buf *b)
{
    buf_add_char(b, '{');
}

static void separate(struct buf *b)
{
    if (b->len > 1)
        buf_add_char(b, ',');
}

void array_add(struct buf *b, const char *text)
{
    separate(b);
    if (!text) {
        buf_add_text(b, "NULL");
        return;
    }
    buf_add_char(b, '"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            buf_add_char(b, '\\');
        buf_add_char(b, *text);
    }
    buf_add_char(b, '"');
}

void array_add_number(struct buf *b, int64_t number)
{
    separate(b);
    buf_printf(b, "%" PRId64, number);
}

void array_end(struct buf *b)
{
    buf_add_char(b, '}');
}
