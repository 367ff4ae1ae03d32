/*
 * Which handlers take an event type. The answer per type is computed once and
 * kept, so routing costs the same however many handlers do not match. The
 * number of types kept is bounded: types come from outside.
 */
#ifndef MT_CORE_ROUTER_H
#define MT_CORE_ROUTER_H

#include "base/slice.h"

#include <stdint.h>

struct handler;
struct router;

struct route {
    struct handler **handlers; /* in the order of their indices */
    size_t n;
};

struct router *router_new(void);
void router_free(struct router *r);

/* The set of handlers or a subscription changed; `handlers` is borrowed until
 * the next call. Routes handed out before are gone. */
void router_set(struct router *r, struct handler *const *handlers, size_t n);

/* Valid until the next call of any router function. */
const struct route *router_match(struct router *r, struct slice type);

#endif
