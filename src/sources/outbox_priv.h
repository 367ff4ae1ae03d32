/* What the outbox source's files share; nobody else includes it. */
#ifndef MT_SOURCES_OUTBOX_PRIV_H
#define MT_SOURCES_OUTBOX_PRIV_H

#include "core/leases.h"
#include "core/partition.h"
#include "pg/pg.h"
#include "sources/outbox_readings.h"
#include "sources/outbox_source.h"
#include "sources/outbox_sql.h"
#include "sources/stopping.h"

#include <ev.h>

#define SOON 0.002 /* s: events are flowing */

enum activity {
    IDLE,
    CHECKING,
    RECALLING, /* is what was read still there */
    HALTING,
    READING,
    FENCING,
    NAMING, /* who holds the gap */
};

struct outbox_seen {
    int64_t seq;
    unsigned shard;
    enum outbox_row kind;
};

/* What was read last, to see after a failover whether it is still there. The
 * loss of a failover is the end of the history: who lost anything that was read
 * lost some of what was read last. */
#define WITNESSES 200

struct outbox_witness {
    int64_t seq;
    char *id; /* NULL: none yet */
};

/* Nothing is read until an operator says so; outbox_check.c. */
struct outbox_halt {
    bool is_on;
    bool is_stored; /* so that a restart does not end it, and others know */
    bool
        is_others; /* another host found it; what we lost is still to be seen */
    char *why;
    int64_t ends_at; /* the sequence's value then */
    int64_t first_lost, last_lost;
};

struct outbox_lease; /* outbox_lease.c */

/* A partition of the pipeline while its lease is ours; `p->place` is this. */
struct outbox_shard {
    struct outbox_source *source;
    unsigned number;
    struct partition *p; /* NULL: not open */
    bool is_closing;
    bool wants_latest; /* starts where the table ends; not asked yet */
};

struct outbox_source {
    struct ev_loop *loop;
    struct source_sink sink;
    struct pg_pool *pool;
    struct outbox_sql sql;
    char *table;
    int64_t max_bytes;
    double interval;
    int batch;
    bool must_exist;

    struct outbox_lease *lease;
    struct outbox_shard shards[SHARDS_MAX];
    struct readings readings;
    struct outbox_plan plan; /* of the read under way */
    bool is_open;            /* the first check went well: it may take shards */
    bool is_starved;
    int limit; /* rows of the read under way, at most */
    bool is_absent, is_checked;
    char *trouble; /* NULL: none */
    struct outbox_halt halt;
    char *system, *timeline;

    enum activity activity;
    uint64_t rings;           /* how often something said that there is news */
    bool is_woken;            /* while it could not read: at once then */
    bool wants_notify;        /* outbox.wake = "notify", */
    struct pg_tail *tail;     /* or "wal" */
    struct outbox_seen *seen; /* the rows of the last read, from 1 */
    int seen_cap;
    int64_t sequence; /* its value when last asked */
    struct outbox_witness witnesses[WITNESSES];
    unsigned next_witness;
    double delay;
    int64_t checked_us, fenced_us, named_us, failed_us;

    uint64_t gap_fence;   /* the oldest one, */
    int64_t gap_since_us; /* and since when it is that */
    json_t *holder;       /* or NULL */

    struct outbox_fetch *fetch; /* for handlers that are behind */

    ev_timer timer;
    struct stopping stopping;
};

/* --- outbox_source.c ------------------------------------------------------------ */

/* The statement under way is answered: the next one in so many seconds. */
void outbox_step_after(struct outbox_source *s, double seconds);
/* A statement failed: the connection may be another one now, so look again at
 * everything before reading on. */
void outbox_on_failure(struct outbox_source *s, const char *doing,
                       const struct err *err);
void outbox_set_trouble(struct outbox_source *s, const char *text);
/* The next read at once, when there is nothing else to ask and room for more
 * than the `pending` rows that are not offered yet. */
