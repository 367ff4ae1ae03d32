/*
 * The leases of shards, in the tables event_shards and event_hosts.
 *
 * A beat, every third of the lease, is one statement: it says that this host is
 * alive, renews what it holds and brings the table. What follows is decided in
 * core/leases.h: take free shards (a second statement), or drain some and give
 * them back (a third, when they are closed). Whatever the answers, a tick looks
 * at our own clock: a shard whose time is over is closed as lost.
 *
 * All of it goes through one connection of its own, a statement a transaction,
 * so it works through a transaction pooler; and no statement waits for a lock:
 * a shard that somebody still commits for is taken at the next beat.
 *
 * A host that was killed is missed at once where it can be seen that it is dead:
 * on its own machine. There its leases are ended by who sees it first, which is
 * most often its successor.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/process.h"
#include "sources/outbox_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TICK_S     0.1
#define LACKING_US 250000 /* a beat while there is less than our share */
#define AGAIN_US   500000 /* after a failure */
#define LEAVE_US   1000000
#define UNUSED     __attribute__((unused))

static const char component[] = "outbox";

struct outbox_lease {
    struct outbox_source *source;
    struct pg_pool *pool;
    struct leases leases;
    char *node, *process, *lease_ms;
    bool is_begun, is_failing;
    bool is_leaving, says_so, has_said_so; /* to the other hosts, in a beat */
    bool is_asking;    /* a beat, or what follows it, is under way */
    shard_set asked;   /* by the beat under way */
    shard_set claimed; /* by the statement that follows it */
    shard_set fenced;  /* a write said so; closed at the next tick */
    shard_set closed;  /* drained: to be given back */
    shard_set giving;  /* in the statement under way */
    int64_t sent_us, next_us;
    int64_t left_us;          /* leaving: when the last partition had closed */
    char *owners[SHARDS_MAX]; /* as the table had it last; "" nobody */
    json_t *hosts;            /* for people */
    char *refused;            /* why nothing may be taken; NULL: it may */
    ev_timer tick;
};

/* One row for each host that lives, by name, then one for each shard. */
enum beat_column {
    BEAT_SHARD, /* NULL: a host */
    BEAT_NODE,  /* or owner */
    BEAT_STATE, /* host: ms left; shard: free, renewed or held */
    BEAT_OTHER, /* the outbox of a host that reads another one */
    BEAT_PROCESS,
};

/* $1 node, $2 outbox, $3 lease in ms, $4 shards, $5 their epochs, $6 leaving,
 * $7 process */
static const char beat_sql[] =
    "WITH this AS (SELECT coalesce((SELECT n.nspname || '.' || c.relname"
    "  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    "  WHERE c.oid = to_regclass($2)), $2) AS outbox),"
    " me AS (INSERT INTO event_hosts AS h (node, outbox, expires_at, process)"
    " SELECT $1, outbox, clock_timestamp() + $3::bigint * interval '1 ms', $7"
    " FROM this WHERE NOT $6::boolean ON CONFLICT (node) DO UPDATE SET"
    " expires_at = excluded.expires_at, outbox = excluded.outbox),"
    " gone AS (DELETE FROM event_hosts WHERE node = $1 AND $6::boolean"
    " OR expires_at < clock_timestamp() - interval '1 hour'),"
    " mine AS (UPDATE event_shards s SET expires_at = clock_timestamp()"
    "  + $3::bigint * interval '1 ms'"
    " FROM unnest($4::int[], $5::bigint[]) k(shard, epoch)"
    " WHERE s.shard = k.shard AND s.epoch = k.epoch AND s.owner = $1"
    " AND s.timeline = moontide_timeline() RETURNING s.shard)"
    " SELECT NULL::int, node, ms::text, other, process FROM ("
    "  SELECT node, nullif(outbox, (SELECT outbox FROM this)) AS other, "
    "(extract(epoch FROM expires_at"
    "   - clock_timestamp()) * 1000)::bigint AS ms, process FROM event_hosts"
    "  WHERE expires_at > clock_timestamp() AND node <> $1"
    "  UNION ALL SELECT $1, NULL, $3::bigint, '' WHERE NOT $6::boolean) alive"
    " UNION ALL SELECT shard, owner,"
    " CASE WHEN shard IN (SELECT shard FROM mine) THEN 'renewed'"
    "  WHEN owner IN ('', $1) OR expires_at <= clock_timestamp() THEN 'free'"
    "  ELSE 'held' END, NULL, NULL FROM event_shards"
    " ORDER BY 1 NULLS FIRST, 2";

