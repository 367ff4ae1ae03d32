/*
 * What people do to dead letters: redrive, discard, edit. Who did what is kept:
 * in the letter's history, and for edits with what was there before.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/scan.h"
#include "stores/deadletters_filter.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STRINGIFY_(x) #x
#define STRINGIFY(x)  STRINGIFY_(x)
#define OFTEN         STRINGIFY(DEAD_REDRIVES_MAX)

#define NOW       DEAD_TIME("now()")
#define EDITED_AT DEAD_TIME("e.at")

/* --- redrive and discard ------------------------------------------------------- */

/* What cannot be decoded has no handler that could try again. One that comes
 * back again and again is left out, unless it is named or forced ($11). */
#define MAY_BE_REDRIVEN \
    DEAD_FILTER " AND handler <> '' AND state IN ('dead', 'discarded')"
#define IS_NO_LOOP \
    " ($1::text IS NOT NULL OR $11::boolean OR redrives < " OFTEN ")"

static const char redrive_sql[] =
    "WITH all_of AS (SELECT id," IS_NO_LOOP " AS goes FROM event_dead_letters"
    " WHERE" MAY_BE_REDRIVEN " FOR UPDATE),"
    " w AS (UPDATE event_dead_letters AS d SET state = 'redriving',"
    " redrives = redrives + 1, redrive_every = make_interval(secs =>"
    " $12::float8 / 1000000), history = history || jsonb_build_array("
    "jsonb_build_object('at', " NOW ", 'redriven', redrives + 1, 'who',"
    " $13::text)) FROM all_of WHERE d.id = all_of.id AND all_of.goes"
    " RETURNING 1)"
    " SELECT json_build_object('count', (SELECT count(*) FROM w), 'leftOut',"
    " (SELECT count(*) FROM all_of WHERE NOT goes))";

static const char redrive_count_sql[] =
    "SELECT json_build_object('count', count(*) FILTER (WHERE" IS_NO_LOOP
    "), 'leftOut', count(*) FILTER (WHERE NOT" IS_NO_LOOP
    "), 'dryRun', true) FROM event_dead_letters WHERE" MAY_BE_REDRIVEN;

static const char discard_sql[] =
    "WITH w AS (UPDATE event_dead_letters SET state = 'discarded',"
    " note = $11, history = history || jsonb_build_array(jsonb_build_object("
    "'at', " NOW ", 'discarded', $11::text, 'who', $12::text))"
    " WHERE" DEAD_FILTER " AND state IN ('dead', 'redriving') RETURNING *),"
    " d AS (INSERT INTO event_deliveries (handler, event_id, source, partition,"
    " place, outcome, reason, version, attempts) SELECT DISTINCT ON (handler,"
    " event_id) handler, event_id, source, partition, place, 'discarded',"
    " $11, handler_version, attempts FROM w"
    " ON CONFLICT (handler, event_id) DO UPDATE SET"
    " outcome = 'discarded', reason = excluded.reason, at = now())"
    " SELECT json_build_object('count', count(*)) FROM w";

void deadletters_redrive(struct pg_pool *pool, const struct dead_filter *filter,
                         const struct dead_redrive *how, dead_answer_fn *done,
                         void *arg)
{
    struct pg_param params[DEAD_FILTER_PARAMS + 3];
    struct dead_times times;
    char every[24];

    dead_filter_params(params, filter, &times);
    snprintf(every, sizeof(every), "%" PRId64, how->every_us);
    params[DEAD_FILTER_PARAMS] =
        (struct pg_param){.value = how->is_forced ? "t" : "f"};
    params[DEAD_FILTER_PARAMS + 1] =
        (struct pg_param){.value = how->every_us > 0 ? every : NULL};
    params[DEAD_FILTER_PARAMS + 2] = (struct pg_param){.value = how->who};
    if (how->is_dry_run)
        dead_ask(pool, redrive_count_sql, DEAD_FILTER_PARAMS + 1, params, done,
                 arg);
    else
        dead_ask(pool, redrive_sql, DEAD_FILTER_PARAMS + 3, params, done, arg);
}

