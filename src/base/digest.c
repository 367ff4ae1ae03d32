#include "base/digest.h"

#include "base/check.h"
#include "base/hash.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <sys/random.h>

static void to_hex(const unsigned char *bytes, size_t len, char *hex)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < len; i++) {
        hex[2 * i] = digits[bytes[i] >> 4];
        hex[2 * i + 1] = digits[bytes[i] & 15];
    }
    hex[2 * len] = '\0';
}

void digest_parts(const struct slice *parts, size_t n,
                  char hex[static SHA256_HEX_SIZE])
{
    unsigned char md[32];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    CHECK(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL));
    for (size_t i = 0; i < n; i++) {
        uint64_t len = parts[i].len;

        CHECK(EVP_DigestUpdate(ctx, &len, sizeof(len)));
        CHECK(EVP_DigestUpdate(ctx, parts[i].ptr, parts[i].len));
    }
    CHECK(EVP_DigestFinal_ex(ctx, md, NULL));
    EVP_MD_CTX_free(ctx);
    to_hex(md, sizeof(md), hex);
}

void digest_sha256(struct slice bytes, char hex[static SHA256_HEX_SIZE])
{
    unsigned char md[32];

    CHECK(EVP_Digest(bytes.ptr, bytes.len, md, NULL, EVP_sha256(), NULL));
    to_hex(md, sizeof(md), hex);
}

void digest_hmac_sha256(struct slice key, struct slice bytes,
                        unsigned char out[static 32])
{
    CHECK(HMAC(EVP_sha256(), key.ptr, (int)key.len,
               (const unsigned char *)bytes.ptr, bytes.len, out, NULL));
}

void digest_sha1(struct slice bytes, unsigned char out[static 20])
{
    CHECK(EVP_Digest(bytes.ptr, bytes.len, out, NULL, EVP_sha1(), NULL));
}

void random_bytes(void *out, size_t len)
{
    CHECK(RAND_bytes(out, (int)len) == 1);
}

uint64_t random_u64(void)
{
    static _Thread_local uint64_t state;

    /* Not by libcrypto, whose generator takes 0.3 ms to set up. */
    if (!state)
        CHECK(getrandom(&state, sizeof(state), 0) == sizeof(state));
    state += 0x9e3779b97f4a7c15u;
    return hash_mix(state, state >> 32);
}

bool digest_equal(const void *a, const void *b, size_t len)
{
    return CRYPTO_memcmp(a, b, len) == 0;
}
