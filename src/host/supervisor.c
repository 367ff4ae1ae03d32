/*
 * Worker processes: start them by exec, talk to them through their channel,
 * notice when they hang or die, and replace them.
 *
 * A worker is up when it has loaded every version in use; only then does the
 * pipeline send to it. When it dies the order is: wait for its exit, read all
 * verdicts it published, end its database sessions, tell the pipeline what it
 * was doing, and only then start the next one on a fresh channel.
 */
#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/host_priv.h"
#include "host/probe.h"
#include "pg/pg.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char component[] = "supervisor";

#define UP_RING_BYTES        (512u << 10)
#define DELIVERY_ROOM        (64u << 10) /* beside the body: facts, head, padding */
#define RELEASE_EVERY        64          /* messages between two releases */
#define RESPAWN_MIN_US       50000
#define RESPAWN_MAX_US       5000000
#define QUARANTINE_LINGER_US 60000000 /* an idle spare worker stays so long */
#define VMS_MAX              4096

enum worker_state {
    WORKER_NONE,     /* no process; maybe waits to be started again */
    WORKER_STARTING, /* exec'd, loads what it has to load */
    WORKER_UP,
    WORKER_DRAINING,
};

/* A message that found the ring full, or must go before deliveries. */
struct parcel {
    struct parcel *next;
    enum msg_kind kind;
    uint32_t id;
    bool ok;
    char *text;
    size_t len;
};

struct worker {
    struct host *host;
    unsigned index;
    enum worker_state state;
    pid_t pid;
    uint64_t serial; /* of the process: answers to a former one are void */
    struct channel channel;
    struct ring_writer down;
    struct ring_reader up;
    bool is_dirty;  /* written, not published */
    bool is_ready;  /* MSG_READY came */
    size_t loading; /* loads of the start that are not answered yet */
    ev_io wake;
    ev_child child;
    struct parcel *first, **last;
    int64_t started_us, start_again_us, delay_us, idle_since_us;
    int64_t killed_for_us; /* hard limit: how long it had been silent */
    uint32_t *loaded;      /* vms that this process has */
    size_t n_loaded;
};

struct supervisor {
    struct host *host;
    struct worker *workers; /* n + the spare one */
    unsigned n;
    int64_t hard_limit_us;
    bool is_started, is_draining;
    uint64_t next_serial;
};

/* --- talking ------------------------------------------------------------------ */

static void queue(struct worker *w, enum msg_kind kind, uint32_t id, bool ok,
                  struct slice text)
{
    struct parcel *p = xcalloc(1, sizeof(*p));

    p->kind = kind;
    p->id = id;
    p->ok = ok;
    p->text = xstrndup(text.ptr ? text.ptr : "", text.len);
    p->len = text.len;
    *w->last = p;
    w->last = &p->next;
}

static void drop_parcels(struct worker *w)
{
    while (w->first) {
        struct parcel *next = w->first->next;

        free(w->first->text);
        free(w->first);
        w->first = next;
    }
    w->last = &w->first;
}

/* False when some are left, because the ring is full. */
static bool send_parcels(struct worker *w)
{
    while (w->first) {
        struct parcel *p = w->first;

        if (!write_text(&w->down, p->kind, p->id, p->ok,
                        (struct slice){p->text, p->len}))
            return false;
        w->is_dirty = true;
        w->first = p->next;
        if (!w->first)
            w->last = &w->first;
        free(p->text);
        free(p);
    }
    return true;
}

bool supervisor_send(struct supervisor *s, unsigned worker,
                     const struct delivery_msg *msg)
{
    struct worker *w = &s->workers[worker];

    if (w->state != WORKER_UP || !send_parcels(w) ||
        !write_deliver(&w->down, msg)) {
        ring_publish(&w->down);
        if (w->state == WORKER_UP)
            ring_writer_wait(&w->down);
        return false;
    }
    w->is_dirty = true;
    return true;
}

void supervisor_reply(struct supervisor *s, unsigned worker, uint64_t serial,
                      uint32_t call, bool ok, struct slice text)
{
    struct worker *w = &s->workers[worker];

    if (w->serial == serial && w->state != WORKER_NONE)
        queue(w, MSG_REPLY, call, ok, text);
}

/* --- starting ------------------------------------------------------------------ */

