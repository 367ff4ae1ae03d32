#include "sources/redrive_source.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/bucket.h"
#include "core/partition.h"
#include "pg/pg.h"
#include "sources/stopping.h"
#include "stores/tries.h"

#include <ev.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED   __attribute__((unused))
#define LOOK_S   0.5
#define OPEN_MAX 200 /* letters on their way */
#define LIMIT    100
#define MORE_S   0.02 /* there is more to come */
#define ABSENT_S 5    /* then look whether such a handler has come */

static const char component[] = "redrive";

/* From its reading until its row says how it ended. */
struct letter {
    struct list link;
    struct redrive_source *source;
    int64_t id;
    json_t *facts;
    char *body, *key;
    bool is_settled; /* its row is being written: not offered, not released */
};

/* How fast the letters of a handler are given out, as the last one of them that
 * was looked at says. */
struct pace {
    struct list link;
    char *handler;
    struct rate rate;
    struct bucket bucket;
};

struct redrive_source {
    struct ev_loop *loop;
    struct pg_pool *pool;
    char *node;
    int64_t lease_ms, read_us; /* the second: when it last was renewed */
    struct source_sink sink;
    struct partition *p;
    struct tries tries;
    struct list letters, paces;
    size_t open;
    bool is_started, is_paused;
    bool is_paced;           /* letters wait for their pace */
    struct letter *offering; /* NULL once it was dropped */
    json_t *absent;          /* names of handlers that nobody runs here, */
    int64_t absent_until_us; /* whose letters must not hold up the others */
    struct pg_request *request;
    ev_timer timer;
    struct stopping stopping;
};

/* First the leases are taken or renewed, of all handlers with letters to redrive
 * but those that are not here; `names` walks the index from one to the next. */
static const char read_sql[] =
    "WITH RECURSIVE names AS (SELECT min(handler) AS handler"
    " FROM event_dead_letters WHERE state = 'redriving' UNION ALL"
    " SELECT (SELECT min(d.handler) FROM event_dead_letters AS d"
    " WHERE d.state = 'redriving' AND d.handler > names.handler) FROM names"
    " WHERE names.handler IS NOT NULL),"
    " mine AS (INSERT INTO event_redrive_leases AS l (handler, owner,"
    " expires_at) SELECT handler, $4, clock_timestamp() + make_interval(secs =>"
    " $5::float8 / 1000) FROM names WHERE handler IS NOT NULL AND"
    " handler <> ALL ($6::text[])"
    " ORDER BY handler ON CONFLICT (handler) DO UPDATE SET"
    " owner = excluded.owner, expires_at = excluded.expires_at"
    " WHERE l.owner = excluded.owner OR l.expires_at < clock_timestamp()"
    " RETURNING handler)"
    " SELECT id, handler, format, facts::text, body, key, attempts"
    ", (extract(epoch FROM redrive_every) * 1000000)::bigint"
    " FROM event_dead_letters WHERE state = 'redriving'"
    " AND handler IN (SELECT handler FROM mine)"
    " AND id <> ALL ($1::bigint[]) AND handler <> ALL ($2::text[])"
    " ORDER BY source, partition, place, id LIMIT $3::int";

static const char settle_sql[] =
    "WITH w AS (UPDATE event_dead_letters SET state = $2, note = $3"
    " WHERE id = $1::bigint AND state = 'redriving' RETURNING *)"
    " INSERT INTO event_deliveries (handler, event_id, source, partition,"
    " place, outcome, reason, version, attempts) SELECT handler, event_id,"
    " source, partition, place, $2, $3, handler_version, attempts FROM w"
    " ON CONFLICT (handler, event_id) DO UPDATE SET outcome = excluded.outcome,"
    " reason = excluded.reason, at = now()";

static const char release_sql[] =
    "DELETE FROM event_redrive_leases WHERE owner = $1"
    " AND ($2::text IS NULL OR handler = $2)";

static void look(struct redrive_source *s);

