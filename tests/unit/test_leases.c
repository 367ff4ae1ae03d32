/*
 * The leases against a model: a table with the database's clock, and hosts that
 * start, die, freeze and wake up, whose statements and answers are late. Time is
 * virtual.
 */
#include "core/leases.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HOSTS  5
#define SHARDS 64
#define MS     1000
#define STEP   (10 * MS)
#define LEASE  (6000 * MS)
#define BEAT   (LEASE / 3)
#define SOON   (250 * MS)
#define BOUND  (10000 * MS) /* after a death everything runs elsewhere */

enum asking { NOTHING, BEATING, CLAIMING };

struct host {
    bool is_up, is_frozen;
    struct leases leases;
    int64_t next_us;
    enum asking asking;
    bool is_done; /* the database has done it */
    int64_t sent_us, done_us, answer_us;
    shard_set asked, wanted, renewed;
    struct lease_view view;
    int64_t epochs[SHARDS];     /* of the statement, or its answer */
    int64_t drained_us[SHARDS]; /* leaving: given back then */
    int64_t cleared_us[SHARDS]; /* lost: cleared away then */
};

struct model {
    int64_t now;
    int owner[SHARDS]; /* -1: nobody */
    int64_t epoch[SHARDS], expires[SHARDS];
    int64_t alive_until[HOSTS]; /* rows of event_hosts */
    struct host hosts[HOSTS];
    int64_t latency_us; /* of each way, at most */
    bool is_away;       /* the database */
    uint64_t seed;
};

static unsigned chance(struct model *m, unsigned of)
{
    m->seed = m->seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(m->seed >> 33) % of;
}

static void start_host(struct model *m, int i)
{
    m->hosts[i] = (struct host){.is_up = true, .next_us = m->now};
    m->hosts[i].leases.lease_us = LEASE;
}

/* --- the database ------------------------------------------------------------- */

static bool is_free(const struct model *m, unsigned s, int who)
{
    return m->owner[s] == -1 || m->owner[s] == who || m->expires[s] <= m->now;
}

static void do_beat(struct model *m, int who)
{
    struct host *h = &m->hosts[who];

    m->alive_until[who] = m->now + LEASE;
    h->renewed = 0;
    h->view = (struct lease_view){0};
    for (unsigned s = 0; s < SHARDS; s++) {
        if (h->asked & SHARD(s) && m->owner[s] == who &&
            m->epoch[s] == h->epochs[s]) {
            m->expires[s] = m->now + LEASE;
            h->renewed |= SHARD(s);
        } else if (is_free(m, s, who)) {
            h->view.free |= SHARD(s);
        }
    }
    for (int i = 0; i < HOSTS; i++)
        if (m->alive_until[i] > m->now) {
            h->view.rank += i < who;
            h->view.hosts++;
        }
}

static void do_claim(struct model *m, int who)
{
    struct host *h = &m->hosts[who];

    for (unsigned s = 0; s < SHARDS; s++) {
        h->epochs[s] = 0;
        if (!(h->wanted & SHARD(s)) || !is_free(m, s, who))
            continue;
        m->owner[s] = who;
        m->expires[s] = m->now + LEASE;
        h->epochs[s] = ++m->epoch[s];
    }
}

/* --- a host -------------------------------------------------------------------- */

static void send(struct model *m, int who, enum asking what)
{
    struct host *h = &m->hosts[who];

    h->asking = what;
    h->is_done = false;
    h->sent_us = m->now;
    h->done_us = m->now + chance(m, (unsigned)m->latency_us + 1);
    h->answer_us = h->done_us + chance(m, (unsigned)m->latency_us + 1);
}

static void lose(struct model *m, struct host *h, shard_set lost)
{
    for (unsigned s = 0; s < SHARDS; s++)
        if (lost & SHARD(s))
            h->cleared_us[s] = m->now + chance(m, 3000 * MS);
}

static void leave(struct model *m, struct host *h, shard_set excess)
{
    h->leases.leaving |= excess;
    for (unsigned s = 0; s < SHARDS; s++)
        if (excess & SHARD(s))
            h->drained_us[s] = m->now + chance(m, 1000 * MS);
}

