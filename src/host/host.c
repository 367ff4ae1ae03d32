/*
 * The host's wiring and its loop.
 *
 * A turn of the loop: what arrived is handled by watchers; then, before the
 * loop sleeps (prepare), verdicts are read, ready deliveries are sent, closing
 * partitions go on, and workers that sleep are woken. All batching comes from
 * this: whatever a turn brought goes out together.
 *
 * Start: settings → database (waited for) → handlers probed → workers load
 * them → flags → sources. Drain is the way back.
 */
#include "host/host.h"

#include "base/clock.h"
#include "base/digest.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/host_priv.h"
#include "host/upkeep.h"
#include "kafka/embedded.h"
#include "kafka/producer.h"
#include "kafka/settings.h"
#include "pg/pg.h"
#include "stores/deadletters.h"
#include "stores/deliveries.h"
#include "stores/flags.h"
#include "stores/parked.h"
#include "stores/positions_kafka.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char component[] = "host";

#define TICK_S          0.02
#define QUARANTINE_US   60000000
#define EMBEDDED_PARTS  4
#define TRIM_EVERY_US   2000000
#define PRODUCER_END_MS 5000

void host_now(struct host *h)
{
    pipeline_tick(h->pipeline, clock_mono_us(), clock_wall_us());
}

char *host_session_sql(const struct host *h)
{
    char quoted[140];

    if (!pg_quote_ident(h->settings.database_schema, quoted, sizeof(quoted)))
        return xstrdup("");
    return xasprintf("SET search_path = %s, public", quoted);
}

const char *host_bootstrap(const struct host *h)
{
    return h->embedded ? kafka_embedded_bootstrap(h->embedded)
                       : h->settings.kafka_brokers;
}

/* --- the pipeline's wishes -------------------------------------------------------- */

static bool op_send(void *ctx, unsigned worker, const struct event_msg *ev,
                    const struct delivery_msg *to, size_t n)
{
    return supervisor_send(((struct host *)ctx)->supervisor, worker, ev, to, n);
}

static void op_store(void *ctx, struct delivery *d, enum verdict how)
{
    outcome_store(ctx, d, how);
}

static void op_park(void *ctx, struct delivery *d, enum park_reason reason,
                    int64_t delay_ms, const char *flag)
{
    parking_put(ctx, d, reason, delay_ms, flag);
}

static void op_stopped(void *ctx, struct handler *handler,
                       const struct delivery *d)
{
    parking_stop(ctx, handler, d);
}

/* A lane does not go on before: no other attempt has given anything yet. */
static void op_returned(void *ctx, const struct delivery *d)
{
    outputs_drop(ctx, d);
}

static void op_quiet(void *ctx, struct partition *p)
{
    intake_quiet(ctx, p);
}

static void op_fenced(void *ctx, struct partition *p)
{
    intake_fenced(ctx, p);
}

static void op_room_again(void *ctx)
{
    intake_room_again(ctx);
}

static void op_want_spare(void *ctx)
{
    supervisor_want_spare(((struct host *)ctx)->supervisor);
}

static void op_behind(void *ctx, struct partition *p, struct handler *h,
                      bool is_behind)
{
    (void)ctx;
    intake_behind(p, h, is_behind);
}

static const struct pipeline_ops pipeline_ops_of_host = {
    .send = op_send,
    .store = op_store,
    .park = op_park,
    .stopped = op_stopped,
    .returned = op_returned,
    .quiet = op_quiet,
    .fenced = op_fenced,
    .room_again = op_room_again,
    .want_spare = op_want_spare,
    .behind = op_behind,
};

/* --- the loop ------------------------------------------------------------------------ */

static void on_check(struct ev_loop *loop, ev_check *w, int events)
{
    (void)loop;
    (void)events;
    host_now(w->data);
}

static void turn(struct host *h)
{
    supervisor_poll(h->supervisor);
    catalogue_turn(h->catalogue);
    intake_turn(h->intake);
    pipeline_pump_all(h->pipeline);
}

static void on_prepare(struct ev_loop *loop, ev_prepare *w, int events)
{
    struct host *h = w->data;

    (void)events;
    turn(h);
    if (supervisor_flush(h->supervisor))
        ev_idle_start(loop, &h->busy);
    else
        ev_idle_stop(loop, &h->busy);
}

static void on_idle(struct ev_loop *loop, ev_idle *w, int events)
{
    (void)loop; /* being active is all it does: the loop does not block */
    (void)w;
    (void)events;
}

