/* moontide.text: in linear time what patterns do slowly. */
#include "worker/vm_internal.h"

#include "base/buf.h"

#include <ctype.h>

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int l_trim(lua_State *L)
{
    size_t len;
    const char *s = luaL_checklstring(L, 1, &len);

    while (len && is_blank(*s))
        s++, len--;
    while (len && is_blank(s[len - 1]))
        len--;
    lua_pushlstring(L, s, len);
    return 1;
}

/* (s, separator, max) */
static int l_split(lua_State *L)
{
    size_t len, sep_len;
    const char *s = luaL_checklstring(L, 1, &len);
    const char *sep = luaL_checklstring(L, 2, &sep_len);
    lua_Integer max = luaL_optinteger(L, 3, -1);
    const char *end = s + len, *at;
    int n = 0;

    luaL_argcheck(L, sep_len > 0, 2, "an empty separator");
    lua_newtable(L);
    while (max < 0 || n + 1 < max) {
        at = memmem(s, (size_t)(end - s), sep, sep_len);
        if (!at)
            break;
        lua_pushlstring(L, s, (size_t)(at - s));
        lua_rawseti(L, -2, ++n);
        s = at + sep_len;
    }
    lua_pushlstring(L, s, (size_t)(end - s));
    lua_rawseti(L, -2, ++n);
    return 1;
}

static int l_starts_with(lua_State *L)
{
    size_t len, part_len;
    const char *s = luaL_checklstring(L, 1, &len);
    const char *part = luaL_checklstring(L, 2, &part_len);

    lua_pushboolean(L, part_len <= len && memcmp(s, part, part_len) == 0);
    return 1;
}

static int l_ends_with(lua_State *L)
{
    size_t len, part_len;
    const char *s = luaL_checklstring(L, 1, &len);
    const char *part = luaL_checklstring(L, 2, &part_len);

    lua_pushboolean(L, part_len <= len &&
                           memcmp(s + len - part_len, part, part_len) == 0);
    return 1;
}

/* --- redact ------------------------------------------------------------------------ */

static bool is_mail_char(unsigned char c)
{
    return isalnum(c) || c >= 0x80 || (c && strchr("._%+-", c));
}

/* Length of the run of mail characters at `at`. */
static size_t word_len(const char *at, const char *end)
{
    const char *p = at;

    while (p < end && is_mail_char((unsigned char)*p))
        p++;
    return (size_t)(p - at);
}

static bool is_number_char(char c)
{
    return isdigit((unsigned char)c) || c == ' ' || c == '-' || c == '.' ||
           c == '(' || c == ')' || c == '/';
}

/* Digits and separators that look like a phone or card number: 7 digits or
 * more. Returns its length, ending with a digit, or 0. It begins with a digit
 * or with the bracket before one: of less than 7 digits there are few, and so
 * are the beginnings from which the separators behind them are read. */
static size_t number_len(const char *at, const char *end)
{
    const char *p = at, *last = NULL;
    int digits = 0;

    if (p < end && *p == '+')
        p++;
    if (p < end && *p == '(')
        p++;
    if (p >= end || !isdigit((unsigned char)*p))
        return 0;
    for (; p < end && is_number_char(*p); p++)
        if (isdigit((unsigned char)*p)) {
            digits++;
            last = p;
        }
    return digits >= 7 && last ? (size_t)(last + 1 - at) : 0;
}

/* Every character is looked at a fixed number of times: a number that is none
 * is copied whole, and so is a word without an address. */
static void redact(struct buf *out, const char *at, const char *end)
{
    while (at < end) {
        size_t n = number_len(at, end);
        size_t word = n ? 0 : word_len(at, end);

        if (n) {
            buf_add_text(out, "***");
            at += n;
            continue;
        }
        if (word && at + word < end && at[word] == '@') {
            size_t domain = word_len(at + word + 1, end);

            if (domain && memchr(at + word + 1, '.', domain)) {
                buf_add_text(out, "***");
                at += word + 1 + domain;
                continue;
            }
        }
        n = word ? word : 1;
        buf_add(out, at, n);
        at += n;
    }
}

static int l_redact(lua_State *L)
{
    struct buf out = {0};
    size_t len;
    const char *s = luaL_checklstring(L, 1, &len);

    redact(&out, s, s + len);
    return push_buf(L, &out);
}

int text_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"trim", l_trim},           {"split", l_split},
        {"redact", l_redact},       {"starts_with", l_starts_with},
        {"ends_with", l_ends_with}, {NULL, NULL},
    };

    luaL_newlib(L, functions);
    return 1;
}
