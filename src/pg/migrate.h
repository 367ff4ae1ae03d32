/*
 * The schema: applying and taking back the files of migrations/.
 *
 * Files are in dbmate's format (-- migrate:up, -- migrate:down) and applied in
 * the order of their names, each in a transaction of its own, under an
 * advisory lock so that two hosts starting together do not collide. The word
 * :ids: in them becomes uuid or text, fixed at the first migration.
 */
#ifndef MT_PG_MIGRATE_H
#define MT_PG_MIGRATE_H

#include "base/err.h"

#include <stdbool.h>

struct migrate_options {
    const char *url;
    const char *dir;    /* with the .sql files */
    const char *schema; /* created if missing; NULL: the connection's own */
    const char *ids;    /* "uuid" or "text"; NULL: as before, or uuid */
};

/* One migration, for the caller's report. */
struct migrate_step {
    const char *version;    /* file name without .sql */
    const char *applied_at; /* RFC 3339, or NULL when it is not applied */
    bool changed;           /* this call applied it or took it back */
};

typedef void migrate_fn(void *arg, const struct migrate_step *step);

/* Apply what is missing; `fn` hears of each file applied now. */
bool migrate_up(const struct migrate_options *opts, migrate_fn *fn, void *arg,
                struct err *err) MUST_CHECK;

/* Take the last `count` migrations back, newest first. */
bool migrate_down(const struct migrate_options *opts, int count, migrate_fn *fn,
                  void *arg, struct err *err) MUST_CHECK;

/* Tell of every file, applied or not. Changes nothing. */
bool migrate_status(const struct migrate_options *opts, migrate_fn *fn,
                    void *arg, struct err *err) MUST_CHECK;

/* Take everything back, with the events and all records in it, and leave
 * nothing behind: tables, functions and, if no other database of the cluster
 * uses them, roles. */
bool migrate_uninstall(const struct migrate_options *opts, migrate_fn *fn,
                       void *arg, struct err *err) MUST_CHECK;

/* Make an outbox table of another program readable: give it the columns xid
 * and seq, filled by default for new rows and in order of age for old ones.
 * `preset` is "native", "camel" or "debezium" and names the column of age.
 * Does nothing where both are there already. */
bool migrate_adopt(const struct migrate_options *opts, const char *table,
                   const char *preset, struct err *err) MUST_CHECK;

#endif
