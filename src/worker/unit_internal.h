/* A unit's inside, for unit.c, unit_lane.c and unit_batch.c. */
#ifndef MT_WORKER_UNIT_INTERNAL_H
#define MT_WORKER_UNIT_INTERNAL_H

#include "worker/unit.h"

#define LANE_BUCKETS 512

/* Exists while a delivery of it runs or waits, or while it is broken. */
struct lane {
    struct lane *next; /* in its bucket */
    uint64_t id;
    bool is_busy, is_broken;
    struct list waiting; /* events behind the one that runs */
    uint64_t broken_at;  /* bytes written up when the verdict was */
    uint64_t read_until; /* bytes down that must be read before forgetting */
};

struct unit {
    struct runtime *rt;
    uint32_t id;
    json_t *bundle;
    struct vm *vm;
    enum unit_state state;
    struct err trouble; /* of UNIT_BROKEN */
    void (*on_loaded)(struct unit *unit, const struct err *err);
    void (*on_unloaded)(struct unit *unit);

    int running; /* deliveries inside tasks; a batch counts as one */
    int concurrency;
    struct list waiting; /* events that may run as soon as there is room */
    int n_waiting;
    struct event *offered; /* what the task that starts now runs first */

    struct lane **lanes; /* buckets, or NULL before the first */
    int n_lanes;

    /* Batches. Two run side by side when each is full: while the database works
     * for one, the next is made. */
    bool is_batched;
    bool is_by_lane; /* the batch shares a transaction, handle() runs for each:
                        its deliveries are of different lanes */
    int batch_max, batch_now; /* the second shrinks after limits */
    int64_t batch_wait_ms;
    int n_batches; /* that run */
    int n_ready;   /* waiting, of strands of which none runs */
    unsigned busy_strands;
    ev_timer batch_timer;
    ev_timer unload_timer;
};

/* --- unit_lane.c: order, and what the host is told --------------------------- */

struct lane *lane_find(struct unit *unit, uint64_t id);
struct lane *lane_make(struct unit *unit, uint64_t id);
void lane_remove(struct unit *unit, struct lane *lane);
void lanes_free(struct unit *unit);

/* A delivery begins to run. */
void begin_event(struct unit *unit, struct event *ev);
/* It has ended: tell the host, let its lane go on, forget the event. */
void end_event(struct unit *unit, struct event *ev, const struct outcome *o,
               struct task *task);
/* One that has not run goes back; it is in some list. */
void give_back(struct unit *unit, struct event *ev);
void queue_event(struct unit *unit, struct event *ev);
/* It is in the unit's waiting list, and leaves it. */
void take_waiting(struct unit *unit, struct event *ev);
struct event *unqueue_event(struct unit *unit);

/* The control page: what runs, signs of life. */
void mark_started(struct runtime *rt, uint32_t slot, bool on);
void mark_running(struct runtime *rt, uint32_t slot_plus_1, uint32_t n);
void mark_alive(struct runtime *rt);

/* --- unit_batch.c ----------------------------------------------------------------- */

void batch_init(struct unit *unit, const json_t *decl);
bool is_batch_due(const struct unit *unit);
void start_batch(struct unit *unit);
void wait_for_company(struct unit *unit);
bool is_strand_busy(const struct unit *unit, const struct event *ev);

/* --- unit.c ------------------------------------------------------------------------- */

/* Whatever a run said of an event that is no JSON: dead. */
void outcome_undecodable(const struct event *ev, struct outcome *o);
/* Start what may run. */
void start_waiting(struct unit *unit);
/* A limit was hit: go on with a new vm. */
void replace_vm(struct unit *unit);

#endif
