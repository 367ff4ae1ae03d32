#include "host/probe_server.h"

#include "host/probe.h"
#include "ipc/spawn.h"

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define END_PATIENCE_MS 1000

static struct {
    int socket; /* -1: there is none */
    pid_t pid;
    struct list children;
    uint64_t last_id;
    struct ev_loop *loop;
    ev_io reading;
} server = {.socket = -1};

/* --- the process ------------------------------------------------------------------ */

/* In the child, after fork: only what is safe there. Nothing of the host's is
 * open in it or in its children but standard error. */
static void become_server(int socket)
{
    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(socket, STDIN_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO);
    close_range(STDERR_FILENO + 1, ~0U, 0);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    execl(self_path(), "moontide", "probe", "--serve", (char *)NULL);
    _exit(127);
}

static bool fork_server(int pair[2], struct err *err)
{
    self_path();
    server.pid = fork();
    if (server.pid == 0)
        become_server(pair[1]);
    close(pair[1]);
    if (server.pid < 0) {
        close(pair[0]);
        return err_set(err, ERR_RETRIABLE, "fork: %s", strerror(errno));
    }
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    server.socket = pair[0];
    return true;
}

/* Without us it ends by itself; what takes longer is killed. */
static void stop(int patience_ms)
{
    struct pollfd ending = {.fd = server.socket}; /* POLLHUP: it has closed */

    if (server.loop)
        ev_io_stop(server.loop, &server.reading);
    shutdown(server.socket, SHUT_WR);
    poll(&ending, 1, patience_ms);
    close(server.socket);
    server.socket = -1;
    if (waitpid(server.pid, NULL, WNOHANG) != 0)
        return; /* waited for, by us or by the default loop */
    kill(server.pid, SIGKILL);
    while (waitpid(server.pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

static void on_exit_of_ours(void)
{
    if (server.socket >= 0)
        stop(END_PATIENCE_MS);
}

/* It died, or does not listen any more. */
static void lose(void)
{
    struct list lost;

    stop(0);
    list_init(&lost);
    list_insert(server.children.next, &lost);
    list_remove(&server.children);
    while (!list_is_empty(&lost)) {
        struct spawned *s = CONTAINER_OF(lost.next, struct spawned, link);

        list_remove(&s->link);
        s->lost(s);
    }
}

/* --- what it says ------------------------------------------------------------------- */

static struct spawned *find(uint64_t id)
{
    list_foreach(item, &server.children) {
        struct spawned *s = CONTAINER_OF(item, struct spawned, link);

        if (s->id == id)
            return s;
    }
    return NULL;
}

static void hear(const struct spawn_msg *msg)
{
    struct spawned *s = find(msg->id);

    if (!s)
        return; /* killed and forgotten meanwhile */
    list_remove(&s->link);
    if (msg->kind == SPAWN_ENDED)
        s->ended(s, msg->status);
    else
        s->failed(s, msg->status);
}

static void on_readable(struct ev_loop *loop, ev_io *w, int events)
{
    struct spawn_msg msg;
    int fds[2];

    (void)loop;
    (void)w;
    (void)events;
    switch (spawn_receive(server.socket, &msg, fds)) {
    case SPAWN_MESSAGE: hear(&msg); break;
    case SPAWN_NOTHING: break;
    case SPAWN_OVER: lose(); break;
    }
}

static void first_time(void)
{
    if (server.children.next)
        return;
    list_init(&server.children);
    atexit(on_exit_of_ours);
}

static bool start(struct err *err)
{
    int pair[2];

    if (server.socket >= 0)
        return true;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return err_set(err, ERR_RETRIABLE, "socketpair: %s", strerror(errno));
    if (!fork_server(pair, err))
        return false;
    first_time();
    ev_io_init(&server.reading, on_readable, server.socket, EV_READ);
    if (server.loop)
        ev_io_start(server.loop, &server.reading);
    return true;
}

/* --- what others ask ---------------------------------------------------------------- */

static bool say(enum spawn_kind kind, uint64_t id, const int fds[2])
{
    return spawn_send(server.socket,
                      &(struct spawn_msg){.kind = kind, .id = id}, fds);
}

bool probe_server_spawn(struct spawned *s, int in, int out, struct err *err)
{
    const int fds[] = {in, out};

    list_init(&s->link);
    for (int tries = 0; tries < 2; tries++) { /* it may just have died */
        if (!start(err))
            return false;
        s->id = ++server.last_id;
        if (say(SPAWN_START, s->id, fds)) {
            list_append(&server.children, &s->link);
            return true;
        }
        lose();
    }
    return err_set(err, ERR_RETRIABLE, "the probe server does not listen");
}

void probe_server_kill(struct spawned *s)
{
    if (list_is_empty(&s->link))
        return;
    list_remove(&s->link);
    if (!say(SPAWN_KILL, s->id, NULL))
        lose(); /* and with it the child */
}

struct ev_loop *probe_server_listen(struct ev_loop *loop)
{
    struct ev_loop *former = server.loop;

    if (former && server.socket >= 0)
        ev_io_stop(former, &server.reading);
    server.loop = loop;
    if (loop && server.socket >= 0)
        ev_io_start(loop, &server.reading);
    return former;
}
