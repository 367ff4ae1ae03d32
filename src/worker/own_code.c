#include "worker/own_code.h"

#include "base/buf.h"
#include "base/check.h"
#include "worker/embed.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <string.h>

#define MODULES_MAX 64

static struct buf compiled[MODULES_MAX]; /* as embedded_modules; or empty */

static const struct embedded *find(const char *name)
{
    for (const struct embedded *e = embedded_modules; e->name; e++)
        if (strcmp(e->name, name) == 0)
            return e;
    return NULL;
}

static int append(lua_State *L, const void *bytes, size_t len, void *arg)
{
    (void)L;
    buf_add(arg, bytes, len);
    return 0;
}

/* [-0, +1] */
static void compile(lua_State *L, const struct embedded *e, const char *chunk)
{
    if (luaL_loadbufferx(L, (const char *)e->text, e->len, chunk, "t") != 0)
        lua_error(L);
    lua_dump(L, append, &compiled[e - embedded_modules]);
}

bool own_code_push(lua_State *L, const char *name)
{
    const struct embedded *e = find(name);
    const struct buf *code;
    char chunk[80];

    if (!e)
        return false;
    CHECK(e - embedded_modules < MODULES_MAX);
    code = &compiled[e - embedded_modules];
    snprintf(chunk, sizeof(chunk), "=moontide/%s.lua", name);
    if (!code->len)
        compile(L, e, chunk);
    else if (luaL_loadbufferx(L, code->ptr, code->len, chunk, "b") != 0)
        lua_error(L);
    return true;
}

static int compile_all(lua_State *L)
{
    luaL_openlibs(L); /* a 64-bit literal loads ffi, which needs the others */
    for (const struct embedded *e = embedded_modules; e->name; e++) {
        own_code_push(L, e->name);
        lua_pop(L, 1);
    }
    return 0;
}

void own_code_compile(void)
{
    lua_State *L = luaL_newstate();

    CHECK(L && lua_cpcall(L, compile_all, NULL) == 0);
    lua_close(L);
}
