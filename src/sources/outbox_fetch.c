/*
 * Rows read again, for handlers that are behind: bounded pieces of what the
 * reading has passed, on a connection of their own, so that they never stand in
 * its way. What lies below the reading is complete but for its open gaps, so a
 * plain range by number is enough; who waits for a gap is the core's business.
 */
#include "sources/outbox_priv.h"
#include "stores/tries.h"

#include "base/check.h"
#include "base/list.h"
#include "base/mem.h"

#include <stdlib.h>

struct outbox_fetch {
    struct outbox_source *source;
    struct pg_pool_options options;
    struct pg_pool *pool; /* NULL: nobody was behind yet */
    struct tries tries;
    struct list pieces; /* under way */
};

struct piece {
    struct list link;
    struct outbox_fetch *fetch;
    struct partition *p; /* that asked; NULL: it is gone */
    struct handler *reader;
    int64_t last;
    size_t max;
};

static void piece_free(struct piece *piece)
{
    list_remove(&piece->link);
    free(piece);
}

struct outbox_fetch *outbox_fetch_new(struct outbox_source *s,
                                      const struct outbox_options *opts)
{
    struct outbox_fetch *f = xcalloc(1, sizeof(*f));

    f->source = s;
    list_init(&f->pieces);
    f->options = (struct pg_pool_options){
        .url = xstrdup(opts->url),
        .name = "outbox behind",
        .application_name = "moontide outbox",
        .session_sql = opts->session_sql ? xstrdup(opts->session_sql) : NULL,
        .size = 1,
        .no_prepare = opts->no_prepare,
    };
    tries_init(&f->tries, s->loop, NULL);
    return f;
}

void outbox_fetch_free(struct outbox_fetch *f)
{
    if (!f)
        return;
    tries_fini(&f->tries);
    pg_pool_free(f->pool);
    list_foreach_safe(link, &f->pieces)
        piece_free(CONTAINER_OF(link, struct piece, link));
    free((char *)(uintptr_t)f->options.url);
    free((char *)(uintptr_t)f->options.session_sql);
    free(f);
}

void outbox_fetch_cancel(struct outbox_fetch *f, const struct partition *p)
{
    list_foreach(link, &f->pieces) {
        struct piece *piece = CONTAINER_OF(link, struct piece, link);

        if (piece->p == p)
            piece->p = NULL;
    }
}

static void offer_row(const struct piece *piece, const struct pg_result *res,
                      int row)
{
    struct outbox_source *s = piece->fetch->source;
    unsigned shard =
        (unsigned)strtoul(pg_result_value(res, row, COLUMN_SHARD), NULL, 10);
    struct partition *p = shard < SHARDS_MAX ? s->shards[shard].p : NULL;
    struct event *event;

    if (!p) /* it closed meanwhile */
        return;
    event = outbox_event(s, p, res, row);
    event->place = strtoll(pg_result_value(res, row, COLUMN_SEQ), NULL, 10);
    event->reader = piece->reader;
    s->sink.offer(s->sink.ctx, event);
}

/* Fewer rows than were allowed: there is nothing more up to the end. */
static void on_rows(void *arg, const struct pg_result *res)
{
    struct piece *piece = arg;
    struct outbox_source *s = piece->fetch->source;
    struct partition *p = piece->p;
    int rows = pg_result_nrows(res);
    int64_t next = piece->last + 1;

    if ((size_t)rows >= piece->max)
        next =
            strtoll(pg_result_value(res, rows - 1, COLUMN_SEQ), NULL, 10) + 1;
    for (int row = 0; p && row < rows; row++)
        offer_row(piece, res, row);
    piece_free(piece);
    if (p)
        s->sink.fetched(s->sink.ctx, p, next);
}

/* One log, many shards: those whose handler waits for this piece. */
static shard_set asking(const struct outbox_source *s,
                        const struct handler *reader)
{
    shard_set shards = 0;

    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (s->shards[i].p && s->shards[i].p->fetching == reader)
            shards |= SHARD(i);
    return shards;
}

void outbox_fetch(struct outbox_fetch *f, struct partition *p,
                  struct handler *reader, int64_t first, int64_t last,
                  size_t max)
{
    char shards[2 * SHARDS_MAX + 2];
    struct piece *piece = xmalloc(sizeof(*piece));
    struct try *q;
    struct err err;

    if (!f->pool) {
        f->pool = pg_pool_new(f->source->loop, &f->options, &err);
        CHECK(f->pool); /* the source has one with this url */
        tries_init(&f->tries, f->source->loop, f->pool);
    }
    *piece = (struct piece){
        .fetch = f, .p = p, .reader = reader, .last = last, .max = max};
    list_append(&f->pieces, &piece->link);
    q = try_new(&f->tries, "read again", f->source->sql.fetch);
    try_number(q, first);
    try_number(q, last);
    try_number(q, (int64_t)max);
    outbox_shards_text(asking(f->source, reader), shards);
    try_text(q, shards);
    try_send(q, on_rows, piece);
}
