/*
 * The host's parts and what they share. host.c wires them; each part is one
 * file, or a few that share a *_priv.h: supervisor (workers), catalogue
 * (handler versions), intake (sources and positions), switches (flags), outcome
 * (dead letters and skips), publish, collect (metrics) and api (HTTP). One
 * thread, one loop.
 */
#ifndef MT_HOST_HOST_PRIV_H
#define MT_HOST_HOST_PRIV_H

#include "base/list.h"
#include "base/metrics.h"
#include "base/settings.h"
#include "core/pipeline.h"
#include "host/config.h"
#include "ipc/channel.h"

#include <ev.h>

struct api;
struct catalogue;
struct collect;
struct deadletters;
struct delivery_store;
struct flag_store;
struct open_breakers;
struct intake;
struct kafka_embedded;
struct kafka_producer;
struct kafka_settings;
struct parked_store;
struct pg_pool;
struct positions;
struct supervisor;
struct upkeep;

struct host {
    struct ev_loop *loop;
    struct config_source config_from;
    struct settings settings;
    struct metrics *metrics;
    struct pipeline *pipeline;
    int64_t started_us; /* wall clock */
    char node[128];     /* owner of positions and leases */

    struct supervisor *supervisor;
    struct catalogue *catalogue;
    struct intake *intake;
    struct collect *collect;
    struct open_breakers *breakers;
    struct upkeep *upkeep;
    struct api *api;

    struct pg_pool *db; /* NULL: no PostgreSQL */
    bool db_is_connected;
    bool db_is_migrated;   /* the tables are there */
    bool is_counting_dead; /* the table was asked, no answer yet */
    bool is_counting_parked;
    struct kafka_settings *kafka; /* NULL: no Kafka */
    struct kafka_embedded *embedded;
    struct kafka_producer *producer;
    bool kafka_is_connected;
    char incarnation[17]; /* of the embedded broker; "" else */

    struct positions *positions; /* stores/positions_kafka.h, where there is
                                    Kafka */
    struct deadletters *deadletters;
    struct delivery_store *deliveries;
    struct flag_store *flag_store;
    struct flags flags;
    struct parked_store *parked; /* NULL: no PostgreSQL */
    int let_go_times;            /* see parking.c */
    int64_t let_go_us;

    bool is_draining;
    bool is_held; /* DOMAIN_EVENTS_ENABLED is off */
    int64_t next_trim_us;
    double received_at_trim;
    int exit_code;
    ev_timer tick, drain;
    ev_prepare prepare;
    ev_check check;
    ev_idle busy; /* runs while there is more to do: the loop must not sleep */
    ev_signal sigterm, sigint, sighup;
};

/* Tell the time to the pipeline; each callback that leads into it begins with
 * this through the loop's check watcher, so others need not. */
void host_now(struct host *h);
/* What a session of ours runs first: the search path. Gives. */
char *host_session_sql(const struct host *h);
/* The brokers, or the embedded one. */
const char *host_bootstrap(const struct host *h);

/* --- supervisor.c: worker processes ------------------------------------------ */

/* What an event may bring beside a body of event.max_bytes, in a worker's ring. */
#define FACTS_ROOM (60u << 10)

struct bundle { /* a handler version, ready to be loaded */
    struct handler *handler;
    uint32_t vm;
    char *json; /* for MSG_LOAD; the workers' copy */
    int concurrency;
};

struct supervisor *supervisor_new(struct host *h);
void supervisor_free(struct supervisor *s);
void supervisor_start(struct supervisor *s);
/* All configured workers run and have loaded everything. */
bool supervisor_is_ready(const struct supervisor *s);
/* A candidate goes to every worker; catalogue_loaded() hears how it went. */
void supervisor_load(struct supervisor *s, const struct bundle *b);
/* Every worker that lives has loaded this version (and there is one). */
bool supervisor_has_loaded(const struct supervisor *s, uint32_t vm);
void supervisor_unload(struct supervisor *s, uint32_t vm);
bool supervisor_send(struct supervisor *s, unsigned worker,
                     const struct event_msg *ev, const struct delivery_msg *to,
                     size_t n);