static void letter_free(struct letter *letter)
{
    list_remove(&letter->link);
    letter->source->open--;
    json_decref(letter->facts);
    free(letter->body);
    free(letter->key);
    free(letter);
}

static void look_in(struct redrive_source *s, double seconds)
{
    ev_timer_stop(s->loop, &s->timer);
    ev_timer_set(&s->timer, seconds, 0.);
    ev_timer_start(s->loop, &s->timer);
}

static void on_timer(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    look(timer->data);
}

/* --- pace ------------------------------------------------------------------ */

#define PACE_US 100000 /* what comes in such a time may come at once */

static struct pace *pace_of(struct redrive_source *s, const char *handler)
{
    struct pace *pace;

    list_foreach(at, &s->paces) {
        pace = CONTAINER_OF(at, struct pace, link);
        if (strcmp(pace->handler, handler) == 0)
            return pace;
    }
    pace = xcalloc(1, sizeof(*pace));
    pace->handler = xstrdup(handler);
    list_append(&s->paces, &pace->link);
    return pace;
}

static void pace_free(struct pace *pace)
{
    list_remove(&pace->link);
    free(pace->handler);
    free(pace);
}

/* May this row's letter go out now? Not before those of its handler that came
 * before it: who waits keeps what follows waiting. */
static bool may_go(struct redrive_source *s, const struct pg_result *res,
                   int row)
{
    struct pace *pace = pace_of(s, pg_result_value(res, row, 1));
    int64_t every_us = strtoll(pg_result_value(res, row, 7), NULL, 10);
    int64_t now_us = clock_mono_us();

    if (pace->rate.interval_ns &&
        !bucket_tokens(&pace->bucket, &pace->rate, now_us))
        return false;
    pace->rate.interval_ns = every_us * 1000;
    pace->rate.burst = every_us && every_us < PACE_US ? PACE_US / every_us : 1;
    if (!pace->rate.interval_ns)
        return true;
    bucket_fit(&pace->bucket, &pace->rate, now_us);
    if (!bucket_tokens(&pace->bucket, &pace->rate, now_us))
        return false;
    bucket_take(&pace->bucket, &pace->rate, now_us);
    return true;
}

/* Names of those that wait, for the reading to pass over. Who has no pace any
 * more, or could have all at once, is no different from a new one. */
static bool add_waiting(struct redrive_source *s, struct buf *names)
{
    int64_t now_us = clock_mono_us(), tokens;
    bool any = false;

    list_foreach_safe(at, &s->paces) {
        struct pace *pace = CONTAINER_OF(at, struct pace, link);

        tokens = pace->rate.interval_ns
                     ? bucket_tokens(&pace->bucket, &pace->rate, now_us)
                     : pace->rate.burst;
        if (tokens == pace->rate.burst)
            pace_free(pace);
        else if (tokens == 0)
            array_add(names, pace->handler);
        any |= tokens == 0;
    }
    return any;
}

/* --- reading --------------------------------------------------------------- */

static void fill_facts(struct event *event, const json_t *facts)
{
    for (enum fact fact = 0; fact < FACT_COUNT; fact++) {
        const json_t *value = json_object_get(facts, fact_name(fact));

        if (json_is_string(value))
            event->facts[fact] = (struct slice){json_string_value(value),
                                                json_string_length(value)};
    }
}

static void on_released(UNUSED void *arg, UNUSED const struct pg_result *res,
                        UNUSED const struct err *err)
{
}

/* Of one handler, or of all (NULL): so that another host need not wait until
 * they expire. Nobody waits for this; they do expire. */
static void release_leases(struct redrive_source *s, const char *handler)
{
    struct pg_param params[] = {{.value = s->node}, {.value = handler}};

    pg_pool_query(s->pool, release_sql, 2, params, on_released, NULL);
}

/* A handler that took nothing of what was offered to it. Another host may have
 * it. */
