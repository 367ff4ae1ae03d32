/*
 * A record copied out of librdkafka's fetch buffer. A buffer of half a
 * megabyte stays as long as one record of it does, so what waits for its
 * handlers is copied: memory then follows the window, not the topic.
 */
#ifndef MT_KAFKA_KEPT_H
#define MT_KAFKA_KEPT_H

#include "base/slice.h"

#include <stddef.h>

struct kafka_record;
struct kafka_note;

struct kafka_header {
    struct slice name, value; /* the name ends in a NUL as well */
};

struct kafka_kept {
    struct slice key, value; /* absent as in the record */
    size_t nheaders;
    struct kafka_header *headers;
    struct kafka_note *notes;
};

struct kafka_kept *kafka_kept_of(const struct kafka_record *record);
struct kafka_kept *kafka_kept_new(struct slice key, struct slice value,
                                  const struct kafka_header *headers,
                                  size_t nheaders);
void kafka_kept_free(struct kafka_kept *kept); /* NULL is allowed */

/* The value of the first header of this name; absent when there is none. */
struct slice kafka_kept_header(const struct kafka_kept *kept, const char *name);

/* A copy of `text` that lives as long as the record. */
struct slice kafka_kept_note(struct kafka_kept *kept, struct slice text);

#endif
