/*
 * The pipeline against its model: after draining every event is settled by
 * every handler exactly once, in the order of its key, and the positions stand
 * at the end.
 */
#include "pipeline_model.h"

static void finish(struct model *m)
{
    pipeline_free(m->pl);
    metrics_free(m->metrics);
    ranges_fini(&m->gaps);
    while (m->n_pieces > 0)
        free(m->pieces[--m->n_pieces]);
    free(m);
}

/* A second opening of the partition, after `set_up`, by its own positions. */
static void open_over(struct model *m, const struct source_ops *kind,
                      const int64_t next[HANDLERS])
{
    struct position from = {.next = POSITION_EARLIEST};

    pipeline_quiet(m->p);
    pipeline_close(m->p);
    m->p = pipeline_open(m->pl, kind, m, "calls", 0, "calls/0", "id");
    m->parts[0] = m->p;
    pipeline_open_cursor(m->p, pipeline_handler(m->pl, ""), &from, 0);
    for (int i = 0; i < HANDLERS; i++) {
        from = (struct position){.next = next[i]};
        pipeline_open_cursor(m->p, m->handlers[i], &from, 1);
    }
    pipeline_start(m->p);
}

static void open_again(struct model *m, const int64_t next[HANDLERS])
{
    open_over(m, &source, next);
}

static uint64_t seed_of_test(void)
{
    const char *fixed = getenv("MOONTIDE_TEST_SEED");

    return fixed ? strtoull(fixed, NULL, 10) : random_u64() >> 1;
}

static void check_all_done(struct model *m)
{
    check_positions(m);
    for (int h = 0; h < HANDLERS; h++) {
        struct position at;

        for (int i = 0; i < m->n_parts; i++) {
            assert_true(pipeline_position(m->parts[i], m->handlers[h], &at));
            assert_int_equal(at.next, EVENTS);
            assert_int_equal(at.gaps.len, 0);
            ranges_fini(&at.gaps);
        }
        for (int e = 0; e < EVENTS; e++)
            assert_int_equal(m->done[h][e], is_due(m, h, e));
    }
}

static void run_by_chance(struct model *m)
{
    m->slow = 0;
    for (int i = 0; i < 60000; i++) {
        m->no_chaos = i < 1000; /* but one is slow: it has to leave */
        step(m);
        if (i % 5000 == 0)
            check_positions(m);
    }
    drain(m);
    check_all_done(m);
}

/* S1-26, S1-27, M4: nothing lost, doubled or reordered, whatever happens:
 * retries, deaths, holds, and handlers that fall behind and catch up. */
static void chance_never_loses_doubles_or_reorders(void **state)
{
    uint64_t seed = seed_of_test();
    int n_behind = 0;

    (void)state;
    for (int round = 0; round < 6; round++, seed++) {
        struct model *m = xcalloc(1, sizeof(*m));

        print_message("seed %llu\n", (unsigned long long)seed);
        set_up(m, seed, 120000);
        run_by_chance(m);
        n_behind += m->n_behind;
        finish(m);
    }
    print_message("%d times behind\n", n_behind);
    assert_true(n_behind > 0);
}

/* While a transaction holds an aggregate's lock nobody draws another number for
 * it: the next of its key comes later than the longest of them. */
static void hide_some(struct model *m)
{
    int64_t locked_until[KEYS] = {0};

    for (int e = 0; e < EVENTS; e++) {
        uint64_t r = chance(m, 100);

        if (r < 3 || e < locked_until[e % KEYS]) {
            m->visible[e] = NEVER;
        } else if (r < 8) {
            m->visible[e] = NOT_YET;
            locked_until[e % KEYS] = e + LONGEST + 1;
        }
    }
}

/* M4, M5: the same over an outbox, whose numbers may appear late or never,
 * before or after a handler's own reading has come to them. */
static void chance_with_gaps_never_loses_doubles_or_reorders(void **state)
{
    uint64_t seed = seed_of_test();

    (void)state;
    for (int round = 0; round < 6; round++, seed++) {
        struct model *m = xcalloc(1, sizeof(*m));

        print_message("seed %llu\n", (unsigned long long)seed);
        set_up(m, seed, 120000);
        hide_some(m);
        open_over(m, &outbox,
                  (int64_t[]){POSITION_EARLIEST, POSITION_EARLIEST,
                              POSITION_EARLIEST});
        run_by_chance(m);
        finish(m);
    }
}

