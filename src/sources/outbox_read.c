/* Reading rows, and making events of them. */
#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "sources/outbox_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define GAP_PAUSE    0.05 /* s: longest pause while a gap is open */
#define QUERY_RANGES 1000

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

/* Microseconds, or INT64_MIN. A column without a zone holds UTC. */
static int64_t time_of(struct slice text)
{
    char utc[40];
    int64_t us = text.ptr ? clock_parse(text.ptr, text.len) : INT64_MIN;

    if (us != INT64_MIN || !text.ptr || text.len + 2 > sizeof(utc))
        return us;
    snprintf(utc, sizeof(utc), "%.*sZ", (int)text.len, text.ptr);
    return clock_parse(utc, text.len + 1);
}

/* PostgreSQL's text of a time becomes RFC 3339; infinity stays away. */
static void set_time(struct event *event, struct row_memory *memory)
{
    struct slice *fact = &event->facts[FACT_OCCURRED_AT];
    int64_t us = time_of(*fact);

    if (us == INT64_MIN) {
        *fact = (struct slice){NULL, 0};
        return;
    }
    event->occurred_us = us;
    *fact = slice_of(clock_format(us, memory->occurred));
}

/* A row is copied: a result of thousands would stay for one event that waits. */
struct event *outbox_event(struct outbox_source *s, const struct pg_result *res,
                           int row)
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

static void offer_row(struct outbox_source *s, const struct pg_result *res,
                      int row)
{
    const struct outbox_seen *seen = &s->seen[row];
    struct event *event;

    if (seen->kind == OUTBOX_SEEN)
        return;
    event = outbox_event(s, res, row);
    event->place = seen->seq;
    event->is_late = seen->kind == OUTBOX_LATE;
    s->sink.offer(s->sink.ctx, event);
}

static void set_anchor(struct outbox_source *s, const struct pg_result *res,
                       int row)
{
    s->anchor = strtoll(pg_result_value(res, row, COLUMN_SEQ), NULL, 10);
    free(s->anchor_id);
    s->anchor_id = xstrdup(pg_result_value(res, row, COLUMN_ID));
}

static void look_at_rows(struct outbox_source *s, const struct pg_result *res,
                         int rows)
{
    if (rows >= s->seen_cap) {
        s->seen_cap = rows + 1;
        s->seen = xrealloc(s->seen, (size_t)s->seen_cap * sizeof(*s->seen));
    }
    for (int row = 1; row <= rows; row++) {
        int64_t seq = strtoll(pg_result_value(res, row, COLUMN_SEQ), NULL, 10);

        s->seen[row] =
            (struct outbox_seen){seq, outbox_cursor_row(&s->cursor, seq)};
    }
}

/* Where the reading stands after these rows. Row 0 is the snapshot. */
static void note_rows(struct outbox_source *s, const struct pg_result *res,
                      int rows)
{
    const char *snapshot = pg_result_value(res, 0, COLUMN_ID);
    bool is_new = !s->snapshot || strcmp(s->snapshot, snapshot) != 0;
    bool is_whole;

    outbox_cursor_begin(&s->cursor);
    look_at_rows(s, res, rows);
    is_whole = rows < s->limit || s->cursor.last > s->cursor.last_before;
    outbox_cursor_end(&s->cursor, strtoull(snapshot, NULL, 10),
                      s->asked_gaps && is_new && is_whole);
    /* A cut read has not shown all gaps: the next must look at them again. */
    free(s->snapshot);
    s->snapshot = is_whole ? xstrdup(snapshot) : NULL;
    s->is_caught_up = rows < s->limit;
    if (rows > 0 && s->cursor.last > s->cursor.last_before)
        set_anchor(s, res, rows);
    outbox_note_gap_age(s);
    s->delay = rows > 0 ? SOON : s->delay * 2;
    if (s->delay > s->interval)
        s->delay = s->interval;
}

static void offer_rows(struct outbox_source *s, const struct pg_result *res,
                       int rows, int64_t next)
{
    for (int row = 1; row <= rows; row++)
        offer_row(s, res, row);
    if (s->p->next < next)
        s->sink.advance(s->sink.ctx, s->p, next);
}

static double pause_of(const struct outbox_source *s)
{
    if (!s->is_caught_up)
        return 0.;
    if (s->cursor.gaps.len > 0 && s->delay > GAP_PAUSE)
        return GAP_PAUSE;
    return s->delay;
}

/* The server reads the next rows while these go on their way. */
static void on_rows(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct outbox_source *s = arg;
    int rows = res ? pg_result_nrows(res) - 1 : 0;
    int64_t next;

    if (err) {
        outbox_on_failure(s, "read", err);
        outbox_step_after(s, SOON);
        return;
    }
    s->activity = IDLE;
    if (s->read_serial == s->serial && s->p && !s->stopping.is_asked) {
        note_rows(s, res, rows);
        next = s->cursor.last + 1;
        if (!s->is_caught_up)
            outbox_read_ahead(s, (size_t)rows);
        offer_rows(s, res, rows, next);
    }
    if (s->activity == IDLE)
        outbox_step_after(s, pause_of(s));
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

    outbox_cursor_cover(&s->cursor.gaps, QUERY_RANGES, &asked);
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

void outbox_read(struct outbox_source *s)
{
    char last[24], limit[16];
    struct pg_param params[6] = {{.value = last}, {.value = limit}};

    s->activity = READING;
    s->is_woken = false;
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
