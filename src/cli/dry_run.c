/*
 * dry-run: a handler over events, in record mode: SQL runs for real in a
 * transaction that is rolled back, everything else is only written down. The
 * code is the file on disk; for dead letters that which runs.
 */
#include "cli/dry_run.h"

#include "base/buf.h"
#include "base/mem.h"
#include "core/pattern.h"
#include "host/config.h"
#include "host/probe.h"
#include "pg/pg_sync.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAST_MAX 1000

/* JSON lines, or one JSON value over many lines. */
static json_t *read_events(const char *path, struct err *err)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    json_t *list = json_array(), *one;
    json_error_t e;

    if (!file) {
        json_decref(list);
        err_set(err, ERR_PERMANENT, "%s: %m", path);
        return NULL;
    }
    while ((one = json_loadf(file, JSON_DISABLE_EOF_CHECK, &e))) {
        if (json_is_array(one)) {
            json_array_extend(list, one);
            json_decref(one);
        } else {
            json_array_append_new(list, one);
        }
    }
    if (json_error_code(&e) != json_error_premature_end_of_input ||
        json_array_size(list) == 0) {
        err_set(err, ERR_PERMANENT, "%s:%d: %s", path, e.line, e.text);
        json_decref(list);
        list = NULL;
    }
    if (file != stdin)
        fclose(file);
    return list;
}

static bool subscribes(const json_t *bundle, const char *type)
{
    const json_t *list =
        json_object_get(json_object_get(bundle, "decl"), "subscribes");
    size_t n = json_array_size(list);
    const char **patterns = xcalloc(n + 1, sizeof(*patterns));
    bool match;

    for (size_t i = 0; i < n; i++)
        patterns[i] = json_string_value(json_array_get(list, i));
    match = patterns_match(patterns, n, slice_of(type));
    free(patterns);
    return match;
}

/* The stored types that the handler subscribes to, as an SQL array; gives. The
 * index on the type is read from one type to the next, not row by row. */
static char *subscribed_types(struct pg_sync *db, const json_t *bundle,
                              struct err *err)
{
    const struct pg_result *res = pg_sync_exec(
        db,
        "WITH RECURSIVE t AS (SELECT min(event_type) AS type "
        "FROM domain_events UNION ALL SELECT (SELECT min(e.event_type) "
        "FROM domain_events e WHERE e.event_type > t.type) FROM t "
        "WHERE t.type IS NOT NULL) SELECT type FROM t WHERE type IS NOT NULL",
        0, NULL, err);
    json_t *types = json_array();
    char *text;

    for (int i = 0; res && i < pg_result_nrows(res); i++)
        if (subscribes(bundle, pg_result_value(res, i, 0)))
            json_array_append_new(types,
                                  json_string(pg_result_value(res, i, 0)));
    text = res ? json_dumps(types, JSON_COMPACT) : NULL;
    json_decref(types);
    pg_result_unref(res);
    return text;
}

static bool use_schema(struct pg_sync *db, const struct settings *s,
                       struct err *err)
{
    char name[140], sql[200];

    if (!pg_quote_ident(s->database_schema, name, sizeof(name)))
        return err_set(err, ERR_PERMANENT, "database.schema is too long");
    snprintf(sql, sizeof(sql), "SET search_path = %s, public", name);
    return pg_sync_script(db, sql, err);
}

/* Stored events as native envelopes: one by id, or the last N of `types`. */
static json_t *read_stored(struct pg_sync *db, const char *id, const char *last,
                           const char *types, struct err *err)
{
    struct pg_param params[] = {
        {.value = id}, {.value = last ? last : "1"}, {.value = types}};
    const struct pg_result *res;
    json_t *list = NULL;

    res = pg_sync_exec(
        db,
        "SELECT jsonb_build_object('id', id, 'eventType', event_type, "
        "'eventVersion', event_version, 'aggregateType', aggregate_type, "
        "'aggregateId', aggregate_id, 'aggregateVersion', aggregate_version, "
        "'occurredAt', to_char(occurred_at AT TIME ZONE 'UTC', "
        "'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), 'payload', event_data, "
        "'metadata', metadata) FROM (SELECT * FROM domain_events "
        "WHERE CASE WHEN $1::text IS NULL THEN event_type IN (SELECT "
        "jsonb_array_elements_text($3::jsonb)) ELSE id::text = $1 END "
        "ORDER BY seq DESC LIMIT $2::int) AS latest ORDER BY seq",
        3, params, err);
    if (res) {
        list = json_array();
        for (int i = 0; i < pg_result_nrows(res); i++)
            json_array_append_new(
                list, json_loads(pg_result_value(res, i, 0), 0, NULL));
        pg_result_unref(res);
    }
    if (list && json_array_size(list) == 0) {
        json_decref(list);
        list = NULL;
        err_set(err, ERR_PERMANENT, "%s",
                id ? "no event is stored under that id"
                   : "no event of a type it subscribes to is stored");
    }
    return list;
}