static void open_shard(struct model *m, int shard)
{
    struct position from = {.next = POSITION_EARLIEST};
    struct partition *p;
    char name[8];

    snprintf(name, sizeof(name), "%d", shard);
    p = pipeline_open(m->pl, &shards, m, "events", shard, name, "id");
    m->parts[shard] = p;
    pipeline_open_cursor(p, pipeline_handler(m->pl, ""), &from, 0);
    for (int i = 0; i < HANDLERS; i++) {
        from = (struct position){.next = POSITION_EARLIEST};
        pipeline_open_cursor(p, m->handlers[i], &from, 1);
    }
    pipeline_start(p);
}

/* M4, M5: and with several shards of one log, whose pieces are read together. */
static void chance_with_shards_never_loses_doubles_or_reorders(void **state)
{
    uint64_t seed = seed_of_test();

    (void)state;
    for (int round = 0; round < 6; round++, seed++) {
        struct model *m = xcalloc(1, sizeof(*m));

        print_message("seed %llu\n", (unsigned long long)seed);
        set_up(m, seed, 120000);
        hide_some(m);
        pipeline_quiet(m->p);
        pipeline_close(m->p);
        for (m->n_parts = 0; m->n_parts < SHARDS; m->n_parts++)
            open_shard(m, m->n_parts);
        m->p = m->parts[0];
        run_by_chance(m);
        finish(m);
    }
}

/* M2, design 3.8: long retries, what follows them, and what follows a dead
 * letter that is waited for, go through the store and keep their order. */
static void chance_with_a_parked_queue_loses_nothing(void **state)
{
    uint64_t seed = seed_of_test();
    size_t n_parked = 0;

    (void)state;
    for (int round = 0; round < 4; round++, seed++) {
        struct model *m = xcalloc(1, sizeof(*m));

        print_message("seed %llu\n", (unsigned long long)seed);
        set_up_parking(m, seed, 120000, 10);
        m->handlers[2]->spec->on_dead = ON_DEAD_PARK;
        run_by_chance(m);
        assert_int_equal(m->n_rows, 0);
        n_parked += m->n_parked;
        finish(m);
    }
    print_message("%zu parked\n", n_parked);
    assert_true(n_parked > 1000);
}

/* An event crosses the ring once for all handlers of a worker that are as far
 *, and one that is behind takes its own way. */
static void handlers_of_a_worker_share_an_event(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 1, 10 << 20);
    pipeline_switch(m->pl, m->handlers[2], spec("*", ORDER_KEY, 16), 3);
    read_some(m, 60);
    pipeline_pump_all(m->pl);
    assert_true(m->n_sent > 0 && m->n_sent <= 60);
    assert_true(m->n_shared >= m->n_sent); /* "*" twice, "order.*" */
    drain(m);
    pipeline_free(m->pl);
    metrics_free(m->metrics);
    free(m);
}

/* Design 3.7: memory never grows with the backlog. */
static void a_full_window_refuses_more(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct pipeline_numbers n;

    (void)state;
    set_up(m, 1, 10 << 20);
    for (int i = 0; i < 100; i++)
        read_some(m, 50);
    pipeline_numbers(m->pl, &n);
    assert_true(n.events <= 250);
    assert_int_equal(pipeline_room(m->pl), 0);
    assert_true(m->reader < 300);
    /* Full for long: its partition is paused, and goes on when there is room. */
    pipeline_tick(m->pl, 10000000, 1);
    assert_true(m->is_paused);
    m->now_us = 10000000;
    drain(m);
    pipeline_free(m->pl);
    metrics_free(m->metrics);
    free(m);
}

/* The verdicts of a turn come after its tick: who was refused hears of the room
 * they make before the loop sleeps, not when something else wakes it. */
static void room_is_offered_in_the_turn_that_made_it(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 1, 8 << 10);
    m->no_chaos = true;
    while (pipeline_room(m->pl) > 0)
        read_some(m, 50);
    pipeline_tick(m->pl, ++m->now_us, 1);
    pipeline_pump_all(m->pl);
    assert_int_equal(m->rooms_again, 0);
    for (unsigned w = 0; w < WORKERS; w++)
        while (m->n_at[w] > 0)
            run_one(m, w);
    pipeline_pump_all(m->pl);
    assert_int_equal(m->rooms_again, 1);
    drain(m);
    pipeline_free(m->pl);
    metrics_free(m->metrics);
    free(m);
}

