#include "worker/watchdog.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "worker/vm_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char component[] = "watchdog";

struct watchdog {
    struct runtime *rt;
    int64_t silence_us;
    pthread_mutex_t lock; /* between setting a hook and clearing or closing */
    pthread_cond_t stop_asked;
    bool is_stopping, has_thread;
    pthread_t thread;
    _Atomic bool has_clock;
    clockid_t clock; /* the watched thread's processor time */
    uint64_t seen;   /* the run seen at the last look */
    int64_t seen_since_us;
    int64_t set_us; /* when the hook of this run was set last */
};

struct watchdog *watchdog_new(struct runtime *rt, int64_t silence_us)
{
    struct watchdog *wd = xcalloc(1, sizeof(*wd));
    pthread_condattr_t attr;

    wd->rt = rt;
    wd->silence_us = silence_us;
    pthread_mutex_init(&wd->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&wd->stop_asked, &attr);
    pthread_condattr_destroy(&attr);
    rt->watchdog = wd;
    return wd;
}

void watchdog_free(struct watchdog *wd)
{
    if (!wd)
        return;
    watchdog_stop(wd);
    wd->rt->watchdog = NULL;
    pthread_cond_destroy(&wd->stop_asked);
    pthread_mutex_destroy(&wd->lock);
    free(wd);
}

/* --- the hook, on the vm's thread ------------------------------------------------ */

static void clear_hook(struct vm *vm)
{
    lua_sethook(vm->L, NULL, 0, 0);
    atomic_store(&vm->hook, HOOK_NONE);
}

static void on_hook(lua_State *L, lua_Debug *ar)
{
    struct vm *vm = vm_of(L);
    int set = HOOK_SET;

    (void)ar;
    /* The setter may still be inside lua_sethook(). */
    if (!atomic_compare_exchange_strong(&vm->hook, &set, HOOK_FIRED) &&
        set != HOOK_FIRED)
        return;
    if (atomic_load(&vm->hook_run) != atomic_load(&vm->rt->mark.number)) {
        clear_hook(vm); /* meant for a run that has ended */
        return;
    }
    vm->killed = true;
    luaL_error(L, "killed: soft time limit %dms",
               (int)(vm->soft_limit_us / 1000));
}

/* --- the watching thread ----------------------------------------------------------- */

/* LuaJIT changes the word that holds the hook's mask while it unwinds an error,
 * without looking whether we do: then the hook is lost, though it is set. */
#define LOST_US 50000

/* Again where it did not fire; where it did, it is there, and setting it would
 * be in its way (design 13.12). */
static void set_hook(struct watchdog *wd, struct vm *vm, uint64_t run,
                     int64_t now)
{
    int state = atomic_load(&vm->hook);

    if (state != HOOK_NONE && (state != HOOK_SET || now - wd->set_us < LOST_US))
        return;
    if (!atomic_compare_exchange_strong(&vm->hook, &state, HOOK_SETTING))
        return;
    wd->set_us = now;
    atomic_store(&vm->hook_run, run);
    lua_sethook(vm->L, on_hook, LUA_MASKCOUNT, 1);
    atomic_store(&vm->hook, HOOK_SET);
}

/* What the watched thread has used: on a machine that is short of processors a
 * handler is not to blame for the time it did not get. */
