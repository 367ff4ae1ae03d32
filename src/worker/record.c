/*
 * Facts that the host knew come with the message; the others are looked up in
 * the envelope, which is parsed at the first touch of one of them or of the
 * payload.
 */
#include "worker/record.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

/* --- life ---------------------------------------------------------------------- */

struct record *record_take(struct runtime *rt)
{
    struct record *r;

    if (list_is_empty(&rt->spare_records)) {
        r = xcalloc(1, sizeof(*r));
        list_init(&r->link);
    } else {
        r = CONTAINER_OF(rt->spare_records.next, struct record, link);
        list_remove(&r->link);
    }
    r->holders = 1;
    return r;
}

void record_put(struct runtime *rt, struct record *r)
{
    if (--r->holders > 0)
        return;
    if (r->body.tape)
        doc_fini(&r->body);
    if (r->metadata.tape)
        doc_fini(&r->metadata);
    if (r->copy)
        free(r->copy);
    r->copy = NULL;
    r->payload = 0;
    r->is_parsed = r->is_undecodable = false;
    list_insert(rt->spare_records.next, &r->link); /* warm memory first */
}

void records_free(struct runtime *rt)
{
    while (!list_is_empty(&rt->spare_records)) {
        struct record *r =
            CONTAINER_OF(rt->spare_records.next, struct record, link);

        list_remove(&r->link);
        free(r);
    }
}

static size_t place(struct slice *s, char *to)
{
    if (!s->ptr)
        return 0;
    memcpy(to, s->ptr, s->len);
    s->ptr = to;
    return s->len;
}

void record_keep(struct record *r)
{
    struct event_msg *m = &r->m;
    size_t size = m->topic.len + m->partition.len + m->body.len;
    char *at;

    if (r->copy)
        return;
    for (int i = 0; i < FACT_COUNT; i++)
        size += m->facts[i].len;
    r->copy = at = xmalloc(size + MSG_PADDING);
    memset(at + size, 0, MSG_PADDING);
    at += place(&m->topic, at);
    at += place(&m->partition, at);
    for (int i = 0; i < FACT_COUNT; i++)
        at += place(&m->facts[i], at);
    place(&m->body, at);
    if (r->body.tape)
        r->body.text = m->body;
    if (r->metadata.tape && m->facts[FACT_METADATA].ptr)
        r->metadata.text = m->facts[FACT_METADATA];
}

/* --- parsing --------------------------------------------------------------------- */

static bool fail(struct record *r, const char *what, const char *why)
{
    snprintf(r->trouble, sizeof(r->trouble), "%s is not JSON: %s", what, why);
    return false;
}

uint32_t record_find(const struct record *r, const char *name)
{
    if (node_type(&r->body, DOC_ROOT) != NODE_OBJECT)
        return 0;
    return node_find(&r->body, DOC_ROOT, name, strlen(name));
}

bool record_parse(struct record *r, struct runtime *rt)
{
    struct err err;

    if (r->is_parsed)
        return !r->is_undecodable;
    r->is_parsed = true;
    if (r->m.form == BODY_BINARY || r->m.body.len == 0)
        return true;
    r->is_undecodable = !doc_parse(rt->parser, &r->body, r->m.body, true, &err);
    if (r->is_undecodable)
        return fail(r, "the body", err.msg);
    switch (r->m.form) {
    case BODY_PAYLOAD: r->payload = DOC_ROOT; break;
    case BODY_NATIVE: r->payload = record_find(r, "payload"); break;
    case BODY_CLOUDEVENTS: r->payload = record_find(r, "data"); break;
    case BODY_BINARY: break;
    }
    return true;
}

bool record_parse_metadata(struct record *r, struct runtime *rt)
{
    struct err err;

    return r->metadata.tape ||
           doc_parse(rt->parser, &r->metadata, r->m.facts[FACT_METADATA], false,
                     &err) ||
           fail(r, "metadata", err.msg);
}

bool record_is_envelope(const struct record *r)
{
    return r->m.form == BODY_NATIVE || r->m.form == BODY_CLOUDEVENTS;
}

struct names {
    const char *native, *cloud;
};

/* Where the facts are in the two kinds of envelope. */
static const struct names in_envelope[FACT_COUNT] = {
    [FACT_ID] = {"id", "id"},
    [FACT_TYPE] = {"eventType", "type"},
    [FACT_VERSION] = {"eventVersion", "dataversion"},
    [FACT_AGGREGATE_TYPE] = {"aggregateType", "aggregatetype"},
    [FACT_AGGREGATE_ID] = {"aggregateId", "subject"},
    [FACT_AGGREGATE_VERSION] = {"aggregateVersion", "aggregateversion"},
    [FACT_OCCURRED_AT] = {"occurredAt", "time"},
    [FACT_METADATA] = {"metadata", "metadata"},
    [FACT_TRACEPARENT] = {NULL, "traceparent"},
    [FACT_CORRELATION_ID] = {NULL, "correlationid"},
};

/* Facts that live in the metadata of a native event. */
static struct slice in_metadata(const struct record *r, enum fact fact)
{
    uint32_t metadata = record_find(r, "metadata"), node;
    const char *name =
        fact == FACT_TRACEPARENT ? "traceparent" : "correlationId";

    if (!metadata || node_type(&r->body, metadata) != NODE_OBJECT)
        return (struct slice){NULL, 0};
    node = node_find(&r->body, metadata, name, strlen(name));
    if (!node || node_type(&r->body, node) != NODE_STRING)
        return (struct slice){NULL, 0};
    return node_text(&r->body, node);
}

static struct slice from_envelope(struct record *r, enum fact fact)
{
    bool is_native = r->m.form == BODY_NATIVE;
    const char *name =
        is_native ? in_envelope[fact].native : in_envelope[fact].cloud;
    uint32_t node;

    if (!name)
        return in_metadata(r, fact);
    node = record_find(r, name);
    if (!node || node_type(&r->body, node) == NODE_NULL)
        return (struct slice){NULL, 0};
    if (node_type(&r->body, node) == NODE_STRING)
        return node_text(&r->body, node);
    return doc_locate(&r->body, node);
}

struct slice record_fact(struct record *r, struct runtime *rt, enum fact fact)
{
    const struct slice none = {NULL, 0};

    if (r->m.facts[fact].ptr)
        return r->m.facts[fact];
    if (!record_is_envelope(r))
        return none;
    if (!record_parse(r, rt) || !r->body.tape)
        return none;
    return from_envelope(r, fact);
}
