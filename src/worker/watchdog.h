/*
 * The thread that ends Lua which runs too long without waiting.
 *
 * It looks at the run mark a few times per soft limit; the same odd number for
 * a whole limit of the thread's processor time means a run that does not end, and
 * the hook is set in that vm: once, and again only while it has not fired,
 * because it can get lost. Only the vm's own thread clears it. The hook raises
 * only when the run it was meant for still goes on, and stays set while it does,
 * so that no pcall of the handler's survives it.
 */
#ifndef MT_WORKER_WATCHDOG_H
#define MT_WORKER_WATCHDOG_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct runtime;
struct vm;
struct watchdog;

/* A watchdog over `rt`. `silence_us`: end the process when the host has not
 * been alive for so long; 0 for no host. */
struct watchdog *watchdog_new(struct runtime *rt, int64_t silence_us);
void watchdog_free(struct watchdog *wd);

/* On the calling thread until watchdog_stop(), or on a thread of its own. */
void watchdog_run(struct watchdog *wd);
bool watchdog_start(struct watchdog *wd, struct err *err) MUST_CHECK;
void watchdog_stop(struct watchdog *wd);
/* From the watched thread, which is about to end: watchdog_run() returns. */
void watchdog_stop_only(struct watchdog *wd);

/* By the vm's thread: Lua of `vm` runs from now on, or no longer. Runs do not
 * nest, and are all of one thread. run_end() clears a hook that was set. */
void run_begin(struct runtime *rt, struct vm *vm);
void run_end(struct runtime *rt, struct vm *vm);
/* A new run of the same vm, without a pause: the next delivery. */
void run_next(struct runtime *rt);

/* The vm goes away: the watchdog will not touch it any more. */
void watchdog_forget(struct runtime *rt, struct vm *vm);

#endif
