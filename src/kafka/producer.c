/*
 * Every record is a struct letter from kafka_produce() to its callback. One
 * that librdkafka cannot take now (its queue is full) waits in `waiting` and
 * goes first when room comes. One that it refuses outright, because of its
 * size, say, is answered in the loop's next turn.
 */
#include "kafka/producer_internal.h"

#include "base/check.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "kafka";

struct letter {
    struct list link; /* in waiting or refused; alone when with librdkafka */
    kafka_delivery_fn *cb;
    void *arg;
    rd_kafka_resp_err_t refused;
    char *topic;
    int32_t partition;
    struct slice key, value;
    rd_kafka_headers_t *headers; /* librdkafka's once it took the record */
    char bytes[];
};

struct kafka_producer {
    struct kafka_client client; /* first: librdkafka's opaque */
    struct ev_loop *loop;
    struct kafka_wake wake;
    ev_timer retry; /* refused letters, a full queue, a producer to replace */
    struct list waiting, refused, creations;
    struct list late; /* produced after the end: nobody is told */
    size_t pending;
    bool is_fatal, is_ended;
    /* The settings again, for the producer after a fatal one. */
    struct kafka_settings settings;
};

static const char *const defaults[] = {
    "enable.idempotence",
    "true",
    "acks",
    "all",
    "linger.ms",
    "5",
    "compression.type",
    "lz4",
    "queue.buffering.max.kbytes",
    "16384",
    "message.timeout.ms",
    "60000",
    "topic.metadata.propagation.max.ms",
    "10000", /* no such topic: said before a delivery's time is over */
    "message.max.bytes",
    "20971520", /* the broker's limit decides */
    NULL,
};

static void letter_free(struct kafka_producer *p, struct letter *letter)
{
    p->pending--;
    if (letter->headers)
        rd_kafka_headers_destroy(letter->headers);
    free(letter->topic);
    free(letter);
}

static void finish(struct kafka_producer *p, struct letter *letter,
                   rd_kafka_resp_err_t code)
{
    struct err err;

    if (code) {
        kafka_err(&err, code, letter->topic);
        if (code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE ||
            code == RD_KAFKA_RESP_ERR_INVALID_MSG)
            err.kind = ERR_PERMANENT;
    }
    letter->cb(letter->arg, code ? &err : NULL);
    letter_free(p, letter);
}

static void on_delivery(UNUSED rd_kafka_t *rk, const rd_kafka_message_t *m,
                        void *opaque)
{
    struct kafka_producer *p = opaque;

    if (m->err == RD_KAFKA_RESP_ERR__FATAL)
        p->is_fatal = true;
    finish(p, m->_private, m->err);
}

static void wait_a_little(struct kafka_producer *p, double seconds)
{
    if (ev_is_active(&p->retry))
        return;
    ev_timer_set(&p->retry, seconds, 0.);
    ev_timer_start(p->loop, &p->retry);
}

/* false: the queue is full, and the letter has to wait. */
static bool hand_over(struct kafka_producer *p, struct letter *letter)
{
    rd_kafka_vu_t vus[] = {
        {.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = letter->topic},
        {.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = letter->partition},
        {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
        {.vtype = RD_KAFKA_VTYPE_KEY,
         .u.mem = {(void *)(uintptr_t)letter->key.ptr, letter->key.len}},
        {.vtype = RD_KAFKA_VTYPE_VALUE,
         .u.mem = {(void *)(uintptr_t)letter->value.ptr, letter->value.len}},
        {.vtype = RD_KAFKA_VTYPE_OPAQUE, .u.ptr = letter},
        {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = letter->headers},
    };
    size_t n = sizeof(vus) / sizeof(vus[0]);
    rd_kafka_error_t *fault =
        rd_kafka_produceva(p->client.rk, vus, letter->headers ? n : n - 1);
    rd_kafka_resp_err_t code;

    if (!fault) {
        letter->headers = NULL;
        return true;
    }
    code = rd_kafka_error_code(fault);
    rd_kafka_error_destroy(fault);
    if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL)
        return false;
    if (code == RD_KAFKA_RESP_ERR__FATAL)
        p->is_fatal = true;
    letter->refused = code;
    list_append(&p->refused, &letter->link);
    wait_a_little(p, 0.);
    return true;
}

static void hand_over_waiting(struct kafka_producer *p)
{
    list_foreach_safe(item, &p->waiting) {
        struct letter *letter = CONTAINER_OF(item, struct letter, link);

        list_remove(item);
        if (!hand_over(p, letter)) {
            list_insert(p->waiting.next, item);
            wait_a_little(p, 0.05);
            return;
        }
    }
}

/* A callback may produce again: its letter is then for the next turn. */
static void answer_refused(struct kafka_producer *p)
{
    list_foreach_safe(item, &p->refused) {
        struct letter *letter = CONTAINER_OF(item, struct letter, link);

        list_remove(item);
        finish(p, letter, letter->refused);
    }
}

static bool open_client(struct kafka_producer *p, struct err *err);

