/*
 * Two threads: the main one is the watchdog, the other runs the loop and all
 * Lua, on a stack of 1 GiB of address space. The loop reads the ring in
 * batches; verdicts go straight into the other ring and are published, and the
 * host woken, once per batch (sender.h).
 */
#include "worker/worker.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/settings.h"
#include "worker/metrics_out.h"
#include "worker/sender.h"
#include "worker/unit.h"
#include "worker/watchdog.h"
#include "worker/worker_start.h"

#include <ev.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static const char component[] = "worker";

#define BATCH_MESSAGES  256
#define BATCH_BYTES     (256 * 1024)
#define METRICS_EVERY_S 0.25
#define MAX_UNITS       1024
#define IDLE_TICKS      8

struct waiting {
    const struct msg_head *msg;
    size_t len;
    int seat, next; /* next of the same seat, or -1 */
};

/* A unit, and what waits for it: the batch is dealt with unit by unit, so that
 * a VM runs many events in a row though they come mixed. A lane is of one unit,
 * and keeps its order. */
struct seat {
    struct unit *unit;
    int first, last; /* in the batch, or -1 */
};

struct worker {
    struct runtime rt;
    struct channel channel;
    struct ring_reader down;
    struct sender sender;
    struct ev_loop *loop;
    ev_io wake;
    ev_prepare prepare;
    ev_check check;
    ev_idle idle;
    ev_timer metrics_timer;
    json_t *config;
    const char *node;

    struct seat seats[MAX_UNITS]; /* by id */
    int n_units;
    int last; /* seat of the last delivery */

    /* Messages with one delivery, read and not yet dealt with. */
    struct waiting batch[BATCH_MESSAGES];
    int n_batch;
    int serving;          /* the seat whose turn it is, or -1 */
    int taken;            /* messages read since the ring was released */
    uint64_t batch_start; /* tail at that time */

    uint64_t tail_before; /* at the last tick of the metrics' timer */
    int idle_ticks;

    bool is_draining;
    int exit_code;
};

/* --- what the runtime asks of us -------------------------------------------------- */

static void on_verdict(struct runtime *rt, const struct verdict_msg *v,
                       struct task *task)
{
    struct worker *w = rt->owner;

    (void)task;
    sender_verdict(&w->sender, v);
}

static bool on_call(struct runtime *rt, uint32_t id, struct slice request)
{
    struct worker *w = rt->owner;
    size_t most = ring_max_message(&w->sender.up) / 4;

    if (request.len > CALL_MAX)
        return false;
    for (; request.len > most; request.ptr += most, request.len -= most)
        sender_text(&w->sender, MSG_CALL, id, false,
                    (struct slice){request.ptr, most});
    sender_text(&w->sender, MSG_CALL, id, true, request);
    sender_show(&w->sender);
    return true;
}

/* --- units ----------------------------------------------------------------------- */

