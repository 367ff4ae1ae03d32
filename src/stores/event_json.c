#include "stores/event_json.h"

#include "core/event.h"
#include "core/source.h"
#include "kafka/kept.h"
#include "stores/clean.h"

#include <stdlib.h>

static json_t *clean_json(struct slice text)
{
    char *clean = clean_text(text);
    json_t *json = json_string(clean);

    free(clean);
    return json;
}

json_t *event_headers_json(const struct event *event)
{
    const struct kafka_kept *kept = event->memory;
    json_t *json = json_object();

    if (event->ops->kind != SOURCE_KAFKA || event->parked_id || !kept)
        return json;
    for (size_t i = 0; i < kept->nheaders; i++) {
        char *name = clean_text(kept->headers[i].name);

        json_object_set_new(json, name,
                            kept->headers[i].value.ptr
                                ? clean_json(kept->headers[i].value)
                                : json_null());
        free(name);
    }
    return json;
}

json_t *event_facts_json(const struct event *event)
{
    json_t *json = json_object();

    for (enum fact fact = 0; fact < FACT_COUNT; fact++)
        if (event->facts[fact].ptr)
            json_object_set_new(json, fact_name(fact),
                                clean_json(event->facts[fact]));
    return json;
}
