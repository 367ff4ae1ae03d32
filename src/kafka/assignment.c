/*
 * Which partitions are ours. librdkafka's callback only notes an offer or a
 * revocation; it is told to the owner from the loop, and a new offer waits
 * until the owner has given the old parts back.
 */
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/consumer_priv.h"
#include "kafka/lookup.h"

#include <stdlib.h>
#include <string.h>

#define TICK_S      0.1
#define CHECK_TICKS 50     /* between two looks at the topics' ids */
#define ASLEEP_US   300000 /* without a tick: the process was stopped */

static const char component[] = "kafka";

static void drop_offer(struct kafka_consumer *c)
{
    if (c->offered)
        rd_kafka_topic_partition_list_destroy(c->offered);
    c->offered = NULL;
}

void assignment_noted(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                      rd_kafka_topic_partition_list_t *parts, void *opaque)
{
    struct kafka_consumer *c = opaque;

    if (c->closing) {
        rd_kafka_assign(rk, NULL);
    } else if (code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
        drop_offer(c);
        c->offered = rd_kafka_topic_partition_list_copy(parts);
    } else if (code == RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS) {
        drop_offer(c); /* it was for what is taken away now */
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

void assignment_drop(struct kafka_consumer *c)
{
    fetch_forget(c);
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
        assignment_drop(c);
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

/* --- deleted and made anew ------------------------------------------------- */

/* Is this topic another one than it was? One that is new is remembered. */
static bool is_anew(struct kafka_consumer *c, const char *topic, const char *id)
{
    for (size_t i = 0; i < c->nknown; i++)
        if (strcmp(c->known[i].topic, topic) == 0)
            return strcmp(c->known[i].id, id) != 0;
    c->known = xrealloc(c->known, (c->nknown + 1) * sizeof(*c->known));
    c->known[c->nknown++] = (struct known){xstrdup(topic), xstrdup(id)};
    return false;
}

/* The group hears nothing of it when it is quick, and librdkafka's cache keeps
 * the old id: with offsets of the old log in the new one, or for ever without
 * the topic. So the client is of no use any more. */
static void say_outdated(struct kafka_consumer *c, const char *topic,
                         const char *id)
{
    struct err err;

    if (c->is_outdated)
        return;
    c->is_outdated = true;
    log_error("topic was deleted and made anew: read from its start",
              "topic=%s now=" LOG_Q, topic, id);
    err_set(&err, ERR_RETRIABLE, "topic %s was deleted and made anew", topic);
    c->ops->on_outdated(c->arg, &err);
}

/* A topic that is not there may come back as another one. */
static void set_doubt(struct kafka_consumer *c, const char *topic, bool doubt)
{
    for (size_t i = 0; i < c->nparts; i++) {
        struct part *part = c->parts[i];

        if (strcmp(part->pub.topic, topic) != 0)
            continue;
        if (part->in_doubt && !doubt)
            kafka_consumer_continue(c, &part->pub);
        part->in_doubt = doubt;
    }
}

static void on_ids_checked(void *arg, char *const *ids)
{
    struct kafka_consumer *c = arg;

    for (size_t i = 0; i < c->nknown; i++) {
        const struct known *known = &c->known[i];

        if (ids[i] && is_anew(c, known->topic, ids[i]))
            say_outdated(c, known->topic, ids[i]);
        else
            set_doubt(c, known->topic, !ids[i]);
    }
}

/* Ask the brokers whether a topic was deleted and made anew. */
static void check(struct kafka_consumer *c)
{
    const char **topics;

    if ((c->membership != MEMBER_ASSIGNED && c->membership != MEMBER_NOTHING) ||
        c->nknown == 0 || c->is_outdated)
        return;
    topics = xcalloc(c->nknown, sizeof(*topics));
    for (size_t i = 0; i < c->nknown; i++)
        topics[i] = c->known[i].topic;
    kafka_lookup_ids(c->lookup, topics, c->nknown, false, on_ids_checked, c);
    free(topics);
}

void assignment_doubt(struct kafka_consumer *c, struct part *part)
{
    if (part->in_doubt || *c->incarnation)
        return;
    part->in_doubt = true;
    check(c);
}

void assignment_awake(struct kafka_consumer *c)
{
    int64_t now_us = clock_mono_us();

    if (now_us - c->ticked_us < ASLEEP_US)
        return;
    c->ticked_us = now_us;
    for (size_t i = 0; i < c->nparts; i++)
        c->parts[i]->in_doubt = !*c->incarnation;
    check(c);
}

static bool is_in_doubt(const struct kafka_consumer *c)
{
    for (size_t i = 0; i < c->nparts; i++)
        if (c->parts[i]->in_doubt)
            return true;
    return false;
}

static void on_tick(UNUSED struct ev_loop *loop, ev_timer *timer,
                    UNUSED int events)
{
    struct kafka_consumer *c = timer->data;

    assignment_awake(c);
    c->ticked_us = clock_mono_us();
    if ((++c->ticks % CHECK_TICKS == 0 || is_in_doubt(c)) &&
        !kafka_lookup_is_asking(c->lookup))
        check(c);
}

void assignment_init(struct kafka_consumer *c)
{
    c->ticked_us = clock_mono_us();
    ev_timer_init(&c->check, on_tick, TICK_S, TICK_S);
    c->check.data = c;
    ev_timer_start(c->loop, &c->check);
}

void assignment_fini(struct kafka_consumer *c)
{
    ev_timer_stop(c->loop, &c->check);
    assignment_drop(c);
    for (size_t i = 0; i < c->nknown; i++) {
        free(c->known[i].topic);
        free(c->known[i].id);
    }
    free(c->known);
}

/* --- which topics these are -------------------------------------------------- */

static void on_ids(void *arg, char *const *ids)
{
    struct kafka_consumer *c = arg;

    for (size_t i = 0; i < c->nparts; i++) {
        c->parts[i]->pub.source_id = xstrdup(ids[i]);
        if (is_anew(c, c->parts[i]->pub.topic, ids[i]))
            say_outdated(c, c->parts[i]->pub.topic, ids[i]);
    }
    if (!c->is_outdated)
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

static void ask_ids(struct kafka_consumer *c)
{
    const char **topics = xcalloc(c->nparts + 1, sizeof(*topics));

    for (size_t i = 0; i < c->nparts; i++)
        topics[i] = c->parts[i]->pub.topic;
    kafka_lookup_ids(c->lookup, topics, c->nparts, true, on_ids, c);
    free(topics);
}

static void name_parts(struct kafka_consumer *c)
{
    if (*c->incarnation || c->nparts == 0)
        name_embedded(c);
    else
        ask_ids(c);
}

/* --- offers and what becomes of them --------------------------------------- */

static void serve_offer(struct kafka_consumer *c)
{
    rd_kafka_topic_partition_list_t *list = c->offered;

    c->offered = NULL;
    assignment_drop(c);
    make_parts(c, list);
    rd_kafka_topic_partition_list_destroy(list);
    c->membership = MEMBER_NAMING;
    name_parts(c);
}

void assignment_serve(struct kafka_consumer *c)
{
    if (c->revoke && c->membership != MEMBER_REVOKED)
        serve_revoke(c);
    if (c->offered && c->membership == MEMBER_NOTHING)
        serve_offer(c);
}

void kafka_consumer_find(struct kafka_consumer *c,
                         struct kafka_part *const *parts, const bool *wants_end,
                         size_t n, kafka_found_fn *fn, void *arg)
{
    int64_t *specs = xcalloc(n + 1, sizeof(*specs));

    for (size_t i = 0; i < n; i++)
        specs[i] = wants_end[i] ? RD_KAFKA_OFFSET_SPEC_LATEST
                                : RD_KAFKA_OFFSET_SPEC_EARLIEST;
    kafka_lookup_bounds(c->lookup, kafka_part_list(parts, specs, n), fn, arg);
    free(specs);
}

bool kafka_consumer_assign(struct kafka_consumer *c, const int64_t *offsets,
                           struct err *err)
{
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_resp_err_t code;

    if (c->membership == MEMBER_ASSIGNED)
        fetch_restart(c);
    else if (c->membership != MEMBER_OFFERED)
        return err_set(err, ERR_RETRIABLE, "the assignment is gone");
    list = kafka_part_list((struct kafka_part **)(void *)c->parts, offsets,
                           c->nparts);
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
    assignment_drop(c);
    c->membership = MEMBER_NOTHING;
    assignment_serve(c);
}
