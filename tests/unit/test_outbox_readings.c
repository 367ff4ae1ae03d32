/*
 * Readings and shards against a model of PostgreSQL: writers that draw an xid,
 * then a number, and commit or roll back in any order; hosts whose statements
 * see only what was committed when their snapshot was taken, and hear of it
 * later; and shards that go from host to host, are paused and go on.
 */
#include "sources/outbox_readings.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEQS   4000
#define SHARDS 8
#define HOSTS  3
#define LIMIT  60

enum row_state { ROW_NONE, ROW_OPEN, ROW_COMMITTED, ROW_ABORTED };

struct host {
    struct readings readings;
    struct outbox_plan plan;
    bool is_reading, is_fencing;
    uint64_t fence;
    char snapshot[64];
    int64_t rows[LIMIT];
    int n_rows, limit;
};

struct model {
    uint64_t next_xid, version; /* every change makes another snapshot */
    int64_t next_seq;
    enum row_state rows[SEQS + 1];
    uint64_t xids[SEQS + 1];
    int offered[SEQS + 1];
    struct host hosts[HOSTS];
    int owner[SHARDS];
    int64_t furthest[SHARDS]; /* what was offered in order */
    struct position saved[SHARDS];
    bool is_saved[SHARDS];   /* and nothing of it was offered since */
    bool is_closing[SHARDS]; /* nothing of it may come any more */
    uint64_t seed;
};

static unsigned chance(struct model *m, unsigned of)
{
    m->seed = m->seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(m->seed >> 33) % of;
}

static unsigned shard_of(int64_t seq)
{
    return (unsigned)((uint64_t)seq * 2654435761u >> 7) % SHARDS;
}

/* --- the database ------------------------------------------------------------- */

