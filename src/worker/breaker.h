/*
 * A circuit breaker: when a destination fails too often it is left alone for a
 * while, then asked once, and only when that goes well asked again by all.
 *
 *   closed ──failures──► open ──until──► half open ──the probe went well──► closed
 *                          ▲                  │
 *                          └── the probe failed
 *
 * Reads no clock and has no chance of its own: time (µs, any that only grows)
 * and random bits come in.
 */
#ifndef MT_WORKER_BREAKER_H
#define MT_WORKER_BREAKER_H

#include <stdbool.h>
#include <stdint.h>

#define BREAKER_SLICES 10

struct breaker_policy {
    double rate; /* opens when this share of the calls has failed, 0…1, */
    int calls;   /* of at least so many */
    int64_t window_us;
    int64_t open_us; /* at least; up to a fifth more by chance */
};

enum breaker_state { BREAKER_CLOSED, BREAKER_OPEN, BREAKER_HALF_OPEN };

/* All zero is a closed one. */
struct breaker {
    enum breaker_state state;
    uint32_t turn; /* one more at each change of state */
    bool is_probing;
    int64_t until_us; /* OPEN */
    struct {
        int64_t number; /* of the slice of time that is counted here */
        uint32_t calls, failures;
    } slices[BREAKER_SLICES]; /* the window; CLOSED */
};

/* How a call ended. UNKNOWN: given up for reasons of our own. */
enum breaker_result { BREAKER_OK, BREAKER_FAILED, BREAKER_UNKNOWN };

/* May the destination be asked? Who may, says how it went with `ticket`, once.
 * Only the first to come when the time is over may, until its answer is there. */
bool breaker_enter(struct breaker *b, int64_t now_us, uint32_t *ticket);

/* A call begun in an earlier state says nothing about this one: not counted. */
void breaker_leave(struct breaker *b, const struct breaker_policy *policy,
                   uint32_t ticket, enum breaker_result result, int64_t now_us,
                   uint64_t random);

/* Who was refused need not come again for so long. */
int64_t breaker_wait_us(const struct breaker *b,
                        const struct breaker_policy *policy, int64_t now_us);

#endif
