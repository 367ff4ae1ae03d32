/*
 * Publishing needs nothing from C but numbers: what a handler raised and
 * stored is counted here, so that events_raised_total and
 * events_stored_duration_seconds speak of handlers too. The rest is SQL, or a
 * call to the host, and is written in lua/moontide/events.lua.
 */
#include "base/clock.h"
#include "base/list.h"
#include "worker/api_effects.h"
#include "worker/runtime.h"
#include "worker/vm.h"

#include <lauxlib.h>
#include <lua.h>

/* raised(aggregate_type, type): one event is published. */
static int l_raised(lua_State *L)
{
    runtime_raised(vm_runtime(vm_of(L)), luaL_checkstring(L, 1),
                   luaL_checkstring(L, 2));
    return 0;
}

/* stored(start): it is in the store since a call of clock() before. */
static int l_stored(lua_State *L)
{
    double since = luaL_checknumber(L, 1);

    runtime_stored(vm_runtime(vm_of(L)), (double)clock_mono_us() / 1e6 - since);
    return 0;
}

/* clock() → seconds of a clock that never goes back. */
static int l_clock(lua_State *L)
{
    lua_pushnumber(L, (double)clock_mono_us() / 1e6);
    return 1;
}

int api_events_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"raised", l_raised},
        {"stored", l_stored},
        {"clock", l_clock},
        {NULL, NULL},
    };

    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