static json_t *stored_events(const struct settings *s, const json_t *bundle,
                             const char *id, const char *last, struct err *err)
{
    struct pg_sync *db = pg_sync_connect(s->database_url, err);
    char *types = NULL;
    json_t *list = NULL;

    if (db && use_schema(db, s, err) &&
        (id || (types = subscribed_types(db, bundle, err))))
        list = read_stored(db, id, last, types, err);
    free(types);
    pg_sync_close(db);
    return list;
}

static json_t *bundle_from_disk(const struct settings *s, const char *name,
                                struct err *err)
{
    json_t *request = probe_handler_request(s, name), *answer, *bundle;

    answer = probe_wait(request, DRY_RUN_TIMEOUT_MS, err);
    bundle = json_incref(json_object_get(answer, "bundle"));
    json_decref(answer);
    json_decref(request);
    return bundle;
}

static void print_run(const json_t *run)
{
    const json_t *effects = json_object_get(run, "effects"), *effect;
    const char *reason = json_string_value(json_object_get(run, "reason"));
    size_t i;

    printf("%s  %s%s%s\n",
           json_string_value(json_object_get(run, "event"))
               ? json_string_value(json_object_get(run, "event"))
               : "-",
           json_string_value(json_object_get(run, "verdict")),
           reason && *reason ? ": " : "", reason ? reason : "");
    json_array_foreach(effects, i, effect) {
        char *text = json_dumps(effect, JSON_COMPACT | JSON_ENCODE_ANY);

        printf("    %s\n", text);
        free(text);
    }
}

static int run(const struct cli *c, const struct settings *s, json_t *bundle,
               json_t *events, struct err *err)
{
    json_t *request =
        json_pack("{s:s, s:O, s:o, s:O}", "op", "dry_run", "bundle", bundle,
                  "settings", settings_json(s, true), "events", events);
    json_t *answer = probe_wait(request, DRY_RUN_TIMEOUT_MS, err);
    const json_t *runs = json_object_get(answer, "runs"), *one;
    size_t i;
    int code = answer ? EXIT_DONE : EXIT_FAILED;

    if (answer && c->json)
        cli_print_json(runs);
    else
        json_array_foreach(runs, i, one)
            print_run(one);
    json_decref(answer);
    json_decref(request);
    return code;
}

static json_t *find_events(const struct cli *c, const struct settings *s,
                           const json_t *bundle, struct err *err)
{
    const char *file = cli_option(c, "--file"), *id = cli_option(c, "--event");
    const char *last = cli_option(c, "--last");

    if (file)
        return read_events(file, err);
    if (!id && !last)
        err_set(err, ERR_PERMANENT,
                "name the events: --file F, --event ID or --last N");
    else if (!*s->database_url)
        err_set(err, ERR_PERMANENT, "--event and --last need database.url");
    else if (last &&
             (strtol(last, NULL, 10) < 1 || strtol(last, NULL, 10) > LAST_MAX))
        err_set(err, ERR_PERMANENT, "--last is 1 to %d", LAST_MAX);
    else
        return stored_events(s, bundle, id, last, err);
    return NULL;
}

static int run_events(const struct cli *c, const struct settings *s,
                      struct err *err)
{
    json_t *events = NULL, *bundle = bundle_from_disk(s, c->words[0], err);
    int code = EXIT_REFUSED;

    if (bundle && (events = find_events(c, s, bundle, err)))
        code = run(c, s, bundle, events, err);
    json_decref(events);
    json_decref(bundle);
    return code;
}

static int run_letters(const struct cli *c, const struct settings *s,
                       struct err *err)
{
    json_t *bundle = NULL;
    int code = EXIT_DONE;

    if (cli_option(c, "--handler") || cli_option(c, "--file") ||
        cli_option(c, "--event") || cli_option(c, "--last"))
        return cli_usage("dry-run HANDLER --dead-letters [filters] [--limit N] "
                         "[--on-disk]");
    if (!cli_flag(c, "--on-disk"))
        code = dry_run_running(c, &bundle);
    else if (!(bundle = bundle_from_disk(s, c->words[0], err)))
        code = EXIT_REFUSED;
    if (code == EXIT_DONE)
        code = dry_run_letters(c, s, bundle, err);
    json_decref(bundle);
    return code;
}

int cmd_dry_run(const struct cli *c)
{
    struct config_source from = {
        .path = c->config, .sets = c->sets, .n_sets = c->n_sets};
    struct err err = {0};
    struct settings s;
    int code = EXIT_REFUSED;

    if (c->n_words != 1)
        return cli_usage("dry-run HANDLER --file F | --event ID | --last N | "
                         "--dead-letters [filters] [--limit N] [--on-disk]");
    if (config_load(&s, &from, &err))
        code = cli_flag(c, "--dead-letters") ? run_letters(c, &s, &err)
                                             : run_events(c, &s, &err);
    if (err.msg[0])
        fprintf(stderr, "moontide: %s\n", err.msg);
    settings_fini(&s);
    return code;
}
