/*
 * JSON values in Lua.
 *
 * An object is a userdata that names a node of a document: a field is looked
 * up when it is touched. Scalars are made anew each time; objects and arrays
 * are kept in an overlay (the userdata's environment table), so that the same
 * field is the same value and changes are not lost. Arrays become real tables
 * whole, because `#` and ipairs have no metamethods here.
 *
 * The overlay: name → value; under keys that no script has, the names that were
 * added, in their order, and what keeps the document alive.
 */
#include "worker/vm_internal.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>

enum { ARRAY_MARK = 1, ARRAY_LEN, ARRAY_ORIGIN };

#define MAX_EXACT 9007199254740992.0 /* 2^53 */

static const char removed; /* stands for a field that was set to nil */
static const char order_key, anchor_key; /* of an overlay: light userdata */

/* --- numbers ----------------------------------------------------------------- */

static void push_wide(lua_State *L, enum vm_ref maker, uint64_t value)
{
    vm_push_ref(L, vm_of(L), maker);
    lua_pushnumber(L, (double)(value >> 32));
    lua_pushnumber(L, (double)(value & 0xffffffffu));
    lua_call(L, 2, 1);
}

void vm_push_int64(lua_State *L, int64_t value)
{
    if (value >= -(int64_t)MAX_EXACT && value <= (int64_t)MAX_EXACT)
        lua_pushnumber(L, (double)value);
    else
        push_wide(L, REF_MAKE_INT64, (uint64_t)value);
}

static void push_uint64(lua_State *L, uint64_t value)
{
    push_wide(L, REF_MAKE_UINT64, value);
}

/* LuaJIT's cdata: the id of its C type lies right before the value. The ids of
 * int64_t and uint64_t were read from samples when the vm was made. */
static uint16_t ctype_of(const void *cdata)
{
    uint16_t id;

    memcpy(&id, (const char *)cdata - 6, sizeof(id));
    return id;
}

/* 'i' or 'u' when the value is one of LuaJIT's 64-bit integers, else 0. */
static int wide_kind(const struct vm *vm, lua_State *L, int index,
                     uint64_t *value)
{
    const void *at;
    uint16_t id;

    if (lua_type(L, index) != TYPE_CDATA)
        return 0;
    at = lua_topointer(L, index);
    id = ctype_of(at);
    if (id != vm->int64_id && id != vm->uint64_id)
        return 0;
    memcpy(value, at, sizeof(*value));
    return id == vm->int64_id ? 'i' : 'u';
}

bool vm_to_int64(lua_State *L, int index, int64_t *value)
{
    uint64_t wide;
    int kind = wide_kind(vm_of(L), L, index, &wide);

    if (!kind || (kind == 'u' && wide > INT64_MAX))
        return false;
    *value = (int64_t)wide;
    return true;
}

int lazy_calibrate(lua_State *L)
{
    struct vm *vm = vm_of(L);

    vm->int64_id = ctype_of(lua_topointer(L, 1));
    vm->uint64_id = ctype_of(lua_topointer(L, 2));
    if (vm->int64_id == vm->uint64_id)
        return luaL_error(L, "this LuaJIT lays out cdata in an unknown way");
    return 0;
}

/* --- small questions ---------------------------------------------------------- */

bool has_metatable(lua_State *L, int index, const void *mt)
{
    bool is_same;

    if (!lua_getmetatable(L, index))
        return false;
    is_same = lua_topointer(L, -1) == mt;
    lua_pop(L, 1);
    return is_same;
}

bool is_lazy(const struct vm *vm, lua_State *L, int index)
{
    return lua_type(L, index) == LUA_TUSERDATA &&
           has_metatable(L, index, vm->lazy_mt);
}

bool vm_is_null(lua_State *L, int index)
{
    return lua_type(L, index) == LUA_TLIGHTUSERDATA &&
           lua_touserdata(L, index) == NULL;
}

