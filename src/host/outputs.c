/*
 * What handlers with transaction = "kafka" give out: held until their position
 * passes it (stores/positions_kafka.h).
 *
 * How much is held is bounded. Much of it is written down at once; beyond FULL
 * deliveries are put off. The one that the position waits for never is: what it
 * gives out lets all the rest go.
 */
#include "host/host_priv.h"

#include "kafka/outputs.h"
#include "stores/positions_kafka.h"

#define SOON_RECORDS 1000
#define SOON_BYTES   (1u << 20)
#define FULL_RECORDS 20000
#define FULL_BYTES   (16u << 20)

/* Of the position that moves with it; false: none does, it comes from a store. */
static bool is_held(const struct delivery *d)
{
    return d->event->partition->ops->kind == SOURCE_KAFKA &&
           !d->event->parked_id && !d->event->only_handler;
}

static bool is_full(const struct host *h, const struct delivery *d)
{
    const struct partition *p = d->event->partition;
    const struct held *held =
        positions_kafka_held(h->positions, d->handler->name, p->name);

    return held &&
           (held->records >= FULL_RECORDS || held->bytes >= FULL_BYTES) &&
           pipeline_oldest(p, d->handler) != d;
}

static void save_soon_if_much(struct host *h, const struct delivery *d)
{
    const struct held *held = positions_kafka_held(
        h->positions, d->handler->name, d->event->partition->name);

    if (held && (held->records >= SOON_RECORDS || held->bytes >= SOON_BYTES))
        intake_save_soon(h->intake);
}

enum outputs_end outputs_put(struct host *h, unsigned worker, uint32_t slot,
                             uint32_t generation, struct kafka_outputs *list)
{
    const struct delivery *d =
        pipeline_running(h->pipeline, worker, slot, generation);

    if (!d || !d->handler->spec->in_kafka)
        return OUTPUTS_LATE;
    if (!is_held(d))
        return OUTPUTS_DIRECT;
    if (is_full(h, d))
        return OUTPUTS_FULL;
    positions_kafka_put(h->positions, d->handler->name,
                        d->event->partition->name, d->event->place, list);
    save_soon_if_much(h, d);
    return OUTPUTS_HELD;
}

void outputs_drop(struct host *h, const struct delivery *d)
{
    if (h->kafka && is_held(d))
        positions_kafka_drop(h->positions, d->handler->name,
                             d->event->partition->name, d->event->place);
}

void outputs_written(void *host, const struct kafka_outputs *list)
{
    struct host *h = host;

    for (size_t i = 0; i < list->n; i++)
        series_add(metrics_get(h->metrics, M_EVENTS_PUBLISHED,
                               list->at[i]->topic, "ok"),
                   1);
}

void outputs_close(struct host *h, const struct partition *p)
{
    if (h->kafka && p->ops->kind == SOURCE_KAFKA)
        positions_kafka_close(h->positions, p->name);
}
