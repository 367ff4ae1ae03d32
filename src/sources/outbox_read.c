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
struct event *outbox_event(struct outbox_source *s, struct partition *p,
                           const struct pg_result *res, int row)
{
    struct event *event = s->sink.event_new(s->sink.ctx, p);
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
    struct partition *p;
    struct event *event;

    if (seen->kind == OUTBOX_SEEN)
        return;
    p = s->shards[seen->shard].p;
    if (!p) /* it closed meanwhile */
        return;
    event = outbox_event(s, p, res, row);
    event->place = seen->seq;
    event->is_late = seen->kind == OUTBOX_LATE;
    s->sink.offer(s->sink.ctx, event);
}

static void add_witness(struct outbox_source *s, int64_t seq, const char *id)
{
    struct outbox_witness *w = &s->witnesses[s->next_witness++ % WITNESSES];

    free(w->id);
    *w = (struct outbox_witness){seq, xstrdup(id)};
}

/* The last that are ours (of others the id is not known), and what appeared
 * late, whatever its number: it was committed last. */
static void note_witnesses(struct outbox_source *s, const struct pg_result *res,
                           int rows)
{
    for (int row = 1; row <= rows; row++)
        if (s->seen[row].kind == OUTBOX_LATE ||
            (s->seen[row].kind == OUTBOX_NEW && row > rows - WITNESSES / 2))
            add_witness(s, s->seen[row].seq,
                        pg_result_value(res, row, COLUMN_ID));
}

static void look_at_rows(struct outbox_source *s, const struct pg_result *res,
                         int rows)
{
    if (rows >= s->seen_cap) {
        s->seen_cap = rows + 1;
        s->seen = xrealloc(s->seen, (size_t)s->seen_cap * sizeof(*s->seen));
    }
    for (int row = 1; row <= rows; row++) {
        struct outbox_seen *seen = &s->seen[row];

        seen->seq = strtoll(pg_result_value(res, row, COLUMN_SEQ), NULL, 10);
        seen->shard = (unsigned)strtoul(pg_result_value(res, row, COLUMN_SHARD),
                                        NULL, 10);
        seen->kind = readings_row(&s->readings, seen->seq, seen->shard);
    }
}

/* Where the readings stand after these rows. Row 0 is the snapshot. */
static void note_rows(struct outbox_source *s, const struct pg_result *res,
                      int rows)
{
    readings_begin(&s->readings);
    look_at_rows(s, res, rows);
    readings_end(&s->readings, &s->plan, pg_result_value(res, 0, COLUMN_ID),
                 rows >= s->limit);
    note_witnesses(s, res, rows);
    outbox_note_gap_age(s);
    s->delay = rows > 0 ? SOON : s->delay * 2;
    if (s->delay > s->interval)
        s->delay = s->interval;
}

/* The shards stand where their readings do. */
static void advance(struct outbox_source *s, const int64_t *next)
{
    for (unsigned i = 0; i < SHARDS_MAX; i++) {
        struct partition *p = s->shards[i].p;

        if (p && next[i] > p->next)
            s->sink.advance(s->sink.ctx, p, next[i]);
    }
}

static void note_places(const struct outbox_source *s, int64_t *next)
{
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        next[i] = INT64_MIN;
    for (size_t i = 0; i < s->readings.len; i++) {
        const struct reading *r = s->readings.at[i];

        for (unsigned k = 0; k < SHARDS_MAX; k++)
            if (r->shards & SHARD(k))
                next[k] = r->cursor.last + 1;
    }
}

static double pause_of(const struct outbox_source *s)
{
    if (readings_are_behind(&s->readings))
        return 0.;
    if (readings_have_gaps(&s->readings) && s->delay > GAP_PAUSE)
        return GAP_PAUSE;
    return s->delay;
}

/* The server reads the next rows while these go on their way. */
static void take_rows(struct outbox_source *s, const struct pg_result *res,
                      int rows)
{
    int64_t next[SHARDS_MAX];

    note_rows(s, res, rows);
    note_places(s, next);
    if (readings_are_behind(&s->readings))
        outbox_read_ahead(s, (size_t)rows);
    for (int row = 1; row <= rows; row++)
        offer_row(s, res, row);
    advance(s, next);
}

static void on_rows(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct outbox_source *s = arg;

    if (err) {
        readings_fail(&s->readings);
        outbox_on_failure(s, "read", err);
        outbox_step_after(s, SOON);
        return;
    }
    s->activity = IDLE;
    if (!s->stopping.is_asked)
        take_rows(s, res, pg_result_nrows(res) - 1);
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

/* At most so many ranges that cover all gaps, for the index. */
static void ask_with_gaps(struct outbox_source *s, struct pg_param *params)
{
    struct buf firsts = {0}, lasts = {0}, gaps = {0};
    struct ranges asked = {0};

    outbox_cursor_cover(&s->plan.gaps, QUERY_RANGES, &asked);
    array_text(&asked, false, &firsts);
    array_text(&asked, true, &lasts);
    ranges_print(&s->plan.gaps, &gaps);
    params[4].value = buf_text(&firsts);
    params[5].value = buf_text(&lasts);
    params[6].value = buf_text(&gaps);
    params[7].value = s->plan.snapshot ? s->plan.snapshot : "";
    pg_pool_query(s->pool, s->sql.read_gaps, 8, params, on_rows, s);
    ranges_fini(&asked);
    buf_fini(&firsts);
    buf_fini(&lasts);
    buf_fini(&gaps);
}

void outbox_read(struct outbox_source *s)
{
    char last[24], until[24], limit[16], ours[2 * SHARDS_MAX + 2];
    struct pg_param params[8] = {
        {.value = last}, {.value = until}, {.value = limit}, {.value = ours}};

    outbox_plan_fini(&s->plan);
    if (!readings_plan(&s->readings, &s->plan))
        return;
    s->activity = READING;
    s->is_woken = false;
    snprintf(limit, sizeof(limit), "%d", s->limit);
    snprintf(until, sizeof(until), "%" PRId64, s->plan.until);
    snprintf(last, sizeof(last), "%" PRId64,
             s->plan.wants_news ? s->plan.last : INT64_MAX);
    outbox_shards_text(s->plan.shards, ours);
    if (s->plan.gaps.len > 0)
        ask_with_gaps(s, params);
    else
        pg_pool_query(s->pool, s->sql.read, 4, params, on_rows, s);
}