/* What the process needs to know, in a file that only it can read. */
static int config_fd(struct worker *w)
{
    struct host *h = w->host;
    json_t *json =
        json_pack("{s:i, s:o, s:s, s:b, s:{s:s, s:s}}", "index", (int)w->index,
                  "settings", settings_json(&h->settings, true), "node",
                  h->node, "has_database", h->db != NULL, "log", "level",
                  h->settings.log_level, "format", h->settings.log_format);
    char *text = json_dumps(json, JSON_COMPACT);
    int fd = memfd_create("moontide-config", 0);

    if (fd >= 0 && write(fd, text, strlen(text)) < 0) {
        close(fd);
        fd = -1;
    }
    if (fd >= 0)
        lseek(fd, 0, SEEK_SET);
    free(text);
    json_decref(json);
    return fd;
}

static void keep_open(int fd)
{
    fcntl(fd, F_SETFD, 0);
}

/* In the child. No environment but what time and text need: secrets reach the
 * worker by its configuration only. */
static void become_worker(const struct worker *w, int config)
{
    char fds[64], path[512], tz[128];
    char *argv[] = {(char *)(uintptr_t) "moontide",
                    (char *)(uintptr_t) "worker", (char *)(uintptr_t) "--fds",
                    fds, NULL};
    char *env[4] = {path, (char *)(uintptr_t) "LANG=C.UTF-8", NULL, NULL};
    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    snprintf(path, sizeof(path), "PATH=%s",
             getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
    if (getenv("TZ")) {
        snprintf(tz, sizeof(tz), "TZ=%s", getenv("TZ"));
        env[2] = tz;
    }
    snprintf(fds, sizeof(fds), "%d,%d,%d,%d", w->channel.memory_fd,
             w->channel.wake_worker_fd, w->channel.wake_host_fd, config);
    keep_open(w->channel.memory_fd);
    keep_open(w->channel.wake_worker_fd);
    keep_open(w->channel.wake_host_fd);
    execve(self_path(), argv, env);
    _exit(127);
}

static void load_into(struct worker *w, const struct bundle *b)
{
    struct host *h = w->host;
    unsigned here = pipeline_concurrency_at(h->pipeline, b->handler,
                                            b->concurrency, w->index);
    json_t *json = json_loads(b->json, 0, NULL);
    char *text;

    CHECK(json);
    json_object_set_new(json, "concurrency_here",
                        json_integer(here ? here : 1));
    json_object_set_new(json, "handlers_db", json_boolean(h->db != NULL));
    if (w->index ==
        h->supervisor->n) /* alone there is no company to wait for */
        json_object_set_new(
            json_object_get(json_object_get(json, "decl"), "batch"), "wait_ms",
            json_integer(0));
    text = json_dumps(json, JSON_COMPACT);
    queue(w, MSG_LOAD, b->vm, true, slice_of(text));
    free(text);
    json_decref(json);
}

static void load_all(struct worker *w)
{
    const struct bundle *bundles[VMS_MAX];
    size_t n = catalogue_bundles(w->host->catalogue, bundles, VMS_MAX);

    for (size_t i = 0; i < n; i++)
        load_into(w, bundles[i]);
    w->loading = n;
    w->n_loaded = 0;
}

static void on_wake(struct ev_loop *loop, ev_io *io, int events)
{
    struct worker *w = io->data;

    (void)loop;
    (void)events;
    channel_drain(w->channel.wake_host_fd); /* the rings are read each turn */
}

static void on_child(struct ev_loop *loop, ev_child *child, int events);

static bool make_channel(struct worker *w, struct err *err)
{
    size_t down = (size_t)w->host->settings.event_max_bytes + DELIVERY_ROOM;

    if (!channel_create(&w->channel, down, UP_RING_BYTES, err))
        return false;
    ring_writer_init(&w->down, &w->channel.control->down, w->channel.down,
                     w->channel.control->down_size);
    ring_reader_init(&w->up, &w->channel.control->up, w->channel.up,
                     w->channel.control->up_size);
    atomic_store(&w->channel.control->host_alive_us, clock_mono_us());
    return true;
}

static void try_later(struct worker *w, int64_t now_us)
{
    w->delay_us = w->delay_us ? 2 * w->delay_us : RESPAWN_MIN_US;
    if (w->delay_us > RESPAWN_MAX_US)
        w->delay_us = RESPAWN_MAX_US;
    w->start_again_us = now_us + w->delay_us;
}

static void start(struct worker *w)
{
    struct host *h = w->host;
    struct err err = {0};
    int config;

    w->start_again_us = 0;
    w->started_us = clock_mono_us();
    if (!make_channel(w, &err)) {
        log_error("cannot start a worker", "worker=%u err=" LOG_Q, w->index,
                  err.msg);
        try_later(w, w->started_us);
        return;
    }
    config = config_fd(w);
    self_path();
    w->pid = fork();
    if (w->pid == 0)
        become_worker(w, config);
    if (config >= 0)
        close(config);
    if (w->pid < 0) {
        log_error("cannot start a worker", "worker=%u err=" LOG_Q, w->index,
                  strerror(errno));
        channel_close(&w->channel);
        try_later(w, w->started_us);
        return;
    }
    w->serial = ++h->supervisor->next_serial;
    w->state = WORKER_STARTING;
    w->is_ready = false;
    w->killed_for_us = 0;
    drop_parcels(w);
    load_all(w);
    ev_io_init(&w->wake, on_wake, w->channel.wake_host_fd, EV_READ);
    ev_child_init(&w->child, on_child, w->pid, 0);
    w->wake.data = w->child.data = w;
    ev_io_start(h->loop, &w->wake);
    ev_child_start(h->loop, &w->child);
    log_debug("worker started", "worker=%u pid=%d", w->index, (int)w->pid);
}

static void come_up(struct worker *w)
{
    if (w->state != WORKER_STARTING || !w->is_ready || w->loading > 0)
        return;
    w->state = WORKER_UP;
    w->idle_since_us = 0;
    log_info("worker is up", "worker=%u pid=%d ms=%lld", w->index, (int)w->pid,
             (long long)((clock_mono_us() - w->started_us) / 1000));
    pipeline_worker_up(w->host->pipeline, w->index);
}

/* --- reading ------------------------------------------------------------------- */

/* A running version that does not load (its init needs something that is
 * away) leaves the worker useless: it is started again, later and later. */
static void on_loaded(struct worker *w, uint32_t vm, bool ok, struct slice text)
{
    if (ok) {
        w->loaded = xrealloc(w->loaded, (w->n_loaded + 1) * sizeof(vm));
        w->loaded[w->n_loaded++] = vm;
    }
    if (w->loading > 0)
        w->loading--;
    if (!catalogue_loaded(w->host->catalogue, vm, ok, text) && !ok) {
        log_error("a worker cannot load a running version",
                  "worker=%u err=\"%.*s\"", w->index, (int)text.len, text.ptr);
        kill(w->pid, SIGKILL);
        return;
    }
    come_up(w);
}

static void on_unloaded(struct worker *w, uint32_t vm)
{
    for (size_t i = 0; i < w->n_loaded; i++)
        if (w->loaded[i] == vm) {
            w->loaded[i] = w->loaded[--w->n_loaded];
            return;
        }
}

bool supervisor_has_loaded(const struct supervisor *s, uint32_t vm)
{
    bool any = false;

    for (unsigned i = 0; i <= s->n; i++) {
        const struct worker *w = &s->workers[i];
        bool has = false;

        if (w->state != WORKER_STARTING && w->state != WORKER_UP)
            continue;
        for (size_t k = 0; k < w->n_loaded; k++)
            has = has || w->loaded[k] == vm;
        if (!has)
            return false;
        any = true;
    }
    return any;
}

static bool handle(struct worker *w, const struct msg_head *msg, size_t len)
{
    struct host *h = w->host;
    struct verdict_msg v;
    struct slice text;
    uint32_t id;
    bool ok;

    if (msg->kind == MSG_VERDICT) {
        if (!read_verdict(msg, len, &v))
            return false;
        pipeline_verdict(h->pipeline, w->index, &v);
        return true;
    }
    if (!read_text(msg, len, &id, &ok, &text))
        return false;
    switch (msg->kind) {
    case MSG_READY:
        w->is_ready = true;
        come_up(w);
        return true;
    case MSG_LOADED: on_loaded(w, id, ok, text); return true;
    case MSG_UNLOADED: on_unloaded(w, id); return true;
    case MSG_CALL: publish_call(h, w->index, w->serial, id, text); return true;
    case MSG_METRICS: collect_worker_news(h, w->index, text); return true;
    default: return false;
    }
}

static bool read_ring(struct worker *w)
{
    const struct msg_head *msg;
    enum ring_read got = RING_EMPTY;
    size_t len, n = 0;
    bool good = true;

    ring_reader_wakeup(&w->up);
    while (good && (got = ring_next(&w->up, &msg, &len)) == RING_MESSAGE) {
        good = handle(w, msg, len);
        if (++n % RELEASE_EVERY == 0)
            ring_release(&w->up);
    }
    if (n > 0) {
        ring_release(&w->up);
        if (ring_reader_should_wake(&w->up))
            channel_wake(w->channel.wake_worker_fd);
    }
    if (got == RING_BROKEN || !good) {
        log_error("a worker wrote nonsense and is killed", "worker=%u pid=%d",
                  w->index, (int)w->pid);
        if (w->pid > 0)
            kill(w->pid, SIGKILL);
    }
    return n > 0;
}

bool supervisor_poll(struct supervisor *s)
{
    bool any = false;

    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state != WORKER_NONE)
            any = read_ring(&s->workers[i]) || any;
    return any;
}

