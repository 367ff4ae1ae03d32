/*
 * The process that checking processes are forked from, one for this process:
 * `moontide probe --serve` of the same binary, which has paid for exec and
 * linking once. Started when first needed and again when it died; it ends with
 * this process, however that ends.
 */
#ifndef MT_HOST_PROBE_SERVER_H
#define MT_HOST_PROBE_SERVER_H

#include "base/err.h"
#include "base/list.h"

#include <stdint.h>

struct ev_loop;

/* A child, embedded in who asked for it. One of the three callbacks comes, at
 * most once; none after probe_server_kill(). They may come while another loop
 * runs (probe_server_listen): note what is told and act in your own. */
struct spawned {
    struct list link;
    uint64_t id;
    void (*ended)(struct spawned *s, int status); /* as of waitpid(2) */
    void (*failed)(struct spawned *s, int code);  /* was not started: errno */
    void (*lost)(
        struct spawned *s); /* the server died, and the child with it */
};

/* A child with these standard input and output, which stay the caller's. */
bool probe_server_spawn(struct spawned *s, int in, int out,
                        struct err *err) MUST_CHECK;
/* Ends it, when it has not yet ended, and forgets `s`. */
void probe_server_kill(struct spawned *s);

/* Hear the server in this loop (NULL: none) from now on. Gives the former. */
struct ev_loop *probe_server_listen(struct ev_loop *loop);

#endif