/* $1 node, $2 shards, $3 lease in ms. A row that is locked has a commit of its
 * former owner under way. */
static const char claim_sql[] =
    "WITH free AS (SELECT shard FROM event_shards"
    " WHERE shard = ANY ($2::int[]) AND (owner IN ('', $1)"
    "  OR expires_at <= clock_timestamp()) ORDER BY shard"
    " FOR UPDATE SKIP LOCKED)"
    " UPDATE event_shards s SET owner = $1, epoch = s.epoch + 1, since = now(),"
    " timeline = moontide_timeline(), expires_at = clock_timestamp() + "
    "$3::bigint * interval '1 ms'"
    " FROM free WHERE s.shard = free.shard RETURNING s.shard, s.epoch";

/* $1 node, $2 shards, $3 epochs */
static const char give_sql[] =
    "UPDATE event_shards s SET owner = '', expires_at = '-infinity'"
    " FROM unnest($2::int[], $3::bigint[]) k(shard, epoch)"
    " WHERE s.shard = k.shard AND s.epoch = k.epoch AND s.owner = $1";

/* $1 nodes, $2 their processes. What its workers still commit is fenced by the
 * next owner, as after a lease that has ended by itself. */
static const char bury_sql[] =
    "WITH dead AS (DELETE FROM event_hosts h"
    " USING unnest($1::text[], $2::text[]) d(node, process)"
    " WHERE h.node = d.node AND h.process = d.process RETURNING h.node)"
    " UPDATE event_shards s SET expires_at = '-infinity'"
    " FROM dead WHERE s.owner = dead.node";

/* $1 nodes. Sessions of workers whose host lost its lease: what they have not
 * committed they could not commit any more, but its locks are in our way. */
static const char end_sql[] =
    "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a"
    " JOIN unnest($1::text[]) gone(node) ON starts_with(a.application_name,"
    "  'moontide ' || right(gone.node, 40) || ' worker')"
    " WHERE a.xact_start IS NOT NULL AND a.usename = current_user"
    " AND a.datname = current_database()";

/* --- parameters ----------------------------------------------------------------- */

static char *numbers(const struct leases *l, shard_set set, bool epochs)
{
    struct buf text = {0};

    buf_add_char(&text, '{');
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (set & SHARD(i))
            buf_printf(&text, "%s%" PRId64, text.len > 1 ? "," : "",
                       epochs ? l->at[i].epoch : (int64_t)i);
    buf_add_char(&text, '}');
    return buf_give(&text);
}

static void ask_again(struct outbox_lease *l, int64_t after_us)
{
    l->is_asking = false;
    l->next_us = clock_mono_us() + after_us;
}

static void on_failure(struct outbox_lease *l, const char *doing,
                       const struct err *err)
{
    if (!l->is_failing)
        log_warn("leases cannot be renewed", "doing=%s err=" LOG_Q, doing,
                 err->msg);
    l->is_failing = true;
    ask_again(l, AGAIN_US);
}

/* --- giving back ------------------------------------------------------------------ */

static void on_given(void *arg, UNUSED const struct pg_result *res,
                     const struct err *err)
{
    struct outbox_lease *l = arg;

    if (err) /* then they end by themselves */
        log_warn("shards not given back", "err=" LOG_Q, err->msg);
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (l->giving & SHARD(i))
            leases_clear(&l->leases, i);
    l->giving = 0;
}

