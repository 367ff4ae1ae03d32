/*
 * The circuit breakers of this process: one for each handler and destination (a
 * http origin, a database, the mail server). Each worker has its own and learns
 * by itself; the host is told which are open (MSG_METRICS).
 *
 * A handler's `breaker` says when they open; none in a dry run or a spec. There
 * is room for BREAKERS_MAX; beyond that calls are not watched. The loop's thread.
 */
#ifndef MT_WORKER_BREAKERS_H
#define MT_WORKER_BREAKERS_H

#include "worker/breaker.h"

#include <jansson.h>

struct lua_State;
struct task;

#define BREAKERS_MAX 256

struct breaker_rule {
    struct breaker_policy policy;
    bool is_off;
};

/* From a handler's declaration. */
void breaker_rule_read(struct breaker_rule *rule, const json_t *decl);

/* One call, from breakers_enter() to breakers_leave(). All zero is none. */
struct breaker_call {
    struct breaker_line *line; /* NULL: over, or not watched */
    struct task *task;
    uint32_t ticket;
};

/* False when the breaker is open: the task is told to wait, and
 * push_breaker_open() says so to Lua. */
bool breakers_enter(struct task *task, const char *destination,
                    struct breaker_call *call);
/* Once; harmless on a call that is over. */
void breakers_leave(struct breaker_call *call, enum breaker_result result);
/* Its task ended first. By its timeout: that is the destination's failure. */
void breakers_drop(struct breaker_call *call);

/* → nil, err of class transient and code breaker_open */
int push_breaker_open(struct lua_State *L, const char *destination);

#endif