bool supervisor_flush(struct supervisor *s)
{
    bool more = false;

    for (unsigned i = 0; i <= s->n; i++) {
        struct worker *w = &s->workers[i];

        if (w->state == WORKER_NONE)
            continue;
        if (!send_parcels(w))
            ring_writer_wait(&w->down);
        if (w->is_dirty) {
            w->is_dirty = false;
            ring_publish(&w->down);
            if (ring_writer_should_wake(&w->down))
                channel_wake(w->channel.wake_worker_fd);
        }
        if (!ring_reader_sleep(&w->up))
            more = true;
    }
    return more;
}

/* --- death ----------------------------------------------------------------------- */

static void ignore_result(void *arg, const struct pg_result *res,
                          const struct err *err)
{
    (void)arg;
    (void)res;
    (void)err;
}

/* A killed worker's sessions live on in the server and hold their locks. */
static void end_sessions(struct worker *w)
{
    for (int i = 0; i < CHANNEL_BACKENDS; i++) {
        int32_t pid = atomic_load(&w->channel.control->backends[i].pid);
        char text[16];
        struct pg_param param = {.value = text};

        if (pid <= 0 || !w->host->db)
            continue;
        snprintf(text, sizeof(text), "%d", (int)pid);
        pg_pool_query(w->host->db,
                      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                      "WHERE pid = $1::int AND usename = current_user "
                      "AND application_name LIKE 'moontide%'",
                      1, &param, ignore_result, NULL);
    }
}

