/*
 * The runtime half of the flags: table event_flags with LISTEN moontide_flags,
 * read whole at each change and each reconnection (a lost notification must
 * not matter: also read every 5 s, design: within a second with NOTIFY).
 */
#ifndef MT_STORES_FLAGS_H
#define MT_STORES_FLAGS_H

#include "base/err.h"

#include <jansson.h>

struct ev_loop;
struct flag_store;
struct pg_pool;

/* `rows`: [{name, state, percent, when_off, reason, who, until, updated_at}];
 * borrowed. Rows past their `until` are restored to `previous` (or removed)
 * by the store itself before it reports. */
typedef void flags_changed_fn(void *arg, const json_t *rows);

struct flag_store *flag_store_new(struct ev_loop *loop, struct pg_pool *pool,
                                  flags_changed_fn *changed, void *arg);
void flag_store_free(struct flag_store *s);

struct flag_set {
    const char *name;
    const char *state;        /* on, off or 25%: as asked */
    int percent;              /* that; set by switches_set() */
    const char *when_off;     /* "hold" or "skip" */
    const char *reason, *who; /* may be NULL */
    int64_t for_ms;           /* 0: until changed */
};

typedef void flag_done_fn(void *arg, const struct err *err); /* NULL: done */

void flag_store_set(struct flag_store *s, const struct flag_set *set,
                    flag_done_fn *done, void *arg);
void flag_store_unset(struct flag_store *s, const char *name,
                      flag_done_fn *done, void *arg);

#endif
