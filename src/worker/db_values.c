#include "worker/db_values.h"

#include "base/clock.h"
#include "base/find.h"
#include "base/mem.h"
#include "worker/vm.h"

#include <inttypes.h>
#include <lauxlib.h>
#include <lua.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- Lua to text ---------------------------------------------------------- */

/* Types of arrays by the names people write; 0 leaves it to the statement. */
static uint32_t array_oid(const char *type)
{
    static const struct {
        const char *name;
        uint32_t oid;
    } known[] = {
        {"text", 1009},    {"varchar", 1015},     {"int", 1007},
        {"integer", 1007}, {"int4", 1007},        {"bigint", 1016},
        {"int8", 1016},    {"bool", 1000},        {"boolean", 1000},
        {"numeric", 1231}, {"float8", 1022},      {"uuid", 2951},
        {"jsonb", 3807},   {"timestamptz", 1185}, {"date", 1182},
    };

    for (size_t i = 0; type && i < sizeof(known) / sizeof(*known); i++)
        if (strcmp(type, known[i].name) == 0)
            return known[i].oid;
    return 0;
}

/* The fewest digits that read back as the same number: a numeric column keeps
 * every one that is written. */
static void add_digits(struct buf *out, double n)
{
    char text[40];

    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, n);
        if (strtod(text, NULL) == n)
            break;
    }
    buf_add_text(out, text);
}

static void add_whole(struct buf *out, int64_t n)
{
    char text[24];

    buf_add(out, text, (size_t)snprintf(text, sizeof(text), "%" PRId64, n));
}

/* A bigint takes no exponent. */
#define MAX_WHOLE 9.2e18

static void add_number(struct buf *out, double n)
{
    if (isnan(n))
        buf_add_text(out, "NaN");
    else if (isinf(n))
        buf_add_text(out, n > 0 ? "Infinity" : "-Infinity");
    else if (n == floor(n) && fabs(n) < MAX_WHOLE)
        add_whole(out, (int64_t)n);
    else
        add_digits(out, n);
}

enum value_kind { VALUE_NULL, VALUE_TEXT, VALUE_JSON, VALUE_BAD };

static bool is_array(lua_State *L, int index)
{
    bool same;

    if (!lua_istable(L, index) || !lua_getmetatable(L, index))
        return false;
    luaL_getmetatable(L, DB_ARRAY);
    same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return same;
}

static bool check_text(struct slice text, struct err *err)
{
    return !memchr(text.ptr, '\0', text.len) ||
           err_code(err, ERR_PERMANENT, "22021",
                    "a text with a zero byte is none for PostgreSQL");
}

static enum value_kind add_text(lua_State *L, int index, struct buf *out,
                                struct err *err)
{
    struct slice text;

    text.ptr = lua_tolstring(L, index, &text.len);
    if (!check_text(text, err))
        return VALUE_BAD;
    buf_add(out, text.ptr, text.len);
    return VALUE_TEXT;
}

static enum value_kind add_other(lua_State *L, int index, struct buf *out,
                                 struct err *err)
{
    int64_t whole;

    if (vm_is_null(L, index))
        return VALUE_NULL;
    if (vm_to_int64(L, index, &whole)) {
        add_whole(out, whole);
        return VALUE_TEXT;
    }
    if (!vm_encode(L, index, out, err)) {
        err_wrap(err, "value for PostgreSQL");
        return VALUE_BAD;
    }
    return VALUE_JSON;
}

static enum value_kind add_value(lua_State *L, int index, struct buf *out,
                                 struct err *err)
{
    switch (lua_type(L, index)) {
    case LUA_TNIL: return VALUE_NULL;
    case LUA_TSTRING: return add_text(L, index, out, err);
    case LUA_TBOOLEAN:
        buf_add_text(out, lua_toboolean(L, index) ? "true" : "false");
        return VALUE_TEXT;
    case LUA_TNUMBER:
        add_number(out, lua_tonumber(L, index));
        return VALUE_TEXT;
    default: return add_other(L, index, out, err);
    }
}

/* One element of an array literal, quoted whatever it is. */
static bool add_element(lua_State *L, int index, struct buf *out,
                        struct buf *raw, struct err *err)
{
    enum value_kind kind;
    char *to;

    buf_clear(raw);
    kind = add_value(L, index, raw, err);
    if (kind == VALUE_NULL)
        buf_add_text(out, "NULL");
    if (kind == VALUE_TEXT || kind == VALUE_JSON) {
        to = buf_reserve(out, 2 * raw->len + 2);
        *to++ = '"';
        for (size_t i = 0; i < raw->len; i++) {
            if (raw->ptr[i] == '"' || raw->ptr[i] == '\\')
                *to++ = '\\';
            *to++ = raw->ptr[i];
        }
        *to++ = '"';
        out->len = (size_t)(to - out->ptr);
    }
    return kind != VALUE_BAD;
}

