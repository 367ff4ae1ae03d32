/*
 * The first byte of a kind in a text, sixteen at a time where the processor
 * can. All give `end` when there is none, and read nothing beyond it.
 */
#ifndef MT_BASE_FIND_H
#define MT_BASE_FIND_H

#include <stdbool.h>

#ifdef __SSE2__
#    include <emmintrin.h>
#    define FIND_WIDTH 16

static inline __m128i find_is(__m128i bytes, char c)
{
    return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(c));
}

static inline __m128i find_load(const char *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}
#endif

static inline const char *find_either(const char *at, const char *end, char a,
                                      char b)
{
#ifdef __SSE2__
    for (; end - at >= FIND_WIDTH; at += FIND_WIDTH) {
        __m128i bytes = find_load(at);
        int found = _mm_movemask_epi8(
            _mm_or_si128(find_is(bytes, a), find_is(bytes, b)));

        if (found)
            return at + __builtin_ctz((unsigned)found);
    }
#endif
    while (at < end && *at != a && *at != b)
        at++;
    return at;
}

/* What JSON is built of: a quote, or a bracket of either kind. */
static inline bool find_is_structure(char c)
{
    char folded = (char)(c | 0x20); /* [ and ] are { and } then */

    return c == '"' || folded == '{' || folded == '}';
}

static inline const char *find_structure(const char *at, const char *end)
{
#ifdef __SSE2__
    for (; end - at >= FIND_WIDTH; at += FIND_WIDTH) {
        __m128i bytes = find_load(at);
        __m128i folded = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        int found = _mm_movemask_epi8(_mm_or_si128(
            find_is(bytes, '"'),
            _mm_or_si128(find_is(folded, '{'), find_is(folded, '}'))));

        if (found)
            return at + __builtin_ctz((unsigned)found);
    }
#endif
    while (at < end && !find_is_structure(*at))
        at++;
    return at;
}

/* A control character (below the space), or `c`. */
static inline const char *find_control_or(const char *at, const char *end,
                                          char c)
{
#ifdef __SSE2__
    const __m128i last = _mm_set1_epi8(0x1f);

    for (; end - at >= FIND_WIDTH; at += FIND_WIDTH) {
        __m128i bytes = find_load(at);
        __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, last), bytes);
        int found = _mm_movemask_epi8(_mm_or_si128(control, find_is(bytes, c)));

        if (found)
            return at + __builtin_ctz((unsigned)found);
    }
#endif
    while (at < end && (unsigned char)*at >= 0x20 && *at != c)
        at++;
    return at;
}

#endif
