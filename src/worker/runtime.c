#include "worker/runtime.h"

#include "base/check.h"
#include "base/scan.h"
#include "worker/event.h"
#include "worker/metrics_out.h"

#include <string.h>

void runtime_init(struct runtime *rt, struct ev_loop *loop, json_t *settings)
{
    *rt = (struct runtime){.loop = loop, .settings = json_incref(settings)};
    list_init(&rt->spare_events);
    list_init(&rt->spare_records);
    list_init(&rt->calls);
    rt->parser = doc_parser_new();
    rt->scan = scan_new();
    rt->metrics = metrics_out_new();
}

void runtime_fini(struct runtime *rt)
{
    vms_free(rt);
    for (int i = 0; i < PART_COUNT; i++)
        if (rt->parts[i].ptr)
            rt->parts[i].free(rt->parts[i].ptr);
    events_free(rt);
    records_free(rt);
    doc_fini(&rt->scratch);
    doc_parser_free(rt->parser);
    scan_free(rt->scan);
    metrics_out_free(rt->metrics);
    json_decref(rt->settings);
}

/* "a.b.c" as one name, as "a" → "b.c", and so on: both shapes are in use. */
static const json_t *find(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    const char *dot = name;

    while (!value && (dot = strchr(dot, '.')) != NULL) {
        const json_t *inner =
            json_object_getn(object, name, (size_t)(dot - name));

        dot++;
        if (json_is_object(inner))
            value = find(inner, dot);
    }
    return value;
}

const json_t *runtime_setting(const struct runtime *rt, const char *name)
{
    return find(rt->settings, name);
}

const char *runtime_text(const struct runtime *rt, const char *name,
                         const char *dflt)
{
    const char *text = json_string_value(runtime_setting(rt, name));

    return text && *text ? text : dflt;
}

void runtime_database_state(struct runtime *rt, const char *name,
                            bool connected)
{
    metrics_database(rt->metrics, name, connected);
}

void runtime_raised(struct runtime *rt, const char *aggregate_type,
                    const char *type)
{
    metrics_raised(rt->metrics, aggregate_type, type);
}

void runtime_stored(struct runtime *rt, double seconds)
{
    metrics_stored(rt->metrics, seconds);
}
