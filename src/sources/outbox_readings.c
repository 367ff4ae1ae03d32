#include "sources/outbox_readings.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static void reading_free(struct reading *r)
{
    outbox_cursor_fini(&r->cursor);
    free(r->snapshot);
    free(r);
}

void readings_fini(struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        reading_free(rs->at[i]);
    rs->len = 0;
}

static struct reading *reading_new(struct readings *rs, unsigned shard)
{
    struct reading *r = xcalloc(1, sizeof(*r));

    CHECK(rs->len < SHARDS_MAX); /* each has a shard of its own */
    r->shards = SHARD(shard);
    rs->at[rs->len++] = r;
    return r;
}

static void remove_at(struct readings *rs, size_t i)
{
    reading_free(rs->at[i]);
    rs->at[i] = rs->at[--rs->len];
}

struct reading *readings_of(const struct readings *rs, unsigned shard)
{
    for (size_t i = 0; i < rs->len; i++)
        if (rs->at[i]->shards & SHARD(shard))
            return rs->at[i];
    return NULL;
}

const struct reading *readings_front(const struct readings *rs)
{
    const struct reading *front = NULL;

    for (size_t i = 0; i < rs->len; i++)
        if (!front || rs->at[i]->cursor.last > front->cursor.last)
            front = rs->at[i];
    return front;
}

/* --- shards come and go ------------------------------------------------------- */

void readings_leave(struct readings *rs, unsigned shard)
{
    for (size_t i = 0; i < rs->len; i++) {
        rs->at[i]->shards &= ~SHARD(shard);
        if (!rs->at[i]->shards)
            remove_at(rs, i--);
    }
}

void readings_start(struct readings *rs, unsigned shard, int64_t next,
                    const struct ranges *gaps)
{
    readings_leave(rs, shard);
    outbox_cursor_init(&reading_new(rs, shard)->cursor, next, gaps);
}

/* A read that is under way for its former reading is not for it any more. */
void readings_pause(struct readings *rs, unsigned shard)
{
    struct reading *from = readings_of(rs, shard), *own = from;

    if (!from)
        return;
    if (from->shards != SHARD(shard) || from->is_asked) {
        struct outbox_cursor place;

        outbox_cursor_copy(&place, &from->cursor);
        readings_leave(rs, shard);
        own = reading_new(rs, shard);
        own->cursor = place;
    }
    own->is_paused = true;
}

void readings_resume(struct readings *rs, unsigned shard)
{
    struct reading *r = readings_of(rs, shard);

    if (!r)
        return;
    r->is_paused = false;
    r->is_caught_up = false;
}

/* --- reading ------------------------------------------------------------------- */

bool readings_are_behind(const struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++) {
        const struct reading *r = rs->at[i];

        if (!r->is_paused && !r->is_caught_up &&
            !outbox_cursor_is_full(&r->cursor))
            return true;
    }
    return false;
}

bool readings_are_full(const struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        if (outbox_cursor_is_full(&rs->at[i]->cursor))
            return true;
    return false;
}

bool readings_have_gaps(const struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        if (!rs->at[i]->is_paused && rs->at[i]->cursor.gaps.len > 0)
            return true;
    return false;
}

/* The place that is read next: of the front, or furthest behind. */
static const struct reading *whose_turn(struct readings *rs)
{
    const struct reading *chosen = NULL;

    rs->was_front = !rs->was_front;
    for (size_t i = 0; i < rs->len; i++) {
        const struct reading *r = rs->at[i];

        if (r->is_paused)
            continue;
        if (!chosen || (rs->was_front ? r->cursor.last > chosen->cursor.last
                                      : r->cursor.last < chosen->cursor.last))
            chosen = r;
    }
    return chosen;
}

void outbox_plan_fini(struct outbox_plan *plan)
{
    ranges_fini(&plan->gaps);
    free(plan->snapshot);
    plan->snapshot = NULL;
}

/* What one has looked at lately another that stands there has not. */
static void take_part(struct reading *r, struct outbox_plan *plan)
{
    bool is_alone = !plan->shards;

    r->is_asked = true;
    free(plan->snapshot);
    plan->snapshot = is_alone && r->snapshot ? xstrdup(r->snapshot) : NULL;
    plan->shards |= r->shards;
    plan->wants_news = plan->wants_news && !outbox_cursor_is_full(&r->cursor);
    ranges_unite(&plan->gaps, &r->cursor.gaps);
}

