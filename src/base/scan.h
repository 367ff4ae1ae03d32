/*
 * Reading a few members of a JSON text without building a tree (simdjson).
 *
 * A string comes back without quotes and unescaped, anything else as the text
 * it is in the JSON; null and what is not there are absent slices. Where a name
 * comes twice the first counts. Values point into `json`, or, for strings with
 * escapes, into the scanner, where they stay until the next call.
 *
 * simdjson reads up to SCAN_PADDING bytes beyond the text. `padded` says that
 * they can be read (whatever they are); else the text is copied first.
 *
 * The whole text must be UTF-8 and its members must parse as far as they are
 * looked at; members nobody asked for are passed over without a close look.
 */
#ifndef MT_BASE_SCAN_H
#define MT_BASE_SCAN_H

#include "base/err.h"
#include "base/slice.h"

#include <stdbool.h>
#include <stddef.h>

#define SCAN_PADDING 64 /* at least simdjson's own */

struct scan;

struct scan *scan_new(void);
void scan_free(struct scan *scan); /* NULL is allowed */

/* `json` is one object; values[i] is its member names[i]. The names are borrowed
 * until the next call with others: literals, as a rule. */
bool scan_members(struct scan *scan, struct slice json, bool padded,
                  const char *const *names, size_t n, struct slice *values,
                  struct err *err) MUST_CHECK;

/* The value at `path`, such as payload.phone. false when json does not parse;
 * a path that leads nowhere is an absent value. */
bool scan_path(struct scan *scan, struct slice json, const char *path,
               struct slice *value, struct err *err) MUST_CHECK;

/* Does the text start with a JSON value of this kind? '{', '[', '"' … */
bool scan_starts_with(struct slice json, char first);

#endif