static void take_beat(struct model *m, int who)
{
    struct host *h = &m->hosts[who];
    shard_set wanted;

    h->asking = NOTHING;
    h->leases.n = SHARDS;
    lose(m, h, leases_renew(&h->leases, h->asked, h->renewed, h->sent_us));
    leave(m, h, leases_excess(&h->leases, &h->view));
    wanted = leases_wanted(&h->leases, &h->view);
    assert_true(!wanted || !h->leases.leaving ||
                shard_count(h->leases.held) <
                    leases_share(SHARDS, h->view.hosts, h->view.rank));
    h->next_us =
        m->now + (shard_count(h->leases.held) <
                          leases_share(SHARDS, h->view.hosts, h->view.rank)
                      ? SOON
                      : BEAT);
    h->wanted = wanted;
    if (wanted)
        send(m, who, CLAIMING);
}

static void take_claim(struct host *h)
{
    h->asking = NOTHING;
    for (unsigned s = 0; s < SHARDS; s++)
        if (h->epochs[s])
            leases_take(&h->leases, s, h->epochs[s], h->sent_us);
}

static void clear_away(struct model *m, int who)
{
    struct host *h = &m->hosts[who];

    for (unsigned s = 0; s < SHARDS; s++) {
        if (h->leases.clearing & SHARD(s) && m->now >= h->cleared_us[s])
            leases_clear(&h->leases, s);
        if (h->leases.held & h->leases.leaving & SHARD(s) &&
            h->asking == NOTHING && m->now >= h->drained_us[s] && !m->is_away) {
            if (m->owner[s] == who && m->epoch[s] == h->leases.at[s].epoch)
                m->owner[s] = -1;
            leases_clear(&h->leases, s);
        }
    }
}

static void run_host(struct model *m, int who)
{
    struct host *h = &m->hosts[who];

    if (h->asking && !h->is_done && m->now >= h->done_us && !m->is_away) {
        h->is_done = true; /* also for one that is frozen by now */
        (h->asking == BEATING ? do_beat : do_claim)(m, who);
        if (h->answer_us < m->now)
            h->answer_us = m->now + chance(m, (unsigned)m->latency_us + 1);
    }
    if (h->is_frozen)
        return;
    lose(m, h, leases_expire(&h->leases, m->now));
    if (h->asking && h->is_done && m->now >= h->answer_us)
        h->asking == BEATING ? take_beat(m, who) : take_claim(h);
    lose(m, h, leases_expire(&h->leases, m->now));
    clear_away(m, who);
    if (!h->asking && m->now >= h->next_us) {
        h->asked = h->leases.held;
        for (unsigned s = 0; s < SHARDS; s++)
            h->epochs[s] = h->leases.at[s].epoch;
        send(m, who, BEATING);
    }
}

/* What it acts on. One that is frozen acts when it wakes up, and stops by the
 * first look at the clock, so it counts until its time is over, too. */
static shard_set believed(const struct model *m, const struct host *h)
{
    shard_set set = 0;

    for (unsigned s = 0; s < SHARDS; s++)
        if (h->is_up && h->leases.held & SHARD(s) &&
            h->leases.at[s].until_us > m->now)
            set |= SHARD(s);
    return set;
}

static shard_set assert_no_two_owners(const struct model *m)
{
    shard_set all = 0;

    for (int i = 0; i < HOSTS; i++) {
        shard_set set = believed(m, &m->hosts[i]);

        if (all & set)
            fail_msg("two owners at %lld ms: %llx", (long long)m->now / MS,
                     (unsigned long long)(all & set));
        all |= set;
    }
    return all;
}

static shard_set run(struct model *m, int64_t us)
{
    shard_set all = 0;

    for (int64_t end = m->now + us; m->now < end; m->now += STEP) {
        for (int i = 0; i < HOSTS; i++)
            if (m->hosts[i].is_up)
                run_host(m, i);
        all = assert_no_two_owners(m);
    }
    return all;
}

/* --- fate ------------------------------------------------------------------------- */

