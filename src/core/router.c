#include "core/router.h"

#include "base/hash.h"
#include "base/mem.h"
#include "core/handler.h"

#include <stdlib.h>

#define TYPES_MAX 4096 /* then all is forgotten and learnt again */
#define BUCKETS   1024

struct entry {
    struct entry *next;
    uint64_t hash;
    char *type;
    size_t len;
    struct route route;
};

struct router {
    struct handler *const *handlers;
    size_t n_handlers;
    struct entry *buckets[BUCKETS];
    size_t n_entries;
};

struct router *router_new(void)
{
    return xcalloc(1, sizeof(struct router));
}

static void forget(struct router *r)
{
    for (int i = 0; i < BUCKETS; i++) {
        while (r->buckets[i]) {
            struct entry *next = r->buckets[i]->next;

            free(r->buckets[i]->type);
            free(r->buckets[i]->route.handlers);
            free(r->buckets[i]);
            r->buckets[i] = next;
        }
    }
    r->n_entries = 0;
}

void router_free(struct router *r)
{
    if (!r)
        return;
    forget(r);
    free(r);
}

void router_set(struct router *r, struct handler *const *handlers, size_t n)
{
    forget(r);
    r->handlers = handlers;
    r->n_handlers = n;
}

static struct entry *learn(struct router *r, struct slice type, uint64_t hash)
{
    struct entry *e = xcalloc(1, sizeof(*e));

    e->hash = hash;
    e->type = xstrndup(type.ptr, type.len);
    e->len = type.len;
    e->route.handlers = xmalloc(r->n_handlers * sizeof(struct handler *));
    for (size_t i = 0; i < r->n_handlers; i++)
        if (handler_wants(r->handlers[i], type))
            e->route.handlers[e->route.n++] = r->handlers[i];
    e->next = r->buckets[hash % BUCKETS];
    r->buckets[hash % BUCKETS] = e;
    r->n_entries++;
    return e;
}

const struct route *router_match(struct router *r, struct slice type)
{
    uint64_t hash = hash_bytes(type.ptr, type.len);
    struct entry *e;

    for (e = r->buckets[hash % BUCKETS]; e; e = e->next)
        if (e->hash == hash && e->len == type.len &&
            memcmp(e->type, type.ptr, type.len) == 0)
            return &e->route;
    if (r->n_entries >= TYPES_MAX)
        forget(r);
    return &learn(r, type, hash)->route;
}
