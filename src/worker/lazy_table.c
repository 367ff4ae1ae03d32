/*
 * The basic functions that know lazy objects: pairs, next, ipairs, rawget,
 * rawset, type, tostring. __pairs and __len do nothing on tables here, so the
 * sandbox gives these instead of LuaJIT's.
 */
#include "worker/vm_internal.h"

#include <stdio.h>

/*
 * Members in the order of the text, then those added. The control value is the
 * key itself, as next() wants it; a document's member is found again by its
 * name, so an iteration costs the square of the fields: pairs() uses a cursor.
 */
struct cursor {
    uint32_t node;
    int added;
};

/* [-0, +2] key and value of the next member with a value; false at the end. */
static bool step(lua_State *L, int index, struct cursor *cur)
{
    struct lazy *z = lazy_live(L, index);
    const struct doc *doc = &z->owner->doc;

    while (!node_is_end(doc, cur->node)) {
        struct slice name = node_text(doc, cur->node);

        cur->node = node_after(doc, cur->node + 1);
        lua_pushlstring(L, name.ptr, name.len);
        lazy_get(L, index, lua_gettop(L));
        if (!lua_isnil(L, -1))
            return true;
        lua_pop(L, 2);
    }
    if (!z->has_overlay)
        return false;
    lazy_added(L, index);
    while (lua_istable(L, -1)) {
        lua_rawgeti(L, -1, ++cur->added);
        if (lua_isnil(L, -1))
            break;
        lazy_get(L, index, lua_gettop(L));
        if (!lua_isnil(L, -1)) {
            lua_remove(L, -3);
            return true;
        }
        lua_pop(L, 2);
    }
    lua_settop(L, index);
    return false;
}

/* upvalues: the lazy, a userdata with the cursor */
static int l_pairs_step(lua_State *L)
{
    struct cursor *cur = lua_touserdata(L, lua_upvalueindex(2));

    lua_settop(L, 0);
    lua_pushvalue(L, lua_upvalueindex(1));
    if (!step(L, 1, cur))
        lua_pushnil(L);
    return lua_gettop(L) - 1;
}

static int l_raw_next(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    return lua_next(L, 1) ? 2 : (lua_pushnil(L), 1);
}

static int pairs_lazy(lua_State *L)
{
    struct cursor *cur;

    lazy_live(L, 1);
    lua_pushvalue(L, 1);
    cur = lua_newuserdata(L, sizeof(*cur));
    *cur = (struct cursor){.node = lazy_live(L, 1)->node + 1};
    lua_pushcclosure(L, l_pairs_step, 2);
    return 1;
}

/* upvalue: LuaJIT's next */
static int l_pairs(lua_State *L)
{
    struct vm *vm = vm_of(L);

    luaL_checkany(L, 1);
    lua_settop(L, 1);
    if (is_lazy(vm, L, 1))
        return pairs_lazy(L);
    if (lua_type(L, 1) == LUA_TUSERDATA && luaL_callmeta(L, 1, "__fields"))
        lua_replace(L, 1);
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, 1);
    lua_pushnil(L);
    return 3;
}

/* next() on a lazy: find the key again, then one step. */
static int next_lazy(lua_State *L)
{
    struct cursor cur = {.node = lazy_live(L, 1)->node + 1};

    lua_settop(L, 2);
    lua_insert(L, 1); /* key, lazy */
    if (!lua_isnil(L, 1)) {
        for (;;) {
            if (!step(L, 2, &cur))
                return luaL_error(L, "invalid key to 'next'");
            if (lua_rawequal(L, 1, -2))
                break;
            lua_settop(L, 2);
        }
        lua_settop(L, 2);
    }
    if (!step(L, 2, &cur)) {
        lua_pushnil(L);
        return 1;
    }
    return 2;
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

static int l_type(lua_State *L)
{
    luaL_checkany(L, 1);
    if (lua_type(L, 1) == LUA_TUSERDATA && looks_like_table(vm_of(L), L, 1))
        lua_pushliteral(L, "table");
    else
        lua_pushstring(L, luaL_typename(L, 1));
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
        {"type", l_type},
        {"special", l_tostring_special},
        {"calibrate", lazy_calibrate},
        {NULL, NULL},
    };

    lua_newtable(L);
    luaL_setfuncs(L, plain, 0);
    lua_getglobal(L, "next");
    lua_pushcclosure(L, l_pairs, 1);
    lua_setfield(L, -2, "pairs");
    lua_getglobal(L, "ipairs");
    lua_pushcclosure(L, l_ipairs, 1);
    lua_setfield(L, -2, "ipairs");
}
