/*
 * The flow: source → event → router → lanes → workers → verdicts → positions.
 *
 * The pipeline owns every event from pipeline_offer() to its release, and the
 * order, retries and accounting of every delivery. It does no I/O and reads no
 * clock: the host tells it the time (pipeline_tick), carries deliveries to the
 * workers (ops->send), stores dead letters (ops->store) and brings verdicts
 * back (pipeline_verdict). One thread; callbacks may call the pipeline again,
 * except from within send().
 */
#ifndef MT_CORE_PIPELINE_H
#define MT_CORE_PIPELINE_H

#include "core/delivery.h"
#include "core/flags.h"
#include "core/handler.h"
#include "core/partition.h"
#include "ipc/msg.h"

struct pipeline;

#define PIPELINE_WORKERS_MAX 65 /* the last one is the spare */

struct pipeline_ops {
    /* Write the event with these of its deliveries (1…DELIVER_MAX) to the
     * worker's ring; false when it is full (the pipeline tries again at
     * pipeline_pump). */
    bool (*send)(void *ctx, unsigned worker, const struct event_msg *ev,
                 const struct delivery_msg *to, size_t n);
    /* Store a dead letter, or a skip (how says which), then call
     * pipeline_stored(). The delivery is borrowed until then. */
    void (*store)(void *ctx, struct delivery *d, enum verdict how);
    /* Keep it for later in durable storage, with what it needs to go on, then
     * call pipeline_parked(); in the order of the calls. A PARK_RETRY goes on
     * after `delay_ms`, a PARK_HELD when `flag` lets it. */
    void (*park)(void *ctx, struct delivery *d, enum park_reason reason,
                 int64_t delay_ms, const char *flag);
    /* A dead letter of a handler that then stops (on_dead). Hold it. */
    void (*stopped)(void *ctx, struct handler *h, const struct delivery *d);
    /* Nothing of the partition runs any more after pipeline_quiet(). */
    void (*quiet)(void *ctx, struct partition *p);
    /* A worker found that the position row has another owner. */
    void (*fenced)(void *ctx, struct partition *p);
    /* pipeline_room() said 0 before: there is room again. */
    void (*room_again)(void *ctx);
    /* A delivery wants the spare worker, which is not up. */
    void (*want_spare)(void *ctx);
    /* A handler left the partition's reading because it was slow, or (not
     * `is_behind`) takes part in it again. */
    void (*behind)(void *ctx, struct partition *p, struct handler *h,
                   bool is_behind);
    /* It came back from its worker and did not end well: what it gave out does
     * not count. Only of handlers with in_kafka. */
    void (*returned)(void *ctx, const struct delivery *d);
};

struct pipeline_config {
    uint32_t window_events; /* per partition */
    uint64_t window_bytes;  /* over all */
    size_t event_bytes;     /* facts and body: what op send() can take */
    unsigned n_workers;     /* 1…64; the spare one has this number */
    int64_t quarantine_us;  /* how long after a crash a handler stays there */
    int64_t park_after_ms;  /* longer waits go to op park(); 0: none does */
};

struct pipeline *pipeline_new(const struct pipeline_config *config,
                              const struct pipeline_ops *ops, void *ctx,
                              struct metrics *metrics);
/* Gives every event back to its source, unsettled. */
void pipeline_free(struct pipeline *pl);

/* --- time ------------------------------------------------------------------ */

/* Once a turn of the loop: what is due becomes ready. */
void pipeline_tick(struct pipeline *pl, int64_t now_us, int64_t wall_us);
/* When to tick again at the latest (µs, monotonic). */
int64_t pipeline_next_tick(const struct pipeline *pl);

/* --- handlers -------------------------------------------------------------- */

/* Finds or makes; index 0, named "", takes what cannot be decoded. */
struct handler *pipeline_handler(struct pipeline *pl, const char *name);
size_t pipeline_handlers(const struct pipeline *pl,
                         struct handler *const **handlers);
/* The version that runs from now on. Takes `spec`. `vm` is loaded in every
 * worker that is up. */
void pipeline_switch(struct pipeline *pl, struct handler *h,
                     struct handler_spec *spec, uint32_t vm);
/* Held or removed: positions stay, the windows go on without it. */
void pipeline_detach(struct pipeline *pl, struct handler *h, bool is_removed);
/* Back: where it missed something it has a reading of its own for a while. */
void pipeline_attach(struct pipeline *pl, struct handler *h);
/* The spare worker and the others: which one may run how many lanes. */
unsigned pipeline_concurrency_at(const struct pipeline *pl,
                                 const struct handler *h, int concurrency,
                                 unsigned worker);

/* Flags are borrowed for good; call after each change. `held`: no delivery is
 * sent and nothing more is taken. */
void pipeline_flags(struct pipeline *pl, const struct flags *flags, bool held);

/* --- partitions ------------------------------------------------------------ */

struct partition *pipeline_open(struct pipeline *pl,
                                const struct source_ops *ops, void *source,
                                const char *topic, int32_t number,
                                const char *name, const char *source_id);
/* A handler's position is known. Takes from->gaps. Behind a reading that goes on
 * already, the handler gets one of its own. */
