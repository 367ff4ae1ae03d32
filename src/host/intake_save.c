/* Writing down how far each handler got. */
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/intake_priv.h"
#include "stores/deliveries.h"
#include "stores/positions.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "intake";

#define SAVE_AGAIN_US 200000
/* A shard's position moves with the reading, for every handler, also where none
 * of its events come by. What it says is true without that: it is written now
 * and then, so many rows at once, and when the shard is given up. */
#define LAZY_US   60000000
#define LAZY_MOST 2000

struct saved_item {
    struct partition *p;
    struct handler *handler;
    int64_t next;
    uint64_t hash, settled;
};

struct saving {
    struct intake *intake;
    struct position_save *save;
    struct saved_item *items;
    size_t n, cap;
    bool is_last; /* of a closing partition */
    bool
        is_alone; /* one position that moves in Kafka transactions: they may take
                      long, and nobody else waits for them */
    int64_t now_us;
    size_t n_lazy;
};

uint64_t intake_gaps_hash(const struct ranges *gaps)
{
    return gaps->len ? hash_bytes(gaps->at, gaps->len * sizeof(*gaps->at)) : 0;
}

/* Is the start only known by a row that says "latest", or by the clock? Then it
 * is lost with this process unless it is written. */
static bool is_start_unsaved(const struct cursor *c)
{
    return c->saved_next == POSITION_LATEST ||
           (c->saved_next == POSITION_EARLIEST && c->min_occurred_us);
}

/* Nothing settled and not its time yet. */
static bool may_wait(struct saving *s, const struct partition *p,
                     const struct cursor *c)
{
    if (p->ops->kind != SOURCE_OUTBOX || s->is_last ||
        c->settled != c->saved_settled || is_start_unsaved(c))
        return false;
    if (s->now_us - c->saved_us < LAZY_US || s->n_lazy >= LAZY_MOST)
        return true;
    s->n_lazy++;
    return false;
}

bool intake_is_in_kafka(struct partition *p, const struct handler *h)
{
    struct cursor *c = &p->cursors[h->index];

    if (p->ops->kind == SOURCE_KAFKA && h->spec && h->spec->in_kafka)
        c->in_kafka = true;
    return c->in_kafka;
}

static bool saving_send(struct saving *s);

static struct saving *saving_new(struct intake *in)
{
    struct saving *s = xcalloc(1, sizeof(*s));

    s->intake = in;
    s->now_us = clock_mono_us();
    return s;
}

static void add_item(struct saving *s, struct partition *p, struct handler *h);

static void save_alone(struct intake *in, struct partition *p,
                       struct handler *h)
{
    struct saving *s = saving_new(in);

    s->is_alone = true;
    add_item(s, p, h);
    saving_send(s);
}

static void add_item(struct saving *s, struct partition *p, struct handler *h)
{
    struct cursor *c = &p->cursors[h->index];
    bool in_kafka = intake_is_in_kafka(p, h);
    struct position at;
    uint64_t hash;

    if (in_kafka && !s->is_last && !s->is_alone) {
        if (!c->is_saving)
            save_alone(s->intake, p, h);
        return;
    }
    if (may_wait(s, p, c) || !pipeline_position(p, h, &at))
        return;
    hash = intake_gaps_hash(&at.gaps);
    if (at.next == c->saved_next && hash == c->saved_hash) {
        ranges_fini(&at.gaps);
        c->saved_us = s->now_us;
        return;
    }
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->save = xrealloc(s->save, s->cap * sizeof(*s->save));
        s->items = xrealloc(s->items, s->cap * sizeof(*s->items));
    }
    s->items[s->n] = (struct saved_item){p, h, at.next, hash, c->settled};
    s->save[s->n++] = (struct position_save){
        .key = {h->name, p->ops->kind, p->name, p->source_id, in_kafka},
        .at = at,
        .epoch = c->epoch,
        .last_event_id = c->last_event_id[0] ? c->last_event_id : NULL,
        .last_event_us = c->last_event_us,
    };
}

static void add_partition(void *arg, struct partition *p)
{
    struct saving *s = arg;
    struct handler *const *handlers;
    size_t n = pipeline_handlers(p->pipeline, &handlers);

    if (p->ops->kind == SOURCE_REDRIVE || p->state == PARTITION_OPENING ||
        p->is_lost || (p->is_closing && !s->is_last))
        return;
    for (size_t i = 1; i < n; i++)
        add_item(s, p, handlers[i]);
}

static void commit(struct partition *p)
{
    struct position at = {0};

    if (p->is_lost || !p->ops->commit || !pipeline_watermark(p, &at.next) ||
        at.next == p->committed)
        return;
    p->committed = at.next;
    p->ops->commit(p, &at);
}

