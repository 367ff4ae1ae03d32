#include "sources/kafka_event.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/scan.h"

#include <string.h>

#define PINNED (2u << 20) /* bytes read before one that waits is moved */

/* No id of its own: the place names the event, for ever. */
static struct slice place_id(struct kafka_kept *kept,
                             const struct kafka_part *part, int64_t offset)
{
    const char *id = strchr(part->source_id, '/');
    char *text = xasprintf("%s/%d/%lld", id ? id + 1 : part->source_id,
                           part->partition, (long long)offset);
    struct slice noted = kafka_kept_note(kept, slice_of(text));

    free(text);
    return noted;
}

static void fill_facts(struct kafka_events *k, struct event *event,
                       struct kafka_kept *kept)
{
    struct decoded decoded;
    struct err err;

    event->body = kept->value;
    event->form = BODY_BINARY;
    if ((int64_t)kept->value.len > k->max_bytes) {
        event->undecodable =
            xasprintf("%zu bytes are more than event.max_bytes (%lld)",
                      kept->value.len, (long long)k->max_bytes);
        return;
    }
    if (!decode_record(k->scan, k->format, kept, &decoded, &err)) {
        event->undecodable = xstrdup(err.msg);
        return;
    }
    memcpy(event->facts, decoded.facts, sizeof(event->facts));
    event->form = decoded.form;
    event->body = decoded.body;
}

/* The record's own time: reading the fact would cost more than the rest. */
static int64_t occurred_us(const struct event *event, int64_t timestamp_ms)
{
    struct slice at = event->facts[FACT_OCCURRED_AT];
    int64_t us;

    if (timestamp_ms > 0)
        return timestamp_ms * 1000;
    us = at.ptr ? clock_parse(at.ptr, at.len) : INT64_MIN;
    return us != INT64_MIN ? us : 0;
}

/* It waits for long: its bytes were copied out of the fetch buffer. */
static void on_moved(const struct kafka_kept *kept,
                     const struct kafka_move *move)
{
    struct event *event = kept->owner;

    event->key = kafka_rebase(move, event->key);
    event->body = kafka_rebase(move, event->body);
    for (int i = 0; i < FACT_COUNT; i++)
        event->facts[i] = kafka_rebase(move, event->facts[i]);
}

bool kafka_events_init(struct kafka_events *k, const char *format,
                       int64_t max_bytes, struct err *err)
{
    k->scan = scan_new();
    k->keeper = kafka_keeper_new(PINNED, on_moved);
    k->max_bytes = max_bytes;
    return format_parse(format, &k->format) ||
           err_set(err, ERR_PERMANENT,
                   "kafka.format: '%s' is not auto, native, cloudevents or "
                   "debezium",
                   format);
}

void kafka_events_fini(struct kafka_events *k)
{
    kafka_keeper_free(k->keeper);
    scan_free(k->scan);
}

void kafka_event_fill(struct kafka_events *k, struct event *event,
                      struct kafka_record *record,
                      const struct kafka_part *part)
{
    struct kafka_kept *kept = kafka_keep(k->keeper, record, event);

    event->place = record->offset;
    event->memory = kept;
    event->key = kept->key;
    fill_facts(k, event, kept);
    if (!event->facts[FACT_ID].ptr)
        event->facts[FACT_ID] = place_id(kept, part, record->offset);
    event->occurred_us = occurred_us(event, record->timestamp_ms);
}
