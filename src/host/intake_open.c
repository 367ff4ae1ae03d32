/* How a partition opens, and where each handler starts in it. */
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/intake_priv.h"
#include "stores/positions.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "intake";

/* A row made before the source knows the real number; see stored(). */
#define STORED_EARLIEST 0
#define STORED_LATEST   (INT64_MAX - 1)

struct taking {
    struct intake *intake;
    struct partition *p;
    size_t n;
    struct handler **handlers;
};

static void taking_free(struct taking *t)
{
    free(t->handlers);
    free(t);
}

static void take(struct intake *in, struct partition *p,
                 struct handler *const *handlers, size_t n);

/* Those that came while the others' positions were taken: what these are says
 * where "now" is. */
static bool take_late_ones(struct intake *in, struct partition *p)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers), n_late = 0;
    struct handler **late = xcalloc(n, sizeof(*late));

    for (size_t i = 1; i < n; i++)
        if (handlers[i]->spec && p->cursors[i].mode == CURSOR_CLOSED)
            late[n_late++] = handlers[i];
    if (n_late > 0)
        take(in, p, late, n_late);
    free(late);
    return n_late > 0;
}

void intake_start_if_ready(struct intake *in, struct partition *p)
{
    if (p->is_closing) {
        intake_finish_closing(in, p);
        return;
    }
    if (p->state != PARTITION_OPENING || p->busy > 0)
        return;
    if (p->ops->kind != SOURCE_REDRIVE && take_late_ones(in, p))
        return;
    if (p->ops->kind == SOURCE_OUTBOX) /* said of all shards in one line */
        log_debug("partition opened", "source=outbox partition=%s", p->name);
    else
        log_info("partition opened", "source=%s partition=%s",
                 source_kind_name(p->ops->kind), p->name);
    pipeline_start(p);
}

static void on_created(void *arg, size_t n_fenced, const size_t *fenced,
                       const struct err *err)
{
    struct taking *t = arg;
    struct partition *p = t->p;
    struct intake *in = t->intake;

    (void)fenced; /* all are of this partition */
    if (n_fenced > 0)
        intake_fenced(in->host, p);
    if (err)
        log_error("positions not created", "partition=%s err=" LOG_Q, p->name,
                  err->msg);
    p->busy--;
    taking_free(t);
    intake_start_if_ready(in, p);
}

/* Where a handler without a position starts. What was written to a partition
 * before we heard that it was added is not passed over. */
static int64_t fresh_start(const struct intake *in, const struct partition *p,
                           const struct handler *h, bool any_found,
                           bool is_added, int64_t furthest)
{
    const struct settings *s = &in->host->settings;
    const char *start =
        p->ops->kind == SOURCE_KAFKA ? s->kafka_start : s->outbox_start;

    if (!any_found && p->state == PARTITION_OPENING) /* never read before */
        return strcmp(start, "latest") == 0 && !is_added ? POSITION_LATEST
                                                         : POSITION_EARLIEST;
    if (h->spec && h->spec->start != POSITION_LATEST)
        return POSITION_EARLIEST; /* or a time: see min_occurred_us */
    return p->state == PARTITION_OPENING ? furthest : pipeline_front(p);
}

static int64_t unstored(int64_t next)
{
    if (next <= STORED_EARLIEST)
        return POSITION_EARLIEST;
    return next >= STORED_LATEST ? POSITION_LATEST : next;
}

static int64_t stored(int64_t next)
{
    if (next == POSITION_EARLIEST)
        return STORED_EARLIEST;
    return next == POSITION_LATEST ? STORED_LATEST : next;
}

/* Rows for the handlers that had none, so that the fence finds them. */
static void create_rows(struct taking *t, struct position_found *found)
{
    struct intake *in = t->intake;
    struct position_save *items = xcalloc(t->n, sizeof(*items));
    size_t n = 0;

    for (size_t i = 0; i < t->n; i++) {
        struct cursor *c = &t->p->cursors[t->handlers[i]->index];

        if (found[i].found)
            continue;
        items[n] = (struct position_save){
            .key = {t->handlers[i]->name, t->p->ops->kind, t->p->name,
                    t->p->source_id, c->in_kafka},
            .at = {.next = stored(c->from.next)},
            .epoch = found[i].epoch,
        };
        n++;
    }
    if (n > 0) {
        t->p->busy++;
        in->host->positions->ops->create(in->host->positions, n, items,
                                         on_created, t);
    } else {
        taking_free(t);
    }
    free(items);
}

/* Where the handler starts when no position was found. */
static void choose_start(struct taking *t, struct handler *h,
                         struct position_found *found, bool any_found,
                         int64_t furthest)
{
    ranges_fini(&found->at.gaps);
    found->at =
        (struct position){.next = fresh_start(t->intake, t->p, h, any_found,
                                              found->is_added, furthest)};
    if (h->spec && h->spec->start != POSITION_LATEST &&
        h->spec->start != POSITION_EARLIEST)
        t->p->cursors[h->index].min_occurred_us = h->spec->start;
}

