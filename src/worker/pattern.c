/*
 * Lua's patterns with a budget: find, match and gsub (with text) as in Lua
 * 5.1, but every call may take a bounded number of steps. Honest patterns such
 * as "^%s*(.-)%s*$" take seconds on a long field, hostile ones for ever, and no
 * hook can interrupt a C function. Nothing here calls back into Lua.
 */
#include "worker/vm_internal.h"

#include "base/buf.h"

#include <ctype.h>

#define MAX_CAPTURES  32
#define MAX_RECURSION 200
#define MAX_STEPS     10000000L /* about 50 ms */

#define CAPTURE_OPEN     -1
#define CAPTURE_POSITION -2

struct match {
    lua_State *L;
    const char *src, *src_end;
    const char *pat_end;
    long steps;
    int depth;
    int level;
    struct {
        const char *at;
        ptrdiff_t len;
    } capture[MAX_CAPTURES];
};

static const char *do_match(struct match *m, const char *s, const char *p);

static void count_step(struct match *m)
{
    if (++m->steps > MAX_STEPS)
        luaL_error(m->L, "pattern too complex");
}

static bool class_matches(int c, int class)
{
    bool is;

    switch (tolower(class)) {
    case 'a': is = isalpha(c); break;
    case 'c': is = iscntrl(c); break;
    case 'd': is = isdigit(c); break;
    case 'g': is = isgraph(c); break;
    case 'l': is = islower(c); break;
    case 'p': is = ispunct(c); break;
    case 's': is = isspace(c); break;
    case 'u': is = isupper(c); break;
    case 'w': is = isalnum(c); break;
    case 'x': is = isxdigit(c); break;
    case 'z': is = c == 0; break;
    default: return class == c;
    }
    return isupper(class) ? !is : is;
}

/* The end of the single-character class that starts at p. */
static const char *class_end(struct match *m, const char *p)
{
    if (*p++ == '%') {
        if (p >= m->pat_end)
            luaL_error(m->L, "malformed pattern (ends with '%%')");
        return p + 1;
    }
    if (p[-1] != '[')
        return p;
    if (p < m->pat_end && *p == '^')
        p++;
    do { /* look for a ']', which may be the first character */
        if (p >= m->pat_end)
            luaL_error(m->L, "malformed pattern (missing ']')");
        if (*p++ == '%' && p < m->pat_end)
            p++;
    } while (p >= m->pat_end || *p != ']');
    return p + 1;
}

/* `p` on '[', `end` on its ']'. */
static bool set_matches(int c, const char *p, const char *end)
{
    bool is_in = true;

    if (p[1] == '^') {
        is_in = false;
        p++;
    }
    while (++p < end) {
        if (*p == '%') {
            p++;
            if (class_matches(c, (unsigned char)*p))
                return is_in;
        } else if (p[1] == '-' && p + 2 < end) {
            p += 2;
            if ((unsigned char)p[-2] <= c && c <= (unsigned char)*p)
                return is_in;
        } else if ((unsigned char)*p == c) {
            return is_in;
        }
    }
    return !is_in;
}

static bool single_matches(struct match *m, const char *s, const char *p,
                           const char *end)
{
    int c;

    count_step(m);
    if (s >= m->src_end)
        return false;
    c = (unsigned char)*s;
    switch (*p) {
    case '.': return true;
    case '%': return class_matches(c, (unsigned char)p[1]);
    case '[': return set_matches(c, p, end - 1);
    default: return (unsigned char)*p == c;
    }
}

static const char *match_balance(struct match *m, const char *s, const char *p)
{
    int begin, end, depth = 1;

    if (p + 1 >= m->pat_end)
        luaL_error(m->L, "unbalanced pattern");
    if (s >= m->src_end || *s != *p)
        return NULL;
    begin = *p;
    end = p[1];
    while (++s < m->src_end) {
        count_step(m);
        if (*s == end) {
            if (--depth == 0)
                return s + 1;
        } else if (*s == begin) {
            depth++;
        }
    }
    return NULL;
}

static const char *expand_most(struct match *m, const char *s, const char *p,
                               const char *end)
{
    ptrdiff_t i = 0;

    while (single_matches(m, s + i, p, end))
        i++;
    for (; i >= 0; i--) {
        const char *rest = do_match(m, s + i, end + 1);

        if (rest)
            return rest;
    }
    return NULL;
}

static const char *expand_least(struct match *m, const char *s, const char *p,
                                const char *end)
{
    for (;;) {
        const char *rest = do_match(m, s, end + 1);

        if (rest)
            return rest;
        if (!single_matches(m, s, p, end))
            return NULL;
        s++;
    }
}

static const char *start_capture(struct match *m, const char *s, const char *p,
                                 int what)
{
    const char *rest;

    if (m->level >= MAX_CAPTURES)
        luaL_error(m->L, "too many captures");
    m->capture[m->level].at = s;
    m->capture[m->level].len = what;
    m->level++;
    rest = do_match(m, s, p);
    if (!rest)
        m->level--;
    return rest;
}

