/*
 * Memory that is there or the process is not: a host that cannot get a few
 * bytes cannot keep its promises, and its sources deliver again after the
 * restart. Lua memory is limited separately and comes back as an error.
 */
#ifndef MT_BASE_MEM_H
#define MT_BASE_MEM_H

#include <stddef.h>

void *xmalloc(size_t size) __attribute__((malloc, returns_nonnull));
void *xcalloc(size_t n, size_t size) __attribute__((malloc, returns_nonnull));
void *xrealloc(void *ptr, size_t size);
char *xstrdup(const char *text) __attribute__((malloc, returns_nonnull));
char *xstrndup(const char *text, size_t len)
    __attribute__((malloc, returns_nonnull));
char *xasprintf(const char *fmt, ...)
    __attribute__((format(printf, 1, 2), malloc, returns_nonnull));

/* A pool of equal-sized objects: blocks of many, a free list, nothing given
 * back before pool_fini(). For what the host makes per event. One thread. */
struct pool {
    void *free;
    struct pool_block *blocks;
    size_t size;   /* of an object */
    size_t in_use; /* objects handed out */
};

void pool_init(struct pool *pool, size_t object_size);
void pool_fini(struct pool *pool);
void *pool_take(struct pool *pool); /* not cleared */
void pool_put(struct pool *pool, void *object);

#endif
