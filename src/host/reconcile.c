#include "host/reconcile_priv.h"

#include "base/buf.h"
#include "base/mem.h"
#include "core/pattern.h"
#include "kafka/pages.h"
#include "stores/tries.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the tables say of the events $2 of handler $1: row i, done in the inbox,
 * state of the dead letter, outcome, parked. */
static const char traces_sql[] =
    "SELECT k.i - 1, EXISTS (SELECT FROM event_inbox b"
    "  WHERE b.handler = $1 AND b.event_id = k.id),"
    " (SELECT l.state FROM event_dead_letters l WHERE l.handler = $1"
    "  AND l.event_id = k.id AND l.source = 'outbox'"
    "  ORDER BY l.id DESC LIMIT 1),"
    " (SELECT d.outcome FROM event_deliveries d WHERE d.handler = $1"
    "  AND d.event_id = k.id),"
    " EXISTS (SELECT FROM event_parked q WHERE q.handler = $1"
    "  AND q.event_id = k.id)"
    " FROM unnest($2::text[]) WITH ORDINALITY AS k(id, i)";

static const char stand_sql[] =
    "SELECT source, seq, gaps::text, (SELECT coalesce(sum(last_place -"
    " first_place + 1), 0) FROM event_given_up g WHERE g.handler ="
    " p.handler_name AND g.source = p.source AND g.partition = p.partition"
    " AND g.source_id = p.source_id), partition FROM event_handler_positions p"
    " WHERE handler_name = $1";

/* Of dead letters and parked deliveries, whose event is not in the store. */
#define STRANGERS                                                      \
    "SELECT 'dead letter ' || l.id, l.event_id, l.event_type, l.place" \
    " FROM event_dead_letters l WHERE l.handler = $1 AND l.source ="   \
    " 'outbox' AND l.state IN ('dead', 'redriving') AND NOT EXISTS"    \
    " (SELECT FROM %s e WHERE e.seq = l.place)"                        \
    " UNION ALL SELECT 'parked delivery ' || q.id, q.event_id,"        \
    " q.event_type, q.place FROM event_parked q WHERE q.handler = $1"  \
    " AND q.source = 'outbox' AND NOT EXISTS (SELECT FROM %s e"        \
    " WHERE e.seq = q.place) ORDER BY 4 LIMIT 1000"

/* --- open ------------------------------------------------------------------------ */

const struct pg_result *reconcile_ask(struct reconcile *r, const char *sql,
                                      int n, const struct pg_param *params,
                                      struct err *err)
{
    return pg_sync_exec(r->db, sql, n, params, err);
}

static bool begin(struct reconcile *r, const struct settings *s,
                  struct err *err)
{
    char quoted[140], *script;
    bool ok;

    if (!pg_quote_ident(s->database_schema, quoted, sizeof(quoted)))
        return err_set(err, ERR_PERMANENT, "database.schema: no good name");
    script = xasprintf("SET search_path = %s, public; BEGIN ISOLATION LEVEL "
                       "REPEATABLE READ READ ONLY",
                       quoted);
    ok = pg_sync_script(r->db, script, err);
    free(script);
    return ok;
}

static bool find_outbox(struct reconcile *r, const struct settings *s,
                        struct err *err)
{
    struct pg_param table = {.value = s->outbox_table};
    const struct pg_result *res =
        reconcile_ask(r, "SELECT to_regclass($1) IS NOT NULL", 1, &table, err);

    if (!res)
        return false;
    r->has_outbox = *pg_result_value(res, 0, 0) == 't' &&
                    strcmp(s->outbox_enabled, "off") != 0;
    pg_result_unref(res);
    return outbox_sql_init(&r->sql, s->outbox_table, s->outbox_columns, err);
}

struct reconcile *reconcile_open(const struct settings *s, struct err *err)
{
    struct reconcile *r = xcalloc(1, sizeof(*r));