/* M6: three crashes make a dead letter, and the reason says so. */
static void three_strikes_make_a_dead_letter(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 2, 120000);
    read_some(m, 1);
    for (int strike = 0; strike < 3; strike++) {
        unsigned w = 0;

        for (int i = 0; i < 100; i++) {
            m->now_us += 1000;
            pipeline_tick(m->pl, m->now_us, m->now_us);
            pipeline_pump_all(m->pl);
            if (m->wants_spare && !m->spare_up) {
                m->spare_up = true;
                pipeline_worker_up(m->pl, WORKERS);
            }
        }
        while (w <= WORKERS && (m->n_at[w] == 0 || m->at[w][0].handler != 0))
            w++;
        assert_true(w <= WORKERS);
        assert_int_equal(m->n_stores, 0);
        uint64_t started[CHANNEL_SLOTS / 64] = {0};
        struct worker_death death = {.something_ran = true,
                                     .running = m->at[w][0].slot,
                                     .run_count = 1,
                                     .started = started,
                                     .class = CLASS_LIMIT,
                                     .reason = "killed: time limit"};

        m->n_at[w] = 0;
        pipeline_worker_died(m->pl, w, &death);
        pipeline_worker_up(m->pl, w);
    }
    assert_int_equal(m->n_stores, 1);
    assert_string_equal(m->stores[0]->failures->error, "killed: time limit");
    assert_int_equal(m->stores[0]->crashes, 3);
    drain(m);
    pipeline_free(m->pl);
    metrics_free(m->metrics);
    free(m);
}

/* One event for each handler, with its workers; who has it of `handler`. */
static unsigned one_is_sent(struct model *m, int handler)
{
    unsigned w = 0;

    read_some(m, 1);
    pipeline_pump_all(m->pl);
    while (w < WORKERS && (m->n_at[w] == 0 || m->at[w][0].handler != handler))
        w++;
    assert_true(w < WORKERS);
    return w;
}

/* The host trusts nothing a worker writes: what is far off is not now. */
static void a_far_time_of_a_worker_is_not_now(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct pipeline_numbers n;

    (void)state;
    set_up(m, 3, 120000);
    unsigned w = one_is_sent(m, 0);
    struct held h = m->at[w][0];
    struct verdict_msg v = {.slot = h.slot,
                            .generation = h.generation,
                            .verdict = VERDICT_RETRY,
                            .after_ms = INT64_MAX};

    take_out(m, w, 0);
    pipeline_verdict(m->pl, w, &v);
    pipeline_tick(m->pl, m->now_us + 3600000000, m->now_us);
    pipeline_numbers(m->pl, &n);
    assert_int_equal(n.deliveries[DELIVERY_BACKOFF], 1);
    finish(m);
}

/* Design 13.9: others in the way are no attempt, but not for ever. */
static void others_in_the_way_count_no_attempt_a_hundred_times(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct series *again;

    (void)state;
    set_up(m, 4, 120000);
    m->no_chaos = true;
    unsigned w = one_is_sent(m, 0);
    again = metrics_get(m->metrics, M_DATABASE_RETRIES, m->handlers[0]->name);
    for (int i = 0; i <= DELIVERY_AGAINS_MAX; i++) {
        size_t k = 0;

        while (k < m->n_at[w] && m->at[w][k].handler != 0)
            k++;
        assert_true(k < m->n_at[w]);
        struct held h = m->at[w][k];
        struct delivery *d =
            CONTAINER_OF(m->p->cursors[m->handlers[0]->index].unsettled.next,
                         struct delivery, in_cursor);
        struct verdict_msg v = {.slot = h.slot,
                                .generation = h.generation,
                                .verdict = VERDICT_AGAIN,
                                .class = CLASS_TRANSIENT,
                                .reason = SLICE_LIT("deadlock detected"),
                                .after_ms = -1};

        assert_int_equal(d->attempt, 1);
        take_out(m, w, k);
        pipeline_verdict(m->pl, w, &v);
        assert_int_equal(d->state, DELIVERY_BACKOFF);
        assert_true(d->due_us > m->now_us && d->due_us <= m->now_us + 1000000);
        if (i == DELIVERY_AGAINS_MAX) {
            assert_int_equal(d->attempt, 2);
            assert_string_equal(d->failures->error, "deadlock detected");
        }
        m->now_us = d->due_us;
        pipeline_tick(m->pl, m->now_us, m->now_us);
        pipeline_pump_all(m->pl);
    }
    assert_int_equal(series_value(again), DELIVERY_AGAINS_MAX);
    finish(m);
}