void pipeline_open_cursor(struct partition *p, struct handler *h,
                          struct position *from, int64_t epoch);
/* All known: the source starts at the earliest of them, but for those that are
 * far behind the others. */
void pipeline_start(struct partition *p);
/* Nothing new is sent; ops->quiet() follows, at once when nothing runs. */
void pipeline_quiet(struct partition *p);
/* Give up what still runs: late verdicts settle nothing. After a deadline. */
void pipeline_abandon(struct partition *p);
/* After quiet (or abandon): forget it. Frees `p`. */
void pipeline_close(struct partition *p);
void pipeline_trouble(struct partition *p, const char *text);

/* What an operator gives up, so that a reading goes on: everything below `low`
 * (it is not there any more), and from `first` up to below `next`. */
struct given_up {
    int64_t low, first, next;
};
/* What of that the handler has not had; ranges_fini() it. */
void pipeline_would_lose(const struct partition *p, const struct handler *h,
                         const struct given_up *what, struct ranges *lost);
/* Nobody waits for it any more; `h` NULL: the partition's own reading and all
 * handlers, and reading goes on at `next`, also where that is further back: a
 * log that has become shorter. Deliveries in memory stay. */
void pipeline_give_up(struct partition *p, struct handler *h,
                      const struct given_up *what);

#define PARTITIONS_MAX 4096
/* The open ones, in the order of opening. */
size_t pipeline_partitions(struct pipeline *pl, struct partition **all,
                           size_t max);
typedef void pipeline_partition_fn(void *arg, struct partition *p);
void pipeline_each(struct pipeline *pl, pipeline_partition_fn *fn, void *arg);

/* Where a handler stands: what may be stored. False when the cursor is not
 * open. `at` is filled; ranges_fini() it. */
bool pipeline_position(const struct partition *p, const struct handler *h,
                       struct position *at);
/* As far as any handler or the reading is: what "now" means for a newcomer. */
int64_t pipeline_front(const struct partition *p);
/* The watermark of the attached handlers; false when there are none. */
bool pipeline_watermark(const struct partition *p, int64_t *next);
/* The oldest delivery of the handler that is not settled, or NULL. */
const struct delivery *pipeline_oldest(const struct partition *p,
                                       const struct handler *h);

/* --- events ---------------------------------------------------------------- */

struct event *pipeline_event_new(struct pipeline *pl, struct partition *p);
size_t pipeline_room(struct pipeline *pl);
void pipeline_offer(struct pipeline *pl, struct event *ev);
void pipeline_advance(struct partition *p, int64_t next);
/* The answer to ops->fetch(): see source_sink. */
void pipeline_fetched(struct partition *p, int64_t next);
void pipeline_stored(struct pipeline *pl, struct delivery *d);
/* It may not be stored: another host has the partition by now. */
void pipeline_not_stored(struct pipeline *pl, struct delivery *d);

/* --- the parked queue -------------------------------------------------------- */

void pipeline_parked(struct pipeline *pl, struct delivery *d);
/* A parked delivery's turn: `ev` with its partition, ops, parked_id and
 * parked_attempts. It goes back (ops->release) where it is not wanted now. */
void pipeline_offer_parked(struct pipeline *pl, struct event *ev,
                           struct handler *h);
/* Something of this lane (a lane's id) is parked, or nothing is any more. */
void pipeline_block(struct partition *p, const struct handler *h,
                    uint64_t lane);
void pipeline_unblock(struct partition *p, const struct handler *h,
                      uint64_t lane);
/* What the lane of a delivery is called in storage; false: it is alone, nothing
 * follows it. */
bool pipeline_lane(const struct delivery *d, uint64_t *lane);

/* --- workers --------------------------------------------------------------- */

void pipeline_worker_up(struct pipeline *pl, unsigned worker);
/* Send what is ready; `worker` or all. */
void pipeline_pump(struct pipeline *pl, unsigned worker);
void pipeline_pump_all(struct pipeline *pl);
void pipeline_verdict(struct pipeline *pl, unsigned worker,
                      const struct verdict_msg *v);

/* What runs in this slot of the worker; NULL: nothing, or not that any more. */
const struct delivery *pipeline_running(const struct pipeline *pl,
                                        unsigned worker, uint32_t slot,
                                        uint32_t generation);

struct worker_death {
    bool something_ran;      /* `running` is what executed */
    uint32_t running;        /* slot */
    uint32_t run_count;      /* above 1: a batch that began with it */
    const uint64_t *started; /* bits by slot */
    enum error_class class;
    const char *reason;
    /* Somebody else killed it (kill -9, the kernel for want of memory): what
     * executed has failed an attempt, but its handler is not to blame. */
    bool is_from_outside;
};
void pipeline_worker_died(struct pipeline *pl, unsigned worker,
                          const struct worker_death *death);
bool pipeline_worker_is_idle(const struct pipeline *pl, unsigned worker);

/* --- numbers --------------------------------------------------------------- */

struct pipeline_numbers {
    uint64_t deliveries[DELIVERY_STATE_COUNT];
    uint64_t events, cost, lanes; /* now */
    double received;              /* events, ever */
};
void pipeline_numbers(const struct pipeline *pl, struct pipeline_numbers *n);

#endif
