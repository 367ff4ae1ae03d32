#include "kafka/lookup.h"

#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define RETRY     0.5 /* seconds between two attempts */
#define SAY_AGAIN 10. /* seconds between two lines about them */

static const char component[] = "kafka";

struct kafka_lookup {
    rd_kafka_t *rk;
    struct ev_loop *loop;
    struct kafka_wake wake;
    ev_timer retry;
    double said;
    uintptr_t asked; /* counts requests: late answers do not match */

    char **topics; /* names of the open question, or NULL */
    size_t ntopics;
    bool until_all;
    kafka_ids_fn *ids_fn;
    void *ids_arg;
    uintptr_t ids_asked;

    rd_kafka_topic_partition_list_t *list; /* the open question, or NULL */
    kafka_bounds_fn *bounds_fn;
    void *bounds_arg;
    uintptr_t bounds_asked;
};

static rd_kafka_AdminOptions_t *
options_new(struct kafka_lookup *l, rd_kafka_admin_op_t op, uintptr_t number)
{
    rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(l->rk, op);
    char text[128];

    rd_kafka_AdminOptions_set_request_timeout(options, 5000, text,
                                              sizeof(text));
    rd_kafka_AdminOptions_set_opaque(options, (void *)number);
    return options;
}

/* librdkafka refuses a name that comes twice. */
static rd_kafka_TopicCollection_t *collection(const struct kafka_lookup *l)
{
    const char **names = xcalloc(l->ntopics, sizeof(*names));
    rd_kafka_TopicCollection_t *topics;
    size_t n = 0;

    for (size_t i = 0; i < l->ntopics; i++) {
        size_t k = 0;

        while (k < n && strcmp(names[k], l->topics[i]) != 0)
            k++;
        if (k == n)
            names[n++] = l->topics[i];
    }
    topics = rd_kafka_TopicCollection_of_topic_names(names, n);
    free(names);
    return topics;
}

static void ask_ids(struct kafka_lookup *l)
{
    rd_kafka_TopicCollection_t *topics = collection(l);
    rd_kafka_AdminOptions_t *options;

    l->ids_asked = ++l->asked;
    options = options_new(l, RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, l->ids_asked);
    rd_kafka_DescribeTopics(l->rk, topics, options, l->wake.queue);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_TopicCollection_destroy(topics);
}

static void ask_bounds(struct kafka_lookup *l)
{
    rd_kafka_AdminOptions_t *options;
    rd_kafka_error_t *fault;

    l->bounds_asked = ++l->asked;
    options = options_new(l, RD_KAFKA_ADMIN_OP_LISTOFFSETS, l->bounds_asked);
    fault = rd_kafka_AdminOptions_set_isolation_level(
        options, RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED);
    if (fault)
        rd_kafka_error_destroy(fault);
    rd_kafka_ListOffsets(l->rk, l->list, options, l->wake.queue);
    rd_kafka_AdminOptions_destroy(options);
}

static void forget_ids(struct kafka_lookup *l)
{
    for (size_t i = 0; i < l->ntopics; i++)
        free(l->topics[i]);
    free(l->topics);
    l->topics = NULL;
    l->ntopics = 0;
}

static void forget_bounds(struct kafka_lookup *l)
{
    if (l->list)
        rd_kafka_topic_partition_list_destroy(l->list);
    l->list = NULL;
}

static void again(struct kafka_lookup *l, const char *what, const char *why)
{
    if (ev_now(l->loop) - l->said > SAY_AGAIN) {
        l->said = ev_now(l->loop);
        log_warn("broker did not answer", "question=%s about=" LOG_Q, what,
                 why);
    }
    if (ev_is_active(&l->retry))
        return;
    ev_timer_set(&l->retry, RETRY, 0.);
    ev_timer_start(l->loop, &l->retry);
}

static void on_retry(UNUSED struct ev_loop *loop, ev_timer *timer,
                     UNUSED int events)
{
    struct kafka_lookup *l = timer->data;

    if (l->topics)
        ask_ids(l);
    if (l->list)
        ask_bounds(l);
}

/* A broker too old to know topic ids says an id of zeros: the name it is. */
static char *id_text(const char *cluster,
                     const rd_kafka_TopicDescription_t *topic)
{
    const rd_kafka_Uuid_t *id = rd_kafka_TopicDescription_topic_id(topic);
    bool is_known = id && (rd_kafka_Uuid_most_significant_bits(id) ||
                           rd_kafka_Uuid_least_significant_bits(id));

    return xasprintf("%s/%s", cluster,
                     is_known ? rd_kafka_Uuid_base64str(id)
                              : rd_kafka_TopicDescription_name(topic));
}

static const rd_kafka_TopicDescription_t *
named(const rd_kafka_TopicDescription_t **topics, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(rd_kafka_TopicDescription_name(topics[i]), name) == 0)
            return rd_kafka_TopicDescription_error(topics[i]) &&
                           rd_kafka_error_code(
                               rd_kafka_TopicDescription_error(topics[i]))
                       ? NULL
                       : topics[i];
    return NULL;
}

