/*
 * The topics' half of reconcile: each partition is read once for a handler,
 * from its first record to its end, a page at a time, and each event that the
 * handler subscribes to is held against the tables.
 */
#include "base/buf.h"
#include "base/mem.h"
#include "host/reconcile_priv.h"
#include "kafka/pages.h"
#include "sources/kafka_event.h"
#include "stores/tries.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define STORED_LATEST (INT64_MAX - 1) /* a position that is "latest" still */

struct topic_event {
    int64_t place;
    char *id, *type;
};

/* A partition under way. */
struct topic {
    struct check *check;
    const char *name; /* "topic/3" */
    struct kafka_events events;
    struct kafka_part part;
    int64_t next;
    struct ranges gaps, given_up;
    bool is_traced; /* something before is known to have been the handler's */
    struct topic_event page[PAGE];
    size_t n;
};

/* $1 handler, $2 ids, $3 places, $4 partition */
static const char traces_sql[] =
    "SELECT k.i - 1, EXISTS (SELECT FROM event_inbox b"
    "  WHERE b.handler = $1 AND b.event_id = k.id),"
    " (SELECT l.state FROM event_dead_letters l WHERE l.handler = $1"
    "  AND l.event_id = k.id AND l.source = 'kafka' AND l.partition = $4"
    "  AND l.place = k.place ORDER BY l.id DESC LIMIT 1),"
    " (SELECT d.outcome FROM event_deliveries d WHERE d.handler = $1"
    "  AND d.event_id = k.id),"
    " EXISTS (SELECT FROM event_parked q WHERE q.handler = $1"
    "  AND q.event_id = k.id AND q.source = 'kafka' AND q.partition = $4)"
    " FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY"
    " AS k(id, place, i) ORDER BY k.i";

/* $1 handler, $2 dedupe_for in ms */
static const char positions_sql[] =
    "SELECT partition, source_id, seq, gaps::text, (SELECT coalesce(range_agg("
    " int8range(first_place, last_place, '[]')), '{}')::text"
    " FROM event_given_up g WHERE g.handler = p.handler_name"
    " AND g.source = p.source AND g.partition = p.partition"
    " AND g.source_id = p.source_id),"
    " created_at > now() - $2::bigint * interval '1 millisecond'"
    " FROM event_handler_positions p WHERE handler_name = $1"
    " AND source = 'kafka' ORDER BY source_id, length(partition), partition";

/* --- a page -------------------------------------------------------------------- */

static void on_record(void *arg, struct kafka_record *record)
{
    struct topic *t = arg;
    struct event event = {0};
    struct slice id, type;

    kafka_event_fill(&t->events, &event, record, &t->part);
    id = event.facts[FACT_ID];
    type = event.facts[FACT_TYPE];
    if (!event.undecodable) { /* else it is nobody's: a letter without one */
        struct topic_event *e = &t->page[t->n];

        *e = (struct topic_event){event.place, xstrndup(id.ptr, id.len),
                                  xstrndup(type.ptr ? type.ptr : "", type.len)};
        if (reconcile_wants(t->check, e->type)) {
            t->n++;
        } else {
            free(e->id);
            free(e->type);
        }
    }
    free(event.undecodable);
    kafka_kept_free(t->events.keeper, event.memory);
}

static const struct pg_result *traces_of(struct topic *t, struct err *err)
{
    struct buf ids = {0}, places = {0};
    struct pg_param params[] = {
        {.value = t->check->name}, {0}, {0}, {.value = t->name}};
    const struct pg_result *res;

    array_begin(&ids);
    array_begin(&places);
    for (size_t i = 0; i < t->n; i++) {
        array_add(&ids, t->page[i].id);
        array_add_number(&places, t->page[i].place);
    }
    array_end(&ids);
    array_end(&places);
    params[1].value = buf_text(&ids);
    params[2].value = buf_text(&places);
    res = reconcile_ask(t->check->r, traces_sql, 4, params, err);
    buf_fini(&ids);
    buf_fini(&places);
    return res;
}

/* Nothing is known of it but where it lies. */
static void count_untraced(struct topic *t, const struct trace *e)
{
    struct check *c = t->check;

    if (e->place >= t->next || ranges_has(&t->gaps, e->place)) {
        c->sums.pending++;
    } else if (ranges_has(&t->given_up, e->place)) {
        c->sums.accepted--; /* the sum of what was given up has it */
    } else if (t->next == STORED_LATEST ||
               (c->is_transactional && !t->is_traced)) {
        c->sums.before++;
        c->sums.accepted--;
    } else if (!c->is_transactional) {
        c->sums.by_position++;
    } else {
        reconcile_fault(c, e, "lies behind the position, and was not done");
    }
}

