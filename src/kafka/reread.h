/*
 * Pieces of partitions read again, outside the group: for handlers that are
 * behind what the group's member reads. One client for all of them, opened when
 * the first is wanted; a partition is fetched only while pieces of it are asked
 * for, and a piece that begins where the one before it ended costs no seek.
 *
 * Everything on the loop's thread; no call blocks.
 */
#ifndef MT_KAFKA_REREAD_H
#define MT_KAFKA_REREAD_H

#include "kafka/consumer.h"

#define KAFKA_OFFSET_BEGIN (-2) /* librdkafka's: the first that is there */

struct kafka_reread;

struct kafka_reread_ops {
    /* In order. The record is borrowed for the call unless kafka_keep() takes
     * it; record->part is NULL. */
    void (*on_record)(void *arg, void *owner, struct kafka_record *record);
    /* Once for a piece: all that there is below `next` came. The next piece may
     * be asked for from within. */
    void (*on_done)(void *arg, void *owner, int64_t next);
    /* The partition's log begins behind `offset`, or what lies there cannot be
     * read (is_undecodable): nothing comes until the piece is cancelled. */
    void (*on_fault)(void *arg, void *owner, int64_t offset,
                     bool is_undecodable, const struct err *err);
};

/* `settings` and what it points to outlive it. */
struct kafka_reread *kafka_reread_new(struct ev_loop *loop,
                                      const struct kafka_settings *settings,
                                      const struct kafka_reread_ops *ops,
                                      void *arg);
/* What on_record's kafka_keep() took must be freed before. */
void kafka_reread_free(struct kafka_reread *r); /* NULL is allowed */

struct kafka_piece {
    const char *topic; /* copied */
    int32_t partition;
    int64_t first, last; /* offsets, inclusive; first KAFKA_OFFSET_BEGIN */
    size_t max;          /* records, at least 1 */
    void *owner;
};

/* One at a time for a partition. False when librdkafka refuses. */
bool kafka_reread_start(struct kafka_reread *r, const struct kafka_piece *piece,
                        struct err *err) MUST_CHECK;
/* Nothing of a piece of this partition comes any more. */
void kafka_reread_cancel(struct kafka_reread *r, const char *topic,
                         int32_t partition);

#endif
