#include "stores/clean.h"

#include "base/buf.h"
#include "base/utf8.h"

char *clean_text(struct slice text)
{
    struct buf out = {0};

    for (size_t i = 0; i < text.len;) {
        size_t len = utf8_char_len(text.ptr + i, text.len - i);

        if (len == 0 || text.ptr[i] == '\0') {
            buf_add_text(&out, "\xef\xbf\xbd");
            i++;
        } else {
            buf_add(&out, text.ptr + i, len);
            i += len;
        }
    }
    return buf_give(&out);
}
