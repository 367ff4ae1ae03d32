/*
 * Where handlers stand, kept outside: in event_handler_positions, or without
 * PostgreSQL in the compacted topic <group>.positions.
 *
 * take() reads and raises the epoch in one statement (of a shard of the outbox,
 * which has one already, it reads it); save() writes only where the epoch is
 * still ours (design 13.2), and says where it was not. A stored
 * source_id that differs is another partition: found = false, and logged.
 * Callbacks run on the loop, never from within the call. Requests made while
 * the store is unreachable wait and are sent when it is back.
 */
#ifndef MT_STORES_POSITIONS_H
#define MT_STORES_POSITIONS_H

#include "base/err.h"
#include "core/source.h"

struct positions;

struct position_key {
    const char *handler;
    enum source_kind source;
    const char *partition; /* struct partition's name */
    const char *source_id;
    bool in_kafka; /* it moves with what the handler produces: see
                      positions_kafka.h */
};

struct position_found {
    bool found; /* a row of this source_id was there */
    /* None was, but the topic's other partitions are known for a while: this
     * one was added. Without PostgreSQL it cannot be told. */
    bool is_added;
    struct position at; /* gives: ranges_fini() is the callback's duty */
    int64_t epoch;      /* ours from now on */
};

struct position_save {
    struct position_key key;
    struct position at; /* borrowed during the call */
    int64_t epoch;
    const char *last_event_id; /* NULL: unchanged */
    int64_t last_event_us;
};

typedef void positions_taken_fn(void *arg, size_t n,
                                struct position_found *found);
/* `fenced` lists indices of the saved items whose epoch was no longer ours. */
typedef void positions_saved_fn(void *arg, size_t n_fenced,
                                const size_t *fenced, const struct err *err);

struct positions_ops {
    /* Keys of one partition. */
    void (*take)(struct positions *s, size_t n, const struct position_key *keys,
                 positions_taken_fn *done, void *arg);
    /* Rows that take() found absent, before the first delivery: the fence
     * needs them. PostgreSQL is asked until it has them. */
    void (*create)(struct positions *s, size_t n,
                   const struct position_save *items, positions_saved_fn *done,
                   void *arg);
    void (*save)(struct positions *s, size_t n,
                 const struct position_save *items, positions_saved_fn *done,
                 void *arg);
    void (*free)(struct positions *s);
};

/* Both implementations start with this. */
struct positions {
    const struct positions_ops *ops;
};

struct ev_loop;
struct pg_pool;
struct kafka_producer;

struct positions *positions_pg_new(struct ev_loop *loop, struct pg_pool *pool,
                                   const char *owner);
/* take() reads the topic to its end: another host may have written. There is
 * no fence here beyond the group's own; `kafka` must outlive the store, and the
 * store is freed after its producer. */
struct kafka_settings;
struct ev_loop;
struct positions *positions_topic_new(struct ev_loop *loop,
                                      const struct kafka_settings *kafka,
                                      struct kafka_producer *producer,
                                      const char *topic);

#endif
