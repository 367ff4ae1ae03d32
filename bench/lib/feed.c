#include "feed.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/scan.h"
#include "kafka/kept.h"
#include "sample.h"
#include "sources/decode.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIFFERENT 4096 /* records */
#define HEADERS   6
#define A_TURN    500   /* records, as the Kafka source takes */
#define KEY_TEXTS 65536 /* more than fit into the window */

struct record {
    struct slice value;
    struct kafka_header headers[HEADERS];
    char *memory;
};

/* --- records ---------------------------------------------------------------- */

static struct slice keep(char **at, const char *text, size_t len)
{
    struct slice kept = {*at, len};

    memcpy(*at, text, len);
    (*at)[len] = '\0';
    *at += len + 1;
    return kept;
}

static void type_name(char name[static 32], unsigned number)
{
    snprintf(name, 32, "type%u", number);
}

static void make_record(struct record *r, const struct sample *s)
{
    const char *const pairs[HEADERS][2] = {
        {"id", s->id},
        {"type", s->type},
        {"version", "1"},
        {"aggregate_type", "Order"},
        {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
                        "-01"},
        {"occurred_at", s->occurred_at},
    };
    char *at = r->memory = xmalloc(s->value_len + 1024);

    r->value = keep(&at, s->value, s->value_len);
    for (int i = 0; i < HEADERS; i++) {
        r->headers[i].name = keep(&at, pairs[i][0], strlen(pairs[i][0]));
        r->headers[i].value = keep(&at, pairs[i][1], strlen(pairs[i][1]));
    }
}

/* --- the source --------------------------------------------------------------- */

static void start(struct partition *p, const struct position *from)
{
    pipeline_advance(p, from->next < 0 ? 0 : from->next);
}

static void ignore(struct partition *p)
{
    (void)p;
}

static void ignore_wake(void *source)
{
    (void)source;
}

static void release(struct event *event)
{
    const struct feed *f = event->partition->source;

    kafka_kept_free(f->keeper, event->memory);
}

static const struct source_ops source = {
    .kind = SOURCE_KAFKA,
    .start = start,
    .pause = ignore,
    .resume = ignore,
    .wake = ignore_wake,
    .release = release,
};

/* More keys than different records: each event has one of its own, in a text
 * that lives longer than anything may be on its way. */
static struct slice key_of(struct feed *f)
{
    char *text = f->keys[(size_t)f->offered % KEY_TEXTS];
    uint64_t n = hash_mix((uint64_t)f->offered, 7) % f->shape.keys;

    memcpy(text, "o-", 2);
    for (size_t i = KEY_SIZE; i-- > 2; n /= 10)
        text[i] = (char)('0' + n % 10);
    return (struct slice){text, KEY_SIZE};
}

static void offer(struct feed *f)
{
    const struct record *r = &f->records[(size_t)f->offered % f->n_records];
    struct partition *p =
        f->parts[(size_t)f->offered / A_TURN % f->shape.partitions];
    struct event *event = pipeline_event_new(f->pl, p);
    struct kafka_kept *kept =
        kafka_kept_new(f->keeper, key_of(f), r->value, r->headers,
                       f->shape.headers ? HEADERS : 0);
    struct decoded decoded;
    struct err err;

    event->place = p->next < 0 ? 0 : p->next;
    event->memory = kept;
    kept->is_padded = true; /* as nearly all records of a fetch are */
    event->key = kept->key;
    if (!decode_record(f->scan, FORMAT_AUTO, kept, &decoded, &err)) {
        fprintf(stderr, "a record does not decode: %s\n", err.msg);
        exit(1);
    }
    memcpy(event->facts, decoded.facts, sizeof(event->facts));
    event->form = decoded.form;
    event->body = decoded.body;
    event->occurred_us = f->offered;
    f->offered++;
    pipeline_offer(f->pl, event);
}

/* --- the pipeline's wishes ------------------------------------------------------ */

