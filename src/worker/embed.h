/* The modules of lua/moontide, compiled into the binary by embed.cmake. */
#ifndef MT_WORKER_EMBED_H
#define MT_WORKER_EMBED_H

#include <stddef.h>

struct embedded {
    const char *name; /* NULL ends the table */
    const unsigned char *text;
    size_t len;
};

extern const struct embedded embedded_modules[];

#endif