/* What fetches leave behind in the heap goes back now and then, and once more
 * when they are over. */
static void give_back_memory(struct host *h, int64_t now_us)
{
    struct pipeline_numbers n;

    if (now_us < h->next_trim_us)
        return;
    h->next_trim_us = now_us + TRIM_EVERY_US;
    pipeline_numbers(h->pipeline, &n);
    if (n.received > h->received_at_trim)
        malloc_trim(0);
    h->received_at_trim = n.received;
}

static void go_on_draining(struct host *h);

static void on_tick(struct ev_loop *loop, ev_timer *w, int events)
{
    struct host *h = w->data;
    int64_t now_us = clock_mono_us();

    (void)loop;
    (void)events;
    supervisor_tick(h->supervisor, now_us);
    intake_tick(h->intake, now_us);
    parking_tick(h, now_us);
    upkeep_tick(h->upkeep, now_us);
    give_back_memory(h, now_us);
    if (h->is_draining)
        go_on_draining(h);
}

/* --- draining -------------------------------------------------------------------------- */

/* Sources give their partitions back (which waits for what runs and saves
 * positions), then the workers end, then we do. */
static void go_on_draining(struct host *h)
{
    if (!intake_is_stopped(h->intake))
        return;
    if (!supervisor_is_gone(h->supervisor)) {
        static bool told;

        if (!told)
            supervisor_drain(h->supervisor);
        told = true;
        return;
    }
    log_info("drained", "%s", "");
    ev_break(h->loop, EVBREAK_ALL);
}

/* What the drain still waits for, in words. Gives. */
static char *why_not_drained(const struct host *h)
{
    const struct err *err = h->db ? pg_pool_error(h->db) : NULL;

    if (h->db && !h->db_is_connected)
        return xasprintf("the database cannot be reached%s%s", err ? ": " : "",
                         err ? err->msg : "");
    if (h->kafka && !h->kafka_is_connected)
        return xstrdup("no Kafka broker can be reached");
    if (!intake_is_stopped(h->intake))
        return xstrdup("what was taken is not done, or not saved yet");
    return xstrdup("workers have not ended yet");
}

static void on_drain_timeout(struct ev_loop *loop, ev_timer *w, int events)
{
    struct host *h = w->data;
    char *why = why_not_drained(h);

    (void)events;
    log_error("not drained in time", "drain_timeout_ms=%lld why=" LOG_Q,
              (long long)h->settings.drain_timeout, why);
    free(why);
    h->exit_code = 1;
    ev_break(loop, EVBREAK_ALL);
}

static void on_stop_signal(struct ev_loop *loop, ev_signal *w, int events)
{
    struct host *h = w->data;

    (void)events;
    if (h->is_draining) {
        log_warn("stopped at once by a second signal", "%s", "");
        h->exit_code = 1;
        ev_break(loop, EVBREAK_ALL);
        return;
    }
    log_info("draining", "signal=%d", w->signum);
    h->is_draining = true;
    intake_stop(h->intake);
    ev_timer_set(&h->drain, (double)h->settings.drain_timeout / 1e3 + 2, 0);
    ev_timer_start(loop, &h->drain);
}

/* --- reload ------------------------------------------------------------------------------- */

static void on_hangup(struct ev_loop *loop, ev_signal *w, int events)
{
    struct host *h = w->data;
    struct settings fresh;
    struct err err;
    enum log_level level;

    (void)loop;
    (void)events;
    if (!config_load(&fresh, &h->config_from, &err) ||
        !switches_check(h, fresh.flags, &err)) {
        log_error("configuration refused, the former one goes on", "err=" LOG_Q,
                  err.msg);
        settings_fini(&fresh);
        return;
    }
    /* What takes effect at reload; the rest waits for a restart. */
    json_decref(h->settings.handlers);
    h->settings.handlers = json_incref(fresh.handlers);
    json_decref(h->settings.flags);
    h->settings.flags = json_incref(fresh.flags);
    h->settings.max_attempts = fresh.max_attempts;
    h->settings.drain_timeout = fresh.drain_timeout;
    h->settings.dedupe_for = fresh.dedupe_for;
    if (log_level_parse(fresh.log_level, &level))
        log_set_level(level);
    settings_fini(&fresh);
    if (!switches_start(h, &err))
        log_error("flags refused", "err=" LOG_Q, err.msg);
    log_info("configuration read again", "%s", "");
    catalogue_scan(h->catalogue, "*");
}

