/*
 * What crossed the ring: an event's facts and body, shared by its deliveries
 * in this worker. It is parsed once, when the first of them touches it, and
 * copied once, when the first of them waits (design 13.13); until then the
 * bytes stay in the ring.
 */
#ifndef MT_WORKER_RECORD_H
#define MT_WORKER_RECORD_H

#include "ipc/msg.h"
#include "worker/doc.h"
#include "worker/runtime.h"

struct record {
    struct event_msg m;
    struct list link;          /* in the runtime's spare ones */
    struct doc body, metadata; /* tape NULL: not parsed */
    uint32_t payload;          /* node in body; 0: none */
    uint32_t holders;
    void *copy; /* heap copy of the bytes */
    bool is_parsed;
    bool is_undecodable; /* the body was parsed, and is no JSON */
    char trouble[160];   /* why body or metadata are none */
};

/* With one holder, the caller, who fills `m`. Its bytes are good until it
 * returns to the loop, or record_keep() was called. */
struct record *record_take(struct runtime *rt);
/* One holder less; the last one gives it back to the pool. */
void record_put(struct runtime *rt, struct record *r);
/* Copy the bytes out of the ring. */
void record_keep(struct record *r);
void records_free(struct runtime *rt); /* the pool, at the runtime's end */

/* Parse the body, if that was not done yet; false: it is no JSON. */
bool record_parse(struct record *r, struct runtime *rt);
/* The same for the metadata that came beside the body. */
bool record_parse_metadata(struct record *r, struct runtime *rt);
/* Do its facts lie in the body, where the host did not send them? */
bool record_is_envelope(const struct record *r);
/* A member of the envelope, or 0. */
uint32_t record_find(const struct record *r, const char *name);

/* A fact of the message or the envelope; absent: ptr NULL. Parses if it must;
 * an undecodable body has no more facts. */
struct slice record_fact(struct record *r, struct runtime *rt, enum fact fact);

#endif