/* Length kept in an array's own metatable, or -1 when it is no array. */
static long array_len(lua_State *L, int index)
{
    long len = -1;

    if (lua_type(L, index) != LUA_TTABLE || !lua_getmetatable(L, index))
        return -1;
    lua_rawgeti(L, -1, ARRAY_MARK);
    if (lua_touserdata(L, -1) == &removed) {
        lua_rawgeti(L, -2, ARRAY_LEN);
        len = (long)lua_tointeger(L, -1);
        lua_pop(L, 1);
    }
    lua_pop(L, 2);
    return len;
}

bool vm_is_array(lua_State *L, int index)
{
    return array_len(L, index) >= 0;
}

/* --- making values ------------------------------------------------------------- */

static struct lazy *to_lazy(lua_State *L, int index)
{
    return lua_touserdata(L, index);
}

struct lazy *lazy_live(lua_State *L, int index)
{
    struct lazy *z = to_lazy(L, index);

    if (z->generation != z->owner->generation)
        luaL_error(L, "this value belongs to an event whose delivery is over; "
                      "keep a copy: json.decode(json.encode(value))");
    return z;
}

static void push_key(lua_State *L, const char *key)
{
    lua_pushlightuserdata(L, (void *)(uintptr_t)key);
}

static void push_object(lua_State *L, struct doc_owner *owner, uint32_t node,
                        int anchor)
{
    struct lazy *z = lua_newuserdata(L, sizeof(*z));

    *z = (struct lazy){
        .owner = owner, .generation = owner->generation, .node = node};
    vm_push_ref(L, vm_of(L), REF_LAZY_MT);
    lua_setmetatable(L, -2);
    if (!anchor)
        return;
    lua_createtable(L, 0, 2);
    push_key(L, &anchor_key);
    lua_pushvalue(L, anchor);
    lua_rawset(L, -3);
    lua_setfenv(L, -2);
    z->has_overlay = true;
}

/* An array that holds nulls knows its length, one that holds decimal numbers
 * where it came from; others share one metatable. */
static void set_array_metatable(lua_State *L, struct doc_owner *owner,
                                uint32_t node, int anchor, int len,
                                bool has_nulls, bool has_decimals)
{
    if (!has_nulls && !has_decimals) {
        vm_push_ref(L, vm_of(L), REF_ARRAY_MT);
        lua_setmetatable(L, -2);
        return;
    }
    lua_createtable(L, 3, 1);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_pushlightuserdata(L, (void *)(uintptr_t)&removed);
    lua_rawseti(L, -2, ARRAY_MARK);
    lua_pushinteger(L, has_nulls ? len : 0);
    lua_rawseti(L, -2, ARRAY_LEN);
    if (has_decimals) {
        push_object(L, owner, node, anchor);
        lua_rawseti(L, -2, ARRAY_ORIGIN);
    }
    lua_setmetatable(L, -2);
}

static void push_array(lua_State *L, struct doc_owner *owner, uint32_t node,
                       int anchor)
{
    uint32_t at = node + 1;
    bool has_nulls = false, has_decimals = false;
    int len = 0;

    luaL_checkstack(L, 8, "too deeply nested");
    lua_createtable(L, (int)((owner->doc->tape[node] >> 32) & 0xffffff), 0);
    for (; !node_is_end(owner->doc, at); at = node_after(owner->doc, at)) {
        int type = node_type(owner->doc, at);

        len++;
        has_nulls |= type == NODE_NULL;
        has_decimals |= type == NODE_DOUBLE;
        lazy_push(L, owner, at, anchor);
        lua_rawseti(L, -2, len);
    }
    set_array_metatable(L, owner, node, anchor, len, has_nulls, has_decimals);
}