/* C12: what was given out counts when the verdict is an ack or a skip, and after
 * nothing else; a far retry of such a handler waits in its lane. */
static void what_did_not_end_well_is_returned(void **state)
{
    static const enum verdict verdicts[] = {VERDICT_RETRY, VERDICT_SNOOZE,
                                            VERDICT_AGAIN, VERDICT_ACK};
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up_parking(m, 5, 120000, 1000);
    m->no_chaos = true;
    m->handlers[0]->spec->in_kafka = true;
    unsigned w = one_is_sent(m, 0);
    for (int i = 0; i < 4; i++) {
        size_t k = 0;

        while (k < m->n_at[w] && m->at[w][k].handler != 0)
            k++;
        assert_true(k < m->n_at[w]);
        struct held h = m->at[w][k];
        struct verdict_msg v = {.slot = h.slot,
                                .generation = h.generation,
                                .verdict = verdicts[i],
                                .after_ms = 5000};

        assert_non_null(pipeline_running(m->pl, w, h.slot, h.generation));
        take_out(m, w, k);
        pipeline_verdict(m->pl, w, &v);
        assert_null(pipeline_running(m->pl, w, h.slot, h.generation));
        assert_int_equal(m->n_returned, i < 3 ? i + 1 : 3);
        assert_int_equal(m->n_parking, 0);
        m->now_us += 6000000;
        pipeline_tick(m->pl, m->now_us, m->now_us);
        pipeline_pump_all(m->pl);
    }
    finish(m);
}

/* S0-27: a handler over its rate waits, and the others do not. What it gives
 * back unrun was not used. */
static void a_rate_holds_one_handler_and_no_other(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct handler_spec *slow = spec("*", ORDER_KEY, 16);
    int done[HANDLERS] = {0};

    (void)state;
    set_up(m, 6, 10 << 20);
    m->no_chaos = true;
    slow->rate = (struct rate){10000000, 5}; /* 100/s */
    pipeline_switch(m->pl, m->handlers[0], slow, 1);
    while (m->reader < 100)
        read_some(m, (size_t)(100 - m->reader));
    for (int ms = 0; ms < 200; ms += 20) {
        pipeline_tick(m->pl, m->now_us, m->now_us);
        for (int again = 0; again < 50; again++) {
            pipeline_pump_all(m->pl);
            for (unsigned w = 0; w < WORKERS; w++)
                while (m->n_at[w] > 0)
                    run_one(m, w);
        }
        for (int h = 0; h < HANDLERS; h++) {
            done[h] = 0;
            for (int e = 0; e < 100; e++)
                done[h] += m->done[h][e];
        }
        assert_int_equal(done[0], 5 + ms / 10);
        assert_true(handler_is_limited(m->handlers[0]));
        m->now_us += 20000;
    }
    assert_int_equal(done[1], 20);
    assert_int_equal(done[2], 80);
    drain(m);
    assert_false(handler_is_limited(m->handlers[0]));
    finish(m);
}

/* A second SIGTERM, or a drain that takes too long, while the database does not
 * answer: what is being stored goes back to its source, too. */
static void freeing_does_not_wait_for_what_is_being_stored(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 4, 120000);
    verdict(m, one_is_sent(m, 0), 0, VERDICT_DEAD);
    assert_int_equal(m->n_stores, 1);
    pipeline_free(m->pl);
    assert_int_equal(m->released, m->reader);
    metrics_free(m->metrics);
    free(m);
}

