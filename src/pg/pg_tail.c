/*
 * Logical replication's messages, as far as a bell needs them (PostgreSQL's
 * documentation, "Streaming Replication Protocol"):
 *
 *   'w' start(8) end(8) time(8) message     a piece of the log; pgoutput's
 *                                           message 'C' is a commit
 *   'k' end(8) time(8) reply(1)             keepalive
 *   'r' written(8) flushed(8) applied(8) time(8) reply(1)   from us: the log up
 *                                           to there is not kept for us
 */
#include "pg/pg_tail.h"

#include "base/digest.h"
#include "base/log.h"
#include "base/mem.h"
#include "pg/pg.h"

#include <ev.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD_W    25 /* bytes before the message */
#define SIZE_K    18
#define SIZE_R    34
#define CONFIRM_S 10.     /* well within wal_sender_timeout's 60 s */
#define SLOT_MS   3600000 /* a long transaction delays the slot for so long */

static const char component[] = "outbox";

struct pg_tail {
    struct ev_loop *loop;
    struct pg_pool *pool;
    struct pg_conn *conn; /* NULL: does not hear */
    char *start_sql;
    uint64_t seen; /* end of the log that came */
    pg_tail_fn *ring;
    void *arg;
    ev_timer confirm, start;
};

static uint64_t read_u64(const char *at)
{
    uint64_t n = 0;

    for (int i = 0; i < 8; i++)
        n = n << 8 | (unsigned char)at[i];
    return n;
}

static void write_u64(char *at, uint64_t n)
{
    for (int i = 7; i >= 0; i--, n >>= 8)
        at[i] = (char)(n & 0xff);
}

static void confirm(struct pg_tail *tail)
{
    char message[SIZE_R] = {'r'};

    for (int i = 0; i < 3; i++)
        write_u64(message + 1 + 8 * i, tail->seen);
    if (tail->conn)
        pg_stream_send(tail->conn, message, sizeof(message));
}

static void on_confirm(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop;
    (void)events;
    confirm(timer->data);
}

static void note_end(struct pg_tail *tail, uint64_t end)
{
    if (end > tail->seen)
        tail->seen = end;
}

static void on_message(void *arg, const char *bytes, size_t len)
{
    struct pg_tail *tail = arg;

    if (bytes[0] == 'k' && len >= SIZE_K) {
        note_end(tail, read_u64(bytes + 1));
        if (bytes[SIZE_K - 1])
            confirm(tail);
    } else if (bytes[0] == 'w' && len > HEAD_W) {
        note_end(tail, read_u64(bytes + 9));
        if (bytes[HEAD_W] == 'C')
            tail->ring(tail->arg);
    }
}

/* The stream ended: another session, with a slot of its own. */
static void on_end(void *arg, const struct pg_result *res,
                   const struct err *err)
{
    struct pg_tail *tail = arg;

    (void)res;
    log_warn("the log's end is not heard any more", "err=" LOG_Q,
             err ? err->msg : "the server ended it");
    ev_timer_stop(tail->loop, &tail->confirm);
    pg_pool_release(tail->conn);
    tail->conn = NULL;
    ev_timer_again(tail->loop, &tail->start);
}

static void on_conn(void *arg, struct pg_conn *conn, const struct err *err)
{
    struct pg_tail *tail = arg;

    if (err)
        return; /* the pool ends */
    tail->conn = conn;
    pg_stream(conn, tail->start_sql, on_message, on_end, tail);
    ev_timer_start(tail->loop, &tail->confirm);
    tail->ring(tail->arg);
}

static void on_start(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct pg_tail *tail = timer->data;

    (void)events;
    ev_timer_stop(loop, timer);
    pg_pool_acquire(tail->pool, on_conn, tail);
}

struct pg_tail *pg_tail_new(struct ev_loop *loop, const char *url,
                            const char *publication, pg_tail_fn *ring,
                            void *arg, struct err *err)
{
    struct pg_tail *tail = xcalloc(1, sizeof(*tail));
    char *slot = xasprintf("moontide_%d_%08" PRIx32, (int)getpid(),
                           (uint32_t)random_u64());
    char *make = xasprintf("CREATE_REPLICATION_SLOT %s TEMPORARY LOGICAL"
                           " pgoutput NOEXPORT_SNAPSHOT",
                           slot);
    struct pg_pool_options opts = {
        .url = url,
        .name = "wal",
        .application_name = "moontide wal",
        .session_sql = make,
        .size = 1,
        .replication = true,
        .connect_timeout_ms = SLOT_MS,
    };

    tail->loop = loop;
    tail->ring = ring;
    tail->arg = arg;
    tail->start_sql =
        xasprintf("START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1',"
                  " publication_names '%s')",
                  slot, publication);
    ev_timer_init(&tail->confirm, on_confirm, CONFIRM_S, CONFIRM_S);
    ev_timer_init(&tail->start, on_start, 1., 1.);
    tail->confirm.data = tail->start.data = tail;
    tail->pool = pg_pool_new(loop, &opts, err);
    free(slot);
    free(make);
    if (!tail->pool) {
        pg_tail_free(tail);
        return NULL;
    }
    pg_pool_acquire(tail->pool, on_conn, tail);
    return tail;
}

void pg_tail_free(struct pg_tail *tail)
{
    if (!tail)
        return;
    ev_timer_stop(tail->loop, &tail->confirm);
    ev_timer_stop(tail->loop, &tail->start);
    if (tail->conn)
        pg_pool_release(tail->conn);
    tail->conn = NULL;
    pg_pool_free(tail->pool);
    free(tail->start_sql);
    free(tail);
}

bool pg_tail_is_live(const struct pg_tail *tail)
{
    return tail->conn != NULL;
}
