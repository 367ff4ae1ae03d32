#include "kafka/consumer.h"

#include "base/mem.h"
#include "kafka/consumer_priv.h"
#include "kafka/lookup.h"

#include <stdlib.h>

rd_kafka_topic_partition_list_t *
kafka_part_list(struct kafka_part *const *parts, const int64_t *offsets,
                size_t n)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new((int)n);

    for (size_t i = 0; i < n; i++)
        rd_kafka_topic_partition_list_add(list, parts[i]->topic,
                                          parts[i]->partition)
            ->offset = offsets[i];
    return list;
}

/* --- offsets -------------------------------------------------------------- */

void kafka_consumer_commit(struct kafka_consumer *c,
                           struct kafka_part *const *parts,
                           const int64_t *offsets, size_t n)
{
    rd_kafka_topic_partition_list_t *list = kafka_part_list(parts, offsets, n);

    rd_kafka_commit_queue(c->client.rk, list, c->commits.queue, NULL, NULL);
    rd_kafka_topic_partition_list_destroy(list);
}

static void on_commits(void *arg)
{
    struct kafka_consumer *c = arg;
    rd_kafka_event_t *event;

    while ((event = rd_kafka_queue_poll(c->commits.queue, 0))) {
        rd_kafka_resp_err_t code = rd_kafka_event_error(event);
        struct err err;

        if (code == RD_KAFKA_RESP_ERR_NO_ERROR ||
            code == RD_KAFKA_RESP_ERR__NO_OFFSET) {
            c->ops->on_committed(c->arg, NULL);
        } else {
            kafka_err(&err, code, "commit");
            c->ops->on_committed(c->arg, &err);
        }
        rd_kafka_event_destroy(event);
    }
}

int64_t kafka_consumer_end(const struct kafka_consumer *c,
                           const struct kafka_part *part)
{
    int64_t low, high;

    if (rd_kafka_get_watermark_offsets(c->client.rk, part->topic,
                                       part->partition, &low, &high) ||
        high < 0)
        return -1;
    return high;
}

bool kafka_consumer_paused(const struct kafka_part *part)
{
    return ((const struct part *)(const void *)part)->paused;
}

bool kafka_consumer_connected(const struct kafka_consumer *c)
{
    return c->client.connected;
}

static void on_fatal(void *arg, const struct err *err)
{
    struct kafka_consumer *c = arg;

    if (!c->closing)
        c->ops->on_fatal(c->arg, err);
}

/* --- life ----------------------------------------------------------------- */

static const char *const defaults[] = {
    "enable.auto.commit",
    "false",
    "enable.auto.offset.store",
    "false",
    "auto.offset.reset",
    "error",
    "enable.partition.eof",
    "true",
    "isolation.level",
    "read_committed",
    "fetch.queue.backoff.ms",
    "1",
    "fetch.wait.max.ms",
    "100",
    "fetch.error.backoff.ms",
    "200",
    "queued.max.messages.kbytes",
    "4096",
    "queued.min.messages",
    "20000",
    "fetch.message.max.bytes",
    "262144",
    "fetch.max.bytes",
    "1048576",
    NULL,
};

static bool put_group(rd_kafka_conf_t *conf,
                      const struct kafka_settings *settings, struct err *err)
{
    rd_kafka_conf_set_rebalance_cb(conf, assignment_noted);
    if (settings->instance_id && *settings->instance_id &&
        !kafka_conf_put(conf, "group.instance.id", settings->instance_id, err))
        return false;
    return kafka_conf_put(conf, "group.id", settings->group_id, err);
}

static void watch(struct kafka_consumer *c)
{
    rd_kafka_poll_set_consumer(c->client.rk);
    kafka_wake_init(&c->wake, c->loop,
                    rd_kafka_queue_get_consumer(c->client.rk), fetch_ready, c);
    kafka_wake_init(&c->commits, c->loop, rd_kafka_queue_new(c->client.rk),
                    on_commits, c);
    c->lookup = kafka_lookup_new(c->loop, c->client.rk);
}

static bool subscribe(struct kafka_consumer *c,
                      const struct kafka_settings *settings, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(
        (int)json_array_size(settings->topics));
    rd_kafka_resp_err_t code;
    json_t *topic;
    size_t i;

    json_array_foreach(settings->topics, i, topic)
        rd_kafka_topic_partition_list_add(list, json_string_value(topic),
                                          RD_KAFKA_PARTITION_UA);
    code = rd_kafka_subscribe(c->client.rk, list);
    rd_kafka_topic_partition_list_destroy(list);
    return code ? kafka_err(err, code, "kafka.topics") : true;
}

struct kafka_consumer *kafka_consumer_new(struct ev_loop *loop,
                                          const struct kafka_settings *settings,
                                          const struct kafka_consumer_ops *ops,
                                          void *arg, struct err *err)
{
    struct kafka_consumer *c = xcalloc(1, sizeof(*c));
    rd_kafka_conf_t *conf;

    c->loop = loop;
    c->ops = ops;
    c->arg = arg;
    c->client.on_fatal = on_fatal;
    c->incarnation =
        xstrdup(settings->incarnation ? settings->incarnation : "");
    fetch_init(c);
    assignment_init(c);
    conf = kafka_conf_new(settings, defaults, &c->client, err);
    if (!conf)
        goto fail;
    if (!put_group(conf, settings, err)) {
        rd_kafka_conf_destroy(conf);
        goto fail;
    }
    if (!kafka_client_open(&c->client, RD_KAFKA_CONSUMER, conf, err))
        goto fail;
    watch(c);
    if (!subscribe(c, settings, err))
        goto fail;
    return c;

fail:
    kafka_consumer_free(c);
    return NULL;
}

void kafka_consumer_free(struct kafka_consumer *c)
{
    if (!c)
        return;
    c->closing = true;
    fetch_stop(c);
    assignment_fini(c);
    if (c->client.rk) {
        bool has_left = kafka_client_leave(c->client.rk);

        kafka_wake_fini(&c->wake);
        kafka_wake_fini(&c->commits);
        kafka_lookup_free(c->lookup);
        kafka_client_end(c->client.rk, has_left);
    }
    if (c->offered)
        rd_kafka_topic_partition_list_destroy(c->offered);
    free(c->incarnation);
    free(c->stash);
    free(c);
}
