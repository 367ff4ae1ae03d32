#include "host/probe.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/settings.h"

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANSWER_MAX ((size_t)64 << 20)

struct probe {
    struct ev_loop *loop;
    probe_fn *done;
    void *arg;
    pid_t pid;   /* 0: it has ended and is waited for */
    int status;  /* then: how */
    int in, out; /* our ends: its standard input and output */
    ev_io writing, reading;
    ev_child child;
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

/* In the child, after fork: only what is safe there. */
static void become_probe(int in, int out)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    signal(SIGPIPE, SIG_DFL);
    execl(self_path(), "moontide", "probe", (char *)NULL);
    _exit(127);
}

static bool spawn(struct probe *p, struct err *err)
{
    int in[2], out[2];

    if (pipe2(in, O_CLOEXEC) != 0)
        return err_set(err, ERR_RETRIABLE, "pipe: %s", strerror(errno));
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return err_set(err, ERR_RETRIABLE, "pipe: %s", strerror(errno));
    }
    self_path();
    p->pid = fork();
    if (p->pid == 0)
        become_probe(in[0], out[1]);
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
    if (p->pid < 0)
        return err_set(err, ERR_RETRIABLE, "fork: %s", strerror(errno));
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    fcntl(p->out, F_SETFL, O_NONBLOCK);
    return true;
}

static void wait_for_end(struct probe *p)
{
    while (p->pid > 0 && waitpid(p->pid, &p->status, 0) < 0 && errno == EINTR)
        continue;
    p->pid = 0;
}

/* The default loop waits for every child: it may be first. */
static void on_child(struct ev_loop *loop, ev_child *child, int events)
{
    struct probe *p = child->data;

    (void)events;
    ev_child_stop(loop, child);
    p->status = child->rstatus;
    p->pid = 0;
}

/* Kill when needed, and always wait: no zombie is left. */
static void end_process(struct probe *p)
{
    if (p->pid > 0)
        kill(p->pid, SIGKILL);
    wait_for_end(p);
}

static void probe_free(struct probe *p)
{
    ev_io_stop(p->loop, &p->writing);
    ev_io_stop(p->loop, &p->reading);
    ev_timer_stop(p->loop, &p->timeout);
    if (ev_is_default_loop(p->loop))
        ev_child_stop(p->loop, &p->child);
    end_process(p);
    if (p->in >= 0)
        close(p->in);
    if (p->out >= 0)
        close(p->out);
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

/* The process closed its output: all is there. */
static void conclude(struct probe *p)
{
    struct err err = {0};
    json_t *answer = json_loadb(p->answer.ptr ? p->answer.ptr : "",
                                p->answer.len, JSON_ALLOW_NUL, NULL);

    if (!answer) {
        wait_for_end(p); /* it may need a moment; its exit says why */
        err_set(&err, ERR_PERMANENT, "the checking process %s %d",
                WIFSIGNALED(p->status) ? "was killed by signal" : "exited with",
                WIFSIGNALED(p->status) ? WTERMSIG(p->status)
                                       : WEXITSTATUS(p->status));
    } else if (!json_is_true(json_object_get(answer, "ok"))) {
        const char *text = json_string_value(json_object_get(answer, "error"));

        err_set(&err, ERR_PERMANENT, "%s", text ? text : "no reason given");
        finish(p, NULL, &err);
        json_decref(answer);
        return;
    }
    finish(p, answer, answer ? NULL : &err);
    json_decref(answer);
}

static void on_readable(struct ev_loop *loop, ev_io *w, int events)
{
    struct probe *p = w->data;
    struct err err;
    ssize_t n;

    (void)loop;
    (void)events;
    n = read(p->out, buf_reserve(&p->answer, 65536), 65536);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0 && p->answer.len < ANSWER_MAX) {
        p->answer.len += (size_t)n;
        return;
    }
    if (n > 0) {
        err_set(&err, ERR_PERMANENT, "the checking process said too much");
        finish(p, NULL, &err);
        return;
    }
    conclude(p);
}

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
    struct err err;

    (void)loop;
    (void)events;
    err_set(&err, ERR_PERMANENT,
            "loading did not end within %lld ms (an endless loop?)",
            (long long)p->timeout_ms);
    finish(p, NULL, &err);
}

/* The child could not be made: tell it later, as promised. */
static void on_failed(struct ev_loop *loop, ev_timer *w, int events)
{
    struct probe *p = w->data;
    struct err err;

    (void)loop;
    (void)events;
    err_set(&err, ERR_RETRIABLE, "cannot start the checking process");
    finish(p, NULL, &err);
}

static void watch_process(struct probe *p)
{
    ev_io_set(&p->writing, p->in, EV_WRITE);
    ev_io_set(&p->reading, p->out, EV_READ);
    ev_io_start(p->loop, &p->writing);
    ev_io_start(p->loop, &p->reading);
    if (!ev_is_default_loop(p->loop))
        return;
    ev_child_set(&p->child, p->pid, 0);
    ev_child_start(p->loop, &p->child);
}

struct probe *probe_start(struct ev_loop *loop, const json_t *request,
                          int64_t timeout_ms, probe_fn *done, void *arg)
{
    struct probe *p = xcalloc(1, sizeof(*p));
    struct err err;

    p->loop = loop;
    p->done = done;
    p->arg = arg;
    p->in = p->out = -1;
    p->timeout_ms = timeout_ms;
    p->request = json_dumps(request, JSON_COMPACT);
    p->len = strlen(p->request);
    ev_init(&p->writing, on_writable);
    ev_init(&p->reading, on_readable);
    ev_init(&p->child, on_child);
    p->writing.data = p->reading.data = p->timeout.data = p->child.data = p;
    if (!spawn(p, &err)) {
        ev_timer_init(&p->timeout, on_failed, 0, 0);
    } else {
        ev_timer_init(&p->timeout, on_timeout, (double)timeout_ms / 1e3, 0);
        watch_process(p);
    }
    ev_timer_start(loop, &p->timeout);
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
    struct waiting w = {.err = err};

    signal(SIGPIPE, SIG_IGN);
    probe_start(loop, request, timeout_ms, on_answer, &w);
    while (!w.is_done)
        ev_run(loop, EVRUN_ONCE);
    ev_loop_destroy(loop);
    return w.answer;
}