static void begin_writer(struct model *m)
{
    unsigned rows = 1 + chance(m, 3);
    uint64_t xid = m->next_xid++;

    m->version++;
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
    m->version++;
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

/* What the statement does. */
static void ask(struct model *m, struct host *h)
{
    struct ranges asked = {0};
    bool skips_gaps;

    outbox_plan_fini(&h->plan);
    if (!readings_plan(&h->readings, &h->plan))
        return;
    h->is_reading = true;
    h->limit = 1 + (int)chance(m, LIMIT);
    h->n_rows = 0;
    snprintf(h->snapshot, sizeof(h->snapshot), "%llu:%llu",
             (unsigned long long)xmin_of(m), (unsigned long long)m->version);
    skips_gaps = h->plan.snapshot && strcmp(h->plan.snapshot, h->snapshot) == 0;
    outbox_cursor_cover(&h->plan.gaps, 8, &asked);
    for (int64_t s = 1; s < m->next_seq && h->n_rows < h->limit; s++) {
        bool is_new = s > h->plan.last && s <= h->plan.until;
        bool is_gap = ranges_has(&asked, s) && ranges_has(&h->plan.gaps, s);

        if (m->rows[s] == ROW_COMMITTED &&
            ((is_new && h->plan.wants_news) || (is_gap && !skips_gaps)))
            h->rows[h->n_rows++] = s;
    }
    ranges_fini(&asked);
}

/* --- a host -------------------------------------------------------------------- */

static void offer(struct model *m, int64_t seq, enum outbox_row kind)
{
    unsigned shard = shard_of(seq);

    assert_false(m->is_closing[shard]);
    m->offered[seq]++;
    m->is_saved[shard] = false;
    if (kind != OUTBOX_NEW)
        return;
    assert_true(seq > m->furthest[shard]);
    m->furthest[shard] = seq;
}

static void answer(struct model *m, struct host *h)
{
    h->is_reading = false;
    if (chance(m, 20) == 0) {
        readings_fail(&h->readings);
        return;
    }
    readings_begin(&h->readings);
    for (int i = 0; i < h->n_rows; i++) {
        int64_t seq = h->rows[i];
        unsigned shard = shard_of(seq);
        bool is_ours = m->owner[shard] == h - m->hosts;
        enum outbox_row kind = readings_row(&h->readings, seq, shard);

        if (kind == OUTBOX_SEEN)
            continue;
        assert_true(is_ours);
        offer(m, seq, kind);
    }
    readings_end(&h->readings, &h->plan, h->snapshot, h->n_rows >= h->limit);
}

static void fence(struct model *m, struct host *h)
{
    if (h->is_fencing) {
        readings_end_fence(&h->readings, chance(m, 10) ? h->fence : 0);
        h->is_fencing = false;
    } else if (readings_want_fence(&h->readings)) {
        readings_begin_fence(&h->readings);
        h->fence = m->next_xid++;
        m->version++;
        h->is_fencing = true;
    }
}

static void save(struct model *m, unsigned shard)
{
    const struct reading *r =
        readings_of(&m->hosts[m->owner[shard]].readings, shard);

    m->saved[shard].next = r->cursor.last + 1;
    ranges_copy(&m->saved[shard].gaps, &r->cursor.gaps);
    m->is_saved[shard] = true;
}

static void begin_closing(struct model *m, unsigned shard)
{
    readings_pause(&m->hosts[m->owner[shard]].readings, shard);
    m->is_closing[shard] = true;
}

/* Given up and taken over: from the place it stands at, or from an older one if
 * nothing of it came since. */
static void move(struct model *m, unsigned shard, int to)
{
    if (!m->is_saved[shard] || chance(m, 2))
        save(m, shard);
    readings_leave(&m->hosts[m->owner[shard]].readings, shard);
    m->owner[shard] = to;
    m->is_closing[shard] = false;
    readings_start(&m->hosts[to].readings, shard, m->saved[shard].next,
                   &m->saved[shard].gaps);
}

static void act(struct model *m, struct host *h)
{
    if (h->is_reading)
        answer(m, h);
    else if (h->is_fencing || chance(m, 4) == 0)
        fence(m, h);
    else
        ask(m, h);
}

/* --- the whole ------------------------------------------------------------------- */

static void model_init(struct model *m, unsigned seed)
{
    memset(m, 0, sizeof(*m));
    m->seed = seed;
    m->next_xid = 100;
    m->next_seq = 1;
    for (unsigned s = 0; s < SHARDS; s++) {
        m->owner[s] = (int)chance(m, HOSTS);
        readings_start(&m->hosts[m->owner[s]].readings, s, 1, NULL);
    }
}

static void model_fini(struct model *m)
{
    for (int i = 0; i < HOSTS; i++) {
        readings_fini(&m->hosts[i].readings);
        outbox_plan_fini(&m->hosts[i].plan);
    }
    for (unsigned s = 0; s < SHARDS; s++)
        ranges_fini(&m->saved[s].gaps);
}

static void step(struct model *m)
{
    unsigned shard = chance(m, SHARDS);
    struct readings *of = &m->hosts[m->owner[shard]].readings;

    switch (chance(m, 24)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4: begin_writer(m); break;
    case 5:
    case 6:
    case 7: end_writer(m, ROW_COMMITTED); break;
    case 8: end_writer(m, chance(m, 3) ? ROW_COMMITTED : ROW_ABORTED); break;
    case 9: move(m, shard, (int)chance(m, HOSTS)); break;
    case 10: save(m, shard); break;
    case 11: readings_pause(of, shard); break;
    case 12:
        if (!m->is_closing[shard])
            readings_resume(of, shard);
        break;
    case 13: begin_closing(m, shard); break;
    default: act(m, &m->hosts[chance(m, HOSTS)]); break;
    }
}

static void drain(struct model *m)
{
    for (int64_t s = 1; s < m->next_seq; s++)
        if (m->rows[s] == ROW_OPEN)
            m->rows[s] = s % 5 ? ROW_COMMITTED : ROW_ABORTED;
    m->version++;
    for (unsigned s = 0; s < SHARDS; s++) {
        m->is_closing[s] = false;
        readings_resume(&m->hosts[m->owner[s]].readings, s);
    }
    for (int i = 0; i < 3000; i++)
        for (int h = 0; h < HOSTS; h++)
            act(m, &m->hosts[h]);
}

static void assert_each_came_once(const struct model *m)
{
    for (int64_t s = 1; s < m->next_seq; s++)
        if (m->offered[s] != (m->rows[s] == ROW_COMMITTED))
            fail_msg("number %lld of shard %u came %d times", (long long)s,
                     shard_of(s), m->offered[s]);
}

static void nothing_is_lost_doubled_or_inverted(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    for (unsigned seed = 1; seed <= 60; seed++) {
        model_init(m, seed);
        for (int i = 0; i < 5000; i++)
            step(m);
        drain(m);
        assert_each_came_once(m);
        for (int i = 0; i < HOSTS; i++) {
            const struct readings *rs = &m->hosts[i].readings;

            assert_true(rs->len <= 1); /* all that were behind have joined */
            assert_false(readings_have_gaps(rs));
            assert_false(readings_are_behind(rs));
        }
        model_fini(m);
    }
    free(m);
}

/* Who starts "now" knows of no gap; joining it must not forget another's. */
static void the_gaps_of_either_stay_open(void **state)
{
    struct readings rs = {0};
    struct outbox_plan plan = {0};
    struct ranges gaps = {0};

    (void)state;
    ranges_add(&gaps, 5, 5);
    readings_start(&rs, 1, 10, NULL);
    readings_start(&rs, 0, 10, &gaps);
    assert_true(readings_plan(&rs, &plan));
    assert_int_equal(plan.shards, SHARD(0) | SHARD(1));
    readings_begin(&rs);
    readings_end(&rs, &plan, "100:1", false);
    outbox_plan_fini(&plan);
    assert_int_equal(rs.len, 1);
    assert_true(readings_plan(&rs, &plan) && ranges_has(&plan.gaps, 5));
    readings_begin(&rs);
    assert_int_equal(readings_row(&rs, 5, 0), OUTBOX_LATE);
    readings_end(&rs, &plan, "100:2", false);
    outbox_plan_fini(&plan);
    readings_fini(&rs);
    ranges_fini(&gaps);
}

/* Up to the front everything was looked at: what did not come may come yet. */
static void what_was_missing_up_to_the_front_is_a_gap(void **state)
{
    struct readings rs = {0};
    struct outbox_plan plan = {0};

    (void)state;
    readings_start(&rs, 0, 1, NULL);
    readings_start(&rs, 1, 10, NULL); /* "now": knows nothing of 1 to 9 */
    rs.was_front = true;
    assert_true(readings_plan(&rs, &plan) && plan.until == 9);
    readings_begin(&rs);
    assert_int_equal(readings_row(&rs, 3, 0), OUTBOX_NEW);
    readings_end(&rs, &plan, "100:1", false);
    outbox_plan_fini(&plan);
    assert_true(readings_plan(&rs, &plan));
    assert_int_equal(plan.shards, SHARD(0) | SHARD(1));
    readings_begin(&rs);
    assert_int_equal(readings_row(&rs, 8, 0), OUTBOX_LATE);
    assert_int_equal(readings_row(&rs, 9, 1), OUTBOX_SEEN);
    readings_end(&rs, &plan, "100:2", false);
    outbox_plan_fini(&plan);
    assert_true(ranges_has(&rs.at[0]->cursor.gaps, 7));
    readings_fini(&rs);
}

/* A reading that came after the fence was drawn waits for one of its own. */
static void a_fence_is_only_for_gaps_that_were_known(void **state)
{
    struct readings rs = {0};
    struct ranges gaps = {0};

    (void)state;
    ranges_add(&gaps, 5, 5);
    readings_start(&rs, 0, 10, &gaps);
    readings_begin_fence(&rs);
    readings_start(&rs, 1, 10, &gaps);
    readings_end_fence(&rs, 77);
    assert_int_equal(outbox_cursor_oldest_fence(&readings_of(&rs, 0)->cursor),
                     77);
    assert_int_equal(outbox_cursor_oldest_fence(&readings_of(&rs, 1)->cursor),
                     0);
    assert_true(readings_want_fence(&rs));
    readings_fini(&rs);
    ranges_fini(&gaps);
}

/* One that is far behind and the front take turns; it stops at the front. */
static void the_others_go_on_while_one_is_brought_up(void **state)
{
    struct readings rs = {0};
    struct outbox_plan plan = {0};
    shard_set turns[4];

    (void)state;
    readings_start(&rs, 0, 1001, NULL);
    readings_start(&rs, 1, 1, NULL);
    for (int i = 0; i < 4; i++) {
        assert_true(readings_plan(&rs, &plan));
        turns[i] = plan.shards;
        if (plan.shards == SHARD(1))
            assert_int_equal(plan.until, 1000);
        else
            assert_int_equal(plan.until, INT64_MAX);
        readings_fail(&rs);
        outbox_plan_fini(&plan);
    }
    assert_int_equal(turns[0] | turns[1], SHARD(0) | SHARD(1));
    assert_int_equal(turns[0], turns[2]);
    assert_int_equal(turns[1], turns[3]);
    readings_pause(&rs, 1);
    assert_true(readings_plan(&rs, &plan) && plan.shards == SHARD(0));
    outbox_plan_fini(&plan);
    readings_fini(&rs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost_doubled_or_inverted),
        cmocka_unit_test(the_gaps_of_either_stay_open),
        cmocka_unit_test(what_was_missing_up_to_the_front_is_a_gap),
        cmocka_unit_test(a_fence_is_only_for_gaps_that_were_known),
        cmocka_unit_test(the_others_go_on_while_one_is_brought_up),
    };

    return cmocka_run_group_tests_name("outbox_readings", tests, NULL, NULL);
}