static void note_absent(struct redrive_source *s, const char *handler)
{
    const json_t *known;
    size_t i;

    json_array_foreach(s->absent, i, known)
        if (strcmp(json_string_value(known), handler) == 0)
            return;
    if (json_array_size(s->absent) == 0)
        s->absent_until_us = clock_mono_us() + ABSENT_S * 1000000;
    json_array_append_new(s->absent, json_string(handler));
    release_leases(s, handler);
}

/* false: nobody took it. */
static bool offer_row(struct redrive_source *s, const struct pg_result *res,
                      int row)
{
    struct event *event = s->sink.event_new(s->sink.ctx, s->p);
    struct letter *letter = xcalloc(1, sizeof(*letter));
    struct slice at;

    letter->source = s;
    letter->id = strtoll(pg_result_value(res, row, 0), NULL, 10);
    letter->facts = json_loads(pg_result_value(res, row, 3), 0, NULL);
    letter->body = pg_result_bytes(res, row, 4, &event->body.len);
    letter->key = pg_result_bytes(res, row, 5, &event->key.len);
    event->body.ptr = letter->body;
    event->key.ptr = letter->key;
    list_append(&s->letters, &letter->link);
    s->open++;
    event->memory = letter;
    event->place = letter->id;
    event->only_handler = xstrdup(pg_result_value(res, row, 1));
    event->arrived_us = clock_mono_us();
    if (!body_form_parse(pg_result_value(res, row, 2), &event->form))
        event->form = BODY_BINARY;
    fill_facts(event, letter->facts);
    at = event->facts[FACT_OCCURRED_AT];
    event->occurred_us = at.ptr ? clock_parse(at.ptr, at.len) : 0;
    if (event->occurred_us == INT64_MIN)
        event->occurred_us = 0;
    s->offering = letter;
    s->sink.offer(s->sink.ctx, event);
    if (s->offering)
        return true;
    note_absent(s, pg_result_value(res, row, 1));
    return false;
}

static void on_rows(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct redrive_source *s = arg;
    int rows = err ? 0 : pg_result_nrows(res), taken = 0;

    s->request = NULL;
    if (err)
        log_warn("cannot read dead letters", "err=" LOG_Q, err->msg);
    for (int row = 0; row < rows && s->p && !s->stopping.is_asked; row++)
        if (may_go(s, res, row))
            taken += offer_row(s, res, row);
        else
            s->is_paced = true;
    if (taken > 0)
        log_info("dead letters run again", "count=%d", taken);
    if (taken == LIMIT)
        look_in(s, MORE_S);
    else
        look_in(s, s->is_paced ? PACE_US / 1e6 : LOOK_S);
}

/* Letters under way, and handlers that are not here or wait, are left out;
 * `most` may be 0, for the leases alone: what runs must not run elsewhere. */
static void read_letters(struct redrive_source *s, int most)
{
    struct buf ids = {0}, absent = {0}, waiting = {0};
    char limit[16], lease[24];
    const json_t *name;
    size_t i;

    s->read_us = clock_mono_us();
    if (s->read_us > s->absent_until_us)
        json_array_clear(s->absent);
    array_begin(&ids);
    list_foreach(item, &s->letters)
        array_add_number(&ids, CONTAINER_OF(item, struct letter, link)->id);
    array_end(&ids);
    array_begin(&absent);
    array_begin(&waiting);
    json_array_foreach(s->absent, i, name) {
        array_add(&absent, json_string_value(name));
        array_add(&waiting, json_string_value(name));
    }
    s->is_paced = add_waiting(s, &waiting);
    array_end(&absent);
    array_end(&waiting);
    snprintf(limit, sizeof(limit), "%d", most);
    snprintf(lease, sizeof(lease), "%" PRId64, s->lease_ms);
    struct pg_param params[] = {
        {.value = buf_text(&ids)}, {.value = buf_text(&waiting)},
        {.value = limit},          {.value = s->node},
        {.value = lease},          {.value = buf_text(&absent)},
    };

    s->request = pg_pool_query(s->pool, read_sql, 6, params, on_rows, s);
    buf_fini(&ids);
    buf_fini(&absent);
    buf_fini(&waiting);
}

