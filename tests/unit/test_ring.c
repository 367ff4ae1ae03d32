/* The rings between host and worker, and their messages. */
#include "ipc/channel.h"
#include "ipc/msg.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static int open_channel(void **state)
{
    static struct channel ch;
    struct err err;

    assert_true(channel_create(&ch, 65536, 65536, &err));
    *state = &ch;
    return 0;
}

static int close_channel(void **state)
{
    channel_close(*state);
    return 0;
}

static void ends_of(struct channel *ch, struct ring_writer *w,
                    struct ring_reader *r)
{
    ring_writer_init(w, &ch->control->down, ch->down, ch->control->down_size);
    ring_reader_init(r, &ch->control->down, ch->down, ch->control->down_size);
}

static void a_delivery_comes_out_as_it_went_in(void **state)
{
    struct event_msg in = {.place = 123456789012,
                           .source = SOURCE_OUTBOX,
                           .form = BODY_NATIVE,
                           .topic = SLICE_LIT("domain_events"),
                           .partition = SLICE_LIT("0"),
                           .body = SLICE_LIT("{\"a\":1}")};
    const struct delivery_msg to[2] = {{.slot = 7,
                                        .generation = 3,
                                        .vm = 2,
                                        .attempt = 1,
                                        .flags = DELIVER_FRESH,
                                        .lane = 99,
                                        .epoch = 4},
                                       {.slot = 8, .vm = 3}};
    const struct delivery_msg *read;
    struct event_msg out;
    const struct msg_head *msg;
    struct ring_writer w;
    struct ring_reader r;
    size_t len, n;

    ends_of(*state, &w, &r);
    in.facts[FACT_ID] = SLICE_LIT("e-1");
    in.facts[FACT_TYPE] = (struct slice){"", 0}; /* empty is not absent */
    assert_true(write_deliver(&w, &in, to, 2));
    assert_int_equal(ring_next(&r, &msg, &len), RING_EMPTY);
    ring_publish(&w);
    assert_int_equal(ring_next(&r, &msg, &len), RING_MESSAGE);
    assert_int_equal(msg->kind, MSG_DELIVER);
    assert_true(read_deliver(msg, len, &out, &read, &n));
    assert_int_equal(n, 2);
    assert_memory_equal(read, to, sizeof(to));
    assert_int_equal(out.place, in.place);
    assert_int_equal(out.source, SOURCE_OUTBOX);
    assert_true(slice_is(out.facts[FACT_ID], "e-1"));
    assert_non_null(out.facts[FACT_TYPE].ptr);
    assert_null(out.facts[FACT_VERSION].ptr);
    assert_true(slice_is(out.body, "{\"a\":1}"));
    ring_release(&r);
}

static void a_full_ring_refuses_and_takes_again_after_release(void **state)
{
    struct slice text = {.ptr = (char[1000]){0}, .len = 1000};
    const struct msg_head *msg;
    struct ring_writer w;
    struct ring_reader r;
    size_t len, n = 0;

    ends_of(*state, &w, &r);
    while (write_text(&w, MSG_REPLY, 1, true, text))
        n++;
    assert_true(n > 50 && n < 70);
    ring_publish(&w);
    assert_false(ring_writer_wait(&w));
    assert_int_equal(ring_next(&r, &msg, &len), RING_MESSAGE);
    ring_release(&r);
    assert_true(ring_reader_should_wake(&r)); /* the writer waits for space */
    assert_true(write_text(&w, MSG_REPLY, 2, true, text));
}

/* "The host trusts nothing a worker writes": rings that lie. */
static void nonsense_ends_the_reading_and_nothing_else(void **state)
{
    struct channel *ch = *state;
    const struct msg_head *msg;
    struct ring_writer w;
    struct ring_reader r;
    size_t len;

    ends_of(ch, &w, &r);
    atomic_store(&ch->control->down.head, 1ull << 40);
    assert_int_equal(ring_next(&r, &msg, &len), RING_BROKEN);
    ring_reader_init(&r, &ch->control->down, ch->down, ch->control->down_size);
    atomic_store(&ch->control->down.head, 64);
    ((struct msg_head *)(void *)ch->down)->len = 0xfffffff0u;
    assert_int_equal(ring_next(&r, &msg, &len), RING_BROKEN);
    ring_reader_init(&r, &ch->control->down, ch->down, ch->control->down_size);
    ((struct msg_head *)(void *)ch->down)->len = 2;
    assert_int_equal(ring_next(&r, &msg, &len), RING_BROKEN);
}

