/* moontide.log and moontide.metric. */
#include "worker/task.h"

#include "base/buf.h"
#include "base/log.h"
#include "worker/metrics_out.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "handler";

#define MAX_LINE 8192

/* One ` key=value`; text is a JSON string, and so is what has a space. */
static void add_field(struct buf *line, struct slice key, lua_State *L)
{
    struct err err;
    struct buf value = {0};

    if (vm_encode(L, lua_gettop(L), &value, &err)) {
        buf_printf(line, " %.*s=", (int)key.len, key.ptr);
        if (*value.ptr != '"' && memchr(value.ptr, ' ', value.len))
            buf_add_json(line, (struct slice){value.ptr, value.len});
        else
            buf_add(line, value.ptr, value.len);
    }
    buf_fini(&value);
}

static void add_fields(struct buf *line, lua_State *L, int index)
{
    lua_pushnil(L);
    while (lua_next(L, index)) {
        struct slice key;

        if (lua_type(L, -2) == LUA_TSTRING && line->len < MAX_LINE) {
            key.ptr = lua_tolstring(L, -2, &key.len);
            if (key.len && key.len < 64 &&
                strcspn(key.ptr, " =\"\n\r\t") == key.len)
                add_field(line, key, L);
        }
        lua_pop(L, 1);
    }
}

/* An object of an event as a plain table in its place; what raises does so
 * before there is anything to free. */
static void make_plain(lua_State *L, int index)
{
    int plain, next;

    lua_newtable(L);
    plain = lua_gettop(L);
    vm_push_ref(L, vm_of(L), REF_HOST);
    lua_getfield(L, -1, "values");
    lua_getfield(L, -1, "next");
    next = lua_gettop(L);
    lua_pushnil(L);
    for (;;) {
        lua_pushvalue(L, next);
        lua_insert(L, -2);
        lua_pushvalue(L, index);
        lua_insert(L, -2);
        lua_call(L, 2, 2);
        if (lua_isnil(L, -2))
            break;
        lua_pushvalue(L, -2); /* for the next round */
        lua_insert(L, -3);
        lua_rawset(L, plain);
    }
    lua_settop(L, plain);
    lua_replace(L, index);
}

static int write_log(lua_State *L, enum log_level level)
{
    struct vm *vm = vm_of(L);
    struct task *task = vm->task;
    struct slice message, id = {NULL, 0};
    struct buf line = {0};
    char *phrase;

    message.ptr = luaL_checklstring(L, 1, &message.len);
    if (!log_wants(level))
        return 0;
    lua_settop(L, 2);
    if (is_lazy(vm, L, 2))
        make_plain(L, 2);
    buf_printf(&line, "handler=%s", vm->name);
    if (task && task->event)
        id = event_fact(task->event, vm->rt, FACT_ID);
    if (id.ptr) {
        buf_add_text(&line, " event=");
        buf_add_json(&line, id);
    }
    if (lua_istable(L, 2))
        add_fields(&line, L, 2);
    if (line.len > MAX_LINE)
        line.len = MAX_LINE;
    phrase = strndup(message.ptr, message.len < 500 ? message.len : 500);
    for (char *c = phrase; c && *c; c++)
        if ((unsigned char)*c < 0x20)
            *c = ' ';
    log_write(level, component, phrase ? phrase : "", "%s", buf_text(&line));
    free(phrase);
    buf_fini(&line);
    return 0;
}

static int l_debug(lua_State *L)
{
    return write_log(L, LOG_DEBUG);
}

static int l_info(lua_State *L)
{
    return write_log(L, LOG_INFO);
}

static int l_warn(lua_State *L)
{
    return write_log(L, LOG_WARN);
}

static int l_error(lua_State *L)
{
    return write_log(L, LOG_ERROR);
}

int log_open(lua_State *L)
{
    static const luaL_Reg functions[] = {{"debug", l_debug},
                                         {"info", l_info},
                                         {"warn", l_warn},
                                         {"error", l_error},
                                         {NULL, NULL}};

    luaL_newlib(L, functions);
    return 1;
}

/* --- moontide.metric ------------------------------------------------------------------ */

