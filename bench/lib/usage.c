#include "usage.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

static double seconds(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct usage usage_start(void)
{
    return (struct usage){seconds(CLOCK_MONOTONIC),
                          seconds(CLOCK_PROCESS_CPUTIME_ID)};
}

void usage_print(const struct usage *start, long events, const char *name,
                 long value)
{
    struct usage end = usage_start();
    struct rusage peak;

    getrusage(RUSAGE_SELF, &peak);
    printf("{\"events\": %ld, \"seconds\": %.6f, \"cpu_us\": %.4f, "
           "\"peak_kib\": %ld, \"%s\": %ld}\n",
           events, end.seconds - start->seconds,
           (end.cpu - start->cpu) * 1e6 / (double)events, peak.ru_maxrss, name,
           value);
}
