/*
 * Events published through the host: POST /v1/events and handlers without a
 * database. With PostgreSQL they go into the store by publish_events(); without
 * it they are produced to <prefix><aggregate type>, as native envelopes.
 */
#include "host/host_priv.h"

#include "base/clock.h"
#include "base/digest.h"
#include "base/mem.h"
#include "kafka/outputs.h"
#include "pg/pg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct publication {
    struct host *host;
    publish_fn *done;
    void *arg;
    json_t *envelopes, *ids;
    int64_t started_us;
};

static void finish(struct publication *p, const struct err *err)
{
    struct host *h = p->host;
    json_t *ev;
    size_t i;

    if (!err) {
        series_observe(metrics_get(h->metrics, M_EVENTS_STORED),
                       (double)(clock_mono_us() - p->started_us) / 1e6,
                       (unsigned)json_array_size(p->envelopes));
        json_array_foreach(p->envelopes, i, ev) {
            const char *type =
                json_string_value(json_object_get(ev, "eventType"));
            const char *aggregate =
                json_string_value(json_object_get(ev, "aggregateType"));

            series_add(metrics_get(h->metrics, M_EVENTS_RAISED,
                                   aggregate ? aggregate : "",
                                   type ? type : ""),
                       1);
        }
    }
    p->done(p->arg, err ? NULL : json_incref(p->ids), err);
    json_decref(p->envelopes);
    json_decref(p->ids);
    free(p);
}

static void on_stored(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct publication *p = arg;

    for (int i = 0; !err && i < pg_result_nrows(res); i++)
        json_array_append_new(p->ids, json_string(pg_result_value(res, i, 0)));
    finish(p, err);
}

static void store(struct publication *p)
{
    char *text = json_dumps(p->envelopes, JSON_COMPACT);
    struct pg_param param = {.value = text};

    pg_pool_query(p->host->db, "SELECT publish_events($1::jsonb)", 1, &param,
                  on_stored, p);
    free(text);
}

/* A random UUID (version 4) for an envelope that brings no id. */
static void make_id(char out[UUID_TEXT_SIZE])
{
    unsigned char b[16];

    random_bytes(b, sizeof(b));
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    snprintf(out, UUID_TEXT_SIZE,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10],
             b[11], b[12], b[13], b[14], b[15]);
}

/* Fill what a producer may leave out, as publish_events() does. */
static void complete(json_t *ev)
{
    char id[UUID_TEXT_SIZE], now[RFC3339_SIZE];

    if (!json_object_get(ev, "id")) {
        make_id(id);
        json_object_set_new(ev, "id", json_string(id));
    }
    if (!json_object_get(ev, "occurredAt"))
        json_object_set_new(ev, "occurredAt",
                            json_string(clock_format(clock_wall_us(), now)));
    if (!json_object_get(ev, "eventVersion"))
        json_object_set_new(ev, "eventVersion", json_integer(1));
    if (!json_object_get(ev, "metadata"))
        json_object_set_new(ev, "metadata", json_object());
}

static struct slice member(const json_t *ev, const char *name)
{
    return slice_of(json_string_value(json_object_get(ev, name)));
}

struct headers {
    struct kafka_header list[7];
    size_t n;
};

static void add_header(struct headers *hs, struct slice name,
                       struct slice value)
{
    if (value.ptr)
        hs->list[hs->n++] = (struct kafka_header){name, value};
}

void publish_compose(const struct host *h, json_t *ev, struct kafka_outputs *to)
{
    const json_t *about;
    struct headers hs = {.n = 0};
    char *text, *topic, version[24];

    complete(ev);
    about = json_object_get(ev, "metadata");
    text = json_dumps(ev, JSON_COMPACT);
    topic = xasprintf("%s%s", h->settings.publish_topic_prefix,
                      member(ev, "aggregateType").ptr);
    snprintf(
        version, sizeof(version), "%lld",
        (long long)json_integer_value(json_object_get(ev, "eventVersion")));
    add_header(&hs, SLICE_LIT("id"), member(ev, "id"));
    add_header(&hs, SLICE_LIT("type"), member(ev, "eventType"));
    add_header(&hs, SLICE_LIT("aggregate_type"), member(ev, "aggregateType"));
    add_header(&hs, SLICE_LIT("version"), slice_of(version));
    add_header(&hs, SLICE_LIT("occurred_at"), member(ev, "occurredAt"));
    add_header(&hs, SLICE_LIT("traceparent"), member(about, "traceparent"));
    add_header(&hs, SLICE_LIT("correlation_id"),
               member(about, "correlationId"));
    kafka_outputs_add(to, slice_of(topic), member(ev, "aggregateId"),
                      slice_of(text), hs.list, hs.n);
    free(topic);
    free(text);
}

static void on_produced(void *arg, const struct err *err)
{
    finish(arg, err);
}

static void produce(struct publication *p)
{
    struct kafka_outputs list = {0};
    json_t *ev;
    size_t i;

    json_array_foreach(p->envelopes, i, ev) {
        publish_compose(p->host, ev, &list);
        json_array_append(p->ids, json_object_get(ev, "id"));
    }
    produce_outputs(p->host, &list, on_produced, p);
}

bool publish_check(const json_t *ev, size_t i, struct err *err)
{
    static const char *const needed[] = {"eventType", "aggregateType",
                                         "aggregateId"};

    if (!json_is_object(ev))
        return err_set(err, ERR_PERMANENT, "event %zu is not an object", i + 1);
    for (int k = 0; k < 3; k++) {
        const char *text = json_string_value(json_object_get(ev, needed[k]));

        if (!text || !*text || strlen(text) > 200)
            return err_set(err, ERR_PERMANENT,
                           "event %zu: %s is missing, empty, longer than 200 "
                           "characters or not text",
                           i + 1, needed[k]);
    }
    if (!json_object_get(ev, "payload"))
        return err_set(err, ERR_PERMANENT, "event %zu has no payload", i + 1);
    return true;
}

void publish_events(struct host *h, const json_t *envelopes, publish_fn *done,
                    void *arg)
{
    struct publication *p;
    struct err err;
    json_t *ev;
    size_t i;

    json_array_foreach(envelopes, i, ev)
        if (!publish_check(ev, i, &err)) {
            done(arg, NULL, &err);
            return;
        }
    p = xcalloc(1, sizeof(*p));
    p->host = h;
    p->done = done;
    p->arg = arg;
    p->envelopes = json_deep_copy(envelopes);
    p->ids = json_array();
    p->started_us = clock_mono_us();
    if (h->db)
        store(p);
    else
        produce(p);
}