void supervisor_want_spare(struct supervisor *s);
void supervisor_reply(struct supervisor *s, unsigned worker, uint64_t serial,
                      uint32_t call, bool ok, struct slice text);
/* Begin and end of a loop turn. poll: true when something was read. */
bool supervisor_poll(struct supervisor *s);
bool supervisor_flush(struct supervisor *s); /* true: do not sleep yet */
void supervisor_tick(struct supervisor *s, int64_t now_us);
void supervisor_drain(struct supervisor *s);
bool supervisor_is_gone(const struct supervisor *s);
json_t *supervisor_json(const struct supervisor *s);
void supervisor_collect(struct supervisor *s);

/* --- catalogue.c: handler versions ---------------------------------------------- */

struct catalogue *catalogue_new(struct host *h);
void catalogue_free(struct catalogue *c);
/* Look at the folders again and load what changed. `force`: this handler ("*":
 * every one) even if it did not; NULL: none. */
void catalogue_scan(struct catalogue *c, const char *force);
/* Once a turn: candidates that every worker has loaded take over. */
void catalogue_turn(struct catalogue *c);
/* The first scan is over and every good handler is loaded. */
bool catalogue_is_ready(const struct catalogue *c);
/* A worker's answer to a load; `ok` false: `text` says why. False when `vm`
 * is no candidate but a version that runs. */
bool catalogue_loaded(struct catalogue *c, uint32_t vm, bool ok,
                      struct slice text);
/* What a new worker has to load: every version in use. */
size_t catalogue_bundles(const struct catalogue *c,
                         const struct bundle **bundles, size_t max);
json_t *catalogue_json(const struct catalogue *c, const char *name);
/* The bundle of the running version, for dry runs; NULL: none. Borrowed. */
const char *catalogue_bundle(const struct catalogue *c, const char *name);
void catalogue_collect(struct catalogue *c);
/* The first look is over: what could be checked is a candidate. */
bool catalogue_probed(const struct catalogue *c);
bool catalogue_knows(const struct catalogue *c, const char *name);

/* --- intake.c: sources and positions ---------------------------------------------- */

struct intake *intake_new(struct host *h);
void intake_free(struct intake *in);
bool intake_start(struct intake *in, struct err *err) MUST_CHECK;
void intake_quiet(struct host *h, struct partition *p);  /* pipeline op */
void intake_fenced(struct host *h, struct partition *p); /* pipeline op */
void intake_room_again(struct host *h);                  /* pipeline op */
void intake_behind(const struct partition *p, const struct handler *h,
                   bool is_behind);  /* pipeline op */
void intake_turn(struct intake *in); /* end of a loop turn */
void intake_tick(struct intake *in, int64_t now_us);
/* A handler that the partitions do not know yet was loaded. */
void intake_handler_added(struct intake *in, struct handler *h);
void intake_stop(struct intake *in); /* drain: give all partitions back */
bool intake_is_stopped(const struct intake *in);
/* There is much to write down: do not wait for the interval. */
void intake_save_soon(struct intake *in);
json_t *intake_json(const struct intake *in);
/* A source that failed for good and is opened again; NULL: none. */
const char *intake_trouble(const struct intake *in);
/* The outbox stands still, and no partition of it is open to say so; NULL. */
const char *intake_outbox_trouble(const struct intake *in);

struct source_move {
    const char *partition; /* "topic/3", or "outbox": all of it */
    const char *to;        /* earliest, latest or an offset */
    const char *handler;   /* NULL: the reading, and all who stand before it */
    const char *reason, *who;
    bool is_forced; /* also where nothing stands still */
};
/* `answer` {partition, next, givenUp: [{handler, first, last}]} is given; NULL
 * with err. */
typedef void move_done_fn(void *arg, json_t *answer, const struct err *err);
void intake_move(struct intake *in, const struct source_move *move,
                 move_done_fn *done, void *arg);
void intake_collect(struct intake *in);

/* --- switches.c: flags --------------------------------------------------------------- */

