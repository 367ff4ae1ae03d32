#include "core/bucket.h"

static int64_t missing_ns(const struct bucket *b, int64_t now_us)
{
    int64_t missing = b->full_at_ns - now_us * 1000;

    return missing > 0 ? missing : 0;
}

int64_t bucket_tokens(const struct bucket *b, const struct rate *rate,
                      int64_t now_us)
{
    int64_t there = rate->burst * rate->interval_ns - missing_ns(b, now_us);

    return there > 0 ? there / rate->interval_ns : 0;
}

void bucket_take(struct bucket *b, const struct rate *rate, int64_t now_us)
{
    b->full_at_ns = now_us * 1000 + missing_ns(b, now_us) + rate->interval_ns;
}

void bucket_give(struct bucket *b, const struct rate *rate)
{
    b->full_at_ns -= rate->interval_ns;
}

void bucket_fit(struct bucket *b, const struct rate *rate, int64_t now_us)
{
    int64_t most = now_us * 1000 + rate->burst * rate->interval_ns;

    if (b->full_at_ns > most)
        b->full_at_ns = most;
}
