#include "core/pattern.h"

/* The segment that starts at `s`, without the dot. */
static struct slice segment(struct slice s)
{
    const char *dot = s.len ? memchr(s.ptr, '.', s.len) : NULL;

    return (struct slice){s.ptr, dot ? (size_t)(dot - s.ptr) : s.len};
}

static struct slice after(struct slice s, struct slice head)
{
    size_t skip = head.len + (head.len < s.len);

    return (struct slice){s.ptr + skip, s.len - skip};
}

static bool segment_match(struct slice pattern, struct slice text)
{
    if (slice_is(pattern, "*"))
        return text.len > 0;
    if (pattern.len && pattern.ptr[pattern.len - 1] == '*')
        return text.len >= pattern.len - 1 &&
               memcmp(text.ptr, pattern.ptr, pattern.len - 1) == 0;
    return slice_eq(pattern, text);
}

/* Depth is bounded by the number of "**", which pattern_check() limits. */
static bool match(struct slice pattern, struct slice type)
{
    struct slice p = segment(pattern), t = segment(type);

    if (slice_is(p, "**")) {
        struct slice rest = after(pattern, p);

        for (; type.len; type = after(type, segment(type)))
            if (rest.len == 0 || match(rest, after(type, segment(type))))
                return true;
        return false;
    }
    if (pattern.len == 0 || type.len == 0)
        return pattern.len == type.len;
    if (!segment_match(p, t))
        return false;
    if (p.len == pattern.len || t.len == type.len)
        return p.len == pattern.len && t.len == type.len;
    return match(after(pattern, p), after(type, t));
}

bool pattern_match(const char *pattern, struct slice type)
{
    if (strcmp(pattern, "*") == 0)
        return true;
    return match(slice_of(pattern), type);
}

bool patterns_match(const char *const *patterns, size_t n, struct slice type)
{
    bool only_exclusions = true, matched = false;

    for (size_t i = 0; i < n; i++) {
        if (patterns[i][0] == '!') {
            if (pattern_match(patterns[i] + 1, type))
                return false;
        } else {
            only_exclusions = false;
            matched = matched || pattern_match(patterns[i], type);
        }
    }
    return matched || (only_exclusions && n > 0);
}

bool pattern_check(const char *pattern, struct err *err)
{
    const char *p = pattern + (*pattern == '!');
    int many = 0;

    if (!*p || strlen(p) > 200)
        return err_set(err, ERR_PERMANENT,
                       "a subscription is 1 to 200 characters long");
    for (const char *s = p; *s; s += *s == '.') {
        size_t len = strcspn(s, ".");
        const char *star = memchr(s, '*', len);

        if (len == 0)
            return err_set(err, ERR_PERMANENT,
                           "subscription \"%s\" has an empty segment", pattern);
        many += len == 2 && s[0] == '*' && s[1] == '*';
        if (star && !(len == 2 && s[1] == '*' && s[0] == '*') &&
            star != s + len - 1)
            return err_set(err, ERR_PERMANENT,
                           "subscription \"%s\": * stands alone in a segment "
                           "or at its end",
                           pattern);
        s += len;
    }
    if (many > 2)
        return err_set(err, ERR_PERMANENT,
                       "subscription \"%s\" has more than two **", pattern);
    return true;
}
