/*
 * Statements that are sent until they succeed.
 *
 * A lost connection, a deadlock or a restart of the database only delays them.
 * A statement that the database refuses for good (a missing table, say) is
 * logged and tried again too, slowly: an operator can mend that, and giving up
 * would lose what the statement keeps.
 */
#ifndef MT_STORES_TRIES_H
#define MT_STORES_TRIES_H

#include "base/buf.h"
#include "base/err.h"
#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>

#define TRY_PARAMS_MAX 32

struct ev_loop;
struct pg_pool;
struct pg_result;

/* All statements of one store; its memory is the store's. */
struct tries {
    struct ev_loop *loop;
    struct pg_pool *pool;
    struct list open;
};

struct try;

/* `res` is borrowed. Comes once, with a result that is good. */
typedef void try_done_fn(void *arg, const struct pg_result *res);

/* With `err` when the statement was refused: for requests of people, who want
 * to know at once. */
typedef void try_once_fn(void *arg, const struct pg_result *res,
                         const struct err *err);

void tries_init(struct tries *t, struct ev_loop *loop, struct pg_pool *pool);
void tries_fini(struct tries *t); /* forgets what is open, see try_forgotten */

/* A statement; `sql` is a constant or outlives the try. `what` for the log. */
struct try *try_new(struct tries *t, const char *what, const char *sql);
/* Parameters in their order; text and bytes are copied. NULL is SQL NULL. */
void try_text(struct try *q, const char *text);
void try_slice(struct try *q, struct slice text);
void try_bytea(struct try *q, struct slice bytes);
void try_number(struct try *q, int64_t number);
void try_time(struct try *q, int64_t wall_us); /* 0: NULL */
void try_buf(struct try *q, struct buf *text); /* empties `text` */

/* Instead of the callback when the store goes first: frees what waits. */
void try_forgotten(struct try *q, void (*free_arg)(void *arg));

void try_send(struct try *q, try_done_fn *done, void *arg);
void try_send_once(struct try *q, try_once_fn *done, void *arg);

/* Elements of a text[] in PostgreSQL's array syntax: begin, items, end. */
void array_begin(struct buf *b);
void array_add(struct buf *b, const char *text); /* NULL: NULL */
void array_add_number(struct buf *b, int64_t number);
void array_end(struct buf *b);

#endif
