/*
 * A token bucket: so many at once, so many over time. Reads no clock.
 *
 * What is kept is not a number of tokens but the time at which the bucket will
 * be full again; taking one moves that by an interval. All zero is a full one.
 */
#ifndef MT_CORE_BUCKET_H
#define MT_CORE_BUCKET_H

#include <stdint.h>

struct rate {
    int64_t interval_ns; /* between two tokens; 0: no limit at all */
    int64_t burst;       /* tokens of a full bucket, from 1 */
};

struct bucket {
    int64_t full_at_ns;
};

/* The rest for a rate with a limit only. `now_us`: any clock that only grows. */
int64_t bucket_tokens(const struct bucket *b, const struct rate *rate,
                      int64_t now_us);
void bucket_take(struct bucket *b, const struct rate *rate, int64_t now_us);
/* What was taken and not used. */
void bucket_give(struct bucket *b, const struct rate *rate);
/* Another rate holds from now on: no emptier than empty by that. */
void bucket_fit(struct bucket *b, const struct rate *rate, int64_t now_us);

#endif
