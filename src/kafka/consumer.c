/*
 * One librdkafka queue carries records, rebalances, errors and statistics. It
 * speaks up only when it turns from empty to non-empty, so it is read until it
 * is empty: a batch a turn of the loop, so that a batch goes on to the workers,
 * and what the one before it used comes free, while both are in the caches.
 *
 * A record that its owner refuses goes to the stash with all later ones of its
 * partition. While the stash holds anything of a partition that is not paused,
 * nothing more is read. PATIENCE later the full partitions are paused and
 * reading goes on for the others; their stash stays until there is room.
 */
#include "kafka/consumer.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/client_internal.h"
#include "kafka/lookup.h"

#include <stdlib.h>
#include <string.h>

#define BATCH            500 /* records a call */
#define TURNS            1   /* batches before other watchers get their turn */
#define STARVED_PATIENCE 1.  /* seconds without any room: then pause all */
#define PATIENCE         0.1 /* seconds a full partition may hold up the others */

static const char component[] = "kafka";

enum membership {
    MEMBER_NOTHING,  /* no assignment */
    MEMBER_NAMING,   /* finding out which topics these are */
    MEMBER_OFFERED,  /* announced; the owner has to call assign */
    MEMBER_ASSIGNED, /* records flow */
    MEMBER_REVOKED,  /* announced; the owner has to call unassign */
};

struct part {
    struct kafka_part pub; /* first: a kafka_part is a part */
    bool full;             /* its last record was refused */
    bool paused;           /* in librdkafka */
    uint64_t seek_batch;   /* messages of this batch are from before a seek */
    int64_t end;           /* it ended here and nothing came since, or -1 */
};

struct slot {
    const rd_kafka_topic_t *topic;
    struct part *part;
};

struct kept {
    rd_kafka_message_t *message;
    struct part *part;
};

struct kafka_consumer {
    struct kafka_client client; /* first: librdkafka's opaque */
    struct ev_loop *loop;
    bool is_starved; /* ops->room() said 0 */
    bool all_paused; /* for so long that every part was paused */
    const struct kafka_consumer_ops *ops;
    void *arg;
    struct kafka_wake wake, commits;
    struct kafka_lookup *lookup;
    char *incarnation;
    ev_timer again;    /* the queue was not empty when our turn ended */
    ev_timer patience; /* since the stash keeps us from reading */

    enum membership membership;
    uint64_t generation;
    struct part **parts;
    size_t nparts;
    struct slot *slots; /* (topic, partition) -> part, open addressing */
    size_t nslots;      /* a power of two */

    uint64_t batches; /* read so far */
    struct kept *stash;
    size_t stashed, stash_cap;

    /* Left by the rebalance callback for the loop. */
    rd_kafka_topic_partition_list_t *offered;
    bool revoke, lost;
    bool closing;
};

static struct part *part_of(struct kafka_part *pub)
{
    return (struct part *)(void *)pub;
}

/* --- assignment ----------------------------------------------------------- */

/* Only notes what happened; serve_rebalance() tells the owner. */
static void on_rebalance(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                         rd_kafka_topic_partition_list_t *parts, void *opaque)
{
    struct kafka_consumer *c = opaque;

    if (c->closing) {
        rd_kafka_assign(rk, NULL);
    } else if (code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
        if (c->offered)
            rd_kafka_topic_partition_list_destroy(c->offered);
        c->offered = rd_kafka_topic_partition_list_copy(parts);
    } else if (code == RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS) {
        c->revoke = true;
        c->lost = rd_kafka_assignment_lost(rk);
    } else {
        log_warn("rebalance failed", "code=%s", rd_kafka_err2name(code));
        c->revoke = c->lost = true;
    }
}

static void make_parts(struct kafka_consumer *c,
                       const rd_kafka_topic_partition_list_t *list)
{
    CHECK(c->nparts == 0);
    c->nparts = (size_t)list->cnt;
    c->parts = xcalloc(c->nparts + 1, sizeof(struct part *));
    c->generation++;
    for (size_t i = 0; i < c->nparts; i++) {
        struct part *part = xcalloc(1, sizeof(*part));

        part->end = -1;
        part->pub.topic = xstrdup(list->elems[i].topic);
        part->pub.partition = list->elems[i].partition;
        part->pub.generation = c->generation;
        c->parts[i] = part;
    }
    c->nslots = 16;
    while (c->nslots < 4 * c->nparts)
        c->nslots *= 2;
    c->slots = xcalloc(c->nslots, sizeof(struct slot));
}

