/*
 * Subscriptions. By case: an exact type; "*" alone is every type; in a dotted
 * name "*" is one segment and "**" one or more; a trailing "*" inside the last
 * segment is any rest of it ("Invoice*"); a leading "!" excludes.
 */
#ifndef MT_CORE_PATTERN_H
#define MT_CORE_PATTERN_H

#include "base/err.h"
#include "base/slice.h"

/* One pattern without its "!". */
bool pattern_match(const char *pattern, struct slice type);

/* A list: some pattern matches and no excluding one does. A list of nothing
 * but exclusions matches what it does not exclude. */
bool patterns_match(const char *const *patterns, size_t n, struct slice type);

bool pattern_check(const char *pattern, struct err *err) MUST_CHECK;

#endif