static const char *reason_of(const struct worker *w, int status, char *text,
                             size_t size, const char **label)
{
    if (w->killed_for_us) {
        snprintf(text, size, "killed: time limit (no sign of life for %lld ms)",
                 (long long)(w->killed_for_us / 1000));
        *label = "hard_limit";
    } else if (WIFSIGNALED(status)) {
        snprintf(text, size, "killed: SIG%s", sigabbrev_np(WTERMSIG(status)));
        *label = "signal";
    } else {
        snprintf(text, size, "the worker exited with %d", WEXITSTATUS(status));
        *label = "exit";
    }
    return text;
}

/* What the dead worker had marked, as far as it can be true. */
static void tell_pipeline(struct worker *w, int status, const char *reason)
{
    struct channel_control *c = w->channel.control;
    uint64_t started[CHANNEL_SLOTS / 64];
    uint32_t running = atomic_load(&c->running);
    struct worker_death death = {
        .something_ran = running > 0 && running <= CHANNEL_SLOTS,
        .running = running - 1,
        .run_count = atomic_load(&c->running_count),
        .started = started,
        .class = w->killed_for_us ? CLASS_LIMIT : CLASS_CRASH,
        .reason = reason,
        .is_from_outside =
            !w->killed_for_us && WIFSIGNALED(status) &&
            (WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGTERM),
    };

    for (int i = 0; i < CHANNEL_SLOTS / 64; i++)
        started[i] = atomic_load(&c->started[i]);
    pipeline_worker_died(w->host->pipeline, w->index, &death);
}

