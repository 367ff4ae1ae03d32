/*
 * The loop and the thread meet in `state`: the loop writes a question and turns
 * it to ASKED, the thread answers and turns it to ANSWERED, the loop takes the
 * answer back to IDLE. Whose turn it is owns the question's fields; the lock
 * guards the state. Everything of librdkafka is the thread's.
 */
#include "kafka/transactions.h"

#include "base/check.h"
#include "base/mem.h"
#include "kafka/client_internal.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_MS      30000
#define ROOM_MS      100 /* the queue is full: wait so long */
#define NOT_THERE    (-1)
#define STACK_BYTES  (512u << 10)
#define TROUBLE_SIZE 200

enum state { IDLE, ASKED, ANSWERED };

struct kafka_transactions {
    struct ev_loop *loop;
    ev_async answered;
    struct kafka_settings settings; /* our copy */
    char *id, *group, *topic;
    int32_t partition;

    pthread_mutex_t lock;
    pthread_cond_t asked;
    enum state state;
    bool is_ending;
    char trouble[TROUBLE_SIZE]; /* librdkafka's last word, for error texts */

    /* The question and its answer. */
    bool is_commit;
    int64_t offset;
    char *metadata;
    struct kafka_outputs outputs;
    kafka_opened_fn *opened;
    kafka_committed_fn *committed;
    void *arg;
    bool is_failed;
    struct err err;

    /* The thread's own. */
    struct kafka_client client;
    int64_t at;    /* the group's offset as we know it, or NOT_THERE */
    bool is_known; /* `at` was read or written by us */
    char *found_metadata;
    rd_kafka_resp_err_t lost; /* a record of this transaction failed so */
    char lost_topic[256];
};

/* --- errors --------------------------------------------------------------------- */

static bool is_fence(rd_kafka_resp_err_t code)
{
    switch ((int)code) {
    case RD_KAFKA_RESP_ERR__FENCED:
    case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
    case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH: return true;
    default: return false;
    }
}

static bool set_code(struct kafka_transactions *t, rd_kafka_resp_err_t code,
                     const char *what, const char *text)
{
    char why[TROUBLE_SIZE];

    pthread_mutex_lock(&t->lock);
    snprintf(why, sizeof(why), "%s", t->trouble);
    pthread_mutex_unlock(&t->lock);
    return err_code(&t->err, ERR_RETRIABLE,
                    is_fence(code) ? KAFKA_FENCED : rd_kafka_err2name(code),
                    "%s: %s%s%s", what, text, *why ? ": " : "", why);
}

/* Takes the fault. A fatal one says why in words of its own. */
static bool set_fault(struct kafka_transactions *t, rd_kafka_error_t *fault,
                      const char *what)
{
    rd_kafka_resp_err_t code = rd_kafka_error_code(fault), fatal;
    char text[256];

    fatal = rd_kafka_fatal_error(t->client.rk, text, sizeof(text));
    if (fatal)
        set_code(t, fatal, what, text);
    else if (t->lost)
        set_code(t, t->lost, t->lost_topic, rd_kafka_err2str(t->lost));
    else
        set_code(t, code, what, rd_kafka_error_string(fault));
    rd_kafka_error_destroy(fault);
    return false;
}

/* Called by any of librdkafka's threads. */
static void on_log(const rd_kafka_t *rk, int level, UNUSED const char *facility,
                   const char *text)
{
    struct kafka_transactions *t = rd_kafka_opaque(rk);

    if (level > 3)
        return;
    pthread_mutex_lock(&t->lock);
    snprintf(t->trouble, sizeof(t->trouble), "%s", text);
    pthread_mutex_unlock(&t->lock);
}

static void on_delivery(UNUSED rd_kafka_t *rk, const rd_kafka_message_t *m,
                        void *opaque)
{
    struct kafka_transactions *t = opaque;

    if (!m->err || m->err == RD_KAFKA_RESP_ERR__PURGE_QUEUE ||
        m->err == RD_KAFKA_RESP_ERR__PURGE_INFLIGHT || t->lost)
        return;
    t->lost = m->err;
    snprintf(t->lost_topic, sizeof(t->lost_topic), "%s",
             m->rkt ? rd_kafka_topic_name(m->rkt) : t->topic);
}

/* --- opening: on the thread ------------------------------------------------------- */

