/*
 * The parked queue at work: deliveries that go there, the lanes of a partition
 * that wait for something in it, what flags let go again, and handlers that
 * stop after a dead letter.
 */
#include "host/host_priv.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/lane.h"
#include "sources/parked_source.h"
#include "stores/flags.h"
#include "stores/parked.h"
#include "stores/tries.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "parking";

#define LET_GO_EVERY_US INT64_C(1000000)
#define LET_GO_TIMES    6 /* after a change: rows may still be on their way */

/* --- going there ----------------------------------------------------------------- */

struct putting {
    struct host *host;
    struct delivery *delivery;
};

static void on_put(void *arg, bool is_fenced)
{
    struct putting *r = arg;
    struct delivery *d = r->delivery;
    struct partition *p = d->event->partition;

    if (is_fenced) /* its position is not saved either: nothing is lost */
        intake_fenced(r->host, p);
    pipeline_parked(p->pipeline, d);
}

void parking_put(struct host *h, struct delivery *d, enum park_reason reason,
                 int64_t delay_ms, const char *flag)
{
    struct putting *r = xmalloc(sizeof(*r));
    struct parked_how how = {
        .reason = reason,
        .delay_ms = delay_ms,
        .flag = flag,
        .bucket = flag_bucket(d->lane->key),
        .epoch = d->event->partition->cursors[d->handler->index].epoch,
    };

    *r = (struct putting){h, d};
    how.has_lane = pipeline_lane(d, &how.lane);
    log_debug("parked", "handler=%s partition=%s place=%lld reason=%s",
              d->handler->name, d->event->partition->name,
              (long long)d->event->place, park_reason_name(reason));
    parked_store_put(h->parked, d, &how, on_put, r);
}

/* --- a partition opens ------------------------------------------------------------- */

struct opening {
    struct host *host;
    struct partition *p;
    parking_opened_fn *done;
};

static struct handler *handler_named(const struct host *h, const char *name)
{
    struct handler *const *all;
    size_t n = pipeline_handlers(h->pipeline, &all);

    for (size_t i = 1; i < n; i++)
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

static void on_lane(void *arg, const char *name, uint64_t lane)
{
    struct opening *o = arg;
    const struct handler *handler;

    if (!name) {
        o->p->busy--;
        o->done(o->host->intake, o->p);
        return;
    }
    handler = handler_named(o->host, name);
    if (handler)
        pipeline_block(o->p, handler, lane);
}

void parking_open(struct host *h, struct partition *p, parking_opened_fn *done)
{
    struct opening *o;

    if (!h->parked || p->ops->kind == SOURCE_REDRIVE)
        return;
    o = xmalloc(sizeof(*o));
    *o = (struct opening){h, p, done};
    p->busy++;
    parked_store_lanes(h->parked, source_kind_name(p->ops->kind), p->name,
                       on_lane, o);
}

/* --- flags ----------------------------------------------------------------------- */

/* Everything that no flag holds any more is due. */
static void let_go(struct host *h)
{
    struct buf names = {0}, percents = {0};

    array_begin(&names);
    array_begin(&percents);
    for (size_t i = 0; i < h->flags.len; i++) {
        struct flag_value v = flags_get(&h->flags, h->flags.at[i].name, NULL);

        if (v.percent >= 100)
            continue;
        array_add(&names, h->flags.at[i].name);
        array_add_number(&percents, v.percent);
    }
    array_end(&names);
    array_end(&percents);
    parked_store_let_go(h->parked, buf_text(&names), buf_text(&percents));
    buf_fini(&names);
    buf_fini(&percents);
}

void parking_flags_changed(struct host *h)
{
    h->let_go_times = LET_GO_TIMES;
    h->let_go_us = 0;
}

void parking_tick(struct host *h, int64_t now_us)
{
    if (h->let_go_times == 0 || now_us < h->let_go_us || !h->parked)
        return;
    h->let_go_times--;
    h->let_go_us = now_us + LET_GO_EVERY_US;
    let_go(h);
}

/* --- on_dead = "stop" -------------------------------------------------------------- */

static void on_stopped(void *arg, const struct err *err)
{
    char *name = arg;

    if (err)
        log_error("the flag that keeps a stopped handler was not stored",
                  "flag=%s err=" LOG_Q, name, err->msg);
    free(name);
}

/* Here at once, and by its flag on every host and after a restart. */
void parking_stop(struct host *h, struct handler *handler,
                  const struct delivery *d)
{
    struct slice id = d->event->facts[FACT_ID];
    char *name = xasprintf("handler:%s", handler->name);
    char *reason =
        xasprintf("on_dead = \"stop\": dead letter of event %.*s at %s/%lld",
                  (int)id.len, id.ptr ? id.ptr : "", d->event->partition->name,
                  (long long)d->event->place);
    struct flag_set set = {.name = name,
                           .state = "off",
                           .when_off = "hold",
                           .reason = reason,
                           .who = "moontide"};

    log_error("handler stops after a dead letter",
              "handler=%s why=" LOG_Q " next=\"moontide handlers resume %s\"",
              handler->name, reason, handler->name);
    switches_set(h, &set, on_stopped, name);
    free(reason);
}