static void bury(struct worker *w, int status)
{
    struct host *h = w->host;
    struct supervisor *s = h->supervisor;
    enum worker_state was = w->state;
    int64_t now = clock_mono_us();
    const char *label;
    char reason[128];

    reason_of(w, status, reason, sizeof(reason), &label);
    ev_io_stop(h->loop, &w->wake);
    ev_child_stop(h->loop, &w->child);
    w->pid = 0;
    read_ring(w); /* everything it still said */
    w->state = WORKER_NONE;
    end_sessions(w);
    tell_pipeline(w, status, reason);
    channel_close(&w->channel);
    drop_parcels(w);
    if (was == WORKER_DRAINING || s->is_draining) {
        log_debug("worker ended", "worker=%u", w->index);
        return;
    }
    log_warn("worker died", "worker=%u reason=" LOG_Q, w->index, reason);
    series_add(metrics_get(h->metrics, M_WORKER_RESTARTS, label), 1);
    if (was == WORKER_UP && now - w->started_us > RESPAWN_MAX_US)
        w->delay_us = 0;
    if (w->index == s->n)
        return; /* the spare one comes back when it is wanted */
    if (was == WORKER_UP && w->delay_us == 0)
        start(w); /* half a millisecond later it works again */
    if (w->state == WORKER_NONE)
        try_later(w, now);
    else
        w->delay_us = RESPAWN_MIN_US;
}

static void on_child(struct ev_loop *loop, ev_child *child, int events)
{
    struct worker *w = child->data;

    (void)loop;
    (void)events;
    host_now(w->host);
    bury(w, child->rstatus);
}

/* --- watching -------------------------------------------------------------------- */

static void check_life(struct worker *w, int64_t now_us, int64_t limit_us)
{
    struct channel_control *c = w->channel.control;
    int64_t busy = atomic_load(&c->busy_since_us);

    atomic_store(&c->host_alive_us, now_us);
    if (w->killed_for_us || busy <= 0 || now_us - busy <= limit_us)
        return;
    w->killed_for_us = now_us - busy;
    log_warn("worker shows no sign of life and is killed",
             "worker=%u pid=%d ms=%lld", w->index, (int)w->pid,
             (long long)(w->killed_for_us / 1000));
    kill(w->pid, SIGKILL);
}

/* A spare worker that nobody needs any more goes. */
static void retire_spare(struct supervisor *s, int64_t now_us)
{
    struct worker *w = &s->workers[s->n];

    if (w->state != WORKER_UP)
        return;
    if (!pipeline_worker_is_idle(s->host->pipeline, s->n))
        w->idle_since_us = 0;
    else if (!w->idle_since_us)
        w->idle_since_us = now_us;
    else if (now_us - w->idle_since_us > QUARANTINE_LINGER_US) {
        w->state = WORKER_DRAINING;
        queue(w, MSG_DRAIN, 0, true, (struct slice){0});
    }
}

void supervisor_tick(struct supervisor *s, int64_t now_us)
{
    for (unsigned i = 0; i <= s->n; i++) {
        struct worker *w = &s->workers[i];

        if (w->state == WORKER_NONE) {
            if (w->start_again_us && now_us >= w->start_again_us &&
                !s->is_draining)
                start(w);
            continue;
        }
        check_life(w, now_us,
                   w->state == WORKER_STARTING ? 10 * s->hard_limit_us
                                               : s->hard_limit_us);
    }
    if (!s->is_draining)
        retire_spare(s, now_us);
}

/* --- the rest ----------------------------------------------------------------------- */

struct supervisor *supervisor_new(struct host *h)
{
    struct supervisor *s = xcalloc(1, sizeof(*s));
    int64_t hard = h->settings.workers_hard_limit;

    s->host = h;
    s->n = (unsigned)h->settings.workers_count;
    s->hard_limit_us =
        (hard ? hard : h->settings.workers_soft_limit + 1000) * 1000;
    s->workers = xcalloc(s->n + 1, sizeof(*s->workers));
    for (unsigned i = 0; i <= s->n; i++) {
        s->workers[i].host = h;
        s->workers[i].index = i;
        s->workers[i].last = &s->workers[i].first;
        s->workers[i].channel.memory_fd = -1;
    }
    return s;
}

