/* Is the table what the cursor relies on, and the database the one that was
 * read before, and as far? */
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "sources/outbox_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "outbox";

/* --- another history ----------------------------------------------------------- */

static bool has_witnesses(const struct outbox_source *s)
{
    for (unsigned i = 0; i < WITNESSES; i++)
        if (s->witnesses[i].id)
            return true;
    return false;
}

static void forget_witnesses(struct outbox_source *s)
{
    for (unsigned i = 0; i < WITNESSES; i++) {
        free(s->witnesses[i].id);
        s->witnesses[i].id = NULL;
    }
}

void outbox_forget_history(struct outbox_source *s)
{
    forget_witnesses(s);
    free(s->system);
    free(s->timeline);
    s->system = s->timeline = NULL;
    free(s->halt.why);
    s->halt = (struct outbox_halt){0};
}

/* What is in memory is not written any more, nothing is read, and no shard
 * taken, until an operator says so: see moontide_outbox_move(). */
static void halt(struct outbox_source *s, const char *why, bool is_stored)
{
    if (!s->halt.is_on) {
        s->halt.is_on = true;
        s->halt.why = xstrdup(why);
        s->halt.ends_at = s->sequence;
        outbox_lease_void(s->lease, "the outbox stands still");
    }
    s->halt.is_stored = s->halt.is_stored || is_stored;
    outbox_set_trouble(s, why);
}

static void on_stored(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;

    (void)res;
    if (err)
        outbox_on_failure(s, "halt", err);
    else
        s->halt.is_stored = true;
    s->failed_us = clock_mono_us();
    outbox_step_after(s, SOON);
}

static const char *number_or_null(int64_t number, char text[static 24])
{
    snprintf(text, 24, "%" PRId64, number);
    return number ? text : NULL;
}

void outbox_store_halt(struct outbox_source *s)
{
    char ends_at[24], first[24], last[24];

    snprintf(ends_at, sizeof(ends_at), "%" PRId64, s->halt.ends_at);
    s->activity = HALTING;
    pg_pool_query(s->pool, outbox_halt_sql, 5,
                  (struct pg_param[]){
                      {.value = s->halt.why},
                      {.value = ends_at},
                      {.value = number_or_null(s->halt.first_lost, first)},
                      {.value = number_or_null(s->halt.last_lost, last)},
                      {.value = outbox_lease_node(s->lease)}},
                  on_stored, s);
}

/* A number without its event is no loss where everything below is gone as well:
 * that is retention. */
static bool is_lost(const struct outbox_source *s, const struct pg_result *res,
                    int row)
{
    return !pg_result_is_null(res, row, MISSING_NOW) ||
           *pg_result_value(res, row, MISSING_BELOW) == 't' ||
           s->sequence <
               strtoll(pg_result_value(res, row, MISSING_SEQ), NULL, 10);
}

static void look_at_missing(struct outbox_source *s,
                            const struct pg_result *res)
{
    int64_t first = 0, last = 0;
    char text[256];
    int n = 0;

    for (int row = 0; row < pg_result_nrows(res); row++) {
        const char *id = pg_result_value(res, row, MISSING_ID);
        const char *seq = pg_result_value(res, row, MISSING_SEQ);

        if (!is_lost(s, res, row))
            continue;
        log_error("event lost by the database",
                  "table=%s seq=%s event=" LOG_Q " now=" LOG_Q, s->table, seq,
                  id, pg_result_value(res, row, MISSING_NOW));
        last = strtoll(seq, NULL, 10);
        first = n++ ? first : last;
    }
    if (n == 0)
        return;
    snprintf(text, sizeof(text),
             "the database went back in time: %d of the events read last, from "
             "seq %" PRId64 " to %" PRId64 ", are not in it any more",
             n, first, last);
    halt(s, text, false);
    s->halt.first_lost = first;
    s->halt.last_lost = last;
}

/* What is beyond the sequence was of another history, whoever read it. */
static void compare_sequence(struct outbox_source *s)
{
    const struct reading *front = readings_front(&s->readings);
    char text[256];

    if (s->halt.is_on || !front || s->sequence <= 0 ||
        s->sequence >= front->cursor.last)
        return;
    snprintf(text, sizeof(text),
             "the database went back in time: its sequence is at %" PRId64
             ", but %" PRId64 " was read before",
             s->sequence, front->cursor.last);
    halt(s, text, false);
    s->halt.first_lost = s->sequence + 1;
    s->halt.last_lost = front->cursor.last;
}

static void compare_system(struct outbox_source *s, const char *system,
                           const char *before)
{
    char text[256];

    if (!*before || strcmp(before, system) == 0)
        return;
    snprintf(text, sizeof(text),
             "another database: system identifier %.40s, but positions are of "
             "%.40s",
             system, before);
    halt(s, text, false);
}

static void on_missing(void *arg, const struct pg_result *res,
                       const struct err *err)
{
    struct outbox_source *s = arg;

    if (err) {
        outbox_on_failure(s, "recall", err);
    } else {
        look_at_missing(s, res);
        compare_sequence(s);
        s->is_checked = !s->halt.is_on && !s->halt.is_others;
        if (s->halt.is_others)
            forget_witnesses(s);
        if (s->is_checked)
            outbox_set_trouble(s, NULL);
        s->failed_us = 0;
    }
    outbox_step_after(s, SOON);
}

