/*
 * A set of int64 numbers as sorted, disjoint, inclusive ranges: open gaps of
 * the outbox, places not yet settled. {0} is the empty set.
 */
#ifndef MT_CORE_RANGES_H
#define MT_CORE_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;

struct range {
    int64_t first, last; /* both inside */
};

struct ranges {
    struct range *at;
    size_t len, cap;
};

void ranges_fini(struct ranges *r);
void ranges_clear(struct ranges *r);
void ranges_copy(struct ranges *to, const struct ranges *from);

void ranges_add(struct ranges *r, int64_t first, int64_t last);
void ranges_remove(struct ranges *r, int64_t first, int64_t last);
bool ranges_has(const struct ranges *r, int64_t n);
/* Drop everything at or above `limit`. */
void ranges_cut(struct ranges *r, int64_t limit);
void ranges_unite(struct ranges *r, const struct ranges *with);
/* Add what is in both `a` and `b`. */
void ranges_unite_common(struct ranges *r, const struct ranges *a,
                         const struct ranges *b);

/* PostgreSQL's int8multirange text: {[3,5),[9,10)}. Parsing takes [ ] ( ) as
 * PostgreSQL prints them. */
void ranges_print(const struct ranges *r, struct buf *out);
bool ranges_parse(struct ranges *r, const char *text);

#endif