void supervisor_start(struct supervisor *s)
{
    s->is_started = true;
    for (unsigned i = 0; i < s->n; i++)
        start(&s->workers[i]);
}

void supervisor_want_spare(struct supervisor *s)
{
    struct worker *w = &s->workers[s->n];

    if (w->state == WORKER_NONE && !w->start_again_us && !s->is_draining)
        start(w);
}

bool supervisor_is_ready(const struct supervisor *s)
{
    for (unsigned i = 0; i < s->n; i++)
        if (s->workers[i].state != WORKER_UP)
            return false;
    return s->is_started;
}

void supervisor_load(struct supervisor *s, const struct bundle *b)
{
    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state == WORKER_UP ||
            s->workers[i].state == WORKER_STARTING)
            load_into(&s->workers[i], b);
}

void supervisor_unload(struct supervisor *s, uint32_t vm)
{
    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state != WORKER_NONE)
            queue(&s->workers[i], MSG_UNLOAD, vm, true, (struct slice){0});
}

void supervisor_drain(struct supervisor *s)
{
    s->is_draining = true;
    for (unsigned i = 0; i <= s->n; i++) {
        struct worker *w = &s->workers[i];

        w->start_again_us = 0;
        if (w->state == WORKER_NONE)
            continue;
        w->state = WORKER_DRAINING;
        queue(w, MSG_DRAIN, 0, true, (struct slice){0});
    }
}

bool supervisor_is_gone(const struct supervisor *s)
{
    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state != WORKER_NONE)
            return false;
    return true;
}

/* By force, for what a drain did not end. */
void supervisor_free(struct supervisor *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i <= s->n; i++) {
        struct worker *w = &s->workers[i];

        if (w->state == WORKER_NONE)
            continue;
        kill(w->pid, SIGKILL);
        while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR)
            continue;
        ev_io_stop(s->host->loop, &w->wake);
        ev_child_stop(s->host->loop, &w->child);
        channel_close(&w->channel);
        drop_parcels(w);
    }
    for (unsigned i = 0; i <= s->n; i++)
        free(s->workers[i].loaded);
    free(s->workers);
    free(s);
}

json_t *supervisor_json(const struct supervisor *s)
{
    static const char *const states[] = {"stopped", "starting", "up",
                                         "draining"};
    json_t *list = json_array();

    for (unsigned i = 0; i <= s->n; i++) {
        const struct worker *w = &s->workers[i];

        if (i == s->n && w->state == WORKER_NONE)
            continue;
        json_array_append_new(list,
                              json_pack("{s:i, s:i, s:s, s:b}", "worker",
                                        (int)i, "pid", (int)w->pid, "state",
                                        states[w->state], "spare", i == s->n));
    }
    return list;
}

/* utime + stime and resident pages of /proc/<pid>/stat. */
static bool read_stat(pid_t pid, double *cpu, double *resident)
{
    char path[64], text[1024];
    unsigned long utime, stime;
    long pages;
    const char *p;
    FILE *file;
    size_t n;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    file = fopen(path, "re");
    if (!file)
        return false;
    n = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[n] = '\0';
    p = strrchr(text, ')');
    /* NOLINTNEXTLINE(cert-err34-c): the kernel wrote it */
    if (!p || sscanf(p + 1,
                     " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu "
                     "%*d %*d %*d %*d %*d %*d %*u %*u %ld",
                     &utime, &stime, &pages) != 3)
        return false;
    *cpu = (double)(utime + stime) / (double)sysconf(_SC_CLK_TCK);
    *resident = (double)pages * (double)sysconf(_SC_PAGESIZE);
    return true;
}

void supervisor_collect(struct supervisor *s)
{
    metrics_zero(s->host->metrics, M_WORKER_RESIDENT);
    for (unsigned i = 0; i <= s->n; i++) {
        double cpu, resident;
        char name[16];

        if (s->workers[i].state == WORKER_NONE ||
            !read_stat(s->workers[i].pid, &cpu, &resident))
            continue;
        snprintf(name, sizeof(name), "%u", i);
        series_set(metrics_get(s->host->metrics, M_WORKER_RESIDENT, name),
                   resident);
        series_set(metrics_get(s->host->metrics, M_WORKER_CPU, name), cpu);
    }
}