/* Facts are bounded by no source, and a worker's ring must take them. */
static void facts_that_no_ring_takes_are_a_dead_letter(void **state)
{
    static char correlation[2 << 20];
    struct model *m = xcalloc(1, sizeof(*m));
    struct event *ev;

    (void)state;
    set_up(m, 5, 120000);
    memset(correlation, 'x', sizeof(correlation));
    ev = pipeline_event_new(m->pl, m->p);
    ev->facts[FACT_TYPE] = SLICE_LIT("CallCreated");
    ev->facts[FACT_CORRELATION_ID] =
        (struct slice){correlation, sizeof(correlation)};
    ev->body = SLICE_LIT("{}");
    pipeline_offer(m->pl, ev);
    pipeline_pump_all(m->pl);
    assert_int_equal(m->n_stores, 1);
    assert_string_equal(m->stores[0]->handler->name, "");
    assert_int_equal(m->stores[0]->failures->at[0].class, CLASS_UNDECODABLE);
    pipeline_stored(m->pl, m->stores[0]);
    assert_int_equal(m->released, 1);
    finish(m);
}

/* --- where the reading starts ------------------------------------------------- */

/* Nobody wants what lies before the earliest handler; what cannot be decoded
 * there was stored before. */
static void when_all_are_held_the_reading_starts_at_the_earliest(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 6, 120000);
    for (int i = 0; i < HANDLERS; i++)
        pipeline_detach(m->pl, m->handlers[i], false);
    open_again(m, (int64_t[]){700, 500, 600});
    assert_int_equal(m->reader, 500);
    finish(m);
}

/* Held when the source was read for the first time, from its end on: the end
 * of then is where it goes on, and neither the beginning nor never. */
static void who_is_held_at_the_first_start_goes_on_from_there(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct position at;

    (void)state;
    set_up(m, 7, 120000);
    pipeline_detach(m->pl, m->handlers[0], false);
    m->start_at = 1000; /* where POSITION_LATEST is */
    open_again(m,
               (int64_t[]){POSITION_LATEST, POSITION_LATEST, POSITION_LATEST});
    read_some(m, 30);
    assert_true(pipeline_position(m->p, m->handlers[0], &at));
    assert_int_equal(at.next, 1000);
    ranges_fini(&at.gaps);
    drain(m);
    assert_int_equal(m->done[0][999], 0);
    for (int e = 1000; e < EVENTS; e++)
        assert_int_equal(m->done[0][e], 1);
    finish(m);
}

/* Asked at each save, for a handler that is held before it had anything. */
static void no_position_leaves_nothing_to_free(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));
    struct position at;

    (void)state;
    set_up(m, 10, 120000);
    pipeline_detach(m->pl, m->handlers[0], false);
    ranges_add(&m->gaps, 5, 7);
    open_over(
        m, &outbox,
        (int64_t[]){POSITION_EARLIEST, POSITION_EARLIEST, POSITION_EARLIEST});
    assert_false(pipeline_position(m->p, m->handlers[0], &at));
    assert_null(at.gaps.at);
    finish(m);
}

/* M4: the reading starts where the furthest is; the others come after it by
 * themselves, each from its own place, and get what they have not had. */
static void who_is_far_behind_reads_by_itself(void **state)
{
    static const int64_t next[HANDLERS] = {2000, 10, 1500};
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 8, 120000);
    open_again(m, next);
    assert_int_equal(m->p->next, 2000);
    assert_int_equal(m->p->n_behind, 2);
    pipeline_detach(m->pl, m->handlers[0], false);
    assert_int_equal(pipeline_front(m->p), 2000);
    drain(m);
    assert_int_equal(m->n_level, 2);
    for (int h = 0; h < HANDLERS; h++)
        for (int e = 0; e < EVENTS; e++)
            assert_int_equal(m->done[h][e], e >= next[h] && is_due(m, h, e));
    finish(m);
}

static void assert_lost(const struct model *m, int h,
                        const struct given_up *what, const char *expected)
{
    struct ranges lost = {0};
    struct buf text = {0};

    pipeline_would_lose(m->p, m->handlers[h], what, &lost);
    ranges_print(&lost, &text);
    assert_string_equal(buf_text(&text), expected);
    ranges_fini(&lost);
    buf_fini(&text);
}

/* What is gone from the log, and what an operator skips: nobody waits for it,
 * and everybody gets all the rest. */
