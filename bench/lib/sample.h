/*
 * The events that all benchmarks share: native envelopes of an order, each with
 * other numbers, names and lengths, as equal bodies flatter every parser. The
 * same number gives the same event on every machine.
 */
#ifndef MT_BENCH_SAMPLE_H
#define MT_BENCH_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

struct sample {
    char id[40], key[24], type[32], occurred_at[32];
    char value[4096];
    size_t value_len;
};

/* Event `number`, of one of `keys` aggregates, filled up to about `size`
 * bytes (400 to 4000). */
void sample_make(struct sample *s, uint64_t number, uint64_t keys, size_t size);
/* It occurs at another time, µs since 1970. */
void sample_stamp(struct sample *s, int64_t us);
/* The payload's text inside the envelope. */
const char *sample_payload(const struct sample *s, size_t *len);

#endif