static void saving_free(struct saving *s)
{
    free(s->save);
    free(s->items);
    free(s);
}

/* Where a version that was not noted yet may have run for the first time: not
 * before what was saved last. */
static int64_t first_place(const struct saved_item *item,
                           const struct cursor *c)
{
    if (c->saved_next == POSITION_EARLIEST || c->saved_next == POSITION_LATEST)
        return c->from.next > 0 && c->from.next < item->next ? c->from.next : 0;
    return c->saved_next < item->next ? c->saved_next : item->next;
}

/* Something of the handler settled there since the last save. */
static bool note_version(const struct saved_item *item, struct version_row *row)
{
    struct cursor *c = &item->p->cursors[item->handler->index];
    const struct handler_spec *spec = item->handler->spec;
    uint64_t hash;

    if (!spec || item->p->is_lost || item->settled == c->saved_settled)
        return false;
    hash = hash_bytes(spec->version, strlen(spec->version));
    if (hash == c->noted_version)
        return false;
    c->noted_version = hash;
    *row = (struct version_row){item->handler->name, item->p->name,
                                spec->version, first_place(item, c)};
    return true;
}

static void note_versions(const struct saving *s)
{
    struct version_row *rows = xcalloc(s->n + 1, sizeof(*rows));
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++)
        n += note_version(&s->items[i], &rows[n]);
    delivery_store_versions(s->intake->host->deliveries, n, rows);
    free(rows);
}

static void note_saved(const struct saving *s, const struct saved_item *item)
{
    struct cursor *c = &item->p->cursors[item->handler->index];

    c->saved_next = item->next;
    c->saved_hash = item->hash;
    c->saved_settled = item->settled;
    c->saved_us = s->now_us;
}

/* Items of one partition stand together: once for each. */
static void go_on_closing(struct saving *s)
{
    for (size_t i = 0; i < s->n; i++) {
        struct partition *p = s->items[i].p;

        if (p->is_closing && (i + 1 == s->n || s->items[i + 1].p != p))
            intake_finish_closing(s->intake, p);
    }
}

/* Until its deadline a closing partition tries again: what is not saved is
 * delivered twice. */
static void note_last(struct intake *in, struct partition *p,
                      const struct err *err)
{
    if (err && !p->deadline_us) {
        log_error("partition was not saved, its last events come again",
                  "source=%s partition=%s err=" LOG_Q,
                  source_kind_name(p->ops->kind), p->name, err->msg);
        in->host->exit_code = 1;
    }
    p->is_saved = !err || !p->deadline_us;
    p->save_again_us = p->is_saved ? 0 : clock_mono_us() + SAVE_AGAIN_US;
}

static void on_saved(void *arg, size_t n_fenced, const size_t *fenced,
                     const struct err *err)
{
    struct saving *s = arg;

    if (err)
        log_error("positions not saved", "err=" LOG_Q, err->msg);
    for (size_t i = 0; i < n_fenced; i++)
        intake_fenced(s->intake->host, s->items[fenced[i]].p);
    if (!err)
        note_versions(s);
    for (size_t i = 0; i < s->n; i++) {
        s->items[i].p->busy--;
        if (s->is_alone)
            s->items[i].p->cursors[s->items[i].handler->index].is_saving =
                false;
        if (!err)
            note_saved(s, &s->items[i]);
    }
    if (s->is_last)
        note_last(s->intake, s->items[0].p,
                  err); /* all are of that partition */
    else if (!s->is_alone)
        s->intake->is_saving = false;
    for (size_t i = 0; !err && i < s->n; i++)
        if (s->is_last || !s->items[i].p->is_closing)
            commit(s->items[i].p);
    go_on_closing(s);
    saving_free(s);
}

/* Sends it off; false when there is nothing to save. */
static bool saving_send(struct saving *s)
{
    struct positions *store = s->intake->host->positions;
    struct position_save *save = s->save;
    size_t n = s->n;

    if (n == 0) {
        saving_free(s);
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        s->items[i].p->busy++;
        if (s->is_alone)
            s->items[i].p->cursors[s->items[i].handler->index].is_saving = true;
    }
    store->ops->save(store, n, save, on_saved, s);
    for (size_t i = 0; i < n; i++)
        ranges_fini(&save[i].at.gaps);
    return true;
}

void intake_save_all(struct intake *in)
{
    struct saving *s;

    if (in->is_saving)
        return;
    s = saving_new(in);
    pipeline_each(in->host->pipeline, add_partition, s);
    in->is_saving = true;
    if (!saving_send(s))
        in->is_saving = false;
}

bool intake_save_last(struct intake *in, struct partition *p)
{
    struct saving *s = saving_new(in);

    s->is_last = true;
    add_partition(s, p);
    if (saving_send(s))
        return true;
    commit(p);
    return false;
}
