/* Deliveries that wait for their next attempt, earliest first. A binary heap;
 * each delivery knows its index, so that taking one out of the middle needs no
 * search. Reads no clock. */
#ifndef MT_CORE_TIMERS_H
#define MT_CORE_TIMERS_H

#include <stddef.h>
#include <stdint.h>

struct delivery;

struct timers {
    struct delivery **at;
    size_t len, cap;
};

#define TIMERS_IDLE INT64_MAX

void timers_fini(struct timers *t);
void timers_put(struct timers *t, struct delivery *d); /* by d->due_us */
void timers_remove(struct timers *t, struct delivery *d);
struct delivery *timers_take(struct timers *t, int64_t now_us); /* or NULL */
int64_t timers_next(const struct timers *t); /* µs, or TIMERS_IDLE */

#endif
