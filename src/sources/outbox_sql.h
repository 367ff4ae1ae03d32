/* The statements of the outbox source, for a table and its column preset. */
#ifndef MT_SOURCES_OUTBOX_SQL_H
#define MT_SOURCES_OUTBOX_SQL_H

#include "base/err.h"
#include "core/leases.h"

#include <stdbool.h>

/* Columns of both reading statements, in this order. The first row has the text
 * of the snapshot in the place of the id. From COLUMN_ID on a row of a shard
 * that is not ours has NULLs. */
enum outbox_column {
    COLUMN_SEQ,
    COLUMN_SHARD,
    COLUMN_ID,
    COLUMN_TYPE,
    COLUMN_VERSION,
    COLUMN_AGGREGATE_TYPE,
    COLUMN_AGGREGATE_ID,
    COLUMN_AGGREGATE_VERSION,
    COLUMN_OCCURRED_AT,
    COLUMN_METADATA,
    COLUMN_BODY,
};

/* One row, for the table $1: does it exist, system identifier, timeline (of a
 * standby NULL), what is wrong with its columns or its sequence (or NULL), the
 * sequence's value (0 when it gave no number yet). */
enum outbox_check {
    CHECK_EXISTS,
    CHECK_SYSTEM,
    CHECK_TIMELINE,
    CHECK_PROBLEM,
    CHECK_SEQUENCE,
    CHECK_SHARDS,  /* the tables of migration 0009 are there */
    CHECK_TRIGGER, /* what outbox.wake needs is there */
    CHECK_PUBLICATION,
    CHECK_HALTED, /* event_source_trouble has it stopped: why, or NULL */
};

/* Of the events with the numbers $1 and ids $2 those that are not there, by
 * number: who has its number now, and is there any row below. */
enum outbox_missing { MISSING_SEQ, MISSING_ID, MISSING_NOW, MISSING_BELOW };

struct outbox_sql {
    char *table;     /* quoted, with its schema */
    char *read;      /* $1 last, $2 until, $3 limit, $4 our shards, from 0 */
    char *read_gaps; /* and $5 firsts, $6 lasts, $7 gaps, $8 last snapshot */
    char *columns;   /* from the id on, of the preset */
    char *highest;   /* the highest number, or 0 */
    char *missing;
    char *fetch; /* $1 first, $2 last, $3 limit, $4 shards, from 0; no row of
                    the snapshot */
};

extern const char outbox_check_sql[];
/* $1 our system identifier: another one that positions are of, or NULL. */
extern const char outbox_other_sql[];
/* $1 why, $2 the sequence's value, $3 first and $4 last number lost or NULL, $5
 * node. */
extern const char outbox_halt_sql[];
/* Nothing, or one row: pid, age in s, query, state, user, program, database. */
extern const char outbox_holder_sql[];

/* `table` may carry a schema; `preset` is native, camel or debezium. */
bool outbox_sql_init(struct outbox_sql *sql, const char *table,
                     const char *preset, struct err *err) MUST_CHECK;
void outbox_sql_fini(struct outbox_sql *sql);

/* As PostgreSQL writes a bool[], from shard 0 on. */
void outbox_shards_text(shard_set shards, char text[static 2 * SHARDS_MAX + 2]);

#endif
