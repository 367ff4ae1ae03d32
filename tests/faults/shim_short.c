/*
 * LD_PRELOAD: the FAULT_MALLOC-th allocation of the process fails, and every
 * thread from the FAULT_THREADS-th on. Once a process, so that one fault is
 * looked at at a time. A crash tells where it was: libraries that do not look
 * at what malloc gave them are told from our own code by that.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <threads.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *ptr, size_t size);

static atomic_long allocations, threads;
static long failing = -1, threads_max = -1;

static void on_crash(int signum)
{
    void *frames[16];

    backtrace_symbols_fd(frames, backtrace(frames, 16), 2);
    signal(signum, SIG_DFL);
    raise(signum);
}

__attribute__((constructor)) static void read_wishes(void)
{
    void *frames[2];

    const char *number = getenv("FAULT_MALLOC");
    const char *max = getenv("FAULT_THREADS");

    failing = number ? atol(number) : -1;
    threads_max = max ? atol(max) : -1;
    backtrace(frames, 2); /* the first call allocates */
    signal(SIGSEGV, on_crash);
}

static int fails(void)
{
    if (failing < 0 || atomic_fetch_add(&allocations, 1) + 1 != failing)
        return 0;
    errno = ENOMEM;
    return 1;
}

static int is_one_too_many(void)
{
    return threads_max >= 0 && atomic_fetch_add(&threads, 1) >= threads_max;
}

void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *ptr, size_t size)
{
    return fails() ? NULL : __libc_realloc(ptr, size);
}

#define REAL(name) ((__typeof__(&name))(long)dlsym(RTLD_NEXT, #name))

int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                   void *(*run)(void *), void *arg)
{
    return is_one_too_many() ? EAGAIN
                             : REAL(pthread_create)(thread, attr, run, arg);
}

int thrd_create(thrd_t *thread, thrd_start_t run, void *arg)
{
    return is_one_too_many() ? thrd_error : REAL(thrd_create)(thread, run, arg);
}