static void give_back(struct outbox_lease *l)
{
    char *shards, *epochs;

    if (!l->closed || l->giving)
        return;
    l->giving = l->closed;
    l->closed = 0;
    shards = numbers(&l->leases, l->giving, false);
    epochs = numbers(&l->leases, l->giving, true);
    pg_pool_query(l->pool, give_sql, 3,
                  (struct pg_param[]){
                      {.value = l->node}, {.value = shards}, {.value = epochs}},
                  on_given, l);
    free(shards);
    free(epochs);
}

void outbox_lease_closed(struct outbox_lease *l, unsigned shard)
{
    if (l->leases.held & SHARD(shard))
        l->closed |= SHARD(shard);
    else
        leases_clear(&l->leases, shard);
}

/* --- losing ------------------------------------------------------------------------- */

static void close_lost(struct outbox_lease *l, shard_set lost, const char *why)
{
    if (!lost)
        return;
    log_error("shards lost", "n=%u why=" LOG_Q, shard_count(lost), why);
    for (unsigned i = 0; i < SHARDS_MAX; i++) {
        if (!(lost & SHARD(i)))
            continue;
        if (l->source->shards[i].p)
            outbox_shard_close(l->source, i, true);
        else
            leases_clear(&l->leases, i);
    }
    l->closed &= ~lost;
    l->next_us = 0;
}

void outbox_lease_fenced(struct outbox_lease *l, unsigned shard)
{
    l->fenced |= SHARD(shard);
}

static void close_fenced(struct outbox_lease *l)
{
    shard_set fenced = l->fenced & l->leases.held;

    l->fenced = 0;
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (fenced & SHARD(i))
            leases_lose(&l->leases, i);
    close_lost(l, fenced, "fenced: another host has them");
}

/* --- taking ------------------------------------------------------------------------- */

static void on_ended(UNUSED void *arg, const struct pg_result *res,
                     const struct err *err)
{
    if (err)
        log_warn("sessions of a former owner not ended", "err=" LOG_Q,
                 err->msg);
    else if (strcmp(pg_result_value(res, 0, 0), "0") != 0)
        log_info("sessions of a former owner ended", "n=%s",
                 pg_result_value(res, 0, 0));
}

/* What is free and has an owner was not given back: that host is dead, frozen
 * or cut off. */
static void end_sessions(struct outbox_lease *l)
{
    struct buf nodes = {0};
    const char *last = "";

    buf_add_char(&nodes, '{');
    for (unsigned i = 0; i < l->leases.n; i++) {
        const char *owner = l->owners[i];

        if (!(l->claimed & SHARD(i)) || !*owner || strcmp(owner, last) == 0 ||
            strcmp(owner, l->node) == 0)
            continue;
        buf_add_text(&nodes, nodes.len > 1 ? "," : "");
        buf_add_json(&nodes, slice_of(owner)); /* quoted alike */
        last = owner;
    }
    buf_add_char(&nodes, '}');
    if (nodes.len > 2)
        pg_pool_query(l->pool, end_sql, 1,
                      &(struct pg_param){.value = buf_text(&nodes)}, on_ended,
                      l);
    buf_fini(&nodes);
}

static void on_claimed(void *arg, const struct pg_result *res,
                       const struct err *err)
{
    struct outbox_lease *l = arg;
    int n = err ? 0 : pg_result_nrows(res);

    if (err) {
        on_failure(l, "claim", err);
        return;
    }
    end_sessions(l);
    ask_again(l, LACKING_US);
    for (int row = 0; row < n; row++) {
        unsigned i = (unsigned)strtoul(pg_result_value(res, row, 0), NULL, 10);

        leases_take(&l->leases, i,
                    strtoll(pg_result_value(res, row, 1), NULL, 10),
                    l->sent_us);
        if (l->is_leaving) /* too late */
            l->closed |= SHARD(i);
        else
            outbox_shard_open(l->source, i);
    }
    if (n > 0)
        log_info("shards taken", "table=%s n=%d have=%u of=%u",
                 l->source->table, n, shard_count(l->leases.held), l->leases.n);
}

