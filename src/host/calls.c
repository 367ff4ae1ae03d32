/*
 * What a worker asks of the host, on behalf of a handler: a JSON object with
 * "op", for some followed by a line break and bytes that it speaks of.
 *
 *   publish   {event}            an event, where there is no database
 *   produce   {records} + bytes  records to Kafka
 *   outputs   {slot, generation, records} + bytes
 *             what a delivery gives out that is about to end well; a record may
 *             also be {event}
 *
 * A record is [topic, key, value, [[name, value], …]], where key and values are
 * lengths: they stand in the bytes one after the other; null: there is none.
 */
#include "host/host_priv.h"

#include "base/mem.h"
#include "kafka/outputs.h"

#include <stdlib.h>
#include <string.h>

#define HEADERS_MAX 100
#define TOPIC_MAX   249

struct call {
    struct host *host;
    unsigned worker;
    uint64_t serial;
    uint32_t id;
};

static void answer(const struct call *c, bool ok, json_t *json)
{
    char *out = json_dumps(json, JSON_COMPACT);

    supervisor_reply(c->host->supervisor, c->worker, c->serial, c->id, ok,
                     slice_of(out));
    free(out);
    json_decref(json);
}

static void refuse(const struct call *c, const char *class, const char *code,
                   const char *text)
{
    answer(c, false,
           json_pack("{s:{s:s, s:s, s:s}}", "error", "class", class, "code",
                     code, "message", text));
}

static void refuse_err(const struct call *c, const struct err *err)
{
    refuse(c, err->kind == ERR_RETRIABLE ? "transient" : "permanent",
           *err->code ? err->code : "kafka", err->msg);
}

static struct call *keep(const struct call *c)
{
    struct call *kept = xcalloc(1, sizeof(*kept));

    *kept = *c;
    return kept;
}

/* --- publish ---------------------------------------------------------------------- */

static void on_published(void *arg, json_t *ids, const struct err *err)
{
    struct call *c = arg;

    if (err)
        refuse_err(c, err);
    else
        answer(c, true, json_pack("{s:O}", "id", json_array_get(ids, 0)));
    json_decref(ids);
    free(c);
}

static bool call_publish(const struct call *c, const json_t *request)
{
    json_t *list;

    if (!json_is_object(json_object_get(request, "event")))
        return false;
    list = json_pack("[O]", json_object_get(request, "event"));
    publish_events(c->host, list, on_published, keep(c));
    json_decref(list);
    return true;
}

/* --- produce ------------------------------------------------------------------------ */

/* The next of the bytes that a request speaks of. */
static bool take(struct slice *bytes, const json_t *len, struct slice *out)
{
    json_int_t n = json_integer_value(len);

    *out = (struct slice){0};
    if (json_is_null(len))
        return true;
    if (!json_is_integer(len) || n < 0 || (size_t)n > bytes->len)
        return false;
    *out = (struct slice){bytes->ptr, (size_t)n};
    bytes->ptr += n;
    bytes->len -= (size_t)n;
    return true;
}

static bool read_event(struct host *h, json_t *ev, struct kafka_outputs *to)
{
    struct err err;

    if (!publish_check(ev, 0, &err))
        return false;
    publish_compose(h, ev, to);
    return true;
}

static bool read_record(const json_t *record, struct slice *bytes,
                        struct kafka_outputs *to)
{
    const char *topic = json_string_value(json_array_get(record, 0));
    struct kafka_header headers[HEADERS_MAX];
    const json_t *list = json_array_get(record, 3);
    struct slice key, value;
    size_t n = json_array_size(list);

    if (!topic || !*topic || strlen(topic) > TOPIC_MAX || n > HEADERS_MAX ||
        !take(bytes, json_array_get(record, 1), &key) ||
        !take(bytes, json_array_get(record, 2), &value))
        return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(list, i);