static void drop_parts(struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->stashed; i++)
        rd_kafka_message_destroy(c->stash[i].message);
    c->stashed = 0;
    ev_timer_stop(c->loop, &c->patience);
    if (c->lookup)
        kafka_lookup_cancel(c->lookup);
    for (size_t i = 0; i < c->nparts; i++) {
        free((char *)(uintptr_t)c->parts[i]->pub.topic);
        free(c->parts[i]->pub.source_id);
        free(c->parts[i]);
    }
    free(c->parts);
    free(c->slots);
    c->parts = NULL;
    c->slots = NULL;
    c->nparts = c->nslots = 0;
}

static void serve_revoke(struct kafka_consumer *c)
{
    bool lost = c->lost;

    c->revoke = c->lost = false;
    if (c->membership <= MEMBER_NAMING) {
        drop_parts(c);
        c->membership = MEMBER_NOTHING;
        rd_kafka_assign(c->client.rk, NULL);
        return;
    }
    log_info("partitions revoked", "count=%zu generation=%llu lost=%d",
             c->nparts, (unsigned long long)c->generation, lost);
    c->membership = MEMBER_REVOKED;
    c->ops->on_revoked(c->arg, lost);
}

/* Tell the owner, who reads its positions and calls assign. */
static void announce(struct kafka_consumer *c)
{
    log_info("partitions assigned", "count=%zu generation=%llu", c->nparts,
             (unsigned long long)c->generation);
    c->membership = MEMBER_OFFERED;
    c->ops->on_assigned(c->arg, (struct kafka_part **)(void *)c->parts,
                        c->nparts);
}

static void on_ids(void *arg, char *const *ids)
{
    struct kafka_consumer *c = arg;

    for (size_t i = 0; i < c->nparts; i++)
        c->parts[i]->pub.source_id = xstrdup(ids[i]);
    announce(c);
}

/* The embedded broker knows no topic ids; its incarnation is as good. */
static void name_embedded(struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->nparts; i++)
        c->parts[i]->pub.source_id =
            xasprintf("embedded/%s/%s", c->parts[i]->pub.topic, c->incarnation);
    announce(c);
}

/* Same name, other topic id: the topic was deleted and made again. */
static void name_parts(struct kafka_consumer *c)
{
    const char **topics = xcalloc(c->nparts + 1, sizeof(*topics));

    for (size_t i = 0; i < c->nparts; i++)
        topics[i] = c->parts[i]->pub.topic;
    if (*c->incarnation || c->nparts == 0)
        name_embedded(c);
    else
        kafka_lookup_ids(c->lookup, topics, c->nparts, on_ids, c);
    free(topics);
}

static void serve_offer(struct kafka_consumer *c)
{
    rd_kafka_topic_partition_list_t *list = c->offered;

    c->offered = NULL;
    drop_parts(c);
    make_parts(c, list);
    rd_kafka_topic_partition_list_destroy(list);
    c->membership = MEMBER_NAMING;
    name_parts(c);
}

/* A new offer waits until the owner has given the old parts back. */
static void serve_rebalance(struct kafka_consumer *c)
{
    if (c->revoke && c->membership != MEMBER_REVOKED)
        serve_revoke(c);
    if (c->offered && c->membership == MEMBER_NOTHING)
        serve_offer(c);
}

static rd_kafka_topic_partition_list_t *
list_of(struct kafka_part *const *parts, const int64_t *offsets, size_t n)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new((int)n);

    for (size_t i = 0; i < n; i++)
        rd_kafka_topic_partition_list_add(list, parts[i]->topic,
                                          parts[i]->partition)
            ->offset = offsets[i];
    return list;
}

void kafka_consumer_find(struct kafka_consumer *c,
                         struct kafka_part *const *parts, const bool *wants_end,
                         size_t n, kafka_found_fn *fn, void *arg)
{
    int64_t *specs = xcalloc(n + 1, sizeof(*specs));

    for (size_t i = 0; i < n; i++)
        specs[i] = wants_end[i] ? RD_KAFKA_OFFSET_SPEC_LATEST
                                : RD_KAFKA_OFFSET_SPEC_EARLIEST;
    kafka_lookup_bounds(c->lookup, list_of(parts, specs, n), fn, arg);
    free(specs);
}

