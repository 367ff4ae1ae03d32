/*
 * What the supervisor's files share; nobody else includes it.
 *
 *   supervisor.c           all workers: who is started, drained, replaced when
 *   supervisor_process.c   the life of one process, from exec to its burial
 *   supervisor_ring.c      what is said to it and what it says
 */
#ifndef MT_HOST_SUPERVISOR_PRIV_H
#define MT_HOST_SUPERVISOR_PRIV_H

#include "base/buf.h"
#include "host/host_priv.h"

#include <sys/types.h>

enum worker_state {
    WORKER_NONE,     /* no process; maybe waits to be started again */
    WORKER_STARTING, /* exec'd, loads what it has to load */
    WORKER_UP,
    WORKER_DRAINING,
};

struct worker {
    struct host *host;
    unsigned index;
    enum worker_state state;
    pid_t pid;
    uint64_t serial; /* of the process: answers to a former one are void */
    struct channel channel;
    struct ring_writer down;
    struct ring_reader up;
    bool is_dirty;  /* written, not published */
    bool is_ready;  /* MSG_READY came */
    size_t loading; /* loads of the start that are not answered yet */
    ev_io wake;
    ev_child child;
    struct list queue; /* of parcels: the ring was full, or deliveries wait */
    struct buf call_parts; /* of a call that has not come whole */
    uint32_t call_id;
    int64_t started_us, start_again_us, delay_us, idle_since_us;
    int64_t killed_for_us; /* hard limit: how long it had been silent */
    uint32_t *loaded;      /* vms that this process has, ascending */
    uint32_t *asked;       /* and those it was sent, not answered, in order */
    size_t n_loaded, n_asked;
};

struct supervisor {
    struct host *host;
    struct worker *workers; /* n + the spare one */
    unsigned n;
    int64_t hard_limit_us;
    bool is_started, is_draining;
    uint64_t next_serial;
};

/* --- supervisor_process.c --------------------------------------------------------- */

/* Makes a channel and a process; when that fails it is tried again later. */
void worker_start(struct worker *w);
/* Up, once it said that it is ready and has loaded everything. */
void worker_come_up(struct worker *w);
/* Kills it when it has shown no sign of life for so long. */
void worker_check_life(struct worker *w, int64_t now_us, int64_t limit_us);
/* By force, and waits for it: the host ends. */
void worker_end(struct worker *w);
/* Seconds of processor time and resident bytes so far; false: it is gone. */
bool worker_usage(pid_t pid, double *cpu, double *resident);

/* --- supervisor_ring.c ------------------------------------------------------------ */

/* Goes with the next flush, before any delivery. Copies `text`. */
void worker_queue(struct worker *w, enum msg_kind kind, uint32_t id, bool ok,
                  struct slice text);
void worker_drop_queue(struct worker *w);
/* False when it has no room or is not up. */
bool worker_deliver(struct worker *w, const struct event_msg *ev,
                    const struct delivery_msg *to, size_t n);
void worker_load(struct worker *w, const struct bundle *b);
void worker_load_all(struct worker *w); /* every version in use */
bool worker_has_loaded(const struct worker *w, uint32_t vm);
bool worker_read(struct worker *w);  /* true when it had said something */
bool worker_flush(struct worker *w); /* true: there is more, do not sleep */

#endif
