/* What people see of dead letters: list, show, groups, and their counts. */
#include "base/buf.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "stores/deadletters_filter.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_FAILED_AT DEAD_TIME("first_failed_at")
#define FAILED_AT       DEAD_TIME("failed_at")
#define EDITED_AT       DEAD_TIME("e.at")
#define GROUP_FIRST     DEAD_TIME("min(first_failed_at)")
#define GROUP_LAST      DEAD_TIME("max(failed_at)")

#define COLUMNS                                                                \
    "'id', id, 'handler', handler, 'version', handler_version, 'eventId',"     \
    " event_id, 'eventType', event_type, 'aggregateType', aggregate_type,"     \
    " 'aggregateId', aggregate_id, 'source', source, 'partition', partition,"  \
    " 'place', place, 'class', class, 'code', code, 'error', error,"           \
    " 'attempts', attempts, 'redrives', redrives, 'fingerprint', fingerprint," \
    " 'firstFailedAt', " FIRST_FAILED_AT ", 'failedAt', " FAILED_AT            \
    ", 'state', state, 'note', note"

#define LISTED                                                        \
    " FROM event_dead_letters"                                        \
    " WHERE" DEAD_FILTER " AND ($11::bigint = 0 OR id < $11::bigint)" \
    " ORDER BY id DESC LIMIT $12::int) t"

static const char list_sql[] =
    "SELECT coalesce(json_agg(o ORDER BY id DESC), '[]') FROM (SELECT id,"
    " json_build_object(" COLUMNS ") AS o" LISTED;

/* What a dry run needs of them: the bytes as they came. */
static const char bodies_sql[] =
    "SELECT coalesce(json_agg(o ORDER BY id DESC), '[]') FROM (SELECT id,"
    " json_build_object('id', id, 'eventId', event_id, 'class', class,"
    " 'error', error, 'fingerprint', fingerprint, 'format', format, 'facts',"
    " facts, 'source', source, 'partition', partition, 'place', place,"
    " 'bodyHex', encode(body, 'hex')) AS o" LISTED;

static const char show_sql[] =
    "SELECT json_build_object(" COLUMNS ", 'format', format, 'key',"
    " encode(key, 'base64'), 'bodyBase64', encode(body, 'base64'), 'headers',"
    " headers, 'facts', facts, 'traceback', traceback, 'history', history,"
    " 'edits', (SELECT coalesce(json_agg(json_build_object('id', e.id, 'at',"
    " " EDITED_AT ", 'who', e.who, 'reason', e.reason, 'beforeBody',"
    " encode(e.before_body, 'base64'), 'beforeFacts', e.before_facts,"
    " 'afterBody', encode(e.after_body, 'base64'), 'afterFacts',"
    " e.after_facts) ORDER BY e.id), '[]') FROM event_dead_letter_edits AS e"
    " WHERE e.dead_letter_id = event_dead_letters.id)),"
    " body FROM event_dead_letters WHERE id = $1::bigint";

/* The oldest letter of a group lends its text. */
static const char groups_sql[] =
    "SELECT coalesce(json_agg(o ORDER BY n DESC, oldest), '[]') FROM (SELECT"
    " count(*) AS n, min(id) AS oldest, json_build_object('fingerprint',"
    " fingerprint, 'handler', handler, 'version', handler_version, 'class',"
    " class, 'count', count(*), 'firstFailedAt', " GROUP_FIRST
    ", 'lastFailedAt', " GROUP_LAST ", 'example', min(id), 'error',"
    " (array_agg(error ORDER BY id))[1]) AS o FROM event_dead_letters"
    " WHERE" DEAD_FILTER " GROUP BY fingerprint, handler, handler_version,"
    " class ORDER BY n DESC, oldest LIMIT $11::int) t";

static const char counts_sql[] =
    "SELECT coalesce(json_agg(json_build_array(handler, class, n)), '[]')"
    " FROM (SELECT handler, class, count(*) AS n FROM event_dead_letters"
    " WHERE state = 'dead' GROUP BY 1, 2) t";

