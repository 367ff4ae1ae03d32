#include "worker/transfer.h"

#include "base/check.h"
#include "base/list.h"
#include "base/mem.h"
#include "worker/runtime.h"

#include <ev.h>
#include <stdlib.h>

struct transfers {
    struct ev_loop *loop;
    CURLM *multi;
    ev_timer timer;
    struct list sockets;
};

/* A socket curl wants watched. */
struct watch {
    struct list link;
    struct transfers *ts;
    ev_io io;
};

struct running {
    transfer_fn *fn;
    void *arg;
};

/* Callbacks run after curl has returned, so they may start new transfers. */
static void finish_done(struct transfers *ts)
{
    CURLMsg *msg;
    int left;

    while ((msg = curl_multi_info_read(ts->multi, &left))) {
        CURL *easy = msg->easy_handle;
        CURLcode code = msg->data.result;
        struct running *run = NULL;
        struct running copy;

        if (msg->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&run);
        curl_multi_remove_handle(ts->multi, easy);
        copy = *run;
        free(run);
        copy.fn(copy.arg, code);
    }
}

static void act(struct transfers *ts, curl_socket_t fd, int what)
{
    int running;

    curl_multi_socket_action(ts->multi, fd, what, &running);
    finish_done(ts);
}

static void on_socket(struct ev_loop *loop, ev_io *io, int revents)
{
    struct watch *w = io->data;
    int what = (revents & EV_READ ? CURL_CSELECT_IN : 0) |
               (revents & EV_WRITE ? CURL_CSELECT_OUT : 0);

    (void)loop;
    act(w->ts, io->fd, what); /* may free the watch */
}

static void on_timer(struct ev_loop *loop, ev_timer *timer, int revents)
{
    (void)loop;
    (void)revents;
    act(timer->data, CURL_SOCKET_TIMEOUT, 0);
}

static void unwatch(struct watch *w)
{
    ev_io_stop(w->ts->loop, &w->io);
    list_remove(&w->link);
    free(w);
}

static struct watch *watch_new(struct transfers *ts, curl_socket_t fd)
{
    struct watch *w = xcalloc(1, sizeof(*w));

    w->ts = ts;
    ev_io_init(&w->io, on_socket, fd, 0);
    w->io.data = w;
    list_append(&ts->sockets, &w->link);
    curl_multi_assign(ts->multi, fd, w);
    return w;
}

static int want_socket(CURL *easy, curl_socket_t fd, int what, void *arg,
                       void *known)
{
    struct transfers *ts = arg;
    struct watch *w = known;
    int events = (what & CURL_POLL_IN ? EV_READ : 0) |
                 (what & CURL_POLL_OUT ? EV_WRITE : 0);

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (w)
            unwatch(w);
        return 0;
    }
    if (!w)
        w = watch_new(ts, fd);
    ev_io_stop(ts->loop, &w->io);
    ev_io_set(&w->io, fd, events);
    ev_io_start(ts->loop, &w->io);
    return 0;
}

static int want_timer(CURLM *multi, long ms, void *arg)
{
    struct transfers *ts = arg;

    (void)multi;
    ev_timer_stop(ts->loop, &ts->timer);
    if (ms >= 0) {
        ev_timer_set(&ts->timer, (double)ms / 1000, 0);
        ev_timer_start(ts->loop, &ts->timer);
    }
    return 0;
}

static void transfers_free(void *ptr)
{
    struct transfers *ts = ptr;

    curl_multi_cleanup(ts->multi);
    ev_timer_stop(ts->loop, &ts->timer);
    list_foreach_safe(at, &ts->sockets)
        unwatch(CONTAINER_OF(at, struct watch, link));
    free(ts);
}

struct transfers *transfers_of(struct runtime *rt)
{
    struct transfers *ts = rt->parts[PART_HTTP].ptr;

    if (ts)
        return ts;
    ts = xcalloc(1, sizeof(*ts));
    list_init(&ts->sockets);
    ts->loop = rt->loop;
    ts->multi = curl_multi_init();
    CHECK(ts->multi);
    ev_timer_init(&ts->timer, on_timer, 0, 0);
    ts->timer.data = ts;
    curl_multi_setopt(ts->multi, CURLMOPT_SOCKETFUNCTION, want_socket);
    curl_multi_setopt(ts->multi, CURLMOPT_SOCKETDATA, ts);
    curl_multi_setopt(ts->multi, CURLMOPT_TIMERFUNCTION, want_timer);
    curl_multi_setopt(ts->multi, CURLMOPT_TIMERDATA, ts);
    curl_multi_setopt(ts->multi, CURLMOPT_MAXCONNECTS, 32L);
    rt->parts[PART_HTTP].ptr = ts;
    rt->parts[PART_HTTP].free = transfers_free;
    return ts;
}

void transfer_start(struct transfers *ts, CURL *easy, transfer_fn *fn,
                    void *arg)
{
    struct running *run = xmalloc(sizeof(*run));

    *run = (struct running){fn, arg};
    curl_easy_setopt(easy, CURLOPT_PRIVATE, run);
    CHECK(curl_multi_add_handle(ts->multi, easy) == CURLM_OK);
}

void transfer_abort(struct transfers *ts, CURL *easy)
{
    struct running *run = NULL;

    curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&run);
    curl_multi_remove_handle(ts->multi, easy);
    free(run);
}
