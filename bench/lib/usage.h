/* Wall clock, CPU and memory of this process, from a start to the printing. */
#ifndef MT_BENCH_USAGE_H
#define MT_BENCH_USAGE_H

struct usage {
    double seconds, cpu;
};

struct usage usage_start(void);
/* One line of JSON: events, seconds, cpu_us an event, peak_kib, and `name`. */
void usage_print(const struct usage *start, long events, const char *name,
                 long value);

#endif