bool kafka_consumer_assign(struct kafka_consumer *c, const int64_t *offsets,
                           struct err *err)
{
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_resp_err_t code;

    if (c->membership != MEMBER_OFFERED)
        return err_set(err, ERR_RETRIABLE, "the assignment is gone");
    list = list_of((struct kafka_part **)(void *)c->parts, offsets, c->nparts);
    code = rd_kafka_assign(c->client.rk, list);
    rd_kafka_topic_partition_list_destroy(list);
    if (code)
        return kafka_err(err, code, "assign");
    c->membership = MEMBER_ASSIGNED;
    return true;
}

void kafka_consumer_unassign(struct kafka_consumer *c)
{
    rd_kafka_assign(c->client.rk, NULL);
    drop_parts(c);
    c->membership = MEMBER_NOTHING;
    serve_rebalance(c);
}

/* --- records -------------------------------------------------------------- */

static struct part *search(const struct kafka_consumer *c, const char *topic,
                           int32_t partition)
{
    for (size_t i = 0; i < c->nparts; i++)
        if (c->parts[i]->pub.partition == partition &&
            strcmp(c->parts[i]->pub.topic, topic) == 0)
            return c->parts[i];
    return NULL;
}

/* The part of a message, or NULL when it belongs to an earlier assignment. */
static struct part *find_part(struct kafka_consumer *c,
                              const rd_kafka_message_t *m)
{
    size_t mask = c->nslots - 1;
    size_t at;

    if (!c->nslots)
        return NULL;
    at = hash_mix((uintptr_t)m->rkt, (uint64_t)m->partition) & mask;
    while (c->slots[at].part) {
        if (c->slots[at].topic == m->rkt &&
            c->slots[at].part->pub.partition == m->partition)
            return c->slots[at].part;
        at = (at + 1) & mask;
    }
    c->slots[at].part = search(c, rd_kafka_topic_name(m->rkt), m->partition);
    c->slots[at].topic = m->rkt;
    return c->slots[at].part;
}

static void stash(struct kafka_consumer *c, struct part *part,
                  rd_kafka_message_t *m)
{
    if (c->stashed == c->stash_cap) {
        c->stash_cap = c->stash_cap ? 2 * c->stash_cap : BATCH;
        c->stash = xrealloc(c->stash, c->stash_cap * sizeof(*c->stash));
    }
    c->stash[c->stashed++] = (struct kept){m, part};
}

/* true when the owner has taken the record; the message is ours either way. */
static bool offer(struct kafka_consumer *c, struct part *part,
                  const rd_kafka_message_t *m)
{
    struct kafka_record record = {
        .part = &part->pub,
        .offset = m->offset,
        .timestamp_ms = rd_kafka_message_timestamp(m, NULL),
        .key = {m->key, m->key_len},
        .value = {m->payload, m->len},
        .message = m,
    };

    part->full = !c->ops->on_record(c->arg, &record);
    return !part->full;
}

static void on_record_error(struct kafka_consumer *c,
                            const rd_kafka_message_t *m)
{
    struct part *part = m->rkt ? find_part(c, m) : NULL;
    struct err err;

    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        if (part)
            part->end = m->offset;
        if (part && !part->full)
            c->ops->on_end(c->arg, &part->pub, m->offset);
        return;
    }
    kafka_err(&err, m->err, rd_kafka_message_errstr(m));
    switch ((int)m->err) {
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        if (part) {
            err_wrap(&err, "at offset %lld", (long long)m->offset);
            c->ops->on_part_error(c->arg, &part->pub, &err);
            break;
        }
        /* fall through */
    default:
        log_warn("consumer error", "topic=%s code=%s err=" LOG_Q,
                 m->rkt ? rd_kafka_topic_name(m->rkt) : "", err.code, err.msg);
    }
}