/* As it is in the store, or will be by create_rows(). */
static void open_cursor(struct partition *p, struct handler *h,
                        struct position_found *found)
{
    struct cursor *c = &p->cursors[h->index];

    if (p->ops->kind == SOURCE_OUTBOX) {
        c->saved_next = found->at.next;
        c->saved_hash = intake_gaps_hash(&found->at.gaps);
        c->saved_us = clock_mono_us();
    }
    pipeline_open_cursor(p, h, &found->at, found->epoch);
}

static void open_cursors(struct taking *t, struct position_found *found)
{
    struct partition *p = t->p;
    int64_t furthest = pipeline_front(p); /* of who is open already */
    bool any = furthest != POSITION_EARLIEST;

    for (size_t i = 0; i < t->n; i++) {
        found[i].at.next = unstored(found[i].at.next);
        any = any || found[i].found;
        if (found[i].found && found[i].at.next > furthest)
            furthest = found[i].at.next;
    }
    for (size_t i = 0; i < t->n; i++) {
        if (!found[i].found)
            choose_start(t, t->handlers[i], &found[i], any, furthest);
        open_cursor(p, t->handlers[i], &found[i]);
    }
    if (p->ops->kind == SOURCE_OUTBOX && t->n > 0)
        p->cursors[0].epoch = found[0].epoch; /* the shard's: of all alike */
}

static void on_taken(void *arg, size_t n, struct position_found *found)
{
    struct taking *t = arg;
    struct intake *in = t->intake;
    struct partition *p = t->p;

    CHECK(n == t->n);
    p->busy--;
    if (p->is_closing) {
        for (size_t i = 0; i < n; i++)
            ranges_fini(&found[i].at.gaps);
        taking_free(t);
    } else {
        open_cursors(t, found);
        create_rows(t, found); /* frees or passes on `t` */
    }
    intake_start_if_ready(in, p);
}

static void take(struct intake *in, struct partition *p,
                 struct handler *const *handlers, size_t n)
{
    struct positions *store = in->host->positions;
    struct position_key *keys = xcalloc(n, sizeof(*keys));
    struct taking *t = xcalloc(1, sizeof(*t));

    t->intake = in;
    t->p = p;
    t->handlers = xcalloc(n, sizeof(struct handler *));
    for (; t->n < n; t->n++) {
        t->handlers[t->n] = handlers[t->n];
        keys[t->n] = (struct position_key){
            handlers[t->n]->name, p->ops->kind, p->name, p->source_id,
            intake_is_in_kafka(p, handlers[t->n])};
    }
    p->busy++;
    store->ops->take(store, n, keys, on_taken, t);
    free(keys);
}

/* A delivery from the dead letters is for one handler, whatever its place. */
static void open_redrive(struct partition *p, struct handler *h)
{
    struct position from = {.next = POSITION_EARLIEST};

    pipeline_open_cursor(p, h, &from, 0);
}

struct partition *intake_opened(void *ctx, const struct source_ops *ops,
                                void *source, const char *topic, int32_t number,
                                const char *name, const char *source_id)
{
    struct intake *in = ctx;
    struct pipeline *pl = in->host->pipeline;
    struct partition *p =
        pipeline_open(pl, ops, source, topic, number, name, source_id);
    struct position all = {.next = POSITION_EARLIEST};
    struct handler *const *handlers;
    struct handler **known;
    size_t n = pipeline_handlers(pl, &handlers), n_known = 0;

    pipeline_open_cursor(p, handlers[0], &all, 0);
    known = xcalloc(n, sizeof(*known));
    for (size_t i = 1; i < n; i++)
        if (ops->kind == SOURCE_REDRIVE)
            open_redrive(p, handlers[i]);
        else if (handlers[i]->spec)
            known[n_known++] = handlers[i];
    if (n_known > 0)
        take(in, p, known, n_known);
    free(known);
    parking_open(in->host, p, intake_start_if_ready);
    return p;
}

void intake_handler_added(struct intake *in, struct handler *h)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(in->host->pipeline, all, PARTITIONS_MAX);

    for (size_t i = 0; i < n; i++) {
        struct partition *p = all[i];

        if (p->is_closing || p->cursors[h->index].mode != CURSOR_CLOSED)
            continue;
        if (p->ops->kind == SOURCE_REDRIVE)
            open_redrive(p, h);
        else if (p->state != PARTITION_OPENING || p->busy == 0)
            take(in, p, &h, 1); /* else before it starts */
        parking_open(in->host, p, intake_start_if_ready);
    }
}
