#include "kafka/outputs.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static struct slice keep(char **at, struct slice from)
{
    struct slice kept = {from.ptr ? *at : NULL, from.len};

    if (from.ptr && from.len)
        memcpy(*at, from.ptr, from.len);
    *at += from.len;
    return kept;
}

/* As text, for those who want its end marked. */
static struct slice keep_text(char **at, struct slice from)
{
    struct slice kept = keep(at, from);

    *(*at)++ = '\0';
    return kept;
}

static void make_room(struct kafka_outputs *list, size_t extra)
{
    if (list->n + extra <= list->cap)
        return;
    list->cap =
        2 * list->cap > list->n + extra ? 2 * list->cap : list->n + extra;
    list->at = xrealloc(list->at, list->cap * sizeof(struct kafka_output *));
}

void kafka_outputs_add(struct kafka_outputs *list, struct slice topic,
                       struct slice key, struct slice value,
                       const struct kafka_header *headers, size_t n)
{
    size_t bytes = key.len + value.len;
    struct kafka_output *out;
    char *at;

    for (size_t i = 0; i < n; i++)
        bytes += headers[i].name.len + headers[i].value.len;
    out = xmalloc(sizeof(*out) + n * sizeof(*headers) + topic.len + 1 + bytes +
                  n);
    at = (char *)&out->headers[n];
    out->topic = keep_text(&at, topic).ptr;
    out->key = keep(&at, key);
    out->value = keep(&at, value);
    out->n_headers = n;
    for (size_t i = 0; i < n; i++) {
        out->headers[i].name = keep_text(&at, headers[i].name);
        out->headers[i].value = keep(&at, headers[i].value);
    }
    make_room(list, 1);
    list->at[list->n++] = out;
    list->bytes += bytes;
}

void kafka_outputs_move(struct kafka_outputs *to, struct kafka_outputs *from)
{
    make_room(to, from->n);
    if (from->n > 0)
        memcpy(&to->at[to->n], from->at,
               from->n * sizeof(struct kafka_output *));
    to->n += from->n;
    to->bytes += from->bytes;
    free(from->at);
    *from = (struct kafka_outputs){0};
}

void kafka_outputs_fini(struct kafka_outputs *list)
{
    for (size_t i = 0; i < list->n; i++)
        free(list->at[i]);
    free(list->at);
    *list = (struct kafka_outputs){0};
}