static const char *end_capture(struct match *m, const char *s, const char *p)
{
    int l = m->level - 1;
    const char *rest;

    while (l >= 0 && m->capture[l].len != CAPTURE_OPEN)
        l--;
    if (l < 0) {
        luaL_error(m->L, "invalid pattern capture");
        return NULL;
    }
    m->capture[l].len = s - m->capture[l].at;
    rest = do_match(m, s, p);
    if (!rest)
        m->capture[l].len = CAPTURE_OPEN;
    return rest;
}

static const char *match_back_reference(struct match *m, const char *s, int c)
{
    int l = c - '1';
    size_t len;

    if (l < 0 || l >= m->level || m->capture[l].len == CAPTURE_OPEN) {
        luaL_error(m->L, "invalid capture index");
        return NULL;
    }
    len = m->capture[l].len < 0 ? 0 : (size_t)m->capture[l].len;
    if ((size_t)(m->src_end - s) >= len &&
        memcmp(m->capture[l].at, s, len) == 0)
        return s + len;
    return NULL;
}

static const char *match_frontier(struct match *m, const char *s, const char *p,
                                  const char **next)
{
    int before, here;

    if (p >= m->pat_end || *p != '[')
        luaL_error(m->L, "missing '[' after '%%f' in pattern");
    *next = class_end(m, p);
    before = s == m->src ? 0 : (unsigned char)s[-1];
    here = s < m->src_end ? (unsigned char)*s : 0;
    if (set_matches(before, p, *next - 1) || !set_matches(here, p, *next - 1))
        return NULL;
    return s;
}

/* A single character with its suffix. Returns the end of the match, or sets
 * *s and *p to go on with, or NULL. */
static const char *match_single(struct match *m, const char **s, const char **p,
                                bool *go_on)
{
    const char *end = class_end(m, *p), *rest;
    char suffix = end < m->pat_end ? *end : 0;

    *go_on = false;
    switch (suffix) {
    case '?':
        if (single_matches(m, *s, *p, end) &&
            (rest = do_match(m, *s + 1, end + 1)) != NULL)
            return rest;
        *p = end + 1;
        *go_on = true;
        return NULL;
    case '*': return expand_most(m, *s, *p, end);
    case '+':
        return single_matches(m, *s, *p, end) ? expand_most(m, *s + 1, *p, end)
                                              : NULL;
    case '-': return expand_least(m, *s, *p, end);
    default:
        if (!single_matches(m, *s, *p, end))
            return NULL;
        (*s)++;
        *p = end;
        *go_on = true;
        return NULL;
    }
}

static const char *match_here(struct match *m, const char *s, const char *p)
{
    bool go_on;
    const char *end;

    for (;;) {
        if (p == m->pat_end)
            return s;
        if (*p == '(') {
            if (p + 1 < m->pat_end && p[1] == ')')
                return start_capture(m, s, p + 2, CAPTURE_POSITION);
            return start_capture(m, s, p + 1, CAPTURE_OPEN);
        }
        if (*p == ')')
            return end_capture(m, s, p + 1);
        if (*p == '$' && p + 1 == m->pat_end)
            return s == m->src_end ? s : NULL;
        if (*p == '%' && p + 1 < m->pat_end && p[1] == 'b') {
            s = match_balance(m, s, p + 2);
            p += 4;
        } else if (*p == '%' && p + 1 < m->pat_end && p[1] == 'f') {
            s = match_frontier(m, s, p + 2, &p);
        } else if (*p == '%' && p + 1 < m->pat_end &&
                   isdigit((unsigned char)p[1])) {
            s = match_back_reference(m, s, (unsigned char)p[1]);
            p += 2;
        } else {
            end = match_single(m, &s, &p, &go_on);
            if (!go_on)
                return end;
            continue;
        }
        if (!s)
            return NULL;
    }
}

static const char *do_match(struct match *m, const char *s, const char *p)
{
    const char *end;

    if (++m->depth > MAX_RECURSION)
        luaL_error(m->L, "pattern too complex");
    count_step(m);
    end = match_here(m, s, p);
    m->depth--;
    return end;
}

/* --- captures ------------------------------------------------------------------- */

static void push_capture(struct match *m, int i, const char *s, const char *end)
{
    if (i >= m->level) {
        if (i != 0)
            luaL_error(m->L, "invalid capture index");
        lua_pushlstring(m->L, s, (size_t)(end - s));
        return;
    }
    if (m->capture[i].len == CAPTURE_OPEN)
        luaL_error(m->L, "unfinished capture");
    if (m->capture[i].len == CAPTURE_POSITION)
        lua_pushinteger(m->L, m->capture[i].at - m->src + 1);
    else
        lua_pushlstring(m->L, m->capture[i].at, (size_t)m->capture[i].len);
}

static int push_captures(struct match *m, const char *s, const char *end,
                         bool whole_if_none)
{
    int n = m->level == 0 && whole_if_none ? 1 : m->level;

    luaL_checkstack(m->L, n, "too many captures");
    for (int i = 0; i < n; i++)
        push_capture(m, i, s, end);
    return n;
}

/* --- find and match --------------------------------------------------------------- */

static bool has_specials(const char *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (strchr("^$*+?.([%-", p[i]) && p[i])
            return true;
    return false;
}