void lazy_push(lua_State *L, struct doc_owner *owner, uint32_t node, int anchor)
{
    const struct doc *doc = owner->doc;
    struct slice text;

    switch (node_type(doc, node)) {
    case NODE_STRING:
        text = node_text(doc, node);
        lua_pushlstring(L, text.ptr, text.len);
        break;
    case NODE_INT: vm_push_int64(L, node_int(doc, node)); break;
    case NODE_UINT: push_uint64(L, (uint64_t)node_int(doc, node)); break;
    case NODE_DOUBLE: lua_pushnumber(L, node_double(doc, node)); break;
    case NODE_TRUE:
    case NODE_FALSE:
        lua_pushboolean(L, node_type(doc, node) == NODE_TRUE);
        break;
    case NODE_OBJECT: push_object(L, owner, node, anchor); break;
    case NODE_ARRAY: push_array(L, owner, node, anchor); break;
    default: lua_pushnil(L);
    }
}

/* --- overlay ---------------------------------------------------------------------- */

/* [-0, +1] the overlay of the lazy at `index`, made when there is none. */
static void push_overlay(lua_State *L, int index)
{
    struct lazy *z = to_lazy(L, index);

    if (!z->has_overlay) {
        lua_createtable(L, 0, 2);
        lua_setfenv(L, index);
        z->has_overlay = true;
    }
    lua_getfenv(L, index);
}

/* [-0, +1] what the overlay has for the key at `key`: nil when nothing. */
static void push_overlaid(lua_State *L, int index, int key)
{
    push_overlay(L, index);
    lua_pushvalue(L, key);
    lua_rawget(L, -2);
    lua_replace(L, -2);
}

/* Put the value on top under the key at `key`, leaving it there. */
static void keep_child(lua_State *L, int index, int key)
{
    push_overlay(L, index);
    lua_pushvalue(L, key);
    lua_pushvalue(L, -3);
    lua_rawset(L, -3);
    lua_pop(L, 1);
}

/* [-0, +1] or 0: what keeps the document alive. */
static int push_anchor(lua_State *L, int index)
{
    if (!to_lazy(L, index)->has_overlay)
        return 0;
    lua_getfenv(L, index);
    push_key(L, &anchor_key);
    lua_rawget(L, -2);
    lua_replace(L, -2);
    if (!lua_isnil(L, -1))
        return lua_gettop(L);
    lua_pop(L, 1);
    return 0;
}

/* The value of a field of the document itself, kept when it is a container.
 * `index` and `key` are absolute. [-0, +1] */
static void push_field(lua_State *L, int index, int key, uint32_t node)
{
    struct lazy *z = to_lazy(L, index);
    int type = node_type(z->owner->doc, node);
    int anchor;

    if (type != NODE_OBJECT && type != NODE_ARRAY) {
        lazy_push(L, z->owner, node, 0);
        return;
    }
    anchor = push_anchor(L, index);
    lazy_push(L, z->owner, node, anchor);
    if (anchor)
        lua_remove(L, anchor);
    keep_child(L, index, key);
}

/* Turn a value of the overlay into what reading gives. */
static void read_overlaid(lua_State *L)
{
    if (lua_type(L, -1) == LUA_TLIGHTUSERDATA) {
        lua_pop(L, 1);
        lua_pushnil(L);
    }
}

/* [-0, +1] */
void lazy_get(lua_State *L, int index, int key)
{
    struct lazy *z = lazy_live(L, index);
    const char *name;
    uint32_t node;
    size_t len;

    if (z->has_overlay) {
        push_overlaid(L, index, key);
        if (!lua_isnil(L, -1)) {
            read_overlaid(L);
            return;
        }
        lua_pop(L, 1);
    }
    if (lua_type(L, key) != LUA_TSTRING) {
        lua_pushnil(L);
        return;
    }
    name = lua_tolstring(L, key, &len);
    node = node_find(z->owner->doc, z->node, name, len);
    if (node)
        push_field(L, index, key, node);
    else
        lua_pushnil(L);
}

static int l_index(lua_State *L)
{
    lazy_get(L, 1, 2);
    return 1;
}

