/*
 * The basic functions that know lazy objects: pairs, next, ipairs, rawget,
 * rawset, type, tostring. __pairs and __len do nothing on tables here, so the
 * sandbox gives these instead of LuaJIT's.
 */
#include "worker/vm_internal.h"

#include <stdio.h>

/* The n-th of the names that were added, or nil. [-0, +1] */
static void push_added(lua_State *L, int index, int n)
{
    lazy_added(L, index);
    if (!lua_istable(L, -1))
        return;
    lua_rawgeti(L, -1, n);
    lua_replace(L, -2);
}

/* Members in the order of the text, then those added; `z->next` stands behind
 * the one given last. [-0, +2] key and value, or false and nothing. */
static bool step(lua_State *L, int index, struct lazy *z)
{
    const struct doc *doc = z->owner->doc;
    int top = lua_gettop(L);

    while (!node_is_end(doc, z->next)) {
        struct slice name = node_text(doc, z->next);

        z->last = z->next;
        z->next = node_after(doc, z->next + 1);
        lua_pushlstring(L, name.ptr, name.len);
        lazy_get(L, index, top + 1);
        if (!lua_isnil(L, -1))
            return true;
        lua_settop(L, top);
    }
    z->last = 0;
    while (z->has_overlay) {
        push_added(L, index, ++z->added);
        if (lua_isnil(L, -1))
            break;
        lazy_get(L, index, top + 1);
        if (!lua_isnil(L, -1))
            return true;
        lua_settop(L, top);
    }
    lua_settop(L, top);
    return false;
}

static void start_over(struct lazy *z)
{
    z->next = z->node + 1;
    z->added = 0;
    z->last = 0;
}

static bool is_added(lua_State *L, int n)
{
    bool is_it;

    push_added(L, 1, n);
    is_it = lua_rawequal(L, -1, 2);
    lua_pop(L, 1);
    return is_it;
}

/* The key's node, or 0: the last of a name that is there twice, or two loops
 * would send each other back for ever. */
static uint32_t find_key(const struct lazy *z, struct slice key)
{
    const struct doc *doc = z->owner->doc;
    uint32_t found = 0;

    for (uint32_t at = z->node + 1; !node_is_end(doc, at);
         at = node_after(doc, at + 1))
        if (slice_eq(node_text(doc, at), key))
            found = at;
    return found;
}

/* Stand behind `key`: somebody else goes through the same object meanwhile. It
 * may have no value any more; a loop may clear what it was given. */
static void find_again(lua_State *L, struct lazy *z)
{
    const struct doc *doc = z->owner->doc;
    struct slice key;
    int n = 1;

    start_over(z);
    if (lua_type(L, 2) == LUA_TSTRING) {
        key.ptr = lua_tolstring(L, 2, &key.len);
        z->last = find_key(z, key);
    }
    if (z->last) {
        z->next = node_after(doc, z->last + 1);
        return;
    }
    z->next = node_after(doc, z->node) - 1; /* the bracket */
    for (lazy_added(L, 1); lua_istable(L, -1) && n <= (int)lua_objlen(L, -1);
         n++)
        if (is_added(L, n)) {
            z->added = n;
            lua_settop(L, 2);
            return;
        }
    luaL_error(L, "invalid key to 'next'");
}

static bool stands_behind(lua_State *L, const struct lazy *z)
{
    struct slice key;

    if (!z->last)
        return z->added > 0 && is_added(L, z->added);
    if (lua_type(L, 2) != LUA_TSTRING)
        return false;
    key.ptr = lua_tolstring(L, 2, &key.len);
    return slice_eq(node_text(z->owner->doc, z->last), key);
}

/* (lazy, key): the next key and its value. A loop brings the key that it was
 * given and goes on where it stands. */
static int next_lazy(lua_State *L)
{
    struct lazy *z = lazy_live(L, 1);

    lua_settop(L, 2);
    if (lua_isnil(L, 2))
        start_over(z);
    else if (!stands_behind(L, z))
        find_again(L, z);
    if (!step(L, 1, z)) {
        lua_pushnil(L);
        return 1;
    }
    return 2;
}

static int l_raw_next(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    return lua_next(L, 1) ? 2 : (lua_pushnil(L), 1);
}

/* upvalues: LuaJIT's next, ours */
static int l_pairs(lua_State *L)
{
    struct vm *vm = vm_of(L);

    luaL_checkany(L, 1);
    lua_settop(L, 1);
    if (is_lazy(vm, L, 1)) {
        lua_pushvalue(L, lua_upvalueindex(2));
        lua_pushvalue(L, 1);
        return 2;
    }
    if (lua_type(L, 1) == LUA_TUSERDATA && luaL_callmeta(L, 1, "__fields"))
        lua_replace(L, 1);
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, 1);
    lua_pushnil(L);
    return 3;
}

