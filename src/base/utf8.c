#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

static bool is_tail(unsigned char c)
{
    return (c & 0xc0) == 0x80;
}

static bool second_is_ok(unsigned char first, unsigned char second)
{
    switch (first) {
    case 0xe0: return second >= 0xa0 && second <= 0xbf;
    case 0xed: return second >= 0x80 && second <= 0x9f;
    case 0xf0: return second >= 0x90 && second <= 0xbf;
    case 0xf4: return second >= 0x80 && second <= 0x8f;
    default: return is_tail(second);
    }
}

static size_t expected_len(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf)
        return 2;
    if (first >= 0xe0 && first <= 0xef)
        return 3;
    if (first >= 0xf0 && first <= 0xf4)
        return 4;
    return 0;
}

size_t utf8_char_len(const char *ptr, size_t left)
{
    const unsigned char *s = (const unsigned char *)ptr;
    size_t len = left ? expected_len(s[0]) : 0;

    if (len == 0 || len > left)
        return 0;
    if (len > 1 && !second_is_ok(s[0], s[1]))
        return 0;
    for (size_t i = 2; i < len; i++)
        if (!is_tail(s[i]))
            return 0;
    return len;
}

static bool has_high_bit(const char *ptr, size_t len)
{
    uint64_t word = 0;

    memcpy(&word, ptr, len);
    return word & 0x8080808080808080u;
}

/* Most texts are: eight bytes at a time, the last eight maybe once more. */
static bool is_ascii(const char *ptr, size_t len)
{
    if (len < 8)
        return !len || !has_high_bit(ptr, len);
    for (size_t i = 0; i + 8 < len; i += 8)
        if (has_high_bit(ptr + i, 8))
            return false;
    return !has_high_bit(ptr + len - 8, 8);
}

bool utf8_is_valid(const char *ptr, size_t len)
{
    if (is_ascii(ptr, len))
        return true;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_char_len(ptr + i, len - i);

        if (n == 0)
            return false;
        i += n;
    }
    return true;
}
