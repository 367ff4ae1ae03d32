/*
 * One statement at a time on one connection. step() decides which: check after
 * a connection, then reading; a fence when new gaps have none; who holds a gap
 * open when one gets old. Every answer ends in step_after().
 */
#include "sources/outbox_source.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/partition.h"
#include "pg/pg.h"
#include "sources/outbox_cursor.h"
#include "sources/outbox_sql.h"

#include <ev.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_LEAST   64 /* rows: less is not worth a round trip */
#define UNUSED       __attribute__((unused))
#define SOON         0.002 /* s: events are flowing */
#define GAP_PAUSE    0.05  /* s: longest pause while a gap is open */
#define FENCE_US     200000
#define CHECK_US     60000000
#define RETRY_US     2000000 /* after trouble or a failure */
#define STATS_US     2000000
#define OLD_GAP_S    5.0
#define QUERY_RANGES 1000

static const char component[] = "outbox";

enum activity {
    IDLE,
    CHECKING,
    ANCHORING,
    READING,
    FENCING,
    NAMING, /* who holds the gap */
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

    struct partition *p; /* NULL until the first check went well */
    struct outbox_cursor cursor;
    bool has_started, is_paused, is_stopping, is_starved;
    int limit; /* rows of the read under way, at most */
    bool is_absent, is_checked;
    char *trouble;        /* NULL: none */
    bool is_back_in_time; /* trouble that only a restart ends */
    char *system, *timeline;

    enum activity activity;
    unsigned serial; /* of the start; answers to an older one are dropped */
    unsigned read_serial;
    bool asked_gaps;
    char *snapshot; /* of the last read */
    bool is_caught_up;
    int64_t sequence; /* its value when last asked */
    int64_t anchor;   /* a number that was read, */
    char *anchor_id;  /* and the event that had it */
    double delay;
    int64_t checked_us, fenced_us, named_us, failed_us;

    uint64_t gap_fence;   /* the oldest one, */
    int64_t gap_since_us; /* and since when it is that */
    json_t *holder;       /* or NULL */