static int l_next(lua_State *L)
{
    if (is_lazy(vm_of(L), L, 1))
        return next_lazy(L);
    return l_raw_next(L);
}

static int l_ipairs_step(lua_State *L)
{
    int i = (int)luaL_checkinteger(L, 2) + 1;

    if (lua_type(L, 1) != LUA_TTABLE)
        return 0; /* an object has no first element */
    lua_pushinteger(L, i);
    lua_rawgeti(L, 1, i);
    return lua_isnil(L, -1) ? 0 : 2;
}

/* upvalue: LuaJIT's ipairs */
static int l_ipairs(lua_State *L)
{
    luaL_checkany(L, 1);
    if (lua_type(L, 1) == LUA_TTABLE) {
        lua_pushvalue(L, lua_upvalueindex(1));
        lua_pushvalue(L, 1);
        lua_call(L, 1, 3);
        return 3;
    }
    if (!is_lazy(vm_of(L), L, 1))
        luaL_checktype(L, 1, LUA_TTABLE);
    lua_pushcfunction(L, l_ipairs_step);
    lua_pushvalue(L, 1);
    lua_pushinteger(L, 0);
    return 3;
}

static int l_rawget(lua_State *L)
{
    luaL_checkany(L, 2);
    if (is_lazy(vm_of(L), L, 1)) {
        lazy_get(L, 1, 2);
        return 1;
    }
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    lua_rawget(L, 1);
    return 1;
}

static int l_rawset(lua_State *L)
{
    luaL_checkany(L, 3);
    lua_settop(L, 3);
    if (is_lazy(vm_of(L), L, 1)) {
        lazy_newindex(L);
    } else {
        luaL_checktype(L, 1, LUA_TTABLE);
        lua_rawset(L, 1);
    }
    lua_settop(L, 1);
    return 1;
}

static bool looks_like_table(const struct vm *vm, lua_State *L, int index)
{
    return is_lazy(vm, L, index) || has_metatable(L, index, vm->event_mt) ||
           has_metatable(L, index, vm->ctx_mt);
}

/* upvalues: the names of the types, as LuaJIT numbers them */
static int l_type(lua_State *L)
{
    int type;

    luaL_checkany(L, 1);
    type = lua_type(L, 1);
    if (type == LUA_TUSERDATA && looks_like_table(vm_of(L), L, 1))
        type = LUA_TTABLE;
    lua_pushvalue(L, lua_upvalueindex(type + 1));
    return 1;
}

/* Digits of a 64-bit integer, "table: 0x…" of a lazy, nil for all else: the
 * rest of tostring is Lua's. */
static int l_tostring_special(lua_State *L)
{
    struct vm *vm = vm_of(L);
    uint64_t wide;
    char text[32];
    int kind;

    luaL_checkany(L, 1);
    kind = wide_integer(L, 1, &wide);
    if (kind) {
        snprintf(text, sizeof(text), kind == 'i' ? "%lld" : "%llu",
                 (long long)wide);
        lua_pushstring(L, text);
    } else if (vm_is_null(L, 1)) {
        lua_pushliteral(L, "null");
    } else if (lua_type(L, 1) == LUA_TUSERDATA && looks_like_table(vm, L, 1)) {
        lua_pushfstring(L, "table: %p", lua_touserdata(L, 1));
    } else {
        lua_pushnil(L);
    }
    return 1;
}

void lazy_functions(lua_State *L)
{
    static const luaL_Reg plain[] = {
        {"next", l_next},
        {"rawget", l_rawget},
        {"rawset", l_rawset},
        {"special", l_tostring_special},
        {"calibrate", lazy_calibrate},
        {NULL, NULL},
    };

    lua_newtable(L);
    luaL_setfuncs(L, plain, 0);
    for (int type = 0; type <= TYPE_CDATA; type++)
        lua_pushstring(L, lua_typename(L, type));
    lua_pushcclosure(L, l_type, TYPE_CDATA + 1);
    lua_setfield(L, -2, "type");
    lua_getglobal(L, "next");
    lua_pushcfunction(L, next_lazy);
    lua_pushcclosure(L, l_pairs, 2);
    lua_setfield(L, -2, "pairs");
    lua_getglobal(L, "ipairs");
    lua_pushcclosure(L, l_ipairs, 1);
    lua_setfield(L, -2, "ipairs");
}
