/* UTF-8 by the table of RFC 3629: no overlong forms, no surrogates. */
#ifndef MT_BASE_UTF8_H
#define MT_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the valid character at `ptr`, 0 when it is not one. */
size_t utf8_char_len(const char *ptr, size_t left);

bool utf8_is_valid(const char *ptr, size_t len);

#endif
