#include "sources/outbox_cursor.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define GROUPS_MAX 64 /* beyond that the two youngest become one */

struct gap_group {
    uint64_t xid;
    struct ranges gaps;
};

void outbox_cursor_init(struct outbox_cursor *c, int64_t next,
                        const struct ranges *gaps)
{
    *c = (struct outbox_cursor){.last = next - 1, .last_before = next - 1};
    if (gaps) {
        ranges_copy(&c->gaps, gaps);
        ranges_cut(&c->gaps, next);
        ranges_copy(&c->young, &c->gaps);
    }
}

void outbox_cursor_fini(struct outbox_cursor *c)
{
    ranges_fini(&c->gaps);
    ranges_fini(&c->young);
    for (size_t i = 0; i < c->ngroups; i++)
        ranges_fini(&c->groups[i].gaps);
    free(c->groups);
    memset(c, 0, sizeof(*c));
}

void outbox_cursor_copy(struct outbox_cursor *c,
                        const struct outbox_cursor *from)
{
    outbox_cursor_init(c, from->last + 1, &from->gaps);
}

bool outbox_cursor_wants_fence(const struct outbox_cursor *c)
{
    return c->young.len > 0;
}

/* The younger fence holds for both: it only closes the older gaps later. */
static void join_youngest(struct outbox_cursor *c)
{
    struct gap_group *last = &c->groups[c->ngroups - 1];
    struct gap_group *before = &c->groups[c->ngroups - 2];

    ranges_unite(&before->gaps, &last->gaps);
    before->xid = last->xid;
    ranges_fini(&last->gaps);
    c->ngroups--;
}

void outbox_cursor_fence(struct outbox_cursor *c, uint64_t xid)
{
    if (c->young.len == 0)
        return;
    if (c->ngroups == GROUPS_MAX)
        join_youngest(c);
    c->groups = xrealloc(c->groups, (c->ngroups + 1) * sizeof(*c->groups));
    c->groups[c->ngroups++] = (struct gap_group){xid, c->young};
    c->young = (struct ranges){0};
}

uint64_t outbox_cursor_oldest_fence(const struct outbox_cursor *c)
{
    return c->ngroups ? c->groups[0].xid : 0;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* The distance at which joining neighbours leaves `max` ranges. */
static int64_t joining_distance(const struct ranges *gaps, size_t max)
{
    size_t n = gaps->len - 1;
    int64_t *distances = xmalloc(n * sizeof(*distances));
    int64_t distance;

    for (size_t i = 0; i < n; i++)
        distances[i] = gaps->at[i + 1].first - gaps->at[i].last;
    qsort(distances, n, sizeof(*distances), by_size);
    distance = distances[n - max];
    free(distances);
    return distance;
}

#define NEAR 16 /* reading so many known rows costs less than another range */

void outbox_cursor_cover(const struct ranges *gaps, size_t max,
                         struct ranges *out)
{
    int64_t distance = NEAR;

    ranges_clear(out);
    if (gaps->len > max && joining_distance(gaps, max) > distance)
        distance = joining_distance(gaps, max);
    for (size_t i = 0; i < gaps->len;) {
        int64_t first = gaps->at[i].first, last = gaps->at[i].last;

        while (++i < gaps->len && gaps->at[i].first - last <= distance)
            last = gaps->at[i].last;
        ranges_add(out, first, last);
    }
}

bool outbox_cursor_is_full(const struct outbox_cursor *c)
{
    return c->gaps.len > OUTBOX_GAPS_MAX;
}

void outbox_cursor_begin(struct outbox_cursor *c)
{
    c->last_before = c->last;
}

static void fill_gap(struct outbox_cursor *c, int64_t seq)
{
    ranges_remove(&c->gaps, seq, seq);
    ranges_remove(&c->young, seq, seq);
    for (size_t i = 0; i < c->ngroups; i++)
        ranges_remove(&c->groups[i].gaps, seq, seq);
}

static void open_gap(struct outbox_cursor *c, int64_t first, int64_t last)
{
    ranges_add(&c->gaps, first, last);
    ranges_add(&c->young, first, last);
}

enum outbox_row outbox_cursor_row(struct outbox_cursor *c, int64_t seq)
{
    if (seq <= c->last) {
        if (!ranges_has(&c->gaps, seq))
            return OUTBOX_SEEN;
        fill_gap(c, seq);
        return OUTBOX_LATE;
    }
#ifndef MUTANT_ID_WATERMARK /* seq > last, and nothing comes late */
    if (seq > c->last + 1)
        open_gap(c, c->last + 1, seq - 1);
#endif
    c->last = seq;
    return OUTBOX_NEW;
}

static void close_group(struct outbox_cursor *c, size_t i)
{
    struct ranges *closed = &c->groups[i].gaps;

    for (size_t k = 0; k < closed->len; k++)
        ranges_remove(&c->gaps, closed->at[k].first, closed->at[k].last);
    ranges_fini(closed);
    c->ngroups--;
    memmove(&c->groups[i], &c->groups[i + 1],
            (c->ngroups - i) * sizeof(*c->groups));
}

void outbox_cursor_end(struct outbox_cursor *c, uint64_t xmin, bool saw_gaps)
{
    size_t i = 0;

    while (i < c->ngroups) {
        if (c->groups[i].gaps.len == 0 ||
            (saw_gaps && c->groups[i].xid <= xmin))
            close_group(c, i);
        else
            i++;
    }
}

void outbox_cursor_reach(struct outbox_cursor *c, int64_t last)
{
    if (last <= c->last)
        return;
    open_gap(c, c->last + 1, last);
    c->last = last;
}

void outbox_cursor_join(struct outbox_cursor *c,
                        const struct outbox_cursor *other)
{
    struct ranges more = {0};

    CHECK(c->last == other->last);
    ranges_copy(&more, &other->gaps);
    for (size_t i = 0; i < c->gaps.len; i++)
        ranges_remove(&more, c->gaps.at[i].first, c->gaps.at[i].last);
    ranges_unite(&c->gaps, &more);
    ranges_unite(&c->young, &more);
    ranges_fini(&more);
}
