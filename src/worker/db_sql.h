/*
 * What the text of a handler's statement says about its session, by its first
 * words: a guard against accidents and not against malice, which SQL inside a
 * function of the user's own could always hide.
 */
#ifndef MT_WORKER_DB_SQL_H
#define MT_WORKER_DB_SQL_H

#include <stdbool.h>

/* COMMIT, ROLLBACK and their like; not ROLLBACK TO. What a transaction promises
 * rests on who ends it. */
bool sql_ends_transaction(const char *sql);

/* SET without LOCAL, RESET, LISTEN …: the next one to get the session may be
 * another handler, or our own insert into the inbox. */
bool sql_changes_session(const char *sql);

/* May it leave something on its session? What sql_changes_session() refuses
 * does not count, and what is in doubt does: cleaning costs one round trip,
 * which nobody waits for but the next on this session. */
bool sql_may_soil(const char *sql);

#endif
