/*
 * Where the reading of an outbox stands: the highest number seen, and the
 * numbers below it that have not been seen yet. No I/O.
 *
 * A sequence hands out numbers before commit, so a lower one may appear after
 * a higher one, or never (rollback, crash). A missing number opens a gap. A
 * transaction has its xid before its number (the table's column order), so
 * once a transaction id drawn after the gap was noticed (the fence) lies at or
 * below the xmin of a snapshot, every transaction that can own the number has
 * ended in that snapshot: what it still does not show will never come.
 *
 * The caller reads the rows of all gaps and those above `last` in one
 * statement, so in one snapshot, and in the order of their numbers.
 */
#ifndef MT_SOURCES_OUTBOX_CURSOR_H
#define MT_SOURCES_OUTBOX_CURSOR_H

#include "core/ranges.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* More ranges than that and nothing new is read until some have closed. */
#define OUTBOX_GAPS_MAX 20000

struct gap_group; /* gaps with the same fence */

struct outbox_cursor {
    int64_t last;        /* every number up to here is seen, closed or a gap */
    struct ranges gaps;  /* all open ones */
    struct ranges young; /* those of them without a fence yet */
    struct gap_group *groups;
    size_t ngroups;
    int64_t last_before; /* `last` when this read began */
};

enum outbox_row {
    OUTBOX_NEW,  /* above everything seen */
    OUTBOX_LATE, /* fills a gap */
    OUTBOX_SEEN, /* read before: not to be offered again */
};

/* Start at `next`. `gaps` carry no fence: they get a fresh one. */
void outbox_cursor_init(struct outbox_cursor *c, int64_t next,
                        const struct ranges *gaps);
void outbox_cursor_fini(struct outbox_cursor *c);

/* The same place, for whoever goes on from there at a time of its own. */
void outbox_cursor_copy(struct outbox_cursor *c,
                        const struct outbox_cursor *from);

/* Should the caller draw a transaction id now, for gaps without a fence? */
bool outbox_cursor_wants_fence(const struct outbox_cursor *c);
void outbox_cursor_fence(struct outbox_cursor *c, uint64_t xid);

/* The smallest fence of an open gap; 0 when there is none. */
uint64_t outbox_cursor_oldest_fence(const struct outbox_cursor *c);

/* At most `max` ranges that cover all `gaps`, for the index; neighbours are
 * joined. The statement must leave out their rows that are not in `gaps`: seen
 * ones would fill its limit and the reading would never get on. */
void outbox_cursor_cover(const struct ranges *gaps, size_t max,
                         struct ranges *out);
bool outbox_cursor_is_full(const struct outbox_cursor *c);

/* One read: begin, its rows in order, end. `xmin` is of the read's snapshot;
 * `saw_gaps` says that the rows of all gaps were read and not cut by a limit. */
void outbox_cursor_begin(struct outbox_cursor *c);
enum outbox_row outbox_cursor_row(struct outbox_cursor *c, int64_t seq);
void outbox_cursor_end(struct outbox_cursor *c, uint64_t xmin, bool saw_gaps);

/* All up to `last` was read: what did not come is a gap. */
void outbox_cursor_reach(struct outbox_cursor *c, int64_t last);
/* Take over the gaps of another that stands at the same place, after a read
 * that both had, with all gaps of both; see outbox_readings.h. */
void outbox_cursor_join(struct outbox_cursor *c,
                        const struct outbox_cursor *other);

#endif