    r->settings = s;
    r->db = pg_sync_connect(s->database_url, err);
    if (r->db && begin(r, s, err) && find_outbox(r, s, err))
        return r;
    reconcile_close(r);
    return NULL;
}

void reconcile_close(struct reconcile *r)
{
    if (!r)
        return;
    kafka_pages_close(r->topics);
    outbox_sql_fini(&r->sql);
    pg_sync_close(r->db);
    free(r);
}

json_t *reconcile_handlers(struct reconcile *r, struct err *err)
{
    const struct pg_result *res = reconcile_ask(
        r,
        "SELECT DISTINCT handler_name FROM event_handler_positions"
        " ORDER BY 1",
        0, NULL, err);
    json_t *names = res ? json_array() : NULL;

    for (int row = 0; res && row < pg_result_nrows(res); row++)
        json_array_append_new(names, json_string(pg_result_value(res, row, 0)));
    if (res)
        pg_result_unref(res);
    return names;
}

/* --- one event --------------------------------------------------------------------- */

void reconcile_fault(struct check *c, const struct trace *t, const char *why)
{
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s*, s:I, s:s}", "handler", c->name,
                  "event", t->id, "type", t->type, "partition", t->partition,
                  "place", (json_int_t)t->place, "why", why);

    c->sums.faults++;
    c->fault(c->arg, json);
    json_decref(json);
}

static bool is_one_of(const char *text, const char *a, const char *b)
{
    return strcmp(text, a) == 0 || strcmp(text, b) == 0;
}

/* An event has one end: which? What has two does not fit. */
void reconcile_count_end(struct check *c, const struct trace *t)
{
    bool is_dead = is_one_of(t->letter, "dead", "redriving");

    if (is_dead && t->is_done)
        reconcile_fault(c, t, "is done, and a dead letter all the same");
    else if (t->is_parked && t->is_done)
        reconcile_fault(c, t, "is done, and parked all the same");
    /* A skip of a transactional handler commits its inbox row, too. */
    if ((t->is_done || strcmp(t->letter, "redriven") == 0) &&
        strcmp(t->outcome, "skip") != 0)
        c->sums.done++;
    else if (is_dead)
        c->sums.dead++;
    else if (t->is_parked)
        c->sums.parked++;
    else
        c->sums.skipped++; /* discarded */
}

bool reconcile_has_end(const struct trace *t)
{
    return t->is_done || t->is_parked || *t->letter || *t->outcome;
}

/* Nothing is known of it but where it lies. */
static void count_untraced(struct check *c, const struct trace *t)
{
    bool is_settled = t->shard < SHARDS_MAX &&
                      c->stand.shards[t->shard].is_known &&
                      t->place < c->stand.shards[t->shard].next &&
                      !ranges_has(&c->stand.shards[t->shard].gaps, t->place);

    if (!is_settled) {
        c->sums.pending++;
    } else if (!c->is_transactional) {
        c->sums.by_position++;
    } else if (t->place < c->first_trace) {
        c->sums.before++;
        c->sums.accepted--;
    } else {
        reconcile_fault(c, t, "lies behind the position, and was not done");
    }
}

/* --- pages -------------------------------------------------------------------------- */

bool reconcile_wants(const struct check *c, const char *type)
{
    const json_t *list = json_object_get(c->decl, "subscribes");
    const char *patterns[256];
    size_t n = json_array_size(list);

    if (n > 256)
        n = 256;
    for (size_t i = 0; i < n; i++)
        patterns[i] = json_string_value(json_array_get(list, i));
    return patterns_match(patterns, n, slice_of(type));
}

static const struct pg_result *
traces_of(struct check *c, const struct pg_result *page, struct err *err)
{
    const struct pg_result *res;
    struct buf ids = {0};
    struct pg_param params[] = {{.value = c->name}, {0}};

    array_begin(&ids);
    for (int i = 0; i < pg_result_nrows(page); i++)
        array_add(&ids, pg_result_value(page, i, COLUMN_ID));
    array_end(&ids);
    params[1].value = buf_text(&ids);
    res = reconcile_ask(c->r, traces_sql, 2, params, err);
    buf_fini(&ids);
    return res;
}

