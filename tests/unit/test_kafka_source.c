/*
 * The Kafka source, consumer and producer against librdkafka's in-process
 * broker: a real group, real fetches, no server.
 */
#include "base/clock.h"
#include "base/mem.h"
#include "core/partition.h"
#include "kafka/embedded.h"
#include "kafka/kept.h"
#include "kafka/producer.h"
#include "sources/kafka_source.h"

#include <ev.h>
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PARTITIONS 4
#define KEPT_MAX   5000
#define TOPIC      "orders"

/* A host that takes everything and settles at once, or keeps it. */
struct fixture {
    struct ev_loop *loop;
    struct kafka_embedded *broker;
    struct kafka_producer *producer;
    struct kafka_settings settings;
    struct kafka_source *source;
    json_t *topics;
    struct partition *parts[PARTITIONS];
    int64_t last[PARTITIONS]; /* highest offset offered */
    size_t opened, offered, closed, inverted, rebalances;
    size_t pause_at; /* pause every partition after so many; 0 never */
    size_t room_for; /* no room beyond so many; 0: always some */
    size_t refused;  /* how often room() said 0 */
    int64_t start;
    char *undecodable;
    char *source_id;
    bool stopped;
    size_t stored, failed;
    struct event *kept[KEPT_MAX]; /* not released, the first ones */
    size_t keep_to, n_kept;
    bool may_be_troubled, is_troubled;
    int64_t fetched, piece_from; /* the answer, and the first of the piece */
    size_t n_pieces;             /* events of it */
};

static struct partition *on_opened(void *ctx, const struct source_ops *ops,
                                   void *source, const char *topic,
                                   int32_t number, const char *name,
                                   const char *source_id)
{
    struct fixture *f = ctx;
    struct partition *p = xcalloc(1, sizeof(*p));

    p->ops = ops;
    p->source = source;
    p->topic = xstrdup(topic);
    p->name = xstrdup(name);
    p->number = number;
    free(f->source_id);
    f->source_id = xstrdup(source_id);
    f->parts[number] = p;
    f->last[number] = -1;
    f->opened++;
    return p;
}

static void free_part(struct partition *p)
{
    free(p->topic);
    free(p->name);
    free(p);
}

static struct event *on_event_new(void *ctx, struct partition *p)
{
    struct event *event = xcalloc(1, sizeof(*event));

    (void)ctx;
    event->partition = p;
    return event;
}

static void on_piece(struct fixture *f, struct event *event)
{
    if (f->n_pieces++ == 0)
        f->piece_from = event->place;
    f->inverted += event->place != f->piece_from + (int64_t)f->n_pieces - 1;
    event->partition->ops->release(event);
    free(event);
}

static void on_offer(void *ctx, struct event *event)
{
    struct fixture *f = ctx;
    struct partition *p = event->partition;

    if (event->reader) {
        on_piece(f, event);
        return;
    }
    f->inverted += event->place <= f->last[p->number];
    f->last[p->number] = event->place;
    f->offered++;
    p->next = event->place + 1;
    if (event->undecodable) {
        free(f->undecodable);
        f->undecodable = event->undecodable;
    }
    if (f->n_kept < f->keep_to) {
        f->kept[f->n_kept++] = event;
        return;
    }
    p->ops->release(event);
    free(event);
    if (f->pause_at && f->offered >= f->pause_at)
        p->ops->pause(p);
}

static size_t on_room(void *ctx)
{
    struct fixture *f = ctx;

    if (!f->room_for)
        return 1000;
    f->refused += f->offered >= f->room_for;
    return f->offered < f->room_for ? f->room_for - f->offered : 0;
}

static void on_advance(void *ctx, struct partition *p, int64_t next)
{
    (void)ctx;
    p->next = next;
}

static void on_closing(void *ctx, struct partition *p, bool lost)
{
    struct fixture *f = ctx;
    struct position at = {.next = p->next};

    if (!lost)
        p->ops->commit(p, &at);
    f->parts[p->number] = NULL;
    f->closed++;
    p->ops->closed(p);
    free_part(p);
}

