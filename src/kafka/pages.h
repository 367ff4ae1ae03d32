/*
 * A partition read from its first record to its end, page by page, without a
 * group and without leaving a trace: for commands. Every call waits, and what
 * is read in advance is bounded.
 */
#ifndef MT_KAFKA_PAGES_H
#define MT_KAFKA_PAGES_H

#include "kafka/consumer.h"

struct kafka_pages;

/* Copies of `settings` point where it does. */
struct kafka_pages *kafka_pages_open(const struct kafka_settings *settings,
                                     struct err *err) MUST_CHECK;
void kafka_pages_close(struct kafka_pages *p); /* NULL is allowed */

/* From the first record that is there to where the partition ends now. */
bool kafka_pages_start(struct kafka_pages *p, const char *topic,
                       int32_t partition, struct err *err) MUST_CHECK;
void kafka_pages_stop(struct kafka_pages *p);

/* The record is borrowed for the call unless kafka_keep() takes it;
 * record->part is NULL. */
typedef void kafka_page_fn(void *arg, struct kafka_record *record);

/* The next records, so many at most; *is_end when there are no more. What is
 * not answered for half a minute is an error. */
bool kafka_pages_next(struct kafka_pages *p, size_t max, kafka_page_fn *fn,
                      void *arg, bool *is_end, struct err *err) MUST_CHECK;

#endif
