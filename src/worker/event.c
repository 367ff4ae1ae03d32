/*
 * Values made once (payload, metadata, source) are kept in a table of the vm
 * under the event's slot, so that the same field is the same value.
 */
#include "worker/event.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/scan.h"

#include <stdio.h>
#include <stdlib.h>

struct event_ref {
    struct event *event;
    uint64_t generation;
};

/* Fields in the order of how often handlers read them. */
#define FIELDS(X)                             \
    X(PAYLOAD, "payload")                     \
    X(TYPE, "type")                           \
    X(AGGREGATE_ID, "aggregate_id")           \
    X(ID, "id")                               \
    X(METADATA, "metadata")                   \
    X(AGGREGATE_TYPE, "aggregate_type")       \
    X(OCCURRED_AT, "occurred_at")             \
    X(OCCURRED_AT_US, "occurred_at_us")       \
    X(VERSION, "version")                     \
    X(AGGREGATE_VERSION, "aggregate_version") \
    X(SOURCE, "source")                       \
    X(ATTEMPT, "attempt")                     \
    X(RAW, "raw")                             \
    X(TRACEPARENT, "traceparent")             \
    X(CORRELATION_ID, "correlation_id")

enum field {
#define X(id, name) FIELD_##id,
    FIELDS(X)
#undef X
        FIELD_COUNT,
};

static const char *const field_names[] = {
#define X(id, name) name,
    FIELDS(X)
#undef X
};

_Static_assert(FIELD_COUNT <= 32, "vm->names is too small");

/* What is kept per slot in REF_PAYLOADS. */
enum kept { KEPT_PAYLOAD, KEPT_METADATA, KEPT_SOURCE, KEPT_COUNT };

/* --- life ---------------------------------------------------------------------- */

struct event *event_take(struct runtime *rt, struct record *record,
                         const struct delivery_msg *d)
{
    struct event *ev;

    if (list_is_empty(&rt->spare_events)) {
        ev = xcalloc(1, sizeof(*ev));
        list_init(&ev->link);
    } else {
        ev = CONTAINER_OF(rt->spare_events.next, struct event, link);
        list_remove(&ev->link);
    }
    ev->d = *d;
    ev->record = record;
    ev->body.doc = &record->body;
    ev->metadata.doc = &record->metadata;
    record->holders++;
    return ev;
}

/* Nobody catches an error here. Clearing a field that is there needs no memory;
 * one that is not there would be made first. */
static void clear_kept(const struct event *ev)
{
    struct vm *vm = ev->vm;
    lua_State *L = vm->L;

    if (vm->is_closing)
        return;
    vm_push_ref(L, vm, REF_PAYLOADS);
    for (int i = 0; i < KEPT_COUNT; i++) {
        if (!(ev->kept & 1u << i))
            continue;
        lua_pushnil(L);
        lua_rawseti(L, -2, ev->slot * KEPT_COUNT + i);
    }
    lua_pop(L, 1);
    vm->free_slots[vm->free_slots_len++] = ev->slot;
}

void event_leave_vm(struct event *ev)
{
    if (ev->slot)
        clear_kept(ev);
    ev->vm = NULL;
    ev->slot = 0;
    ev->kept = 0;
}

void event_put(struct runtime *rt, struct event *ev)
{
    ev->generation++;
    ev->body.generation = ev->metadata.generation = ev->generation;
    event_leave_vm(ev);
    record_put(rt, ev->record);
    ev->record = NULL;
    ev->has_begun = ev->is_undecodable = false;
    list_insert(rt->spare_events.next, &ev->link); /* warm memory first */
}

void events_free(struct runtime *rt)
{
    while (!list_is_empty(&rt->spare_events)) {
        struct event *ev =
            CONTAINER_OF(rt->spare_events.next, struct event, link);

        list_remove(&ev->link);
        free(ev);
    }
}

struct slice event_fact(struct event *ev, struct runtime *rt, enum fact fact)
{
    struct record *r = ev->record;
    struct slice found = record_fact(r, rt, fact);

    if (!found.ptr && record_is_envelope(r))
        ev->is_undecodable |= r->is_undecodable;
    return found;
}

/* --- the Lua object ------------------------------------------------------------------ */

static void push_slice(lua_State *L, struct slice s)
{
    if (s.ptr)
        lua_pushlstring(L, s.ptr, s.len);
    else
        lua_pushnil(L);
}

