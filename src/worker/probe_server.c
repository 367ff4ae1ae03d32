#include "worker/probe_server.h"

#include "base/mem.h"
#include "ipc/spawn.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

struct child {
    uint64_t id;
    pid_t pid;
};

struct server {
    pid_t pid;
    int signals; /* readable when a child has ended */
    struct child *children;
    size_t n, cap;
};

#define HOST STDIN_FILENO

/* --- children -------------------------------------------------------------------- */

static void add(struct server *s, uint64_t id, pid_t pid)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->children = xrealloc(s->children, s->cap * sizeof(*s->children));
    }
    s->children[s->n++] = (struct child){id, pid};
}

/* In the child: nothing of the server is left but its memory. That it dies
 * with the server is asked for after the fork, so it may be too late. */
static void become_child(struct server *s, const int fds[2])
{
    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != s->pid)
        _exit(1);
    dup2(fds[0], STDIN_FILENO);
    dup2(fds[1], STDOUT_FILENO);
    close(fds[0]);
    close(fds[1]);
    close(s->signals);
    free(s->children);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* True in the child. */
static bool start(struct server *s, uint64_t id, const int fds[2])
{
    struct spawn_msg failed = {.kind = SPAWN_FAILED, .id = id};
    pid_t pid = fork();

    if (pid == 0) {
        become_child(s, fds);
        return true;
    }
    failed.status = errno;
    close(fds[0]);
    close(fds[1]);
    if (pid > 0)
        add(s, id, pid);
    else
        (void)!spawn_send(HOST, &failed,
                          NULL); /* gone: the next read says so */
    return false;
}

static void kill_child(const struct server *s, uint64_t id)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->children[i].id == id)
            kill(s->children[i].pid, SIGKILL);
}

static bool tell(struct server *s, pid_t pid, int status)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->children[i].pid == pid) {
            struct spawn_msg ended = {
                .kind = SPAWN_ENDED, .status = status, .id = s->children[i].id};

            s->children[i] = s->children[--s->n];
            return spawn_send(HOST, &ended, NULL);
        }
    return true;
}

/* False when the host is gone. */
static bool bury(struct server *s)
{
    struct signalfd_siginfo info;
    bool ok = true;
    int status;
    pid_t pid;

    if (read(s->signals, &info, sizeof(info)) < 0 && errno != EAGAIN)
        return false;
    while (ok && (pid = waitpid(-1, &status, WNOHANG)) > 0)
        ok = tell(s, pid, status);
    return ok;
}

/* --- the host's wishes ------------------------------------------------------------ */

enum heard { GO_ON, HOST_GONE, IN_CHILD };

static enum heard listen_to_host(struct server *s)
{
    struct spawn_msg msg;
    int fds[2];

    if (spawn_receive(HOST, &msg, fds) != SPAWN_MESSAGE)
        return HOST_GONE;
    if (msg.kind == SPAWN_START && start(s, msg.id, fds))
        return IN_CHILD;
    if (msg.kind == SPAWN_KILL)
        kill_child(s, msg.id);
    return GO_ON;
}

/* The host decides when we end; a Ctrl-C in its terminal reaches us, too. */
static void set_up(struct server *s)
{
    sigset_t child;

    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    s->pid = getpid();
    s->signals = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void end(struct server *s)
{
    for (size_t i = 0; i < s->n; i++)
        kill(s->children[i].pid, SIGKILL);
    while (wait(NULL) > 0 || errno == EINTR)
        continue;
    free(s->children);
    close(s->signals);
}

bool probe_serve(void)
{
    struct server s = {0};
    enum heard heard = GO_ON;

    set_up(&s);
    while (heard == GO_ON) {
        struct pollfd fds[] = {{.fd = HOST, .events = POLLIN},
                               {.fd = s.signals, .events = POLLIN}};

        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        if (fds[1].revents && !bury(&s))
            break;
        if (fds[0].revents)
            heard = listen_to_host(&s);
    }
    if (heard != IN_CHILD)
        end(&s);
    return heard == IN_CHILD;
}
