/* moontide.crypto and moontide.uuid. Digests are bytes; hex and base64 write
 * them. */
#include "worker/vm_internal.h"

#include "base/clock.h"
#include "base/digest.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>

static const EVP_MD *check_algorithm(lua_State *L, int index)
{
    const char *name = luaL_checkstring(L, index);

    if (strcmp(name, "sha256") == 0)
        return EVP_sha256();
    if (strcmp(name, "sha512") == 0)
        return EVP_sha512();
    if (strcmp(name, "sha1") == 0)
        return EVP_sha1();
    luaL_argerror(L, index, "sha256, sha512 or sha1 expected");
    return NULL;
}

static int l_hash(lua_State *L)
{
    const EVP_MD *md = check_algorithm(L, 1);
    unsigned char out[EVP_MAX_MD_SIZE];
    unsigned int out_len = 0;
    size_t len;
    const char *s = luaL_checklstring(L, 2, &len);

    if (!EVP_Digest(s, len, out, &out_len, md, NULL))
        return luaL_error(L, "crypto.hash failed");
    lua_pushlstring(L, (const char *)out, out_len);
    return 1;
}

static int l_hmac(lua_State *L)
{
    const EVP_MD *md = check_algorithm(L, 1);
    unsigned char out[EVP_MAX_MD_SIZE];
    unsigned int out_len = 0;
    size_t key_len, len;
    const char *key = luaL_checklstring(L, 2, &key_len);
    const char *s = luaL_checklstring(L, 3, &len);

    luaL_argcheck(L, key_len < (1u << 20), 2, "a key this long");
    if (!HMAC(md, key, (int)key_len, (const unsigned char *)s, len, out,
              &out_len))
        return luaL_error(L, "crypto.hmac failed");
    lua_pushlstring(L, (const char *)out, out_len);
    return 1;
}

static int l_hex(lua_State *L)
{
    static const char digits[] = "0123456789abcdef";
    size_t len;
    const unsigned char *s =
        (const unsigned char *)luaL_checklstring(L, 1, &len);
    luaL_Buffer b;

    luaL_buffinit(L, &b);
    for (size_t i = 0; i < len; i++) {
        luaL_addchar(&b, digits[s[i] >> 4]);
        luaL_addchar(&b, digits[s[i] & 15]);
    }
    luaL_pushresult(&b);
    return 1;
}

static int l_base64(lua_State *L)
{
    size_t len;
    const char *s = luaL_checklstring(L, 1, &len);
    unsigned char *out;

    luaL_argcheck(L, len < (1u << 28), 1, "text this long");
    out = lua_newuserdata(L, (len + 2) / 3 * 4 + 1);
    EVP_EncodeBlock(out, (const unsigned char *)s, (int)len);
    lua_pushstring(L, (const char *)out);
    return 1;
}

static int l_random(lua_State *L)
{
    lua_Integer n = luaL_checkinteger(L, 1);
    char *out;

    luaL_argcheck(L, n >= 0 && n <= 65536, 1, "0 to 65536 bytes");
    out = lua_newuserdata(L, (size_t)n + 1);
    random_bytes(out, (size_t)n);
    lua_pushlstring(L, out, (size_t)n);
    return 1;
}

static int l_equal(lua_State *L)
{
    size_t a_len, b_len;
    const char *a = luaL_checklstring(L, 1, &a_len);
    const char *b = luaL_checklstring(L, 2, &b_len);

    lua_pushboolean(L, a_len == b_len && digest_equal(a, b, a_len));
    return 1;
}

int crypto_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"hash", l_hash},     {"hmac", l_hmac},     {"hex", l_hex},
        {"base64", l_base64}, {"random", l_random}, {"equal", l_equal},
        {NULL, NULL},
    };

    luaL_newlib(L, functions);
    return 1;
}

/* --- moontide.uuid ------------------------------------------------------------------ */

static int push_uuid(lua_State *L, unsigned char u[16], int version)
{
    char text[UUID_TEXT_SIZE];

    u[6] = (unsigned char)((u[6] & 0x0f) | version << 4);
    u[8] = (unsigned char)((u[8] & 0x3f) | 0x80);
    snprintf(text, sizeof(text),
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x"
             "%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10],
             u[11], u[12], u[13], u[14], u[15]);
    lua_pushstring(L, text);
    return 1;
}

static int l_v4(lua_State *L)
{
    unsigned char u[16];

    random_bytes(u, sizeof(u));
    return push_uuid(L, u, 4);
}

static int l_v7(lua_State *L)
{
    unsigned char u[16];
    uint64_t ms = (uint64_t)clock_wall_us() / 1000;

    random_bytes(u, sizeof(u));
    for (int i = 0; i < 6; i++)
        u[i] = (unsigned char)(ms >> (40 - i * 8));
    return push_uuid(L, u, 7);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_uuid(const char *text, unsigned char u[16])
{
    int n = 0;

    for (; *text; text++) {
        int high, low;

        if (*text == '-')
            continue;
        high = hex_value(text[0]);
        low = text[1] ? hex_value(text[1]) : -1;
        if (high < 0 || low < 0 || n == 16)
            return false;
        u[n++] = (unsigned char)(high << 4 | low);
        text++;
    }
    return n == 16;
}

static int l_v5(lua_State *L)
{
    unsigned char space[16], hash[20];
    struct slice both;
    size_t len;
    const char *name;
    char *bytes;

    luaL_argcheck(L, parse_uuid(luaL_checkstring(L, 1), space), 1,
                  "a UUID expected");
    name = luaL_checklstring(L, 2, &len);
    bytes = lua_newuserdata(L, sizeof(space) + len);
    memcpy(bytes, space, sizeof(space));
    memcpy(bytes + sizeof(space), name, len);
    both = (struct slice){bytes, sizeof(space) + len};
    digest_sha1(both, hash);
    return push_uuid(L, hash, 5);
}

int uuid_open(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"v4", l_v4}, {"v5", l_v5}, {"v7", l_v7}, {NULL, NULL}};

    luaL_newlib(L, functions);
    return 1;
}