    ev_timer timer;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

static void step(struct outbox_source *s);

static void step_in(struct outbox_source *s, double seconds)
{
    ev_timer_stop(s->loop, &s->timer);
    ev_timer_set(&s->timer, seconds, 0.);
    ev_timer_start(s->loop, &s->timer);
}

static void on_timer(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    step(timer->data);
}

static void set_trouble(struct outbox_source *s, const char *text)
{
    if (text ? s->trouble && strcmp(s->trouble, text) == 0 : !s->trouble)
        return;
    free(s->trouble);
    s->trouble = text ? xstrdup(text) : NULL;
    if (text)
        log_error("outbox cannot be read", "table=%s why=" LOG_Q, s->table,
                  text);
    else
        log_info("outbox can be read again", "table=%s", s->table);
    if (s->p)
        s->sink.trouble(s->sink.ctx, s->p, text);
}

/* A statement failed: the connection may be another one now, so look again at
 * everything before reading on. */
static void on_failure(struct outbox_source *s, const char *doing,
                       const struct err *err)
{
    if (err->kind == ERR_RETRIABLE)
        log_warn("outbox statement failed", "doing=%s err=" LOG_Q, doing,
                 err->msg);
    else
        set_trouble(s, err->msg);
    s->is_checked = false;
    s->failed_us = clock_mono_us();
}

static void step_after(struct outbox_source *s, double seconds)
{
    s->activity = IDLE;
    step_in(s, seconds);
}

/* --- rows ------------------------------------------------------------------- */

struct row_memory {
    char occurred[RFC3339_SIZE];
    char bytes[];
};

static const enum fact column_facts[] = {
    [COLUMN_ID] = FACT_ID,
    [COLUMN_TYPE] = FACT_TYPE,
    [COLUMN_VERSION] = FACT_VERSION,
    [COLUMN_AGGREGATE_TYPE] = FACT_AGGREGATE_TYPE,
    [COLUMN_AGGREGATE_ID] = FACT_AGGREGATE_ID,
    [COLUMN_AGGREGATE_VERSION] = FACT_AGGREGATE_VERSION,
    [COLUMN_OCCURRED_AT] = FACT_OCCURRED_AT,
    [COLUMN_METADATA] = FACT_METADATA,
};

static struct slice copy_column(const struct pg_result *res, int row, int col,
                                char **at)
{
    size_t len = pg_result_len(res, row, col);
    struct slice copy = {*at, len};

    if (pg_result_is_null(res, row, col))
        return (struct slice){NULL, 0};
    memcpy(*at, pg_result_value(res, row, col), len);
    *at += len;
    return copy;
}

/* PostgreSQL's text of a time becomes RFC 3339; infinity stays away. */
static void set_time(struct event *event, struct row_memory *memory)
{
    struct slice *fact = &event->facts[FACT_OCCURRED_AT];
    int64_t us = fact->ptr ? clock_parse(fact->ptr, fact->len) : INT64_MIN;

    if (us == INT64_MIN) {
        *fact = (struct slice){NULL, 0};
        return;
    }
    event->occurred_us = us;
    *fact = slice_of(clock_format(us, memory->occurred));
}

/* A row is copied: a result of thousands would stay for one event that waits. */
static struct event *event_of(struct outbox_source *s,
                              const struct pg_result *res, int row)
{
    struct event *event = s->sink.event_new(s->sink.ctx, s->p);
    struct row_memory *memory;
    size_t size = 0;
    char *at;

    for (int col = COLUMN_ID; col <= COLUMN_BODY; col++)
        size += pg_result_len(res, row, col);
    memory = xmalloc(sizeof(*memory) + size);
    at = memory->bytes;
    event->memory = memory;
    event->form = BODY_PAYLOAD;
    event->arrived_us = clock_mono_us();
    for (int col = COLUMN_ID; col < COLUMN_BODY; col++)
        event->facts[column_facts[col]] = copy_column(res, row, col, &at);
    event->body = copy_column(res, row, COLUMN_BODY, &at);
    set_time(event, memory);
    if (!event->body.ptr)
        event->body = SLICE_LIT("null");
    if (!event->facts[FACT_TYPE].len)
        event->undecodable = xstrdup("the row has no event type");
    else if ((int64_t)event->body.len > s->max_bytes)
        event->undecodable =
            xasprintf("%zu bytes are more than event.max_bytes (%lld)",
                      event->body.len, (long long)s->max_bytes);
    return event;
}

static void take_row(struct outbox_source *s, const struct pg_result *res,
                     int row)
{
    int64_t seq = strtoll(pg_result_value(res, row, COLUMN_SEQ), NULL, 10);
    enum outbox_row kind = outbox_cursor_row(&s->cursor, seq);
    struct event *event;

    if (kind == OUTBOX_SEEN)
        return;
    event = event_of(s, res, row);
    event->place = seq;
    event->is_late = kind == OUTBOX_LATE;
    s->sink.offer(s->sink.ctx, event);
}

static void set_anchor(struct outbox_source *s, const struct pg_result *res,
                       int row)
{
    s->anchor = strtoll(pg_result_value(res, row, COLUMN_SEQ), NULL, 10);
    free(s->anchor_id);
    s->anchor_id = xstrdup(pg_result_value(res, row, COLUMN_ID));
}

static void note_gap_age(struct outbox_source *s)
{
    uint64_t oldest = outbox_cursor_oldest_fence(&s->cursor);

    if (oldest != s->gap_fence) {
        s->gap_fence = oldest;
        s->gap_since_us = clock_mono_us();
        json_decref(s->holder);
        s->holder = NULL;
    }
}

/* Row 0 is the snapshot. */
static void take_rows(struct outbox_source *s, const struct pg_result *res)
{
    int rows = pg_result_nrows(res) - 1;
    const char *snapshot = pg_result_value(res, 0, COLUMN_ID);
    bool is_new = !s->snapshot || strcmp(s->snapshot, snapshot) != 0;
    bool is_whole;

    outbox_cursor_begin(&s->cursor);
    for (int row = 1; row <= rows; row++)
        take_row(s, res, row);
    is_whole = rows < s->limit || s->cursor.last > s->cursor.last_before;
    outbox_cursor_end(&s->cursor, strtoull(snapshot, NULL, 10),
                      s->asked_gaps && is_new && is_whole);
    /* A cut read has not shown all gaps: the next must look at them again. */
    free(s->snapshot);
    s->snapshot = is_whole ? xstrdup(snapshot) : NULL;
    s->is_caught_up = rows < s->limit;
    if (rows > 0 && s->cursor.last > s->cursor.last_before)
        set_anchor(s, res, rows);
    note_gap_age(s);
    if (s->p->next < s->cursor.last + 1)
        s->sink.advance(s->sink.ctx, s->p, s->cursor.last + 1);
    s->delay = rows > 0 ? SOON : s->delay * 2;
    if (s->delay > s->interval)
        s->delay = s->interval;
}

static double pause_of(const struct outbox_source *s)
{
    if (!s->is_caught_up)
        return 0.;
    if (s->cursor.gaps.len > 0 && s->delay > GAP_PAUSE)
        return GAP_PAUSE;
    return s->delay;
}

static void on_rows(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct outbox_source *s = arg;

    if (err) {
        on_failure(s, "read", err);
        step_after(s, SOON);
        return;
    }
    if (s->read_serial == s->serial && s->p && !s->is_stopping)
        take_rows(s, res);
    step_after(s, pause_of(s));
}

static void array_text(const struct ranges *r, bool lasts, struct buf *out)
{
    buf_add_char(out, '{');
    for (size_t i = 0; i < r->len; i++)
        buf_printf(out, "%s%" PRId64, i ? "," : "",
                   lasts ? r->at[i].last : r->at[i].first);
    buf_add_char(out, '}');
}

static void read_with_gaps(struct outbox_source *s, struct pg_param *params)
{
    struct buf firsts = {0}, lasts = {0}, gaps = {0};
    struct ranges asked = {0};

    outbox_cursor_gaps(&s->cursor, QUERY_RANGES, &asked);
    array_text(&asked, false, &firsts);
    array_text(&asked, true, &lasts);
    ranges_print(&s->cursor.gaps, &gaps);
    params[2].value = buf_text(&firsts);
    params[3].value = buf_text(&lasts);
    params[4].value = buf_text(&gaps);
    params[5].value = s->snapshot ? s->snapshot : "";
    pg_pool_query(s->pool, s->sql.read_gaps, 6, params, on_rows, s);
    ranges_fini(&asked);
    buf_fini(&firsts);
    buf_fini(&lasts);
    buf_fini(&gaps);
}

static void read_rows(struct outbox_source *s)
{
    char last[24], limit[16];
    struct pg_param params[6] = {{.value = last}, {.value = limit}};

    s->activity = READING;
    s->read_serial = s->serial;
    s->asked_gaps = s->cursor.gaps.len > 0;
    snprintf(limit, sizeof(limit), "%d", s->limit);
    snprintf(last, sizeof(last), "%" PRId64,
             outbox_cursor_is_full(&s->cursor) ? INT64_MAX : s->cursor.last);
    if (s->asked_gaps)
        read_with_gaps(s, params);
    else
        pg_pool_query(s->pool, s->sql.read, 2, params, on_rows, s);
}

/* --- fences, and who holds a gap open ---------------------------------------- */

static void on_fence(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct outbox_source *s = arg;

    if (err)
        on_failure(s, "fence", err);
    else if (s->read_serial == s->serial)
        outbox_cursor_fence(&s->cursor,
                            strtoull(pg_result_value(res, 0, 0), NULL, 10));
    note_gap_age(s);
    step_after(s, SOON);
}

static void draw_fence(struct outbox_source *s)
{
    s->activity = FENCING;
    s->read_serial = s->serial;
    s->fenced_us = clock_mono_us();
    pg_pool_query(s->pool, "SELECT pg_current_xact_id()::text", 0, NULL,
                  on_fence, s);
}

static void on_holder(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;

    json_decref(s->holder);
    s->holder = NULL;
    if (err) {
        on_failure(s, "gap holder", err);
    } else if (pg_result_nrows(res) > 0) {
        static const char *const names[] = {"pid",     "seconds", "query",
                                            "state",   "user",    "application",
                                            "database"};

        s->holder = json_object();
        for (int i = 0; i < 7; i++) {
            const char *value = pg_result_value(res, 0, i);

            json_object_set_new(s->holder, names[i],
                                i < 2 ? json_integer(strtoll(value, NULL, 10))
                                      : json_string(value));
        }
        log_warn("a transaction keeps a gap of the outbox open",
                 "pid=%s seconds=%s query=" LOG_Q, pg_result_value(res, 0, 0),
                 pg_result_value(res, 0, 1), pg_result_value(res, 0, 2));
    }
    step_after(s, SOON);
}

/* --- checks ------------------------------------------------------------------- */

static const struct source_ops ops;

static void open_partition(struct outbox_source *s)
{
    s->p = s->sink.opened(s->sink.ctx, &ops, s, s->table, 0, "0", s->system);
    s->p->place = s;
    log_info("outbox opened", "table=%s system=%s timeline=%s", s->table,
             s->system, s->timeline);
}

static void set_back_in_time(struct outbox_source *s, const char *text)
{
    s->is_back_in_time = true;
    set_trouble(s, text);
}

/* Is the database the one that was read before, and as far? */
static void compare(struct outbox_source *s, const char *system)
{
    char text[256];

    if (s->system && strcmp(s->system, system) != 0) {
        snprintf(text, sizeof(text),
                 "another database: system identifier %s, before it was %s",
                 system, s->system);
        set_back_in_time(s, text);
    } else if (s->has_started && s->sequence < s->cursor.last) {
        snprintf(text, sizeof(text),
                 "the database went back in time: its sequence is at %" PRId64
                 ", but %" PRId64 " was read before",
                 s->sequence, s->cursor.last);
        set_back_in_time(s, text);
    }
}

static void on_anchor(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;
    char text[256];
    bool is_there, is_same;

    if (err) {
        on_failure(s, "anchor", err);
        step_after(s, SOON);
        return;
    }
    is_there = !pg_result_is_null(res, 0, ANCHOR_ID);
    is_same = is_there && s->anchor_id &&
              strcmp(pg_result_value(res, 0, ANCHOR_ID), s->anchor_id) == 0;
    if (s->anchor_id && !is_same &&
        (is_there || *pg_result_value(res, 0, ANCHOR_BELOW) == 't')) {
        snprintf(text, sizeof(text),
                 "the database went back in time: the event at %" PRId64
                 " was %.64s and is %.64s now",
                 s->anchor, s->anchor_id,
                 is_there ? pg_result_value(res, 0, ANCHOR_ID) : "missing");
        set_back_in_time(s, text);
    }
    s->is_checked = true;
    step_after(s, 0.);
}

static void ask_anchor(struct outbox_source *s)
{
    char seq[24];
    struct pg_param param = {.value = seq};

    s->activity = ANCHORING;
    snprintf(seq, sizeof(seq), "%" PRId64, s->anchor);
    pg_pool_query(s->pool, s->sql.anchor, 1, &param, on_anchor, s);
}

static void keep_identity(struct outbox_source *s, const struct pg_result *res)
{
    const char *timeline = pg_result_value(res, 0, CHECK_TIMELINE);

    if (s->timeline && strcmp(s->timeline, timeline) != 0)
        log_warn("timeline of the database changed", "from=%s to=%s",
                 s->timeline, timeline);
    free(s->timeline);
    s->timeline = xstrdup(timeline);
    if (!s->system)
        s->system = xstrdup(pg_result_value(res, 0, CHECK_SYSTEM));
}

static void take_check(struct outbox_source *s, const struct pg_result *res)
{
    bool exists = *pg_result_value(res, 0, CHECK_EXISTS) == 't';
    char text[256];

    s->is_absent = !exists;
    s->checked_us = clock_mono_us();
    s->sequence = strtoll(pg_result_value(res, 0, CHECK_SEQUENCE), NULL, 10);
    if (!exists) {
        snprintf(text, sizeof(text),
                 "table %.100s does not exist: run moontide migrate up",
                 s->table);
        set_trouble(s, s->must_exist || s->p ? text : NULL);
        return;
    }
    if (!pg_result_is_null(res, 0, CHECK_PROBLEM)) {
        set_trouble(s, pg_result_value(res, 0, CHECK_PROBLEM));
        return;
    }
    compare(s, pg_result_value(res, 0, CHECK_SYSTEM));
    if (s->is_back_in_time)
        return;
    keep_identity(s, res);
    set_trouble(s, NULL);
    s->is_checked = true;
}

static void on_check(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct outbox_source *s = arg;

    s->is_checked = false;
    if (err)
        on_failure(s, "check", err);
    else
        take_check(s, res);
    if (!s->is_checked) {
        s->failed_us = clock_mono_us();
    } else if (s->anchor_id) {
        s->is_checked = false;
        ask_anchor(s);
        return;
    } else if (!s->p && !s->is_stopping) {
        open_partition(s);
    }
    step_after(s, SOON);
}

static void check(struct outbox_source *s)
{
    struct pg_param table = {.value = s->sql.table};

    s->activity = CHECKING;
    pg_pool_query(s->pool, outbox_check_sql, 1, &table, on_check, s);
}

/* --- what to do next ------------------------------------------------------------ */

static bool wants_holder(const struct outbox_source *s, int64_t now)
{
    return outbox_source_gap_age(s) > OLD_GAP_S &&
           now - s->named_us > (int64_t)(OLD_GAP_S * 1e6);
}

static bool wants_check(const struct outbox_source *s, int64_t now)
{
    int64_t every = s->is_paused || !s->is_caught_up ? STATS_US : CHECK_US;

    if (!s->is_checked)
        return now - s->failed_us > RETRY_US || s->checked_us == 0 ||
               !s->failed_us;
    return now - s->checked_us > every;
}

/* How many rows the next read may bring. */
static bool has_room(struct outbox_source *s)
{
    size_t room = s->sink.room(s->sink.ctx);

    if (room > 0 && room < ROOM_LEAST)
        room = ROOM_LEAST; /* a read costs the same for a few rows */
    s->is_starved = room == 0;
    s->limit = room < (size_t)s->batch ? (int)room : s->batch;
    return room > 0;
}

static void step(struct outbox_source *s)
{
    int64_t now = clock_mono_us();

    if (s->activity != IDLE || s->is_stopping || s->is_back_in_time)
        return;
    if (wants_check(s, now)) {
        check(s);
    } else if (!s->is_checked || !s->has_started || s->is_paused) {
        step_in(s, 0.2);
    } else if (outbox_cursor_wants_fence(&s->cursor) &&
               now - s->fenced_us > FENCE_US) {
        draw_fence(s);
    } else if (wants_holder(s, now)) {
        s->activity = NAMING;
        s->named_us = now;
        pg_pool_query(s->pool, outbox_holder_sql, 0, NULL, on_holder, s);
    } else if (!has_room(s)) {
        step_in(s, 0.2); /* or when wake() says so */
    } else {
        read_rows(s);
    }
}

/* --- the seam --------------------------------------------------------------------- */

/* The latest is where the table ends now: what is still uncommitted below it
 * belongs to before. */
static void on_latest(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;

    if (err) {
        on_failure(s, "start", err);
        s->has_started = false;
    } else if (s->read_serial == s->serial && s->p) {
        int64_t highest =
            strtoll(pg_result_value(res, 0, ANCHOR_HIGHEST), NULL, 10);

        outbox_cursor_init(&s->cursor, highest + 1, NULL);
        s->sink.advance(s->sink.ctx, s->p, highest + 1);
        s->has_started = true;
    }
    step_after(s, SOON);
}

static void start(struct partition *p, const struct position *from)
{
    struct outbox_source *s = p->place;

    s->serial++;
    outbox_cursor_fini(&s->cursor);
    free(s->snapshot);
    s->snapshot = NULL;
    s->is_paused = s->is_caught_up = false;
    s->delay = SOON;
    if (from->next == POSITION_LATEST) {
        static const struct pg_param zero = {.value = "0"};

        s->activity = READING;
        s->read_serial = s->serial;
        s->has_started = false;
        pg_pool_query(s->pool, s->sql.anchor, 1, &zero, on_latest, s);
        return;
    }
    outbox_cursor_init(&s->cursor,
                       from->next == POSITION_EARLIEST ? 1 : from->next,
                       &from->gaps);
    s->has_started = true;
    if (from->next == POSITION_EARLIEST)
        s->sink.advance(s->sink.ctx, p, 1);
    s->is_checked = false; /* compare the position with the sequence */
    s->failed_us = 0;
    step_in(s, 0.);
}

static void pause_reading(struct partition *p)
{
    struct outbox_source *s = p->place;

    s->is_paused = true;
}

static void resume_reading(struct partition *p)
{
    struct outbox_source *s = p->place;

    if (!s->is_paused)
        return;
    s->is_paused = false;
    if (s->activity == IDLE)
        step_in(s, 0.);
}

static void wake(void *source)
{
    struct outbox_source *s = source;

    if (s->is_starved && s->activity == IDLE)
        step_in(s, 0.);
    s->is_starved = false;
}

static void release(struct event *event)
{
    free(event->memory);
}

/* The positions table says it all; nobody else wants to know. */
static void commit(UNUSED struct partition *p,
                   UNUSED const struct position *settled)
{
}

static void closed(struct partition *p)
{
    struct outbox_source *s = p->place;

    s->p = NULL;
    s->has_started = false;
    if (s->stopped)
        s->stopped(s->stopped_arg);
    s->stopped = NULL;
}

static const struct ranges *gaps(const struct partition *p)
{
    const struct outbox_source *s = p->place;

    return &s->cursor.gaps;
}

static int64_t backlog(struct partition *p)
{
    const struct outbox_source *s = p->place;
    int64_t left = s->sequence - s->cursor.last;

    if (!s->has_started)
        return -1;
    if (s->is_caught_up && !s->is_paused)
        return 0;
    return left > 0 ? left : 0;
}

static const struct source_ops ops = {
    .kind = SOURCE_OUTBOX,
    .start = start,
    .pause = pause_reading,
    .resume = resume_reading,
    .wake = wake,
    .release = release,
    .commit = commit,
    .closed = closed,
    .gaps = gaps,
    .backlog = backlog,
};

/* --- life --------------------------------------------------------------------------- */

static void on_state(void *arg, bool connected)
{
    struct outbox_source *s = arg;

    s->is_checked = false;
    s->failed_us = 0;
    if (connected && s->activity == IDLE)
        step_in(s, 0.);
}

struct outbox_source *outbox_source_new(struct ev_loop *loop,
                                        const struct outbox_options *opts,
                                        const struct source_sink *sink,
                                        struct err *err)
{
    struct outbox_source *s = xcalloc(1, sizeof(*s));
    struct pg_pool_options pool = {
        .url = opts->url,
        .name = "outbox",
        .application_name = "moontide outbox",
        .session_sql = opts->session_sql,
        .size = 1,
        .no_prepare = opts->no_prepare,
        .on_state = on_state,
        .arg = s,
    };