static int64_t used_us(const struct watchdog *wd)
{
    struct timespec t;

    if (!atomic_load(&wd->has_clock) || clock_gettime(wd->clock, &t) != 0)
        return clock_mono_us();
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void look_at_run(struct watchdog *wd)
{
    struct run_mark *mark = &wd->rt->mark;
    uint64_t run = atomic_load(&mark->number);
    int64_t now;
    struct vm *vm;

    if (run == wd->seen && !(run & 1))
        return;
    now = used_us(wd);

    if (run != wd->seen) {
        wd->seen = run;
        wd->seen_since_us = now;
        return;
    }
    vm = atomic_load(&mark->vm);
    if (vm && atomic_load(&mark->number) == run &&
        now - wd->seen_since_us >= vm->soft_limit_us)
        set_hook(wd, vm, run, now);
}

/* A worker whose host is gone or frozen must not go on acting (design 13.2). */
static void look_at_host(const struct watchdog *wd, int64_t now)
{
    const struct channel_control *control = wd->rt->control;
    int64_t alive;

    if (!wd->silence_us || !control)
        return;
    alive = atomic_load(&control->host_alive_us);
    if (alive && now - alive > wd->silence_us) {
        log_error("host is silent", "seconds=%lld",
                  (long long)((now - alive) / 1000000));
        _exit(3);
    }
}

#define LOOK_EVERY_US 10000

static void wait_a_little(struct watchdog *wd)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += LOOK_EVERY_US * 1000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_nsec -= 1000000000;
        at.tv_sec++;
    }
    pthread_cond_timedwait(&wd->stop_asked, &wd->lock, &at);
}

void watchdog_run(struct watchdog *wd)
{
    pthread_mutex_lock(&wd->lock);
    while (!wd->is_stopping) {
        look_at_run(wd);
        look_at_host(wd, clock_mono_us());
        wait_a_little(wd);
    }
    pthread_mutex_unlock(&wd->lock);
}

static void *thread_main(void *arg)
{
    watchdog_run(arg);
    return NULL;
}

bool watchdog_start(struct watchdog *wd, struct err *err)
{
    int rc = pthread_create(&wd->thread, NULL, thread_main, wd);

    if (rc)
        return err_set(err, ERR_FATAL, "starting the watchdog: %s",
                       strerror(rc));
    wd->has_thread = true;
    return true;
}

void watchdog_stop_only(struct watchdog *wd)
{
    pthread_mutex_lock(&wd->lock);
    wd->is_stopping = true;
    pthread_cond_broadcast(&wd->stop_asked);
    pthread_mutex_unlock(&wd->lock);
}

void watchdog_stop(struct watchdog *wd)
{
    watchdog_stop_only(wd);
    if (wd->has_thread)
        pthread_join(wd->thread, NULL);
    wd->has_thread = false;
}

/* --- marks, on the vm's thread -------------------------------------------------------- */

static void give_clock(struct watchdog *wd)
{
    if (pthread_getcpuclockid(pthread_self(), &wd->clock) == 0)
        atomic_store(&wd->has_clock, true);
}

void run_begin(struct runtime *rt, struct vm *vm)
{
    uint64_t n = atomic_load_explicit(&rt->mark.number, memory_order_relaxed);

    if (rt->watchdog &&
        !atomic_load_explicit(&rt->watchdog->has_clock, memory_order_relaxed))
        give_clock(rt->watchdog);
    atomic_store_explicit(&rt->mark.vm, vm, memory_order_relaxed);
    atomic_store_explicit(&rt->mark.number, n + 1, memory_order_release);
}

void run_next(struct runtime *rt)
{
    uint64_t n = atomic_load_explicit(&rt->mark.number, memory_order_relaxed);

    atomic_store_explicit(&rt->mark.number, n + 2, memory_order_release);
}

void run_end(struct runtime *rt, struct vm *vm)
{
    uint64_t n = atomic_load_explicit(&rt->mark.number, memory_order_relaxed);

    atomic_store_explicit(&rt->mark.number, n + 1, memory_order_release);
    if (atomic_load_explicit(&vm->hook, memory_order_relaxed) == HOOK_NONE)
        return;
    /* Under the lock the watchdog is not in the middle of setting it. */
    pthread_mutex_lock(&rt->watchdog->lock);
    clear_hook(vm);
    pthread_mutex_unlock(&rt->watchdog->lock);
}

void watchdog_forget(struct runtime *rt, struct vm *vm)
{
    if (!rt->watchdog)
        return;
    pthread_mutex_lock(&rt->watchdog->lock);
    if (atomic_load(&rt->mark.vm) == vm)
        atomic_store(&rt->mark.vm, NULL);
    pthread_mutex_unlock(&rt->watchdog->lock);
}