static void a_verdict_with_false_lengths_is_refused(void **state)
{
    struct verdict_msg v = {.verdict = VERDICT_RETRY,
                            .reason = SLICE_LIT("no")};
    const struct msg_head *msg;
    struct msg_verdict *raw;
    struct ring_writer w;
    struct ring_reader r;
    size_t len;

    ends_of(*state, &w, &r);
    assert_true(write_verdict(&w, &v));
    ring_publish(&w);
    assert_int_equal(ring_next(&r, &msg, &len), RING_MESSAGE);
    raw = (struct msg_verdict *)(uintptr_t)msg;
    assert_true(read_verdict(msg, len, &v));
    raw->reason_len = 4000;
    assert_false(read_verdict(msg, len, &v));
    raw->reason_len = 2;
    raw->verdict = 77;
    assert_false(read_verdict(msg, len, &v));
}

enum { MESSAGES = 200000 };

static void *produce(void *arg)
{
    struct channel *ch = arg;
    struct ring_writer w;
    char text[256] = {0};

    ring_writer_init(&w, &ch->control->down, ch->down, ch->control->down_size);
    for (uint32_t i = 0; i < MESSAGES;) {
        memset(text, (char)i, sizeof(text));
        if (write_text(&w, MSG_REPLY, i, true,
                       (struct slice){text, i % sizeof(text)}))
            i++;
        else
            sched_yield();
        ring_publish(&w);
    }
    return NULL;
}

/* Runs under TSan as well. */
static void two_threads_agree_on_every_byte(void **state)
{
    struct channel *ch = *state;
    struct ring_reader r;
    pthread_t thread;
    uint32_t expected = 0;

    ring_reader_init(&r, &ch->control->down, ch->down, ch->control->down_size);
    assert_int_equal(pthread_create(&thread, NULL, produce, ch), 0);
    while (expected < MESSAGES) {
        const struct msg_head *msg;
        struct slice text;
        uint32_t id;
        size_t len;
        bool ok;

        if (ring_next(&r, &msg, &len) != RING_MESSAGE) {
            ring_release(&r);
            sched_yield();
            continue;
        }
        assert_true(read_text(msg, len, &id, &ok, &text));
        assert_int_equal(id, expected);
        assert_int_equal(text.len, expected % 256);
        for (size_t i = 0; i < text.len; i++)
            assert_int_equal(text.ptr[i], (char)expected);
        expected++;
    }
    pthread_join(thread, NULL);
}

/* What a worker could write must not reach what the host unmaps. */
static void the_sizes_in_shared_memory_are_not_believed(void **state)
{
    unsigned char there[16];
    struct channel ch;
    struct err err;

    (void)state;
    assert_true(channel_create(&ch, 65536, 65536, &err));
    char *down = ch.down, *up = ch.up;
    ch.control->down_size = 4096;
    ch.control->up_size = 0;
    channel_close(&ch);
    assert_int_equal(mincore(down + 65536, 65536, there), -1);
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(mincore(up, 65536, there), -1);
    assert_int_equal(errno, ENOMEM);
}

/* A shorter file under the host's mapping would end the host (SIGBUS). */
static void the_memory_cannot_be_cut(void **state)
{
    struct channel *ch = *state;
    struct stat st;

    assert_int_equal(fstat(ch->memory_fd, &st), 0);
    assert_int_equal(ftruncate(ch->memory_fd, 0), -1);
    assert_int_equal(ftruncate(ch->memory_fd, st.st_size * 2), -1);
}

#define CASE(fn) \
    cmocka_unit_test_setup_teardown(fn, open_channel, close_channel)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_delivery_comes_out_as_it_went_in),
        CASE(a_full_ring_refuses_and_takes_again_after_release),
        CASE(nonsense_ends_the_reading_and_nothing_else),
        CASE(a_verdict_with_false_lengths_is_refused),
        CASE(two_threads_agree_on_every_byte),
        cmocka_unit_test(the_sizes_in_shared_memory_are_not_believed),
        CASE(the_memory_cannot_be_cut),
    };

    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
