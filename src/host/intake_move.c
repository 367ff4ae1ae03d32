/*
 * An operator's way out of a partition that stands still: where its reading
 * goes on, and what is given up by that.
 *
 *   asked → the partition's bounds → what each handler would lose → the trail
 *   is stored → places are moved → read there
 *
 * The partition stays open meanwhile (p->busy). Who stops in between leaves a
 * trail of something that did not happen, never the other way round.
 */
#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/intake_priv.h"
#include "sources/kafka_source.h"
#include "stores/given_up.h"
#include "stores/outbox_move.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "intake";

#define LETTERS_MAX 1000 /* dead letters of one move */
#define SHOWN_MAX   100  /* ranges in /v1/status */

struct moving {
    struct intake *intake;
    struct partition *p;
    struct handler *h; /* NULL: all */
    char *to, *reason, *who, *trouble;
    bool is_undecodable;
    struct given_up what;
    json_t *lost; /* [{handler, first, last}] */
    move_done_fn *done;
    void *arg;
};

static void end(struct moving *m, json_t *answer, const struct err *err)
{
    move_done_fn *done = m->done;
    void *arg = m->arg;

    m->p->busy--;
    json_decref(m->lost);
    free(m->to);
    free(m->reason);
    free(m->who);
    free(m->trouble);
    free(m);
    done(arg, answer, err);
}

static void give_in(struct moving *m, enum err_kind kind, const char *text)
{
    struct err err;

    (void)!err_set(&err, kind, "%s", text);
    end(m, NULL, &err);
}

/* --- what would be lost ------------------------------------------------------------ */

static void add_lost(struct moving *m, const struct handler *h)
{
    struct ranges lost = {0};

    pipeline_would_lose(m->p, h, &m->what, &lost);
    for (size_t i = 0; i < lost.len; i++)
        json_array_append_new(m->lost,
                              json_pack("{s:s, s:I, s:I}", "handler", h->name,
                                        "first", (json_int_t)lost.at[i].first,
                                        "last", (json_int_t)lost.at[i].last));
    ranges_fini(&lost);
}

static void find_lost(struct moving *m)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(m->p->pipeline, &handlers);

    m->lost = json_array();
    for (size_t i = 1; i < n; i++)
        if (!m->h || m->h == handlers[i])
            add_lost(m, handlers[i]);
}

/* --- the move ------------------------------------------------------------------------- */

static void tell(struct moving *m)
{
    struct intake *in = m->intake;
    struct host *h = in->host;
    json_t *range;
    size_t i;

    if (json_array_size(m->lost) == 0)
        log_warn("reading was moved, nothing was given up",
                 "partition=%s to=%lld who=" LOG_Q " reason=" LOG_Q, m->p->name,
                 (long long)m->what.next, m->who, m->reason);
    json_array_foreach(m->lost, i, range) {
        const char *name = json_string_value(json_object_get(range, "handler"));
        json_int_t first = json_integer_value(json_object_get(range, "first"));
        json_int_t last = json_integer_value(json_object_get(range, "last"));

        log_error("events given up",
                  "handler=%s partition=%s first=%lld last=%lld who=" LOG_Q
                  " reason=" LOG_Q,
                  name, m->p->name, (long long)first, (long long)last, m->who,
                  m->reason);
        series_add(metrics_get(h->metrics, M_GIVEN_UP, name),
                   (double)(last - first + 1));
        json_array_append_new(
            in->given_up,
            json_pack("{s:s, s:s, s:I, s:I, s:s, s:s}", "handler", name,
                      "partition", m->p->name, "first", first, "last", last,
                      "who", m->who, "reason", m->reason));
        if (json_array_size(in->given_up) > SHOWN_MAX)
            json_array_remove(in->given_up, 0);
    }
}

static void make_letters(struct moving *m)
{
    int64_t next = m->what.next;

    if (!m->is_undecodable)
        return;
    if (next > m->what.first + LETTERS_MAX)
        next = m->what.first + LETTERS_MAX;
    kafka_source_letters(m->p, m->h, m->what.first, next);
}

