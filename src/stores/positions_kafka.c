/*
 * A session is one handler in one partition: its transactions, what is held for
 * them, and the one commit that is tried. A commit is tried again as it was,
 * same records and same offset, until it is known to be done: only so does
 * opening the transactions again tell which it is.
 *
 *   take   the ordinary store's answer → open the session (who had it before is
 *          fenced) → the group's offset, where that is what counts
 *   save   what is held below the position → commit → the ordinary store
 */
#include "stores/positions_kafka.h"

#include "base/check.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "kafka/transactions.h"

#include <ev.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED  __attribute__((unused))
#define RETRY_S 1.

static const char component[] = "positions";

struct store {
    struct positions pub; /* first */
    struct ev_loop *loop;
    const struct kafka_settings *kafka;
    struct positions *inner;
    struct list sessions;
    positions_written_fn *written;
    void *arg;
};

struct session {
    struct list link;
    struct store *store;
    char *handler, *partition;
    struct kafka_transactions *transactions;
    struct held held;

    struct kafka_outputs trying; /* a commit that is not known to be done */
    int64_t trying_to;
    bool is_trying;
    int64_t committed; /* if is_committed: where the last one brought it */
    bool is_committed;

    struct taking *taking; /* opens for it */
    size_t taking_index;
    struct one *saving; /* what is asked, or NULL */
    struct err err;     /* of the last try, told after a moment */
    ev_timer moment;
};

static struct store *store_of(const struct positions *s)
{
    return (struct store *)(void *)(uintptr_t)s;
}

/* --- sessions ------------------------------------------------------------------- */

static struct session *find(const struct store *s, const char *handler,
                            const char *partition)
{
    list_foreach(item, &s->sessions) {
        struct session *one = CONTAINER_OF(item, struct session, link);

        if (strcmp(one->handler, handler) == 0 &&
            strcmp(one->partition, partition) == 0)
            return one;
    }
    return NULL;
}

static void on_moment(struct ev_loop *loop, ev_timer *timer, int events);

static struct session *session_new(struct store *s, const char *handler,
                                   const char *partition)
{
    struct session *one = xcalloc(1, sizeof(*one));
    const char *slash = strrchr(partition, '/'); /* topic/number */
    char *group = xasprintf("%s.%s", s->kafka->group_id, handler);
    char *topic, *id;

    CHECK(slash);
    topic = xstrndup(partition, (size_t)(slash - partition));
    id = xasprintf("moontide.%s.%s.%s", group, topic, slash + 1);
    one->store = s;
    one->handler = xstrdup(handler);
    one->partition = xstrdup(partition);
    one->transactions = kafka_transactions_new(
        s->loop, &(struct kafka_transactions_options){
                     .kafka = s->kafka,
                     .id = id,
                     .group = group,
                     .topic = topic,
                     .partition = (int32_t)strtol(slash + 1, NULL, 10),
                 });
    ev_timer_init(&one->moment, on_moment, RETRY_S, 0.);
    one->moment.data = one;
    list_append(&s->sessions, &one->link);
    free(id);
    free(group);
    free(topic);
    return one;
}

static struct session *session_of(struct store *s, const char *handler,
                                  const char *partition)
{
    struct session *one = find(s, handler, partition);

    return one ? one : session_new(s, handler, partition);
}

/* --- taking --------------------------------------------------------------------- */

struct taking {
    struct store *store;
    size_t n, left; /* sessions that open */
    char **source_ids;
    struct session **sessions; /* NULL: not in Kafka */
    struct position_found *found;
    positions_taken_fn *done;
    void *arg;
};

static void taking_free(struct taking *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->source_ids[i]);
    free(t->source_ids);
    free(t->sessions);
    free(t->found);
    free(t);
}

static void taking_less(struct taking *t)
{
    if (--t->left > 0)
        return;
    t->done(t->arg, t->n, t->found);
    taking_free(t);
}

/* The group's offset counts, unless the handler went further without
 * transactions; what the other store says before the first event is no place. */
static void choose(struct session *s, const struct kafka_place *at,
                   const char *source_id, struct position_found *found)
{
    bool is_place =
        found->found && found->at.next > 0 && found->at.next < INT64_MAX - 1;

    if (!at->is_found)
        return;
    if (strcmp(at->metadata, source_id) != 0) {
        log_warn("the group's offset is of another topic, not used",
                 "handler=%s partition=%s stored=" LOG_Q " now=" LOG_Q,
                 s->handler, s->partition, at->metadata, source_id);
        return;
    }
    s->is_committed = true;
    s->committed = at->offset;
    if (!is_place || at->offset > found->at.next) {
        found->found = true;
        found->at.next = at->offset;
    }
}

static void on_opened(void *arg, const struct kafka_place *at,
                      const struct err *err)
{
    struct session *s = arg;
    struct taking *t = s->taking;

    if (err) {
        log_warn("transactions cannot be opened yet",
                 "handler=%s partition=%s err=" LOG_Q, s->handler, s->partition,
                 err->msg);
        ev_timer_set(&s->moment, RETRY_S, 0.);
        ev_timer_start(s->store->loop, &s->moment);
        return;
    }
    choose(s, at, t->source_ids[s->taking_index], &t->found[s->taking_index]);
    s->taking = NULL;
    taking_less(t);
}