bool readings_plan(struct readings *rs, struct outbox_plan *plan)
{
    const struct reading *first = whose_turn(rs);

    *plan = (struct outbox_plan){.until = INT64_MAX, .wants_news = true};
    if (!first)
        return false;
    plan->last = first->cursor.last;
    for (size_t i = 0; i < rs->len; i++) {
        struct reading *r = rs->at[i];

        r->is_asked = false;
        if (r->is_paused)
            continue;
        if (r->cursor.last == plan->last)
            take_part(r, plan);
        else if (r->cursor.last > plan->last && r->cursor.last < plan->until)
            plan->until = r->cursor.last;
    }
    return true;
}

void readings_begin(struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        if (rs->at[i]->is_asked)
            outbox_cursor_begin(&rs->at[i]->cursor);
}

enum outbox_row readings_row(struct readings *rs, int64_t seq, unsigned shard)
{
    enum outbox_row for_shard = OUTBOX_SEEN;

    for (size_t i = 0; i < rs->len; i++) {
        struct reading *r = rs->at[i];
        enum outbox_row kind;

        if (!r->is_asked)
            continue;
        kind = outbox_cursor_row(&r->cursor, seq);
        if (shard < SHARDS_MAX && r->shards & SHARD(shard))
            for_shard = kind;
    }
    return for_shard;
}

/* A cut read has not shown all gaps: the next must look at them again. */
static bool end_one(struct reading *r, const struct outbox_plan *plan,
                    const char *snapshot, bool cut)
{
    bool is_new = !plan->snapshot || strcmp(plan->snapshot, snapshot) != 0;
    bool is_whole = !cut || r->cursor.last > r->cursor.last_before;

    outbox_cursor_end(&r->cursor, strtoull(snapshot, NULL, 10),
                      is_new && is_whole);
    free(r->snapshot);
    r->snapshot = is_whole ? xstrdup(snapshot) : NULL;
    r->is_caught_up = !cut && plan->until == INT64_MAX;
    if (!cut && plan->wants_news && plan->until != INT64_MAX)
        outbox_cursor_reach(&r->cursor, plan->until);
    return is_whole;
}

void readings_end(struct readings *rs, const struct outbox_plan *plan,
                  const char *snapshot, bool cut)
{
    struct reading *first = NULL;

    for (size_t i = 0; i < rs->len; i++) {
        struct reading *r = rs->at[i];

        if (!r->is_asked)
            continue;
        r->is_asked = false;
        if (!end_one(r, plan, snapshot, cut))
            continue;
        if (!first) {
            first = r;
            continue;
        }
        outbox_cursor_join(&first->cursor, &r->cursor);
        first->shards |= r->shards;
        remove_at(rs, i--);
    }
}

void readings_fail(struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        rs->at[i]->is_asked = false;
}

/* --- fences -------------------------------------------------------------------- */

bool readings_want_fence(const struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        if (outbox_cursor_wants_fence(&rs->at[i]->cursor))
            return true;
    return false;
}

void readings_begin_fence(struct readings *rs)
{
    for (size_t i = 0; i < rs->len; i++)
        rs->at[i]->is_fencing = true;
}

/* A reading that came since may wait for a number younger than the fence. */
void readings_end_fence(struct readings *rs, uint64_t xid)
{
    for (size_t i = 0; i < rs->len; i++) {
        if (rs->at[i]->is_fencing && xid)
            outbox_cursor_fence(&rs->at[i]->cursor, xid);
        rs->at[i]->is_fencing = false;
    }
}

uint64_t readings_oldest_fence(const struct readings *rs)
{
    uint64_t oldest = 0;

    for (size_t i = 0; i < rs->len; i++) {
        uint64_t fence = outbox_cursor_oldest_fence(&rs->at[i]->cursor);

        if (!rs->at[i]->is_paused && fence && (!oldest || fence < oldest))
            oldest = fence;
    }
    return oldest;
}
