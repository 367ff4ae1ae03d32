/*
 * Which circuit breakers are open in which workers, as they tell: for people,
 * the metric and the log. Nothing is decided here. At most OPEN_BREAKERS_MAX
 * pairs of handler and destination are remembered; others are passed over.
 */
#ifndef MT_HOST_OPEN_BREAKERS_H
#define MT_HOST_OPEN_BREAKERS_H

#include "base/metrics.h"

#include <jansson.h>

struct open_breakers;

#define OPEN_BREAKERS_MAX 500

struct open_breakers *open_breakers_new(struct metrics *metrics);
void open_breakers_free(struct open_breakers *all); /* NULL is allowed */

/* `worker` is below PIPELINE_WORKERS_MAX. */
void open_breakers_told(struct open_breakers *all, unsigned worker,
                        const char *handler, const char *destination,
                        bool is_open);
/* What a process knew is gone with it: closed. */
void open_breakers_worker_gone(struct open_breakers *all, unsigned worker);

/* [{destination, workers, since}] of those that are open. Gives. */
json_t *open_breakers_json(const struct open_breakers *all,
                           const char *handler);

#endif
