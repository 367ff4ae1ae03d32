#include "kafka/kept.h"

#include "base/mem.h"
#include "kafka/consumer.h"

#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>

#define HEADERS_MAX 256 /* more than that are left out */

struct kafka_note {
    struct kafka_note *next;
    char text[];
};

struct kafka_keeper {
    struct pool pool;
    struct list waiting; /* not moved, oldest first */
    uint64_t read, pinned;
    kafka_moved_fn *moved;
};

/* --- life ------------------------------------------------------------------- */

struct kafka_keeper *kafka_keeper_new(uint64_t pinned, kafka_moved_fn *moved)
{
    struct kafka_keeper *keeper = xcalloc(1, sizeof(*keeper));

    pool_init(&keeper->pool, sizeof(struct kafka_kept));
    list_init(&keeper->waiting);
    keeper->pinned = pinned;
    keeper->moved = moved;
    return keeper;
}

void kafka_keeper_free(struct kafka_keeper *keeper)
{
    if (!keeper)
        return;
    pool_fini(&keeper->pool);
    free(keeper);
}

static struct kafka_kept *kept_new(struct kafka_keeper *keeper,
                                   struct slice key, struct slice value)
{
    struct kafka_kept *kept = pool_take(&keeper->pool);

    kept->key = key;
    kept->value = value;
    kept->nheaders = 0;
    kept->headers = kept->few;
    kept->is_padded = false;
    kept->owner = NULL;
    kept->message = NULL;
    kept->moved = NULL;
    kept->notes = NULL;
    list_init(&kept->link);
    return kept;
}

static void give_back(struct kafka_kept *kept)
{
    rd_kafka_message_destroy(kept->message);
    kept->message = NULL;
    list_remove(&kept->link);
}

void kafka_kept_free(struct kafka_keeper *keeper, struct kafka_kept *kept)
{
    while (kept->notes) {
        struct kafka_note *note = kept->notes;

        kept->notes = note->next;
        free(note);
    }
    if (kept->message)
        give_back(kept);
    if (kept->headers != kept->few)
        free(kept->headers);
    free(kept->moved);
    pool_put(&keeper->pool, kept);
}

static void add_header(struct kafka_kept *kept, struct slice name,
                       struct slice value)
{
    if (kept->nheaders == HEADERS_MAX)
        return;
    if (kept->nheaders == KEPT_HEADERS) {
        kept->headers = xmalloc(HEADERS_MAX * sizeof(*kept->headers));
        memcpy(kept->headers, kept->few, sizeof(kept->few));
    }
    kept->headers[kept->nheaders++] = (struct kafka_header){name, value};
}

struct kafka_kept *kafka_kept_new(struct kafka_keeper *keeper, struct slice key,
                                  struct slice value,
                                  const struct kafka_header *headers, size_t n)
{
    struct kafka_kept *kept = kept_new(keeper, key, value);

    for (size_t i = 0; i < n; i++)
        add_header(kept, headers[i].name, headers[i].value);
    return kept;
}

/* --- moving ------------------------------------------------------------------ */

struct kafka_move {
    struct region {
        struct slice old;
        const char *now;
    } regions[2 + HEADERS_MAX];
    size_t n;
};

struct slice kafka_rebase(const struct kafka_move *move, struct slice old)
{
    for (size_t i = 0; old.ptr && i < move->n; i++) {
        const struct region *r = &move->regions[i];

        if (old.ptr >= r->old.ptr &&
            old.ptr + old.len <= r->old.ptr + r->old.len)
            return (struct slice){r->now + (old.ptr - r->old.ptr), old.len};
    }
    return old;
}

static void move_slice(struct kafka_move *move, char **at, struct slice *s,
                       bool is_part)
{
    if (!s->ptr)
        return;
    if (s->len)
        memcpy(*at, s->ptr, s->len);
    if (is_part)
        move->regions[move->n++] = (struct region){*s, *at};
    s->ptr = *at;
    *at += s->len;
    *(*at)++ = '\0';
}

static void move_out(struct kafka_keeper *keeper, struct kafka_kept *kept)
{
    size_t size = kept->key.len + kept->value.len + 2;
    struct kafka_move move;
    char *at;

    for (size_t i = 0; i < kept->nheaders; i++)
        size += kept->headers[i].name.len + kept->headers[i].value.len + 2;
    move.n = 0;
    at = kept->moved = xmalloc(size);
    move_slice(&move, &at, &kept->value, true);
    move_slice(&move, &at, &kept->key, true);
    for (size_t i = 0; i < kept->nheaders; i++) {
        move_slice(&move, &at, &kept->headers[i].name, false);
        move_slice(&move, &at, &kept->headers[i].value, true);
    }
    kept->is_padded = false;
    keeper->moved(kept, &move);
    give_back(kept);
}

/* What flows has gone long before: then there is nothing to do. */
static void move_old(struct kafka_keeper *keeper)
{
    while (!list_is_empty(&keeper->waiting)) {
        struct kafka_kept *oldest =
            CONTAINER_OF(keeper->waiting.next, struct kafka_kept, link);

        if (keeper->read - oldest->read_at <= keeper->pinned)
            return;
        move_out(keeper, oldest);
    }
}

/* --- records ------------------------------------------------------------------- */

static void on_header(void *arg, const char *name, struct slice value)
{
    add_header(arg, slice_of(name), value);
}

struct kafka_kept *kafka_keep(struct kafka_keeper *keeper,
                              struct kafka_record *record, void *owner)
{
    struct kafka_kept *kept = kept_new(keeper, record->key, record->value);

    kafka_record_headers(record, on_header, kept);
    kept->is_padded = record->is_padded;
    kept->owner = owner;
    kept->message = record->message;
    record->message = NULL;
    kept->read_at = keeper->read;
    keeper->read += record->key.len + record->value.len;
    list_append(&keeper->waiting, &kept->link);
    move_old(keeper);
    return kept;
}

struct slice kafka_kept_header(const struct kafka_kept *kept, struct slice name)
{
    for (size_t i = 0; i < kept->nheaders; i++)
        if (slice_eq(kept->headers[i].name, name))
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
