/*
 * The cursor against a model of PostgreSQL: writers that draw an xid, then a
 * number, and commit or roll back in any order, and readers that see only what
 * was committed when their snapshot was taken.
 */
#include "sources/outbox_cursor.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEQS 4000

enum row_state { ROW_NONE, ROW_OPEN, ROW_COMMITTED, ROW_ABORTED };

struct model {
    uint64_t next_xid;
    int64_t next_seq;
    enum row_state rows[SEQS + 1];
    uint64_t xids[SEQS + 1];
    int offered[SEQS + 1];
    unsigned seed;
};

static unsigned chance(struct model *m, unsigned of)
{
    m->seed = m->seed * 1103515245u + 12345u;
    return (m->seed >> 16) % of;
}

static void begin_writer(struct model *m)
{
    unsigned rows = 1 + chance(m, 3);
    uint64_t xid = m->next_xid++;

    for (unsigned i = 0; i < rows && m->next_seq <= SEQS; i++) {
        m->rows[m->next_seq] = ROW_OPEN;
        m->xids[m->next_seq++] = xid;
    }
}

static void end_writer(struct model *m, enum row_state how)
{
    int64_t from = 1 + chance(m, (unsigned)m->next_seq);
    uint64_t xid = 0;

    for (int64_t s = from; s < m->next_seq && !xid; s++)
        if (m->rows[s] == ROW_OPEN)
            xid = m->xids[s];
    for (int64_t s = 1; xid && s < m->next_seq; s++)
        if (m->rows[s] == ROW_OPEN && m->xids[s] == xid)
            m->rows[s] = how;
}

static uint64_t xmin_of(const struct model *m)
{
    for (int64_t s = 1; s < m->next_seq; s++)
        if (m->rows[s] == ROW_OPEN)
            return m->xids[s];
    return m->next_xid;
}

/* What the statement does: rows of the ranges and above last, a limit on all. */
static void read_rows(struct model *m, struct outbox_cursor *c, int limit)
{
    struct ranges asked = {0};
    int64_t last = c->last, highest = 0;
    int found = 0;

    outbox_cursor_cover(&c->gaps, 8, &asked);
    assert_true(asked.len <= 8);
    outbox_cursor_begin(c);
    for (int64_t s = 1; s < m->next_seq && found < limit; s++) {
        if (m->rows[s] != ROW_COMMITTED ||
            (s <= last && !(ranges_has(&asked, s) && ranges_has(&c->gaps, s))))
            continue;
        found++;
        highest = s;
        if (outbox_cursor_row(c, s) != OUTBOX_SEEN)
            m->offered[s]++;
    }
    outbox_cursor_end(c, xmin_of(m), found < limit || highest > last);
    ranges_fini(&asked);
}

/* A gap that is closed may not belong to a writer who is still at work. */
static void assert_nothing_open_is_closed(const struct model *m,
                                          const struct outbox_cursor *c)
{
    for (int64_t s = 1; s <= c->last; s++) {
        bool is_gap = ranges_has(&c->gaps, s);

        if (m->rows[s] == ROW_OPEN)
            assert_true(is_gap);
        if (m->rows[s] == ROW_COMMITTED)
            assert_int_equal(m->offered[s], !is_gap);
    }
}

static void play(struct model *m, struct outbox_cursor *c)
{
    for (int step = 0; step < 6000; step++) {
        switch (chance(m, 6)) {
        case 0:
        case 1: begin_writer(m); break;
        case 2: end_writer(m, ROW_COMMITTED); break;
        case 3:
            end_writer(m, chance(m, 4) ? ROW_COMMITTED : ROW_ABORTED);
            break;
        case 4: read_rows(m, c, 1 + (int)chance(m, 40)); break;
        case 5:
            if (outbox_cursor_wants_fence(c) && chance(m, 2))
                outbox_cursor_fence(c, m->next_xid++);
            break;
        }
        if (step % 500 == 0)
            assert_nothing_open_is_closed(m, c);
    }
}

static void drain(struct model *m, struct outbox_cursor *c)
{
    for (int64_t s = 1; s < m->next_seq; s++)
        if (m->rows[s] == ROW_OPEN)
            m->rows[s] = s % 5 ? ROW_COMMITTED : ROW_ABORTED;
    for (int i = 0; i < 300; i++) {
        if (outbox_cursor_wants_fence(c))
            outbox_cursor_fence(c, m->next_xid++);
        read_rows(m, c, 50);
    }
}

