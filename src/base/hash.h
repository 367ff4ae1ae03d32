/* A fast 64-bit hash for lanes and tables; not against attackers: digest.h has
 * the other kind. It has no seed and must stay what it is: parked deliveries
 * are stored with their lane. */
#ifndef MT_BASE_HASH_H
#define MT_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t hash_mix(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xe7037ed1a0b428dbu);

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash_bytes(const void *bytes, size_t len)
{
    const char *p = bytes;
    uint64_t h = len, word;

    for (; len >= 8; p += 8, len -= 8) {
        memcpy(&word, p, 8);
        h = hash_mix(h, word);
    }
    word = 0;
    if (len)
        memcpy(&word, p, len);
    return hash_mix(h, word);
}

#endif
