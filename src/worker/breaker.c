#include "worker/breaker.h"

#include <string.h>

#define PROBE_WAIT_US 1000000 /* while somebody else asks, at the most */

static void change(struct breaker *b, enum breaker_state state)
{
    b->state = state;
    b->turn++;
    b->is_probing = false;
    memset(b->slices, 0, sizeof(b->slices));
}

bool breaker_enter(struct breaker *b, int64_t now_us, uint32_t *ticket)
{
    if (b->state == BREAKER_OPEN && now_us >= b->until_us)
        change(b, BREAKER_HALF_OPEN);
    if (b->state == BREAKER_OPEN || b->is_probing)
        return false;
    b->is_probing = b->state == BREAKER_HALF_OPEN;
    *ticket = b->turn;
    return true;
}

static void open_up(struct breaker *b, const struct breaker_policy *policy,
                    int64_t now_us, uint64_t random)
{
    change(b, BREAKER_OPEN);
    b->until_us = now_us + policy->open_us +
                  (int64_t)(random % (uint64_t)(policy->open_us / 5 + 1));
}

/* Counts a call; true when there were too many failures lately. */
static bool is_too_much(struct breaker *b, const struct breaker_policy *policy,
                        bool has_failed, int64_t now_us)
{
    int64_t number = now_us / (policy->window_us / BREAKER_SLICES + 1);
    uint32_t calls = 0, failures = 0;
    int at = (int)(number % BREAKER_SLICES);

    if (b->slices[at].number != number) {
        b->slices[at].number = number;
        b->slices[at].calls = b->slices[at].failures = 0;
    }
    b->slices[at].calls++;
    b->slices[at].failures += has_failed;
    if (!has_failed)
        return false;
    for (int i = 0; i < BREAKER_SLICES; i++)
        if (b->slices[i].number > number - BREAKER_SLICES) {
            calls += b->slices[i].calls;
            failures += b->slices[i].failures;
        }
    return calls >= (uint32_t)policy->calls && failures >= policy->rate * calls;
}

void breaker_leave(struct breaker *b, const struct breaker_policy *policy,
                   uint32_t ticket, enum breaker_result result, int64_t now_us,
                   uint64_t random)
{
    if (ticket != b->turn)
        return;
    if (result == BREAKER_UNKNOWN) { /* then somebody else is the probe */
        b->is_probing = false;
    } else if (b->state == BREAKER_HALF_OPEN) {
        if (result == BREAKER_OK)
            change(b, BREAKER_CLOSED);
        else
            open_up(b, policy, now_us, random);
    } else if (is_too_much(b, policy, result == BREAKER_FAILED, now_us)) {
        open_up(b, policy, now_us, random);
    }
}

int64_t breaker_wait_us(const struct breaker *b,
                        const struct breaker_policy *policy, int64_t now_us)
{
    if (b->state == BREAKER_OPEN && b->until_us > now_us)
        return b->until_us - now_us;
    return policy->open_us < PROBE_WAIT_US ? policy->open_us : PROBE_WAIT_US;
}
