/*
 * The trail of what operators gave up, in event_given_up: which events, whose,
 * who said so and why.
 */
#ifndef MT_STORES_GIVEN_UP_H
#define MT_STORES_GIVEN_UP_H

#include "base/err.h"

#include <jansson.h>

struct pg_pool;

struct given_up_note {
    const char *source, *partition, *source_id;
    const char *trouble; /* "" when it was forced */
    const char *reason, *who;
    const json_t *ranges; /* [{handler, first, last}], both inside */
};

typedef void given_up_done_fn(void *arg, const struct err *err);
/* Copies the note. Durable when called back without `err`. */
void given_up_put(struct pg_pool *pool, const struct given_up_note *note,
                  given_up_done_fn *done, void *arg);

/* The newest below `cursor` (0: of all). `answer` is given: [{id, handler,
 * source, partition, first, last, trouble, reason, who, at}]; NULL with err. */
typedef void given_up_answer_fn(void *arg, json_t *answer,
                                const struct err *err);
void given_up_list(struct pg_pool *pool, int64_t cursor, int limit,
                   given_up_answer_fn *done, void *arg);

#endif