/* A metric is a table with kind, name, help and its allowed labels. */
static int make_metric(lua_State *L, const char *kind)
{
    const char *name = luaL_checkstring(L, 1);
    size_t len = strlen(name);

    luaL_argcheck(L,
                  len && len < 100 &&
                      strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") ==
                          len,
                  1, "a metric's name has letters, digits and _ only");
    lua_settop(L, 2);
    lua_newtable(L);
    lua_pushstring(L, kind);
    lua_setfield(L, -2, "kind");
    lua_pushfstring(L, "handler_%s", name);
    lua_setfield(L, -2, "name");
    if (lua_istable(L, 2)) {
        lua_getfield(L, 2, "help");
        lua_setfield(L, -2, "help");
        lua_getfield(L, 2, "labels");
        lua_setfield(L, -2, "labels");
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_setmetatable(L, -2);
    return 1;
}

static int l_counter(lua_State *L)
{
    return make_metric(L, "counter");
}

static int l_gauge(lua_State *L)
{
    return make_metric(L, "gauge");
}

static int l_histogram(lua_State *L)
{
    return make_metric(L, "histogram");
}

static bool is_declared(lua_State *L, const char *label)
{
    bool is = false, is_end = false;

    lua_getfield(L, 1, "labels");
    for (int i = 1; lua_istable(L, -1) && !is && !is_end; i++) {
        const char *name;

        lua_rawgeti(L, -1, i);
        name = lua_tostring(L, -1);
        is = name && strcmp(name, label) == 0;
        is_end = !name;
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return is;
}

/* Raises for a label that was not declared; what is built so far would leak,
 * so names are checked first. */
static json_t *read_labels(lua_State *L, int index)
{
    json_t *labels;

    if (lua_isnoneornil(L, index))
        return json_object();
    luaL_checktype(L, index, LUA_TTABLE);
    for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING || !lua_isstring(L, -1))
            luaL_error(L, "labels are names with texts");
        if (!is_declared(L, lua_tostring(L, -2)))
            luaL_error(L, "label %s was not declared in labels = { … }",
                       lua_tostring(L, -2));
    }
    labels = json_object();
    for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
        lua_pushvalue(L, -1); /* a number is turned into text: a copy */
        json_object_set_new(labels, lua_tostring(L, -3),
                            json_string(lua_tostring(L, -1)));
        lua_pop(L, 1);
    }
    return labels;
}

/* [+1]: the text stays on the stack, for a number that a handler put there was
 * turned into a text which nothing else holds. */
static const char *push_field(lua_State *L, const char *name)
{
    const char *text;

    lua_getfield(L, 1, name);
    text = lua_tostring(L, -1);
    return text ? text : "";
}

static int record(lua_State *L, double value, int labels_index)
{
    struct runtime *rt = vm_of(L)->rt;
    const char *kind, *name, *help;
    json_t *labels;

    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_argcheck(L, isfinite(value), 2, "a finite number expected");
    labels = read_labels(L, labels_index);
    kind = push_field(L, "kind");
    name = push_field(L, "name");
    help = push_field(L, "help");
    if (rt->mode == MODE_PERFORM)
        metrics_custom(rt->metrics, kind, name, help, labels, value);
    else
        json_decref(labels);
    return 0;
}

static void check_kind(lua_State *L, const char *kind, const char *what)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    if (strcmp(push_field(L, "kind"), kind) != 0)
        luaL_error(L, "only a %s has %s", kind, what);
    lua_pop(L, 1);
}

static int l_inc(lua_State *L)
{
    double n = luaL_optnumber(L, 2, 1);

    check_kind(L, "counter", ":inc");
    luaL_argcheck(L, n >= 0, 2, "a counter only grows");
    return record(L, n, 3);
}

static int l_set(lua_State *L)
{
    check_kind(L, "gauge", ":set");
    return record(L, luaL_checknumber(L, 2), 3);
}

static int l_observe(lua_State *L)
{
    check_kind(L, "histogram", ":observe");
    return record(L, luaL_checknumber(L, 2), 3);
}

int metric_open(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"inc", l_inc}, {"set", l_set}, {"observe", l_observe}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"counter", l_counter},
                                         {"gauge", l_gauge},
                                         {"histogram", l_histogram},
                                         {NULL, NULL}};

    lua_newtable(L);
    lua_newtable(L); /* metatable of metrics */
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    luaL_setfuncs(L, functions, 1);
    return 1;
}
