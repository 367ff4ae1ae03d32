/*
 * An event as a handler sees it: its facts from the message, its payload from
 * the body when touched. The bytes stay where they came from (the ring) until
 * event_keep() copies them, at the delivery's first wait (design 13.13).
 *
 * Events are pooled in the runtime and never freed before it, so a value that
 * a handler kept beyond its delivery finds another generation, not freed
 * memory, and raises.
 */
#ifndef MT_WORKER_EVENT_H
#define MT_WORKER_EVENT_H

#include "ipc/msg.h"
#include "worker/vm_internal.h"

struct event {
    struct list link; /* for whoever holds it */
    struct delivery_msg d;
    struct vm *vm; /* where its Lua values are; NULL: none were made */
    struct doc_owner body, metadata;
    uint64_t generation;
    uint32_t payload; /* node in body; 0: none */
    int slot;         /* of its values in the vm's REF_PAYLOADS; 0: none */
    unsigned kept;    /* a bit for each value that is there */
    void *copy;       /* heap copy of the bytes */
    bool is_parsed;
    bool is_undecodable; /* touched, and no JSON: dead, whatever is returned */
    bool has_begun;      /* its Lua ran */
    char trouble[160];   /* why it is undecodable */
    int64_t started_us;
};

struct event *event_take(struct runtime *rt, const struct delivery_msg *d);
/* Its delivery is over: Lua values of it are dead from now on. */
void event_put(struct runtime *rt, struct event *ev);
/* Forget its Lua values: it runs again, perhaps in another vm. */
void event_leave_vm(struct event *ev);
/* Copy the bytes out of the ring. */
void event_keep(struct event *ev);
void events_free(struct runtime *rt); /* the pool, at the runtime's end */

void event_open(lua_State *L, struct vm *vm);
/* The Lua object. [-0, +1] */
void event_push(lua_State *L, struct event *ev);

/* A fact of the message or the envelope; absent: ptr NULL. Parses if it must;
 * an undecodable body has no more facts. */
struct slice event_fact(struct event *ev, struct runtime *rt, enum fact fact);

#endif
