/*
 * The host's path without the host: records from memory are decoded and go
 * through the pipeline into the ring of one worker, verdicts come back, and
 * positions are taken. What is left out is the broker's client, the database
 * and HTTP; all else is the product's own code.
 *
 * One thread: feed_turn() does what a turn of the host's loop does.
 */
#ifndef MT_BENCH_FEED_H
#define MT_BENCH_FEED_H

#include "core/pipeline.h"
#include "ipc/channel.h"

#include <stdbool.h>

#define KEY_SIZE 10 /* o-00000000 */

struct feed_shape {
    long events;
    uint64_t keys;
    size_t size;       /* of a body */
    unsigned handlers; /* that take every event */
    unsigned others;   /* handlers that take none of them */
    unsigned types;    /* not 0: so many types, and each of the handlers takes
                          one; the records carry their facts in headers */
    unsigned partitions;
    bool headers; /* the records carry the routing facts in headers */
};

struct feed {
    struct feed_shape shape;
    struct pipeline *pl;
    struct metrics *metrics;
    struct record *records; /* so many different ones, over and over */
    size_t n_records;
    char (*keys)[KEY_SIZE]; /* of the latest events */
    struct partition **parts;
    struct scan *scan;
    struct kafka_keeper *keeper;
    struct channel ch;
    struct ring_writer down;
    struct ring_reader up;
    long offered, done;
    bool is_dirty;
    int64_t now_us; /* its own clock, 100 us a turn; 0: the machine's */
};

/* A worker may attach to `f->ch` afterwards. vm ids are 1…handlers. */
void feed_init(struct feed *f, const struct feed_shape *shape, size_t down_size,
               size_t up_size);
void feed_fini(struct feed *f);

/* The worker has loaded everything: deliveries may flow. */
void feed_start(struct feed *f);
/* Reads verdicts, offers events, sends. True while something moved. */
bool feed_turn(struct feed *f);
/* All positions stand at the end. */
bool feed_is_over(const struct feed *f);

/* A bundle as a worker takes it: `source` is a handler file. */
void feed_load(struct feed *f, uint32_t vm, const char *source);
/* What the worker says beside verdicts: true for "loaded". It ends the program
 * when a handler is refused. */
bool feed_say(struct feed *f, const struct msg_head *msg, size_t len);
void feed_publish(struct feed *f);

#endif
