/*
 * Values on their way between Lua and SQL.
 *
 * Lua to SQL: nil and json.null are NULL, text and numbers are text the server
 * converts, 64-bit integers keep all digits, a plain table is jsonb and a
 * db.array an array. SQL to Lua: int8 beyond 2^53 is a 64-bit integer, numeric
 * stays text, timestamptz is RFC 3339, json and jsonb are tables, arrays of
 * simple types are tables, NULL is nil.
 */
#ifndef MT_WORKER_DB_VALUES_H
#define MT_WORKER_DB_VALUES_H

#include "base/buf.h"
#include "base/err.h"
#include "pg/pg.h"

#include <stdbool.h>

struct lua_State;

/* Name in the registry of the metatable that db.array() gives its tables:
 * { values, type, n } at the keys 1 to 3. */
#define DB_ARRAY "moontide.db.array"

struct db_params {
    struct buf bytes;
    struct pg_param *list; /* ready after db_params_read() */
    int n;
};

/* The values from stack index `first` to the top. May raise for lack of
 * memory only: let something that is dropped then own `params`. */
bool db_params_read(struct lua_State *L, int first, struct db_params *params,
                    struct err *err) MUST_CHECK;
void db_params_fini(struct db_params *params);

/* One row of COPY's text format from the table at `row`. `raw` is for work, and
 * may be the same for all rows. May raise for lack of memory. */
bool db_copy_row(struct lua_State *L, int row, int columns, struct buf *out,
                 struct buf *raw, struct err *err) MUST_CHECK;

/* All rows as a table of tables by column name. [-0, +1], may raise. */
void db_push_rows(struct lua_State *L, const struct pg_result *res);

#endif