static void on_trouble(void *ctx, struct partition *p, const char *text)
{
    struct fixture *f = ctx;

    (void)p;
    if (!f->may_be_troubled)
        fail_msg("trouble: %s", text);
    f->is_troubled = text != NULL;
}

static void on_stopped(void *arg)
{
    ((struct fixture *)arg)->stopped = true;
}

static void on_tick(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop;
    (void)timer;
    (void)events;
}

/* Run the loop until the condition holds. */
#define AWAIT(f, condition)                                \
    do {                                                   \
        int64_t deadline = clock_mono_us() + 20000000;     \
        ev_timer tick;                                     \
                                                           \
        ev_timer_init(&tick, on_tick, 0.01, 0.01);         \
        ev_timer_start((f)->loop, &tick);                  \
        while (!(condition) && clock_mono_us() < deadline) \
            ev_run((f)->loop, EVRUN_ONCE);                 \
        ev_timer_stop((f)->loop, &tick);                   \
        if (!(condition))                                  \
            fail_msg("not in time: %s", #condition);       \
    } while (0)

static void on_delivered(void *arg, const struct err *err)
{
    struct fixture *f = arg;

    if (err)
        f->failed++;
    else
        f->stored++;
}

static void produce(struct fixture *f, int partition, int n, const char *value)
{
    struct kafka_header headers[] = {
        {slice_of("id"), slice_of("x")},
        {slice_of("type"), slice_of("T")},
        {slice_of("aggregate_type"), slice_of("A")},
    };
    size_t before = f->stored;

    for (int i = 0; i < n; i++)
        kafka_produce(f->producer, TOPIC, partition, slice_of("key"),
                      slice_of(value), headers, 3, on_delivered, f);
    AWAIT(f, f->stored == before + (size_t)n);
    assert_int_equal(f->failed, 0);
}

static void on_rebalance(void *arg)
{
    ((struct fixture *)arg)->rebalances++;
}

static void on_fetched(void *ctx, struct partition *p, int64_t next)
{
    struct fixture *f = ctx;

    (void)p;
    f->fetched = next;
}

static void make_source(struct fixture *f)
{
    struct source_sink sink = {
        .ctx = f,
        .opened = on_opened,
        .room = on_room,
        .offer = on_offer,
        .event_new = on_event_new,
        .advance = on_advance,
        .fetched = on_fetched,
        .closing = on_closing,
        .trouble = on_trouble,
    };
    struct kafka_source_options opts = {
        .kafka = &f->settings,
        .format = "auto",
        .max_bytes = 1000,
        .on_rebalance = on_rebalance,
        .arg = f,
    };
    struct err err;

    f->stopped = false;
    f->opened = f->closed = f->offered = f->rebalances = 0;
    f->source = kafka_source_new(f->loop, &opts, &sink, &err);
    if (!f->source)
        fail_msg("%s", err.msg);
}

static void open_source(struct fixture *f)
{
    make_source(f);
    AWAIT(f, f->opened == PARTITIONS);
}

static void start_all(struct fixture *f)
{
    struct position from = {.next = f->start};

    for (int i = 0; i < PARTITIONS; i++)
        f->parts[i]->ops->start(f->parts[i], &from);
}

static void close_source(struct fixture *f)
{
    kafka_source_stop(f->source, on_stopped, f);
    AWAIT(f, f->stopped);
    kafka_source_free(f->source);
    f->source = NULL;
}

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    struct err err;

    f->loop = ev_loop_new(EVFLAG_AUTO);
    f->start = POSITION_EARLIEST;
    f->broker = kafka_embedded_new(&err);
    assert_non_null(f->broker);
    assert_true(kafka_embedded_topic(f->broker, TOPIC, PARTITIONS, &err));
    f->topics = json_pack("[s]", TOPIC);
    f->settings = (struct kafka_settings){
        .brokers = kafka_embedded_bootstrap(f->broker),
        .client_id = "test",
        .group_id = "test",
        .instance_id = "",
        .incarnation = "i1",
        .topics = f->topics,
    };
    f->producer = kafka_producer_new(f->loop, &f->settings, &err);
    assert_non_null(f->producer);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    kafka_source_free(f->source);
    for (int i = 0; i < PARTITIONS; i++)
        if (f->parts[i])
            free_part(f->parts[i]);
    kafka_producer_free(f->producer, 1000);
    kafka_embedded_free(f->broker);
    json_decref(f->topics);
    ev_loop_destroy(f->loop);
    free(f->undecodable);
    free(f->source_id);
    free(f);
    return 0;
}