void outbox_read_ahead(struct outbox_source *s, size_t pending);
/* Read again as soon as the statement under way is answered. */
void outbox_step_soon(struct outbox_source *s);
void outbox_tell_trouble(struct outbox_source *s);

/* --- outbox_shards.c: the seam to the host, by shard ------------------------------ */

void outbox_shards_init(struct outbox_source *s);
/* The lease is ours: the partition opens; or it ends, or is lost already. */
void outbox_shard_open(struct outbox_source *s, unsigned number);
void outbox_shard_close(struct outbox_source *s, unsigned number, bool lost);
unsigned outbox_shards_opened(const struct outbox_source *s);
/* Does one of them wait to be told where the table ends, and the answer. */
bool outbox_shards_want_latest(const struct outbox_source *s);
void outbox_shards_start_latest(struct outbox_source *s, int64_t next);

/* --- outbox_lease.c ----------------------------------------------------------------- */

struct outbox_lease *outbox_lease_new(struct outbox_source *s,
                                      const struct outbox_options *opts,
                                      struct err *err) MUST_CHECK;
void outbox_lease_free(struct outbox_lease *l); /* NULL is allowed */
/* Take a fair share from now on. */
void outbox_lease_begin(struct outbox_lease *l);
/* Its partition is closed: give it back, if it is ours still. */
void outbox_lease_closed(struct outbox_lease *l, unsigned shard);
/* What is in memory is of another history: none of it may be written. */
void outbox_lease_void(struct outbox_lease *l, const char *why);
/* A write said that another host has it. */
void outbox_lease_fenced(struct outbox_lease *l, unsigned shard);
/* Take nothing more, and be no host that counts. */
void outbox_lease_leave(struct outbox_lease *l);
json_t *outbox_lease_json(const struct outbox_lease *l);
const char *outbox_lease_node(const struct outbox_lease *l);

/* --- one statement each; its answer ends in outbox_step_after() ------------------- */

/* Something committed: read as soon as may be. */
void outbox_ring(struct outbox_source *s);

/* outbox_wake.c: start to listen for that. False when `how` is no way to. */
bool outbox_listen(struct outbox_source *s, const struct outbox_options *opts,
                   struct err *err) MUST_CHECK;
/* Says so when nobody would ring: the reading goes on by polling. */
void outbox_check_wake(const struct outbox_source *s, bool has_trigger,
                       bool has_publication);

/* outbox_check.c: that it is what the cursor relies on, and has not gone back
 * in time; and to store that it has. */
void outbox_check_table(struct outbox_source *s);
void outbox_store_halt(struct outbox_source *s);
void outbox_forget_history(struct outbox_source *s);
void outbox_read(struct outbox_source *s); /* outbox_read.c */
/* The row as an event without its place. The caller offers it. */
struct event *outbox_event(struct outbox_source *s, struct partition *p,
                           const struct pg_result *res, int row);
/* outbox_gaps.c: a transaction id for gaps that have none; and who keeps the
 * oldest gap open, when that has lasted. */
void outbox_draw_fence(struct outbox_source *s);
bool outbox_wants_holder(const struct outbox_source *s, int64_t now);
void outbox_ask_holder(struct outbox_source *s, int64_t now);
/* After every read and fence: since when is the oldest gap the oldest? */
void outbox_note_gap_age(struct outbox_source *s);

/* outbox_fetch.c: see source_ops.fetch. */
struct outbox_fetch *outbox_fetch_new(struct outbox_source *s,
                                      const struct outbox_options *opts);
void outbox_fetch_free(struct outbox_fetch *f);
void outbox_fetch(struct outbox_fetch *f, struct partition *p,
                  struct handler *reader, int64_t first, int64_t last,
                  size_t max);
/* If it is this partition that asked: it is gone. */
void outbox_fetch_cancel(struct outbox_fetch *f, const struct partition *p);

#endif