static void recall(struct outbox_source *s)
{
    struct buf seqs = {0}, ids = {0};

    buf_add_char(&seqs, '{');
    buf_add_char(&ids, '{');
    for (unsigned i = 0; i < WITNESSES; i++) {
        const struct outbox_witness *w = &s->witnesses[i];

        if (!w->id)
            continue;
        buf_printf(&seqs, "%s%" PRId64, seqs.len > 1 ? "," : "", w->seq);
        buf_add_text(&ids, ids.len > 1 ? "," : "");
        buf_add_json(&ids, slice_of(w->id)); /* quoted alike */
    }
    buf_add_char(&seqs, '}');
    buf_add_char(&ids, '}');
    s->activity = RECALLING;
    pg_pool_query(s->pool, s->sql.missing, 2,
                  (struct pg_param[]){{.value = buf_text(&seqs)},
                                      {.value = buf_text(&ids)}},
                  on_missing, s);
    buf_fini(&seqs);
    buf_fini(&ids);
}

/* A promotion: the database refuses what we would write for our shards, and we
 * take them and the positions again. */
static void keep_identity(struct outbox_source *s, const struct pg_result *res)
{
    const char *timeline = pg_result_value(res, 0, CHECK_TIMELINE);

    if (s->timeline && strcmp(s->timeline, timeline) != 0) {
        log_warn("timeline of the database changed", "from=%s to=%s",
                 s->timeline, timeline);
        outbox_lease_void(s->lease, "the database has another timeline");
    }
    free(s->timeline);
    s->timeline = xstrdup(timeline);
    if (!s->system)
        s->system = xstrdup(pg_result_value(res, 0, CHECK_SYSTEM));
}

/* False: it is halted, by us or by another host. */
static bool may_go_on(struct outbox_source *s, const struct pg_result *res)
{
    if (!pg_result_is_null(res, 0, CHECK_HALTED)) {
        s->halt.is_others = !s->halt.is_on && has_witnesses(s);
        if (!s->halt.is_others)
            halt(s, pg_result_value(res, 0, CHECK_HALTED), true);
        return s->halt.is_others;
    }
    if (s->halt.is_on) {
        log_warn("an operator lets the outbox go on", "table=%s", s->table);
        outbox_forget_history(s);
    }
    if (s->system)
        compare_system(s, pg_result_value(res, 0, CHECK_SYSTEM), s->system);
    return !s->halt.is_on;
}

/* --- the check ------------------------------------------------------------------ */

static void take_check(struct outbox_source *s, const struct pg_result *res)
{
    bool exists = *pg_result_value(res, 0, CHECK_EXISTS) == 't';
    char text[256];

    s->is_absent = !exists;
    s->checked_us = clock_mono_us();
    s->sequence = strtoll(pg_result_value(res, 0, CHECK_SEQUENCE), NULL, 10);
    if (!exists) {
        snprintf(text, sizeof(text),
                 "table %.100s does not exist: run moontide migrate up",
                 s->table);
        outbox_set_trouble(s, s->must_exist || s->is_open ? text : NULL);
        return;
    }
    if (!pg_result_is_null(res, 0, CHECK_PROBLEM)) {
        outbox_set_trouble(s, pg_result_value(res, 0, CHECK_PROBLEM));
        return;
    }
    if (*pg_result_value(res, 0, CHECK_SHARDS) != 't') {
        outbox_set_trouble(s, "the schema knows no shards yet: stop all hosts "
                              "and run moontide migrate up");
        return;
    }
    if (pg_result_is_null(res, 0, CHECK_TIMELINE)) {
        outbox_set_trouble(s, "the database is a standby");
        return;
    }
    if (!may_go_on(s, res))
        return;
    keep_identity(s, res);
    if (!has_witnesses(s))
        compare_sequence(s);
    s->is_checked = !s->halt.is_on;
}

/* Before any position is taken. */
static void on_other(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct outbox_source *s = arg;

    if (err)
        outbox_on_failure(s, "check", err);
    else
        compare_system(s, s->system, pg_result_value(res, 0, 0));
    s->is_checked = !err && !s->halt.is_on;
    if (s->is_checked && !s->stopping.is_asked) {
        s->is_open = true;
        log_info("outbox opened", "table=%s system=%s timeline=%s", s->table,
                 s->system, s->timeline);
        outbox_lease_begin(s->lease);
    }
    outbox_step_after(s, SOON);
}

static void ask_other(struct outbox_source *s)
{
    struct pg_param system = {.value = s->system};

    pg_pool_query(s->pool, outbox_other_sql, 1, &system, on_other, s);
}

static void on_check(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct outbox_source *s = arg;

    s->is_checked = false;
    if (err)
        outbox_on_failure(s, "check", err);
    else
        take_check(s, res);
    if (s->is_checked && has_witnesses(s)) {
        s->is_checked = false;
        recall(s);
        return;
    }
    if (!s->is_checked)
        s->failed_us =
            s->halt.is_on && !s->halt.is_stored ? 0 : clock_mono_us();
    else
        outbox_set_trouble(s, NULL);
    if (s->is_checked && !s->is_open && !s->stopping.is_asked) {
        outbox_check_wake(s, *pg_result_value(res, 0, CHECK_TRIGGER) == 't',
                          *pg_result_value(res, 0, CHECK_PUBLICATION) == 't');
        ask_other(s);
        return;
    }
    outbox_step_after(s, SOON);
}

void outbox_check_table(struct outbox_source *s)
{
    struct pg_param table = {.value = s->sql.table};

    s->activity = CHECKING;
    pg_pool_query(s->pool, outbox_check_sql, 1, &table, on_check, s);
}