static void remember_order(lua_State *L)
{
    struct lazy *z = to_lazy(L, 1);
    const char *name;
    size_t len;

    push_overlaid(L, 1, 2);
    if (!lua_isnil(L, -1)) {
        lua_pop(L, 1);
        return; /* known already */
    }
    lua_pop(L, 1);
    if (lua_type(L, 2) == LUA_TSTRING) {
        name = lua_tolstring(L, 2, &len);
        if (node_find(z->owner->doc, z->node, name, len))
            return;
    }
    push_overlay(L, 1);
    push_key(L, &order_key);
    lua_rawget(L, -2);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_newtable(L);
        push_key(L, &order_key);
        lua_pushvalue(L, -2);
        lua_rawset(L, -4);
    }
    lua_pushvalue(L, 2);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_pop(L, 2);
}

int lazy_newindex(lua_State *L)
{
    struct lazy *z = lazy_live(L, 1);

    luaL_argcheck(L, !lua_isnil(L, 2), 2, "a name is needed");
    remember_order(L);
    z->is_changed = true;
    if (lua_isnil(L, 3))
        lua_pushlightuserdata(L, (void *)(uintptr_t)&removed);
    else
        lua_pushvalue(L, 3);
    keep_child(L, 1, 2);
    return 0;
}

static int l_len(lua_State *L)
{
    lua_pushinteger(L, 0);
    return 1;
}

/* --- unchanged? --------------------------------------------------------------------- */

static bool same(lua_State *L, int index, struct doc_owner *owner,
                 uint32_t node, int depth);

static bool same_lazy(lua_State *L, int index, int depth)
{
    struct lazy *z = to_lazy(L, index);
    const struct doc *doc = z->owner->doc;
    bool is_same = true;

    if (z->is_changed)
        return false;
    if (!z->has_overlay || depth > 200)
        return depth <= 200;
    lua_getfenv(L, index);
    lua_pushnil(L);
    while (is_same && lua_next(L, -2)) {
        size_t len;
        const char *name = lua_tolstring(L, -2, &len);

        is_same = !name || /* the anchor */
                  same(L, lua_gettop(L), z->owner,
                       node_find(doc, z->node, name, len), depth + 1);
        lua_pop(L, 1);
    }
    lua_pop(L, is_same ? 1 : 2);
    return is_same;
}

static bool same_array(lua_State *L, int index, struct doc_owner *owner,
                       uint32_t node, int depth)
{
    const struct doc *doc = owner->doc;
    uint32_t at = node + 1;
    long n = array_len(L, index);
    size_t len = lua_objlen(L, index);
    bool is_longer;
    size_t i = 1;

    if (n < 0)
        return false;
    for (; !node_is_end(doc, at); at = node_after(doc, at), i++) {
        bool is_same;

        lua_rawgeti(L, index, (int)i);
        is_same = same(L, lua_gettop(L), owner, at, depth + 1);
        lua_pop(L, 1);
        if (!is_same)
            return false;
    }
    if (n == 0)
        return len == i - 1;
    /* The border that objlen finds may be before a null. */
    lua_rawgeti(L, index, (int)i);
    is_longer = !lua_isnil(L, -1);
    lua_pop(L, 1);
    return !is_longer && len <= i - 1 && (size_t)n == i - 1;
}

static bool same_number(lua_State *L, int index, const struct doc *doc,
                        uint32_t node)
{
    int type = node_type(doc, node);
    uint64_t wide;

    if (lua_type(L, index) == LUA_TNUMBER) {
        double d = lua_tonumber(L, index);

        if (type == NODE_DOUBLE)
            return node_double(doc, node) == d;
        return type == NODE_INT && (double)node_int(doc, node) == d &&
               fabs(d) <= MAX_EXACT;
    }
    return wide_kind(vm_of(L), L, index, &wide) &&
           (type == NODE_INT || type == NODE_UINT) &&
           (uint64_t)node_int(doc, node) == wide;
}

