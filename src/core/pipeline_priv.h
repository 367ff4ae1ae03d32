/* What pipeline.c (events and verdicts), dispatch.c (workers) and window.c
 * (partitions and positions) share. Nobody else includes it. */
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
    bool is_held, has_skips;
    int64_t now_us, wall_us;

    struct scan *scan; /* for handlers with a key of their own */
    struct router *router;
    struct handler **handlers;
    size_t n_handlers;

    struct list partitions;
    uint64_t next_serial;
    struct pool events, deliveries;
    struct lanes lanes;
    struct timers timers;

    struct worker_slots *workers[PIPELINE_WORKERS_MAX];
    struct list spare_ready; /* lanes that want the spare worker */

    uint64_t counts[DELIVERY_STATE_COUNT];
    uint64_t n_events, cost;
    uint32_t n_full; /* partitions whose window is full and not paused */
    bool room_refused;
    struct series *latency, *latency_s, *received[SOURCE_KIND_COUNT];
};

/* dispatch.c */
void lane_wake(struct pipeline *pl, struct lane *lane);
void handler_unblock(struct pipeline *pl, struct handler *h);
void spare_pump(struct pipeline *pl);

/* pipeline.c */
void delivery_settle(struct pipeline *pl, struct delivery *d, enum verdict how);
void delivery_drop(struct pipeline *pl, struct delivery *d);
void delivery_wait(struct pipeline *pl, struct delivery *d, int64_t delay_ms);
void attempt_failed(struct pipeline *pl, struct delivery *d,
                    const struct verdict_msg *v);
void event_done_with(struct pipeline *pl, struct event *ev);
void lane_rewind(struct lane *lane);
void lane_settle(struct pipeline *pl, struct lane *lane);

/* window.c */
bool cursor_accepts(const struct partition *p, const struct handler *h,
                    const struct event *ev);
void cursor_settled(struct delivery *d);
void window_taken(struct pipeline *pl, struct event *ev);
void window_left(struct pipeline *pl, struct partition *p, uint32_t cost);
void partition_may_be_quiet(struct pipeline *pl, struct partition *p);
void partitions_add_cursor(struct pipeline *pl, struct partition *p);
void window_tick(struct pipeline *pl);
void window_give_room(struct pipeline *pl);

#endif
