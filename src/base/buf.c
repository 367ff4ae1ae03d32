#include "base/buf.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void buf_fini(struct buf *buf)
{
    free(buf->ptr);
    *buf = (struct buf){0};
}

void buf_clear(struct buf *buf)
{
    buf->len = 0;
}

char *buf_reserve(struct buf *buf, size_t extra)
{
    if (buf->len + extra > buf->cap) {
        size_t cap = buf->cap ? 2 * buf->cap : 256;

        while (cap < buf->len + extra)
            cap *= 2;
        buf->ptr = xrealloc(buf->ptr, cap);
        buf->cap = cap;
    }
    return buf->ptr + buf->len;
}

void buf_add(struct buf *buf, const void *bytes, size_t len)
{
    if (!len)
        return;
    memcpy(buf_reserve(buf, len), bytes, len);
    buf->len += len;
}

void buf_add_text(struct buf *buf, const char *text)
{
    buf_add(buf, text, strlen(text));
}

void buf_add_char(struct buf *buf, char c)
{
    buf_add(buf, &c, 1);
}

void buf_printf(struct buf *buf, const char *fmt, ...)
{
    va_list ap;
    int len;

    va_start(ap, fmt);
    len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    CHECK(len >= 0);
    buf_reserve(buf, (size_t)len + 1);
    va_start(ap, fmt);
    vsnprintf(buf->ptr + buf->len, (size_t)len + 1, fmt, ap);
    va_end(ap);
    buf->len += (size_t)len;
}

/* One character of a JSON string; returns how many bytes of it were used. */
static size_t add_json_char(struct buf *buf, const char *ptr, size_t left)
{
    unsigned char c = (unsigned char)*ptr;
    size_t len = utf8_char_len(ptr, left);

    if (c == '"' || c == '\\') {
        buf_add_char(buf, '\\');
        buf_add_char(buf, (char)c);
    } else if (c == '\n') {
        buf_add_text(buf, "\\n");
    } else if (c < 0x20 || c == 0x7f) {
        buf_printf(buf, "\\u%04x", (unsigned)c);
    } else if (len == 0) {
        buf_add_text(buf, "\\ufffd");
    } else {
        buf_add(buf, ptr, len);
    }
    return len ? len : 1;
}

void buf_add_json(struct buf *buf, struct slice text)
{
    buf_add_char(buf, '"');
    for (size_t i = 0; i < text.len;)
        i += add_json_char(buf, text.ptr + i, text.len - i);
    buf_add_char(buf, '"');
}

const char *buf_text(struct buf *buf)
{
    *buf_reserve(buf, 1) = '\0';
    return buf->ptr;
}

char *buf_give(struct buf *buf)
{
    char *text;

    buf_text(buf);
    text = buf->ptr;
    *buf = (struct buf){0};
    return text;
}
