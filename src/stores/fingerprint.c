#include "base/buf.h"
#include "base/digest.h"
#include "stores/deadletters.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '-';
}

/* A word with a digit in it is an id, a number or a time. */
static size_t skip_word(const char *text, bool *has_digit)
{
    size_t len = 0;

    *has_digit = false;
    for (; is_word(text[len]); len++)
        *has_digit |= isdigit((unsigned char)text[len]) != 0;
    return len;
}

static size_t skip_quoted(const char *text)
{
    const char *end = strchr(text + 1, *text);

    return end ? (size_t)(end - text) + 1 : 1;
}

/* The first line, with what differs from event to event made equal. */
void fingerprint_text(const char *error, struct buf *out)
{
    while (*error && *error != '\n') {
        bool has_digit;
        size_t len = skip_word(error, &has_digit);

        if (len > 0) {
            if (has_digit)
                buf_add_char(out, '#');
            else
                buf_add(out, error, len);
        } else if (*error == '"' || *error == '\'') {
            len = skip_quoted(error);
            buf_add_char(out, '?');
        } else {
            buf_add_char(out, *error);
            len = 1;
        }
        error += len;
    }
}

void fingerprint(enum error_class class, const char *error, const char *version,
                 char out[static 17])
{
    char hex[SHA256_HEX_SIZE];
    struct buf text = {0};

    fingerprint_text(error ? error : "", &text);
    digest_parts(
        (struct slice[]){
            slice_of(class_name(class)),
            {buf_text(&text), text.len},
            slice_of(version ? version : ""),
        },
        3, hex);
    snprintf(out, 17, "%.16s", hex);
    buf_fini(&text);
}
