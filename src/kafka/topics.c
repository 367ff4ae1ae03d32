#include "kafka/topics.h"

#include "base/check.h"
#include "base/list.h"
#include "base/mem.h"
#include "kafka/client_internal.h"
#include "kafka/producer_internal.h"

#include <stdlib.h>

/* --- making ------------------------------------------------------------------ */

struct creation {
    struct list link; /* of the producer */
    struct kafka_wake wake;
    ev_timer at_once; /* there is nothing to ask */
    kafka_topic_fn *fn;
    void *arg;
    struct ev_loop *loop;
};

static rd_kafka_resp_err_t result_of(const rd_kafka_event_t *event,
                                     const char **text)
{
    const rd_kafka_topic_result_t **results;
    size_t n;

    *text = rd_kafka_event_error_string((rd_kafka_event_t *)(uintptr_t)event);
    if (rd_kafka_event_error((rd_kafka_event_t *)(uintptr_t)event))
        return rd_kafka_event_error((rd_kafka_event_t *)(uintptr_t)event);
    results = rd_kafka_CreateTopics_result_topics(
        rd_kafka_event_CreateTopics_result(
            (rd_kafka_event_t *)(uintptr_t)event),
        &n);
    CHECK(n == 1);
    *text = rd_kafka_topic_result_error_string(results[0]);
    return rd_kafka_topic_result_error(results[0]);
}

static void finish(struct creation *creation, const struct err *err)
{
    list_remove(&creation->link);
    ev_timer_stop(creation->loop, &creation->at_once);
    kafka_wake_fini(&creation->wake);
    creation->fn(creation->arg, err);
    free(creation);
}

static void on_created(void *arg)
{
    struct creation *creation = arg;
    rd_kafka_event_t *event = rd_kafka_queue_poll(creation->wake.queue, 0);
    rd_kafka_resp_err_t code;
    const char *text;
    struct err err;

    if (!event)
        return;
    code = result_of(event, &text);
    if (code == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
        code = RD_KAFKA_RESP_ERR_NO_ERROR;
    if (code)
        err_code(&err, ERR_RETRIABLE, rd_kafka_err2name(code),
                 "cannot make the topic: %s", text ? text : "");
    rd_kafka_event_destroy(event);
    finish(creation, code ? &err : NULL);
}

void kafka_topics_cancel(struct list *creations)
{
    struct err err;

    err_code(&err, ERR_RETRIABLE, "_DESTROY", "the producer is closing");
    list_foreach_safe(item, creations)
        finish(CONTAINER_OF(item, struct creation, link), &err);
}

static void ask(struct kafka_producer *p, struct creation *creation,
                const char *topic, int partitions, bool is_compacted)
{
    rd_kafka_t *rk = kafka_producer_handle(p);
    char text[256];
    rd_kafka_NewTopic_t *fresh = rd_kafka_NewTopic_new(
        topic, partitions > 0 ? partitions : -1, -1, text, sizeof(text));
    rd_kafka_AdminOptions_t *options =
        rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);

    CHECK(fresh);
    if (is_compacted)
        rd_kafka_NewTopic_set_config(fresh, "cleanup.policy", "compact");
    rd_kafka_AdminOptions_set_request_timeout(options, 10000, text,
                                              sizeof(text));
    kafka_wake_init(&creation->wake, creation->loop, rd_kafka_queue_new(rk),
                    on_created, creation);
    rd_kafka_CreateTopics(rk, &fresh, 1, options, creation->wake.queue);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_NewTopic_destroy(fresh);
}

static void on_there(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    finish(timer->data, NULL);
}

void kafka_topic_create(struct kafka_producer *p, const char *topic,
                        int partitions, bool is_compacted, kafka_topic_fn *fn,
                        void *arg)
{
    struct creation *creation = xcalloc(1, sizeof(*creation));

    list_append(kafka_producer_creations(p), &creation->link);
    creation->fn = fn;
    creation->arg = arg;
    creation->loop = kafka_producer_loop(p);
    ev_timer_init(&creation->at_once, on_there, 0., 0.);
    creation->at_once.data = creation;
    if (kafka_producer_is_embedded(p))
        ev_timer_start(creation->loop, &creation->at_once);
    else
        ask(p, creation, topic, partitions, is_compacted);
}

