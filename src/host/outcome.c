/* Deliveries that end otherwise than by an ack: dead letters and skips are
 * stored before they count as settled. */
#include "host/host_priv.h"

#include "base/clock.h"
#include "base/jsontext.h"
#include "base/log.h"
#include "stores/deadletters.h"
#include "stores/deliveries.h"

static const char component[] = "outcome";

static void on_dead_stored(void *arg, enum dead_stored how)
{
    struct delivery *d = arg;
    struct pipeline *pl = d->event->partition->pipeline;

    if (how == DEAD_WAS_DONE)
        d->settling = VERDICT_ACK; /* the inbox knew it as done */
    if (how == DEAD_FENCED)
        pipeline_not_stored(pl, d);
    else
        pipeline_stored(pl, d);
}

static void on_skip_stored(void *arg, bool fenced)
{
    struct delivery *d = arg;
    struct pipeline *pl = d->event->partition->pipeline;

    if (fenced)
        pipeline_not_stored(pl, d);
    else
        pipeline_stored(pl, d);
}

/* Of the position: what the store checks before it writes. */
static int64_t epoch_of(const struct delivery *d)
{
    return d->event->partition->cursors[d->handler->index].epoch;
}

static json_t *history_json(const struct failures *f)
{
    json_t *list = json_array();
    char at[RFC3339_SIZE];

    for (int i = 0; f && i < f->n; i++) {
        json_array_append_new(
            list, json_pack("{s:i, s:s, s:s, s:o}", "attempt", f->at[i].attempt,
                            "at", clock_format(f->at[i].at_us, at), "class",
                            class_name(f->at[i].class), "error",
                            json_string_lossy(slice_of(f->at[i].error))));
    }
    return list;
}

static void store_dead(struct host *h, struct delivery *d)
{
    const struct failures *f = d->failures;
    const struct handler *handler = d->handler;
    struct dead_letter letter = {
        .handler = handler->name,
        .version = handler->spec ? handler->spec->version : "",
        .event = d->event,
        .epoch = epoch_of(d),
        .checks_inbox = handler->spec && handler->spec->is_transactional,
        .class = f->at[f->n - 1].class,
        .code = f->code,
        .error = f->error,
        .traceback = f->traceback,
        .attempts = d->attempt,
        .history = history_json(f),
        .first_failed_us = f->at[0].at_us,
        .failed_us = f->at[f->n - 1].at_us,
        .keeps_order = handler->spec && handler->spec->on_dead == ON_DEAD_PARK,
    };

    letter.has_lane = pipeline_lane(d, &letter.lane);

    log_warn(
        "dead letter",
        "handler=%s event=%.*s type=%.*s partition=%s place=%lld "
        "class=%s attempts=%d err=\"%.200s\"",
        *handler->name ? handler->name : "-", (int)d->event->facts[FACT_ID].len,
        d->event->facts[FACT_ID].ptr ? d->event->facts[FACT_ID].ptr : "",
        (int)d->event->facts[FACT_TYPE].len,
        d->event->facts[FACT_TYPE].ptr ? d->event->facts[FACT_TYPE].ptr : "",
        d->event->partition->name, (long long)d->event->place,
        class_name(letter.class), d->attempt, f->error);
    h->deadletters->ops->store(h->deadletters, &letter, on_dead_stored, d);
    json_decref(letter.history);
}

void outcome_store(struct host *h, struct delivery *d, enum verdict how)
{
    if (how == VERDICT_DEAD) {
        store_dead(h, d);
        return;
    }
    delivery_store_put(
        h->deliveries,
        &(struct delivery_row){
            .handler = d->handler->name,
            .version = d->handler->spec ? d->handler->spec->version : "",
            .event = d->event,
            .epoch = epoch_of(d),
            .outcome = "skip",
            .reason = d->failures ? d->failures->error : "",
            .attempts = d->attempt,
        },
        on_skip_stored, d);
}
