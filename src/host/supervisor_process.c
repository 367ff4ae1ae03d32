/* The life of one worker process: exec, signs of life, death and burial. */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/probe.h"
#include "host/supervisor_priv.h"
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

#define UP_RING_BYTES  (512u << 10)
#define DELIVERY_ROOM  (FACTS_ROOM + (4u << 10)) /* names, head, padding */
#define RESPAWN_MIN_US 50000
#define RESPAWN_MAX_US 5000000

/* --- starting ------------------------------------------------------------------- */

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

    if (fd >= 0 && write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
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

static bool spawn(struct worker *w, struct err *err)
{
    int config;

    if (!make_channel(w, err))
        return false;
    config = config_fd(w);
    if (config < 0)
        return err_set(err, ERR_RETRIABLE, "its configuration: %s",
                       strerror(errno));
    self_path();
    w->pid = fork();
    if (w->pid == 0)
        become_worker(w, config);
    close(config);
    return w->pid > 0 ||
           err_set(err, ERR_RETRIABLE, "fork: %s", strerror(errno));
}

void worker_start(struct worker *w)
{
    struct host *h = w->host;
    struct err err;

    w->start_again_us = 0;
    w->started_us = clock_mono_us();
    if (!spawn(w, &err)) {
        log_error("cannot start a worker", "worker=%u err=" LOG_Q, w->index,
                  err.msg);
        channel_close(&w->channel);
        try_later(w, w->started_us);
        return;
    }
    w->serial = ++h->supervisor->next_serial;
    w->state = WORKER_STARTING;
    w->is_ready = false;
    w->killed_for_us = 0;
    worker_drop_queue(w);
    worker_load_all(w);
    ev_io_init(&w->wake, on_wake, w->channel.wake_host_fd, EV_READ);
    ev_child_init(&w->child, on_child, w->pid, 0);
    w->wake.data = w->child.data = w;
    ev_io_start(h->loop, &w->wake);
    ev_child_start(h->loop, &w->child);
    log_debug("worker started", "worker=%u pid=%d", w->index, (int)w->pid);
}

void worker_come_up(struct worker *w)
{
    if (w->state != WORKER_STARTING || !w->is_ready || w->loading > 0)
        return;
    w->state = WORKER_UP;
    w->idle_since_us = 0;
    log_info("worker is up", "worker=%u pid=%d ms=%lld", w->index, (int)w->pid,
             (long long)((clock_mono_us() - w->started_us) / 1000));
    pipeline_worker_up(w->host->pipeline, w->index);
}

/* --- death ---------------------------------------------------------------------- */

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

/* A process that crashes or hangs while it loads and runs nothing else dies of
 * what it loads. A candidate is refused then: every worker has to load it, and
 * would die of it, again and again. */
static void blame_candidate(struct worker *w, int status, const char *reason)
{
    bool is_crash = w->killed_for_us ||
                    (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL &&
                     WTERMSIG(status) != SIGTERM);
    char text[256];

    if (w->n_asked == 0 || !is_crash || !w->is_ready ||
        atomic_load(&w->channel.control->running) > 0)
        return;
    snprintf(text, sizeof(text), "a worker that loaded it died (%s)", reason);
    (void)catalogue_loaded(w->host->catalogue, w->asked[0], false,
                           slice_of(text));
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
    worker_read(w); /* everything it still said */
    w->state = WORKER_NONE;
    end_sessions(w);
    if (was != WORKER_DRAINING)
        blame_candidate(w, status, reason);
    tell_pipeline(w, status, reason);
    collect_worker_gone(h, w->index);
    channel_close(&w->channel);
    worker_drop_queue(w);
    if (was == WORKER_DRAINING || s->is_draining) {
        log_debug("worker ended", "worker=%u", w->index);
        return;
    }
    log_warn("worker died", "worker=%u reason=" LOG_Q, w->index, reason);
    series_add(metrics_get(h->metrics, M_WORKER_RESTARTS, label), 1);
    if (was == WORKER_UP && now - w->started_us > RESPAWN_MAX_US)
        w->delay_us = 0;
    if (w->index == s->n && was == WORKER_UP)
        return; /* the spare one comes back when it is wanted */
    if (was == WORKER_UP && w->delay_us == 0)
        worker_start(w); /* half a millisecond later it works again */
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

void worker_end(struct worker *w)
{
    kill(w->pid, SIGKILL);
    while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    ev_io_stop(w->host->loop, &w->wake);
    ev_child_stop(w->host->loop, &w->child);
    channel_close(&w->channel);
    worker_drop_queue(w);
}

/* --- watching ------------------------------------------------------------------- */

void worker_check_life(struct worker *w, int64_t now_us, int64_t limit_us)
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

/* utime + stime and resident pages of /proc/<pid>/stat. */
bool worker_usage(pid_t pid, double *cpu, double *resident)
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
