/*
 * Tasks: Lua running in a coroutine, and how C functions make it wait.
 *
 * A task is one run of handler code: a delivery, a batch, init. A C function
 * that needs the loop starts its operation, hands an `owned` to the task and
 * returns task_suspend(); the coroutine sleeps (through handlers' own
 * coroutines as well) until the libev callback calls task_resume(). When the
 * task ends first (timeout, killed VM), `drop` is called instead: the operation
 * is abandoned, and nothing of the task may be touched any more.
 *
 *     static int l_sleep(lua_State *L)
 *     {
 *         struct task *task = task_enter(L, "timer.sleep");   // may raise
 *         struct nap *nap = xcalloc(1, sizeof(*nap));
 *         … start ev_timer …
 *         task_own(task, &nap->owned, drop_nap);
 *         return task_suspend(L, &nap->owned);
 *     }
 *     static int push_result(lua_State *L, void *arg) { … return 1; }
 *     static void on_timer(…)
 *     {
 *         task_resume(&nap->owned, push_result, nap);  // disowns first
 *         free(nap);
 *     }
 *
 * Only one operation of a task can be suspended on; things kept over several
 * (a pinned connection) are owned too and dropped at the task's end, newest
 * first.
 */
#ifndef MT_WORKER_SCHED_H
#define MT_WORKER_SCHED_H

#include "base/list.h"
#include "base/words.h"

#include <stdbool.h>
#include <stdint.h>

struct lua_State;
struct runtime;
struct task;
struct vm;

struct owned {
    struct list link;
    struct task *task; /* NULL: not owned, or its task has ended */
    void (*drop)(struct owned *owned);
};

/* The task that runs on L now. Raises the named misuse when API calls cannot
 * wait here: "db.query cannot be called while loading (only in: handle)". */
struct task *task_enter(struct lua_State *L, const char *what);

/* The same without the need to wait: NULL while loading. Never raises. */
struct task *task_current(struct lua_State *L);

void task_own(struct task *task, struct owned *owned,
              void (*drop)(struct owned *owned));
void task_disown(struct owned *owned); /* harmless when not owned */

/* `return task_suspend(L, &op->owned);` the last thing a C function does. */
int task_suspend(struct lua_State *L, struct owned *owned);

/*
 * From a libev callback, never from inside the C function that suspends: the
 * operation is done. It is disowned, `push` pushes its results (protected: it
 * may raise, and is given a state of its own) and returns how many, at most 16;
 * then the coroutine runs on. Frees nothing of the caller's. Does nothing when
 * the task has ended.
 */
void task_resume(struct owned *owned,
                 int (*push)(struct lua_State *L, void *arg), void *arg);

/* What API yields start with; sandbox.lua compares it. */
const void *api_yield_mark(void);

struct vm *task_vm(const struct task *task);
struct runtime *task_runtime(const struct task *task);

/* Milliseconds until the task's deadline (handler.timeout). */
int64_t task_left_ms(const struct task *task);

/* --- errors as values ------------------------------------------------------ */

/* nil and an error table { class, code, message }; returns 2. `code` may be
 * NULL. */
int push_err(struct lua_State *L, enum error_class class, const char *code,
             const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* A duration argument, text such as "200ms" or seconds, in ms. Raises a misuse
 * that names `what`. Absent or nil gives `dflt`. */
int64_t check_duration_ms(struct lua_State *L, int index, const char *what,
                          int64_t dflt);

#endif
