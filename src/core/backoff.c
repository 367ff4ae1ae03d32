#include "core/backoff.h"

int64_t backoff_ms(const struct retry_policy *policy, int attempt,
                   uint64_t random)
{
    int64_t delay = policy->base_ms, least = policy->base_ms / 2;

    for (int i = 1; i < attempt && delay < policy->cap_ms; i++)
        delay *= 2;
    if (delay > policy->cap_ms)
        delay = policy->cap_ms;
    if (least > delay)
        least = delay;
    if (policy->jitter && delay > least)
        delay = least + (int64_t)(random % (uint64_t)(delay - least + 1));
    return delay;
}