static void records_come_in_order_and_all(void **state)
{
    struct fixture *f = *state;

    for (int i = 0; i < PARTITIONS; i++)
        produce(f, i, 250, "{\"eventType\":\"T\"}");
    open_source(f);
    assert_non_null(strstr(f->source_id, "/i1"));
    start_all(f);
    AWAIT(f, f->offered == 250 * PARTITIONS);
    assert_int_equal(f->inverted, 0);
    close_source(f);
    assert_int_equal(f->closed, PARTITIONS);
}

static void assert_intact(const struct event *event, const char *value)
{
    const struct kafka_kept *kept = event->memory;

    assert_true(slice_is(event->key, "key"));
    assert_true(slice_is(event->body, value));
    assert_true(slice_is(event->facts[FACT_ID], "x"));
    assert_true(slice_is(event->facts[FACT_TYPE], "T"));
    assert_true(slice_is(event->facts[FACT_AGGREGATE_ID], "key"));
    assert_int_equal(kept->nheaders, 3);
    assert_string_equal(kept->headers[1].name.ptr, "type");
    assert_true(slice_is(kept->headers[1].value, "T"));
}

/* A fetch buffer lives as long as one record in it: what waits while others
 * flow is copied out, and nothing of it changes. */
static void what_waits_is_moved_out_of_the_fetch_buffer(void **state)
{
    struct fixture *f = *state;
    char value[960];

    memset(value, ' ', sizeof(value));
    memcpy(value, "{\"a\":1}", 7);
    value[sizeof(value) - 1] = '\0';
    f->keep_to = 3000; /* and 2 MiB are read before a record is moved */
    produce(f, 0, 4000, value);
    open_source(f);
    start_all(f);
    AWAIT(f, f->offered == 4000);
    assert_null(((struct kafka_kept *)f->kept[0]->memory)->message);
    assert_null(((struct kafka_kept *)f->kept[1000]->memory)->message);
    assert_non_null(((struct kafka_kept *)f->kept[2999]->memory)->message);
    for (size_t i = 0; i < f->n_kept; i++) {
        struct event *event = f->kept[i];

        assert_intact(event, value);
        event->partition->ops->release(event);
        free(event);
    }
    close_source(f);
}

static void the_latest_skips_what_was_there(void **state)
{
    struct fixture *f = *state;

    produce(f, 1, 20, "{}");
    f->start = POSITION_LATEST;
    open_source(f);
    start_all(f);
    AWAIT(f, f->parts[1]->next == 20);
    produce(f, 1, 3, "{}");
    AWAIT(f, f->offered == 3);
    assert_int_equal(f->last[1], 22);
    close_source(f);
}

static void a_paused_partition_waits_and_loses_nothing(void **state)
{
    struct fixture *f = *state;

    produce(f, 0, 500, "{}");
    produce(f, 2, 500, "{}");
    f->pause_at = 100;
    open_source(f);
    start_all(f);
    AWAIT(f, f->offered >= 100);
    f->pause_at = 0;
    for (int i = 0; i < PARTITIONS; i++)
        f->parts[i]->ops->resume(f->parts[i]);
    AWAIT(f, f->offered == 1000);
    assert_int_equal(f->inverted, 0);
    close_source(f);
}

static void one_full_partition_does_not_stop_the_others(void **state)
{
    struct fixture *f = *state;

    produce(f, 0, 300, "{}");
    open_source(f);
    f->parts[0]->ops->pause(f->parts[0]);
    start_all(f);
    produce(f, 3, 300, "{}");
    AWAIT(f, f->last[3] == 299);
    assert_int_equal(f->last[0], -1);
    f->parts[0]->ops->resume(f->parts[0]);
    AWAIT(f, f->last[0] == 299);
    assert_int_equal(f->offered, 600);
    assert_int_equal(f->inverted, 0);
    close_source(f);
}