static void what_is_given_up_is_nobodys_any_more(void **state)
{
    static const int64_t next[HANDLERS] = {2000, 10, 1500};
    static const struct given_up what = {.low = 100, 2000, 2100};
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 8, 120000);
    open_again(m, next);
    assert_lost(m, 0, &what, "{[2000,2100)}");
    assert_lost(m, 1, &what, "{[10,100),[2000,2100)}");
    assert_lost(m, 2, &what, "{[2000,2100)}");
    pipeline_give_up(m->p, NULL, &what);
    assert_int_equal(m->p->next, 2100);
    assert_lost(m, 1, &what, "{}");
    m->reader = 2100;
    drain(m);
    for (int h = 0; h < HANDLERS; h++)
        for (int e = 0; e < EVENTS; e++)
            assert_int_equal(m->done[h][e], e >= next[h] && e >= what.low &&
                                                (e < 2000 || e >= 2100) &&
                                                is_due(m, h, e));
    finish(m);
}

static void one_handler_gives_up_and_the_others_do_not(void **state)
{
    static const int64_t next[HANDLERS] = {2000, 10, 2000};
    static const struct given_up what = {1500, 1500, 1500};
    static const struct given_up ahead = {2050, 2050, 2050};
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 8, 120000);
    open_again(m, next);
    assert_lost(m, 1, &what, "{[10,1500)}");
    pipeline_give_up(m->p, m->handlers[1], &what);
    assert_lost(m, 2, &ahead, "{[2000,2050)}");
    pipeline_give_up(m->p, m->handlers[2], &ahead);
    assert_int_equal(m->p->next, 2000);
    drain(m);
    for (int e = 0; e < EVENTS; e++) {
        assert_int_equal(m->done[0][e], e >= 2000 && is_due(m, 0, e));
        assert_int_equal(m->done[1][e], e >= 1500 && is_due(m, 1, e));
        assert_int_equal(m->done[2][e], e >= 2050 && is_due(m, 2, e));
    }
    finish(m);
}

/* Its numbers come again, of other events. */
static void a_log_that_became_shorter_is_read_from_its_end(void **state)
{
    static const int64_t next[HANDLERS] = {2000, 2000, 500};
    static const struct given_up what = {.low = 0, 2000, 1000};
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 8, 120000);
    open_again(m, next);
    assert_lost(m, 0, &what, "{}");
    pipeline_give_up(m->p, NULL, &what);
    assert_int_equal(m->p->next, 1000);
    m->reader = 1000;
    drain(m);
    for (int e = 0; e < EVENTS; e++) {
        assert_int_equal(m->done[0][e], e >= 1000 && is_due(m, 0, e));
        assert_int_equal(m->done[2][e], e >= 500 && is_due(m, 2, e));
    }
    finish(m);
}

/* Every handler but the first ends what it gets. */
static void turn_beside_a_stuck_one(struct model *m)
{
    struct pipeline_numbers n;

    m->now_us += 1000;
    pipeline_tick(m->pl, m->now_us, m->now_us);
    read_some(m, 30);
    read_piece(m, 30);
    for (unsigned w = 0; w < WORKERS; w++)
        for (size_t k = m->n_at[w]; k-- > 0;)
            if (m->at[w][k].handler != 0 && k == first_of_lane(m, w, k))
                verdict(m, w, k, VERDICT_ACK);
    pipeline_pump_all(m->pl);
    pipeline_numbers(m->pl, &n);
    assert_true(n.cost <= 120000 / 2 * 3 + 60 * 600);
}

static void read_beside_a_stuck_one(struct model *m, int64_t up_to)
{
    for (int i = 0; i < 100000 && m->reader < up_to; i++)
        turn_beside_a_stuck_one(m);
    assert_true(m->reader >= up_to);
}

/* M4: one that never ends anything keeps its share of the memory and no more;
 * the others get everything. */
static void a_stuck_handler_stops_nobody(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 11, 120000);
    m->no_chaos = true;
    read_beside_a_stuck_one(m, EVENTS);
    assert_int_equal(m->n_behind, 1);
    assert_true(m->handlers[0]->n_behind == 1);
    for (int e = 0; e < EVENTS - 100; e++)
        for (int h = 1; h < HANDLERS; h++)
            assert_int_equal(m->done[h][e], is_due(m, h, e));
    drain(m);
    check_all_done(m);
    finish(m);
}

