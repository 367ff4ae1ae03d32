/*
 * An outbox table in PostgreSQL as a source. Its partitions are the shards that
 * this host holds a lease of ("0" … "63", by a hash of the aggregate's id; see
 * core/leases.h), read together by the gap-aware cursor of
 * sources/outbox_cursor.h on a connection of its own. Leases have another one:
 * no read that takes long may cost them.
 *
 * What the cursor relies on is checked at each connection and once a minute
 * (outbox_sql.h); and that the database is the one that was read before, and
 * has not gone back in time. Where it does not hold the source stops and says
 * so through the sink's trouble().
 */
#ifndef MT_SOURCES_OUTBOX_SOURCE_H
#define MT_SOURCES_OUTBOX_SOURCE_H

#include "base/err.h"
#include "core/source.h"

#include <jansson.h>

struct ev_loop;
struct outbox_source;

struct outbox_options {
    const char *url;
    const char *session_sql; /* e.g. the search path; may be NULL */
    const char *table, *columns;
    const char *wake; /* poll, notify or wal */
    const char *node; /* owner of leases: no other process's name */
    int64_t lease_ms;
    int64_t interval_ms; /* longest pause between polls */
    int batch;           /* rows of a poll, at most */
    int64_t max_bytes;   /* a larger body is undecodable */
    bool must_exist;     /* false: a missing table is no trouble, only absent */
    bool no_prepare;
};

struct outbox_source *outbox_source_new(struct ev_loop *loop,
                                        const struct outbox_options *opts,
                                        const struct source_sink *sink,
                                        struct err *err) MUST_CHECK;

/* Close the partitions; `done` comes when they are closed and given back. */
void outbox_source_stop(struct outbox_source *s, void (*done)(void *arg),
                        void *arg);
void outbox_source_free(struct outbox_source *s); /* NULL is allowed */

bool outbox_source_connected(const struct outbox_source *s);

/* Why nothing is read, when no partition could tell; NULL: it is read. */
const char *outbox_source_trouble(const struct outbox_source *s);

/* Shards that are ours now. */
unsigned outbox_source_shards(const struct outbox_source *s);

/* Seconds since the oldest open gap was noticed; 0 when there is none. */
double outbox_source_gap_age(const struct outbox_source *s);

/* For /v1/status: state, last, gaps, and who holds one open. Gives. */
json_t *outbox_source_json(const struct outbox_source *s);

#endif
