/* Records to Kafka outside of any transaction: each at least once. */
#include "host/host_priv.h"

#include "base/mem.h"
#include "kafka/outputs.h"
#include "kafka/producer.h"

#include <stdlib.h>
#include <string.h>

struct production {
    produce_fn *done;
    void *arg;
    size_t waiting; /* delivery reports to come */
    bool failed;
    struct err err; /* the first */
};

struct one {
    struct production *of;
    struct series *ok, *failed;
};

/* No retry would change these; whether the topic will ever be there, nobody
 * can know. */
static enum err_kind kind_of(const struct err *err)
{
    static const char *const final[] = {
        "_UNKNOWN_TOPIC",
        "UNKNOWN_TOPIC_OR_PART",
        "TOPIC_EXCEPTION",
        "INVALID_RECORD",
        "TOPIC_AUTHORIZATION_FAILED",
        "_UNKNOWN_PARTITION",
        "INVALID_TOPIC_EXCEPTION",
    };

    for (size_t i = 0; i < sizeof(final) / sizeof(*final); i++)
        if (strcmp(err->code, final[i]) == 0)
            return ERR_PERMANENT;
    return err->kind;
}

static void one_less(struct production *p)
{
    if (--p->waiting > 0)
        return;
    p->done(p->arg, p->failed ? &p->err : NULL);
    free(p);
}

static void on_delivered(void *arg, const struct err *err)
{
    struct one *one = arg;
    struct production *p = one->of;

    series_add(err ? one->failed : one->ok, 1);
    free(one);
    if (err && !p->failed) {
        p->failed = true;
        p->err = *err;
        p->err.kind = kind_of(err);
    }
    one_less(p);
}

void produce_outputs(struct host *h, struct kafka_outputs *list,
                     produce_fn *done, void *arg)
{
    struct production *p = xcalloc(1, sizeof(*p));

    p->done = done;
    p->arg = arg;
    p->waiting = list->n + 1; /* not before all are on their way */
    for (size_t i = 0; i < list->n; i++) {
        const struct kafka_output *out = list->at[i];
        struct one *one = xcalloc(1, sizeof(*one));

        one->of = p;
        one->ok = metrics_get(h->metrics, M_EVENTS_PUBLISHED, out->topic, "ok");
        one->failed =
            metrics_get(h->metrics, M_EVENTS_PUBLISHED, out->topic, "error");
        kafka_produce(h->producer, out->topic, -1, out->key, out->value,
                      out->headers, out->n_headers, on_delivered, one);
    }
    kafka_outputs_fini(list);
    one_less(p);
}
