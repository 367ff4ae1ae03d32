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
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/scan.h"
#include "kafka/consumer_priv.h"

#include <stdlib.h>
#include <string.h>

#define BATCH            500  /* records a turn */
#define PAGE_BYTES       4096 /* or more */
#define STARVED_PATIENCE 1.   /* seconds without any room: then pause all */
#define PATIENCE         0.1 /* seconds a full partition may hold up the others */

static const char component[] = "kafka";

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

/* Records of a fetch lie in one buffer, one behind the other: what is between
 * two that are this close, and the second one itself, can be read. */
static bool is_padded(const rd_kafka_message_t *m,
                      const rd_kafka_message_t *next)
{
    const char *end = (const char *)m->payload + m->len;

    return m->payload && next && next->payload &&
           (const char *)next->payload >= end &&
           (const char *)next->payload - end < PAGE_BYTES &&
           (const char *)next->payload + next->len - end >= SCAN_PADDING;
}

/* true when the owner has taken the record: the message is gone then. `next`
 * is another one, alive meanwhile, or NULL. */
static bool offer(struct kafka_consumer *c, struct part *part,
                  rd_kafka_message_t *m, const rd_kafka_message_t *next)
{
    struct kafka_record record = {
        .part = &part->pub,
        .offset = m->offset,
        .timestamp_ms = rd_kafka_message_timestamp(m, NULL),
        .key = {m->key, m->key_len},
        .value = {m->payload, m->len},
        .message = m,
        .is_padded = is_padded(m, next),
    };

    part->full = part->in_doubt || !c->ops->on_record(c->arg, &record);
    if (!part->full && record.message)
        rd_kafka_message_destroy(m);
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
        if (part && !part->full && !part->in_doubt)
            c->ops->on_end(c->arg, &part->pub, m->offset);
        return;
    }
    kafka_err(&err, m->err, rd_kafka_message_errstr(m));
    if (part && kafka_is_undecodable(m->err)) {
        c->ops->on_part_error(c->arg, &part->pub, m->offset, true, &err);
        return;
    }
    switch ((int)m->err) {
    case RD_KAFKA_RESP_ERR__FATAL: kafka_client_died(&c->client); break;
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        if (part) {
            err_wrap(&err, "at offset %lld", (long long)m->offset);
            c->ops->on_part_error(c->arg, &part->pub, m->offset, false, &err);
            assignment_doubt(c, part);
            break;
        }
        /* fall through */
    default:
        log_warn("consumer error", "topic=%s code=%s err=" LOG_Q,
                 m->rkt ? rd_kafka_topic_name(m->rkt) : "", err.code, err.msg);
    }
}

static void take(struct kafka_consumer *c, rd_kafka_message_t *m,
                 const rd_kafka_message_t *next)
{
    struct part *part = m->err ? NULL : find_part(c, m);

    if (part)
        part->end = -1;
    if (m->err)
        on_record_error(c, m);
    if (!part)
        rd_kafka_message_destroy(m);
    else if (part->full || !offer(c, part, m, next))
        stash(c, part, m);
}

/* Does the stash keep us from reading? Not for partitions that are paused. */
static bool is_choked(const struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->stashed; i++)
        if (!c->stash[i].part->paused)
            return true;
    return false;
}

void fetch_soon(struct kafka_consumer *c)
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

        if (kept.part->full || !offer(c, kept.part, kept.message, NULL))
            c->stash[left++] = kept;
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

    n = rd_kafka_consume_batch_queue(c->wake.queue, 0, batch, room);
    for (ssize_t i = 0; i < n; i++)
        take(c, batch[i], i + 1 < n ? batch[i + 1] : NULL);
    assignment_serve(c);
    return n;
}

static void read_queue(struct kafka_consumer *c)
{
    ssize_t n = 0;
    size_t room;

    assignment_awake(c);
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
        fetch_soon(c);
}

void fetch_ready(void *arg)
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
    fetch_soon(c);
}

void kafka_consumer_continue(struct kafka_consumer *c, struct kafka_part *pub)
{
    struct part *part = part_of(pub);

    if (!part->full)
        return;
    part->full = false;
    fetch_soon(c);
}

void fetch_restart(struct kafka_consumer *c)
{
    fetch_forget(c);
    c->all_paused = false;
    for (size_t i = 0; i < c->nparts; i++) {
        struct part *part = c->parts[i];

        part->end = -1; /* before resuming: that must not seek */
        part->full = false;
        set_paused(c, part, false);
    }
    fetch_soon(c);
}

void fetch_forget(struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->stashed; i++)
        rd_kafka_message_destroy(c->stash[i].message);
    c->stashed = 0;
    ev_timer_stop(c->loop, &c->patience);
}

void fetch_init(struct kafka_consumer *c)
{
    ev_timer_init(&c->again, on_again, 0., 0.);
    ev_timer_init(&c->patience, on_patience, PATIENCE, 0.);
    c->again.data = c->patience.data = c;
}

void fetch_stop(struct kafka_consumer *c)
{
    ev_timer_stop(c->loop, &c->again);
    fetch_forget(c);
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