static size_t start_of(lua_Integer init, size_t len)
{
    if (init < 0)
        init += (lua_Integer)len + 1;
    return init < 1 ? 0 : (size_t)init - 1;
}

static int find_plain(lua_State *L, const char *s, size_t len, size_t init,
                      const char *p, size_t p_len)
{
    const char *at = p_len ? memmem(s + init, len - init, p, p_len) : s + init;

    if (!at) {
        lua_pushnil(L);
        return 1;
    }
    lua_pushinteger(L, at - s + 1);
    lua_pushinteger(L, at - s + (lua_Integer)p_len);
    return 2;
}

static int search(lua_State *L, bool is_find)
{
    size_t len, p_len, init;
    const char *s = luaL_checklstring(L, 1, &len);
    const char *p = luaL_checklstring(L, 2, &p_len);
    bool is_anchored = p_len && *p == '^' && !lua_toboolean(L, 5);
    struct match m = {.L = L, .src = s, .src_end = s + len};
    const char *at, *end;

    init = start_of(luaL_optinteger(L, 3, 1), len);
    if (init > len) {
        lua_pushnil(L);
        return 1;
    }
    if (is_find && (lua_toboolean(L, 4) || !has_specials(p, p_len)) &&
        !lua_toboolean(L, 5))
        return find_plain(L, s, len, init, p, p_len);
    m.pat_end = p + p_len;
    p += is_anchored;
    for (at = s + init; at <= m.src_end; at++) {
        m.level = m.depth = 0;
        end = do_match(&m, at, p);
        if (end && !is_find)
            return push_captures(&m, at, end, true);
        if (end) {
            lua_pushinteger(L, at - s + 1);
            lua_pushinteger(L, end - s);
            return push_captures(&m, at, end, false) + 2;
        }
        if (is_anchored)
            break;
    }
    lua_pushnil(L);
    return 1;
}

/* (s, p, init, plain, no_anchor) */
static int l_find(lua_State *L)
{
    return search(L, true);
}

static int l_match(lua_State *L)
{
    lua_settop(L, 3);
    return search(L, false);
}

/* --- gsub with text ------------------------------------------------------------------ */

static int gsub_buf_gc(lua_State *L)
{
    buf_fini(lua_touserdata(L, 1));
    return 0;
}

/* Results go to a userdata, which Lua frees should anything raise. */
static struct buf *push_gsub_buf(lua_State *L)
{
    struct buf *b = lua_newuserdata(L, sizeof(*b));

    *b = (struct buf){0};
    if (luaL_newmetatable(L, "moontide.buf")) {
        lua_pushcfunction(L, gsub_buf_gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    return b;
}

static void add_replacement(struct match *m, struct buf *out, struct slice repl,
                            const char *s, const char *end)
{
    for (size_t i = 0; i < repl.len; i++) {
        struct slice text;
        int digit;

        if (repl.ptr[i] != '%') {
            buf_add_char(out, repl.ptr[i]);
            continue;
        }
        i++;
        digit = i < repl.len ? (unsigned char)repl.ptr[i] : 0;
        if (!isdigit(digit)) {
            if (i < repl.len)
                buf_add_char(out, repl.ptr[i]);
            continue;
        }
        if (digit == '0') {
            buf_add(out, s, (size_t)(end - s));
            continue;
        }
        push_capture(m, digit - '1', s, end);
        text.ptr = lua_tolstring(m->L, -1, &text.len);
        buf_add(out, text.ptr, text.len);
        lua_pop(m->L, 1);
    }
}

#define MAX_RESULT ((size_t)64 << 20)

static int l_gsub(lua_State *L)
{
    size_t len, p_len;
    const char *s = luaL_checklstring(L, 1, &len);
    const char *p = luaL_checklstring(L, 2, &p_len);
    struct slice repl;
    lua_Number limit = luaL_optnumber(L, 4, (lua_Number)len + 1);
    bool is_anchored = p_len && *p == '^';
    struct match m = {
        .L = L, .src = s, .src_end = s + len, .pat_end = p + p_len};
    struct buf *out;
    lua_Integer n = 0;

    repl.ptr = luaL_checklstring(L, 3, &repl.len);
    out = push_gsub_buf(L);
    p += is_anchored;
    while ((lua_Number)n < limit) {
        const char *end;

        m.level = m.depth = 0;
        end = do_match(&m, s, p);
        if (end) {
            n++;
            add_replacement(&m, out, repl, s, end);
        }
        if (out->len > MAX_RESULT)
            return luaL_error(L, "the result of gsub is too large");
        if (end && end > s)
            s = end;
        else if (s < m.src_end)
            buf_add_char(out, *s++);
        else
            break;
        if (is_anchored)
            break;
    }
    buf_add(out, s, (size_t)(m.src_end - s));
    lua_pushlstring(L, out->ptr ? out->ptr : "", out->len);
    buf_fini(out);
    lua_pushinteger(L, n);
    return 2;
}

int pattern_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"find", l_find}, {"match", l_match}, {"gsub", l_gsub}, {NULL, NULL}};

    luaL_newlib(L, functions);
    return 1;
}