static void claim(struct outbox_lease *l, shard_set wanted)
{
    char *shards = numbers(&l->leases, wanted, false);

    l->claimed = wanted;
    l->sent_us = clock_mono_us();
    pg_pool_query(l->pool, claim_sql, 3,
                  (struct pg_param[]){{.value = l->node},
                                      {.value = shards},
                                      {.value = l->lease_ms}},
                  on_claimed, l);
    free(shards);
}

void outbox_lease_void(struct outbox_lease *l, const char *why)
{
    shard_set held = l->leases.held;

    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (held & SHARD(i))
            leases_lose(&l->leases, i);
    close_lost(l, held, why);
}

static void drain(struct outbox_lease *l, shard_set excess)
{
    if (!excess)
        return;
    log_info("shards given up", "table=%s n=%u have=%u of=%u", l->source->table,
             shard_count(excess),
             shard_count(l->leases.held & ~l->leases.leaving), l->leases.n);
    l->leases.leaving |= excess;
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (excess & SHARD(i))
            outbox_shard_close(l->source, i, false);
}

/* --- the beat ------------------------------------------------------------------------ */

struct beat {
    struct lease_view view;
    shard_set renewed;
    int64_t soonest_ms; /* until a host may turn out to be dead */
    unsigned shards;
    json_t *hosts;
    char *refused;
    struct buf dead, processes; /* of hosts that died on this machine */
};

/* Said once. Who holds shards already keeps them. */
static void refuse(struct outbox_lease *l, struct beat *b, char *why)
{
    free(b->refused);
    b->refused = why;
    if (!l->refused || strcmp(l->refused, why) != 0)
        log_error("no shards can be taken", "table=%s why=" LOG_Q,
                  l->source->table, why);
}

static void add_element(struct buf *array, const char *text)
{
    buf_add_char(array, array->len ? ',' : '{');
    buf_add_json(array, slice_of(text)); /* quoted alike */
}

static void add_dead(struct beat *b, const char *node, const char *process)
{
    log_warn("a host has died on this machine: its shards are free", "node=%s",
             node);
    add_element(&b->dead, node);
    add_element(&b->processes, process);
}

static void add_host(struct outbox_lease *l, struct beat *b, const char *node,
                     int64_t left_ms, const char *other)
{
    if (*other) {
        refuse(l, b,
               xasprintf("host %s reads %s with the shards of this schema: "
                         "each outbox needs a schema (database.schema) of its "
                         "own",
                         node, other));
        return;
    }
    if (strcmp(node, l->node) == 0)
        b->view.rank = b->view.hosts;
    else if (left_ms < b->soonest_ms)
        b->soonest_ms = left_ms;
    b->view.hosts++;
    json_array_append_new(b->hosts,
                          json_pack("{s:s, s:i}", "node", node, "shards", 0));
}

static void count_shard(json_t *hosts, const char *owner)
{
    json_t *host;
    size_t i;

    json_array_foreach(hosts, i, host) {
        json_t *n = json_object_get(host, "shards");

        if (strcmp(json_string_value(json_object_get(host, "node")), owner) ==
            0)
            json_integer_set(n, json_integer_value(n) + 1);
    }
}

static void add_shard(struct outbox_lease *l, struct beat *b, unsigned shard,
                      const char *owner, const char *state)
{
    if (shard >= SHARDS_MAX) {
        refuse(l, b, xstrdup("there are more shards than this moontide knows"));
        return;
    }
    b->shards = shard + 1 > b->shards ? shard + 1 : b->shards;
    if (strcmp(state, "renewed") == 0)
        b->renewed |= SHARD(shard);
    if (strcmp(state, "free") == 0)
        b->view.free |= SHARD(shard);
    else
        count_shard(b->hosts, owner);
    free(l->owners[shard]);
    l->owners[shard] = xstrdup(owner);
}