static bool op_send(void *ctx, unsigned worker, const struct event_msg *ev,
                    const struct delivery_msg *to, size_t n)
{
    struct feed *f = ctx;

    (void)worker;
    if (!write_deliver(&f->down, ev, to, n)) {
        feed_publish(f);
        ring_writer_wait(&f->down);
        return false;
    }
    f->is_dirty = true;
    return true;
}

static void op_store(void *ctx, struct delivery *d, enum verdict how)
{
    (void)ctx;
    fprintf(stderr, "%s: %s\n", verdict_name(how),
            d->failures ? d->failures->error : "?");
    exit(1);
}

static void op_partition(void *ctx, struct partition *p)
{
    (void)ctx;
    (void)p;
}

static void op_nothing(void *ctx)
{
    (void)ctx;
}

static void op_behind(void *ctx, struct partition *p, struct handler *h,
                      bool is_behind)
{
    (void)ctx;
    (void)p;
    (void)h;
    (void)is_behind;
}

/* Nothing is parked here, and nobody stops: no event of the feed fails. */
static const struct pipeline_ops ops = {
    .send = op_send,
    .store = op_store,
    .quiet = op_partition,
    .fenced = op_partition,
    .room_again = op_nothing,
    .want_spare = op_nothing,
    .behind = op_behind,
};

static void add_handler(struct feed *f, const char *name, const char *pattern,
                        uint32_t vm)
{
    struct handler *h = pipeline_handler(f->pl, name);
    struct handler_spec *spec = xcalloc(1, sizeof(*spec));

    spec->version = xstrdup("1");
    spec->subscribes = xcalloc(1, sizeof(char *));
    spec->subscribes[0] = xstrdup(pattern);
    spec->n_subscribes = 1;
    spec->concurrency = 256;
    spec->retry = (struct retry_policy){.max_attempts = 1};
    spec->start = POSITION_EARLIEST;
    pipeline_switch(f->pl, h, spec, vm);
}

static void open_partition(struct feed *f, unsigned number)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(f->pl, &handlers);
    char name[32];
    struct partition *p;

    snprintf(name, sizeof(name), "orders/%u", number);
    p = pipeline_open(f->pl, &source, f, "orders", (int32_t)number, name, "");
    for (size_t i = 0; i < n; i++) {
        struct position from = {.next = 0};

        pipeline_open_cursor(p, handlers[i], &from, 1);
    }
    pipeline_start(p);
    f->parts[number] = p;
}