static bool are_paused(const struct fixture *f)
{
    json_t *status = kafka_source_json(f->source), *part;
    bool all = true;
    size_t i;

    json_array_foreach(json_object_get(status, "partitions"), i, part)
        all = all && json_is_true(json_object_get(part, "paused"));
    json_decref(status);
    return all;
}

/* For a moment, and for so long that the partitions are paused in librdkafka:
 * then the group is served and asked for room no more. */
static void without_room_it_waits_until_it_is_woken(void **state)
{
    struct fixture *f = *state;

    produce(f, 0, 300, "{}");
    produce(f, 2, 300, "{}");
    f->room_for = 100;
    open_source(f);
    start_all(f);
    AWAIT(f, f->refused > 0);
    assert_int_equal(f->offered, 100);
    f->room_for = 200;
    f->parts[0]->ops->wake(f->source);
    AWAIT(f, f->offered == 200);
    AWAIT(f, are_paused(f));
    assert_int_equal(f->offered, 200);
    f->room_for = 0;
    f->parts[0]->ops->wake(f->source);
    AWAIT(f, f->offered == 600);
    assert_int_equal(f->inverted, 0);
    assert_false(are_paused(f));
    close_source(f);
}

/* What came of a piece: how many, from where to where. */
static void fetch(struct fixture *f, int64_t first, int64_t last, size_t max)
{
    struct partition *p = f->parts[0];

    f->n_pieces = 0;
    f->fetched = -1;
    p->ops->fetch(p, (struct handler *)(void *)f, first, last, max);
    AWAIT(f, f->fetched >= 0);
}

/* M4: pieces of what was read before, beside the reading, which goes on. */
static void pieces_are_read_again_beside_the_reading(void **state)
{
    struct fixture *f = *state;

    produce(f, 0, 100, "{}");
    open_source(f);
    start_all(f);
    AWAIT(f, f->offered == 100);
    fetch(f, 40, 79, 30); /* as many as were allowed */
    assert_int_equal(f->n_pieces, 30);
    assert_int_equal(f->piece_from, 40);
    assert_int_equal(f->fetched, 70);
    fetch(f, 70, 79, 30); /* what follows it, to its end */
    assert_int_equal(f->n_pieces, 10);
    assert_int_equal(f->fetched, 80);
    fetch(f, 5, 9, 100); /* an older one */
    assert_int_equal(f->n_pieces, 5);
    assert_int_equal(f->piece_from, 5);
    fetch(f, POSITION_EARLIEST, 99, 1000); /* all of it */
    assert_int_equal(f->n_pieces, 100);
    assert_int_equal(f->piece_from, 0);
    assert_int_equal(f->fetched, 100);
    assert_int_equal(f->inverted, 0);
    produce(f, 0, 20, "{}");
    AWAIT(f, f->offered == 120);
    fetch(f, 100, 119, 1000); /* what came meanwhile */
    assert_int_equal(f->n_pieces, 20);
    close_source(f);
}

/* The partition goes while a piece of it is under way. */
static void a_piece_ends_with_its_partition(void **state)
{
    struct fixture *f = *state;

    produce(f, 0, 100, "{}");
    open_source(f);
    start_all(f);
    AWAIT(f, f->offered == 100);
    f->fetched = -1;
    f->parts[0]->ops->fetch(f->parts[0], (struct handler *)(void *)f, 0, 99,
                            100);
    close_source(f);
    assert_int_equal(f->fetched, -1);
}

static void what_is_too_large_is_offered_as_undecodable(void **state)
{
    struct fixture *f = *state;
    char big[1100];

    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    produce(f, 0, 1, big);
    open_source(f);
    start_all(f);
    AWAIT(f, f->offered == 1);
    assert_non_null(f->undecodable);
    assert_non_null(strstr(f->undecodable, "event.max_bytes"));
    close_source(f);
}

#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

/* The group answers when it is too late: what was opened now would be read, and
 * nobody would close it or write down how far that went. */
static void what_is_assigned_after_the_stop_is_not_opened(void **state)
{
    struct fixture *f = *state;

    make_source(f);
    kafka_source_stop(f->source, on_stopped, f);
    AWAIT(f, f->stopped && f->rebalances > 0);
    assert_int_equal(f->opened, 0);
    kafka_source_free(f->source);
    f->source = NULL;
}

