/* Hashes and random numbers that others may rely on (libcrypto). */
#ifndef MT_BASE_DIGEST_H
#define MT_BASE_DIGEST_H

#include "base/slice.h"

#include <stdint.h>

#define SHA256_HEX_SIZE 65
#define UUID_TEXT_SIZE  37

/* Lower-case hex of the SHA-256 of all parts in a row; each part is preceded
 * by its length, so that moving bytes between parts changes the digest. */
void digest_parts(const struct slice *parts, size_t n,
                  char hex[static SHA256_HEX_SIZE]);

/* Lower-case hex of the plain SHA-256. */
void digest_sha256(struct slice bytes, char hex[static SHA256_HEX_SIZE]);

/* Raw HMAC-SHA-256 (RFC 2104). */
void digest_hmac_sha256(struct slice key, struct slice bytes,
                        unsigned char out[static 32]);

/* Raw SHA-1, for UUIDv5 (RFC 9562) only. */
void digest_sha1(struct slice bytes, unsigned char out[static 20]);

void random_bytes(void *out, size_t len);
uint64_t random_u64(void); /* fast, not for secrets */

/* Equal or not, in a time that does not depend on where they differ. */
bool digest_equal(const void *a, const void *b, size_t len);

#endif
