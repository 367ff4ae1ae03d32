/*
 * Dead letters without a database: <topic><suffix>, with the record as it came
 * and headers that say why. The topic is made at its first letter. A letter
 * that the broker finds too large goes without its value: the headers name the
 * place where the original is.
 */
#include "stores/deadletters.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/partition.h"
#include "kafka/kept.h"
#include "kafka/producer.h"
#include "kafka/topics.h"

#include <ev.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED    __attribute__((unused))
#define RETRY_S   1.
#define OURS      12   /* x- headers */
#define ERROR_MAX 2000 /* bytes of x-error */

static const char component[] = "deadletters";

struct known_topic {
    struct known_topic *next;
    char name[];
};

struct store {
    struct deadletters pub; /* first */
    struct ev_loop *loop;
    struct kafka_producer *producer;
    char *suffix;
    struct known_topic *known;
    struct list open;
};

struct letter {
    struct list link;
    struct store *store;
    dead_stored_fn *done;
    void *arg;
    char *topic;
    const struct event *event; /* borrowed until done */
    struct kafka_header ours[OURS];
    char *texts[OURS];
    size_t nours;
    bool without_value;
    ev_timer retry;
};

static void start(struct letter *letter);

static void letter_free(struct letter *letter)
{
    list_remove(&letter->link);
    ev_timer_stop(letter->store->loop, &letter->retry);
    for (size_t i = 0; i < letter->nours; i++)
        free(letter->texts[i]);
    free(letter->topic);
    free(letter);
}

static void add_header(struct letter *letter, const char *name, char *text)
{
    CHECK(letter->nours < OURS);
    letter->texts[letter->nours] = text;
    letter->ours[letter->nours++] =
        (struct kafka_header){slice_of(name), slice_of(text)};
}

static void add_time(struct letter *letter, const char *name, int64_t us)
{
    char text[RFC3339_SIZE];

    if (us)
        add_header(letter, name, xstrdup(clock_format(us, text)));
}

static void add_headers(struct letter *letter, const struct dead_letter *from)
{
    const struct partition *p = from->event->partition;

    add_header(letter, "x-error",
               xstrndup(from->error, strnlen(from->error, ERROR_MAX)));
    add_header(letter, "x-error-class", xstrdup(class_name(from->class)));
    add_header(letter, "x-error-code", xstrdup(from->code));
    add_header(letter, "x-handler", xstrdup(from->handler));
    add_header(letter, "x-handler-version", xstrdup(from->version));
    add_header(letter, "x-attempts", xasprintf("%d", from->attempts));
    add_time(letter, "x-first-failed-at", from->first_failed_us);
    add_time(letter, "x-failed-at", from->failed_us);
    add_header(letter, "x-topic", xstrdup(p->topic));
    add_header(letter, "x-partition", xasprintf("%d", p->number));
    add_header(letter, "x-offset", xasprintf("%" PRId64, from->event->place));
}

static void on_retry(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    start(timer->data);
}

static void try_later(struct letter *letter, const struct err *err)
{
    log_warn("dead letter not stored yet", "topic=%s code=%s err=" LOG_Q,
             letter->topic, err->code, err->msg);
    ev_timer_set(&letter->retry, RETRY_S, 0.);
    ev_timer_start(letter->store->loop, &letter->retry);
}

static void on_delivered(void *arg, const struct err *err)
{
    struct letter *letter = arg;

    if (!err) {
        letter->done(letter->arg, DEAD_STORED);
        letter_free(letter);
        return;
    }
    if (err->kind == ERR_PERMANENT && !letter->without_value) {
        letter->without_value = true;
        add_header(letter, "x-value-bytes",
                   xasprintf("%zu", letter->event->body.len));
    }
    try_later(letter, err);
}

static void produce(struct letter *letter)
{
    static const struct kafka_kept none; /* it could not even be read */
    const struct kafka_kept *kept =
        letter->event->memory ? letter->event->memory : &none;
    size_t n = kept->nheaders + letter->nours;
    struct kafka_header *headers = xcalloc(n + 1, sizeof(*headers));

    if (kept->nheaders)
        memcpy(headers, kept->headers, kept->nheaders * sizeof(*headers));
    memcpy(headers + kept->nheaders, letter->ours,
           letter->nours * sizeof(*headers));
    kafka_produce(letter->store->producer, letter->topic, -1, kept->key,
                  letter->without_value ? (struct slice){NULL, 0} : kept->value,
                  headers, n, on_delivered, letter);
    free(headers);
}

static bool is_known(const struct store *s, const char *topic)
{
    for (const struct known_topic *t = s->known; t; t = t->next)
        if (strcmp(t->name, topic) == 0)
            return true;
    return false;
}

static void on_topic(void *arg, const struct err *err)
{
    struct letter *letter = arg;
    struct known_topic *known;

    if (err) {
        try_later(letter, err);
        return;
    }
    if (!is_known(letter->store, letter->topic)) {
        known = xmalloc(sizeof(*known) + strlen(letter->topic) + 1);
        memcpy(known->name, letter->topic, strlen(letter->topic) + 1);
        known->next = letter->store->known;
        letter->store->known = known;
    }
    produce(letter);
}

static void start(struct letter *letter)
{
    if (is_known(letter->store, letter->topic))
        produce(letter);
    else
        kafka_topic_create(letter->store->producer, letter->topic, -1, false,
                           on_topic, letter);
}

static void store(struct deadletters *pub, const struct dead_letter *from,
                  dead_stored_fn *done, void *arg)
{
    struct store *s = (struct store *)(void *)pub;
    struct letter *letter = xcalloc(1, sizeof(*letter));

    CHECK(from->event->partition->ops->kind == SOURCE_KAFKA);
    list_append(&s->open, &letter->link);
    letter->store = s;
    letter->done = done;
    letter->arg = arg;
    letter->event = from->event;
    letter->topic = xasprintf("%s%s", from->event->partition->topic, s->suffix);
    ev_timer_init(&letter->retry, on_retry, RETRY_S, 0.);
    letter->retry.data = letter;
    add_headers(letter, from);
    start(letter);
}

static void store_free(struct deadletters *pub)
{
    struct store *s = (struct store *)(void *)pub;

    list_foreach_safe(item, &s->open)
        letter_free(CONTAINER_OF(item, struct letter, link));
    while (s->known) {
        struct known_topic *known = s->known;

        s->known = known->next;
        free(known);
    }
    free(s->suffix);
    free(s);
}

static const struct deadletters_ops ops = {
    .store = store,
    .free = store_free,
};

struct deadletters *deadletters_topic_new(struct kafka_producer *producer,
                                          const char *suffix)
{
    struct store *s = xcalloc(1, sizeof(*s));

    s->pub.ops = &ops;
    s->producer = producer;
    s->loop = kafka_producer_loop(producer);
    s->suffix = xstrdup(suffix);
    list_init(&s->open);
    return &s->pub;
}
