/*
 * A consumer's inside. assignment.c knows which partitions are ours, fetch.c
 * reads their records, consumer.c opens, commits and closes.
 */
#ifndef MT_KAFKA_CONSUMER_PRIV_H
#define MT_KAFKA_CONSUMER_PRIV_H

#include "kafka/client_internal.h"
#include "kafka/consumer.h"

#include <stdbool.h>

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
    bool in_doubt;         /* its topic may be another one: nothing is taken */
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

/* A topic that was ours, by the id that it had then. */
struct known {
    char *topic, *id;
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

    struct kept *stash;
    size_t stashed, stash_cap;

    /* Left by the rebalance callback for the loop. */
    rd_kafka_topic_partition_list_t *offered;
    bool revoke, lost;
    bool closing;
    ev_timer check; /* are these the same topics still? */
    struct known *known;
    size_t nknown;
    bool is_outdated; /* one is not: said once */
    unsigned ticks;
    int64_t ticked_us;
};

static inline struct part *part_of(struct kafka_part *pub)
{
    return (struct part *)(void *)pub;
}

/* `parts` with their offsets. Gives. */
rd_kafka_topic_partition_list_t *
kafka_part_list(struct kafka_part *const *parts, const int64_t *offsets,
                size_t n);

/* assignment.c */

void assignment_init(struct kafka_consumer *c);
void assignment_fini(struct kafka_consumer *c);
/* This part's topic may have been deleted and made anew: nothing of it is taken
 * until the brokers have said that it is the same. */
void assignment_doubt(struct kafka_consumer *c, struct part *part);
/* Before records are read: was the whole process stopped for a while? */
void assignment_awake(struct kafka_consumer *c);
/* librdkafka's rebalance callback: only notes what happened. */
void assignment_noted(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                      rd_kafka_topic_partition_list_t *parts, void *opaque);
/* Tells the owner what was noted, one thing at a time. */
void assignment_serve(struct kafka_consumer *c);
/* Forgets the parts and all that is held of them. */
void assignment_drop(struct kafka_consumer *c);

/* fetch.c */

void fetch_init(struct kafka_consumer *c);
/* Reads no more. */
void fetch_stop(struct kafka_consumer *c);
/* The queue has something. */
void fetch_ready(void *arg);
/* Reads in the next turn of the loop, after everybody else had theirs. */
void fetch_soon(struct kafka_consumer *c);
/* All parts go on at other offsets: what we hold of them is dropped. Not from
 * within a batch. */
void fetch_restart(struct kafka_consumer *c);
/* Drops what is held of all parts. */
void fetch_forget(struct kafka_consumer *c);

#endif
