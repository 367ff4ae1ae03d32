/*
 * The readings of one outbox by one host, and which of its shards follows
 * which. No I/O.
 *
 * Usually there is one: every row is seen once, and the payload of our shards
 * comes with it. A shard that was taken over stands elsewhere (where its former
 * owner saved it), as does one that starts again or was paused. It gets a
 * reading of its own, with a cursor of its own (outbox_cursor.h), which by
 * itself loses and doubles nothing. What is left is how two readings become
 * one:
 *
 *   1. The one behind reads up to the place of the next one ahead, not beyond.
 *   2. Both stand at the same place then. One read serves both: the gaps of
 *      both, and what is new. Each cursor judges each row, and a shard gets it
 *      by the word of its own reading's cursor.
 *   3. When that read showed all gaps, they join: the gaps are united.
 *
 * Why the union is right. Let S be the snapshot of the last read. A number that
 * is not visible in S was visible in no older snapshot, so nobody was ever
 * offered it: neither here, nor by the host that had the shard before, whose
 * snapshots are all older (its lease ended before we took the position). So to
 * wait for it on behalf of all shards doubles nothing. A number that is visible
 * in S is in neither cursor's gaps any more: each has just offered it, or has
 * known it as done. And nothing is lost, because what either waits for is
 * waited for further on. A number that one cursor had closed for good (rolled
 * back) comes into the union if the other has not closed it yet; it will never
 * be visible, and closes again by a fence drawn after the join.
 *
 * So a number in a stored gap is one of three, and each ends well: still open
 * (it joins the common gaps), visible (its own reading offers it, late), or
 * rolled back (a fence drawn after the take-over closes it).
 */
#ifndef MT_SOURCES_OUTBOX_READINGS_H
#define MT_SOURCES_OUTBOX_READINGS_H

#include "core/leases.h"
#include "core/source.h"
#include "sources/outbox_cursor.h"

struct reading {
    struct outbox_cursor cursor;
    shard_set shards; /* that follow it; never none */
    bool is_paused;   /* of one shard only: not read, the others go by */
    bool is_caught_up;
    bool is_asked;   /* has part in the read under way */
    bool is_fencing; /* in the fence under way */
    char *snapshot;  /* of the last read that showed all gaps; or NULL */
};

struct readings {
    struct reading *at[SHARDS_MAX];
    size_t len;
    bool was_front; /* whose turn it was last */
};

/* The next read; the caller's to end with outbox_plan_fini(). */
struct outbox_plan {
    shard_set shards;    /* whose payload it wants */
    int64_t last, until; /* rows above `last`, up to `until` (INT64_MAX: all) */
    bool wants_news;     /* false: too many gaps, nothing but these */
    struct ranges gaps;
    char *snapshot; /* skip the gaps if it still is this one; NULL: never */
};

void outbox_plan_fini(struct outbox_plan *plan);

void readings_fini(struct readings *rs);

/* The shard goes on from there, whatever it did before. */
void readings_start(struct readings *rs, unsigned shard, int64_t next,
                    const struct ranges *gaps);
void readings_leave(struct readings *rs, unsigned shard);
void readings_pause(struct readings *rs, unsigned shard);
void readings_resume(struct readings *rs, unsigned shard);

/* The reading that a shard follows, or NULL. */
struct reading *readings_of(const struct readings *rs, unsigned shard);
/* The one that is furthest ahead, or NULL. */
const struct reading *readings_front(const struct readings *rs);
/* Is one of them to be read again without a pause? */
bool readings_are_behind(const struct readings *rs);
/* Does one wait for gaps to close before it reads anything new? */
bool readings_are_full(const struct readings *rs);
bool readings_have_gaps(const struct readings *rs);

/* What to read next: the front and the one that is furthest behind take turns.
 * False when there is nothing to read. */
bool readings_plan(struct readings *rs, struct outbox_plan *plan);
/* The answer: begin; each row in its order; end. `snapshot` is the read's, and
 * `cut` says that its limit was reached. */
void readings_begin(struct readings *rs);
enum outbox_row readings_row(struct readings *rs, int64_t seq, unsigned shard);
void readings_end(struct readings *rs, const struct outbox_plan *plan,
                  const char *snapshot, bool cut);
/* It failed. */
void readings_fail(struct readings *rs);

/* Draw a transaction id for the gaps that are there now? Then begin, and the
 * answer: 0 when there is none. */
bool readings_want_fence(const struct readings *rs);
void readings_begin_fence(struct readings *rs);
void readings_end_fence(struct readings *rs, uint64_t xid);
/* The smallest fence of an open gap that is looked at; 0: there is none. */
uint64_t readings_oldest_fence(const struct readings *rs);

#endif