/* Of one handler: everything below, wherever it stands. */
static struct given_up as_applied(const struct moving *m)
{
    struct given_up what = m->what;

    if (m->h)
        what.low = what.first = what.next;
    return what;
}

static void move(struct moving *m)
{
    struct given_up what = as_applied(m);
    json_t *answer;
    struct err err;

    if (m->p->is_closing || m->p->state != PARTITION_RUNNING) {
        give_in(m, ERR_RETRIABLE,
                "the partition was given back meanwhile: nothing was moved");
        return;
    }
    make_letters(m);
    pipeline_give_up(m->p, m->h, &what);
    tell(m);
    if (!kafka_source_go_on(m->p, m->h, &err)) {
        end(m, NULL, &err);
        return;
    }
    answer = json_pack("{s:s, s:I, s:O}", "partition", m->p->name, "next",
                       (json_int_t)m->what.next, "givenUp", m->lost);
    end(m, answer, NULL);
}

static void on_put(void *arg, const struct err *err)
{
    struct moving *m = arg;

    if (err)
        end(m, NULL, err);
    else
        move(m);
}

/* Without a database the log line is the trail. */
static void leave_trail(struct moving *m)
{
    struct host *h = m->intake->host;
    struct given_up_note note = {
        .source = source_kind_name(m->p->ops->kind),
        .partition = m->p->name,
        .source_id = m->p->source_id,
        .trouble = m->trouble,
        .reason = m->reason,
        .who = m->who,
        .ranges = m->lost,
    };

    if (!h->db || json_array_size(m->lost) == 0)
        move(m);
    else
        given_up_put(h->db, &note, on_put, m);
}

/* --- where to -------------------------------------------------------------------------- */

static bool place_of_words(const char *to, int64_t low, int64_t end,
                           int64_t *next)
{
    char *rest;

    if (strcmp(to, "earliest") == 0 || strcmp(to, "latest") == 0) {
        *next = *to == 'e' ? low : end;
        return true;
    }
    errno = 0;
    *next = strtoll(to, &rest, 10);
    return *to && !*rest && !errno;
}

/* Where the one who is moved stands now. */
static int64_t stands_at(const struct moving *m)
{
    struct position at;
    int64_t next = m->p->next;

    if (!m->h || !pipeline_position(m->p, m->h, &at))
        return next;
    next = at.next;
    ranges_fini(&at.gaps);
    return next;
}

static bool refuse(struct moving *m, char *text)
{
    give_in(m, ERR_PERMANENT, text);
    free(text);
    return false;
}

/* Fills m->what; false: refused, and `m` is gone. */
static bool choose(struct moving *m, int64_t low, int64_t end_at)
{
    struct kafka_trouble t = {.at = stands_at(m), .text = ""};
    bool is_shorter;
    int64_t next;

    (void)kafka_source_trouble(m->p, m->h, &t);
    is_shorter = end_at < t.at;
    m->trouble = xstrdup(t.text);
    m->is_undecodable = t.is_undecodable;
    if (!place_of_words(m->to, low, end_at, &next)) {
        give_in(m, ERR_PERMANENT, "\"to\" is earliest, latest or an offset");
        return false;
    }
    if (next < low || next > end_at)
        return refuse(m, xasprintf("the partition has the offsets %lld to %lld",
                                   (long long)low, (long long)end_at));
    if (next < t.at && !is_shorter)
        return refuse(m, xasprintf("reading stands at %lld: going back to %lld "
                                   "would deliver events again, which is a "
                                   "replay and not a move",
                                   (long long)t.at, (long long)next));
    m->what = (struct given_up){low, t.at, next};
    if (m->h && !m->is_undecodable)
        m->what = (struct given_up){next, next, next};
    return true;
}