static bool configure(struct kafka_transactions *t, rd_kafka_conf_t *conf)
{
    const char *const ours[][2] = {
        {"transactional.id", t->id},
        {"transaction.timeout.ms", "60000"},
        {"message.timeout.ms", "30000"},
        {"topic.metadata.propagation.max.ms", "10000"},
        {"message.max.bytes", "20971520"}, /* the broker's limit decides */
        {"statistics.interval.ms", "0"},
        {"log.queue", "false"},
    };

    for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
        if (!kafka_conf_put(conf, ours[i][0], ours[i][1], &t->err))
            return false;
    rd_kafka_conf_set_opaque(conf, t);
    rd_kafka_conf_set_log_cb(conf, on_log);
    rd_kafka_conf_set_error_cb(conf, NULL); /* then it is logged */
    rd_kafka_conf_set_stats_cb(conf, NULL);
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    return true;
}

static bool make(struct kafka_transactions *t)
{
    rd_kafka_conf_t *conf =
        kafka_conf_new(&t->settings, NULL, &t->client, &t->err);
    char text[256];

    if (!conf)
        return false;
    if (!configure(t, conf)) {
        rd_kafka_conf_destroy(conf);
        return false;
    }
    t->client.rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (t->client.rk)
        return true;
    rd_kafka_conf_destroy(conf);
    return err_set(&t->err, ERR_PERMANENT, "kafka transactions: %s", text);
}

static void forget_client(struct kafka_transactions *t)
{
    if (t->client.rk)
        rd_kafka_destroy(t->client.rk);
    t->client.rk = NULL;
}

static rd_kafka_topic_partition_list_t *
place_list(const struct kafka_transactions *t)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new(1);

    rd_kafka_topic_partition_list_add(list, t->topic, t->partition);
    return list;
}