/* The literal of the db.array at `index`; its type goes to *type. */
static bool add_array(lua_State *L, int index, struct buf *out, uint32_t *type,
                      struct err *err)
{
    struct buf raw = {0};
    bool ok = true;
    int n;

    lua_rawgeti(L, index, 2);
    *type = array_oid(lua_tostring(L, -1));
    lua_rawgeti(L, index, 3);
    n = (int)lua_tointeger(L, -1);
    lua_rawgeti(L, index, 1);
    buf_add_char(out, '{');
    for (int i = 1; ok && i <= n; i++) {
        if (i > 1)
            buf_add_char(out, ',');
        lua_rawgeti(L, -1, i);
        ok = add_element(L, lua_gettop(L), out, &raw, err);
        lua_pop(L, 1);
    }
    buf_fini(&raw);
    buf_add_char(out, '}');
    lua_pop(L, 3);
    return ok;
}

static bool add_param(lua_State *L, int index, struct buf *out,
                      struct pg_param *param, struct err *err)
{
    enum value_kind kind = VALUE_TEXT;
    size_t start = out->len;

    *param = (struct pg_param){0};
    if (is_array(L, index)) {
        if (!add_array(L, index, out, &param->type, err))
            return false;
    } else {
        kind = add_value(L, index, out, err);
    }
    if (kind == VALUE_BAD)
        return false;
    if (kind == VALUE_NULL)
        return true;
    buf_add_char(out, '\0');
    /* Its place until all are there: the buffer may still move. */
    param->value = "";
    param->len = (int)start;
    return true;
}

bool db_params_read(lua_State *L, int first, struct db_params *params,
                    struct err *err)
{
    int n = lua_gettop(L) - first + 1;

    params->n = n > 0 ? n : 0;
    params->list = xcalloc((size_t)params->n + 1, sizeof(*params->list));
    luaL_checkstack(L, 8, "parameters");
    for (int i = 0; i < params->n; i++) {
        if (!add_param(L, first + i, &params->bytes, &params->list[i], err))
            return err_wrap(err, "parameter %d", i + 1);
    }
    for (int i = 0; i < params->n; i++)
        if (params->list[i].value)
            params->list[i].value = params->bytes.ptr + params->list[i].len;
    return true;
}

void db_params_fini(struct db_params *params)
{
    buf_fini(&params->bytes);
    free(params->list);
    *params = (struct db_params){0};
}

/* Backslash escapes of COPY's text format, by the byte. */
static const char escapes[256] = {
    ['\\'] = '\\', ['\t'] = 't', ['\n'] = 'n', ['\r'] = 'r'};

static void add_escaped(struct buf *out, const char *text, size_t len)
{
    const char *end = text + len;

    while (text < end) {
        const char *next = find_control_or(text, end, '\\');

        buf_add(out, text, (size_t)(next - text));
        if (next < end) {
            char escape = escapes[(unsigned char)*next];

            if (escape)
                buf_add_char(out, '\\');
            buf_add_char(out, escape ? escape : *next);
            next++;
        }
        text = next;
    }
}

static bool add_field(lua_State *L, int index, struct buf *out, struct buf *raw,
                      struct err *err)
{
    enum value_kind kind = VALUE_TEXT;
    struct slice text;
    uint32_t type;

    if (lua_type(L, index) == LUA_TSTRING) { /* without a copy on the way */
        text.ptr = lua_tolstring(L, index, &text.len);
        if (!check_text(text, err))
            return false;
        add_escaped(out, text.ptr, text.len);
        return true;
    }
    buf_clear(raw);
    if (is_array(L, index)) {
        if (!add_array(L, index, raw, &type, err))
            return false;
    } else {
        kind = add_value(L, index, raw, err);
    }
    if (kind == VALUE_NULL)
        buf_add_text(out, "\\N");
    else if (kind != VALUE_BAD)
        add_escaped(out, raw->ptr, raw->len);
    return kind != VALUE_BAD;
}

bool db_copy_row(lua_State *L, int row, int columns, struct buf *out,
                 struct buf *raw, struct err *err)
{
    bool ok = true;

    for (int i = 1; ok && i <= columns; i++) {
        if (i > 1)
            buf_add_char(out, '\t');
        lua_rawgeti(L, row, i);
        ok = add_field(L, lua_gettop(L), out, raw, err) ||
             err_wrap(err, "column %d", i);
        lua_pop(L, 1);
    }
    buf_add_char(out, '\n');
    return ok;
}

/* --- SQL to Lua ----------------------------------------------------------- */

/* "2026-11-21 10:30:55.434046+00" as RFC 3339; sessions run in UTC. What is
 * not such a time ("infinity", a year before Christ) stays as it is. */