struct request {
    dead_answer_fn *done;
    void *arg;
};

void deadletters_list(struct pg_pool *pool, const struct dead_filter *filter,
                      bool with_bodies, dead_answer_fn *done, void *arg)
{
    struct pg_param params[DEAD_FILTER_PARAMS + 2];
    struct dead_times times;
    char cursor[24], limit[16];

    dead_filter_params(params, filter, &times);
    snprintf(cursor, sizeof(cursor), "%" PRId64, filter->cursor);
    snprintf(limit, sizeof(limit), "%d", filter->limit ? filter->limit : 100);
    params[DEAD_FILTER_PARAMS] = (struct pg_param){.value = cursor};
    params[DEAD_FILTER_PARAMS + 1] = (struct pg_param){.value = limit};
    dead_ask(pool, with_bodies ? bodies_sql : list_sql, DEAD_FILTER_PARAMS + 2,
             params, done, arg);
}

/* --- one ------------------------------------------------------------------------ */

/* The body as text where it is text; its base64 is there in any case. */
static void add_body(json_t *answer, const char *hex)
{
    size_t len = strlen(hex) >= 2 ? (strlen(hex) - 2) / 2 : 0;
    char *bytes = xmalloc(len + 1);

    for (size_t i = 0; i < len; i++) {
        char pair[3] = {hex[2 + 2 * i], hex[3 + 2 * i], '\0'};

        bytes[i] = (char)strtoul(pair, NULL, 16);
    }
    if (len > 0 && utf8_is_valid(bytes, len) && !memchr(bytes, '\0', len))
        json_object_set_new(answer, "body", json_stringn(bytes, len));
    free(bytes);
}

static void on_shown(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct request *r = arg;
    json_t *answer = NULL;

    if (!err) {
        answer = pg_result_nrows(res) > 0
                     ? json_loads(pg_result_value(res, 0, 0), 0, NULL)
                     : json_null();
        if (json_is_object(answer))
            add_body(answer, pg_result_value(res, 0, 1));
    }
    r->done(r->arg, answer, err);
    free(r);
}

void deadletters_show(struct pg_pool *pool, int64_t id, dead_answer_fn *done,
                      void *arg)
{
    struct request *r = xmalloc(sizeof(*r));
    char text[24];
    struct pg_param param = {.value = text};

    *r = (struct request){done, arg};
    snprintf(text, sizeof(text), "%" PRId64, id);
    pg_pool_query(pool, show_sql, 1, &param, on_shown, r);
}

/* --- groups ----------------------------------------------------------------------- */

/* The message as the fingerprint sees it: what differs within a group is gone. */
static void on_groups(void *arg, json_t *groups, const struct err *err)
{
    struct request *r = arg;
    json_t *group;
    size_t i;

    json_array_foreach(groups, i, group) {
        const char *error = json_string_value(json_object_get(group, "error"));
        struct buf text = {0};

        fingerprint_text(error ? error : "", &text);
        json_object_set_new(group, "message", json_string(buf_text(&text)));
        buf_fini(&text);
    }
    r->done(r->arg, groups, err);
    free(r);
}

void deadletters_groups(struct pg_pool *pool, const struct dead_filter *filter,
                        dead_answer_fn *done, void *arg)
{
    struct pg_param params[DEAD_FILTER_PARAMS + 1];
    struct request *r = xmalloc(sizeof(*r));
    struct dead_times times;
    char limit[16];

    *r = (struct request){done, arg};
    dead_filter_params(params, filter, &times);
    snprintf(limit, sizeof(limit), "%d", filter->limit ? filter->limit : 100);
    params[DEAD_FILTER_PARAMS] = (struct pg_param){.value = limit};
    dead_ask(pool, groups_sql, DEAD_FILTER_PARAMS + 1, params, on_groups, r);
}

void deadletters_counts(struct pg_pool *pool, dead_answer_fn *done, void *arg)
{
    dead_ask(pool, counts_sql, 0, NULL, done, arg);
}
