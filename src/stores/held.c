#include "stores/held.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* Of the first that is not below `place`. */
static size_t find(const struct held *held, int64_t place)
{
    size_t from = 0, to = held->n;

    if (to > 0 && held->at[to - 1].place < place)
        return to; /* as they mostly come */
    while (from < to) {
        size_t middle = from + (to - from) / 2;

        if (held->at[middle].place < place)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

static void uncount(struct held *held, const struct held_item *item)
{
    held->records -= item->outputs.n;
    held->bytes -= item->outputs.bytes;
}

static void remove_at(struct held *held, size_t i, size_t n)
{
    memmove(&held->at[i], &held->at[i + n],
            (held->n - i - n) * sizeof(*held->at));
    held->n -= n;
}

void held_drop(struct held *held, int64_t place)
{
    size_t i = find(held, place);

    if (i == held->n || held->at[i].place != place)
        return;
    uncount(held, &held->at[i]);
    kafka_outputs_fini(&held->at[i].outputs);
    remove_at(held, i, 1);
}

void held_put(struct held *held, int64_t place, struct kafka_outputs *outputs)
{
    size_t i;

    held_drop(held, place);
    if (outputs->n == 0) {
        kafka_outputs_fini(outputs);
        return;
    }
    if (held->n == held->cap) {
        held->cap = held->cap ? 2 * held->cap : 64;
        held->at = xrealloc(held->at, held->cap * sizeof(*held->at));
    }
    i = find(held, place);
    memmove(&held->at[i + 1], &held->at[i], (held->n - i) * sizeof(*held->at));
    held->at[i] = (struct held_item){place, *outputs};
    held->n++;
    held->records += outputs->n;
    held->bytes += outputs->bytes;
    *outputs = (struct kafka_outputs){0};
}

void held_take(struct held *held, int64_t next, struct kafka_outputs *to)
{
    size_t n = find(held, next);

    for (size_t i = 0; i < n; i++) {
        uncount(held, &held->at[i]);
        kafka_outputs_move(to, &held->at[i].outputs);
    }
    if (n > 0)
        remove_at(held, 0, n);
}

void held_fini(struct held *held)
{
    for (size_t i = 0; i < held->n; i++)
        kafka_outputs_fini(&held->at[i].outputs);
    free(held->at);
    *held = (struct held){0};
}