static void count_event(struct check *c, const struct pg_result *page,
                        const struct pg_result *traces, int row)
{
    int i = (int)strtol(pg_result_value(traces, row, 0), NULL, 10);
    struct trace t = {
        .id = pg_result_value(page, i, COLUMN_ID),
        .type = pg_result_value(page, i, COLUMN_TYPE),
        .place = strtoll(pg_result_value(page, i, COLUMN_SEQ), NULL, 10),
        .shard =
            (unsigned)strtoul(pg_result_value(page, i, COLUMN_SHARD), NULL, 10),
        .is_done = *pg_result_value(traces, row, 1) == 't',
        .letter = pg_result_value(traces, row, 2),
        .outcome = pg_result_value(traces, row, 3),
        .is_parked = *pg_result_value(traces, row, 4) == 't',
    };

    if (!reconcile_wants(c, t.type))
        return;
    c->sums.accepted++;
    if (reconcile_has_end(&t))
        reconcile_count_end(c, &t);
    else
        count_untraced(c, &t);
}

/* The next page after *last; *n: its rows. */
static bool read_page(struct check *c, int64_t *last, int *n, struct err *err)
{
    const struct pg_result *page, *traces;
    char from[24], to[24], most[12], shards[2 * SHARDS_MAX + 2];
    struct pg_param params[] = {
        {.value = from}, {.value = to}, {.value = most}, {.value = shards}};

    snprintf(from, sizeof(from), "%" PRId64, *last + 1);
    snprintf(to, sizeof(to), "%" PRId64, INT64_MAX);
    snprintf(most, sizeof(most), "%d", PAGE);
    outbox_shards_text(~(shard_set)0, shards);
    page = reconcile_ask(c->r, c->r->sql.fetch, 4, params, err);
    if (!page)
        return false;
    *n = pg_result_nrows(page);
    traces = traces_of(c, page, err);
    for (int row = 0; traces && row < pg_result_nrows(traces); row++)
        count_event(c, page, traces, row);
    if (*n > 0)
        *last = strtoll(pg_result_value(page, *n - 1, COLUMN_SEQ), NULL, 10);
    pg_result_unref(page);
    if (traces)
        pg_result_unref(traces);
    return traces != NULL;
}

/* --- a handler ------------------------------------------------------------------------ */

static bool read_stand(struct check *c, struct err *err)
{
    struct pg_param name = {.value = c->name};
    const struct pg_result *res = reconcile_ask(c->r, stand_sql, 1, &name, err);
    unsigned shard;

    for (int row = 0; res && row < pg_result_nrows(res); row++) {
        c->stand.given_up += strtoll(pg_result_value(res, row, 3), NULL, 10);
        if (strcmp(pg_result_value(res, row, 0), "outbox") != 0) {
            c->stand.topics++;
            continue;
        }
        shard = (unsigned)strtoul(pg_result_value(res, row, 4), NULL, 10);
        if (shard >= SHARDS_MAX)
            continue;
        c->stand.shards[shard].is_known = ranges_parse(
            &c->stand.shards[shard].gaps, pg_result_value(res, row, 2));
        c->stand.shards[shard].next =
            strtoll(pg_result_value(res, row, 1), NULL, 10);
    }
    if (res)
        pg_result_unref(res);
    return res != NULL;
}

/* Events before the first that the handler left a trace of may be older than
 * the handler, or than what the inbox keeps. A handler that starts at the first
 * event and whose inbox has lost nothing yet has traces of all. */
