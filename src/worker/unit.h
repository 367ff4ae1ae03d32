/*
 * A loaded handler version in this worker: what arrives for it, in which order
 * it runs, and what its runs say.
 *
 * One delivery of a lane runs at a time. After a verdict other than ack or skip
 * a lane is broken: what is here of it goes back unrun until a delivery says
 * that it is fresh. While nothing waits and no lane is broken, a delivery goes
 * from the ring into the coroutine and its verdict back without any lookup.
 *
 * A vm that hit a limit is replaced by a new one of the same bundle at once;
 * what is suspended in the old one ends there.
 */
#ifndef MT_WORKER_UNIT_H
#define MT_WORKER_UNIT_H

#include "worker/task.h"

struct unit;

enum unit_state {
    UNIT_LOADING, /* init runs */
    UNIT_READY,
    UNIT_BROKEN, /* could not be loaded again after a limit */
    UNIT_UNLOADING,
};

/* Made from the bundle (borrowed). `on_loaded` comes once, maybe from inside
 * this call: err NULL when deliveries may come. */
struct unit *unit_new(struct runtime *rt, uint32_t id, json_t *bundle,
                      void (*on_loaded)(struct unit *unit,
                                        const struct err *err));
/* Nothing of it may run. */
void unit_free(struct unit *unit);

/* Do deliveries of such a handler share transactions, lane by lane? When SQL is
 * all that it may do, and it is for real. */
bool unit_is_grouped(const json_t *decl, enum effect_mode mode);

uint32_t unit_id(const struct unit *unit);
struct runtime *unit_runtime(const struct unit *unit);
const char *unit_name(const struct unit *unit);
struct vm *unit_vm(const struct unit *unit);

/* A delivery of a record. */
void unit_offer(struct unit *unit, struct record *record,
                const struct delivery_msg *d);
/* No more for now: start what waits for company. */
void unit_flush(struct unit *unit);
/* Forget broken lanes of which nothing can be on its way any more: the host
 * has read `verdicts` bytes, and of what it wrote then, we have read all. */
void unit_sweep(struct unit *unit, uint64_t host_read, uint64_t host_wrote,
                uint64_t we_read);

/* Finish what is here, run on_unload, then call `done` (not from inside). */
void unit_unload(struct unit *unit, void (*done)(struct unit *unit));
bool unit_is_idle(const struct unit *unit);

/* Lua's side, for host_api.c: */
int unit_l_begin(lua_State *L);  /* → event, ctx | nothing */
int unit_l_finish(lua_State *L); /* (verdict) */
int unit_l_settle(lua_State *L); /* (i, kind, class, code, reason, after,
                                  *  traceback, duplicate) */
int unit_l_stop_sharing(lua_State *L);
int unit_l_place(lua_State *L); /* (i|nil) → id, lane, source, partition */
int unit_l_slot(lua_State *L);  /* () → slot, generation */
int unit_l_fence(lua_State *L); /* (i|nil) → source, partition, epoch */

#endif
