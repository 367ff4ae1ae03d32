/*
 * Positions without a database: one compacted topic, one record for each
 * (handler, source, partition), the newest counts. What take() reads is kept
 * only until it is answered.
 */
#include "stores/positions.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/producer.h"
#include "kafka/topics.h"

#include <ev.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED  __attribute__((unused))
#define RETRY_S 0.5

static const char component[] = "positions";

struct store {
    struct positions pub; /* first */
    struct ev_loop *loop;
    const struct kafka_settings *kafka;
    struct kafka_producer *producer;
    char *topic;
    bool is_made; /* the topic is known to be there */
    struct list takes;
    json_t *rows; /* key -> value, while reading */
    struct kafka_reading *reading;
    ev_timer retry;
    size_t asked; /* takes that the reading under way answers */
};

struct take {
    struct list link;
    size_t n;
    char **keys, **source_ids;
    positions_taken_fn *done;
    void *arg;
};

struct save {
    size_t left;
    bool failed;
    struct err err;
    positions_saved_fn *done;
    void *arg;
};

static struct store *store_of(struct positions *s)
{
    return (struct store *)(void *)s;
}

static char *key_text(const struct position_key *key)
{
    json_t *parts = json_pack("[s, s, s]", key->handler,
                              source_kind_name(key->source), key->partition);
    char *text = json_dumps(parts, JSON_COMPACT);

    json_decref(parts);
    return text;
}

/* --- taking -------------------------------------------------------------------- */

static void take_free(struct take *t)
{
    list_remove(&t->link);
    for (size_t i = 0; i < t->n; i++) {
        free(t->keys[i]);
        free(t->source_ids[i]);
    }
    free(t->keys);
    free(t->source_ids);
    free(t);
}

static void find(const struct store *s, const struct take *t, size_t i,
                 struct position_found *found)
{
    const json_t *row = json_object_get(s->rows, t->keys[i]);
    const char *source_id, *gaps;
    json_int_t next, epoch = 0;

    found->epoch = 1;
    if (json_unpack((json_t *)(uintptr_t)row, "{s:s, s:I, s:s, s:I}",
                    "sourceId", &source_id, "next", &next, "gaps", &gaps,
                    "epoch", &epoch))
        return;
    found->epoch = epoch + 1;
    if (strcmp(source_id, t->source_ids[i]) != 0) {
        log_warn("stored position is of another source, not used",
                 "stored=" LOG_Q " now=" LOG_Q, source_id, t->source_ids[i]);
        return;
    }
    found->found = true;
    found->at.next = next;
    if (!ranges_parse(&found->at.gaps, gaps))
        log_error("stored gaps cannot be read", "gaps=" LOG_Q, gaps);
}

static void answer(struct store *s, struct take *t)
{
    struct position_found *found = xcalloc(t->n + 1, sizeof(*found));

    for (size_t i = 0; i < t->n; i++)
        find(s, t, i, &found[i]);
    t->done(t->arg, t->n, found);
    free(found);
    take_free(t);
}

static void on_record(void *arg, struct slice key, struct slice value)
{
    struct store *s = arg;
    char *name;

    if (!key.ptr)
        return;
    name = xstrndup(key.ptr, key.len);
    if (value.ptr)
        json_object_set_new(s->rows, name,
                            json_loadb(value.ptr, value.len, 0, NULL));
    else
        json_object_del(s->rows, name);
    free(name);
}

static void next_take(struct store *s);

static void try_later(struct store *s, const struct err *err)
{
    log_warn("positions cannot be read yet", "topic=%s err=" LOG_Q, s->topic,
             err->msg);
    ev_timer_set(&s->retry, RETRY_S, 0.);
    ev_timer_start(s->loop, &s->retry);
}

static void on_read(void *arg, const struct err *err)
{
    struct store *s = arg;

    s->reading = NULL;
    if (err) {
        try_later(s, err);
        return;
    }
    /* One reading serves all that asked before it began. */
    for (; s->asked > 0; s->asked--)
        answer(s, CONTAINER_OF(s->takes.next, struct take, link));
    next_take(s);
}

static void on_made(void *arg, const struct err *err)
{
    struct store *s = arg;

    s->is_made = !err;
    if (err)
        try_later(s, err);
    else
        next_take(s);
}

