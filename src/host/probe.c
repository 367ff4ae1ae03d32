#include "host/probe.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/settings.h"
#include "host/probe_server.h"

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANSWER_MAX ((size_t)64 << 20)
#define TRIES_MAX  3 /* when the server dies under it */

enum fate { CHILD_LIVES, CHILD_ENDED, CHILD_FAILED, CHILD_LOST };

struct probe {
    struct ev_loop *loop;
    probe_fn *done;
    void *arg;
    struct spawned child;
    enum fate fate;
    int status;      /* of ENDED */
    struct err err;  /* of FAILED */
    int in, out;     /* our ends: its standard input and output */
    bool has_closed; /* its output: all is there */
    int tries;
    ev_io writing, reading;
    ev_timer timeout;
    char *request;
    size_t sent, len;
    struct buf answer;
    int64_t timeout_ms;
};

const char *self_path(void)
{
    static char path[4096];

    if (!path[0]) {
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

        path[n > 0 ? n : 0] = '\0';
    }
    return path;
}

static void close_pipes(struct probe *p)
{
    ev_io_stop(p->loop, &p->writing);
    ev_io_stop(p->loop, &p->reading);
    if (p->in >= 0)
        close(p->in);
    if (p->out >= 0)
        close(p->out);
    p->in = p->out = -1;
}

static void probe_free(struct probe *p)
{
    probe_server_kill(&p->child);
    close_pipes(p);
    ev_timer_stop(p->loop, &p->timeout);
    buf_fini(&p->answer);
    free(p->request);
    free(p);
}

void probe_cancel(struct probe *p)
{
    if (p)
        probe_free(p);
}

static void finish(struct probe *p, const json_t *answer, struct err *err)
{
    probe_fn *done = p->done;
    void *arg = p->arg;

    probe_free(p);
    done(arg, answer, err);
}

static void fail(struct probe *p, enum err_kind kind, const char *text)
{
    struct err err;

    err_set(&err, kind, "%s", text);
    finish(p, NULL, &err);
}

/* Its output is all there, but no answer. */
static void fail_with_status(struct probe *p)
{
    bool was_killed = WIFSIGNALED(p->status);
    char text[80];

    snprintf(text, sizeof(text), "the checking process %s %d",
             was_killed ? "was killed by signal" : "exited with",
             was_killed ? WTERMSIG(p->status) : WEXITSTATUS(p->status));
    fail(p, ERR_PERMANENT, text);
}

static void finish_with(struct probe *p, json_t *answer)
{
    const char *text = json_string_value(json_object_get(answer, "error"));

    if (json_is_true(json_object_get(answer, "ok")))
        finish(p, answer, NULL);
    else
        fail(p, ERR_PERMANENT, text ? text : "no reason given");
    json_decref(answer);
}

/* It closed its output. Without an answer its end says why, which may come a
 * moment later. */
static void conclude(struct probe *p)
{
    json_t *answer = json_loadb(p->answer.ptr ? p->answer.ptr : "",
                                p->answer.len, JSON_ALLOW_NUL, NULL);

    if (answer)
        finish_with(p, answer);
    else if (p->fate == CHILD_ENDED)
        fail_with_status(p);
}

static void begin(struct probe *p);

static void begin_again(struct probe *p)
{
    close_pipes(p);
    if (p->tries == TRIES_MAX)
        fail(p, ERR_RETRIABLE, "the process that forks the checking ones died");
    else
        begin(p);
}

static void look(struct probe *p)
{
    struct err err = p->err; /* `p` goes before it is told */

    if (p->fate == CHILD_FAILED)
        finish(p, NULL, &err);
    else if (p->fate == CHILD_LOST)
        begin_again(p);
    else if (p->has_closed)
        conclude(p);
}

/* False when it ended all. */
static bool read_some(struct probe *p)
{
    ssize_t n = read(p->out, buf_reserve(&p->answer, 65536), 65536);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n > 0 && p->answer.len < ANSWER_MAX) {
        p->answer.len += (size_t)n;
        return true;
    }
    if (n > 0) {
        fail(p, ERR_PERMANENT, "the checking process said too much");
        return false;
    }
    p->has_closed = true;
    ev_io_stop(p->loop, &p->reading);
    return true;
}

static void on_readable(struct ev_loop *loop, ev_io *w, int events)
{
    struct probe *p = w->data;

    (void)loop;
    if ((events & EV_READ) && !read_some(p))
        return;
    look(p);
}

/* --- the child's fate --------------------------------------------------------------- */

/* Possibly told in another loop: acted on in ours. */
static void note(struct probe *p, enum fate fate)
{
    p->fate = fate;
    ev_feed_event(p->loop, &p->reading, EV_CUSTOM);
}

static void on_ended(struct spawned *s, int status)
{
    struct probe *p = CONTAINER_OF(s, struct probe, child);

    p->status = status;
    note(p, CHILD_ENDED);
}

static void on_failed(struct spawned *s, int code)
{
    struct probe *p = CONTAINER_OF(s, struct probe, child);

    err_set(&p->err, ERR_RETRIABLE, "cannot start the checking process: %s",
            strerror(code));
    note(p, CHILD_FAILED);
}

static void on_lost(struct spawned *s)
{
    note(CONTAINER_OF(s, struct probe, child), CHILD_LOST);
}

