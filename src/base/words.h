/*
 * The words that host and worker share: facts of an event, forms of its body,
 * verdicts and classes of errors. Their texts are outward names (metrics, dead
 * letters, Lua); one line each.
 */
#ifndef MT_BASE_WORDS_H
#define MT_BASE_WORDS_H

#include <stdbool.h>

/* What is known of an event beside its body, each as text. Absent facts are
 * looked up in the envelope by the worker when a handler touches them. */
#define FACTS(X)                                                  \
    X(ID, "id")                                                   \
    X(TYPE, "type")                                               \
    X(VERSION, "version") /* digits */                            \
    X(AGGREGATE_TYPE, "aggregate_type")                           \
    X(AGGREGATE_ID, "aggregate_id")                               \
    X(AGGREGATE_VERSION, "aggregate_version") /* digits */        \
    X(OCCURRED_AT, "occurred_at")             /* RFC 3339 */      \
    X(METADATA, "metadata")                   /* a JSON object */ \
    X(TRACEPARENT, "traceparent")             /* from headers */  \
    X(CORRELATION_ID, "correlation_id")       /* from headers */

enum fact {
#define X(id, name) FACT_##id,
    FACTS(X)
#undef X
        FACT_COUNT,
};

const char *fact_name(enum fact fact);

/* What the body's bytes are. */
enum body_form {
    BODY_PAYLOAD,     /* the payload as JSON */
    BODY_NATIVE,      /* moontide's JSON envelope, payload under "payload" */
    BODY_CLOUDEVENTS, /* a structured CloudEvent, payload under "data" */
    BODY_BINARY,      /* a payload that is not JSON: event.raw only */
};
#define BODY_FORM_COUNT 4

const char *body_form_name(enum body_form form);
bool body_form_parse(const char *name, enum body_form *form);

/* What a delivery's run says. */
#define VERDICTS(X)                                                \
    X(ACK, "ack")                                                  \
    X(RETRY, "retry")                                              \
    X(DEAD, "dead")                                                \
    X(SKIP, "skip")                                                \
    X(SNOOZE, "snooze") /* later, no attempt counted */            \
    X(AGAIN, "again")   /* others were in the way in the         \
                           database: soon, and no attempt as     \
                           long as there were not many */ \
    X(BACK, "back")     /* given back without having been run */   \
    X(FENCED, "fenced") /* another owner has the partition: stop */

enum verdict {
#define X(id, name) VERDICT_##id,
    VERDICTS(X)
#undef X
        VERDICT_COUNT,
};

const char *verdict_name(enum verdict verdict);

#define ERROR_CLASSES(X)      \
    X(TRANSIENT, "transient") \
    X(PERMANENT, "permanent") \
    X(BUG, "bug")             \
    X(LIMIT, "limit")         \
    X(CRASH, "crash")         \
    X(UNDECODABLE, "undecodable")

enum error_class {
#define X(id, name) CLASS_##id,
    ERROR_CLASSES(X)
#undef X
        CLASS_COUNT,
};

const char *class_name(enum error_class class);
bool class_parse(const char *name, enum error_class *class);

#endif
