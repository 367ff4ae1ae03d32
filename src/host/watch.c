#include "host/watch.h"

#include "base/log.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <ev.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static const char component[] = "watch";

#define QUIET_S   0.04 /* after the last change of a burst */
#define DEPTH_MAX 8
#define CHANGES                                                             \
    (IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE | \
     IN_DELETE_SELF | IN_MOVE_SELF | IN_ATTRIB)

struct watch {
    struct ev_loop *loop;
    int fd;
    ev_io io;
    ev_timer quiet;
    char **folders;
    size_t n;
    watch_fn *changed;
    void *arg;
};

/* Adding a folder again is harmless; after a swap it is another inode. */
static void add_tree(struct watch *w, const char *path, int depth)
{
    DIR *dir = opendir(path);
    struct dirent *file;
    char below[PATH_MAX];
    struct stat st;

    inotify_add_watch(w->fd, path, CHANGES);
    if (!dir)
        return;
    while (depth < DEPTH_MAX && (file = readdir(dir))) {
        if (file->d_name[0] == '.')
            continue;
        if ((size_t)snprintf(below, sizeof(below), "%s/%s", path,
                             file->d_name) < sizeof(below) &&
            stat(below, &st) == 0 && S_ISDIR(st.st_mode))
            add_tree(w, below, depth + 1);
    }
    closedir(dir);
}

/* The folder and what holds it: a swapped link changes its parent. */
static void add_all(struct watch *w)
{
    for (size_t i = 0; i < w->n; i++) {
        char parent[PATH_MAX];
        char *slash;

        add_tree(w, w->folders[i], 0);
        snprintf(parent, sizeof(parent), "%s", w->folders[i]);
        slash = strrchr(parent, '/');
        if (slash && slash != parent) {
            *slash = '\0';
            inotify_add_watch(w->fd, parent,
                              IN_MOVED_TO | IN_CREATE | IN_DELETE);
        }
    }
}

static void on_quiet(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct watch *w = timer->data;

    (void)events;
    ev_timer_stop(loop, timer);
    add_all(w);
    w->changed(w->arg);
}

static void on_event(struct ev_loop *loop, ev_io *io, int events)
{
    struct watch *w = io->data;
    char buffer[8192];

    (void)events;
    while (read(w->fd, buffer, sizeof(buffer)) > 0)
        continue; /* what changed is found by looking */
    if (!ev_is_active(&w->quiet)) {
        ev_timer_set(&w->quiet, QUIET_S, QUIET_S);
        ev_timer_start(loop, &w->quiet);
    }
}

struct watch *watch_new(struct ev_loop *loop, const char *const *folders,
                        size_t n, watch_fn *changed, void *arg)
{
    struct watch *w = xcalloc(1, sizeof(*w));

    w->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (w->fd < 0) {
        log_warn("files are not watched", "err=" LOG_Q, strerror(errno));
        free(w);
        return NULL;
    }
    w->loop = loop;
    w->changed = changed;
    w->arg = arg;
    w->folders = xcalloc(n, sizeof(char *));
    for (; w->n < n; w->n++)
        w->folders[w->n] = xstrdup(folders[w->n]);
    ev_timer_init(&w->quiet, on_quiet, QUIET_S, 0);
    ev_io_init(&w->io, on_event, w->fd, EV_READ);
    w->io.data = w->quiet.data = w;
    ev_io_start(loop, &w->io);
    add_all(w);
    return w;
}

void watch_free(struct watch *w)
{
    if (!w)
        return;
    ev_io_stop(w->loop, &w->io);
    ev_timer_stop(w->loop, &w->quiet);
    close(w->fd);
    for (size_t i = 0; i < w->n; i++)
        free(w->folders[i]);
    free(w->folders);
    free(w);
}
