/*
 * Worker processes: start them by exec, talk to them through their channel,
 * notice when they hang or die, and replace them.
 *
 * A worker is up when it has loaded every version in use; only then does the
 * pipeline send to it. When it dies the order is: wait for its exit, read all
 * verdicts it published, end its database sessions, tell the pipeline what it
 * was doing, and only then start the next one on a fresh channel.
 */
#include "base/mem.h"
#include "host/supervisor_priv.h"

#include <stdio.h>
#include <stdlib.h>

#define QUARANTINE_LINGER_US 60000000 /* an idle spare worker stays so long */

/* --- life ------------------------------------------------------------------------ */

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
        list_init(&s->workers[i].queue);
        s->workers[i].channel.memory_fd = -1;
    }
    return s;
}

void supervisor_start(struct supervisor *s)
{
    s->is_started = true;
    for (unsigned i = 0; i < s->n; i++)
        worker_start(&s->workers[i]);
}

void supervisor_want_spare(struct supervisor *s)
{
    struct worker *w = &s->workers[s->n];

    if (w->state == WORKER_NONE && !w->start_again_us && !s->is_draining)
        worker_start(w);
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
            worker_load(&s->workers[i], b);
}

void supervisor_unload(struct supervisor *s, uint32_t vm)
{
    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state != WORKER_NONE)
            worker_queue(&s->workers[i], MSG_UNLOAD, vm, true,
                         (struct slice){0});
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
        worker_queue(w, MSG_DRAIN, 0, true, (struct slice){0});
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
        if (s->workers[i].state != WORKER_NONE)
            worker_end(&s->workers[i]);
        free(s->workers[i].loaded);
        free(s->workers[i].asked);
    }
    free(s->workers);
    free(s);
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
        worker_queue(w, MSG_DRAIN, 0, true, (struct slice){0});
    }
}

void supervisor_tick(struct supervisor *s, int64_t now_us)
{
    for (unsigned i = 0; i <= s->n; i++) {
        struct worker *w = &s->workers[i];

        if (w->state == WORKER_NONE) {
            if (w->start_again_us && now_us >= w->start_again_us &&
                !s->is_draining)
                worker_start(w);
            continue;
        }
        worker_check_life(w, now_us,
                          w->state == WORKER_STARTING ? 10 * s->hard_limit_us
                                                      : s->hard_limit_us);
    }
    if (!s->is_draining)
        retire_spare(s, now_us);
}

/* --- messages -------------------------------------------------------------------- */

bool supervisor_send(struct supervisor *s, unsigned worker,
                     const struct event_msg *ev, const struct delivery_msg *to,
                     size_t n)
{
    return worker_deliver(&s->workers[worker], ev, to, n);
}

void supervisor_reply(struct supervisor *s, unsigned worker, uint64_t serial,
                      uint32_t call, bool ok, struct slice text)
{
    struct worker *w = &s->workers[worker];

    if (w->serial == serial && w->state != WORKER_NONE)
        worker_queue(w, MSG_REPLY, call, ok, text);
}

bool supervisor_has_loaded(const struct supervisor *s, uint32_t vm)
{
    bool any = false;

    for (unsigned i = 0; i <= s->n; i++) {
        const struct worker *w = &s->workers[i];

        if (w->state != WORKER_STARTING && w->state != WORKER_UP)
            continue;
        if (!worker_has_loaded(w, vm))
            return false;
        any = true;
    }
    return any;
}

bool supervisor_poll(struct supervisor *s)
{
    bool any = false;

    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state != WORKER_NONE)
            any = worker_read(&s->workers[i]) || any;
    return any;
}

bool supervisor_flush(struct supervisor *s)
{
    bool more = false;

    for (unsigned i = 0; i <= s->n; i++)
        if (s->workers[i].state != WORKER_NONE)
            more = worker_flush(&s->workers[i]) || more;
    return more;
}

/* --- showing --------------------------------------------------------------------- */

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

void supervisor_collect(struct supervisor *s)
{
    metrics_zero(s->host->metrics, M_WORKER_RESIDENT);
    for (unsigned i = 0; i <= s->n; i++) {
        double cpu, resident;
        char name[16];

        if (s->workers[i].state == WORKER_NONE ||
            !worker_usage(s->workers[i].pid, &cpu, &resident))
            continue;
        snprintf(name, sizeof(name), "%u", i);
        series_set(metrics_get(s->host->metrics, M_WORKER_RESIDENT, name),
                   resident);
        series_set(metrics_get(s->host->metrics, M_WORKER_CPU, name), cpu);
    }
}
