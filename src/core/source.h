/*
 * The seam between sources (kafka, outbox, redrive) and the host.
 *
 *   source                                   host / pipeline
 *   opened(p) ─────────────────────────────► reads positions, then
 *   ◄─────────────────────────────────────── ops->start(p, from)
 *   offer(event) …  ───────────────────────► routes, delivers, settles
 *   ◄─────────────────────────────────────── ops->release(event)
 *   ◄─────────────────────────────────────── ops->fetch(p, h, first, last)
 *   offer(event of it) …, fetched(p, h) ───►
 *   ◄─────────────────────────────────────── ops->pause(p) / resume(p)
 *   ◄─────────────────────────────────────── ops->commit(p, position)
 *   closing(p, lost) ──────────────────────► stops, waits for what runs,
 *   ◄─────────────────────────────────────── saves positions, ops->closed(p)
 *
 * Everything happens on the host's loop. No call blocks. A source may call
 * offer() from within start() or resume(), not from within release().
 */
#ifndef MT_CORE_SOURCE_H
#define MT_CORE_SOURCE_H

#include "core/event.h"
#include "core/ranges.h"
#include "ipc/msg.h"

struct handler;
struct json_t;
struct partition;

/* Everything below `next` is settled, except the numbers in `gaps`. For Kafka
 * `next` is an offset and `gaps` is empty; for the outbox it is last seq + 1
 * and the gaps are sequence numbers not seen yet. */
struct position {
    int64_t next;
    struct ranges gaps;
};

#define POSITION_EARLIEST INT64_MIN /* as `next`: the source's first event */
#define POSITION_LATEST   INT64_MAX /* where the source stands now */

struct source_ops {
    enum source_kind kind;
    /* Read from `from`; called once. For EARLIEST and LATEST the source sets
     * p->next to the real place before it offers. Borrows `from`. */
    void (*start)(struct partition *p, const struct position *from);
    /* One slow partition among others, idempotent. A few more offers may
     * still come. Ordinary back-pressure is sink->room() and wake(). */
    void (*pause)(struct partition *p);
    void (*resume)(struct partition *p);
    /* Read again for `reader`, who is behind: the events from `first` up to
     * `last`, both inclusive, at most `max` of them, beside the reading that
     * goes on and without disturbing it. `first` may be POSITION_EARLIEST;
     * `last` is below p->next, so everything there was visible before. Offers
     * each in order with event->reader set, then calls sink->fetched() once,
     * however long that takes, from within this call or later; not when the
     * partition is closed before. One at a time for a partition, but several
     * of a source. NULL: it cannot, and its handlers are never behind. */
    void (*fetch)(struct partition *p, struct handler *reader, int64_t first,
                  int64_t last, size_t max);
    /* All partitions of this source are one log with one numbering: a fetch
     * brings those of every partition whose handler waits for them. */
    bool fetches_all;
    /* sink->room() said 0 before; there is room again. */
    void (*wake)(void *source);
    /* The event is settled (or dropped unsettled): give its memory back. The
     * event itself is the pipeline's and is gone afterwards. */
    void (*release)(struct event *event);
    /* Remember outside that everything below is settled (group offset). */
    void (*commit)(struct partition *p, const struct position *settled);
    /* A write found that another host has the partition: close it as lost.
     * NULL: the source will hear of it by itself. */
    void (*fenced)(struct partition *p);
    /* After closing(): positions are saved, nothing of `p` is in use. The
     * source finishes the revocation. `p` is freed by the host after this. */
    void (*closed)(struct partition *p);
    /* The source's open gaps, to be stored with positions; NULL: none. */
    const struct ranges *(*gaps)(const struct partition *p);
    /* Events of the partition that are not read yet: high watermark − next;
     * -1 unknown. For moontide_source_lag, right also when idle. */
    int64_t (*backlog)(struct partition *p);
    /* Redrive only: how an event ended. Called before release(). NULL else. */
    void (*settled)(struct event *event, enum verdict how, const char *reason);
};

/* What the host gives a source at creation. */
struct source_sink {
    void *ctx;
    /* A partition was assigned. Fill kind, topic, name, source_id, number,
     * ops and source; the host calls ops->start() later, once. */
    struct partition *(*opened)(void *ctx, const struct source_ops *ops,
                                void *source, const char *topic, int32_t number,
                                const char *name, const char *source_id);
    /* How many events may be offered now; a source asks before each batch and
     * takes no more from its broker or table than that. At 0 it stops reading
     * until ops->wake(). (Pausing a Kafka partition throws its prefetch away,
     * so it is kept for partitions that stay full.) */
    size_t (*room)(void *ctx);
    /* Takes `event`, in the order of the partition. */
    void (*offer)(void *ctx, struct event *event);
    /* An empty event to fill; facts absent. */
    struct event *(*event_new)(void *ctx, struct partition *p);
    /* The reading has passed this place without an event there (control
     * records, compaction, end of a poll): p->next moves on. */
    void (*advance)(void *ctx, struct partition *p, int64_t next);
    /* The answer to ops->fetch(): what there is from its `first` on and below
     * `next` has been offered. */
    void (*fetched)(void *ctx, struct partition *p, int64_t next);
    /* The partition is being taken away; `lost`: it is gone already. */
    void (*closing)(void *ctx, struct partition *p, bool lost);
    /* Something loud that an operator must decide (offset out of range, table
     * went back in time): shown by /readyz and status. NULL text: over. */
    void (*trouble)(void *ctx, struct partition *p, const char *text);
};

#endif