static int raise_undecodable(lua_State *L, struct event *ev)
{
    ev->is_undecodable = true;
    push_err(L, CLASS_UNDECODABLE, "json", "%s", ev->record->trouble);
    return lua_error(L);
}

static void need_body(lua_State *L, struct event *ev)
{
    if (!record_parse(ev->record, vm_of(L)->rt))
        raise_undecodable(L, ev);
}

static int push_fact(lua_State *L, struct event *ev, enum fact fact)
{
    struct record *r = ev->record;

    if (!r->m.facts[fact].ptr && record_is_envelope(r))
        need_body(L, ev);
    push_slice(L, record_fact(r, vm_of(L)->rt, fact));
    return 1;
}

static bool is_whole(struct slice text)
{
    size_t i = text.len > 0 && text.ptr[0] == '-';
    bool has_digits = i < text.len && text.len <= 18;

    for (; has_digits && i < text.len; i++)
        has_digits = text.ptr[i] >= '0' && text.ptr[i] <= '9';
    return has_digits;
}

/* CloudEvents may say "v2" or "1.10": what is no whole number stays text. */
static int push_number_fact(lua_State *L, struct event *ev, enum fact fact,
                            bool has_default)
{
    struct slice text = {NULL, 0};

    push_fact(L, ev, fact);
    text.ptr = lua_tolstring(L, -1, &text.len);
    if (text.ptr && is_whole(text))
        vm_push_int64(L, strtoll(text.ptr, NULL, 10));
    else if (!text.ptr && has_default)
        lua_pushinteger(L, 1);
    else
        return 1;
    lua_remove(L, -2);
    return 1;
}

static int push_time_us(lua_State *L, struct event *ev)
{
    struct slice text = event_fact(ev, vm_of(L)->rt, FACT_OCCURRED_AT);
    int64_t us = text.ptr ? clock_parse(text.ptr, text.len) : INT64_MIN;

    if (us == INT64_MIN)
        lua_pushnil(L);
    else
        vm_push_int64(L, us);
    return 1;
}

static int take_slot(struct vm *vm)
{
    if (vm->free_slots_len)
        return vm->free_slots[--vm->free_slots_len];
    if (++vm->last_slot >= vm->free_slots_cap) {
        vm->free_slots_cap = vm->free_slots_cap ? vm->free_slots_cap * 2 : 64;
        vm->free_slots =
            xrealloc(vm->free_slots, (size_t)vm->free_slots_cap * sizeof(int));
    }
    return vm->last_slot;
}

/* [-0, +1]: the kept value, or false and nothing. No kept value is nil. */
static bool push_kept(lua_State *L, struct event *ev, enum kept kept)
{
    if (!(ev->kept & 1u << kept))
        return false;
    vm_push_ref(L, vm_of(L), REF_PAYLOADS);
    lua_rawgeti(L, -1, ev->slot * KEPT_COUNT + (int)kept);
    lua_remove(L, -2);
    return true;
}

/* Keep the value on top, which stays there. */
static void keep(lua_State *L, struct event *ev, enum kept kept)
{
    struct vm *vm = vm_of(L);

    vm_push_ref(L, vm, REF_PAYLOADS);
    if (!ev->slot) {
        ev->slot = take_slot(vm);
        ev->vm = vm;
    }
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, ev->slot * KEPT_COUNT + (int)kept); /* may raise */
    ev->kept |= 1u << kept;
    lua_pop(L, 1);
}

static int push_payload(lua_State *L, struct event *ev)
{
    uint32_t payload;
    int type;

    if (push_kept(L, ev, KEPT_PAYLOAD))
        return 1;
    need_body(L, ev);
    payload = ev->record->payload;
    if (!payload) {
        lua_pushnil(L);
        return 1;
    }
    lazy_push(L, &ev->body, payload, 0);
    type = node_type(ev->body.doc, payload);
    if (type == NODE_OBJECT || type == NODE_ARRAY)
        keep(L, ev, KEPT_PAYLOAD);
    return 1;
}

static void push_parsed_metadata(lua_State *L, struct event *ev)
{
    if (!record_parse_metadata(ev->record, vm_of(L)->rt))
        raise_undecodable(L, ev);
    if (node_type(ev->metadata.doc, DOC_ROOT) == NODE_OBJECT)
        lazy_push(L, &ev->metadata, DOC_ROOT, 0);
    else
        lua_newtable(L); /* what is no object has no names to ask for */
}

