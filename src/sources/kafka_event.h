/*
 * From a Kafka record to an event: its facts, its body and what keeps them
 * alive (kafka/kept.h). For records of the group's reading and for those that
 * are read again.
 */
#ifndef MT_SOURCES_KAFKA_EVENT_H
#define MT_SOURCES_KAFKA_EVENT_H

#include "core/event.h"
#include "kafka/consumer.h"
#include "kafka/kept.h"
#include "sources/decode.h"

struct kafka_events {
    struct scan *scan;
    struct kafka_keeper *keeper; /* frees what an event's memory points to */
    enum format format;
    int64_t max_bytes; /* a larger body is undecodable */
};

/* `format`: auto, native, cloudevents or debezium. */
bool kafka_events_init(struct kafka_events *k, const char *format,
                       int64_t max_bytes, struct err *err) MUST_CHECK;
void kafka_events_fini(struct kafka_events *k);

/* Place, key, facts, body and time. Takes the record's message: event->memory
 * is a kafka_kept from now on. `part` names the event that has no id. */
void kafka_event_fill(struct kafka_events *k, struct event *event,
                      struct kafka_record *record,
                      const struct kafka_part *part);

#endif