static bool find_first_trace(struct check *c, struct err *err)
{
    char dedupe[24],
        *text = xasprintf(
            "SELECT coalesce(min(e.seq), 9223372036854775807), (SELECT"
            " min(created_at) < now() - $2::bigint * interval '1 millisecond'"
            " FROM event_handler_positions WHERE handler_name = $1)"
            " FROM %s e JOIN event_inbox b ON b.handler = $1"
            " AND b.event_id = e.id::text",
            c->r->sql.table);
    struct pg_param params[] = {{.value = c->name}, {.value = dedupe}};
    const char *start = json_string_value(json_object_get(c->decl, "start"));
    const struct pg_result *res;

    snprintf(dedupe, sizeof(dedupe), "%" PRId64, c->r->settings->dedupe_for);
    res = reconcile_ask(c->r, text, 2, params, err);
    free(text);
    if (!res)
        return false;
    c->first_trace = strtoll(pg_result_value(res, 0, 0), NULL, 10);
    if (start && strcmp(start, "earliest") == 0 &&
        *pg_result_value(res, 0, 1) == 'f')
        c->first_trace = INT64_MIN;
    pg_result_unref(res);
    return true;
}

static bool find_strangers(struct check *c, struct err *err)
{
    char *sql = xasprintf(STRANGERS, c->r->sql.table, c->r->sql.table);
    struct pg_param name = {.value = c->name};
    const struct pg_result *res = reconcile_ask(c->r, sql, 1, &name, err);
    char why[120];

    for (int row = 0; res && row < pg_result_nrows(res); row++) {
        struct trace t = {
            .id = pg_result_value(res, row, 1),
            .type = pg_result_value(res, row, 2),
            .place = strtoll(pg_result_value(res, row, 3), NULL, 10),
        };

        snprintf(why, sizeof(why), "%s is of an event that is not in the store",
                 pg_result_value(res, row, 0));
        reconcile_fault(c, &t, why);
    }
    free(sql);
    if (res)
        pg_result_unref(res);
    return res != NULL;
}

static bool check_outbox(struct check *c, struct err *err)
{
    int64_t last = INT64_MIN;
    int n = PAGE;

    if (!find_first_trace(c, err))
        return false;
    while (n == PAGE)
        if (!read_page(c, &last, &n, err))
            return false;
    return find_strangers(c, err);
}

static json_t *notes_of(const struct check *c)
{
    json_t *notes = json_array();

    if (!c->is_transactional)
        json_array_append_new(
            notes, json_string("without transaction = true there is no inbox "
                               "row: that an event was done is proven by the "
                               "position only"));
    return notes;
}

static json_t *sums_json(const struct check *c)
{
    const struct sums *s = &c->sums;

    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, "
        "s:o}",
        "handler", c->name, "proof", c->is_transactional ? "inbox" : "position",
        "accepted", (json_int_t)s->accepted, "done", (json_int_t)s->done,
        "dead", (json_int_t)s->dead, "skipped", (json_int_t)s->skipped,
        "parked", (json_int_t)s->parked, "pending", (json_int_t)s->pending,
        "byPosition", (json_int_t)s->by_position, "beforeStart",
        (json_int_t)s->before, "givenUp", (json_int_t)c->stand.given_up,
        "faults", (json_int_t)s->faults, "topicPartitions", c->stand.topics,
        "notes", notes_of(c));
}

json_t *reconcile_handler(struct reconcile *r, const char *name,
                          const json_t *decl, reconcile_fault_fn *fault_fn,
                          void *arg, struct err *err)
{
    struct check c = {
        .r = r,
        .name = name,
        .decl = decl,
        .is_transactional = json_is_true(json_object_get(decl, "transaction")),
        .fault = fault_fn,
        .arg = arg,
    };
    json_t *sums = NULL;

    if (read_stand(&c, err) && (!r->has_outbox || check_outbox(&c, err)) &&
        reconcile_topics(&c, err))
        sums = sums_json(&c);
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        ranges_fini(&c.stand.shards[i].gaps);
    return sums;
}
