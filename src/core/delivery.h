/*
 * One (event, handler) pair: the unit of work, retry, order and accounting.
 * Its state changes in delivery_set_state() and nowhere else.
 */
#ifndef MT_CORE_DELIVERY_H
#define MT_CORE_DELIVERY_H

#include "base/list.h"
#include "base/words.h"
#include "core/event.h"

struct handler;
struct lane;

#define DELIVERY_STATES(X)                                                  \
    X(WAITING)  /* in its lane, behind others or for a place in a worker */ \
    X(INFLIGHT) /* with a worker */                                         \
    X(BACKOFF)  /* failed or snoozed; due_us says when it goes on */        \
    X(STORING)  /* its dead letter or skip is being stored */               \
    X(SETTLED)  /* done; the memory is about to go */

enum delivery_state {
#define X(name) DELIVERY_##name,
    DELIVERY_STATES(X)
#undef X
        DELIVERY_STATE_COUNT,
};

/* Why a delivery waits in durable storage. */
enum park_reason {
    PARK_RETRY, /* its next attempt is far away */
    PARK_BEHIND, /* an earlier one of its lane is parked, or dead and waited for */
    PARK_HELD, /* a flag keeps it */
};
#define PARK_REASONS 3

const char *park_reason_name(enum park_reason reason);

#define FAILURES_MAX 20 /* attempts remembered in a dead letter's history */

struct failure {
    int attempt;
    int64_t at_us; /* wall clock */
    enum error_class class;
    char error[200];
};

/* Made at the first failure: most deliveries never have one. */
struct failures {
    int n;
    struct failure at[FAILURES_MAX];
    char code[40];
    char *error, *traceback; /* of the last one, whole */
};

/* So often a delivery may find others in its way in the database before that
 * counts as an attempt: with their delays about a minute. */
#define DELIVERY_AGAINS_MAX 100

struct delivery {
    struct event *event;
    struct handler *handler;
    struct lane *lane;
    struct list of_event;  /* struct event's deliveries */
    struct list in_lane;   /* struct lane's deliveries, in order */
    struct list in_cursor; /* struct cursor's unsettled, in order of arrival */
    struct failures *failures;
    int64_t due_us;      /* BACKOFF */
    uint32_t heap_index; /* in the pipeline's timers, BACKOFF only */
    uint32_t slot;       /* INFLIGHT: in its worker's table */
    uint16_t attempt;    /* the one that runs or will run, from 1 */
    uint8_t crashes;     /* strikes: three make a dead letter */
    uint8_t state;       /* enum delivery_state */
    uint8_t agains;      /* in a row, see DELIVERY_AGAINS_MAX */
    bool is_suspect;     /* held by a worker that died of nobody knows what */
    bool is_dropped;     /* its partition closes or its handler is held:
                            whatever comes back settles nothing */
    bool is_aside;       /* its handler is not attached: see window.c */
    uint8_t settling;    /* STORING: the enum verdict to settle with */
    bool is_letter;      /* STORING: as a dead letter */
    bool is_parking;     /* STORING: it goes into the parked queue */
};

/* Checks the transition and counts it in `counts`, per state. */
void delivery_set_state(struct delivery *d, enum delivery_state state,
                        uint64_t counts[static DELIVERY_STATE_COUNT]);

const char *delivery_state_name(enum delivery_state state);

/* Remember why an attempt failed. Texts are cut to what a dead letter keeps. */
void delivery_failed(struct delivery *d, enum error_class class,
                     struct slice code, struct slice error,
                     struct slice traceback, int64_t wall_us);
void delivery_forget_failures(struct delivery *d);

#endif
