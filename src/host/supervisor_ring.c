/* What is said to a worker, and what it says: its two rings. */
#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/supervisor_priv.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "supervisor";

#define RELEASE_EVERY 64 /* messages between two releases */
#define VMS_MAX       4096

/* --- sending -------------------------------------------------------------------- */

/* A message that found the ring full, or must go before deliveries. */
struct parcel {
    struct list link;
    enum msg_kind kind;
    uint32_t id;
    bool ok;
    char *text;
    size_t len;
};

static void parcel_free(struct parcel *p)
{
    list_remove(&p->link);
    free(p->text);
    free(p);
}

void worker_queue(struct worker *w, enum msg_kind kind, uint32_t id, bool ok,
                  struct slice text)
{
    struct parcel *p = xcalloc(1, sizeof(*p));

    p->kind = kind;
    p->id = id;
    p->ok = ok;
    p->text = xstrndup(text.ptr ? text.ptr : "", text.len);
    p->len = text.len;
    list_append(&w->queue, &p->link);
}

void worker_drop_queue(struct worker *w)
{
    list_foreach_safe(item, &w->queue)
        parcel_free(CONTAINER_OF(item, struct parcel, link));
    buf_fini(&w->call_parts);
}

/* False when some are left, because the ring is full. */
static bool send_queue(struct worker *w)
{
    list_foreach_safe(item, &w->queue) {
        struct parcel *p = CONTAINER_OF(item, struct parcel, link);

        if (!write_text(&w->down, p->kind, p->id, p->ok,
                        (struct slice){p->text, p->len}))
            return false;
        w->is_dirty = true;
        parcel_free(p);
    }
    return true;
}

bool worker_deliver(struct worker *w, const struct event_msg *ev,
                    const struct delivery_msg *to, size_t n)
{
    if (w->state != WORKER_UP || !send_queue(w) ||
        !write_deliver(&w->down, ev, to, n)) {
        ring_publish(&w->down);
        if (w->state == WORKER_UP)
            ring_writer_wait(&w->down);
        return false;
    }
    w->is_dirty = true;
    return true;
}

bool worker_flush(struct worker *w)
{
    if (!send_queue(w))
        ring_writer_wait(&w->down);
    if (w->is_dirty) {
        w->is_dirty = false;
        ring_publish(&w->down);
        if (ring_writer_should_wake(&w->down))
            channel_wake(w->channel.wake_worker_fd);
    }
    return !ring_reader_sleep(&w->up);
}

/* --- loading -------------------------------------------------------------------- */

static void vm_add(uint32_t **vms, size_t *n, uint32_t vm)
{
    *vms = xrealloc(*vms, (*n + 1) * sizeof(vm));
    (*vms)[(*n)++] = vm;
}

/* Binary search needs them ascending, as they mostly come. */
static void vm_sort_in(uint32_t **vms, size_t *n, uint32_t vm)
{
    size_t at;

    vm_add(vms, n, vm);
    for (at = *n - 1; at > 0 && (*vms)[at - 1] > vm; at--)
        (*vms)[at] = (*vms)[at - 1];
    (*vms)[at] = vm;
}

static int compare_vms(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* The others keep their order; false when it is not there. */
static bool vm_remove(uint32_t *vms, size_t *n, uint32_t vm)
{
    for (size_t i = 0; i < *n; i++)
        if (vms[i] == vm) {
            memmove(&vms[i], &vms[i + 1], (--*n - i) * sizeof(vm));
            return true;
        }
    return false;
}

void worker_load(struct worker *w, const struct bundle *b)
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
    worker_queue(w, MSG_LOAD, b->vm, true, slice_of(text));
    vm_add(&w->asked, &w->n_asked, b->vm);
    free(text);
    json_decref(json);
}

void worker_load_all(struct worker *w)
{
    const struct bundle *bundles[VMS_MAX];
    size_t n = catalogue_bundles(w->host->catalogue, bundles, VMS_MAX);

    w->n_loaded = w->n_asked = 0;
    for (size_t i = 0; i < n; i++)
        worker_load(w, bundles[i]);
    w->loading = n;
}

bool worker_has_loaded(const struct worker *w, uint32_t vm)
{
    return w->n_loaded > 0 && bsearch(&vm, w->loaded, w->n_loaded, sizeof(vm),
                                      compare_vms) != NULL;
}

/* --- reading -------------------------------------------------------------------- */

/* A running version that does not load (its init needs something that is
 * away) leaves the worker useless: it is started again, later and later. False
 * when it was not asked for. */
static bool on_loaded(struct worker *w, uint32_t vm, bool ok, struct slice text)
{
    if (!vm_remove(w->asked, &w->n_asked, vm))
        return false;
    if (ok)
        vm_sort_in(&w->loaded, &w->n_loaded, vm);
    if (w->loading > 0)
        w->loading--;
    if (!catalogue_loaded(w->host->catalogue, vm, ok, text) && !ok) {
        log_error("a worker cannot load a running version",
                  "worker=%u err=\"%.*s\"", w->index, (int)text.len, text.ptr);
        kill(w->pid, SIGKILL);
        return true;
    }
    worker_come_up(w);
    return true;
}

static void on_unloaded(struct worker *w, uint32_t vm)
{
    vm_remove(w->loaded, &w->n_loaded, vm);
    vm_remove(w->asked, &w->n_asked, vm);
}

/* False when it is too much, or a part of another call came in between. */
static bool on_call(struct worker *w, uint32_t id, bool is_last,
                    struct slice text)
{
    struct buf *parts = &w->call_parts;

    if (parts->len > 0 &&
        (id != w->call_id || parts->len + text.len > CALL_MAX))
        return false;
    if (is_last && parts->len == 0) {
        host_call(w->host, w->index, w->serial, id, text);
        return true;
    }
    w->call_id = id;
    buf_add(parts, text.ptr, text.len);
    if (is_last) {
        host_call(w->host, w->index, w->serial, id,
                  (struct slice){parts->ptr, parts->len});
        buf_fini(parts);
    }
    return true;
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
        worker_come_up(w);
        return true;
    case MSG_LOADED: return on_loaded(w, id, ok, text);
    case MSG_UNLOADED: on_unloaded(w, id); return true;
    case MSG_CALL: return on_call(w, id, ok, text);
    case MSG_METRICS: collect_worker_news(h, w->index, text); return true;
    default: return false;
    }
}

bool worker_read(struct worker *w)
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