void deadletters_discard(struct pg_pool *pool, const struct dead_filter *filter,
                         const char *reason, const char *who,
                         dead_answer_fn *done, void *arg)
{
    struct pg_param params[DEAD_FILTER_PARAMS + 2];
    struct dead_times times;

    dead_filter_params(params, filter, &times);
    params[DEAD_FILTER_PARAMS] = (struct pg_param){.value = reason};
    params[DEAD_FILTER_PARAMS + 1] = (struct pg_param){.value = who};
    dead_ask(pool, discard_sql, DEAD_FILTER_PARAMS + 2, params, done, arg);
}

/* --- edit ------------------------------------------------------------------------- */

/* The letter is read, changed here (its payload may be a part of an envelope,
 * of which every other byte stays), and written if it still is what was read. */
static const char read_sql[] =
    "SELECT state, format, body, facts::text FROM event_dead_letters"
    " WHERE id = $1::bigint";

static const char write_sql[] =
    "WITH old AS (SELECT id, body, facts FROM event_dead_letters"
    " WHERE id = $1::bigint AND state IN ('dead', 'discarded')"
    " AND body IS NOT DISTINCT FROM $2::bytea AND facts = $3::jsonb"
    " FOR UPDATE),"
    " e AS (INSERT INTO event_dead_letter_edits (dead_letter_id, who, reason,"
    " before_body, before_facts, after_body, after_facts) SELECT id, $4, $5,"
    " body, facts, $6::bytea, $7::jsonb FROM old RETURNING id, at),"
    " w AS (UPDATE event_dead_letters AS d SET body = $6::bytea,"
    " facts = $7::jsonb, event_type = coalesce($7::jsonb->>'type', ''),"
    " aggregate_type = coalesce($7::jsonb->>'aggregate_type', ''),"
    " aggregate_id = coalesce($7::jsonb->>'aggregate_id', ''),"
    " history = history || jsonb_build_array(jsonb_build_object('at',"
    " " EDITED_AT ", 'edited', e.id, 'who', $4::text, 'reason', $5::text))"
    " FROM old, e WHERE d.id = old.id RETURNING d.id)"
    " SELECT json_build_object('id', w.id, 'edit', e.id) FROM w, e";

struct edit {
    struct pg_pool *pool;
    int64_t id;
    char *payload, *who, *reason;
    json_t *changes; /* of facts; NULL: none */
    dead_answer_fn *done;
    void *arg;
};

static void edit_free(struct edit *e)
{
    json_decref(e->changes);
    free(e->payload);
    free(e->who);
    free(e->reason);
    free(e);
}

static void edit_end(struct edit *e, json_t *answer, const struct err *err)
{
    e->done(e->arg, answer, err);
    edit_free(e);
}

static void on_written(void *arg, json_t *answer, const struct err *err)
{
    struct edit *e = arg;
    struct err changed;

    if (!err && json_is_null(answer)) {
        err_set(&changed, ERR_PERMANENT,
                "the letter has changed meanwhile, or is being redriven");
        json_decref(answer);
        answer = NULL;
        err = &changed;
    }
    edit_end(e, answer, err);
}

/* PostgreSQL's \x… text. */
static char *bytes_of(const char *hex, size_t *len)
{
    size_t n = strlen(hex) >= 2 ? (strlen(hex) - 2) / 2 : 0;
    char *bytes = xcalloc(n + SCAN_PADDING, 1);

    for (size_t i = 0; i < n; i++) {
        char pair[3] = {hex[2 + 2 * i], hex[3 + 2 * i], '\0'};

        bytes[i] = (char)strtoul(pair, NULL, 16);
    }
    *len = n;
    return bytes;
}

/* Of a text scan_path() gives what is inside the quotes, or a copy: no place
 * in the body to write to. */
static bool is_value_of(struct slice value, struct slice body)
{
    uintptr_t at = (uintptr_t)value.ptr, from = (uintptr_t)body.ptr;

    return value.ptr && at > from && at + value.len <= from + body.len &&
           value.ptr[-1] != '"' && (*value.ptr == '{' || *value.ptr == '[');
}

static bool find_payload(const char *format, struct slice body,
                         struct slice *payload, struct err *err)
{
    const char *name = strcmp(format, "native") == 0 ? "payload" : "data";
    struct scan *scan = scan_new();
    bool ok = scan_path(scan, body, name, payload, err);

