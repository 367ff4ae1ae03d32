#include "core/ranges.h"

#include "base/buf.h"
#include "base/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void ranges_fini(struct ranges *r)
{
    free(r->at);
    *r = (struct ranges){0};
}

void ranges_clear(struct ranges *r)
{
    r->len = 0;
}

static void reserve(struct ranges *r, size_t n)
{
    if (n <= r->cap)
        return;
    r->cap = n < 8 ? 8 : 2 * n;
    r->at = xrealloc(r->at, r->cap * sizeof(*r->at));
}

void ranges_copy(struct ranges *to, const struct ranges *from)
{
    reserve(to, from->len);
    if (from->len)
        memcpy(to->at, from->at, from->len * sizeof(*to->at));
    to->len = from->len;
}

/* Index of the first range that ends at or after `n`. */
static size_t search(const struct ranges *r, int64_t n)
{
    size_t lo = 0, hi = r->len;

    while (lo < hi) {
        size_t mid = (lo + hi) / 2;

        if (r->at[mid].last < n)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Replace `n_old` ranges from `i` on by `n_new` ones. */
static void splice(struct ranges *r, size_t i, size_t n_old,
                   const struct range *with, size_t n_new)
{
    reserve(r, r->len + n_new);
    memmove(&r->at[i + n_new], &r->at[i + n_old],
            (r->len - i - n_old) * sizeof(*r->at));
    if (n_new)
        memcpy(&r->at[i], with, n_new * sizeof(*with));
    r->len = r->len - n_old + n_new;
}

void ranges_add(struct ranges *r, int64_t first, int64_t last)
{
    struct range merged = {first, last};
    size_t i = search(r, first == INT64_MIN ? first : first - 1), n = 0;

    if (first > last)
        return;
    while (i + n < r->len &&
           (last == INT64_MAX || r->at[i + n].first <= last + 1)) {
        if (r->at[i + n].first < merged.first)
            merged.first = r->at[i + n].first;
        if (r->at[i + n].last > merged.last)
            merged.last = r->at[i + n].last;
        n++;
    }
    splice(r, i, n, &merged, 1);
}

void ranges_remove(struct ranges *r, int64_t first, int64_t last)
{
    struct range rest[2];
    size_t i = search(r, first), n = 0, n_rest = 0;

    while (i + n < r->len && r->at[i + n].first <= last)
        n++;
    if (n == 0)
        return;
    if (r->at[i].first < first)
        rest[n_rest++] = (struct range){r->at[i].first, first - 1};
    if (r->at[i + n - 1].last > last)
        rest[n_rest++] = (struct range){last + 1, r->at[i + n - 1].last};
    splice(r, i, n, rest, n_rest);
}

bool ranges_has(const struct ranges *r, int64_t n)
{
    size_t i = search(r, n);

    return i < r->len && r->at[i].first <= n;
}

void ranges_cut(struct ranges *r, int64_t limit)
{
    if (limit > INT64_MIN)
        ranges_remove(r, limit, INT64_MAX);
    else
        ranges_clear(r);
}

void ranges_unite(struct ranges *r, const struct ranges *with)
{
    for (size_t i = 0; i < with->len; i++)
        ranges_add(r, with->at[i].first, with->at[i].last);
}

void ranges_unite_common(struct ranges *r, const struct ranges *a,
                         const struct ranges *b)
{
    for (size_t i = 0, k = 0; i < a->len && k < b->len;) {
        const struct range *x = &a->at[i], *y = &b->at[k];

        ranges_add(r, x->first > y->first ? x->first : y->first,
                   x->last < y->last ? x->last : y->last);
        if (x->last < y->last)
            i++;
        else
            k++;
    }
}

void ranges_print(const struct ranges *r, struct buf *out)
{
    buf_add_char(out, '{');
    for (size_t i = 0; i < r->len; i++)
        buf_printf(out, "%s[%lld,%lld)", i ? "," : "",
                   (long long)r->at[i].first, (long long)r->at[i].last + 1);
    buf_add_char(out, '}');
}

/* One "[a,b)" at *p. */
static bool parse_range(const char **p, struct range *out)
{
    char open = **p, *end;

    if (open != '[' && open != '(')
        return false;
    errno = 0;
    out->first = strtoll(*p + 1, &end, 10) + (open == '(');
    if (errno || end == *p + 1 || *end != ',')
        return false;
    *p = end + 1;
    out->last = strtoll(*p, &end, 10);
    if (errno || end == *p || (*end != ')' && *end != ']'))
        return false;
    out->last -= *end == ')';
    *p = end + 1;
    return true;
}

bool ranges_parse(struct ranges *r, const char *text)
{
    const char *p = text;
    struct range one;

    ranges_clear(r);
    if (*p++ != '{')
        return false;
    while (*p && *p != '}') {
        if (!parse_range(&p, &one))
            return false;
        ranges_add(r, one.first, one.last);
        if (*p == ',')
            p++;
    }
    return p[0] == '}' && p[1] == '\0';
}
