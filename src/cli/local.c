/* Commands that do their work here: run, check, migrate. */
#include "cli/cli.h"

#include "base/buf.h"
#include "base/mem.h"
#include "core/pattern.h"
#include "host/config.h"
#include "host/host.h"
#include "host/probe.h"
#include "kafka/settings.h"
#include "pg/migrate.h"
#include "pg/pg.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROBE_TIMEOUT_MS 5000
#define STEPS_MAX        1000

static struct config_source source_of(const struct cli *c)
{
    return (struct config_source){
        .path = c->config, .sets = c->sets, .n_sets = c->n_sets};
}

/* --- run ------------------------------------------------------------------------ */

static int help_settings(const struct cli *c)
{
    struct buf text = {0};

    if (cli_flag(c, "--markdown"))
        settings_markdown(&text);
    else
        settings_help(&text);
    fwrite(text.ptr, 1, text.len, stdout);
    buf_fini(&text);
    return EXIT_DONE;
}

int cmd_run(const struct cli *c)
{
    struct config_source from = source_of(c);

    if (cli_flag(c, "--help-settings"))
        return help_settings(c);
    return host_run(&from);
}

/* --- check ----------------------------------------------------------------------- */

json_t *cli_probe_handler(const struct settings *s, const char *name,
                          struct err *err)
{
    json_t *request = probe_handler_request(s, name), *answer;

    answer = probe_wait(request, PROBE_TIMEOUT_MS, err);
    if (!answer && !strstr(err->msg, ".lua"))
        err_wrap(err, "%s/%s.lua", s->handlers_path, name);
    json_decref(request);
    return answer;
}

static bool handler_fits(const struct settings *s, const json_t *decl,
                         const char *name, struct err *err)
{
    const char *on_dead, *transaction;

    if (json_is_true(json_object_get(decl, "transaction")) && !*s->database_url)
        return err_set(err, ERR_PERMANENT,
                       "%s/%s.lua: transaction = true needs database.url",
                       s->handlers_path, name);
    transaction = json_string_value(json_object_get(decl, "transaction"));
    if (transaction && !config_keeps_kafka_transactions(s, err)) {
        err_wrap(err, "%s/%s.lua", s->handlers_path, name);
        return false;
    }
    on_dead = json_string_value(json_object_get(decl, "on_dead"));
    if (on_dead && strcmp(on_dead, "park") == 0 && !*s->database_url)
        return err_set(err, ERR_PERMANENT,
                       "%s/%s.lua: on_dead = \"park\" needs database.url",
                       s->handlers_path, name);
    return true;
}

static bool is_handler(const char *file)
{
    size_t len = strlen(file);

    return len > 4 && file[0] != '.' && strcmp(file + len - 4, ".lua") == 0 &&
           !(len > 9 && strcmp(file + len - 9, "_spec.lua") == 0);
}

static int check_handlers(const struct cli *c, const struct settings *s)
{
    DIR *dir = opendir(s->handlers_path);
    struct dirent *file;
    int bad = 0;

    if (!dir) {
        fprintf(stderr, "%s: cannot read the handlers folder: %m\n",
                s->handlers_path);
        return 1;
    }
    while ((file = readdir(dir))) {
        char name[256];
        struct err err;
        json_t *answer;
        const json_t *bundle;

        if (!is_handler(file->d_name))
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)strlen(file->d_name) - 4,
                 file->d_name);
        answer = cli_probe_handler(s, name, &err);
        bundle = json_object_get(answer, "bundle");
        if (!answer ||
            !handler_fits(s, json_object_get(bundle, "decl"), name, &err)) {
            fprintf(stderr, "%s\n", err.msg);
            bad++;
        } else if (!c->json) {
            printf("%-20s ok  %s\n", name,
                   json_string_value(json_object_get(bundle, "version")));
        }
        json_decref(answer);
    }
    closedir(dir);
    return bad;
}

