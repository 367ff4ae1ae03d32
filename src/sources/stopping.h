/* A source's stop: asked for once, told once, when everything is given back. */
#ifndef MT_SOURCES_STOPPING_H
#define MT_SOURCES_STOPPING_H

#include "core/source.h"

#include <stdbool.h>
#include <stddef.h>

struct stopping {
    bool is_asked; /* stays: such a source starts nothing any more */
    void (*done)(void *arg);
    void *arg;
};

static inline void stopping_ask(struct stopping *stopping,
                                void (*done)(void *arg), void *arg)
{
    *stopping = (struct stopping){true, done, arg};
}

/* Nothing is left open. Without effect when nobody asked, or was told. */
static inline void stopping_tell(struct stopping *stopping)
{
    void (*done)(void *arg) = stopping->done;

    stopping->done = NULL;
    if (done)
        done(stopping->arg);
}

/* Of a source with one partition: it closes, or (NULL) is closed already. */
static inline void stopping_ask_one(struct stopping *stopping,
                                    const struct source_sink *sink,
                                    struct partition *p,
                                    void (*done)(void *arg), void *arg)
{
    stopping_ask(stopping, done, arg);
    if (p)
        sink->closing(sink->ctx, p, false);
    else
        stopping_tell(stopping);
}

#endif