/* Nor does it when it left with more than all who are behind may have, for it
 * ran: another one who is behind reads on. */
static void
a_stuck_handler_with_much_leaves_the_others_their_share(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 13, 120000);
    m->no_chaos = true;
    pipeline_switch(m->pl, m->handlers[0], spec("*", ORDER_KEY, 1000), 1);
    read_beside_a_stuck_one(m, 1000);
    assert_true(m->handlers[0]->aside_cost > 120000 / 2);
    pipeline_detach(m->pl, m->handlers[1], false);
    read_beside_a_stuck_one(m, 2000);
    pipeline_attach(m->pl, m->handlers[1]);
    for (int i = 0; i < 20000 && m->n_level == 0; i++)
        turn_beside_a_stuck_one(m);
    assert_int_equal(m->n_level, 1);
    drain(m);
    check_all_done(m);
    finish(m);
}

/* Where all are slow, reading less is right: nobody leaves. */
static void where_all_are_slow_nobody_leaves(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 12, 120000);
    pipeline_switch(m->pl, m->handlers[2], spec("*", ORDER_KEY, 16), 3);
    pipeline_switch(m->pl, m->handlers[1], spec("*", ORDER_KEY, 16), 2);
    for (int i = 0; i < 1000; i++) {
        m->now_us += 1000;
        pipeline_tick(m->pl, m->now_us, m->now_us);
        read_some(m, 30);
        pipeline_pump_all(m->pl);
    }
    assert_int_equal(m->n_behind, 0);
    drain(m);
    finish(m);
}

/* Other code is judged afresh, after a save: no strike of the former counts. */
static void a_new_version_has_no_strikes(void **state)
{
    struct model *m = xcalloc(1, sizeof(*m));

    (void)state;
    set_up(m, 9, 120000);
    m->handlers[0]->strikes = 2;
    m->handlers[0]->first_strike_us = m->now_us;
    pipeline_switch(m->pl, m->handlers[0], spec("*", ORDER_KEY, 16), 4);
    assert_int_equal(m->handlers[0]->strikes, 0);
    finish(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chance_never_loses_doubles_or_reorders),
        cmocka_unit_test(chance_with_gaps_never_loses_doubles_or_reorders),
        cmocka_unit_test(chance_with_shards_never_loses_doubles_or_reorders),
        cmocka_unit_test(chance_with_a_parked_queue_loses_nothing),
        cmocka_unit_test(handlers_of_a_worker_share_an_event),
        cmocka_unit_test(a_full_window_refuses_more),
        cmocka_unit_test(room_is_offered_in_the_turn_that_made_it),
        cmocka_unit_test(three_strikes_make_a_dead_letter),
        cmocka_unit_test(what_did_not_end_well_is_returned),
        cmocka_unit_test(a_far_time_of_a_worker_is_not_now),
        cmocka_unit_test(a_rate_holds_one_handler_and_no_other),
        cmocka_unit_test(others_in_the_way_count_no_attempt_a_hundred_times),
        cmocka_unit_test(freeing_does_not_wait_for_what_is_being_stored),
        cmocka_unit_test(facts_that_no_ring_takes_are_a_dead_letter),
        cmocka_unit_test(when_all_are_held_the_reading_starts_at_the_earliest),
        cmocka_unit_test(who_is_held_at_the_first_start_goes_on_from_there),
        cmocka_unit_test(no_position_leaves_nothing_to_free),
        cmocka_unit_test(who_is_far_behind_reads_by_itself),
        cmocka_unit_test(what_is_given_up_is_nobodys_any_more),
        cmocka_unit_test(one_handler_gives_up_and_the_others_do_not),
        cmocka_unit_test(a_log_that_became_shorter_is_read_from_its_end),
        cmocka_unit_test(a_stuck_handler_stops_nobody),
        cmocka_unit_test(
            a_stuck_handler_with_much_leaves_the_others_their_share),
        cmocka_unit_test(where_all_are_slow_nobody_leaves),
        cmocka_unit_test(a_new_version_has_no_strikes),
    };

    return cmocka_run_group_tests_name("pipeline", tests, NULL, NULL);
}