/* Rights taken away and given back: the partition is read on by itself. */
static void a_trouble_that_passes_is_over(void **state)
{
    struct fixture *f = *state;
    rd_kafka_t *rk =
        rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), NULL, 0);
    rd_kafka_mock_cluster_t *cluster = rd_kafka_mock_cluster_new(rk, 1);
    struct err err;

    rd_kafka_mock_topic_create(cluster, TOPIC, PARTITIONS, 1);
    f->settings.brokers = rd_kafka_mock_cluster_bootstraps(cluster);
    f->may_be_troubled = true;
    kafka_producer_free(f->producer, 0);
    f->producer = kafka_producer_new(f->loop, &f->settings, &err);
    produce(f, 0, 1, "{}");
    open_source(f);
    start_all(f);
    AWAIT(f, f->offered == 1);
    rd_kafka_mock_push_request_errors(
        cluster, 1 /* Fetch */, 2, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    AWAIT(f, f->is_troubled);
    produce(f, 0, 1, "{}");
    AWAIT(f, f->offered == 2);
    AWAIT(f, !f->is_troubled);
    close_source(f);
    kafka_producer_free(f->producer, 0);
    f->producer = NULL;
    rd_kafka_mock_cluster_destroy(cluster);
    rd_kafka_destroy(rk);
}

struct answers {
    struct fixture *f;
    int told, failed;
};

/* As the positions do: what was not stored is stored again. */
static void on_answer(void *arg, const struct err *err)
{
    struct answers *a = arg;

    a->told++;
    a->failed += err != NULL;
    kafka_produce(a->f->producer, TOPIC, 0, slice_of("k"), slice_of("v"), NULL,
                  0, on_answer, a);
}

/* Who asked hears of it at the end at the latest, for then they go away. */
static void the_end_answers_all_and_then_nobody(void **state)
{
    struct fixture *f = *state;
    struct answers a = {.f = f};

    kafka_embedded_free(f->broker);
    f->broker = NULL;
    on_answer(&a, NULL);
    kafka_producer_end(f->producer, 0);
    assert_int_equal(a.told, 2);
    assert_int_equal(a.failed, 1);
    kafka_producer_free(f->producer, 1000);
    f->producer = NULL;
    assert_int_equal(a.told, 2);
}

/* It was told of its partitions and never said where to start. */
static void what_is_not_started_can_be_closed(void **state)
{
    struct fixture *f = *state;

    open_source(f);
    close_source(f);
    assert_int_equal(f->closed, PARTITIONS);
}

/* The answer to where a partition begins comes after all were given back. */
static void what_is_still_asked_at_the_stop_starts_nothing(void **state)
{
    struct fixture *f = *state;

    produce(f, 0, 10, "{}");
    open_source(f);
    start_all(f);
    for (int i = 0; i < PARTITIONS; i++)
        f->parts[i]->next = -1; /* nothing was read: nothing to commit */
    kafka_source_stop(f->source, on_stopped, f);
    assert_true(f->stopped);
    AWAIT(f, kafka_source_connected(f->source)); /* said a second later */
    assert_int_equal(f->offered, 0);
    kafka_source_free(f->source);
    f->source = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_trouble_that_passes_is_over),
        CASE(the_end_answers_all_and_then_nobody),
        CASE(what_is_not_started_can_be_closed),
        CASE(what_is_still_asked_at_the_stop_starts_nothing),
        CASE(records_come_in_order_and_all),
        CASE(what_waits_is_moved_out_of_the_fetch_buffer),
        CASE(the_latest_skips_what_was_there),
        CASE(a_paused_partition_waits_and_loses_nothing),
        CASE(one_full_partition_does_not_stop_the_others),
        CASE(without_room_it_waits_until_it_is_woken),
        CASE(pieces_are_read_again_beside_the_reading),
        CASE(a_piece_ends_with_its_partition),
        CASE(what_is_too_large_is_offered_as_undecodable),
        CASE(what_is_assigned_after_the_stop_is_not_opened),
    };

    return cmocka_run_group_tests_name("kafka_source", tests, NULL, NULL);
}