/* Everything the dead producer held comes back as failed by its purge. */
static void replace(struct kafka_producer *p)
{
    struct err err;

    rd_kafka_purge(p->client.rk,
                   RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    rd_kafka_flush(p->client.rk, 1000);
    kafka_topics_cancel(&p->creations);
    kafka_wake_fini(&p->wake);
    rd_kafka_destroy(p->client.rk);
    p->client.rk = NULL;
    p->is_fatal = false;
    log_warn("producer replaced after a fatal error", "%s", "");
    CHECK(open_client(p, &err)); /* the same settings worked before */
}

static void serve(struct kafka_producer *p)
{
    rd_kafka_poll(p->client.rk, 0);
    if (p->is_fatal || rd_kafka_fatal_error(p->client.rk, NULL, 0))
        replace(p);
    hand_over_waiting(p);
}

static void on_ready(void *arg)
{
    serve(arg);
}

static void on_retry(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    struct kafka_producer *p = timer->data;

    answer_refused(p);
    serve(p);
}

static rd_kafka_headers_t *headers_of(const struct kafka_header *headers,
                                      size_t n)
{
    rd_kafka_headers_t *list;

    if (n == 0)
        return NULL;
    list = rd_kafka_headers_new(n);
    for (size_t i = 0; i < n; i++)
        rd_kafka_header_add(list, headers[i].name.ptr,
                            (ssize_t)headers[i].name.len, headers[i].value.ptr,
                            (ssize_t)headers[i].value.len);
    return list;
}

static struct slice keep(char **at, struct slice from)
{
    struct slice kept = {from.ptr ? *at : NULL, from.len};

    if (from.ptr && from.len)
        memcpy(*at, from.ptr, from.len);
    *at += from.len;
    return kept;
}

void kafka_produce(struct kafka_producer *p, const char *topic,
                   int32_t partition, struct slice key, struct slice value,
                   const struct kafka_header *headers, size_t nheaders,
                   kafka_delivery_fn *cb, void *arg)
{
    struct letter *letter = xcalloc(1, sizeof(*letter) + key.len + value.len);
    char *at = letter->bytes;

    list_init(&letter->link);
    letter->cb = cb;
    letter->arg = arg;
    letter->topic = xstrdup(topic);
    letter->partition = partition < 0 ? RD_KAFKA_PARTITION_UA : partition;
    letter->key = keep(&at, key);
    letter->value = keep(&at, value);
    letter->headers = headers_of(headers, nheaders);
    p->pending++;
    if (p->is_ended)
        list_append(&p->late, &letter->link);
    else if (!list_is_empty(&p->waiting) || !hand_over(p, letter)) {
        list_append(&p->waiting, &letter->link);
        wait_a_little(p, 0.05);
    }
}

size_t kafka_producer_pending(const struct kafka_producer *p)
{
    return p->pending;
}

rd_kafka_t *kafka_producer_handle(struct kafka_producer *p)
{
    return p->client.rk;
}

bool kafka_producer_is_embedded(const struct kafka_producer *p)
{
    return p->settings.incarnation && *p->settings.incarnation;
}

struct list *kafka_producer_creations(struct kafka_producer *p)
{
    return &p->creations;
}

struct ev_loop *kafka_producer_loop(const struct kafka_producer *p)
{
    return p->loop;
}

bool kafka_producer_connected(const struct kafka_producer *p)
{
    return p->client.connected;
}

static bool open_client(struct kafka_producer *p, struct err *err)
{
    rd_kafka_conf_t *conf =
        kafka_conf_new(&p->settings, defaults, &p->client, err);

    if (!conf)
        return false;
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    if (!kafka_client_open(&p->client, RD_KAFKA_PRODUCER, conf, err))
        return false;
    kafka_wake_init(&p->wake, p->loop, rd_kafka_queue_get_main(p->client.rk),
                    on_ready, p);
    return true;
}

static char *copy(const char *text)
{
    return xstrdup(text ? text : "");
}

struct kafka_producer *kafka_producer_new(struct ev_loop *loop,
                                          const struct kafka_settings *settings,
                                          struct err *err)
{
    struct kafka_producer *p = xcalloc(1, sizeof(*p));

    p->loop = loop;
    p->settings = *settings;
    p->settings.brokers = copy(settings->brokers);
    p->settings.client_id = copy(settings->client_id);
    p->settings.rdkafka = json_deep_copy(settings->rdkafka);
    list_init(&p->waiting);
    list_init(&p->refused);
    list_init(&p->creations);
    list_init(&p->late);
    ev_timer_init(&p->retry, on_retry, 0., 0.);
    p->retry.data = p;
    if (open_client(p, err))
        return p;
    kafka_producer_free(p, 0);
    return NULL;
}

void kafka_producer_end(struct kafka_producer *p, int timeout_ms)
{
    if (!p || p->is_ended)
        return;
    if (p->client.rk)
        hand_over_waiting(p);
    p->is_ended = true;
    if (p->client.rk) {
        rd_kafka_flush(p->client.rk, timeout_ms);
        rd_kafka_purge(p->client.rk,
                       RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_flush(p->client.rk, 1000);
    }
    list_foreach_safe(item, &p->waiting) {
        struct letter *letter = CONTAINER_OF(item, struct letter, link);

        list_remove(item);
        letter->refused = RD_KAFKA_RESP_ERR__PURGE_QUEUE;
        list_append(&p->refused, item);
    }
    answer_refused(p);
    kafka_topics_cancel(&p->creations);
    ev_timer_stop(p->loop, &p->retry);
}

void kafka_producer_free(struct kafka_producer *p, int timeout_ms)
{
    if (!p)
        return;
    kafka_producer_end(p, timeout_ms);
    list_foreach_safe(item, &p->late) {
        list_remove(item);
        letter_free(p, CONTAINER_OF(item, struct letter, link));
    }
    if (p->client.rk) {
        kafka_wake_fini(&p->wake);
        rd_kafka_destroy(p->client.rk);
    }
    free((char *)(uintptr_t)p->settings.brokers);
    free((char *)(uintptr_t)p->settings.client_id);
    json_decref((json_t *)(uintptr_t)p->settings.rdkafka);
    free(p);
}