static void read_beat(struct outbox_lease *l, const struct pg_result *res,
                      struct beat *b)
{
    *b = (struct beat){.soonest_ms = INT64_MAX, .hosts = json_array()};
    for (int row = 0; row < pg_result_nrows(res); row++) {
        const char *node = pg_result_value(res, row, BEAT_NODE);
        const char *state = pg_result_value(res, row, BEAT_STATE);

        if (process_has_ended(pg_result_value(res, row, BEAT_PROCESS)))
            add_dead(b, node, pg_result_value(res, row, BEAT_PROCESS));
        else if (pg_result_is_null(res, row, BEAT_SHARD))
            add_host(l, b, node, strtoll(state, NULL, 10),
                     pg_result_value(res, row, BEAT_OTHER));
        else
            add_shard(l, b,
                      (unsigned)strtoul(pg_result_value(res, row, BEAT_SHARD),
                                        NULL, 10),
                      node, state);
    }
    json_decref(l->hosts);
    l->hosts = b->hosts;
    free(l->refused);
    l->refused = b->refused;
}

/* The next beat: in time to renew, and when a host may be found dead. */
static int64_t pause_of(const struct outbox_lease *l, const struct beat *b)
{
    int64_t pause_us = l->leases.lease_us / 3;
    unsigned share =
        b->view.hosts ? leases_share(l->leases.n, b->view.hosts, b->view.rank)
                      : 0;

    if (shard_count(l->leases.held) < share && !l->is_leaving)
        return LACKING_US < pause_us ? LACKING_US : pause_us;
    if (b->soonest_ms < pause_us / 1000)
        return b->soonest_ms * 1000 + 1000;
    return pause_us;
}

static void balance(struct outbox_lease *l, const struct beat *b)
{
    shard_set wanted;

    ask_again(l, pause_of(l, b));
    if (l->is_leaving && !l->has_said_so)
        l->next_us = 0;
    if (l->is_leaving || !b->view.hosts)
        return;
    drain(l, leases_excess(&l->leases, &b->view));
    wanted = leases_wanted(&l->leases, &b->view);
    if (wanted && !l->refused && !l->source->halt.is_on) {
        l->is_asking = true;
        claim(l, wanted);
    }
}

static void on_buried(void *arg, UNUSED const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_lease *l = arg;

    if (err)
        on_failure(l, "bury", err);
    else
        ask_again(l, 0);
}

static void bury(struct outbox_lease *l, struct beat *b)
{
    buf_add_char(&b->dead, '}');
    buf_add_char(&b->processes, '}');
    pg_pool_query(l->pool, bury_sql, 2,
                  (struct pg_param[]){{.value = buf_text(&b->dead)},
                                      {.value = buf_text(&b->processes)}},
                  on_buried, l);
}

static void on_beat(void *arg, const struct pg_result *res,
                    const struct err *err)
{
    struct outbox_lease *l = arg;
    struct beat b;

    if (err) {
        on_failure(l, "beat", err);
        return;
    }
    if (l->is_failing)
        log_info("leases are renewed again", "%s", "");
    l->is_failing = false;
    l->has_said_so = l->says_so;
    read_beat(l, res, &b);
    l->leases.n = b.shards;
    close_lost(l, leases_renew(&l->leases, l->asked, b.renewed, l->sent_us),
               "another host has taken them over");
    if (b.dead.len > 0)
        bury(l, &b);
    else
        balance(l, &b);
    buf_fini(&b.dead);
    buf_fini(&b.processes);
}