static void on_inner_taken(void *arg, size_t n, struct position_found *found)
{
    struct taking *t = arg;

    CHECK(n == t->n);
    memcpy(t->found, found, n * sizeof(*found));
    t->left = 1; /* not before all are asked */
    for (size_t i = 0; i < n; i++) {
        struct session *s = t->sessions[i];

        if (!s)
            continue;
        s->taking = t;
        s->taking_index = i;
        t->left++;
        kafka_transactions_open(s->transactions, on_opened, s);
    }
    taking_less(t);
}

static void take(struct positions *pub, size_t n,
                 const struct position_key *keys, positions_taken_fn *done,
                 void *arg)
{
    struct store *s = store_of(pub);
    struct taking *t = xcalloc(1, sizeof(*t));

    t->store = s;
    t->n = n;
    t->found = xcalloc(n + 1, sizeof(*t->found));
    t->source_ids = xcalloc(n + 1, sizeof(*t->source_ids));
    t->sessions = xcalloc(n + 1, sizeof(*t->sessions));
    t->done = done;
    t->arg = arg;
    for (size_t i = 0; i < n; i++) {
        t->source_ids[i] = xstrdup(keys[i].source_id);
        if (keys[i].in_kafka && !find(s, keys[i].handler, keys[i].partition))
            t->sessions[i] = session_new(s, keys[i].handler, keys[i].partition);
    }
    s->inner->ops->take(s->inner, n, keys, on_inner_taken, t);
}

static void create(struct positions *pub, size_t n,
                   const struct position_save *items, positions_saved_fn *done,
                   void *arg)
{
    struct positions *inner = store_of(pub)->inner;

    inner->ops->create(inner, n, items, done, arg);
}

/* --- saving --------------------------------------------------------------------- */

/* All that one save() asked for. */
struct saving {
    size_t left, n_fenced;
    size_t *fenced; /* indices of the caller's */
    size_t *others; /* caller's index of each that went to the inner store */
    bool is_failed;
    struct err err;
    positions_saved_fn *done;
    void *arg;
};

/* One of them that is a session's, with its texts. */
struct one {
    struct saving *of;
    size_t index;
    struct session *session;
    struct position_save item;
};

static void one_free(struct one *one)
{
    if (!one)
        return;
    free((char *)(uintptr_t)one->item.key.handler);
    free((char *)(uintptr_t)one->item.key.partition);
    free((char *)(uintptr_t)one->item.key.source_id);
    free((char *)(uintptr_t)one->item.last_event_id);
    free(one);
}

static void note_failed(struct saving *s, const struct err *err)
{
    if (err && !s->is_failed) {
        s->is_failed = true;
        s->err = *err;
    }
}

static void saving_free(struct saving *s)
{
    free(s->fenced);
    free(s->others);
    free(s);
}

static void saving_less(struct saving *s)
{
    if (--s->left > 0)
        return;
    s->done(s->arg, s->n_fenced, s->fenced, s->is_failed ? &s->err : NULL);
    saving_free(s);
}

static void one_end(struct one *one, bool is_fenced, const struct err *err)
{
    struct saving *of = one->of;

    if (is_fenced)
        of->fenced[of->n_fenced++] = one->index;
    note_failed(of, err);
    one_free(one);
    saving_less(of);
}

static void on_inner_told(void *arg, size_t n_fenced,
                          UNUSED const size_t *fenced, const struct err *err)
{
    one_end(arg, n_fenced > 0, err);
}

static void on_others_saved(void *arg, size_t n_fenced, const size_t *fenced,
                            const struct err *err)
{
    struct saving *s = arg;

    for (size_t i = 0; i < n_fenced; i++)
        s->fenced[s->n_fenced++] = s->others[fenced[i]];
    note_failed(s, err);
    saving_less(s);
}

static void go_on(struct session *s);

static void on_moment(UNUSED struct ev_loop *loop, ev_timer *timer,
                      UNUSED int events)
{
    struct session *s = timer->data;
    struct one *one = s->saving;

    if (s->taking) {
        kafka_transactions_open(s->transactions, on_opened, s);
        return;
    }
    s->saving = NULL;
    one_end(one, false, &s->err);
}

static void on_committed(void *arg, struct kafka_outputs *outputs,
                         const struct err *err)
{
    struct session *s = arg;
    struct one *one = s->saving;

    s->trying = *outputs;
    if (!err) {
        s->store->written(s->store->arg, &s->trying);
        kafka_outputs_fini(&s->trying);
        s->is_trying = false;
        s->is_committed = true;
        s->committed = s->trying_to;
        go_on(s);
    } else if (strcmp(err->code, KAFKA_FENCED) == 0) {
        s->saving = NULL;
        one_end(one, true, NULL);
    } else { /* tried again when it is asked again, which is soon */
        s->err = *err;
        ev_timer_set(&s->moment, RETRY_S, 0.);
        ev_timer_start(s->store->loop, &s->moment);
    }
}