/* --- reading --------------------------------------------------------------------- */

struct kafka_reading {
    struct kafka_client client; /* first: librdkafka's opaque */
    struct kafka_wake wake;
    ev_timer end; /* frees outside of librdkafka's callbacks */
    kafka_reading_fn *record;
    kafka_read_fn *done;
    void *arg;
    bool failed;
    struct err err;
};

static const char *const defaults[] = {
    "enable.partition.eof",
    "true",
    "auto.offset.reset",
    "earliest",
    "enable.auto.commit",
    "false",
    "isolation.level",
    "read_committed",
    "fetch.wait.max.ms",
    "10",
    "allow.auto.create.topics",
    "false",
    NULL,
};

void kafka_reading_cancel(struct kafka_reading *r)
{
    bool has_left;

    if (!r)
        return;
    ev_timer_stop(r->wake.loop, &r->end);
    kafka_wake_fini(&r->wake);
    has_left = kafka_client_leave(r->client.rk);
    kafka_client_end(r->client.rk, has_left);
    free(r);
}

static void on_end(UNUSED struct ev_loop *loop, ev_timer *timer,
                   UNUSED int events)
{
    struct kafka_reading *r = timer->data;
    kafka_read_fn *done = r->done;
    void *arg = r->arg;
    bool failed = r->failed;
    struct err err = r->err;

    kafka_reading_cancel(r);
    done(arg, failed ? &err : NULL);
}

static void end(struct kafka_reading *r)
{
    ev_timer_start(r->wake.loop, &r->end);
}

static void take(struct kafka_reading *r, const rd_kafka_message_t *m)
{
    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        end(r);
    } else if (m->err) {
        r->failed = true;
        kafka_err(&r->err, m->err, rd_kafka_message_errstr(m));
        end(r);
    } else {
        r->record(r->arg, (struct slice){m->key, m->key_len},
                  (struct slice){m->payload, m->len});
    }
}

static void on_ready(void *arg)
{
    struct kafka_reading *r = arg;
    rd_kafka_message_t *m;

    while (!ev_is_active(&r->end) &&
           (m = rd_kafka_consumer_poll(r->client.rk, 0))) {
        take(r, m);
        rd_kafka_message_destroy(m);
    }
}

struct kafka_reading *
kafka_read_topic(struct ev_loop *loop, const struct kafka_settings *settings,
                 const char *topic, kafka_reading_fn *record,
                 kafka_read_fn *done, void *arg, struct err *err)
{
    struct kafka_reading *r = xcalloc(1, sizeof(*r));
    struct kafka_settings plain = *settings;
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_conf_t *conf;

    plain.on_state = NULL;
    conf = kafka_conf_new(&plain, defaults, &r->client, err);
    if (conf && !kafka_conf_put(conf, "group.id", settings->group_id, err)) {
        rd_kafka_conf_destroy(conf);
        conf = NULL;
    }
    if (!conf || !kafka_client_open(&r->client, RD_KAFKA_CONSUMER, conf, err)) {
        free(r);
        return NULL;
    }
    r->record = record;
    r->done = done;
    r->arg = arg;
    ev_timer_init(&r->end, on_end, 0., 0.);
    r->end.data = r;
    rd_kafka_poll_set_consumer(r->client.rk);
    kafka_wake_init(&r->wake, loop, rd_kafka_queue_get_consumer(r->client.rk),
                    on_ready, r);
    list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, topic, 0)->offset =
        RD_KAFKA_OFFSET_BEGINNING;
    rd_kafka_assign(r->client.rk, list);
    rd_kafka_topic_partition_list_destroy(list);
    return r;
}