static void on_bounds(void *arg, bool is_known, int64_t low, int64_t end_at)
{
    struct moving *m = arg;

    if (!is_known) {
        give_in(m, ERR_RETRIABLE, "the partition was given back meanwhile");
        return;
    }
    if (!choose(m, low, end_at))
        return;
    find_lost(m);
    leave_trail(m);
}

/* --- asked ------------------------------------------------------------------------------ */

static struct partition *find(struct intake *in, const char *name)
{
    struct partition *all[PARTITIONS_MAX];
    size_t n = pipeline_partitions(in->host->pipeline, all, PARTITIONS_MAX);

    for (size_t i = 0; i < n; i++)
        if (all[i]->ops->kind == SOURCE_KAFKA &&
            strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

static bool may_move(const struct intake *in, const struct source_move *move,
                     const struct partition *p, const struct handler *h,
                     struct err *err)
{
    struct kafka_trouble t;

    if (!p || p->state != PARTITION_RUNNING || p->is_closing)
        return err_set(err, ERR_PERMANENT,
                       "this host does not read %s now: only partitions of "
                       "topics can be moved, by the host that reads them",
                       move->partition);
    if (move->handler && (!h || p->cursors[h->index].mode == CURSOR_CLOSED))
        return err_set(err, ERR_PERMANENT, "no handler has the name %s",
                       move->handler);
    if (!move->is_forced && !kafka_source_trouble(p, h, &t))
        return err_set(err, ERR_PERMANENT,
                       "%s%s%s has no trouble: events that can be read are "
                       "given up only with force",
                       h ? h->name : "", h ? " in " : "", p->name);
    if (p->next == POSITION_EARLIEST || p->next == POSITION_LATEST)
        return err_set(err, ERR_RETRIABLE, "where %s is read is not known yet",
                       p->name);
    return in->kafka != NULL;
}

static struct handler *handler_named(struct intake *in, const char *name)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(in->host->pipeline, &handlers);

    for (size_t i = 1; name && i < n; i++)
        if (strcmp(handlers[i]->name, name) == 0)
            return handlers[i];
    return NULL;
}

/* All of it, and on every host: the database does it. */
static void move_outbox(struct intake *in, const struct source_move *move,
                        move_done_fn *done, void *arg)
{
    bool is_latest = strcmp(move->to, "latest") == 0;
    struct outbox_move asked = {in->host->settings.outbox_table, is_latest,
                                move->reason, move->who};
    struct err err;

    if (!in->outbox)
        (void)!err_set(&err, ERR_PERMANENT, "this host reads no outbox");
    else if (!is_latest && strcmp(move->to, "earliest") != 0)
        (void)!err_set(&err, ERR_PERMANENT,
                       "of the outbox \"to\" is earliest or latest");
    else if (move->handler || move->is_forced)
        (void)!err_set(&err, ERR_PERMANENT,
                       "the outbox is moved for all handlers, and only when "
                       "it stands still");
    else {
        outbox_move(in->host->db, &asked, done, arg);
        return;
    }
    done(arg, NULL, &err);
}

void intake_move(struct intake *in, const struct source_move *move,
                 move_done_fn *done, void *arg)
{
    struct partition *p = find(in, move->partition);
    struct handler *h = handler_named(in, move->handler);
    struct moving *m;
    struct err err;

    if (strcmp(move->partition, "outbox") == 0) {
        move_outbox(in, move, done, arg);
        return;
    }
    if (!may_move(in, move, p, h, &err)) {
        done(arg, NULL, &err);
        return;
    }
    m = xcalloc(1, sizeof(*m));
    m->intake = in;
    m->p = p;
    m->h = h;
    m->to = xstrdup(move->to);
    m->reason = xstrdup(move->reason);
    m->who = xstrdup(move->who);
    m->done = done;
    m->arg = arg;
    p->busy++;
    if (!kafka_source_bounds(p, on_bounds, m))
        give_in(m, ERR_RETRIABLE,
                "the source is busy with its partitions: try again");
}
