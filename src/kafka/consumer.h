/*
 * A member of a consumer group on libev.
 *
 * Records come in batches from one queue. Nothing is committed but what
 * kafka_consumer_commit() is given, and an assignment is only announced: the
 * owner reads its positions first and then calls kafka_consumer_assign(), and
 * after a revocation it drains first and then calls kafka_consumer_unassign().
 * The group waits for both, within max.poll.interval.ms.
 *
 * Back-pressure: as long as a refused record waits nothing is read, which
 * leaves the rest in librdkafka's bounded queue. A partition that stays full
 * for longer is paused alone, so that the others go on; pausing throws away
 * what was fetched, so it is for long waits only.
 *
 * A kafka_part lives from on_assigned to the return of unassign. Its
 * generation tells records of one assignment from those of the next.
 */
#ifndef MT_KAFKA_CONSUMER_H
#define MT_KAFKA_CONSUMER_H

#include "base/slice.h"
#include "kafka/settings.h"

struct ev_loop;
struct kafka_consumer;

struct kafka_part {
    const char *topic;
    int32_t partition;
    char *source_id; /* cluster id "/" topic id: a topic made anew differs */
    uint64_t generation;
    void *owner; /* the user's own, NULL at first */
};

struct kafka_record {
    struct kafka_part *part;
    int64_t offset;
    int64_t timestamp_ms;    /* -1 when the record has none */
    struct slice key, value; /* ptr NULL: absent; a tombstone has no value */
    void *message;           /* kafka_keep() takes it over */
    bool is_padded; /* SCAN_PADDING bytes after the value can be read */
};

typedef void kafka_header_fn(void *arg, const char *name, struct slice value);

struct kafka_consumer_ops {
    /* `parts` are ours from now on; nothing comes before assign. */
    void (*on_assigned)(void *arg, struct kafka_part **parts, size_t n);
    /* All parts are to be given back; when `lost` the group has done it
     * already and a commit would be refused. */
    void (*on_revoked)(void *arg, bool lost);
    /* How many records may come now, over all parts; asked before each batch.
     * At 0 nothing is read until kafka_consumer_wake(); if that takes long,
     * all parts are paused, so that the group is served meanwhile. */
    size_t (*room)(void *arg);
    /* The record is borrowed for the call, unless kafka_keep() (kept.h) takes
     * it: then it must be freed before the consumer is. false: its partition has no room;
     * it and what follows it there are kept and offered again, in order, after
     * kafka_consumer_continue(). */
    bool (*on_record)(void *arg, struct kafka_record *record);
    /* The partition was read to its end: nothing is below `offset` that was
     * not offered (control records take places too). */
    void (*on_end)(void *arg, struct kafka_part *part, int64_t offset);
    /* This partition gets nothing more for now: its offset is out of range
     * (until it is assigned anew), what lies there cannot be read
     * (is_undecodable), its topic is gone, or access was refused. Comes again
     * for as long as it is so. What comes from `offset` or behind shows that it
     * is over. */
    void (*on_part_error)(void *arg, struct kafka_part *part, int64_t offset,
                          bool is_undecodable, const struct err *err);
    /* The client is of no use any more (another member with our instance id,
     * say): stop, free and open it again. Not to be freed from within. */
    void (*on_fatal)(void *arg, const struct err *err);
    /* A topic was deleted and made anew. librdkafka would go on at the old
     * offset, or never see the new one: as after on_fatal, but what was read
     * may be drained before. Once. */
    void (*on_outdated)(void *arg, const struct err *err);
    /* The result of a commit; `err` NULL when it was stored. */
    void (*on_committed)(void *arg, const struct err *err);
};

struct kafka_consumer *kafka_consumer_new(struct ev_loop *loop,
                                          const struct kafka_settings *settings,
                                          const struct kafka_consumer_ops *ops,
                                          void *arg,
                                          struct err *err) MUST_CHECK;

/* Leave the group and free; parts still assigned are given back without
 * on_revoked. Waits for the group coordinator's answer. */
void kafka_consumer_free(struct kafka_consumer *c);

/* `offsets[i]`: where `parts[i]` begins or, when wants_end[i], ends (for
 * read_committed). Comes unless the parts are given back before. */
typedef void kafka_found_fn(void *arg, const int64_t *offsets, size_t n);
void kafka_consumer_find(struct kafka_consumer *c,
                         struct kafka_part *const *parts, const bool *wants_end,
                         size_t n, kafka_found_fn *fn, void *arg);

/* Start reading part i at offsets[i], for all parts of on_assigned. Later, go
 * on there: what was fetched and not taken is dropped. */
bool kafka_consumer_assign(struct kafka_consumer *c, const int64_t *offsets,
                           struct err *err) MUST_CHECK;

/* Give the parts back: they are freed, their records never come any more. */
void kafka_consumer_unassign(struct kafka_consumer *c);

/* Store `offsets[i]` (the next to read) for `parts[i]`. on_committed follows. */
void kafka_consumer_commit(struct kafka_consumer *c,
                           struct kafka_part *const *parts,
                           const int64_t *offsets, size_t n);

/* There is room again for a part whose record was refused. */
void kafka_consumer_continue(struct kafka_consumer *c, struct kafka_part *pub);

/* room() said 0 before; there is room again. */
void kafka_consumer_wake(struct kafka_consumer *c);

/* The end of a partition as the last fetch saw it, or -1. */
int64_t kafka_consumer_end(const struct kafka_consumer *c,
                           const struct kafka_part *part);

/* Is it paused in librdkafka, for want of room? */
bool kafka_consumer_paused(const struct kafka_part *part);

bool kafka_consumer_connected(const struct kafka_consumer *c);

/* Headers of a record, in their order. */
void kafka_record_headers(const struct kafka_record *record,
                          kafka_header_fn *fn, void *arg);

#endif