/* CloudEvents: all extension attributes, with our names where they have one. */
static void push_extensions(lua_State *L, struct event *ev)
{
    static const char *const ours[][2] = {
        {"correlationid", "correlationId"},
        {"causationid", "causationId"},
        {"actorid", "actorId"},
        {"sourcemodule", "sourceModule"},
        {"relatesto", "relatesTo"},
    };
    static const char *const attributes[] = {"id",
                                             "type",
                                             "source",
                                             "specversion",
                                             "subject",
                                             "time",
                                             "data",
                                             "data_base64",
                                             "datacontenttype",
                                             "dataschema",
                                             "dataversion",
                                             "aggregatetype",
                                             "aggregateversion",
                                             "metadata"};
    const struct doc *doc = ev->body.doc;
    uint32_t at = DOC_ROOT + 1;

    lua_newtable(L);
    while (!node_is_end(doc, at)) {
        struct slice name = node_text(doc, at);
        bool is_attribute = false;

        for (size_t i = 0; i < sizeof(attributes) / sizeof(*attributes); i++)
            is_attribute |= slice_is(name, attributes[i]);
        for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
            if (slice_is(name, ours[i][0]))
                name = slice_of(ours[i][1]);
        at++;
        if (!is_attribute) {
            lua_pushlstring(L, name.ptr, name.len);
            lazy_push(L, &ev->body, at, 0);
            lua_rawset(L, -3);
        }
        at = node_after(doc, at);
    }
}

static int push_metadata(lua_State *L, struct event *ev)
{
    const struct record *r = ev->record;
    uint32_t node = 0;

    if (push_kept(L, ev, KEPT_METADATA))
        return 1;
    if (r->m.facts[FACT_METADATA].ptr) {
        push_parsed_metadata(L, ev);
    } else {
        if (record_is_envelope(r)) {
            need_body(L, ev);
            node = r->body.tape ? record_find(r, "metadata") : 0;
        }
        if (node && node_type(&r->body, node) == NODE_OBJECT)
            lazy_push(L, &ev->body, node, 0);
        else if (r->m.form == BODY_CLOUDEVENTS && r->body.tape &&
                 node_type(&r->body, DOC_ROOT) == NODE_OBJECT)
            push_extensions(L, ev);
        else
            lua_newtable(L);
    }
    keep(L, ev, KEPT_METADATA);
    return 1;
}

static int push_source(lua_State *L, struct event *ev)
{
    const struct event_msg *m = &ev->record->m;
    struct slice partition = m->partition;
    const char *slash;

    if (push_kept(L, ev, KEPT_SOURCE))
        return 1;
    lua_createtable(L, 0, 4);
    lua_pushstring(L, source_kind_name(m->source));
    lua_setfield(L, -2, "kind");
    if (m->source == SOURCE_KAFKA) {
        push_slice(L, m->topic);
        lua_setfield(L, -2, "topic");
        slash = memrchr(partition.ptr, '/', partition.len);
        if (slash)
            partition = (struct slice){
                slash + 1, (size_t)(partition.ptr + partition.len - slash - 1)};
        lua_pushlstring(L, partition.ptr, partition.len);
        lua_pushinteger(L, (int)lua_tointeger(L, -1));
        lua_remove(L, -2);
        lua_setfield(L, -2, "partition");
        vm_push_int64(L, m->place);
        lua_setfield(L, -2, "offset");
    } else {
        push_slice(L, m->topic);
        lua_setfield(L, -2, "table");
        vm_push_int64(L, m->place);
        lua_setfield(L, -2, "seq");
    }
    keep(L, ev, KEPT_SOURCE);
    return 1;
}

_Static_assert(MSG_PADDING >= SCAN_PADDING, "a body in the ring is not padded");

/* The payload's own bytes; of a body that is no JSON, all of it. An envelope is
 * searched for them, not decoded; what that cannot answer, decoding does. */
static int push_raw(lua_State *L, struct event *ev)
{
    static const char *const native[] = {"payload"}, *const cloud[] = {"data"};
    struct record *r = ev->record;
    struct slice found;
    struct err err;

    if (r->m.form == BODY_PAYLOAD || r->m.form == BODY_BINARY) {
        push_slice(L, r->m.body);
        return 1;
    }
    if (!r->is_parsed &&
        scan_members(vm_of(L)->rt->scan, r->m.body, true,
                     r->m.form == BODY_NATIVE ? native : cloud, 1, &found,
                     &err) &&
        (scan_starts_with(found, '{') || scan_starts_with(found, '['))) {
        push_slice(L, found);
        return 1;
    }
    need_body(L, ev);
    if (r->payload)
        push_slice(L, doc_locate(&r->body, r->payload));
    else
        lua_pushnil(L);
    return 1;
}

