/*
 * What the intake's files share; nobody else includes it.
 *
 *   intake_open.c   positions are taken, cursors opened, reading begins
 *   intake_save.c   what moved is written down, then the source may commit
 *   intake_move.c   what an operator gives up, so that a partition goes on
 *   intake.c        the sources, what they say, and closing
 *   intake_show.c   status and metrics
 */
#ifndef MT_HOST_INTAKE_PRIV_H
#define MT_HOST_INTAKE_PRIV_H

#include "host/host_priv.h"

struct intake {
    struct host *host;
    struct source_sink sink;
    struct kafka_source *kafka;
    struct outbox_source *outbox;
    struct redrive_source *redrive;
    struct parked_source *parked;
    unsigned stopping; /* sources that are not stopped yet */
    bool is_stopping, is_saving, has_quiet;
    int64_t next_save_us;
    json_t *given_up; /* lately, for people */

    /* A Kafka consumer that failed for good is stopped, freed and, after a
     * while, opened again. */
    char *kafka_failed;
    bool is_kafka_ending, is_kafka_ended;
    int64_t kafka_opened_us, kafka_again_us, kafka_backoff_us;
};

/* --- intake_open.c ---------------------------------------------------------------- */

/* source_sink.opened */
struct partition *intake_opened(void *ctx, const struct source_ops *ops,
                                void *source, const char *topic, int32_t number,
                                const char *name, const char *source_id);
/* All answers are there: read; or, when it was taken away meanwhile, close. */
void intake_start_if_ready(struct intake *in, struct partition *p);

/* --- intake_save.c ---------------------------------------------------------------- */

/* What moved since the last time; nothing while that is still under way. */
void intake_save_all(struct intake *in);
/* The last save of a closing partition, with its commit; true: under way, and
 * intake_finish_closing() comes again. */
bool intake_save_last(struct intake *in, struct partition *p);

/* Does the handler's position here move in Kafka transactions? Once it did, it
 * does until the partition is closed: something may be held. */
bool intake_is_in_kafka(struct partition *p, const struct handler *h);

/* Of a position's gaps, to see whether they changed. */
uint64_t intake_gaps_hash(const struct ranges *gaps);

/* --- intake.c --------------------------------------------------------------------- */

/* Quiet and nothing under way: save once more, then give it back. */
void intake_finish_closing(struct intake *in, struct partition *p);

#endif