/* --- asking ------------------------------------------------------------------------- */

static void close_input(struct probe *p)
{
    ev_io_stop(p->loop, &p->writing);
    close(p->in);
    p->in = -1;
}

static void on_writable(struct ev_loop *loop, ev_io *w, int events)
{
    struct probe *p = w->data;
    ssize_t n;

    (void)loop;
    (void)events;
    n = write(p->in, p->request + p->sent, p->len - p->sent);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        p->sent += (size_t)n;
    if (n < 0 || p->sent == p->len)
        close_input(p); /* if it died, its silence will say so */
}

static void on_timeout(struct ev_loop *loop, ev_timer *w, int events)
{
    struct probe *p = w->data;
    char text[80];

    (void)loop;
    (void)events;
    snprintf(text, sizeof(text),
             "loading did not end within %lld ms (an endless loop?)",
             (long long)p->timeout_ms);
    fail(p, ERR_PERMANENT, text);
}

/* Theirs first: what the child gets. */
static bool make_pipes(int in[2], int out[2], struct err *err)
{
    if (pipe2(in, O_CLOEXEC) != 0)
        return err_set(err, ERR_RETRIABLE, "pipe: %s", strerror(errno));
    if (pipe2(out, O_CLOEXEC) == 0)
        return true;
    err_set(err, ERR_RETRIABLE, "pipe: %s", strerror(errno));
    close(in[0]);
    close(in[1]);
    return false;
}

static bool spawn(struct probe *p, struct err *err)
{
    int in[2], out[2];
    bool ok;

    if (!make_pipes(in, out, err))
        return false;
    ok = probe_server_spawn(&p->child, in[0], out[1], err);
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    fcntl(p->out, F_SETFL, O_NONBLOCK);
    return ok;
}

static void begin(struct probe *p)
{
    p->tries++;
    p->fate = CHILD_LIVES;
    p->has_closed = false;
    p->sent = 0;
    buf_fini(&p->answer);
    if (!spawn(p, &p->err)) {
        err_wrap(&p->err, "cannot start the checking process");
        note(p, CHILD_FAILED);
        return;
    }
    ev_io_set(&p->writing, p->in, EV_WRITE);
    ev_io_set(&p->reading, p->out, EV_READ);
    ev_io_start(p->loop, &p->writing);
    ev_io_start(p->loop, &p->reading);
}

/* The server is heard in the first loop that asks; probe_wait() lends it to
 * its own. */
static void hear_server_in(struct ev_loop *loop)
{
    struct ev_loop *former = probe_server_listen(loop);

    if (former)
        probe_server_listen(former);
}

struct probe *probe_start(struct ev_loop *loop, const json_t *request,
                          int64_t timeout_ms, probe_fn *done, void *arg)
{
    struct probe *p = xcalloc(1, sizeof(*p));

    p->loop = loop;
    p->done = done;
    p->arg = arg;
    p->in = p->out = -1;
    p->child = (struct spawned){
        .ended = on_ended, .failed = on_failed, .lost = on_lost};
    list_init(&p->child.link);
    p->timeout_ms = timeout_ms;
    p->request = json_dumps(request, JSON_COMPACT);
    p->len = strlen(p->request);
    ev_init(&p->writing, on_writable);
    ev_init(&p->reading, on_readable);
    ev_timer_init(&p->timeout, on_timeout, (double)timeout_ms / 1e3, 0);
    p->writing.data = p->reading.data = p->timeout.data = p;
    ev_timer_start(loop, &p->timeout);
    hear_server_in(loop);
    begin(p);
    return p;
}

json_t *probe_handler_request(const struct settings *s, const char *name)
{
    char *path = xasprintf("%s/%s.lua", s->handlers_path, name);
    json_t *own = json_object_get(s->handlers, name);
    json_t *request =
        json_pack("{s:s, s:s, s:s, s:s, s:O, s:b, s:{s:I, s:I, s:I}}", "op",
                  "handler", "path", path, "root", s->handlers_lua, "templates",
                  s->templates_path, "settings", own ? own : json_null(),
                  "trust_allow", s->handlers_trust_allow, "defaults",
                  "max_attempts", (json_int_t)s->max_attempts, "soft_limit_ms",
                  (json_int_t)s->workers_soft_limit, "memory_limit",
                  (json_int_t)s->workers_memory_limit);

    free(path);
    return request;
}

struct waiting {
    json_t *answer;
    struct err *err;
    bool is_done;
};

static void on_answer(void *arg, const json_t *answer, const struct err *err)
{
    struct waiting *w = arg;

    w->is_done = true;
    if (answer)
        w->answer = json_deep_copy(answer);
    else
        *w->err = *err;
}

json_t *probe_wait(const json_t *request, int64_t timeout_ms, struct err *err)
{
    struct ev_loop *loop = ev_loop_new(EVFLAG_AUTO | EVFLAG_NOENV);
    struct ev_loop *former = probe_server_listen(loop);
    struct waiting w = {.err = err};

    signal(SIGPIPE, SIG_IGN);
    probe_start(loop, request, timeout_ms, on_answer, &w);
    while (!w.is_done)
        ev_run(loop, EVRUN_ONCE);
    probe_server_listen(former);
    ev_loop_destroy(loop);
    return w.answer;
}
