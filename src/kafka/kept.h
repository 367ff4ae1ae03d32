/*
 * Records whose handlers are at work. A record stays where librdkafka put it,
 * in the buffer of a whole fetch, which lives as long as one record of it does.
 * So one that waits for long is moved: once PINNED bytes were read after it, it
 * is copied out and its owner is told. Memory then follows what waits, not the
 * topic, and what flows is never copied.
 */
#ifndef MT_KAFKA_KEPT_H
#define MT_KAFKA_KEPT_H

#include "base/list.h"
#include "base/slice.h"

#include <stddef.h>
#include <stdint.h>

struct kafka_record;
struct kafka_note;

struct kafka_header {
    struct slice name, value; /* the name ends in a NUL as well */
};

#define KEPT_HEADERS 8 /* more than that cost an allocation */

struct kafka_kept {
    struct slice key, value; /* absent as in the record */
    size_t nheaders;
    struct kafka_header *headers;
    bool is_padded; /* while it is not moved: see struct kafka_record */

    /* The keeper's own. */
    void *owner;
    void *message;    /* librdkafka's; NULL: moved, or never was one */
    uint64_t read_at; /* bytes read when it came */
    struct list link; /* of those not moved, oldest first */
    char *moved;
    struct kafka_note *notes;
    struct kafka_header few[KEPT_HEADERS];
};

struct kafka_keeper;
struct kafka_move; /* what kafka_rebase() needs to know */

/* Tells the owner of `kept` that its bytes have moved: every slice into them
 * has to be passed to kafka_rebase(). */
typedef void kafka_moved_fn(const struct kafka_kept *kept,
                            const struct kafka_move *move);

/* `pinned`: bytes that may be read before a record that waits is moved. */
struct kafka_keeper *kafka_keeper_new(uint64_t pinned, kafka_moved_fn *moved);
void kafka_keeper_free(struct kafka_keeper *keeper); /* nothing is kept */

/* Takes the record's message over. Moves older ones that have waited. */
struct kafka_kept *kafka_keep(struct kafka_keeper *keeper,
                              struct kafka_record *record, void *owner);
/* The same for bytes that outlive it: nothing is copied or moved. */
struct kafka_kept *kafka_kept_new(struct kafka_keeper *keeper, struct slice key,
                                  struct slice value,
                                  const struct kafka_header *headers, size_t n);
void kafka_kept_free(struct kafka_keeper *keeper, struct kafka_kept *kept);

/* Slices that point elsewhere stay as they are. */
struct slice kafka_rebase(const struct kafka_move *move, struct slice old);

/* The value of the first header of this name; absent when there is none. */
struct slice kafka_kept_header(const struct kafka_kept *kept,
                               struct slice name);

/* A copy of `text` that lives as long as the record. */
struct slice kafka_kept_note(struct kafka_kept *kept, struct slice text);

#endif
