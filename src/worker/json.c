/*
 * Values as JSON text and back, and the module moontide.json.
 *
 * Writing never raises and calls no metamethod, so the buffer cannot leak and
 * a value cannot run code while it is written.
 */
#include "worker/vm_internal.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_DEPTH 200

struct out {
    lua_State *L;
    const struct vm *vm;
    struct buf *buf;
    struct err *err;
    int depth;
    bool is_shown; /* for people: never refuse */
};

static bool put_value(struct out *o, int index);

static bool refuse(struct out *o, const char *why)
{
    if (o->is_shown) {
        buf_printf(o->buf, "\"(%s)\"", why);
        return true;
    }
    return err_code(o->err, ERR_PERMANENT, "json", "cannot write %s as JSON",
                    why);
}

/* --- scalars ------------------------------------------------------------------ */

static const unsigned char *plain_end(const unsigned char *at,
                                      const unsigned char *end)
{
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

/* An invalid byte cannot be kept in JSON: say so rather than change it. */
static bool put_string(struct out *o, struct slice s)
{
    const unsigned char *at = (const unsigned char *)s.ptr, *end = at + s.len;

    buf_reserve(o->buf, s.len + 2);
    buf_add_char(o->buf, '"');
    while (at < end) {
        const unsigned char *stop = plain_end(at, end);
        size_t n;

        buf_add(o->buf, at, (size_t)(stop - at));
        at = stop;
        if (at == end)
            break;
        if (*at >= 0x80) {
            n = utf8_char_len((const char *)at, (size_t)(end - at));
            if (!n && !o->is_shown)
                return refuse(o, "a string that is not UTF-8");
            if (n)
                buf_add(o->buf, at, n);
            else
                buf_add_text(o->buf, "\xef\xbf\xbd");
            at += n ? n : 1;
            continue;
        }
        switch (*at) {
        case '"': buf_add_text(o->buf, "\\\""); break;
        case '\\': buf_add_text(o->buf, "\\\\"); break;
        case '\n': buf_add_text(o->buf, "\\n"); break;
        case '\r': buf_add_text(o->buf, "\\r"); break;
        case '\t': buf_add_text(o->buf, "\\t"); break;
        default: buf_printf(o->buf, "\\u%04x", *at);
        }
        at++;
    }
    buf_add_char(o->buf, '"');
    return true;
}

static bool put_number(struct out *o, double d)
{
    char text[40];

    if (!isfinite(d))
        return refuse(o, isnan(d) ? "nan" : "an infinite number");
    if (d == floor(d) && fabs(d) < 1e17) {
        snprintf(text, sizeof(text), "%.0f", d == 0 ? 0.0 : d);
    } else {
        snprintf(text, sizeof(text), "%.15g", d);
        if (strtod(text, NULL) != d)
            snprintf(text, sizeof(text), "%.17g", d);
    }
    buf_add_text(o->buf, text);
    return true;
}

static void put_wide(struct out *o, int kind, uint64_t wide)
{
    if (kind == 'i')
        buf_printf(o->buf, "%lld", (long long)wide);
    else
        buf_printf(o->buf, "%llu", (unsigned long long)wide);
}

/* --- objects of documents -------------------------------------------------------- */

static void put_separator(struct out *o, bool *first)
{
    if (!*first)
        buf_add_char(o->buf, ',');
    *first = false;
}

static bool put_member(struct out *o, int index, const struct doc *doc,
                       const struct doc_member *m, bool *first)
{
    lua_State *L = o->L;
    bool is_overlaid = lazy_overlaid(L, index, node_text(doc, m->key));
    bool ok = true;

    if (is_overlaid && lazy_is_removed(L, -1)) {
        lua_pop(L, 1);
        return true;
    }
    put_separator(o, first);
    buf_add(o->buf, m->key_text.ptr, m->key_text.len);
    buf_add_char(o->buf, ':');
    if (!is_overlaid) {
        buf_add(o->buf, m->text.ptr, m->text.len);
        return true;
    }
    ok = put_value(o, lua_gettop(L));
    lua_pop(L, 1);
    return ok;
}

/* The name is below the value on top. */
static bool put_key(struct out *o)
{
    struct slice name;

    if (lua_type(o->L, -2) == LUA_TSTRING) {
        name.ptr = lua_tolstring(o->L, -2, &name.len);
        return put_string(o, name);
    }
    if (lua_type(o->L, -2) == LUA_TNUMBER) {
        buf_add_char(o->buf, '"');
        if (!put_number(o, lua_tonumber(o->L, -2)))
            return false;
        buf_add_char(o->buf, '"');
        return true;
    }
    return refuse(o, "a table with keys that are no strings");
}

static bool put_added(struct out *o, int index, bool *first)
{
    lua_State *L = o->L;
    int names;
    bool ok = true;

    lazy_added(L, index);
    names = lua_gettop(L);
    for (int i = 1; ok && lua_istable(L, names); i++) {
        lua_rawgeti(L, names, i);
        if (lua_isnil(L, -1))
            break;
        if (lazy_overlaid_key(L, index, names + 1) && !lazy_is_removed(L, -1)) {
            put_separator(o, first);
            ok = put_key(o);
            buf_add_char(o->buf, ':');
            ok = ok && put_value(o, lua_gettop(L));
        }
        lua_settop(L, names);
    }
    lua_settop(L, names - 1);
    return ok;
}

static bool put_lazy(struct out *o, int index)
{
    struct lazy *z = lua_touserdata(o->L, index);
    struct doc_iter it;
    struct doc_member m;
    struct slice text;
    bool first = true;

    if (z->generation != z->owner->generation)
        return refuse(o, "a value of an event whose delivery is over");
    if (lazy_unchanged(o->L, index)) {
        text = doc_locate(z->owner->doc, z->node);
        buf_add(o->buf, text.ptr, text.len);
        return true;
    }
    buf_add_char(o->buf, '{');
    doc_iter_init(&it, z->owner->doc, z->node);
    while (doc_iter_next(&it, &m))
        if (!put_member(o, index, z->owner->doc, &m, &first))
            return false;
    if (!put_added(o, index, &first))
        return false;
    buf_add_char(o->buf, '}');
    return true;
}

/* --- tables ------------------------------------------------------------------------ */

/* How many entries, and are all keys 1…n? */
static bool is_sequence(lua_State *L, int index, size_t *entries, size_t *max)
{
    size_t len = lua_objlen(L, index);
    bool is_seq = true;

    *max = 0;

    *entries = 0;
    lua_pushnil(L);
    while (lua_next(L, index)) {
        double key = lua_type(L, -2) == LUA_TNUMBER ? lua_tonumber(L, -2) : 0;

        lua_pop(L, 1);
        (*entries)++;
        if (key < 1 || key > (double)len + 64 || key != floor(key))
            is_seq = false;
        else if (key > (double)*max)
            *max = (size_t)key;
    }
    return is_seq && *entries > 0;
}

/* An unchanged decimal keeps its digits. */
static bool put_element(struct out *o, int index, bool has_origin, size_t i)
{
    lua_State *L = o->L;
    struct lazy *z;
    struct doc_iter it;
    struct doc_member m;

    if (!has_origin || lua_type(L, -1) != LUA_TNUMBER)
        return put_value(o, lua_gettop(L));
    if (!array_origin(L, index))
        return false;
    z = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (z->generation != z->owner->generation)
        return put_value(o, lua_gettop(L));
    doc_iter_init(&it, z->owner->doc, z->node);
    for (size_t n = 1; doc_iter_next(&it, &m); n++)
        if (n == i && node_type(z->owner->doc, m.node) == NODE_DOUBLE &&
            node_double(z->owner->doc, m.node) == lua_tonumber(L, -1)) {
            buf_add(o->buf, m.text.ptr, m.text.len);
            return true;
        }
    return put_value(o, lua_gettop(L));
}

/* What was added behind the last null; objlen may stop before it. */
static size_t len_behind_nulls(lua_State *L, int index, size_t len)
{
    bool is_there = true;

    while (is_there) {
        lua_rawgeti(L, index, (int)len + 1);
        is_there = !lua_isnil(L, -1);
        lua_pop(L, 1);
        len += is_there;
    }
    return len;
}

static bool put_array(struct out *o, int index, long kept)
{
    lua_State *L = o->L;
    size_t len = lua_objlen(L, index);
    bool has_origin = array_origin(L, index);

    if (has_origin)
        lua_pop(L, 1);
    if (kept > 0)
        len =
            len_behind_nulls(L, index, (size_t)kept > len ? (size_t)kept : len);
    has_origin = has_origin && len <= 1000; /* finding digits is quadratic */
    buf_add_char(o->buf, '[');
    for (size_t i = 1; i <= len; i++) {
        bool ok;

        if (i > 1)
            buf_add_char(o->buf, ',');
        lua_rawgeti(L, index, (int)i);
        ok = put_element(o, index, has_origin, i);
        lua_pop(L, 1);
        if (!ok)
            return false;
    }
    buf_add_char(o->buf, ']');
    return true;
}

static bool put_object(struct out *o, int index)
{
    lua_State *L = o->L;
    bool first = true;

    buf_add_char(o->buf, '{');
    lua_pushnil(L);
    while (lua_next(L, index)) {
        put_separator(o, &first);
        if (!put_key(o)) {
            lua_pop(L, 2);
            return false;
        }
        buf_add_char(o->buf, ':');
        if (!put_value(o, lua_gettop(L))) {
            lua_pop(L, 2);
            return false;
        }
        lua_pop(L, 1);
    }
    buf_add_char(o->buf, '}');
    return true;
}

static bool put_table(struct out *o, int index)
{
    long kept = array_kept_len(o->L, index);
    size_t entries = 0, max;
    struct slice text;

    if (has_metatable(o->L, index, o->vm->raw_mt)) {
        lua_rawgeti(o->L, index, 1);
        text.ptr = lua_tolstring(o->L, -1, &text.len);
        buf_add(o->buf, text.ptr, text.len);
        lua_pop(o->L, 1);
        return true;
    }
    if (kept >= 0)
        return put_array(o, index, kept);
    if (is_sequence(o->L, index, &entries, &max)) {
        if (entries != max && o->is_shown)
            return put_array(o, index, (long)max);
        if (entries != max)
            return refuse(o, "a list with holes (json.array or json.null)");
        return put_array(o, index, -1);
    }
    return put_object(o, index);
}

static bool put_value(struct out *o, int index)
{
    struct slice s;
    uint64_t wide;
    int kind;
    bool ok;

    switch (lua_type(o->L, index)) {
    case LUA_TNIL: buf_add_text(o->buf, "null"); return true;
    case LUA_TBOOLEAN:
        buf_add_text(o->buf, lua_toboolean(o->L, index) ? "true" : "false");
        return true;
    case LUA_TNUMBER: return put_number(o, lua_tonumber(o->L, index));
    case LUA_TSTRING:
        s.ptr = lua_tolstring(o->L, index, &s.len);
        return put_string(o, s);
    default: break;
    }
    if (vm_is_null(o->L, index)) {
        buf_add_text(o->buf, "null");
        return true;
    }
    kind = wide_integer(o->L, index, &wide);
    if (kind) {
        put_wide(o, kind, wide);
        return true;
    }
    if (++o->depth > MAX_DEPTH || !lua_checkstack(o->L, 12))
        return refuse(o, "a value nested this deep (a cycle?)");
    if (is_lazy(o->vm, o->L, index))
        ok = put_lazy(o, index);
    else if (lua_istable(o->L, index))
        ok = put_table(o, index);
    else
        ok = refuse(o, luaL_typename(o->L, index));
    o->depth--;
    return ok;
}

bool vm_encode(lua_State *L, int index, struct buf *out, struct err *err)
{
    struct out o = {.L = L, .vm = vm_of(L), .buf = out, .err = err};

    if (index < 0 && index > LUA_REGISTRYINDEX)
        index = lua_gettop(L) + index + 1;
    return put_value(&o, index);
}

void vm_encode_shown(lua_State *L, int index, struct buf *out)
{
    struct err err;
    struct out o = {
        .L = L, .vm = vm_of(L), .buf = out, .err = &err, .is_shown = true};

    if (!put_value(&o, index))
        buf_add_text(out, "null");
}

/* --- decoding ------------------------------------------------------------------------ */

struct collected {
    struct doc_owner owner;
    struct doc doc;
    char bytes[]; /* tape, strings, text */
};

/* All in one userdata: Lua frees it. */
static struct doc_owner *push_collected(lua_State *L, const struct doc *doc)
{
    size_t bytes = doc_bytes(doc);
    struct collected *c =
        lua_newuserdata(L, sizeof(*c) + bytes + doc->text.len);
    struct slice text = doc->text;

    c->owner = (struct doc_owner){.doc = &c->doc};
    c->doc = *doc;
    doc_copy(&c->doc, c->bytes);
    memcpy(c->bytes + bytes, text.ptr, text.len);
    c->doc.text = (struct slice){c->bytes + bytes, text.len};
    return &c->owner;
}

bool vm_decode(lua_State *L, struct slice text, struct err *err)
{
    struct runtime *rt = vm_of(L)->rt;
    struct doc_owner *owner;

    if (!doc_parse(rt->parser, &rt->scratch, text, false, err))
        return false;
    owner = push_collected(L, &rt->scratch);
    rt->scratch = (struct doc){0};
    lazy_push(L, owner, DOC_ROOT, lua_gettop(L));
    lua_remove(L, -2);
    return true;
}

/* --- moontide.json --------------------------------------------------------------------- */

static int l_encode(lua_State *L)
{
    struct buf buf = {0};
    struct err err;

    luaL_checkany(L, 1);
    if (!vm_encode(L, 1, &buf, &err)) {
        buf_fini(&buf);
        return luaL_error(L, "json.encode: %s", err.msg);
    }
    return push_buf(L, &buf);
}

static int l_decode(lua_State *L)
{
    struct slice text;
    struct err err;

    text.ptr = luaL_checklstring(L, 1, &text.len);
    if (vm_decode(L, text, &err))
        return 1;
    return push_err(L, CLASS_PERMANENT, "json", "%s", err.msg);
}

static int l_is_null(lua_State *L)
{
    bool is_null = false;
    uint32_t node;
    struct slice name;

    luaL_checkany(L, 1);
    if (is_lazy(vm_of(L), L, 1)) {
        struct lazy *z = lua_touserdata(L, 1);

        name.ptr = luaL_checklstring(L, 2, &name.len);
        if (z->generation != z->owner->generation)
            return luaL_error(L, "json.is_null: the delivery is over");
        if (lazy_overlaid(L, 1, name)) {
            is_null = vm_is_null(L, -1);
        } else {
            node = node_find(z->owner->doc, z->node, name.ptr, name.len);
            is_null = node && node_type(z->owner->doc, node) == NODE_NULL;
        }
    } else if (lua_istable(L, 1)) {
        lua_settop(L, 2);
        lua_pushvalue(L, 2);
        lua_rawget(L, 1);
        is_null = vm_is_null(L, -1) ||
                  (lua_isnil(L, -1) && lua_type(L, 2) == LUA_TNUMBER &&
                   lua_tonumber(L, 2) >= 1 &&
                   lua_tonumber(L, 2) <= (double)array_kept_len(L, 1));
    } else {
        is_null = vm_is_null(L, 1);
    }
    lua_pushboolean(L, is_null);
    return 1;
}

static int l_array(lua_State *L)
{
    if (lua_isnoneornil(L, 1))
        lua_newtable(L);
    else
        lua_settop(L, 1);
    luaL_checktype(L, 1, LUA_TTABLE);
    if (vm_is_array(L, 1))
        return 1;
    if (lua_getmetatable(L, 1))
        return luaL_argerror(L, 1, "the table has a metatable of its own");
    vm_push_ref(L, vm_of(L), REF_ARRAY_MT);
    lua_setmetatable(L, 1);
    return 1;
}

static int push_node_text(lua_State *L, const struct lazy *z, uint32_t node)
{
    struct slice text;

    if (!node)
        return 0;
    text = doc_locate(z->owner->doc, node);
    lua_pushlstring(L, text.ptr, text.len);
    return 1;
}

/* The text of the field as it came; of a changed one, what encode writes. */
static int text_of_lazy(lua_State *L)
{
    struct lazy *z = lua_touserdata(L, 1);
    struct slice name;
    int n;

    name.ptr = luaL_checklstring(L, 2, &name.len);
    if (z->generation != z->owner->generation)
        return luaL_error(L, "json.text: the delivery is over");
    if (!lazy_overlaid(L, 1, name)) {
        n = push_node_text(
            L, z, node_find(z->owner->doc, z->node, name.ptr, name.len));
        return n ? n : (lua_pushnil(L), 1);
    }
    if (lazy_is_removed(L, -1)) {
        lua_pushnil(L);
        return 1;
    }
    lua_replace(L, 1);
    return l_encode(L);
}

static int text_of_element(lua_State *L)
{
    int i = (int)luaL_checkinteger(L, 2);
    struct lazy *z;
    uint32_t at;

    lua_rawgeti(L, 1, i);
    if (lua_type(L, -1) == LUA_TNUMBER && array_origin(L, 1)) {
        z = lua_touserdata(L, -1);
        at = z->node + 1;
        for (int n = 1; z->generation == z->owner->generation &&
                        !node_is_end(z->owner->doc, at);
             n++, at = node_after(z->owner->doc, at))
            if (n == i && node_type(z->owner->doc, at) == NODE_DOUBLE &&
                node_double(z->owner->doc, at) == lua_tonumber(L, -2))
                return push_node_text(L, z, at);
        lua_pop(L, 1);
    }
    if (lua_isnil(L, -1))
        return 1;
    lua_replace(L, 1);
    return l_encode(L);
}

static int l_text(lua_State *L)
{
    if (is_lazy(vm_of(L), L, 1))
        return text_of_lazy(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    if (lua_type(L, 2) == LUA_TNUMBER)
        return text_of_element(L);
    lua_settop(L, 2);
    lua_rawget(L, 1);
    if (lua_isnil(L, -1))
        return 1;
    lua_replace(L, 1);
    return l_encode(L);
}

/* JSON text as a value that is written as it is. */
static int l_raw(lua_State *L)
{
    struct runtime *rt = vm_of(L)->rt;
    struct slice text;
    struct err err;

    text.ptr = luaL_checklstring(L, 1, &text.len);
    if (!doc_parse(rt->parser, &rt->scratch, text, false, &err))
        return luaL_error(L, "json.raw: %s", err.msg);
    doc_fini(&rt->scratch);
    lua_createtable(L, 1, 0);
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, 1);
    vm_push_ref(L, vm_of(L), REF_RAW_MT);
    lua_setmetatable(L, -2);
    return 1;
}

int json_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"encode", l_encode}, {"decode", l_decode}, {"is_null", l_is_null},
        {"array", l_array},   {"text", l_text},     {"raw", l_raw},
        {NULL, NULL},
    };

    luaL_newlib(L, functions);
    lua_pushlightuserdata(L, NULL);
    lua_setfield(L, -2, "null");
    return 1;
}
