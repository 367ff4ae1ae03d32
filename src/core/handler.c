#include "core/handler.h"

#include "base/hash.h"
#include "base/mem.h"
#include "core/pattern.h"

#include <stdlib.h>
#include <string.h>

void handler_spec_free(struct handler_spec *spec)
{
    if (!spec)
        return;
    for (size_t i = 0; i < spec->n_subscribes; i++)
        free(spec->subscribes[i]);
    free(spec->subscribes);
    free(spec->version);
    for (size_t i = 0; i < spec->n_keys; i++) {
        free(spec->keys[i].type);
        free(spec->keys[i].path);
    }
    free(spec->keys);
    free(spec);
}

static void open_series(struct handler *h, struct metrics *m)
{
    static const enum verdict outcomes[] = {VERDICT_ACK, VERDICT_RETRY,
                                            VERDICT_DEAD, VERDICT_SKIP};

    for (size_t i = 0; i < sizeof(outcomes) / sizeof(*outcomes); i++)
        h->attempts[outcomes[i]] =
            metrics_get(m, M_DELIVERIES, h->name, verdict_name(outcomes[i]));
    h->settled[VERDICT_ACK] = metrics_get(m, M_SETTLED, h->name, "ack");
    h->settled[VERDICT_SKIP] = metrics_get(m, M_SETTLED, h->name, "skip");
    h->settled[VERDICT_DEAD] = metrics_get(m, M_SETTLED, h->name, "dead");
    for (int i = 0; i < CLASS_COUNT; i++)
        h->errors[i] = metrics_get(m, M_HANDLER_ERRORS, h->name,
                                   class_name((enum error_class)i));
    h->held = metrics_get(m, M_DELIVERIES, h->name, "held");
    h->accepted = metrics_get(m, M_ACCEPTED, h->name);
    h->given_back = metrics_get(m, M_GIVEN_BACK, h->name);
    h->duplicates = metrics_get(m, M_DUPLICATES, h->name);
    h->failures = metrics_get(m, M_DISPATCH_FAILURES, h->name);
    h->dead = metrics_get(m, M_DEAD_LETTER, h->name);
    h->again = metrics_get(m, M_DATABASE_RETRIES, h->name);
    h->duration = metrics_get(m, M_HANDLER_DURATION, h->name);
}

struct handler *handler_new(const char *name, struct metrics *metrics)
{
    struct handler *h = xcalloc(1, sizeof(*h));

    h->name = xstrdup(name);
    h->hash = hash_bytes(name, strlen(name));
    list_init(&h->blocked);
    open_series(h, metrics);
    return h;
}

void handler_free(struct handler *h)
{
    if (!h)
        return;
    handler_spec_free(h->spec);
    free(h->name);
    free(h);
}

bool handler_is_limited(const struct handler *h)
{
    return h->is_rated && h->vm != 0 && !h->is_held &&
           !list_is_empty(&h->blocked) && h->inflight < h->inflight_max;
}

const char *handler_key(const struct handler *h, struct slice type)
{
    for (size_t i = 0; i < h->spec->n_keys; i++)
        if (!h->spec->keys[i].type || slice_is(type, h->spec->keys[i].type))
            return h->spec->keys[i].path;
    return NULL;
}

bool handler_wants(const struct handler *h, struct slice type)
{
    return h->spec && !h->is_removed &&
           patterns_match((const char *const *)h->spec->subscribes,
                          h->spec->n_subscribes, type);
}
