/* When to try again: exponential, capped, with full jitter. */
#ifndef MT_CORE_BACKOFF_H
#define MT_CORE_BACKOFF_H

#include <stdbool.h>
#include <stdint.h>

struct retry_policy {
    int max_attempts;
    int64_t base_ms, cap_ms;
    bool jitter; /* a random time between half a base and the full delay */
};

/* Delay after failed attempt number `attempt` (from 1). `random` is any 64
 * random bits: the core has no source of chance of its own. */
int64_t backoff_ms(const struct retry_policy *policy, int attempt,
                   uint64_t random);

#endif