static void go_on(struct session *s)
{
    struct one *one = s->saving;
    int64_t next = one->item.at.next;

    if (!s->is_trying && s->is_committed && s->committed == next) {
        s->saving = NULL;
        s->store->inner->ops->save(s->store->inner, 1, &one->item,
                                   on_inner_told, one);
        return;
    }
    if (!s->is_trying) {
        held_take(&s->held, next, &s->trying);
        s->trying_to = next;
        s->is_trying = true;
    }
    kafka_transactions_commit(s->transactions, &s->trying, s->trying_to,
                              one->item.key.source_id, on_committed, s);
}

static char *copy(const char *text)
{
    return text ? xstrdup(text) : NULL;
}

static void save_one(struct store *store, struct saving *of, size_t index,
                     const struct position_save *item)
{
    struct one *one = xcalloc(1, sizeof(*one));

    one->of = of;
    one->index = index;
    one->item = *item;
    one->item.at.gaps = (struct ranges){0}; /* Kafka's have none */
    one->item.key.handler = copy(item->key.handler);
    one->item.key.partition = copy(item->key.partition);
    one->item.key.source_id = copy(item->key.source_id);
    one->item.last_event_id = copy(item->last_event_id);
    one->session = session_of(store, item->key.handler, item->key.partition);
    CHECK(!one->session->saving);
    one->session->saving = one;
    of->left++;
    go_on(one->session);
}

static void save(struct positions *pub, size_t n,
                 const struct position_save *items, positions_saved_fn *done,
                 void *arg)
{
    struct store *s = store_of(pub);
    struct saving *of = xcalloc(1, sizeof(*of));
    struct position_save *others = xcalloc(n + 1, sizeof(*others));
    size_t n_others = 0;

    of->done = done;
    of->arg = arg;
    of->left = 1; /* not before all are asked */
    of->fenced = xcalloc(n + 1, sizeof(*of->fenced));
    of->others = xcalloc(n + 1, sizeof(*of->others));
    for (size_t i = 0; i < n; i++) {
        if (items[i].key.in_kafka) {
            save_one(s, of, i, &items[i]);
            continue;
        }
        of->others[n_others] = i;
        others[n_others++] = items[i];
    }
    if (n_others > 0) {
        of->left++;
        s->inner->ops->save(s->inner, n_others, others, on_others_saved, of);
    }
    free(others);
    saving_less(of);
}

/* --- what is held ----------------------------------------------------------------- */

void positions_kafka_put(struct positions *pub, const char *handler,
                         const char *partition, int64_t place,
                         struct kafka_outputs *outputs)
{
    struct session *s = session_of(store_of(pub), handler, partition);

    held_put(&s->held, place, outputs);
}

void positions_kafka_drop(struct positions *pub, const char *handler,
                          const char *partition, int64_t place)
{
    struct session *s = find(store_of(pub), handler, partition);

    if (s)
        held_drop(&s->held, place);
}

const struct held *positions_kafka_held(const struct positions *pub,
                                        const char *handler,
                                        const char *partition)
{
    const struct session *s = find(store_of(pub), handler, partition);

    return s ? &s->held : NULL;
}

/* --- the end of sessions ------------------------------------------------------------ */

/* Whoever asked is not told: they are gone before us. */
static void forget_questions(struct session *s)
{
    if (s->taking && --s->taking->left == 0)
        taking_free(s->taking);
    if (!s->saving)
        return;
    if (--s->saving->of->left == 0)
        saving_free(s->saving->of);
    one_free(s->saving);
}

static void session_free(struct session *s)
{
    forget_questions(s);
    ev_timer_stop(s->store->loop, &s->moment);
    kafka_transactions_free(s->transactions);
    held_fini(&s->held);
    kafka_outputs_fini(&s->trying);
    list_remove(&s->link);
    free(s->handler);
    free(s->partition);
    free(s);
}

void positions_kafka_close(struct positions *pub, const char *partition)
{
    list_foreach_safe(item, &store_of(pub)->sessions) {
        struct session *s = CONTAINER_OF(item, struct session, link);

        if (strcmp(s->partition, partition) == 0)
            session_free(s);
    }
}

/* --- life --------------------------------------------------------------------------- */

static void store_free(struct positions *pub)
{
    struct store *s = store_of(pub);

    s->inner->ops->free(s->inner); /* it may answer what it was asked */
    list_foreach_safe(item, &s->sessions)
        session_free(CONTAINER_OF(item, struct session, link));
    free(s);
}

static const struct positions_ops ops = {
    .take = take,
    .create = create,
    .save = save,
    .free = store_free,
};

struct positions *positions_kafka_new(struct ev_loop *loop,
                                      const struct kafka_settings *kafka,
                                      struct positions *inner,
                                      positions_written_fn *written, void *arg)
{
    struct store *s = xcalloc(1, sizeof(*s));

    s->pub.ops = &ops;
    s->loop = loop;
    s->kafka = kafka;
    s->inner = inner;
    s->written = written;
    s->arg = arg;
    list_init(&s->sessions);
    return &s->pub;
}