        headers[i].name = slice_of(json_string_value(json_array_get(pair, 0)));
        if (!headers[i].name.ptr ||
            !take(bytes, json_array_get(pair, 1), &headers[i].value))
            return false;
    }
    kafka_outputs_add(to, slice_of(topic), key, value, headers, n);
    return true;
}

static bool read_records(struct host *h, const json_t *request,
                         struct slice bytes, struct kafka_outputs *to)
{
    const json_t *records = json_object_get(request, "records"), *record;
    size_t i;

    if (!json_is_array(records))
        return false;
    json_array_foreach(records, i, record)
        if (json_is_object(record)
                ? !read_event(h, json_object_get(record, "event"), to)
                : !read_record(record, &bytes, to))
            return false;
    return bytes.len == 0;
}

static void on_produced(void *arg, const struct err *err)
{
    struct call *c = arg;

    if (err)
        refuse_err(c, err);
    else
        answer(c, true, json_object());
    free(c);
}

static bool call_produce(const struct call *c, const json_t *request,
                         struct slice bytes)
{
    struct kafka_outputs list = {0};

    if (!read_records(c->host, request, bytes, &list)) {
        kafka_outputs_fini(&list);
        return false;
    }
    if (c->host->producer) {
        produce_outputs(c->host, &list, on_produced, keep(c));
        return true;
    }
    kafka_outputs_fini(&list);
    refuse(c, "permanent", "no_brokers",
           "kafka.produce needs the setting kafka.brokers");
    return true;
}

/* --- outputs ------------------------------------------------------------------------ */

static void end_outputs(const struct call *c, enum outputs_end how,
                        struct kafka_outputs *list)
{
    switch (how) {
    case OUTPUTS_HELD: answer(c, true, json_object()); break;
    case OUTPUTS_DIRECT:
        produce_outputs(c->host, list, on_produced, keep(c));
        break;
    case OUTPUTS_FULL:
        refuse(c, "transient", "outputs_full",
               "too much is held that an earlier event keeps back");
        break;
    case OUTPUTS_LATE:
        refuse(c, "transient", "late", "the delivery is not here any more");
        break;
    }
    kafka_outputs_fini(list);
}

static bool call_outputs(const struct call *c, const json_t *request,
                         struct slice bytes)
{
    struct kafka_outputs list = {0};
    json_int_t slot, generation;

    if (json_unpack((json_t *)(uintptr_t)request, "{s:I, s:I}", "slot", &slot,
                    "generation", &generation) ||
        !read_records(c->host, request, bytes, &list)) {
        kafka_outputs_fini(&list);
        return false;
    }
    end_outputs(c,
                outputs_put(c->host, c->worker, (uint32_t)slot,
                            (uint32_t)generation, &list),
                &list);
    return true;
}

/* --- all of them ---------------------------------------------------------------------- */

static bool dispatch(const struct call *c, const json_t *request,
                     struct slice bytes)
{
    const char *op = json_string_value(json_object_get(request, "op"));

    if (!op)
        return false;
    if (strcmp(op, "publish") == 0)
        return call_publish(c, request);
    if (strcmp(op, "produce") == 0)
        return call_produce(c, request, bytes);
    if (strcmp(op, "outputs") == 0)
        return call_outputs(c, request, bytes);
    return false;
}

void host_call(struct host *h, unsigned worker, uint64_t serial, uint32_t id,
               struct slice text)
{
    const char *end = memchr(text.ptr, '\n', text.len);
    size_t head = end ? (size_t)(end - text.ptr) : text.len;
    struct slice bytes = {text.ptr + head, text.len - head};
    struct call c = {h, worker, serial, id};
    json_t *request = json_loadb(text.ptr, head, 0, NULL);

    if (end) {
        bytes.ptr++;
        bytes.len--;
    }
    if (!dispatch(&c, request, bytes))
        refuse(&c, "bug", "unknown_call", "the host knows no such call");
    json_decref(request);
}