static void nothing_is_lost_doubled_or_left_open(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 25; seed++) {
        struct model *m = xcalloc(1, sizeof(*m));
        struct outbox_cursor c;

        m->seed = seed;
        m->next_xid = 100;
        m->next_seq = 1;
        outbox_cursor_init(&c, 1, NULL);
        play(m, &c);
        drain(m, &c);
        assert_nothing_open_is_closed(m, &c);
        assert_int_equal(c.gaps.len, 0);
        assert_int_equal(c.ngroups, 0);
        outbox_cursor_fini(&c);
        free(m);
    }
}

/* A restart keeps (last, gaps) only: fences are gone, nothing else is. */
static void a_restart_loses_nothing(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct outbox_cursor c;

    (void)state;
    m->seed = 7;
    m->next_xid = 100;
    m->next_seq = 1;
    outbox_cursor_init(&c, 1, NULL);
    for (int round = 0; round < 20; round++) {
        struct outbox_cursor fresh;

        for (int i = 0; i < 100; i++) {
            begin_writer(m);
            end_writer(m, chance(m, 5) ? ROW_COMMITTED : ROW_ABORTED);
            if (i % 7 == 0)
                read_rows(m, &c, 30);
            if (i % 11 == 0)
                outbox_cursor_fence(&c, m->next_xid++);
        }
        outbox_cursor_init(&fresh, c.last + 1, &c.gaps);
        outbox_cursor_fini(&c);
        c = fresh;
    }
    drain(m, &c);
    assert_nothing_open_is_closed(m, &c);
    assert_int_equal(c.gaps.len, 0);
    outbox_cursor_fini(&c);
    free(m);
}

static void a_gap_stays_until_its_fence_is_passed(void **state)
{
    struct outbox_cursor c;

    (void)state;
    outbox_cursor_init(&c, 1, NULL);
    outbox_cursor_begin(&c);
    assert_int_equal(outbox_cursor_row(&c, 1), OUTBOX_NEW);
    assert_int_equal(outbox_cursor_row(&c, 4), OUTBOX_NEW);
    outbox_cursor_end(&c, 1000, true);
    assert_true(ranges_has(&c.gaps, 2) && ranges_has(&c.gaps, 3));
    outbox_cursor_fence(&c, 50);
    outbox_cursor_begin(&c);
    assert_int_equal(outbox_cursor_row(&c, 3), OUTBOX_LATE);
    assert_int_equal(outbox_cursor_row(&c, 4), OUTBOX_SEEN);
    outbox_cursor_end(&c, 49, true);
    assert_true(ranges_has(&c.gaps, 2));
    assert_int_equal(outbox_cursor_oldest_fence(&c), 50);
    outbox_cursor_begin(&c);
    outbox_cursor_end(&c, 50, false);
    assert_true(ranges_has(&c.gaps, 2));
    outbox_cursor_begin(&c);
    outbox_cursor_end(&c, 50, true);
    assert_int_equal(c.gaps.len, 0);
    outbox_cursor_fini(&c);
}

static void many_gaps_are_asked_for_in_few_ranges(void **state)
{
    struct outbox_cursor c;
    struct ranges asked = {0};

    (void)state;
    outbox_cursor_init(&c, 1, NULL);
    outbox_cursor_begin(&c);
    for (int64_t seq = 100; seq <= 1000000; seq += 100)
        outbox_cursor_row(&c, seq);
    outbox_cursor_cover(&c.gaps, 200, &asked);
    assert_true(asked.len <= 200);
    for (size_t i = 0; i < c.gaps.len; i++)
        assert_true(ranges_has(&asked, c.gaps.at[i].first) &&
                    ranges_has(&asked, c.gaps.at[i].last));
    ranges_fini(&asked);
    outbox_cursor_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost_doubled_or_left_open),
        cmocka_unit_test(a_restart_loses_nothing),
        cmocka_unit_test(a_gap_stays_until_its_fence_is_passed),
        cmocka_unit_test(many_gaps_are_asked_for_in_few_ranges),
    };

    return cmocka_run_group_tests_name("outbox_cursor", tests, NULL, NULL);
}
