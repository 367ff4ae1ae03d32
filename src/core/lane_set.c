#include "core/lane_set.h"

#include "base/mem.h"

#include <stdlib.h>

#define LEAST 16

void lane_set_fini(struct lane_set *s)
{
    free(s->at);
    *s = (struct lane_set){0};
}

/* Ids are hashes already: their low bits say where. The place of `lane`, or the
 * free one where it belongs. */
static size_t place_of(const struct lane_set *s, uint64_t lane)
{
    size_t i = lane & (s->cap - 1);

    while (s->at[i] && s->at[i] != lane)
        i = (i + 1) & (s->cap - 1);
    return i;
}

static void resize(struct lane_set *s, size_t cap)
{
    struct lane_set grown = {.at = xcalloc(cap, sizeof(*grown.at)), .cap = cap};

    for (size_t i = 0; i < s->cap; i++)
        if (s->at[i])
            grown.at[place_of(&grown, s->at[i])] = s->at[i];
    free(s->at);
    s->at = grown.at;
    s->cap = cap;
}

bool lane_set_has(const struct lane_set *s, uint64_t lane)
{
    if (lane == 0)
        return s->has_zero;
    return s->len > 0 && s->at[place_of(s, lane)] == lane;
}

void lane_set_add(struct lane_set *s, uint64_t lane)
{
    size_t i;

    if (lane == 0) {
        s->has_zero = true;
        return;
    }
    if (s->len >= s->cap / 4 * 3)
        resize(s, s->cap ? 2 * s->cap : LEAST);
    i = place_of(s, lane);
    s->len += s->at[i] == 0;
    s->at[i] = lane;
}

/* Moves up whatever could not be found any more behind the free place. */
static void close_gap(struct lane_set *s, size_t gap)
{
    size_t mask = s->cap - 1;

    for (size_t i = (gap + 1) & mask; s->at[i]; i = (i + 1) & mask) {
        size_t home = s->at[i] & mask;

        if (((i - home) & mask) < ((i - gap) & mask))
            continue;
        s->at[gap] = s->at[i];
        s->at[i] = 0;
        gap = i;
    }
}

void lane_set_remove(struct lane_set *s, uint64_t lane)
{
    size_t i;

    if (lane == 0) {
        s->has_zero = false;
        return;
    }
    if (!lane_set_has(s, lane))
        return;
    i = place_of(s, lane);
    s->at[i] = 0;
    s->len--;
    close_gap(s, i);
    if (s->cap > LEAST && s->len < s->cap / 8)
        resize(s, s->cap / 2);
}