static rd_kafka_event_t *ask_place(struct kafka_transactions *t)
{
    rd_kafka_topic_partition_list_t *list = place_list(t);
    rd_kafka_ListConsumerGroupOffsets_t *ask =
        rd_kafka_ListConsumerGroupOffsets_new(t->group, list);
    rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(
        t->client.rk, RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(t->client.rk);
    rd_kafka_event_t *event = NULL;
    rd_kafka_error_t *fault;
    char text[256];

    rd_kafka_AdminOptions_set_request_timeout(options, CALL_MS, text,
                                              sizeof(text));
    fault = rd_kafka_AdminOptions_set_require_stable_offsets(options, 1);
    if (fault) {
        set_fault(t, fault, t->group);
    } else {
        rd_kafka_ListConsumerGroupOffsets(t->client.rk, &ask, 1, options,
                                          queue);
        event = rd_kafka_queue_poll(queue, 2 * CALL_MS);
        if (!event)
            set_code(t, RD_KAFKA_RESP_ERR__TIMED_OUT, t->group, "no answer");
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_ListConsumerGroupOffsets_destroy(ask);
    rd_kafka_topic_partition_list_destroy(list);
    return event;
}

/* The group's place out of the answer. */
static bool note_place(struct kafka_transactions *t, rd_kafka_event_t *event)
{
    const rd_kafka_group_result_t **groups;
    const rd_kafka_topic_partition_list_t *list;
    const rd_kafka_error_t *fault;
    size_t n;

    if (rd_kafka_event_error(event))
        return set_code(t, rd_kafka_event_error(event), t->group,
                        rd_kafka_event_error_string(event));
    groups = rd_kafka_ListConsumerGroupOffsets_result_groups(
        rd_kafka_event_ListConsumerGroupOffsets_result(event), &n);
    CHECK(n == 1);
    fault = rd_kafka_group_result_error(groups[0]);
    if (fault)
        return set_code(t, rd_kafka_error_code(fault), t->group,
                        rd_kafka_error_string(fault));
    list = rd_kafka_group_result_partitions(groups[0]);
    if (!list || list->cnt != 1 || list->elems[0].err)
        return set_code(t,
                        list && list->cnt == 1 ? list->elems[0].err
                                               : RD_KAFKA_RESP_ERR__FAIL,
                        t->group, "its offset cannot be read");
    t->at = list->elems[0].offset >= 0 ? list->elems[0].offset : NOT_THERE;
    free(t->found_metadata);
    t->found_metadata =
        xstrndup(list->elems[0].metadata ? list->elems[0].metadata : "",
                 list->elems[0].metadata_size);
    return true;
}

static bool read_place(struct kafka_transactions *t)
{
    rd_kafka_event_t *event = ask_place(t);
    bool ok = event && note_place(t, event);

    if (event)
        rd_kafka_event_destroy(event);
    return ok;
}

/* Whoever had the id is fenced, and what they had not committed is void. */
static bool reopen(struct kafka_transactions *t)
{
    rd_kafka_error_t *fault;

    forget_client(t);
    t->trouble[0] = '\0';
    t->lost = RD_KAFKA_RESP_ERR_NO_ERROR;
    if (!make(t))
        return false;
    fault = rd_kafka_init_transactions(t->client.rk, CALL_MS);
    if (fault)
        set_fault(t, fault, "init_transactions");
    if (!fault && read_place(t))
        return true;
    forget_client(t);
    return false;
}

/* --- committing: on the thread ---------------------------------------------------- */

static bool produce(struct kafka_transactions *t,
                    const struct kafka_output *out)
{
    rd_kafka_headers_t *headers =
        out->n_headers ? rd_kafka_headers_new(out->n_headers) : NULL;
    rd_kafka_resp_err_t code;

    for (size_t i = 0; i < out->n_headers; i++)
        rd_kafka_header_add(headers, out->headers[i].name.ptr,
                            (ssize_t)out->headers[i].name.len,
                            out->headers[i].value.ptr,
                            (ssize_t)out->headers[i].value.len);
    do {
        rd_kafka_vu_t vus[] = {
            {.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = out->topic},
            {.vtype = RD_KAFKA_VTYPE_KEY,
             .u.mem = {(void *)(uintptr_t)out->key.ptr, out->key.len}},
            {.vtype = RD_KAFKA_VTYPE_VALUE,
             .u.mem = {(void *)(uintptr_t)out->value.ptr, out->value.len}},
            {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers},
        };
        rd_kafka_error_t *fault =
            rd_kafka_produceva(t->client.rk, vus, headers ? 4 : 3);

        code = fault ? rd_kafka_error_code(fault) : RD_KAFKA_RESP_ERR_NO_ERROR;
        if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL)
            rd_kafka_poll(t->client.rk, ROOM_MS);
        else if (fault)
            set_code(t, code, out->topic, rd_kafka_error_string(fault));
        if (fault)
            rd_kafka_error_destroy(fault);
    } while (code == RD_KAFKA_RESP_ERR__QUEUE_FULL);
    if (code && headers)
        rd_kafka_headers_destroy(headers);
    return !code;
}

static bool send_place(struct kafka_transactions *t)
{
    rd_kafka_topic_partition_list_t *list = place_list(t);
    rd_kafka_consumer_group_metadata_t *group =
        rd_kafka_consumer_group_metadata_new(t->group);
    rd_kafka_error_t *fault;

    list->elems[0].offset = t->offset;
    list->elems[0].metadata = strdup(t->metadata); /* librdkafka frees it */
    list->elems[0].metadata_size = strlen(t->metadata);
    fault = rd_kafka_send_offsets_to_transaction(t->client.rk, list, group,
                                                 CALL_MS);
    rd_kafka_consumer_group_metadata_destroy(group);
    rd_kafka_topic_partition_list_destroy(list);
    return !fault || set_fault(t, fault, "send_offsets_to_transaction");
}

static bool transact(struct kafka_transactions *t)
{
    rd_kafka_error_t *fault = rd_kafka_begin_transaction(t->client.rk);

    t->lost = RD_KAFKA_RESP_ERR_NO_ERROR;
    if (fault)
        return set_fault(t, fault, "begin_transaction");
    for (size_t i = 0; i < t->outputs.n; i++)
        if (!produce(t, t->outputs.at[i]))
            return false;
    if (!send_place(t))
        return false;
    fault = rd_kafka_commit_transaction(t->client.rk, CALL_MS);
    return !fault || set_fault(t, fault, "commit_transaction");
}

/* After a failure: when the transaction can be aborted nothing of it is there,
 * and the producer goes on. Else what is there is found out by opening again. */
static void clean_up(struct kafka_transactions *t)
{
    rd_kafka_error_t *fault = rd_kafka_abort_transaction(t->client.rk, CALL_MS);
    rd_kafka_resp_err_t code;

    if (!fault)
        return;
    code = rd_kafka_error_code(fault);
    if (is_fence(code) || is_fence(rd_kafka_fatal_error(t->client.rk, NULL, 0)))
        set_fault(t, fault, "abort_transaction");
    else
        rd_kafka_error_destroy(fault);
    forget_client(t);
}

/* Opened again: what became of us meanwhile? True: the commit is to be made. */
static bool may_commit(struct kafka_transactions *t, bool was_known,
                       int64_t was_at)
{
    if (t->at == t->offset && was_known && was_at != t->at) {
        t->is_failed = false; /* it had been done: only the answer was lost */
        return false;
    }
    t->is_failed = was_known ? t->at != was_at : t->at > t->offset;
    if (t->is_failed)
        set_code(t, RD_KAFKA_RESP_ERR__FENCED, t->group,
                 "another host has moved its offset");
    return !t->is_failed;
}

static void commit(struct kafka_transactions *t)
{
    bool was_known = t->is_known;
    int64_t was_at = t->at;

    if (!t->client.rk) {
        t->is_failed = !reopen(t);
        if (t->is_failed || !may_commit(t, was_known, was_at))
            return;
        t->is_known = true;
    }
    t->is_failed = !transact(t);
    if (t->is_failed) {
        clean_up(t);
        return;
    }
    t->at = t->offset;
}

static void *work(void *arg)
{
    struct kafka_transactions *t = arg;

    pthread_mutex_lock(&t->lock);
    while (!t->is_ending) {
        if (t->state != ASKED) {
            pthread_cond_wait(&t->asked, &t->lock);
            continue;
        }
        pthread_mutex_unlock(&t->lock);
        if (t->is_commit) {
            commit(t);
        } else {
            t->is_failed = !reopen(t);
            t->is_known = t->is_known || !t->is_failed;
        }
        pthread_mutex_lock(&t->lock);
        t->state = ANSWERED;
        if (!t->is_ending)
            ev_async_send(t->loop, &t->answered);
    }
    pthread_mutex_unlock(&t->lock);
    forget_client(t);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->asked);
    kafka_outputs_fini(&t->outputs);
    free(t->metadata);
    free(t->found_metadata);
    free((char *)(uintptr_t)t->settings.brokers);
    free((char *)(uintptr_t)t->settings.client_id);
    json_decref((json_t *)(uintptr_t)t->settings.rdkafka);
    free(t->id);
    free(t->group);
    free(t->topic);
    free(t);
    return NULL;
}