static void take(struct kafka_consumer *c, rd_kafka_message_t *m)
{
    struct part *part = m->err ? NULL : find_part(c, m);

    if (part)
        part->end = -1;
    if (m->err)
        on_record_error(c, m);
    else if (part && part->seek_batch != c->batches &&
             (part->full || !offer(c, part, m))) {
        stash(c, part, m);
        return;
    }
    rd_kafka_message_destroy(m);
}

/* Does the stash keep us from reading? Not for partitions that are paused. */
static bool is_choked(const struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->stashed; i++)
        if (!c->stash[i].part->paused)
            return true;
    return false;
}

/* In the next turn of the loop, after everybody else had theirs. */
static void read_soon(struct kafka_consumer *c)
{
    ev_timer_set(&c->again, 0., 0.);
    ev_timer_start(c->loop, &c->again);
}

static void choke(struct kafka_consumer *c)
{
    if (!c->all_paused && !ev_is_active(&c->patience)) {
        ev_timer_set(&c->patience, c->is_starved ? STARVED_PATIENCE : PATIENCE,
                     0.);
        ev_timer_start(c->loop, &c->patience);
    }
}

/* A resumed partition is fetched from after the last message that was taken,
 * and a batch counts the news of the end as one: a record would be skipped. */
static void resume(struct kafka_consumer *c, const struct part *part,
                   rd_kafka_topic_partition_list_t *list)
{
    rd_kafka_resume_partitions(c->client.rk, list);
    if (part->end < 0)
        return;
    list->elems[0].offset = part->end;
    rd_kafka_error_destroy(rd_kafka_seek_partitions(c->client.rk, list, 0));
}

static void set_paused(struct kafka_consumer *c, struct part *part, bool paused)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new(1);

    if (part->paused == paused)
        goto out;
    part->paused = paused;
    rd_kafka_topic_partition_list_add(list, part->pub.topic,
                                      part->pub.partition);
    if (paused)
        rd_kafka_pause_partitions(c->client.rk, list);
    else
        resume(c, part, list);
    log_debug(paused ? "partition paused" : "partition resumed",
              "topic=%s partition=%d", part->pub.topic, part->pub.partition);
out:
    rd_kafka_topic_partition_list_destroy(list);
}

/* Offer what the stash holds, in order; what is refused stays. */
static void offer_stash(struct kafka_consumer *c)
{
    size_t left = 0;

    for (size_t i = 0; i < c->stashed; i++) {
        struct kept kept = c->stash[i];

        if (kept.part->full || !offer(c, kept.part, kept.message))
            c->stash[left++] = kept;
        else
            rd_kafka_message_destroy(kept.message);
    }
    c->stashed = left;
}

/* Partitions with room again, and nothing left in the stash. */
static void resume_parts(struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->nparts; i++)
        if (c->parts[i]->paused && !c->parts[i]->full)
            set_paused(c, c->parts[i], false);
}

/* Records that the next batch may bring. With all parts paused what comes is
 * stashed and events of the group only: those are always taken. */
static size_t room_for(struct kafka_consumer *c)
{
    size_t room = c->all_paused ? BATCH : c->ops->room(c->arg);

    c->is_starved = room == 0;
    return room < BATCH ? room : BATCH;
}

static ssize_t read_batch(struct kafka_consumer *c, size_t room)
{
    rd_kafka_message_t *batch[BATCH];
    ssize_t n;

    c->batches++;
    n = rd_kafka_consume_batch_queue(c->wake.queue, 0, batch, room);
    for (ssize_t i = 0; i < n; i++)
        take(c, batch[i]);
    serve_rebalance(c);
    return n;
}

static void read_queue(struct kafka_consumer *c)
{
    ssize_t n = 0;
    size_t room;

    if (c->stashed && room_for(c) > 0) {
        offer_stash(c);
        resume_parts(c);
    }
    if (!is_choked(c) && (room = room_for(c)) > 0)
        n = read_batch(c, room);
    if (is_choked(c) || c->is_starved) {
        choke(c);
        return;
    }
    ev_timer_stop(c->loop, &c->patience);
    if (n > 0)
        read_soon(c);
}

static void on_ready(void *arg)
{
    read_queue(arg);
}

static void on_again(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    read_queue(timer->data);
}