static void look(struct redrive_source *s)
{
    bool is_full = s->is_paused || s->stopping.is_asked || s->open >= OPEN_MAX;

    if (s->request || !s->is_started || !s->p)
        return;
    if (is_full && clock_mono_us() - s->read_us < (int64_t)(LOOK_S * 1e6)) {
        look_in(s, s->is_paused ? LOOK_S : MORE_S);
        return;
    }
    read_letters(s, is_full ? 0 : LIMIT);
}

/* --- the seam -------------------------------------------------------------- */

static void start(struct partition *p, UNUSED const struct position *from)
{
    struct redrive_source *s = p->place;

    s->is_started = true;
    look(s);
}

static void pause_reading(struct partition *p)
{
    ((struct redrive_source *)p->place)->is_paused = true;
}

static void resume_reading(struct partition *p)
{
    ((struct redrive_source *)p->place)->is_paused = false;
}

static void on_written(void *arg, UNUSED const struct pg_result *res)
{
    letter_free(arg);
}

/* A dead one has its row written by the dead-letter store already. */
static void settled(struct event *event, enum verdict how, const char *reason)
{
    struct letter *letter = event->memory;
    struct try *q;

    if (how != VERDICT_ACK && how != VERDICT_SKIP)
        return;
    letter->is_settled = true;
    q = try_new(&letter->source->tries, "settle dead letter", settle_sql);
    try_number(q, letter->id);
    try_text(q, how == VERDICT_ACK ? "redriven" : "discarded");
    try_text(q, reason ? reason : "");
    try_send(q, on_written, letter);
}

static void release(struct event *event)
{
    struct letter *letter = event->memory;

    if (letter->source->offering == letter)
        letter->source->offering = NULL;
    if (!letter->is_settled)
        letter_free(letter);
}

static void commit(UNUSED struct partition *p,
                   UNUSED const struct position *done)
{
}

static void closed(struct partition *p)
{
    struct redrive_source *s = p->place;

    s->p = NULL;
    release_leases(s, NULL);
    stopping_tell(&s->stopping);
}

static int64_t backlog(UNUSED struct partition *p)
{
    return -1;
}

static const struct source_ops ops = {
    .kind = SOURCE_REDRIVE,
    .start = start,
    .pause = pause_reading,
    .resume = resume_reading,
    .release = release,
    .commit = commit,
    .closed = closed,
    .backlog = backlog,
    .settled = settled,
};

struct redrive_source *redrive_source_new(struct ev_loop *loop,
                                          struct pg_pool *pool,
                                          const struct source_sink *sink,
                                          const char *node, int64_t lease_ms)
{
    struct redrive_source *s = xcalloc(1, sizeof(*s));

    s->loop = loop;
    s->pool = pool;
    s->sink = *sink;
    s->node = xstrdup(node);
    s->lease_ms = lease_ms;
    s->absent = json_array();
    list_init(&s->letters);
    list_init(&s->paces);
    tries_init(&s->tries, loop, pool);
    ev_timer_init(&s->timer, on_timer, LOOK_S, 0.);
    s->timer.data = s;
    s->p = sink->opened(sink->ctx, &ops, s, "dead letters", 0, "0", "");
    s->p->place = s;
    return s;
}

void redrive_source_stop(struct redrive_source *s, void (*done)(void *arg),
                         void *arg)
{
    stopping_ask_one(&s->stopping, &s->sink, s->p, done, arg);
}

void redrive_source_wake(struct redrive_source *s)
{
    look(s);
}

void redrive_source_free(struct redrive_source *s)
{
    if (!s)
        return;
    ev_timer_stop(s->loop, &s->timer);
    if (s->request)
        pg_request_forget(s->request);
    tries_fini(&s->tries);
    list_foreach_safe(item, &s->letters)
        letter_free(CONTAINER_OF(item, struct letter, link));
    list_foreach_safe(item, &s->paces)
        pace_free(CONTAINER_OF(item, struct pace, link));
    json_decref(s->absent);
    free(s->node);
    free(s);
}
