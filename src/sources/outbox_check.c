/* Is the table what the cursor relies on, and the database the one that was
 * read before, and as far? */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "sources/outbox_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "outbox";

static void set_back_in_time(struct outbox_source *s, const char *text)
{
    s->is_back_in_time = true;
    outbox_set_trouble(s, text);
}

static void compare(struct outbox_source *s, const char *system)
{
    const struct reading *front = readings_front(&s->readings);
    char text[256];

    if (s->system && strcmp(s->system, system) != 0) {
        snprintf(text, sizeof(text),
                 "another database: system identifier %s, before it was %s",
                 system, s->system);
        set_back_in_time(s, text);
    } else if (front && s->sequence > 0 && s->sequence < front->cursor.last) {
        snprintf(text, sizeof(text),
                 "the database went back in time: its sequence is at %" PRId64
                 ", but %" PRId64 " was read before",
                 s->sequence, front->cursor.last);
        set_back_in_time(s, text);
    }
}

static void on_anchor(void *arg, const struct pg_result *res,
                      const struct err *err)
{
    struct outbox_source *s = arg;
    char text[256];
    bool is_there, is_same;

    if (err) {
        outbox_on_failure(s, "anchor", err);
        outbox_step_after(s, SOON);
        return;
    }
    is_there = !pg_result_is_null(res, 0, ANCHOR_ID);
    is_same = is_there && s->anchor_id &&
              strcmp(pg_result_value(res, 0, ANCHOR_ID), s->anchor_id) == 0;
    if (s->anchor_id && !is_same &&
        (is_there || *pg_result_value(res, 0, ANCHOR_BELOW) == 't' ||
         s->sequence < s->anchor)) {
        snprintf(text, sizeof(text),
                 "the database went back in time: the event at %" PRId64
                 " was %.64s and is %.64s now",
                 s->anchor, s->anchor_id,
                 is_there ? pg_result_value(res, 0, ANCHOR_ID) : "missing");
        set_back_in_time(s, text);
    }
    s->is_checked = true;
    outbox_step_after(s, 0.);
}

static void ask_anchor(struct outbox_source *s)
{
    char seq[24];
    struct pg_param param = {.value = seq};

    s->activity = ANCHORING;
    snprintf(seq, sizeof(seq), "%" PRId64, s->anchor);
    pg_pool_query(s->pool, s->sql.anchor, 1, &param, on_anchor, s);
}

static void keep_identity(struct outbox_source *s, const struct pg_result *res)
{
    const char *timeline = pg_result_value(res, 0, CHECK_TIMELINE);

    if (s->timeline && strcmp(s->timeline, timeline) != 0)
        log_warn("timeline of the database changed", "from=%s to=%s",
                 s->timeline, timeline);
    free(s->timeline);
    s->timeline = xstrdup(timeline);
    if (!s->system)
        s->system = xstrdup(pg_result_value(res, 0, CHECK_SYSTEM));
}

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
    compare(s, pg_result_value(res, 0, CHECK_SYSTEM));
    if (s->is_back_in_time)
        return;
    keep_identity(s, res);
    outbox_set_trouble(s, NULL);
    s->is_checked = true;
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
    if (!s->is_checked) {
        s->failed_us = clock_mono_us();
    } else if (s->anchor_id) {
        s->is_checked = false;
        ask_anchor(s);
        return;
    } else if (!s->is_open && !s->stopping.is_asked) {
        outbox_check_wake(s, *pg_result_value(res, 0, CHECK_TRIGGER) == 't',
                          *pg_result_value(res, 0, CHECK_PUBLICATION) == 't');
        s->is_open = true;
        log_info("outbox opened", "table=%s system=%s timeline=%s", s->table,
                 s->system, s->timeline);
        outbox_lease_begin(s->lease);
    }
    outbox_step_after(s, SOON);
}

void outbox_check_table(struct outbox_source *s)
{
    struct pg_param table = {.value = s->sql.table};

    s->activity = CHECKING;
    pg_pool_query(s->pool, outbox_check_sql, 1, &table, on_check, s);
}