/* --- database and Kafka --------------------------------------------------------------------- */

static void on_db_state(void *arg, bool connected)
{
    struct host *h = arg;

    h->db_is_connected = connected;
}

static bool open_database(struct host *h, struct err *err)
{
    char *session = host_session_sql(h);
    struct pg_pool_options opts = {
        .url = h->settings.database_url,
        .name = "main",
        .application_name = "moontide host",
        .session_sql = session,
        .size = (int)h->settings.database_pool,
        .no_prepare = !h->settings.database_prepare,
        .on_state = on_db_state,
        .arg = h,
    };

    if (*h->settings.database_url)
        h->db = pg_pool_new(h->loop, &opts, err);
    free(session);
    return h->db || !*h->settings.database_url;
}

static void on_kafka_state(void *arg, bool connected)
{
    struct host *h = arg;

    h->kafka_is_connected = connected;
}

static bool open_embedded(struct host *h, struct err *err)
{
    json_t *topic;
    size_t i;

    h->embedded = kafka_embedded_new(err);
    if (!h->embedded)
        return false;
    snprintf(h->incarnation, sizeof(h->incarnation), "%016llx",
             (unsigned long long)random_u64());
    json_array_foreach(h->settings.kafka_topics, i, topic) {
        const char *name = json_string_value(topic);

        if (name[0] != '^' &&
            !kafka_embedded_topic(h->embedded, name, EMBEDDED_PARTS, err))
            return false;
    }
    return true;
}

static bool open_kafka(struct host *h, struct err *err)
{
    if (!*h->settings.kafka_brokers)
        return true;
    if (strcmp(h->settings.kafka_brokers, "embedded") == 0 &&
        !open_embedded(h, err))
        return false;
    h->kafka = xcalloc(1, sizeof(*h->kafka));
    *h->kafka = (struct kafka_settings){
        .brokers = host_bootstrap(h),
        .client_id = h->settings.kafka_client_id,
        .group_id = h->settings.kafka_group_id,
        .instance_id = h->settings.kafka_instance_id,
        .incarnation = h->incarnation,
        .topics = h->settings.kafka_topics,
        .rdkafka = h->settings.rdkafka,
        .on_state = on_kafka_state,
        .arg = h,
    };
    h->producer = kafka_producer_new(h->loop, h->kafka, err);
    return h->producer != NULL;
}

static bool open_stores(struct host *h, struct err *err)
{
    char *topic;

    if (h->db) {
        h->positions = positions_pg_new(h->loop, h->db, h->node);
        h->deadletters = deadletters_pg_new(h->loop, h->db);
    } else if (h->producer) {
        topic = xasprintf("%s.positions", h->settings.kafka_group_id);
        if (h->embedded && !kafka_embedded_topic(h->embedded, topic, 1, err)) {
            free(topic);
            return false;
        }
        h->positions =
            positions_topic_new(h->loop, h->kafka, h->producer, topic);
        h->deadletters = deadletters_topic_new(
            h->producer, h->settings.dead_letters_topic_suffix);
        free(topic);
    } else {
        return err_set(err, ERR_PERMANENT,
                       "nothing to read: give database.url (DATABASE_URL) or "
                       "kafka.brokers (KAFKA_BROKERS)");
    }
    if (h->kafka)
        h->positions = positions_kafka_new(h->loop, h->kafka, h->positions,
                                           outputs_written, h);
    h->deliveries = delivery_store_new(h->loop, h->db);
    if (h->db)
        h->parked = parked_store_new(h->loop, h->db);
    return true;
}

/* --- start ------------------------------------------------------------------------------------ */

struct waiting {
    bool is_done, is_there;
};

/* NULL: the schema is older than this program. */
static const char newest_tables_sql[] =
    "SELECT nullif(to_regclass('event_parked') IS NOT NULL"
    " AND to_regclass('event_dead_letter_edits') IS NOT NULL"
    " AND to_regclass('event_source_trouble') IS NOT NULL"
    " AND EXISTS (SELECT FROM pg_attribute WHERE attname = 'process'"
    "  AND attrelid = to_regclass('event_hosts')), false)";

static void on_tables(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct waiting *w = arg;

    w->is_done = true;
    w->is_there =
        !err && pg_result_nrows(res) == 1 && !pg_result_is_null(res, 0, 0);
}

