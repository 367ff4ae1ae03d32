/*
 * The parked queue, table event_parked (PostgreSQL only): deliveries that wait
 * for long, in the order of their lanes (migrations/0010_parked.sql).
 *
 * Rows are written in the order in which they were put, one statement at a
 * time for as many as came meanwhile: a row may not be seen before one of its
 * lane that comes before it. Everything is tried until it succeeds. One thread.
 *
 * The `arg` of put and lanes is one piece of memory and is the store's: freed
 * after the last callback, or with the store. That of remove stays the caller's.
 */
#ifndef MT_STORES_PARKED_H
#define MT_STORES_PARKED_H

#include "base/err.h"
#include "core/delivery.h"

#include <jansson.h>

struct ev_loop;
struct parked_store;
struct pg_pool;

struct parked_store *parked_store_new(struct ev_loop *loop,
                                      struct pg_pool *pool);
void parked_store_free(struct parked_store *s); /* no callbacks any more */

/* What is said of a delivery that is not in itself. */
struct parked_how {
    enum park_reason reason;
    int64_t delay_ms; /* until a retry */
    const char *flag; /* that holds it, or "" */
    int bucket;       /* of its key: see flag_bucket() */
    bool has_lane;
    uint64_t lane;
    int64_t epoch; /* of the handler's position in the partition */
};

/* `is_fenced`: nothing was written, another host has the partition. */
typedef void parked_put_fn(void *arg, bool is_fenced);

/* The delivery is borrowed for the call. */
void parked_store_put(struct parked_store *s, const struct delivery *d,
                      const struct parked_how *how, parked_put_fn *done,
                      void *arg);

/* `is_free`: nothing of the row's lane is left, nor on its way there. */
typedef void parked_removed_fn(void *arg, bool is_free);

/* Row `id` has ended; `lane` is its lane, if it has one. */
void parked_store_remove(struct parked_store *s, int64_t id, uint64_t lane,
                         parked_removed_fn *done, void *arg);

/* Each lane of a partition that something waits in; at the end handler NULL. */
typedef void parked_lane_fn(void *arg, const char *handler, uint64_t lane);
void parked_store_lanes(struct parked_store *s, const char *source,
                        const char *partition, parked_lane_fn *each, void *arg);

/* What is held by flags other than `names` is due, and of these what
 * percents[i] lets pass: {…} arrays of PostgreSQL, copied. */
void parked_store_let_go(struct parked_store *s, const char *names,
                         const char *percents);

/* --- what people see and do (parked_query.c) ----------------------------------- */

struct dead_filter; /* the same filters; state: retry, behind or held */

/* Answers as for dead letters: `answer` is given, NULL with err. */
typedef void parked_answer_fn(void *arg, json_t *answer, const struct err *err);
void parked_list(struct pg_pool *pool, const struct dead_filter *filter,
                 parked_answer_fn *done, void *arg);

/* `what`: retry (now), skip or dead (instead of a run; of one that follows
 * others in its lane when it is its turn). {"count": n} */
void parked_act(struct pg_pool *pool, const struct dead_filter *filter,
                const char *what, const char *reason, parked_answer_fn *done,
                void *arg);

/* [[handler, reason, n], …] for the metric; given, NULL with an error. */
typedef void parked_counts_fn(void *arg, json_t *rows);
void parked_store_counts(struct parked_store *s, parked_counts_fn *done,
                         void *arg);

#endif