static void next_take(struct store *s)
{
    struct err err;

    if (list_is_empty(&s->takes) || s->reading)
        return;
    if (!s->is_made) {
        kafka_topic_create(s->producer, s->topic, 1, true, on_made, s);
        return;
    }
    json_object_clear(s->rows);
    s->asked = 0;
    list_foreach(item, &s->takes)
        s->asked++;
    s->reading = kafka_read_topic(s->loop, s->kafka, s->topic, on_record,
                                  on_read, s, &err);
    if (!s->reading)
        try_later(s, &err);
}

static void on_retry(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    next_take(timer->data);
}

static void take(struct positions *pub, size_t n,
                 const struct position_key *keys, positions_taken_fn *done,
                 void *arg)
{
    struct store *s = store_of(pub);
    struct take *t = xcalloc(1, sizeof(*t));
    bool is_first = list_is_empty(&s->takes);

    t->n = n;
    t->keys = xcalloc(n + 1, sizeof(*t->keys));
    t->source_ids = xcalloc(n + 1, sizeof(*t->source_ids));
    for (size_t i = 0; i < n; i++) {
        t->keys[i] = key_text(&keys[i]);
        t->source_ids[i] = xstrdup(keys[i].source_id);
    }
    t->done = done;
    t->arg = arg;
    list_append(&s->takes, &t->link);
    if (is_first && !ev_is_active(&s->retry)) {
        ev_timer_set(&s->retry, 0., 0.); /* never from within the call */
        ev_timer_start(s->loop, &s->retry);
    }
}

/* --- saving ------------------------------------------------------------------------ */

static void on_delivered(void *arg, const struct err *err)
{
    struct save *save = arg;

    if (err && !save->failed) {
        save->failed = true;
        save->err = *err;
    }
    if (--save->left > 0)
        return;
    save->done(save->arg, 0, NULL, save->failed ? &save->err : NULL);
    free(save);
}

static char *value_text(const struct position_save *item)
{
    struct buf gaps = {0};
    char at[RFC3339_SIZE];
    json_t *value;
    char *text;

    ranges_print(&item->at.gaps, &gaps);
    value = json_pack("{s:s, s:I, s:s, s:I, s:s?, s:s}", "sourceId",
                      item->key.source_id, "next", (json_int_t)item->at.next,
                      "gaps", buf_text(&gaps), "epoch", (json_int_t)item->epoch,
                      "lastEventId", item->last_event_id, "updatedAt",
                      clock_format(clock_wall_us(), at));
    text = json_dumps(value, JSON_COMPACT);
    json_decref(value);
    buf_fini(&gaps);
    return text;
}

static void save(struct positions *pub, size_t n,
                 const struct position_save *items, positions_saved_fn *done,
                 void *arg)
{
    struct store *s = store_of(pub);
    struct save *save = xcalloc(1, sizeof(*save));

    save->left = n;
    save->done = done;
    save->arg = arg;
    for (size_t i = 0; i < n; i++) {
        char *key = key_text(&items[i].key);
        char *value = value_text(&items[i]);

        kafka_produce(s->producer, s->topic, 0, slice_of(key), slice_of(value),
                      NULL, 0, on_delivered, save);
        free(key);
        free(value);
    }
}

/* --- life ---------------------------------------------------------------------------- */

static void store_free(struct positions *pub)
{
    struct store *s = store_of(pub);

    ev_timer_stop(s->loop, &s->retry);
    kafka_reading_cancel(s->reading);
    list_foreach_safe(item, &s->takes)
        take_free(CONTAINER_OF(item, struct take, link));
    json_decref(s->rows);
    free(s->topic);
    free(s);
}

static const struct positions_ops ops = {
    .take = take,
    .create = save, /* the same record */
    .save = save,
    .free = store_free,
};

struct positions *positions_topic_new(struct ev_loop *loop,
                                      const struct kafka_settings *kafka,
                                      struct kafka_producer *producer,
                                      const char *topic)
{
    struct store *s = xcalloc(1, sizeof(*s));

    s->pub.ops = &ops;
    s->loop = loop;
    s->kafka = kafka;
    s->producer = producer;
    s->topic = xstrdup(topic);
    s->rows = json_object();
    list_init(&s->takes);
    ev_timer_init(&s->retry, on_retry, RETRY_S, 0.);
    s->retry.data = s;
    return &s->pub;
}