    s->loop = loop;
    s->sink = *sink;
    s->table = xstrdup(opts->table);
    s->interval = (double)opts->interval_ms / 1000.;
    s->batch = opts->batch;
    s->max_bytes = opts->max_bytes;
    s->must_exist = opts->must_exist;
    s->delay = SOON;
    ev_timer_init(&s->timer, on_timer, 0., 0.);
    s->timer.data = s;
    if (!outbox_sql_init(&s->sql, opts->table, opts->columns, err))
        goto fail;
    s->pool = pg_pool_new(loop, &pool, err);
    if (!s->pool)
        goto fail;
    step_in(s, 0.);
    return s;

fail:
    outbox_source_free(s);
    return NULL;
}

void outbox_source_stop(struct outbox_source *s, void (*done)(void *arg),
                        void *arg)
{
    s->is_stopping = true;
    if (!s->p) {
        done(arg);
        return;
    }
    s->stopped = done;
    s->stopped_arg = arg;
    s->sink.closing(s->sink.ctx, s->p, false);
}

void outbox_source_free(struct outbox_source *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->timer);
    s->is_stopping = true;
    s->p = NULL;
    pg_pool_free(s->pool);
    ev_timer_stop(s->loop, &s->timer);
    outbox_cursor_fini(&s->cursor);
    outbox_sql_fini(&s->sql);
    json_decref(s->holder);
    free(s->snapshot);
    free(s->anchor_id);
    free(s->system);
    free(s->timeline);
    free(s->trouble);
    free(s->table);
    free(s);
}