static void strike(struct model *m)
{
    int who = (int)chance(m, HOSTS);
    struct host *h = &m->hosts[who];

    switch (chance(m, 7)) {
    case 0:
        if (!h->is_up)
            start_host(m, who);
        break;
    case 1: h->is_up = false; break;
    case 2: h->is_frozen = true; break;
    case 3:
    case 4: h->is_frozen = false; break;
    case 5: m->is_away = !m->is_away && chance(m, 3) == 0; break;
    case 6: m->latency_us = chance(m, 2) ? 20 * MS : 4000 * MS; break;
    }
}

static void calm(struct model *m)
{
    m->is_away = false;
    m->latency_us = 20 * MS;
    for (int i = 0; i < HOSTS; i++)
        m->hosts[i].is_frozen = false;
    if (!m->hosts[0].is_up)
        start_host(m, 0);
}

static unsigned assert_fair(const struct model *m)
{
    unsigned up = 0, rank = 0;

    for (int i = 0; i < HOSTS; i++)
        up += m->hosts[i].is_up;
    for (int i = 0; i < HOSTS; i++) {
        const struct host *h = &m->hosts[i];

        if (h->is_up)
            assert_int_equal(shard_count(believed(m, h)),
                             leases_share(SHARDS, up, rank++));
    }
    return up;
}

static void model_init(struct model *m, unsigned seed)
{
    *m = (struct model){.seed = seed, .latency_us = 20 * MS};
    for (unsigned s = 0; s < SHARDS; s++) {
        m->owner[s] = -1;
        m->epoch[s] = 1;
    }
}

static void whatever_happens_no_shard_has_two_owners(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    for (unsigned seed = 1; seed <= 150; seed++) {
        model_init(m, seed);
        for (int i = 0; i < 60; i++) {
            strike(m);
            run(m, (1 + chance(m, 300)) * STEP);
        }
        calm(m);
        assert_int_equal(run(m, 25000 * MS), ~(shard_set)0);
        assert_fair(m);
    }
    free(m);
}

static void a_dead_hosts_shards_are_taken_over_in_time(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    for (unsigned seed = 1; seed <= 100; seed++) {
        int dead;

        model_init(m, seed);
        for (int i = 0; i < HOSTS; i++)
            start_host(m, i);
        run(m, 20000 * MS + chance(m, 3000) * MS);
        assert_int_equal(assert_fair(m), HOSTS);
        dead = (int)chance(m, HOSTS);
        m->hosts[dead].is_up = false;
        assert_int_equal(run(m, BOUND), ~(shard_set)0);
        run(m, BOUND);
        assert_fair(m);
    }
    free(m);
}

static void what_cannot_be_renewed_ends_by_the_own_clock(void **state)
{
    struct leases l = {.n = SHARDS, .lease_us = LEASE};

    (void)state;
    leases_take(&l, 3, 7, 1000);
    assert_int_equal(leases_end(&l), 1000 + LEASE);
    /* The answer may come late: what counts is when it was sent. */
    assert_int_equal(leases_renew(&l, SHARD(3), SHARD(3), 5000), 0);
    assert_int_equal(leases_expire(&l, 5000 + LEASE - 1), 0);
    assert_int_equal(leases_expire(&l, 5000 + LEASE), SHARD(3));
    assert_int_equal(l.held, 0);
    /* Not taken again before what was done with it is cleared away. */
    struct lease_view view = {.hosts = 1, .free = SHARD(3)};
    assert_int_equal(leases_wanted(&l, &view), 0);
    leases_clear(&l, 3);
    assert_int_equal(leases_wanted(&l, &view), SHARD(3));
}

static void shares_come_out_even(void **state)
{
    (void)state;
    for (unsigned hosts = 1; hosts <= 70; hosts++) {
        unsigned sum = 0, most = 0, least = SHARDS;

        for (unsigned rank = 0; rank < hosts; rank++) {
            unsigned share = leases_share(SHARDS, hosts, rank);

            sum += share;
            most = share > most ? share : most;
            least = share < least ? share : least;
        }
        assert_int_equal(sum, SHARDS);
        assert_true(most - least <= 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whatever_happens_no_shard_has_two_owners),
        cmocka_unit_test(a_dead_hosts_shards_are_taken_over_in_time),
        cmocka_unit_test(what_cannot_be_renewed_ends_by_the_own_clock),
        cmocka_unit_test(shares_come_out_even),
    };

    return cmocka_run_group_tests_name("leases", tests, NULL, NULL);
}