static void on_patience(UNUSED struct ev_loop *loop, ev_timer *timer,
                        UNUSED int events)
{
    struct kafka_consumer *c = timer->data;

    for (size_t i = 0; i < c->stashed; i++)
        set_paused(c, c->stash[i].part, true);
    if (c->is_starved) {
        c->all_paused = true;
        for (size_t i = 0; i < c->nparts; i++) {
            c->parts[i]->full = true;
            set_paused(c, c->parts[i], true);
        }
    }
    read_queue(c);
}

void kafka_consumer_wake(struct kafka_consumer *c)
{
    if (c->all_paused) {
        c->all_paused = false;
        for (size_t i = 0; i < c->nparts; i++)
            c->parts[i]->full = false;
        resume_parts(c);
    }
    c->is_starved = false;
    ev_timer_stop(c->loop, &c->patience); /* it counts from the next refusal */
    read_soon(c);
}

void kafka_consumer_continue(struct kafka_consumer *c, struct kafka_part *pub)
{
    struct part *part = part_of(pub);

    if (!part->full)
        return;
    part->full = false;
    read_soon(c);
}

/* --- offsets -------------------------------------------------------------- */

void kafka_consumer_commit(struct kafka_consumer *c,
                           struct kafka_part *const *parts,
                           const int64_t *offsets, size_t n)
{
    rd_kafka_topic_partition_list_t *list = list_of(parts, offsets, n);

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

static void unstash(struct kafka_consumer *c, const struct part *part)
{
    size_t left = 0;

    for (size_t i = 0; i < c->stashed; i++) {
        if (c->stash[i].part == part)
            rd_kafka_message_destroy(c->stash[i].message);
        else
            c->stash[left++] = c->stash[i];
    }
    c->stashed = left;
}

/* What librdkafka has queued of before it drops by itself; what we hold of it
 * (stash, the batch being read) is dropped here. */
bool kafka_consumer_seek(struct kafka_consumer *c, struct kafka_part *pub,
                         int64_t offset, struct err *err)
{
    struct part *part = part_of(pub);
    rd_kafka_topic_partition_list_t *list = list_of(&pub, &offset, 1);
    rd_kafka_error_t *fault = rd_kafka_seek_partitions(c->client.rk, list, 0);

    rd_kafka_topic_partition_list_destroy(list);
    part->end = -1;
    unstash(c, part);
    part->seek_batch = c->batches;
    part->full = false;
    set_paused(c, part, false);
    read_soon(c);
    if (!fault)
        return true;
    kafka_err(err, rd_kafka_error_code(fault), "seek");
    rd_kafka_error_destroy(fault);
    return false;
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

void kafka_record_headers(const struct kafka_record *record,
                          kafka_header_fn *fn, void *arg)
{
    rd_kafka_headers_t *headers;
    const char *name;
    const void *value;
    size_t len;

    if (rd_kafka_message_headers(record->message, &headers))
        return;
    for (size_t i = 0;
         !rd_kafka_header_get_all(headers, i, &name, &value, &len); i++)
        fn(arg, name, (struct slice){value, len});
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
    rd_kafka_conf_set_rebalance_cb(conf, on_rebalance);
    if (settings->instance_id && *settings->instance_id &&
        !kafka_conf_put(conf, "group.instance.id", settings->instance_id, err))
        return false;
    return kafka_conf_put(conf, "group.id", settings->group_id, err);
}

static void watch(struct kafka_consumer *c)
{
    rd_kafka_poll_set_consumer(c->client.rk);
    kafka_wake_init(&c->wake, c->loop,
                    rd_kafka_queue_get_consumer(c->client.rk), on_ready, c);
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
    c->incarnation =
        xstrdup(settings->incarnation ? settings->incarnation : "");
    ev_timer_init(&c->again, on_again, 0., 0.);
    ev_timer_init(&c->patience, on_patience, PATIENCE, 0.);
    c->again.data = c->patience.data = c;
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
    ev_timer_stop(c->loop, &c->again);
    drop_parts(c);
    if (c->client.rk) {
        rd_kafka_consumer_close(c->client.rk);
        kafka_wake_fini(&c->wake);
        kafka_wake_fini(&c->commits);
        kafka_lookup_free(c->lookup);
        rd_kafka_destroy(c->client.rk);
    }
    if (c->offered)
        rd_kafka_topic_partition_list_destroy(c->offered);
    free(c->incarnation);
    free(c->stash);
    free(c);
}