static bool is_stopped(const struct host *h)
{
    return h->is_draining;
}

static void on_moment(struct ev_loop *loop, ev_timer *w, int events)
{
    (void)loop; /* that it fired is enough: the loop came back */
    (void)w;
    (void)events;
}

/* Run the loop for a while: the database is not there yet. */
static void wait_a_little(struct host *h)
{
    ev_timer moment;

    ev_timer_init(&moment, on_moment, 0.05, 0);
    ev_timer_start(h->loop, &moment);
    while (ev_is_active(&moment) && !is_stopped(h))
        ev_run(h->loop, EVRUN_ONCE);
    ev_timer_stop(h->loop, &moment);
}

/* Nothing can start without the tables; say what is missing, once a while. */
static bool wait_for_database(struct host *h)
{
    int64_t said_us = clock_mono_us() - 9500000; /* after half a second */

    while (h->db && !h->db_is_migrated && !is_stopped(h)) {
        struct waiting w = {0};
        const struct err *why = pg_pool_error(h->db);
        int64_t now = clock_mono_us();

        if (h->db_is_connected) {
            struct pg_request *asked =
                pg_pool_query(h->db, newest_tables_sql, 0, NULL, on_tables, &w);

            while (!w.is_done && !is_stopped(h))
                ev_run(h->loop, EVRUN_ONCE);
            if (!w.is_done)
                pg_request_forget(asked); /* `w` goes */
            h->db_is_migrated = w.is_there;
            if (w.is_there)
                break;
        }
        if (now - said_us > 10000000) {
            said_us = now;
            log_warn(h->db_is_connected ? "waiting for tables: run moontide "
                                          "migrate up"
                                        : "waiting for the database",
                     "err=" LOG_Q, why ? why->msg : "");
        }
        wait_a_little(h);
    }
    return !is_stopped(h);
}

static void stop_waiting(struct ev_loop *loop, ev_signal *w, int events)
{
    struct host *h = w->data;

    (void)loop;
    (void)events;
    h->is_draining = true;
}

static void watch_signal(struct host *h, ev_signal *w, int number,
                         void (*fn)(struct ev_loop *, ev_signal *, int))
{
    ev_signal_init(w, fn, number);
    w->data = h;
    ev_signal_start(h->loop, w);
}

static void watch_stop_signals(struct host *h,
                               void (*fn)(struct ev_loop *, ev_signal *, int))
{
    ev_signal_stop(h->loop, &h->sigterm);
    ev_signal_stop(h->loop, &h->sigint);
    watch_signal(h, &h->sigterm, SIGTERM, fn);
    watch_signal(h, &h->sigint, SIGINT, fn);
}

static void start_loop(struct host *h)
{
    ev_check_init(&h->check, on_check);
    ev_prepare_init(&h->prepare, on_prepare);
    ev_idle_init(&h->busy, on_idle);
    ev_timer_init(&h->tick, on_tick, TICK_S, TICK_S);
    ev_timer_init(&h->drain, on_drain_timeout, 0, 0);
    h->check.data = h->prepare.data = h->busy.data = h;
    h->tick.data = h->drain.data = h;
    ev_check_start(h->loop, &h->check);
    ev_prepare_start(h->loop, &h->prepare);
    ev_timer_start(h->loop, &h->tick);
    watch_stop_signals(h, on_stop_signal);
    watch_signal(h, &h->sighup, SIGHUP, on_hangup);
}

/* Handlers checked, workers up with them. */
static bool load_handlers(struct host *h)
{
    catalogue_scan(h->catalogue, NULL);
    while (!catalogue_probed(h->catalogue) && !is_stopped(h))
        ev_run(h->loop, EVRUN_ONCE);
    supervisor_start(h->supervisor);
    while (!is_stopped(h) && (!supervisor_is_ready(h->supervisor) ||
                              !catalogue_is_ready(h->catalogue)))
        ev_run(h->loop, EVRUN_ONCE);
    return !is_stopped(h);
}

