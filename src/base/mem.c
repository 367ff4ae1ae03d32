#include "base/mem.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_OBJECTS 256

struct pool_block {
    struct pool_block *next;
    _Alignas(16) char objects[];
};

static void *must(void *ptr)
{
    CHECK(ptr); /* out of memory: see the head of mem.h */
    return ptr;
}

void *xmalloc(size_t size)
{
    return must(malloc(size ? size : 1));
}

void *xcalloc(size_t n, size_t size)
{
    return must(calloc(n ? n : 1, size ? size : 1));
}

void *xrealloc(void *ptr, size_t size)
{
    return must(realloc(ptr, size ? size : 1));
}

char *xstrdup(const char *text)
{
    return must(strdup(text));
}

char *xstrndup(const char *text, size_t len)
{
    char *copy = xmalloc(len + 1);

    if (len)
        memcpy(copy, text, len);
    copy[len] = '\0';
    return copy;
}

char *xasprintf(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    int len;

    va_start(ap, fmt);
    len = vasprintf(&text, fmt, ap);
    va_end(ap);
    CHECK(len >= 0);
    return must(text);
}

void pool_init(struct pool *pool, size_t object_size)
{
    *pool = (struct pool){.size = (object_size + 15) & ~(size_t)15};
}

void pool_fini(struct pool *pool)
{
    while (pool->blocks) {
        struct pool_block *next = pool->blocks->next;

        free(pool->blocks);
        pool->blocks = next;
    }
    pool->free = NULL;
}

static void grow(struct pool *pool)
{
    struct pool_block *block =
        xmalloc(sizeof(*block) + BLOCK_OBJECTS * pool->size);

    block->next = pool->blocks;
    pool->blocks = block;
    for (size_t i = BLOCK_OBJECTS; i-- > 0;) {
        void *object = block->objects + i * pool->size;

        *(void **)object = pool->free;
        pool->free = object;
    }
}

void *pool_take(struct pool *pool)
{
    void *object;

    if (!pool->free)
        grow(pool);
    object = pool->free;
    pool->free = *(void **)object;
    pool->in_use++;
    return object;
}

void pool_put(struct pool *pool, void *object)
{
    CHECK(pool->in_use > 0);
    *(void **)object = pool->free;
    pool->free = object;
    pool->in_use--;
}
