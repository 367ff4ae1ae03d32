/*
 * dry-run: a handler over events, in record mode: SQL runs for real in a
 * transaction that is rolled back, everything else is only written down. The
 * code is the file on disk.
 */
#include "cli/cli.h"

#include "base/buf.h"
#include "base/mem.h"
#include "host/config.h"
#include "host/probe.h"
#include "pg/pg_sync.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROBE_TIMEOUT_MS 60000
#define LAST_MAX         1000

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

/* Stored events as native envelopes: one by id, or the last N. */
static json_t *stored_events(const struct settings *s, const char *id,
                             const char *last, struct err *err)
{
    struct pg_sync *db = pg_sync_connect(s->database_url, err);
    struct pg_param params[] = {{.value = id}, {.value = last ? last : "1"}};
    const struct pg_result *res;
    json_t *list = NULL;

    if (!db)
        return NULL;
    res = pg_sync_exec(
        db,
        "SELECT jsonb_build_object('id', id, 'eventType', event_type, "
        "'eventVersion', event_version, 'aggregateType', aggregate_type, "
        "'aggregateId', aggregate_id, 'aggregateVersion', aggregate_version, "
        "'occurredAt', to_char(occurred_at AT TIME ZONE 'UTC', "
        "'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), 'payload', event_data, "
        "'metadata', metadata) FROM (SELECT * FROM domain_events "
        "WHERE $1::text IS NULL OR id::text = $1 ORDER BY seq DESC "
        "LIMIT $2::int) AS latest ORDER BY seq",
        2, params, err);
    if (res) {
        list = json_array();
        for (int i = 0; i < pg_result_nrows(res); i++)
            json_array_append_new(
                list, json_loads(pg_result_value(res, i, 0), 0, NULL));
        pg_result_unref(res);
    }
    pg_sync_close(db);
    return list;
}

static json_t *bundle_from_disk(const struct settings *s, const char *name,
                                struct err *err)
{
    json_t *request = probe_handler_request(s, name), *answer, *bundle;

    answer = probe_wait(request, PROBE_TIMEOUT_MS, err);
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
    json_t *answer = probe_wait(request, PROBE_TIMEOUT_MS, err);
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
                           struct err *err)
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
        return stored_events(s, id, last, err);
    return NULL;
}

int cmd_dry_run(const struct cli *c)
{
    struct config_source from = {
        .path = c->config, .sets = c->sets, .n_sets = c->n_sets};
    json_t *events = NULL, *bundle = NULL;
    struct err err = {0};
    struct settings s;
    int code = EXIT_REFUSED;

    if (c->n_words != 1)
        return cli_usage("dry-run HANDLER --file F | --event ID | --last N");
    if (config_load(&s, &from, &err) && (events = find_events(c, &s, &err)) &&
        (bundle = bundle_from_disk(&s, c->words[0], &err)))
        code = run(c, &s, bundle, events, &err);
    if (err.msg[0])
        fprintf(stderr, "moontide: %s\n", err.msg);
    json_decref(events);
    json_decref(bundle);
    settings_fini(&s);
    return code;
}