    if (ok && !is_value_of(*payload, body))
        ok = err_set(err, ERR_PERMANENT,
                     "the envelope has no \"%s\" that is an object or a list",
                     name);
    scan_free(scan);
    return ok;
}

static bool new_body(const struct edit *e, const char *format,
                     struct slice body, struct buf *out, struct err *err)
{
    struct slice old = body;

    if (strcmp(format, "binary") == 0)
        return err_set(err, ERR_PERMANENT,
                       "a payload that is no JSON cannot be edited");
    if (strcmp(format, "payload") != 0 &&
        !find_payload(format, body, &old, err))
        return false;
    buf_add(out, body.ptr, (size_t)(old.ptr - body.ptr));
    buf_add_text(out, e->payload);
    buf_add(out, old.ptr + old.len,
            (size_t)(body.ptr + body.len - old.ptr - old.len));
    return true;
}

/* A fact that is null is taken away: the envelope's counts then. */
static char *new_facts(const struct edit *e, const char *text)
{
    json_t *facts = json_loads(text, 0, NULL), *value;
    const char *name;
    char *out;

    json_object_foreach(e->changes, name, value)
        if (json_is_null(value))
            json_object_del(facts, name);
        else
            json_object_set(facts, name, value);
    out = json_dumps(facts, JSON_COMPACT);
    json_decref(facts);
    return out;
}

static void write_edit(struct edit *e, struct slice before,
                       const char *before_facts, struct slice after)
{
    char id[24], *facts = new_facts(e, before_facts);

    snprintf(id, sizeof(id), "%" PRId64, e->id);
#define BYTES(s)                                               \
    {                                                          \
        .value = (s).ptr, .len = (int)(s).len, .binary = true, \
        .type = PG_BYTEA                                       \
    }
    struct pg_param params[] = {
        {.value = id},     BYTES(before),        {.value = before_facts},
        {.value = e->who}, {.value = e->reason}, BYTES(after),
        {.value = facts},
    };
#undef BYTES

    dead_ask(e->pool, write_sql, 7, params, on_written, e);
    free(facts);
}

static void on_read(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct edit *e = arg;
    struct buf after = {0};
    struct slice body = {0};
    struct err why;
    char *bytes = NULL;

    if (err || pg_result_nrows(res) == 0) {
        edit_end(e, err ? NULL : json_null(), err);
        return;
    }
    if (!pg_result_is_null(res, 0, 2)) {
        bytes = bytes_of(pg_result_value(res, 0, 2), &body.len);
        body.ptr = bytes;
    }
    if (strcmp(pg_result_value(res, 0, 0), "redriving") == 0 ||
        strcmp(pg_result_value(res, 0, 0), "redriven") == 0) {
        err_set(&why, ERR_PERMANENT, "the letter is %s",
                pg_result_value(res, 0, 0));
        edit_end(e, NULL, &why);
    } else if (e->payload && !body.ptr) {
        err_set(&why, ERR_PERMANENT, "the letter has no body");
        edit_end(e, NULL, &why);
    } else if (e->payload &&
               !new_body(e, pg_result_value(res, 0, 1), body, &after, &why)) {
        edit_end(e, NULL, &why);
    } else {
        write_edit(e, body, pg_result_value(res, 0, 3),
                   e->payload ? (struct slice){after.ptr, after.len} : body);
    }
    buf_fini(&after);
    free(bytes);
}

void deadletters_edit(struct pg_pool *pool, int64_t id,
                      const struct dead_edit *edit, dead_answer_fn *done,
                      void *arg)
{
    struct edit *e = xcalloc(1, sizeof(*e));
    char text[24];
    struct pg_param param = {.value = text};

    *e = (struct edit){
        .pool = pool,
        .id = id,
        .payload = edit->payload.ptr
                       ? xstrndup(edit->payload.ptr, edit->payload.len)
                       : NULL,
        .who = xstrdup(edit->who),
        .reason = xstrdup(edit->reason),
        .changes = edit->facts ? json_deep_copy(edit->facts) : NULL,
        .done = done,
        .arg = arg,
    };
    snprintf(text, sizeof(text), "%" PRId64, id);
    pg_pool_query(pool, read_sql, 1, &param, on_read, e);
}
