/*
 * Records and the offset of a group, written together or not at all: a producer
 * for transactions whose one group has one topic's partition as its only
 * place. Where that place is says which records are in.
 *
 * Each has a thread, because librdkafka's calls for transactions block. What is
 * asked is done there; callbacks come on the loop. One question at a time.
 *
 * Who opens it fences whoever had the same id before: nothing of theirs commits
 * from then on. After an error that is not "fenced" the next commit opens it
 * again, and looks at the group's place first: where it was, and the commit is
 * tried; where that commit would bring it, and it had been done; elsewhere, and
 * somebody else is at it: fenced.
 */
#ifndef MT_KAFKA_TRANSACTIONS_H
#define MT_KAFKA_TRANSACTIONS_H

#include "kafka/outputs.h"
#include "kafka/settings.h"

struct ev_loop;
struct kafka_transactions;

#define KAFKA_FENCED "_FENCED" /* err.code: another has the same id */

struct kafka_transactions_options {
    const struct kafka_settings *kafka;
    const char *id;    /* transactional.id */
    const char *group; /* whose offset moves */
    const char *topic;
    int32_t partition;
};

/* Borrowed during the callback. */
struct kafka_place {
    bool is_found;
    int64_t offset;
    const char *metadata;
};

/* Copies the options. Connects to nothing yet. */
struct kafka_transactions *
kafka_transactions_new(struct ev_loop *loop,
                       const struct kafka_transactions_options *options);
/* No callback comes any more. What is under way may still commit. */
void kafka_transactions_free(struct kafka_transactions *t);

typedef void kafka_opened_fn(void *arg, const struct kafka_place *at,
                             const struct err *err);
void kafka_transactions_open(struct kafka_transactions *t, kafka_opened_fn *fn,
                             void *arg);

/* `outputs` come back. When err is given they are to be tried again as they are:
 * with the same offset. */
typedef void kafka_committed_fn(void *arg, struct kafka_outputs *outputs,
                                const struct err *err);
void kafka_transactions_commit(struct kafka_transactions *t,
                               struct kafka_outputs *outputs, int64_t offset,
                               const char *metadata, kafka_committed_fn *fn,
                               void *arg);

#endif
