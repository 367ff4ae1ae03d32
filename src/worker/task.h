/* A task's inside and its life, for sched.c, unit.c and the probe. */
#ifndef MT_WORKER_TASK_H
#define MT_WORKER_TASK_H

#include "base/buf.h"
#include "ipc/msg.h"
#include "worker/event.h"
#include "worker/sched.h"
#include "worker/vm_internal.h"

#include <ev.h>

/* How a run of Lua ended that did not end well, or with more than an ack. */
struct outcome {
    enum verdict verdict;
    enum error_class class;
    int64_t after_ms;
    char code[CODE_MAX];
    char *reason, *traceback; /* heap, or NULL */
    bool is_duplicate;
};

void outcome_fini(struct outcome *o);

struct task {
    struct list link; /* in vm->busy or vm->spare */
    struct vm *vm;
    lua_State *co;
    int co_ref;
    struct list owned; /* struct owned, newest first */
    struct owned *waiting;
    struct event *event;  /* the delivery; NULL for batches and calls */
    struct event **batch; /* events of a batch */
    int batch_len;
    unsigned strands; /* whose deliveries are in the batch */
    int64_t batch_began_us;
    int calls;          /* for idempotency keys */
    int verdicts;       /* made by ctx and not yet seen */
    int tx_ref;         /* ctx.tx in the registry, or LUA_NOREF */
    int outputs_ref;    /* what goes to Kafka at its end, or LUA_NOREF */
    struct buf effects; /* recorded, JSON objects with commas */
    bool is_duplicate;
    bool was_suspended;
    ev_timer timer;
    int64_t deadline_us;
    int64_t refused_until_us; /* by a breaker, which lets nobody pass before; 0:
                                 by none */

    /* The coroutine has ended: `failure` NULL when it returned. For serve
     * tasks only failures of their current delivery come here. */
    void (*on_end)(struct task *task, struct outcome *failure);
    /* It waits for the first time. */
    void (*on_suspend)(struct task *task);
    void *arg;
};

/* A task with an empty coroutine. */
struct task *task_take(struct vm *vm);
/* The coroutine's stack holds a function and `nargs` arguments: run it. The
 * task may be gone afterwards. */
void task_run(struct task *task, int nargs);
/* What a delivery leaves behind: owned things, ctx.tx, counters. */
void task_clean(struct task *task);
/* End it from outside: timeout or a vm that is closed. */
void task_end(struct task *task, struct outcome *failure);
void tasks_free(struct vm *vm); /* the spare ones */

/* From a raised value on top of the coroutine, with a traceback. */
void outcome_of_error(struct task *task, struct outcome *o);
/* From the values that REF_OUTCOME or REF_DESCRIBE returned, at `first`:
 * kind, class, code, reason, after, traceback. Raises nothing. */
void outcome_read(lua_State *L, int first, struct outcome *o);
void outcome_limit(const struct vm *vm, struct outcome *o);

#endif