/* --- the loop's side ---------------------------------------------------------------- */

static void on_answered(UNUSED struct ev_loop *loop, ev_async *w,
                        UNUSED int events)
{
    struct kafka_transactions *t = w->data;
    const struct err *err;
    struct kafka_outputs outputs;
    struct kafka_place at;
    bool is_answered;

    pthread_mutex_lock(&t->lock);
    is_answered = t->state == ANSWERED;
    if (is_answered)
        t->state = IDLE;
    pthread_mutex_unlock(&t->lock);
    if (!is_answered)
        return;
    err = t->is_failed ? &t->err : NULL;
    if (!t->is_commit) {
        at = (struct kafka_place){t->at != NOT_THERE, t->at, t->found_metadata};
        t->opened(t->arg, err ? NULL : &at, err);
        return;
    }
    outputs = t->outputs;
    t->outputs = (struct kafka_outputs){0};
    t->committed(t->arg, &outputs, err);
}

static void ask(struct kafka_transactions *t)
{
    pthread_mutex_lock(&t->lock);
    CHECK(t->state == IDLE);
    t->state = ASKED;
    pthread_cond_signal(&t->asked);
    pthread_mutex_unlock(&t->lock);
}

void kafka_transactions_open(struct kafka_transactions *t, kafka_opened_fn *fn,
                             void *arg)
{
    t->is_commit = false;
    t->opened = fn;
    t->arg = arg;
    ask(t);
}

void kafka_transactions_commit(struct kafka_transactions *t,
                               struct kafka_outputs *outputs, int64_t offset,
                               const char *metadata, kafka_committed_fn *fn,
                               void *arg)
{
    t->is_commit = true;
    t->outputs = *outputs;
    *outputs = (struct kafka_outputs){0};
    t->offset = offset;
    free(t->metadata);
    t->metadata = xstrdup(metadata);
    t->committed = fn;
    t->arg = arg;
    ask(t);
}

static void start_thread(struct kafka_transactions *t)
{
    pthread_attr_t attr;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    CHECK(pthread_create(&thread, &attr, work, t) == 0);
    pthread_attr_destroy(&attr);
}

struct kafka_transactions *
kafka_transactions_new(struct ev_loop *loop,
                       const struct kafka_transactions_options *o)
{
    struct kafka_transactions *t = xcalloc(1, sizeof(*t));

    t->loop = loop;
    t->settings = *o->kafka;
    t->settings.brokers = xstrdup(o->kafka->brokers);
    t->settings.client_id =
        xstrdup(o->kafka->client_id ? o->kafka->client_id : "");
    t->settings.rdkafka = json_deep_copy(o->kafka->rdkafka);
    t->settings.on_state = NULL;
    t->id = xstrdup(o->id);
    t->group = xstrdup(o->group);
    t->topic = xstrdup(o->topic);
    t->partition = o->partition;
    t->at = NOT_THERE;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->asked, NULL);
    ev_async_init(&t->answered, on_answered);
    t->answered.data = t;
    ev_async_start(loop, &t->answered);
    start_thread(t);
    return t;
}

void kafka_transactions_free(struct kafka_transactions *t)
{
    if (!t)
        return;
    ev_async_stop(t->loop, &t->answered);
    pthread_mutex_lock(&t->lock);
    t->is_ending = true;
    pthread_cond_signal(&t->asked);
    pthread_mutex_unlock(&t->lock);
}
