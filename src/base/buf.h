/* A growing byte buffer. {0} is an empty one. */
#ifndef MT_BASE_BUF_H
#define MT_BASE_BUF_H

#include "base/slice.h"

#include <stddef.h>

struct buf {
    char *ptr;
    size_t len, cap;
};

void buf_fini(struct buf *buf);
void buf_clear(struct buf *buf); /* keeps the memory */

/* Room for `extra` more bytes; returns where they go, `len` unchanged. */
char *buf_reserve(struct buf *buf, size_t extra);

void buf_add(struct buf *buf, const void *bytes, size_t len);
void buf_add_text(struct buf *buf, const char *text);
void buf_add_char(struct buf *buf, char c);
void buf_printf(struct buf *buf, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The text as a JSON string with its quotes. Bytes that are not UTF-8 become
 * U+FFFD: what is logged or shown must stay JSON whatever an event holds. */
void buf_add_json(struct buf *buf, struct slice text);

/* Zero-terminated content, valid until the next change. */
const char *buf_text(struct buf *buf);

/* The content as heap memory, zero-terminated; gives it and empties `buf`. */
char *buf_give(struct buf *buf);

#endif
