#include "core/timers.h"

#include "base/check.h"
#include "base/mem.h"
#include "core/delivery.h"

#include <stdlib.h>

void timers_fini(struct timers *t)
{
    free(t->at);
    *t = (struct timers){0};
}

static void set(struct timers *t, size_t i, struct delivery *d)
{
    t->at[i] = d;
    d->heap_index = (uint32_t)i;
}

static void sift_up(struct timers *t, size_t i)
{
    struct delivery *d = t->at[i];

    while (i > 0 && d->due_us < t->at[(i - 1) / 2]->due_us) {
        set(t, i, t->at[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    set(t, i, d);
}

static void sift_down(struct timers *t, size_t i)
{
    struct delivery *d = t->at[i];

    for (;;) {
        size_t child = 2 * i + 1;

        if (child + 1 < t->len &&
            t->at[child + 1]->due_us < t->at[child]->due_us)
            child++;
        if (child >= t->len || t->at[child]->due_us >= d->due_us)
            break;
        set(t, i, t->at[child]);
        i = child;
    }
    set(t, i, d);
}

void timers_put(struct timers *t, struct delivery *d)
{
    if (t->len == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 64;
        t->at = xrealloc(t->at, t->cap * sizeof(struct delivery *));
    }
    t->at[t->len++] = d;
    sift_up(t, t->len - 1);
}

void timers_remove(struct timers *t, struct delivery *d)
{
    size_t i = d->heap_index;
    struct delivery *last = t->at[--t->len];

    CHECK(i <= t->len && (i == t->len || t->at[i] == d));
    if (last == d)
        return;
    set(t, i, last);
    sift_down(t, i);
    sift_up(t, last->heap_index);
}

struct delivery *timers_take(struct timers *t, int64_t now_us)
{
    struct delivery *d;

    if (t->len == 0 || t->at[0]->due_us > now_us)
        return NULL;
    d = t->at[0];
    timers_remove(t, d);
    return d;
}

int64_t timers_next(const struct timers *t)
{
    return t->len ? t->at[0]->due_us : TIMERS_IDLE;
}