bool switches_start(struct host *h, struct err *err) MUST_CHECK;
/* The flags of a file, before anything of it takes effect. */
bool switches_check(const struct host *h, const json_t *file,
                    struct err *err) MUST_CHECK;
void switches_apply(struct host *h); /* after any change */
/* A handler came or changed: held by a flag? `why` says which one; `size` 0:
 * does not matter. */
bool switches_holds(const struct host *h, const char *handler, char *why,
                    size_t size);
json_t *switches_json(const struct host *h);

typedef void switch_done_fn(void *arg, const struct err *err);
struct flag_set;
/* Refused (ERR_PERMANENT) when it could not take effect, and says why. */
void switches_set(struct host *h, const struct flag_set *asked,
                  switch_done_fn *done, void *arg);
void switches_unset(struct host *h, const char *name, switch_done_fn *done,
                    void *arg);

/* --- parking.c: the parked queue ------------------------------------------------------ */

void parking_put(struct host *h, struct delivery *d, enum park_reason reason,
                 int64_t delay_ms, const char *flag); /* pipeline op */
void parking_stop(struct host *h, struct handler *handler,
                  const struct delivery *d); /* pipeline op */
/* Which lanes of a partition wait for something parked; `done` comes when all
 * are known, and until then the partition is busy. */
typedef void parking_opened_fn(struct intake *in, struct partition *p);
void parking_open(struct host *h, struct partition *p, parking_opened_fn *done);
void parking_flags_changed(struct host *h);
void parking_tick(struct host *h, int64_t now_us);

/* --- outcome.c, publish.c, collect.c, api.c -------------------------------------------- */

void outcome_store(struct host *h, struct delivery *d, enum verdict how);

typedef void publish_fn(void *arg, json_t *ids, const struct err *err);
/* Native envelopes (an array); ids are given. Durable when called back. */
void publish_events(struct host *h, const json_t *envelopes, publish_fn *done,
                    void *arg);

/* Topic, key, value and headers of an event as they go to Kafka, added to `to`.
 * Fills what the envelope leaves out. */
struct kafka_outputs;
void publish_compose(const struct host *h, json_t *ev,
                     struct kafka_outputs *to);
/* Is it an event that can be published? */
bool publish_check(const json_t *ev, size_t i, struct err *err) MUST_CHECK;

/* --- calls.c, produce.c: what handlers ask of the host ---------------------------------- */

/* MSG_CALL of a worker, whole. */
void host_call(struct host *h, unsigned worker, uint64_t serial, uint32_t id,
               struct slice text);

/* outputs.c: what handlers with transaction = "kafka" give out. Which delivery
 * that is comes from a worker: errors say that it is not, or not any more. */
enum outputs_end {
    OUTPUTS_HELD,   /* until its position passes it */
    OUTPUTS_DIRECT, /* it has none: redriven or parked; to be produced now */
    OUTPUTS_FULL,   /* so much is held that it has to come again */
    OUTPUTS_LATE,   /* nothing of ours runs there */
};
struct kafka_outputs;
enum outputs_end outputs_put(struct host *h, unsigned worker, uint32_t slot,
                             uint32_t generation, struct kafka_outputs *list);
void outputs_drop(struct host *h, const struct delivery *d); /* pipeline op */
void outputs_close(struct host *h, const struct partition *p);
void outputs_written(void *host, const struct kafka_outputs *list);

typedef void produce_fn(void *arg, const struct err *err);
/* All of them at once, at least once each. Takes what is in `list`; called back
 * when every one is stored, with the first error when one is not. */
void produce_outputs(struct host *h, struct kafka_outputs *list,
                     produce_fn *done, void *arg);

void collect_start(struct host *h);
void collect_end(struct host *h);
void collect_worker_news(struct host *h, unsigned worker, struct slice json);
/* Its process ended: what it used of memory is free. */
void collect_worker_gone(struct host *h, unsigned worker);

struct api *api_new(struct host *h, struct err *err);
void api_free(struct api *a);
json_t *status_json(struct host *h);
/* readiness.c: why /readyz says 503; an empty array when it is ready. */
json_t *readiness_json(struct host *h);

#endif