void feed_init(struct feed *f, const struct feed_shape *shape, size_t down_size,
               size_t up_size)
{
    struct pipeline_config config = {.window_events = 10000,
                                     .window_bytes = 2 << 20,
                                     .event_bytes = 1 << 20,
                                     .n_workers = 1,
                                     .quarantine_us = 1000000};
    static struct sample s;
    char name[32], type[32];
    struct err err;

    *f = (struct feed){.shape = *shape};
    f->metrics = metrics_new();
    f->pl = pipeline_new(&config, &ops, f, f->metrics);
    f->scan = scan_new();
    f->keeper = kafka_keeper_new(0, NULL);
    f->n_records = DIFFERENT;
    f->records = xcalloc(f->n_records, sizeof(*f->records));
    f->keys = xcalloc(KEY_TEXTS, KEY_SIZE);
    for (size_t i = 0; i < f->n_records; i++) {
        sample_make(&s, i, shape->keys, shape->size);
        if (shape->types)
            type_name(s.type, (unsigned)(i % shape->types));
        make_record(&f->records[i], &s);
    }
    if (!channel_create(&f->ch, down_size, up_size, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    ring_writer_init(&f->down, &f->ch.control->down, f->ch.down,
                     f->ch.control->down_size);
    ring_reader_init(&f->up, &f->ch.control->up, f->ch.up,
                     f->ch.control->up_size);
    pipeline_tick(f->pl, clock_mono_us(), clock_wall_us());
    for (unsigned i = 0; i < shape->handlers; i++) {
        snprintf(name, sizeof(name), "taker%u", i);
        type_name(type, i);
        add_handler(f, name, shape->types ? type : "*", i + 1);
    }
    for (unsigned i = 0; i < shape->others; i++) {
        snprintf(name, sizeof(name), "other%u", i);
        add_handler(f, name, name, shape->handlers + i + 1);
    }
    f->parts = xcalloc(shape->partitions, sizeof(struct partition *));
    for (unsigned i = 0; i < shape->partitions; i++)
        open_partition(f, i);
}

void feed_fini(struct feed *f)
{
    pipeline_free(f->pl);
    metrics_free(f->metrics);
    scan_free(f->scan);
    kafka_keeper_free(f->keeper);
    for (size_t i = 0; i < f->n_records; i++)
        free(f->records[i].memory);
    free(f->records);
    free(f->keys);
    free(f->parts);
    channel_close(&f->ch);
}

void feed_start(struct feed *f)
{
    pipeline_worker_up(f->pl, 0);
}

/* --- a turn ------------------------------------------------------------------------ */

void feed_publish(struct feed *f)
{
    f->is_dirty = false;
    ring_publish(&f->down);
    if (ring_writer_should_wake(&f->down))
        channel_wake(f->ch.wake_worker_fd);
}

static bool read_verdicts(struct feed *f)
{
    const struct msg_head *msg;
    struct verdict_msg v;
    size_t len;
    long n = 0;

    ring_reader_wakeup(&f->up);
    while (ring_next(&f->up, &msg, &len) == RING_MESSAGE) {
        n++;
        if (msg->kind != MSG_VERDICT) {
            feed_say(f, msg, len);
            continue;
        }
        if (!read_verdict(msg, len, &v))
            exit(1);
        f->done++;
        pipeline_verdict(f->pl, 0, &v);
    }
    if (n) {
        ring_release(&f->up);
        if (ring_reader_should_wake(&f->up))
            channel_wake(f->ch.wake_worker_fd);
    }
    return n > 0;
}

bool feed_turn(struct feed *f)
{
    int64_t now_us = f->now_us ? (f->now_us += 100) : clock_mono_us();
    long before = f->offered;
    size_t room;

    atomic_store(&f->ch.control->host_alive_us, now_us);
    pipeline_tick(f->pl, now_us, now_us);
    room = pipeline_room(f->pl);
    for (size_t i = 0; i < A_TURN && i < room && f->offered < f->shape.events;
         i++)
        offer(f);
    read_verdicts(f);
    pipeline_pump_all(f->pl);
    if (f->is_dirty)
        feed_publish(f);
    return f->offered != before || !ring_reader_sleep(&f->up);
}

bool feed_is_over(const struct feed *f)
{
    struct pipeline_numbers numbers;

    pipeline_numbers(f->pl, &numbers);
    return f->offered == f->shape.events && numbers.events == 0;
}

/* --- the worker's side ---------------------------------------------------------------- */

void feed_load(struct feed *f, uint32_t vm, const char *text)
{
    json_t *bundle =
        json_pack("{s:s, s:s, s:s, s:{s:s}, s:{}, s:{}, s:{}}", "name", "bench",
                  "version", "1", "main", "handlers/bench.lua", "sources",
                  "handlers/bench.lua", text, "modules", "templates", "decl");
    char *json;

    json_object_set_new(bundle, "concurrency_here", json_integer(256));
    /* wall time, and the machine may have others to serve */
    json_object_set_new(bundle, "soft_limit_ms", json_integer(10000));
    json = json_dumps(bundle, 0);
    if (!write_text(&f->down, MSG_LOAD, vm, true, slice_of(json)))
        exit(1);
    free(json);
    json_decref(bundle);
}

bool feed_say(struct feed *f, const struct msg_head *msg, size_t len)
{
    struct slice text;
    uint32_t id;
    bool ok;

    (void)f;
    if (!read_text(msg, len, &id, &ok, &text))
        exit(1);
    if (msg->kind == MSG_LOADED && !ok) {
        fprintf(stderr, "%.*s\n", (int)text.len, text.ptr);
        exit(1);
    }
    return msg->kind == MSG_LOADED;
}