static void beat(struct outbox_lease *l)
{
    char *shards, *epochs;

    l->is_asking = true;
    l->says_so = l->is_leaving;
    l->asked = l->leases.held & ~(l->closed | l->giving);
    l->sent_us = clock_mono_us();
    shards = numbers(&l->leases, l->asked, false);
    epochs = numbers(&l->leases, l->asked, true);
    pg_pool_query(l->pool, beat_sql, 7,
                  (struct pg_param[]){{.value = l->node},
                                      {.value = l->source->sql.table},
                                      {.value = l->lease_ms},
                                      {.value = shards},
                                      {.value = epochs},
                                      {.value = l->says_so ? "t" : "f"},
                                      {.value = l->process}},
                  on_beat, l);
    free(shards);
    free(epochs);
}

/* --- leaving ------------------------------------------------------------------------- */

static bool is_anything_open(const struct outbox_source *s)
{
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (s->shards[i].p)
            return true;
    return false;
}

/* Without a database nothing can be given back: it ends by itself. */
static void go_on_leaving(struct outbox_lease *l, int64_t now)
{
    if (is_anything_open(l->source))
        return;
    if (!l->left_us)
        l->left_us = now;
    if ((l->closed | l->giving || (l->is_begun && !l->has_said_so)) &&
        now - l->left_us < LEAVE_US)
        return;
    stopping_tell(&l->source->stopping);
}

void outbox_lease_leave(struct outbox_lease *l)
{
    l->is_leaving = true;
    l->next_us = 0;
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        if (l->source->shards[i].p && !l->source->shards[i].is_closing)
            outbox_shard_close(l->source, i, false);
    l->leases.leaving = l->leases.held;
}

/* --- life ---------------------------------------------------------------------------- */

static void on_tick(UNUSED struct ev_loop *loop, ev_timer *timer,
                    UNUSED int events)
{
    struct outbox_lease *l = timer->data;
    int64_t now = clock_mono_us();

    close_lost(l, leases_expire(&l->leases, now),
               "the lease ended before it could be renewed");
    close_fenced(l);
    give_back(l);
    if (l->is_begun && !l->is_asking && now >= l->next_us)
        beat(l);
    if (l->is_leaving)
        go_on_leaving(l, now);
}

struct outbox_lease *outbox_lease_new(struct outbox_source *s,
                                      const struct outbox_options *opts,
                                      struct err *err)
{
    struct outbox_lease *l = xcalloc(1, sizeof(*l));
    struct pg_pool_options pool = {
        .url = opts->url,
        .name = "leases",
        .application_name = "moontide leases",
        .session_sql = opts->session_sql,
        .size = 1,
        .no_prepare = opts->no_prepare,
        .queue_timeout_ms = opts->lease_ms / 2,
    };

    l->source = s;
    l->node = xstrdup(opts->node);
    l->process = process_self();
    l->lease_ms = xasprintf("%" PRId64, opts->lease_ms);
    l->leases.lease_us = opts->lease_ms * 1000;
    l->hosts = json_array();
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        l->owners[i] = xstrdup("");
    ev_timer_init(&l->tick, on_tick, TICK_S, TICK_S);
    l->tick.data = l;
    ev_timer_start(s->loop, &l->tick);
    l->pool = pg_pool_new(s->loop, &pool, err);
    if (l->pool)
        return l;
    outbox_lease_free(l);
    return NULL;
}

void outbox_lease_begin(struct outbox_lease *l)
{
    l->is_begun = true;
}

void outbox_lease_free(struct outbox_lease *l)
{
    if (!l)
        return;
    ev_timer_stop(l->source->loop, &l->tick);
    l->is_leaving = true;
    pg_pool_free(l->pool);
    for (unsigned i = 0; i < SHARDS_MAX; i++)
        free(l->owners[i]);
    json_decref(l->hosts);
    free(l->refused);
    free(l->lease_ms);
    free(l->node);
    free(l->process);
    free(l);
}

json_t *outbox_lease_json(const struct outbox_lease *l)
{
    return json_incref(l->hosts);
}

const char *outbox_lease_node(const struct outbox_lease *l)
{
    return l->node;
}