static void push_time(lua_State *L, const char *text, size_t len)
{
    char out[RFC3339_SIZE];
    int64_t us = clock_parse(text, len);

    if (us == INT64_MIN)
        lua_pushlstring(L, text, len);
    else
        lua_pushstring(L, clock_format(us, out));
}

static int hex(char c)
{
    return c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
}

static void push_bytes(lua_State *L, const char *text, size_t len)
{
    luaL_Buffer out;

    if (len < 2 || text[0] != '\\' || text[1] != 'x') {
        lua_pushlstring(L, text, len);
        return;
    }
    luaL_buffinit(L, &out);
    for (size_t i = 2; i + 1 < len; i += 2)
        luaL_addlstring(
            &out, &(char){(char)(hex(text[i]) << 4 | hex(text[i + 1]))}, 1);
    luaL_pushresult(&out);
}

static void push_json(lua_State *L, const char *text, size_t len)
{
    struct err err;

    if (!vm_decode(L, (struct slice){text, len}, &err))
        luaL_error(L, "json from the database: %s", err.msg);
}

static void push_scalar(lua_State *L, uint32_t type, const char *text,
                        size_t len)
{
    switch (type) {
    case PG_BOOL: lua_pushboolean(L, *text == 't'); break;
    case PG_INT2:
    case PG_INT4:
    case 26: /* oid */
    case PG_FLOAT4:
    case PG_FLOAT8: lua_pushnumber(L, strtod(text, NULL)); break;
    case PG_INT8: vm_push_int64(L, strtoll(text, NULL, 10)); break;
    case PG_TIMESTAMPTZ: push_time(L, text, len); break;
    case PG_BYTEA: push_bytes(L, text, len); break;
    case PG_JSON:
    case PG_JSONB: push_json(L, text, len); break;
    default: lua_pushlstring(L, text, len);
    }
}

static uint32_t element_type(uint32_t array)
{
    static const uint32_t map[][2] = {
        {1009, PG_TEXT},        {1015, PG_TEXT},    {1007, PG_INT4},
        {1005, PG_INT2},        {1016, PG_INT8},    {1000, PG_BOOL},
        {1022, PG_FLOAT8},      {1231, PG_NUMERIC}, {2951, PG_TEXT},
        {1185, PG_TIMESTAMPTZ},
    };

    for (size_t i = 0; i < sizeof(map) / sizeof(*map); i++)
        if (map[i][0] == array)
            return map[i][1];
    return 0;
}

/* One quoted or plain element; returns where it ended. */
static const char *push_element(lua_State *L, uint32_t type, const char *p)
{
    luaL_Buffer out;
    bool quoted = *p == '"';
    size_t len;
    const char *text;

    luaL_buffinit(L, &out);
    p += quoted;
    while (*p && (quoted ? *p != '"' : *p != ',' && *p != '}')) {
        if (*p == '\\' && p[1])
            p++;
        luaL_addlstring(&out, p++, 1);
    }
    luaL_pushresult(&out);
    text = lua_tolstring(L, -1, &len);
    if (!quoted && strcmp(text, "NULL") == 0)
        lua_pushnil(L);
    else
        push_scalar(L, type, text, len);
    lua_remove(L, -2);
    return p + quoted;
}

/* {a,"b c",NULL} of one dimension. */
static void push_array(lua_State *L, uint32_t type, const char *text)
{
    const char *p = text + 1;

    lua_newtable(L);
    for (int i = 1; *p && *p != '}'; i++) {
        p = push_element(L, type, p);
        lua_rawseti(L, -2, i);
        p += *p == ',';
    }
}

static void push_value(lua_State *L, const struct pg_result *res, int row,
                       int col)
{
    uint32_t type = pg_result_type(res, col);
    const char *text = pg_result_value(res, row, col);
    uint32_t element = element_type(type);

    if (pg_result_is_null(res, row, col))
        lua_pushnil(L);
    else if (element && text[0] == '{' && text[1] != '{')
        push_array(L, element, text);
    else
        push_scalar(L, type, text, pg_result_len(res, row, col));
}

void db_push_rows(lua_State *L, const struct pg_result *res)
{
    int rows = pg_result_nrows(res), cols = pg_result_ncols(res);
    int names = lua_gettop(L);

    luaL_checkstack(L, cols + 10, "too many columns");
    for (int c = 0; c < cols; c++)
        lua_pushstring(L, pg_result_name(res, c));
    lua_createtable(L, rows, 0);
    for (int r = 0; r < rows; r++) {
        lua_createtable(L, 0, cols);
        for (int c = 0; c < cols; c++) {
            lua_pushvalue(L, names + 1 + c);
            push_value(L, res, r, c);
            lua_rawset(L, -3);
        }
        lua_rawseti(L, -2, r + 1);
    }
    if (cols > 0) { /* put the rows where the first name was */
        lua_replace(L, names + 1);
        lua_settop(L, names + 1);
    }
}
