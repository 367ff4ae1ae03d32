/*
 * Dead letters: in event_dead_letters, or without PostgreSQL in <topic>.dlq
 * with the headers of interfaces: original key, value and headers, x-error, …
 *
 * A letter counts as stored when the callback says ok: committed, or the
 * broker's delivery report came. Failures are retried inside with backoff and
 * logged; the callback comes once, with success, however long it takes (or
 * never, when the process ends first). Storing the same (handler, source,
 * partition, place, event id) again updates the row. Where the inbox already
 * has (handler, event id) nothing is stored: DEAD_WAS_DONE. Nor where another
 * host has the partition by now, which then decides itself: DEAD_FENCED.
 */
#ifndef MT_STORES_DEADLETTERS_H
#define MT_STORES_DEADLETTERS_H

#include "base/err.h"
#include "base/slice.h"
#include "base/words.h"
#include "core/event.h"

#include <jansson.h>

struct buf;
struct deadletters;

struct dead_letter {
    const char *handler; /* "" when undecodable */
    const char *version;
    const struct event *event; /* borrowed until stored */
    int64_t epoch;             /* of the handler's position: the fence */
    bool checks_inbox;         /* the handler is transactional */
    bool keeps_order;          /* its lane waits for it */
    bool has_lane;
    uint64_t lane; /* its id */
    enum error_class class;
    const char *code, *error, *traceback; /* "" when there is none */
    int attempts;
    json_t *history; /* [{attempt, at, class, error}], borrowed */
    int64_t first_failed_us, failed_us; /* wall clock */
};

enum dead_stored { DEAD_STORED, DEAD_WAS_DONE, DEAD_FENCED };

typedef void dead_stored_fn(void *arg, enum dead_stored how);

struct deadletters_ops {
    /* Copies what it needs before it returns, except event and its bytes. */
    void (*store)(struct deadletters *d, const struct dead_letter *letter,
                  dead_stored_fn *done, void *arg);
    void (*free)(struct deadletters *d);
};

struct deadletters {
    const struct deadletters_ops *ops;
};

struct ev_loop;
struct pg_pool;
struct kafka_producer;

struct deadletters *deadletters_pg_new(struct ev_loop *loop,
                                       struct pg_pool *pool);
/* Freed after its producer, whose end answers what is under way. */
struct deadletters *deadletters_topic_new(struct kafka_producer *producer,
                                          const char *suffix);

/* class + error with digits, quoted texts and ids made equal + version, as a
 * short hex name: failures that are the same failure. */
void fingerprint(enum error_class class, const char *error, const char *version,
                 char out[static 17]);

/* The message as it goes in there. */
void fingerprint_text(const char *error, struct buf *out);

/* --- what the API and the CLI do, PostgreSQL only ------------------------- */

struct dead_filter { /* NULL or "": any */
    const char *ids; /* "1,2,3" */
    const char *handler, *type, *aggregate, *correlation, *class, *fingerprint;
    const char *state;         /* default dead */
    const char *since, *until; /* RFC 3339 or relative: 7d */
    int64_t cursor;            /* ids below this; 0: from the newest */
    int limit;                 /* 1…1000 */
};

/* `answer` is given (decref it); NULL with err. */
typedef void dead_answer_fn(void *arg, json_t *answer, const struct err *err);

/* `with_bodies`: what a dry run needs, {id, fingerprint, error, format, facts,
 * bodyHex, …}, instead of what people read. */
void deadletters_list(struct pg_pool *pool, const struct dead_filter *filter,
                      bool with_bodies, dead_answer_fn *done, void *arg);
/* One, with body, history, edits, traceback; JSON null when there is none. */
void deadletters_show(struct pg_pool *pool, int64_t id, dead_answer_fn *done,
                      void *arg);
/* Equal failures as one row each, the most frequent first; filter->limit of
 * them. */
void deadletters_groups(struct pg_pool *pool, const struct dead_filter *filter,
                        dead_answer_fn *done, void *arg);

#define DEAD_REDRIVES_MAX 5 /* then a filter passes a letter over */

struct dead_redrive {
    bool is_dry_run;  /* count only */
    bool is_forced;   /* also what was redriven DEAD_REDRIVES_MAX times */
    int64_t every_us; /* between two of a handler; 0: as fast as it can */
    const char *who;
};

/* {"count": n, "leftOut": n}: to state redriving; the redrive source takes them
 * in their original order. */
void deadletters_redrive(struct pg_pool *pool, const struct dead_filter *filter,
                         const struct dead_redrive *how, dead_answer_fn *done,
                         void *arg);
/* {"count": n} */
void deadletters_discard(struct pg_pool *pool, const struct dead_filter *filter,
                         const char *reason, const char *who,
                         dead_answer_fn *done, void *arg);

struct dead_edit {
    struct slice payload; /* JSON; NULL: it stays */
    const json_t *facts;  /* name → text, or null to take it away; or NULL */
    const char *who, *reason;
};

/* {"id", "edit"}; JSON null when there is no such letter. What was there stays
 * in event_dead_letter_edits. */
void deadletters_edit(struct pg_pool *pool, int64_t id,
                      const struct dead_edit *edit, dead_answer_fn *done,
                      void *arg);

/* [[handler, class, n], …] waiting now, for the metric. */
void deadletters_counts(struct pg_pool *pool, dead_answer_fn *done, void *arg);

#endif