bool outbox_source_connected(const struct outbox_source *s)
{
    return pg_pool_connected(s->pool);
}

double outbox_source_gap_age(const struct outbox_source *s)
{
    if (s->cursor.gaps.len == 0 || s->gap_fence == 0)
        return 0.;
    return (double)(clock_mono_us() - s->gap_since_us) / 1e6;
}

static const char *state_name(const struct outbox_source *s)
{
    if (s->trouble)
        return "trouble";
    if (s->is_absent)
        return "absent";
    if (!s->has_started)
        return "opening";
    return s->is_paused ? "paused" : "reading";
}

static int64_t missing(const struct ranges *r)
{
    int64_t n = 0;

    for (size_t i = 0; i < r->len; i++)
        n += r->at[i].last - r->at[i].first + 1;
    return n;
}

json_t *outbox_source_json(const struct outbox_source *s)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:s?, s:I, s:I, s:f, s:O?}", "kind",
                     "outbox", "table", s->table, "state", state_name(s),
                     "connected", pg_pool_connected(s->pool), "trouble",
                     s->trouble, "last", (json_int_t)s->cursor.last, "missing",
                     (json_int_t)missing(&s->cursor.gaps), "oldestGapSeconds",
                     outbox_source_gap_age(s), "heldBy", s->holder);
}
