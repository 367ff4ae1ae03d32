/*
 * A delivery here, and the event as its handler sees it: a record that other
 * handlers may share, and Lua values of its own, made when touched.
 *
 * Events are pooled in the runtime and never freed before it, so a value that
 * a handler kept beyond its delivery finds another generation, not freed
 * memory, and raises.
 */
#ifndef MT_WORKER_EVENT_H
#define MT_WORKER_EVENT_H

#include "worker/record.h"
#include "worker/vm_internal.h"

struct event {
    struct list link; /* for whoever holds it */
    struct delivery_msg d;
    struct record *record;
    struct vm *vm; /* where its Lua values are; NULL: none were made */
    struct doc_owner body, metadata; /* of the record, for this delivery */
    uint64_t generation;
    int slot;       /* of its values in the vm's REF_PAYLOADS; 0: none */
    unsigned kept;  /* a bit for each value that is there */
    bool has_begun; /* its Lua ran */
    bool
        is_undecodable; /* touched what is no JSON: dead, whatever is returned */
    int64_t started_us;
};

/* Holds the record, too. */
struct event *event_take(struct runtime *rt, struct record *record,
                         const struct delivery_msg *d);
/* Its delivery is over: Lua values of it are dead from now on. */
void event_put(struct runtime *rt, struct event *ev);
/* Forget its Lua values: it runs again, perhaps in another vm. */
void event_leave_vm(struct event *ev);
void events_free(struct runtime *rt); /* the pool, at the runtime's end */

void event_open(lua_State *L, struct vm *vm);
/* The Lua object. [-0, +1] */
void event_push(lua_State *L, struct event *ev);

/* A fact of its record; absent: ptr NULL. */
struct slice event_fact(struct event *ev, struct runtime *rt, enum fact fact);

#endif
