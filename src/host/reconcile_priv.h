/* What the files of reconcile share; nobody else includes it. */
#ifndef MT_HOST_RECONCILE_PRIV_H
#define MT_HOST_RECONCILE_PRIV_H

#include "core/leases.h"
#include "core/ranges.h"
#include "host/reconcile.h"
#include "pg/pg_sync.h"
#include "sources/outbox_sql.h"

#define PAGE 2000 /* events at a time */

struct kafka_pages;

struct reconcile {
    const struct settings *settings;
    struct pg_sync *db;
    struct outbox_sql sql;
    bool has_outbox;
    struct kafka_pages *topics; /* NULL: not opened yet */
};

/* Where every event below is settled, shard by shard. */
struct stand {
    struct {
        bool is_known;
        int64_t next;
        struct ranges gaps;
    } shards[SHARDS_MAX];
    int topics;       /* partitions of topics */
    int64_t given_up; /* places */
};

struct sums {
    int64_t accepted, done, dead, skipped, parked, pending, by_position, before,
        faults;
};

struct check {
    struct reconcile *r;
    const char *name;
    const json_t *decl;
    bool is_transactional;
    struct stand stand;
    struct sums sums;
    int64_t first_trace; /* the lowest place of which something is known */
    reconcile_fault_fn *fault;
    void *arg;
};

/* What the tables say of an event of the handler. */
struct trace {
    const char *id, *type;
    int64_t place;
    unsigned shard;        /* of the store's events, */
    const char *partition; /* or of a topic's; NULL */
    bool is_done, is_parked;
    const char *letter, *outcome; /* "" when there is none */
};

/* The database's answer; NULL with err. */
const struct pg_result *reconcile_ask(struct reconcile *r, const char *sql,
                                      int n, const struct pg_param *params,
                                      struct err *err);
bool reconcile_wants(const struct check *c, const char *type);
bool reconcile_has_end(const struct trace *t);
void reconcile_count_end(struct check *c, const struct trace *t);
void reconcile_fault(struct check *c, const struct trace *t, const char *why);

/* reconcile_topics.c: every partition that the handler has a position of. */
bool reconcile_topics(struct check *c, struct err *err) MUST_CHECK;

#endif
