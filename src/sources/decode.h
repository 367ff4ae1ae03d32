/*
 * From a Kafka record to the facts of an event, by the shape the record has:
 * moontide's JSON envelope, CloudEvents 1.0 (binary and structured) or a
 * message of Debezium's outbox router. Headers win; where they say enough the
 * body is not looked into. No I/O.
 */
#ifndef MT_SOURCES_DECODE_H
#define MT_SOURCES_DECODE_H

#include "base/err.h"
#include "base/slice.h"
#include "base/words.h"
#include "kafka/kept.h"

struct scan;

enum format { FORMAT_AUTO, FORMAT_NATIVE, FORMAT_CLOUDEVENTS, FORMAT_DEBEZIUM };

bool format_parse(const char *name, enum format *format);

struct decoded {
    struct slice facts[FACT_COUNT];
    enum body_form form;
    struct slice body;
};

/* Slices of `out` point into `kept` and live as long. false: the record is
 * undecodable, and `err` says why in words for the dead letter. An absent id
 * is not an error: the record's place names it. */
bool decode_record(struct scan *scan, enum format format,
                   struct kafka_kept *kept, struct decoded *out,
                   struct err *err) MUST_CHECK;

#endif
