/* What pipeline.c (events and verdicts), dispatch.c (workers), window.c
 * (partitions and back-pressure), cursor.c (positions) and behind.c (handlers
 * with a reading of their own) share. Nobody else includes it. */
#ifndef MT_CORE_PIPELINE_PRIV_H
#define MT_CORE_PIPELINE_PRIV_H

#include "core/lane.h"
#include "core/pipeline.h"
#include "core/router.h"
#include "core/timers.h"
#include "ipc/channel.h"

struct worker_slots {
    bool is_up;
    struct list ready; /* lanes that have something to send here */
    struct delivery *at[CHANNEL_SLOTS];
    uint32_t generation[CHANNEL_SLOTS];
    uint16_t free[CHANNEL_SLOTS];
    uint32_t n_free;
};

struct pipeline {
    struct pipeline_config config;
    const struct pipeline_ops *ops;
    void *ctx;
    struct metrics *metrics;
    const struct flags *flags;
    bool is_held;
    bool has_partial_flags; /* one holds or skips a part of the events */
    bool has_blocked;       /* a lane was blocked, ever */
    int64_t now_us, wall_us;

    struct scan *scan; /* for handlers with a key of their own */
    struct router *router;
    struct handler **handlers;
    size_t n_handlers;
    bool has_rates; /* a handler has one */

    struct list partitions;
    struct pool events, deliveries;
    struct lanes lanes;
    struct timers timers;

    struct worker_slots *workers[PIPELINE_WORKERS_MAX];
    struct list spare_ready; /* lanes that want the spare worker */

    uint64_t counts[DELIVERY_STATE_COUNT];
    uint64_t n_events, cost;
    uint64_t n_aside, aside_cost; /* of these: that no attached one waits for */
    uint32_t n_behind;            /* handlers that are, anywhere */
    int64_t behind_again_us, pressed_since_us;
    size_t behind_turn;
    uint32_t n_full; /* partitions whose window is full and not paused */
    bool room_refused;
    struct series *latency, *latency_s, *received[SOURCE_KIND_COUNT];
};

/* dispatch.c */
void lane_wake(struct pipeline *pl, struct lane *lane);
void handler_unblock(struct pipeline *pl, struct handler *h);
void rates_tick(struct pipeline *pl);
void spare_pump(struct pipeline *pl);

/* parked.c */
/* Is its lane blocked, or its key held by a flag? Then it goes there. */
bool parked_instead(struct pipeline *pl, struct delivery *d);
void park(struct pipeline *pl, struct delivery *d, enum park_reason reason,
          int64_t delay_ms, const char *flag);
/* Nothing of the lane is in flight: if it is blocked, or was cut, what waits in
 * it and may not run leaves. Its head is set. */
void parked_clear(struct pipeline *pl, struct lane *lane);
/* Those of a handler, or of all, go back to the queue. */
void parked_leave(struct pipeline *pl, struct partition *p,
                  const struct handler *only);
/* What the flags say of a part of the events, and which one. */
#define FLAG_NAME_SIZE 300
enum part { PART_ON, PART_SKIP, PART_HOLD };
enum part flags_say(const struct pipeline *pl, const struct delivery *d,
                    char name[static FLAG_NAME_SIZE]);

/* pipeline.c */
void delivery_store(struct pipeline *pl, struct delivery *d);
/* From its worker, and not well: tells those who may hold what it gave out. */
void delivery_returned(struct pipeline *pl, const struct delivery *d);
void delivery_end(struct pipeline *pl, struct delivery *d, enum verdict how);
struct delivery *delivery_new(struct pipeline *pl, struct event *ev,
                              struct handler *h);
void delivery_settle(struct pipeline *pl, struct delivery *d, enum verdict how);
void delivery_drop(struct pipeline *pl, struct delivery *d);
void delivery_forget(struct pipeline *pl, struct delivery *d);
void delivery_wait(struct pipeline *pl, struct delivery *d, int64_t delay_ms);
void attempt_failed(struct pipeline *pl, struct delivery *d,
                    const struct verdict_msg *v);
void event_done_with(struct pipeline *pl, struct event *ev);
void lane_rewind(struct lane *lane);
void lane_settle(struct pipeline *pl, struct lane *lane);

/* cursor.c */
bool cursor_accepts(const struct partition *p, const struct handler *h,
                    const struct event *ev);
void cursor_took(struct cursor *c, struct delivery *d);
void cursor_forgets(struct cursor *c, struct delivery *d);
void cursor_settled(struct delivery *d);
/* It keeps what it had, and goes on in `mode`. Of what is in memory the oldest
 * `keep` stay, and more where they run; 0: what runs settles well or not at
 * all, the rest is dropped. */
void cursor_leave(struct pipeline *pl, struct partition *p, struct cursor *c,
                  enum cursor_mode mode, uint32_t keep);
/* Nothing of it is waited for any more. */
void cursor_give_up(struct cursor *c, const struct given_up *what);
void cursor_set_mode(struct partition *p, struct cursor *c,
                     enum cursor_mode mode);
/* What lies below from.next and has to be read again for it. */
void cursor_wanted(const struct partition *p, const struct cursor *c,
                   struct ranges *wanted);

/* behind.c */
void behind_tick(struct pipeline *pl);
void behind_close(struct partition *p);
/* An event of a handler's own reading, which has passed its place now: is it
 * one that the handler has not had? */
bool behind_takes(const struct event *ev);
/* Where it takes part from now on: with the others, or by itself at first. */
void cursor_return(struct partition *p, struct cursor *c);

/* window.c */
/* Events that a handler waits for which is attached. */
uint32_t window_live(const struct partition *p);
/* Bytes of them, and how many there may be. */
uint64_t window_live_cost(const struct pipeline *pl);
uint64_t window_live_bytes(const struct pipeline *pl);
void window_taken(struct pipeline *pl, struct event *ev);
/* Its deliveries are made, or one has ended, or its handler is not attached any
 * more: does any handler wait for it that is? */
void window_review(struct pipeline *pl, struct event *ev);
void window_left(struct pipeline *pl, struct event *ev);
void partition_may_be_quiet(struct pipeline *pl, struct partition *p);
void partitions_add_cursor(struct pipeline *pl, struct partition *p);
void window_tick(struct pipeline *pl);
void window_give_room(struct pipeline *pl);

#endif