static void answer_ids(struct kafka_lookup *l, rd_kafka_event_t *event)
{
    size_t n;
    const rd_kafka_TopicDescription_t **found =
        rd_kafka_DescribeTopics_result_topics(
            rd_kafka_event_DescribeTopics_result(event), &n);
    char *cluster = rd_kafka_clusterid(l->rk, 0);
    char **ids = xcalloc(l->ntopics, sizeof(*ids));
    size_t ntopics = l->ntopics;
    const char *missing = NULL;

    for (size_t i = 0; i < ntopics; i++) {
        const rd_kafka_TopicDescription_t *topic =
            named(found, n, l->topics[i]);

        if (cluster && topic)
            ids[i] = id_text(cluster, topic);
        else
            missing = l->topics[i];
    }
    if (!missing || (cluster && !l->until_all)) {
        kafka_ids_fn *fn = l->ids_fn;

        forget_ids(l);
        fn(l->ids_arg, ids);
    } else {
        again(l, "topic id", missing);
    }
    for (size_t i = 0; i < ntopics; i++)
        free(ids[i]);
    free(ids);
    if (cluster)
        rd_kafka_mem_free(l->rk, cluster);
}

/* The answer's order is the broker's: put it into the question's. */
static bool sort_bounds(const rd_kafka_topic_partition_list_t *asked,
                        const rd_kafka_ListOffsetsResultInfo_t **infos,
                        size_t n, int64_t *offsets)
{
    int known = 0;

    for (size_t i = 0; i < n; i++) {
        const rd_kafka_topic_partition_t *found =
            rd_kafka_ListOffsetsResultInfo_topic_partition(infos[i]);

        for (int j = 0; j < asked->cnt; j++) {
            if (found->err || asked->elems[j].partition != found->partition ||
                strcmp(asked->elems[j].topic, found->topic) != 0)
                continue;
            offsets[j] = found->offset;
            known++;
        }
    }
    return known == asked->cnt;
}

static void answer_bounds(struct kafka_lookup *l, rd_kafka_event_t *event)
{
    size_t n, count = (size_t)l->list->cnt;
    const rd_kafka_ListOffsetsResultInfo_t **infos =
        rd_kafka_ListOffsets_result_infos(
            rd_kafka_event_ListOffsets_result(event), &n);
    int64_t *offsets = xcalloc(count, sizeof(*offsets));

    if (sort_bounds(l->list, infos, n, offsets)) {
        forget_bounds(l);
        l->bounds_fn(l->bounds_arg, offsets, count);
    } else {
        again(l, "partition bounds", l->list->elems[0].topic);
    }
    free(offsets);
}

static void on_answer(struct kafka_lookup *l, rd_kafka_event_t *event)
{
    uintptr_t number = (uintptr_t)rd_kafka_event_opaque(event);
    bool is_ids =
        rd_kafka_event_type(event) == RD_KAFKA_EVENT_DESCRIBETOPICS_RESULT;

    if (is_ids ? !l->topics || number != l->ids_asked
               : !l->list || number != l->bounds_asked)
        return;
    if (rd_kafka_event_error(event))
        again(l, is_ids ? "topic id" : "partition bounds",
              rd_kafka_event_error_string(event));
    else if (is_ids)
        answer_ids(l, event);
    else
        answer_bounds(l, event);
}

static void on_ready(void *arg)
{
    struct kafka_lookup *l = arg;
    rd_kafka_event_t *event;

    while ((event = rd_kafka_queue_poll(l->wake.queue, 0))) {
        on_answer(l, event);
        rd_kafka_event_destroy(event);
    }
}

void kafka_lookup_ids(struct kafka_lookup *l, const char *const *topics,
                      size_t n, bool until_all, kafka_ids_fn *fn, void *arg)
{
    forget_ids(l);
    l->until_all = until_all;
    l->topics = xcalloc(n, sizeof(*l->topics));
    l->ntopics = n;
    for (size_t i = 0; i < n; i++)
        l->topics[i] = xstrdup(topics[i]);
    l->ids_fn = fn;
    l->ids_arg = arg;
    ask_ids(l);
}

bool kafka_lookup_is_asking(const struct kafka_lookup *l)
{
    return l->topics;
}

void kafka_lookup_bounds(struct kafka_lookup *l,
                         rd_kafka_topic_partition_list_t *list,
                         kafka_bounds_fn *fn, void *arg)
{
    forget_bounds(l);
    l->list = list;
    l->bounds_fn = fn;
    l->bounds_arg = arg;
    ask_bounds(l);
}

void kafka_lookup_cancel(struct kafka_lookup *l)
{
    forget_ids(l);
    forget_bounds(l);
}

struct kafka_lookup *kafka_lookup_new(struct ev_loop *loop, rd_kafka_t *rk)
{
    struct kafka_lookup *l = xcalloc(1, sizeof(*l));

    l->rk = rk;
    l->loop = loop;
    kafka_wake_init(&l->wake, loop, rd_kafka_queue_new(rk), on_ready, l);
    ev_timer_init(&l->retry, on_retry, RETRY, 0.);
    l->retry.data = l;
    return l;
}

void kafka_lookup_free(struct kafka_lookup *l)
{
    if (!l)
        return;
    kafka_lookup_cancel(l);
    ev_timer_stop(l->loop, &l->retry);
    kafka_wake_fini(&l->wake);
    free(l);
}
