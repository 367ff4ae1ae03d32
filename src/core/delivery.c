#include "core/delivery.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const names[] = {
#define X(name) #name,
    DELIVERY_STATES(X)
#undef X
};

const char *delivery_state_name(enum delivery_state state)
{
    return names[state];
}

const char *park_reason_name(enum park_reason reason)
{
    static const char *const reasons[] = {"retry", "behind", "held"};

    return reasons[reason];
}

/* Which states may follow, one bit each. */
static const unsigned follows[DELIVERY_STATE_COUNT] = {
    [DELIVERY_WAITING] = 1u << DELIVERY_INFLIGHT | 1u << DELIVERY_STORING |
                         1u << DELIVERY_SETTLED,
    [DELIVERY_INFLIGHT] = 1u << DELIVERY_WAITING | 1u << DELIVERY_BACKOFF |
                          1u << DELIVERY_STORING | 1u << DELIVERY_SETTLED,
    [DELIVERY_BACKOFF] = 1u << DELIVERY_WAITING | 1u << DELIVERY_SETTLED,
    [DELIVERY_STORING] = 1u << DELIVERY_SETTLED,
    [DELIVERY_SETTLED] = 0,
};

void delivery_set_state(struct delivery *d, enum delivery_state state,
                        uint64_t counts[static DELIVERY_STATE_COUNT])
{
    CHECK(follows[d->state] & (1u << state));
    counts[d->state]--;
    if (state != DELIVERY_SETTLED)
        counts[state]++;
    d->state = (uint8_t)state;
}

static void put(char **slot, struct slice text)
{
    free(*slot);
    *slot = xstrndup(text.ptr ? text.ptr : "", text.len);
}

void delivery_failed(struct delivery *d, enum error_class class,
                     struct slice code, struct slice error,
                     struct slice traceback, int64_t wall_us)
{
    struct failures *f = d->failures;
    struct failure *last;

    if (!f)
        f = d->failures = xcalloc(1, sizeof(*f));
    if (f->n == FAILURES_MAX) /* the first one and the latest are kept */
        memmove(&f->at[1], &f->at[2], (FAILURES_MAX - 2) * sizeof(*f->at));
    else
        f->n++;
    last = &f->at[f->n - 1];
    *last = (struct failure){
        .attempt = d->attempt, .at_us = wall_us, .class = class};
    snprintf(last->error, sizeof(last->error), "%.*s", (int)error.len,
             error.ptr ? error.ptr : "");
    snprintf(f->code, sizeof(f->code), "%.*s", (int)code.len,
             code.ptr ? code.ptr : "");
    put(&f->error, error);
    put(&f->traceback, traceback);
}

void delivery_forget_failures(struct delivery *d)
{
    if (!d->failures)
        return;
    free(d->failures->error);
    free(d->failures->traceback);
    free(d->failures);
    d->failures = NULL;
}
