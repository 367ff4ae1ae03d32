/*
 * A source partition: a Kafka topic's partition, or a shard of the outbox.
 * Made by the host when a source opens it; sources read the first block only.
 *
 * It has no list of its events: per handler a cursor lists the deliveries not
 * yet settled in the order of arrival, and the handler's position is the first
 * of them, or where the reading stands. A handler that is behind has a reading
 * of its own (behind.c).
 */
#ifndef MT_CORE_PARTITION_H
#define MT_CORE_PARTITION_H

#include "base/list.h"
#include "core/lane_set.h"
#include "core/source.h"

struct handler;
struct pipeline;

enum partition_state {
    PARTITION_OPENING, /* positions are being read */
    PARTITION_RUNNING,
    PARTITION_QUIETING, /* nothing new is sent; waits for what runs */
    PARTITION_CLOSED,
};

struct partition {
    const struct source_ops *ops;
    void *source;    /* the source's own */
    void *place;     /* the source's own, for this partition */
    char *topic;     /* topic or table */
    int32_t number;  /* partition or shard */
    char *name;      /* the position row's partition: "orders/3", "0" */
    char *source_id; /* cluster and topic id, or database system id */
    int64_t next;    /* the reading stands here: offset, or last seq + 1 */

    /* The pipeline's and the host's own. */
    struct list link; /* in the pipeline */
    struct pipeline *pipeline;
    enum partition_state state;
    bool is_paused, is_lost;
    char *trouble;          /* what an operator must decide; NULL: nothing */
    uint32_t events;        /* taken, not settled by all */
    uint32_t aside;         /* of those: by no handler that is attached */
    uint32_t inflight;      /* deliveries with workers or being stored */
    int64_t full_since_us;  /* its window is full; 0: it is not */
    uint64_t hash;          /* of source and name: part of a lane's identity */
    struct list parked;     /* deliveries that came from the parked queue */
    struct cursor *cursors; /* one a handler, by handler->index */
    size_t n_cursors;
    uint32_t n_behind;        /* cursors that are */
    struct handler *fetching; /* whose own reading is asked; NULL: nobody's */
    uint32_t fetch_turn;      /* whose turn is next, by index */
    bool is_joining;          /* the reading waits until `fetching` is level */
    unsigned joins;           /* rounds of that */
    size_t asked;             /* events, by this one; 0: part of another's */
    int64_t asked_us;         /* since when `fetching` */
    int64_t moved_us;         /* the reading went on */
    int64_t began;            /* where this reading began: what lies before was
                                 never passed by it */
    int64_t pressed_since_us; /* its window is nearly full; 0: it is not */
    int64_t committed;        /* last `next` given to ops->commit() */

    /* The host's own (intake). */
    bool is_closing;       /* taken away: save, tell the source, forget */
    bool is_quiet;         /* ops->quiet() came and waits for the turn's end */
    bool is_saved;         /* closing: the last positions are written */
    uint32_t busy;         /* requests to the position store under way */
    int64_t finish_by_us;  /* closing: until then what was taken may end well */
    int64_t save_again_us; /* closing: the last save failed; not before */
    int64_t deadline_us;   /* closing: then what runs is abandoned; 0: none */
};

enum cursor_mode {
    CURSOR_CLOSED,   /* its position is not known yet */
    CURSOR_ATTACHED, /* it takes what the partition reads */
    CURSOR_HELD,     /* it takes nothing: a flag, a pause, its file is gone */
    CURSOR_BEHIND,   /* it has a reading of its own, until it is level */
};

/* A handler's place in a partition. */
struct cursor {
    enum cursor_mode mode;
    /* What it had when it was attached, or has now that it is not: everything
     * below next but the gaps. */
    struct position from;
    struct list unsettled; /* deliveries, in order of places */
    /* Lanes that something of waits in durable storage: what comes goes there,
     * too. */
    struct lane_set blocked;
    uint32_t len;           /* of them */
    uint32_t dropped;       /* of them: they settle nothing (is_dropped) */
    uint64_t taken;         /* deliveries, ever */
    int64_t epoch;          /* of the position row */
    int64_t saved_next;     /* what the store has */
    uint64_t saved_hash;    /* of its gaps */
    uint64_t settled;       /* deliveries, since it opened */
    uint64_t saved_settled; /* at the last save, */
    int64_t saved_us;       /* and when that was */
    uint64_t noted_version; /* hash of the one that is known to have run here */
    char last_event_id[64]; /* of the last settled event, for people */
    int64_t last_event_us;
    bool is_saving; /* by itself: see intake_save.c */
    bool in_kafka;  /* so since it opened, or since then: transactions */
    int64_t min_occurred_us; /* first start at a time: older ones pass by */
    int64_t moved_us; /* its oldest delivery, or its own reading, changed */
    int64_t behind_since_us; /* not attached: when what it waits for occurred */

    /* Its own reading, under way while partition->fetching is this handler. */
    int64_t first, last;     /* what was asked for */
    bool is_void;            /* it was frozen meanwhile: nothing of it counts */
    struct ranges open_then; /* the source's open gaps when it was asked */
};

#endif