static bool make_parts(struct host *h, struct err *err)
{
    struct pipeline_config config = {
        .window_events = (uint32_t)h->settings.window_events,
        .window_bytes = (uint64_t)h->settings.window_bytes,
        .event_bytes = (size_t)h->settings.event_max_bytes + FACTS_ROOM,
        .n_workers = (unsigned)h->settings.workers_count,
        .quarantine_us = QUARANTINE_US,
        .park_after_ms =
            *h->settings.database_url ? h->settings.retry_park_after : 0,
    };

    h->metrics = metrics_new();
    h->pipeline = pipeline_new(&config, &pipeline_ops_of_host, h, h->metrics);
    host_now(h);
    h->supervisor = supervisor_new(h);
    h->intake = intake_new(h);
    h->catalogue = catalogue_new(h);
    h->upkeep = upkeep_new(h);
    if (!open_database(h, err) || !open_kafka(h, err) || !open_stores(h, err))
        return false;
    collect_start(h);
    if (*h->settings.http_listen) {
        h->api = api_new(h, err);
        return h->api != NULL;
    }
    return true;
}

static bool start(struct host *h, struct err *err)
{
    if (!make_parts(h, err))
        return false;
    watch_stop_signals(h, stop_waiting);
    if (!wait_for_database(h))
        return true;
    start_loop(h);
    if (!switches_start(h, err))
        return false;
    if (!load_handlers(h))
        return true;
    switches_apply(h);
    if (!intake_start(h->intake, err))
        return false;
    log_info("started", "node=%s workers=%lld", h->node,
             (long long)h->settings.workers_count);
    return true;
}

/* The events go back to the sources first. What producer and pool still owe an
 * answer to gets it while it is there: requests of the API, calls of workers. */
static void tear_down(struct host *h)
{
    /* Before the positions and deliveries that it answers are gone. */
    kafka_producer_end(h->producer, PRODUCER_END_MS);
    pipeline_free(h->pipeline);
    intake_free(h->intake);
    flag_store_free(h->flag_store);
    delivery_store_free(h->deliveries);
    parked_store_free(h->parked);
    if (h->positions)
        h->positions->ops->free(h->positions);
    if (h->deadletters)
        h->deadletters->ops->free(h->deadletters);
    kafka_producer_free(h->producer, PRODUCER_END_MS);
    pg_pool_free(h->db);
    upkeep_free(h->upkeep);
    api_free(h->api);
    supervisor_free(h->supervisor);
    catalogue_free(h->catalogue);
    kafka_embedded_free(h->embedded);
    free(h->kafka);
    flags_fini(&h->flags);
    collect_end(h);
    metrics_free(h->metrics);
}

/* No two processes have the same one, also where containers of one name begin
 * with process 1 again and again: it is the owner of leases. */
static void name_node(struct host *h)
{
    char name[64] = "host";

    gethostname(name, sizeof(name) - 1);
    snprintf(h->node, sizeof(h->node), "%s/%d-%04x", name, (int)getpid(),
             (unsigned)(random_u64() & 0xffff));
}

static void set_up_log(const struct settings *s)
{
    enum log_level level = LOG_INFO;

    log_level_parse(s->log_level, &level);
    log_init(level, strcmp(s->log_format, "json") == 0 ? LOG_JSON : LOG_HUMAN,
             "host");
}

/* librdkafka's threads allocate fetch buffers and ours free them: with an arena
 * a thread what is freed stays with the process (measured: 53 → 38 MiB). The
 * buffers themselves, up to a megabyte, stay in the heap: mapped and unmapped
 * for each fetch they cost a third of librdkafka's time, and 3 MiB are spared. */
static void tame_malloc(void)
{
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
}

int host_run(const struct config_source *config)
{
    struct host h = {.config_from = *config, .started_us = clock_wall_us()};
    struct err err;

    signal(SIGPIPE, SIG_IGN);
    tame_malloc();
    if (!config_load(&h.settings, config, &err)) {
        log_error("configuration refused", "err=" LOG_Q, err.msg);
        settings_fini(&h.settings);
        return 1;
    }
    set_up_log(&h.settings);
    if (h.settings.workers_count == 0)
        h.settings.workers_count = sysconf(_SC_NPROCESSORS_ONLN);
    if (h.settings.workers_count > PIPELINE_WORKERS_MAX - 1)
        h.settings.workers_count = PIPELINE_WORKERS_MAX - 1;
    name_node(&h);
    h.loop = ev_default_loop(EVFLAG_AUTO | EVFLAG_NOENV);
    if (!start(&h, &err)) {
        log_error("cannot start", "err=" LOG_Q, err.msg);
        h.exit_code = 1;
    } else if (!h.is_draining) {
        ev_run(h.loop, 0);
    }
    tear_down(&h);
    settings_fini(&h.settings);
    return h.exit_code;
}