/* The seat of this id, or where it would be. */
static int seat_for(const struct worker *w, uint32_t id)
{
    int from = 0, to = w->n_units;

    if (w->last < to && unit_id(w->seats[w->last].unit) == id)
        return w->last;
    while (from < to) {
        int middle = (from + to) / 2;

        if (unit_id(w->seats[middle].unit) < id)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* Or -1. */
static int find_seat(struct worker *w, uint32_t id)
{
    int at = seat_for(w, id);

    if (at == w->n_units || unit_id(w->seats[at].unit) != id)
        return -1;
    return w->last = at;
}

static void on_loaded(struct unit *unit, const struct err *err)
{
    struct worker *w = unit_runtime(unit)->owner;

    sender_text(&w->sender, MSG_LOADED, unit_id(unit), !err,
                slice_of(err ? err->msg : ""));
    sender_show(&w->sender);
}

static void seat_unit(struct worker *w, struct unit *unit)
{
    int at = seat_for(w, unit_id(unit));

    memmove(&w->seats[at + 1], &w->seats[at],
            (size_t)(w->n_units++ - at) * sizeof(*w->seats));
    w->seats[at] = (struct seat){unit, -1, -1};
}

static void load_unit(struct worker *w, uint32_t id, struct slice bundle)
{
    json_error_t error;
    json_t *json = json_loadb(bundle.ptr, bundle.len, 0, &error);

    if (!json || w->n_units == MAX_UNITS) {
        sender_text(&w->sender, MSG_LOADED, id, false,
                    slice_of(json ? "too many handlers" : error.text));
        json_decref(json);
        return;
    }
    seat_unit(w, unit_new(&w->rt, id, json, on_loaded));
    json_decref(json);
}

static void forget_unit(struct worker *w, const struct unit *unit)
{
    int at = find_seat(w, unit_id(unit));

    memmove(&w->seats[at], &w->seats[at + 1],
            (size_t)(--w->n_units - at) * sizeof(*w->seats));
    w->last = 0;
}

static void on_unloaded(struct unit *unit)
{
    struct worker *w = unit_runtime(unit)->owner;

    sender_text(&w->sender, MSG_UNLOADED, unit_id(unit), true, slice_of(""));
    sender_show(&w->sender);
    forget_unit(w, unit);
    unit_free(unit);
    if (w->is_draining && !w->n_units)
        ev_break(w->loop, EVBREAK_ALL);
}

static void drain(struct worker *w)
{
    w->is_draining = true;
    for (int i = 0; i < w->n_units; i++)
        unit_unload(w->seats[i].unit, on_unloaded);
    if (!w->n_units)
        ev_break(w->loop, EVBREAK_ALL);
}

/* --- reading ------------------------------------------------------------------------ */

static void broken(struct worker *w, const char *what)
{
    log_error("the host wrote nonsense", "what=%s", what);
    w->exit_code = 4;
    ev_break(w->loop, EVBREAK_ALL);
}

static bool batch_is_full(const struct worker *w)
{
    return w->taken >= BATCH_MESSAGES || w->sender.is_blocked ||
           w->down.tail - w->batch_start > BATCH_BYTES;
}

/* The first that waits for the seat, out of the batch. */
static const struct waiting *take_first(struct worker *w, int seat)
{
    const struct waiting *first = &w->batch[w->seats[seat].first];

    w->seats[seat].first = first->next;
    return first;
}

/* For the serve loop: the next delivery of the same unit, if one waits. */
static bool take_next(struct runtime *rt, uint32_t vm, struct record **record,
                      struct delivery_msg *d)
{
    struct worker *w = rt->owner;
    const struct delivery_msg *to;
    const struct waiting *next;
    size_t n;

    if (w->serving < 0 || w->seats[w->serving].first < 0 ||
        unit_id(w->seats[w->serving].unit) != vm)
        return false;
    next = &w->batch[w->seats[w->serving].first];
    *record = record_take(rt);
    if (!read_deliver(next->msg, next->len, &(*record)->m, &to, &n)) {
        record_put(rt, *record);
        return false; /* whoever takes it says that it is nonsense */
    }
    take_first(w, w->serving);
    *d = *to;
    return true;
}

static void deliver_to(struct worker *w, struct record *record,
                       const struct delivery_msg *d)
{
    int seat = find_seat(w, d->vm);

    if (seat >= 0) {
        unit_offer(w->seats[seat].unit, record, d);
        return;
    }
    on_verdict(&w->rt,
               &(struct verdict_msg){.slot = d->slot,
                                     .generation = d->generation,
                                     .verdict = VERDICT_BACK,
                                     .after_ms = -1},
               NULL);
}

/* To all its handlers here, one after the other: it is parsed once, and the
 * parser's memory is taken by the next. */
static void deliver(struct worker *w, const struct msg_head *msg, size_t len)
{
    const struct delivery_msg *to;
    struct record *record = record_take(&w->rt);
    size_t n;

    if (!read_deliver(msg, len, &record->m, &to, &n)) {
        broken(w, "delivery");
        n = 0;
    }
    for (size_t i = 0; i < n; i++)
        deliver_to(w, record, &to[i]);
    record_put(&w->rt, record);
}

/* The seat of a message with one delivery; -1: it has several, or is another
 * kind of message, or is for nobody here. */
static int seat_of(struct worker *w, const struct msg_head *msg, size_t len)
{
    const struct msg_deliver *m = (const void *)msg;
    const struct delivery_msg *to = (const void *)m->bytes;

    if (msg->kind != MSG_DELIVER || len < sizeof(*m) + sizeof(*to) || m->n != 1)
        return -1;
    return find_seat(w, to->vm);
}

static void let_wait(struct worker *w, int seat, const struct msg_head *msg,
                     size_t len)
{
    struct seat *s = &w->seats[seat];
    int at = w->n_batch++;

    w->batch[at] = (struct waiting){msg, len, seat, -1};
    if (s->first < 0)
        s->first = at;
    else
        w->batch[s->last].next = at;
    s->last = at;
}

static void deal_with_batch(struct worker *w)
{
    for (int i = 0; i < w->n_batch; i++) {
        w->serving = w->batch[i].seat;
        while (w->seats[w->serving].first >= 0) {
            const struct waiting *first = take_first(w, w->serving);

            deliver(w, first->msg, first->len);
        }
    }
    w->serving = -1;
    w->n_batch = 0;
}

static void handle(struct worker *w, const struct msg_head *msg, size_t len)
{
    struct slice text;
    uint32_t id;
    int seat;
    bool ok;

    if (msg->kind == MSG_DELIVER) {
        deliver(w, msg, len);
        return;
    }
    if (!read_text(msg, len, &id, &ok, &text)) {
        broken(w, "message");
        return;
    }
    switch (msg->kind) {
    case MSG_LOAD: load_unit(w, id, text); break;
    case MSG_UNLOAD:
        seat = find_seat(w, id);
        if (seat >= 0)
            unit_unload(w->seats[seat].unit, on_unloaded);
        break;
    case MSG_REPLY: runtime_reply(&w->rt, id, ok, text); break;
    case MSG_DRAIN: drain(w); break;
    default: broken(w, "kind of message");
    }
}

static void end_batch(struct worker *w)
{
    ring_release(&w->down);
    if (ring_reader_should_wake(&w->down))
        channel_wake(w->channel.wake_host_fd);
    sender_show(&w->sender);
}

static const struct msg_head *next_message(struct worker *w, size_t *len)
{
    const struct msg_head *msg;

    switch (ring_next(&w->down, &msg, len)) {
    case RING_MESSAGE: return msg;
    case RING_EMPTY: break;
    case RING_BROKEN: broken(w, "ring"); break;
    }
    return NULL;
}

/* One batch; true when there may be more. */
static bool read_batch(struct worker *w)
{
    const struct msg_head *msg;
    size_t len;

    w->taken = 0;
    w->batch_start = w->down.tail;
    while (!batch_is_full(w) && !w->exit_code &&
           (msg = next_message(w, &len)) != NULL) {
        int seat = seat_of(w, msg, len);

        w->taken++;
        if (seat >= 0) {
            let_wait(w, seat, msg, len);
            continue;
        }
        deal_with_batch(w); /* it came before this one */
        handle(w, msg, len);
    }
    deal_with_batch(w);
    if (!w->sender.is_blocked)
        for (int i = 0; i < w->n_units; i++)
            unit_flush(w->seats[i].unit);
    end_batch(w);
    return w->taken > 0;
}

/* --- the loop -------------------------------------------------------------------------- */

static void mark_awake(struct worker *w)
{
    atomic_store_explicit(&w->rt.control->busy_since_us, clock_mono_us(),
                          memory_order_relaxed);
}

static void on_idle(struct ev_loop *loop, ev_idle *idle, int events)
{
    (void)loop;
    (void)idle;
    (void)events; /* keeps the loop from sleeping while there is work */
}

static void stay_awake(struct worker *w, bool awake)
{
    if (awake)
        ev_idle_start(w->loop, &w->idle);
    else
        ev_idle_stop(w->loop, &w->idle);
}

/* Last thing before the loop sleeps: read; sleep only on an empty ring. */
static void on_prepare(struct ev_loop *loop, ev_prepare *prepare, int events)
{
    struct worker *w = prepare->data;
    bool more;

    (void)loop;
    (void)events;
    mark_awake(w);
    if (w->sender.is_blocked && !sender_unblock(&w->sender)) {
        sender_show(&w->sender);
        /* Woken by the host when it has read. */
        stay_awake(w, ring_writer_wait(&w->sender.up));
        atomic_store(&w->rt.control->busy_since_us, 0);
        return;
    }
    more = read_batch(w);
    vms_reap(&w->rt);
    if (w->sender.is_blocked || more) {
        stay_awake(w, true);
        return;
    }
    sender_show(&w->sender);
    stay_awake(w, !ring_reader_sleep(&w->down));
    atomic_store(&w->rt.control->busy_since_us, 0);
}

static void on_check(struct ev_loop *loop, ev_check *check, int events)
{
    struct worker *w = check->data;

    (void)loop;
    (void)events;
    mark_awake(w);
    ring_reader_wakeup(&w->down);
}

static void on_wake(struct ev_loop *loop, ev_io *io, int events)
{
    struct worker *w = io->data;

    (void)loop;
    (void)events;
    channel_drain(w->channel.wake_worker_fd);
}

static void send_metrics(struct worker *w)
{
    json_t *message = metrics_take(w->rt.metrics, &w->rt);
    char *text;

    if (!message)
        return;
    text = json_dumps(message, JSON_COMPACT);
    if (text && strlen(text) < ring_max_message(&w->sender.up) / 2) {
        sender_text(&w->sender, MSG_METRICS, 0, true, slice_of(text));
        sender_show(&w->sender);
    }
    free(text);
    json_decref(message);
}

/* Once a while without work is over, what a burst needed goes back. */
static void give_back_memory(struct worker *w)
{
    if (w->down.tail != w->tail_before) {
        w->tail_before = w->down.tail;
        w->idle_ticks = 0;
    } else if (++w->idle_ticks == IDLE_TICKS) {
        malloc_trim(0);
    }
}

static void on_metrics(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct worker *w = timer->data;
    struct channel_control *control = w->rt.control;

    (void)loop;
    (void)events;
    send_metrics(w);
    give_back_memory(w);
    for (int i = 0; i < w->n_units; i++)
        unit_sweep(w->seats[i].unit, atomic_load(&control->up.tail),
                   atomic_load(&control->down.head), w->down.tail);
}

static void start_watchers(struct worker *w)
{
    ev_io_init(&w->wake, on_wake, w->channel.wake_worker_fd, EV_READ);
    w->wake.data = w;
    ev_io_start(w->loop, &w->wake);
    ev_prepare_init(&w->prepare, on_prepare);
    w->prepare.data = w;
    ev_set_priority(&w->prepare, EV_MINPRI);
    ev_prepare_start(w->loop, &w->prepare);
    ev_check_init(&w->check, on_check);
    w->check.data = w;
    ev_set_priority(&w->check, EV_MAXPRI);
    ev_check_start(w->loop, &w->check);
    ev_idle_init(&w->idle, on_idle);
    ev_timer_init(&w->metrics_timer, on_metrics, METRICS_EVERY_S,
                  METRICS_EVERY_S);
    w->metrics_timer.data = w;
    ev_timer_start(w->loop, &w->metrics_timer);
}

/* The thread that runs Lua. */
static void *lua_thread(void *arg)
{
    struct worker *w = arg;

    start_watchers(w);
    sender_text(&w->sender, MSG_READY, 0, true, slice_of(""));
    sender_show(&w->sender);
    ev_run(w->loop, 0);
    send_metrics(w);
    while (w->n_units) {
        struct unit *unit = w->seats[0].unit;

        forget_unit(w, unit);
        unit_free(unit);
    }
    runtime_fini(&w->rt);
    watchdog_stop_only(w->rt.watchdog);
    return NULL;
}

/* --- start -------------------------------------------------------------------------------- */

static bool set_up(struct worker *w, const int fds[4], struct err *err)
{
    struct ev_loop *loop;
    json_t *settings;

    w->config = start_config(fds[3], err);
    if (!w->config)
        return false;
    settings = json_object_get(w->config, "settings");
    loop = ev_loop_new(EVFLAG_AUTO);
    if (!loop)
        return err_set(err, ERR_FATAL, "no event loop");
    w->loop = loop;
    runtime_init(&w->rt, loop, settings);
    w->rt.index = (int)json_integer_value(json_object_get(w->config, "index"));
    w->rt.node = json_string_value(json_object_get(w->config, "node"));
    start_log(w->config, w->rt.index);
    if (!channel_attach(&w->channel, fds[0], fds[1], fds[2], err))
        return false;
    w->rt.control = w->channel.control;
    w->rt.backends = w->channel.control->backends;
    w->rt.owner = w;
    w->serving = -1;
    w->rt.verdict = on_verdict;
    w->rt.next = take_next;
    w->rt.call = on_call;
    sender_init(&w->sender, &w->channel);
    ring_reader_init(&w->down, &w->channel.control->down, w->channel.down,
                     w->channel.control->down_size);
    start_limits(&w->rt);
    return true;
}

/* A lease is renewed every third of it: what is left of one when the host falls
 * silent may be two thirds only. */
static int64_t silence_us(const struct worker *w)
{
    const char *lease = runtime_text(&w->rt, "database.lease", "6s");
    int64_t ms;

    return duration_parse(lease, &ms) ? ms * 1000 * 2 / 3 : 4000000;
}

static bool run(struct worker *w, struct err *err)
{
    struct watchdog *wd = watchdog_new(&w->rt, silence_us(w));
    pthread_attr_t attr;
    pthread_t thread;
    int rc;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, LUA_STACK_BYTES);
    rc = pthread_create(&thread, &attr, lua_thread, w);
    pthread_attr_destroy(&attr);
    if (rc)
        return err_set(err, ERR_FATAL, "starting the lua thread: %s",
                       strerror(rc));
    watchdog_run(wd);
    pthread_join(thread, NULL);
    watchdog_free(wd);
    return true;
}

int worker_main(int argc, char **argv)
{
    static struct worker worker;
    struct worker *w = &worker;
    struct err err;
    int fds[4];

    if (!start_fds(argc, argv, fds)) {
        fputs("moontide worker is started by moontide run\n", stderr);
        return 2;
    }
    mallopt(M_ARENA_MAX, 1); /* all work is one thread's */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* the host decides; it sees the Ctrl-C, too */
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (!set_up(w, fds, &err) || !run(w, &err)) {
        log_error("worker cannot start", "err=" LOG_Q, err.msg);
        return 1;
    }
    channel_close(&w->channel);
    ev_loop_destroy(w->loop);
    json_decref(w->config);
    return w->exit_code;
}