/* Is the Lua value what the node says? */
static bool same(lua_State *L, int index, struct doc_owner *owner,
                 uint32_t node, int depth)
{
    const struct doc *doc = owner->doc;
    struct slice text;
    size_t len;
    const char *s;

    if (!node || depth > 200 || !lua_checkstack(L, 8))
        return false;
    switch (node_type(doc, node)) {
    case NODE_OBJECT:
        return is_lazy(vm_of(L), L, index) &&
               to_lazy(L, index)->owner == owner &&
               to_lazy(L, index)->node == node && same_lazy(L, index, depth);
    case NODE_ARRAY:
        return lua_type(L, index) == LUA_TTABLE &&
               same_array(L, index, owner, node, depth);
    case NODE_STRING:
        if (lua_type(L, index) != LUA_TSTRING)
            return false;
        s = lua_tolstring(L, index, &len);
        text = node_text(doc, node);
        return slice_eq(text, (struct slice){s, len});
    case NODE_TRUE:
    case NODE_FALSE:
        return lua_isboolean(L, index) &&
               lua_toboolean(L, index) == (node_type(doc, node) == NODE_TRUE);
    case NODE_NULL: return lua_isnil(L, index) || vm_is_null(L, index);
    default: return same_number(L, index, doc, node);
    }
}

bool lazy_unchanged(lua_State *L, int index)
{
    return same_lazy(L, index, 0);
}

/* --- for the writer (json.c) ---------------------------------------------------- */

bool lazy_overlaid_key(lua_State *L, int index, int key)
{
    if (!to_lazy(L, index)->has_overlay)
        return false;
    push_overlaid(L, index, key);
    if (!lua_isnil(L, -1))
        return true;
    lua_pop(L, 1);
    return false;
}

bool lazy_overlaid(lua_State *L, int index, struct slice name)
{
    bool found;

    lua_pushlstring(L, name.ptr, name.len);
    found = lazy_overlaid_key(L, index, lua_gettop(L));
    lua_remove(L, found ? -2 : -1);
    return found;
}

bool lazy_is_removed(lua_State *L, int index)
{
    return lua_type(L, index) == LUA_TLIGHTUSERDATA &&
           lua_touserdata(L, index) == &removed;
}

void lazy_added(lua_State *L, int index)
{
    if (!to_lazy(L, index)->has_overlay) {
        lua_pushnil(L);
        return;
    }
    lua_getfenv(L, index);
    push_key(L, &order_key);
    lua_rawget(L, -2);
    lua_replace(L, -2);
}

long array_kept_len(lua_State *L, int index)
{
    return array_len(L, index);
}

bool array_origin(lua_State *L, int index)
{
    if (array_len(L, index) < 0)
        return false;
    lua_getmetatable(L, index);
    lua_rawgeti(L, -1, ARRAY_ORIGIN);
    lua_remove(L, -2);
    if (lua_type(L, -1) == LUA_TUSERDATA)
        return true;
    lua_pop(L, 1);
    return false;
}

int wide_integer(lua_State *L, int index, uint64_t *value)
{
    return wide_kind(vm_of(L), L, index, value);
}

/* --- open ------------------------------------------------------------------------- */

void lazy_open(lua_State *L, struct vm *vm)
{
    static const luaL_Reg meta[] = {
        {"__index", l_index},
        {"__newindex", lazy_newindex},
        {"__len", l_len},
        {NULL, NULL},
    };

    lua_newtable(L);
    luaL_setfuncs(L, meta, 0);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    vm->lazy_mt = lua_topointer(L, -1);
    vm_set_ref(vm, REF_LAZY_MT);

    lua_newtable(L);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_pushlightuserdata(L, (void *)(uintptr_t)&removed);
    lua_rawseti(L, -2, ARRAY_MARK);
    lua_pushinteger(L, 0);
    lua_rawseti(L, -2, ARRAY_LEN);
    vm->array_mt = lua_topointer(L, -1);
    vm_set_ref(vm, REF_ARRAY_MT);

    lua_newtable(L); /* json.raw(): { text } */
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    vm->raw_mt = lua_topointer(L, -1);
    vm_set_ref(vm, REF_RAW_MT);
}