static int push_event_field(lua_State *L, struct event *ev, enum field field)
{
    switch (field) {
    case FIELD_PAYLOAD: return push_payload(L, ev);
    case FIELD_TYPE: return push_fact(L, ev, FACT_TYPE);
    case FIELD_AGGREGATE_ID: return push_fact(L, ev, FACT_AGGREGATE_ID);
    case FIELD_ID: return push_fact(L, ev, FACT_ID);
    case FIELD_METADATA: return push_metadata(L, ev);
    case FIELD_AGGREGATE_TYPE: return push_fact(L, ev, FACT_AGGREGATE_TYPE);
    case FIELD_OCCURRED_AT: return push_fact(L, ev, FACT_OCCURRED_AT);
    case FIELD_OCCURRED_AT_US: return push_time_us(L, ev);
    case FIELD_VERSION: return push_number_fact(L, ev, FACT_VERSION, true);
    case FIELD_AGGREGATE_VERSION:
        return push_number_fact(L, ev, FACT_AGGREGATE_VERSION, false);
    case FIELD_SOURCE: return push_source(L, ev);
    case FIELD_ATTEMPT:
        lua_pushinteger(L, (lua_Integer)ev->d.attempt);
        return 1;
    case FIELD_RAW: return push_raw(L, ev);
    case FIELD_TRACEPARENT: return push_fact(L, ev, FACT_TRACEPARENT);
    case FIELD_CORRELATION_ID: return push_fact(L, ev, FACT_CORRELATION_ID);
    case FIELD_COUNT: break;
    }
    lua_pushnil(L);
    return 1;
}

static struct event *live_event(lua_State *L, int index)
{
    struct event_ref *ref = lua_touserdata(L, index);

    if (ref->generation != ref->event->generation)
        luaL_error(L, "the delivery of this event is over; keep what you need "
                      "of it in values of your own");
    return ref->event;
}

static int l_index(lua_State *L)
{
    const struct vm *vm = vm_of(L);
    struct event *ev = live_event(L, 1);
    const char *name;

    if (lua_type(L, 2) != LUA_TSTRING)
        return 0;
    name = lua_tostring(L, 2);
    for (int i = 0; i < FIELD_COUNT; i++)
        if (name == vm->names[i]) /* interned: same text, same address */
            return push_event_field(L, ev, (enum field)i);
    return 0;
}

static int l_newindex(lua_State *L)
{
    return luaL_error(L, "an event is a fact and cannot be changed (its "
                         "payload can, as a copy of your own)");
}

/* For pairs(event): a plain table of all fields that are there. */
static int l_fields(lua_State *L)
{
    struct event *ev = live_event(L, 1);

    lua_newtable(L);
    for (int i = 0; i < FIELD_COUNT; i++) {
        push_event_field(L, ev, (enum field)i);
        lua_setfield(L, -2, field_names[i]);
    }
    return 1;
}

void event_push(lua_State *L, struct event *ev)
{
    struct event_ref *ref = lua_newuserdata(L, sizeof(*ref));

    *ref = (struct event_ref){ev, ev->generation};
    vm_push_ref(L, vm_of(L), REF_EVENT_MT);
    lua_setmetatable(L, -2);
}

void event_open(lua_State *L, struct vm *vm)
{
    static const luaL_Reg meta[] = {{"__index", l_index},
                                    {"__newindex", l_newindex},
                                    {"__fields", l_fields},
                                    {NULL, NULL}};

    lua_newtable(L);
    luaL_setfuncs(L, meta, 0);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    /* The metatable anchors the names too. */
    lua_newtable(L);
    for (int i = 0; i < FIELD_COUNT; i++) {
        lua_pushstring(L, field_names[i]);
        vm->names[i] = lua_tostring(L, -1);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "names");
    vm->event_mt = lua_topointer(L, -1);
    vm_set_ref(vm, REF_EVENT_MT);
    lua_newtable(L);
    vm_set_ref(vm, REF_PAYLOADS);
}