static void count_page(struct topic *t, const struct pg_result *traces)
{
    for (int row = 0; row < pg_result_nrows(traces); row++) {
        const struct topic_event *e =
            &t->page[strtoul(pg_result_value(traces, row, 0), NULL, 10)];
        struct trace trace = {
            .id = e->id,
            .type = e->type,
            .place = e->place,
            .partition = t->name,
            .is_done = *pg_result_value(traces, row, 1) == 't',
            .letter = pg_result_value(traces, row, 2),
            .outcome = pg_result_value(traces, row, 3),
            .is_parked = *pg_result_value(traces, row, 4) == 't',
        };

        t->check->sums.accepted++;
        if (reconcile_has_end(&trace)) {
            t->is_traced = true;
            reconcile_count_end(t->check, &trace);
        } else {
            count_untraced(t, &trace);
        }
    }
}

static bool check_page(struct topic *t, struct err *err)
{
    const struct pg_result *traces = traces_of(t, err);

    if (traces) {
        count_page(t, traces);
        pg_result_unref(traces);
    }
    for (size_t i = 0; i < t->n; i++) {
        free(t->page[i].id);
        free(t->page[i].type);
    }
    t->n = 0;
    return traces != NULL;
}

/* --- a partition ---------------------------------------------------------------- */

static bool read_pages(struct topic *t, struct err *err)
{
    struct kafka_pages *pages = t->check->r->topics;
    bool is_end = false, ok = true;

    if (!kafka_pages_start(pages, t->part.topic, t->part.partition, err))
        return false;
    while (ok && !is_end)
        ok = kafka_pages_next(pages, PAGE, on_record, t, &is_end, err) &&
             check_page(t, err);
    kafka_pages_stop(pages);
    return ok;
}

static bool open_pages(struct reconcile *r, struct err *err)
{
    const struct settings *s = r->settings;
    struct kafka_settings kafka = {
        .brokers = s->kafka_brokers,
        .client_id = s->kafka_client_id,
        .group_id = s->kafka_group_id, /* librdkafka wants one; never joined */
        .instance_id = "",
        .incarnation = "",
        .rdkafka = s->rdkafka,
    };

    if (!*s->kafka_brokers || strcmp(s->kafka_brokers, "embedded") == 0)
        return err_set(err, ERR_PERMANENT,
                       "it has positions in topics, but kafka.brokers "
                       "(KAFKA_BROKERS) names no broker to read them from");
    if (!r->topics)
        r->topics = kafka_pages_open(&kafka, err);
    return r->topics != NULL;
}

/* A handler that starts at the first event, whose inbox has lost nothing yet,
 * has traces of all. */
static bool is_traced_from_the_start(const struct check *c, bool is_young)
{
    const char *start = json_string_value(json_object_get(c->decl, "start"));

    return is_young && start && strcmp(start, "earliest") == 0 &&
           strcmp(c->r->settings->kafka_start, "earliest") == 0;
}

static bool check_partition(struct check *c, const struct pg_result *positions,
                            int row, struct err *err)
{
    struct topic *t = xcalloc(1, sizeof(*t));
    char *source_id = xstrdup(pg_result_value(positions, row, 1));
    char *topic = xstrdup(pg_result_value(positions, row, 0));
    char *slash = strrchr(topic, '/');
    bool ok = slash != NULL;

    t->check = c;
    t->name = pg_result_value(positions, row, 0);
    t->next = strtoll(pg_result_value(positions, row, 2), NULL, 10);
    t->is_traced =
        is_traced_from_the_start(c, *pg_result_value(positions, row, 5) == 't');
    if (!ok)
        (void)!err_set(err, ERR_PERMANENT, "no partition: %s", topic);
    else
        *slash = '\0';
    t->part = (struct kafka_part){
        .topic = topic,
        .partition = ok ? (int32_t)strtol(slash + 1, NULL, 10) : 0,
        .source_id = source_id};
    ok = ok && ranges_parse(&t->gaps, pg_result_value(positions, row, 3)) &&
         ranges_parse(&t->given_up, pg_result_value(positions, row, 4)) &&
         kafka_events_init(&t->events, c->r->settings->kafka_format,
                           c->r->settings->event_max_bytes, err) &&
         read_pages(t, err);
    if (t->events.scan)
        kafka_events_fini(&t->events);
    ranges_fini(&t->gaps);
    ranges_fini(&t->given_up);
    free(topic);
    free(source_id);
    free(t);
    return ok;
}

bool reconcile_topics(struct check *c, struct err *err)
{
    char *dedupe = xasprintf("%" PRId64, c->r->settings->dedupe_for);
    struct pg_param params[] = {{.value = c->name}, {.value = dedupe}};
    const struct pg_result *res =
        reconcile_ask(c->r, positions_sql, 2, params, err);
    bool ok = res && (pg_result_nrows(res) == 0 || open_pages(c->r, err));

    for (int row = 0; ok && row < pg_result_nrows(res); row++)
        ok = check_partition(c, res, row, err);
    free(dedupe);
    if (res)
        pg_result_unref(res);
    return ok;
}