static bool check_sources(const struct settings *s, struct err *err)
{
    struct kafka_settings kafka = {
        .brokers = s->kafka_brokers,
        .client_id = s->kafka_client_id,
        .group_id = s->kafka_group_id,
        .instance_id = s->kafka_instance_id,
        .incarnation = "",
        .topics = s->kafka_topics,
        .rdkafka = s->rdkafka,
    };

    if (!*s->database_url && !*s->kafka_brokers)
        return err_set(err, ERR_PERMANENT,
                       "nothing to read: give database.url (DATABASE_URL) or "
                       "kafka.brokers (KAFKA_BROKERS)");
    if (*s->database_url && !pg_url_check(s->database_url, err))
        return false;
    if (*s->kafka_brokers && strcmp(s->kafka_brokers, "embedded") != 0)
        return kafka_settings_check(&kafka, err);
    return true;
}

int cmd_check(const struct cli *c)
{
    struct config_source from = source_of(c);
    struct settings s;
    struct err err;
    int bad = 0;

    if (!config_load(&s, &from, &err) || !check_sources(&s, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        bad++;
    } else {
        bad = check_handlers(c, &s);
    }
    settings_fini(&s);
    if (bad)
        fprintf(stderr, "%d refused\n", bad);
    return bad ? EXIT_REFUSED : EXIT_DONE;
}

/* --- migrate ---------------------------------------------------------------------- */

static void print_step(void *arg, const struct migrate_step *step)
{
    const struct cli *c = arg;

    if (c->json)
        printf("{\"version\":\"%s\",\"appliedAt\":%s%s%s,\"changed\":%s}\n",
               step->version, step->applied_at ? "\"" : "",
               step->applied_at ? step->applied_at : "null",
               step->applied_at ? "\"" : "", step->changed ? "true" : "false");
    else
        printf("%-28s %s\n", step->version,
               step->changed      ? (step->applied_at ? "applied" : "undone")
               : step->applied_at ? step->applied_at
                                  : "not applied");
}

static int migrate(const struct cli *c, const struct migrate_options *o,
                   const struct settings *s, struct err *err)
{
    const char *what = c->n_words ? c->words[0] : "";
    const char *steps = cli_option(c, "--steps");
    long count = steps ? strtol(steps, NULL, 10) : 1;
    const char *preset = cli_option(c, "--preset");
    void *arg = (void *)(uintptr_t)c;
    bool ok;

    if (strcmp(what, "up") == 0)
        ok = migrate_up(o, print_step, arg, err);
    else if (strcmp(what, "down") == 0 && count >= 1 && count <= STEPS_MAX)
        ok = migrate_down(o, (int)count, print_step, arg, err);
    else if (strcmp(what, "status") == 0)
        ok = migrate_status(o, print_step, arg, err);
    else if (strcmp(what, "uninstall") == 0 && cli_flag(c, "--yes"))
        ok = migrate_uninstall(o, print_step, arg, err);
    else if (strcmp(what, "adopt") == 0 && c->n_words == 2)
        ok = migrate_adopt(o, c->words[1], preset ? preset : s->outbox_columns,
                           err);
    else
        return cli_usage("migrate up [--ids uuid|text] | down [--steps N] | "
                         "status | uninstall --yes | adopt TABLE [--preset "
                         "native|camel|debezium]");
    return ok ? EXIT_DONE : EXIT_FAILED;
}

int cmd_migrate(const struct cli *c)
{
    struct config_source from = source_of(c);
    const char *share = config_share_dir(), *dir = cli_option(c, "--dir");
    char *found = share ? xasprintf("%s/migrations", share) : NULL;
    struct err err = {0};
    struct settings s;
    int code = EXIT_FAILED;

    if (!config_load(&s, &from, &err))
        code = EXIT_REFUSED;
    else if (!*s.database_url)
        err_set(&err, ERR_PERMANENT, "database.url (DATABASE_URL) is not set");
    else if (!dir && !found)
        err_set(&err, ERR_PERMANENT, "cannot find the migrations folder");
    else {
        struct migrate_options o = {
            .url = s.database_url,
            .dir = dir ? dir : found,
            .schema = strcmp(s.database_schema, "public") == 0
                          ? NULL
                          : s.database_schema,
            .ids = cli_option(c, "--ids"),
        };

        code = migrate(c, &o, &s, &err);
    }
    if (err.msg[0])
        fprintf(stderr, "moontide: %s\n", err.msg);
    free(found);
    settings_fini(&s);
    return code;
}
