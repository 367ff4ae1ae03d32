#include "kafka/kept.h"

#include "base/mem.h"
#include "kafka/consumer.h"

#include <stdlib.h>
#include <string.h>

#define HEADERS_MAX 256 /* more than that are left out */

struct kafka_note {
    struct kafka_note *next;
    char text[];
};

struct found {
    struct kafka_header headers[HEADERS_MAX];
    size_t n;
};

static void on_header(void *arg, const char *name, struct slice value)
{
    struct found *found = arg;

    if (found->n < HEADERS_MAX)
        found->headers[found->n++] =
            (struct kafka_header){slice_of(name), value};
}

static struct slice keep(char **at, struct slice from)
{
    struct slice kept = {from.ptr ? *at : NULL, from.len};

    if (from.ptr && from.len)
        memcpy(*at, from.ptr, from.len);
    *at += from.len;
    return kept;
}

struct kafka_kept *kafka_kept_new(struct slice key, struct slice value,
                                  const struct kafka_header *headers, size_t n)
{
    size_t size = key.len + value.len;
    struct kafka_kept *kept;
    char *at;

    for (size_t i = 0; i < n; i++)
        size += headers[i].name.len + 1 + headers[i].value.len;
    kept = xmalloc(sizeof(*kept) + n * sizeof(*headers) + size + 1);
    kept->headers = (struct kafka_header *)(void *)(kept + 1);
    kept->nheaders = n;
    kept->notes = NULL;
    at = (char *)(kept->headers + n);
    kept->key = keep(&at, key);
    kept->value = keep(&at, value);
    for (size_t i = 0; i < n; i++) {
        kept->headers[i].name = keep(&at, headers[i].name);
        *at++ = '\0';
        kept->headers[i].value = keep(&at, headers[i].value);
    }
    return kept;
}

struct kafka_kept *kafka_kept_of(const struct kafka_record *record)
{
    struct found found;

    found.n = 0;
    kafka_record_headers(record, on_header, &found);
    return kafka_kept_new(record->key, record->value, found.headers, found.n);
}

void kafka_kept_free(struct kafka_kept *kept)
{
    while (kept && kept->notes) {
        struct kafka_note *note = kept->notes;

        kept->notes = note->next;
        free(note);
    }
    free(kept);
}

struct slice kafka_kept_header(const struct kafka_kept *kept, const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < kept->nheaders; i++)
        if (kept->headers[i].name.len == len &&
            memcmp(kept->headers[i].name.ptr, name, len) == 0)
            return kept->headers[i].value;
    return (struct slice){NULL, 0};
}

struct slice kafka_kept_note(struct kafka_kept *kept, struct slice text)
{
    struct kafka_note *note = xmalloc(sizeof(*note) + text.len + 1);

    if (text.len)
        memcpy(note->text, text.ptr, text.len);
    note->text[text.len] = '\0';
    note->next = kept->notes;
    kept->notes = note;
    return (struct slice){note->text, text.len};
}
