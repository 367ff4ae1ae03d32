/* Commands that ask the host: status, handlers, flags, publish. */
#include "cli/cli.h"

#include "base/buf.h"
#include "base/mem.h"
#include "host/config.h"
#include "host/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PUBLISH_BATCH   500
#define SPEC_TIMEOUT_MS 30000

int cli_ask_and_show(const struct cli *c, const char *method, const char *path,
                     const json_t *body, void (*show)(const json_t *answer))
{
    json_t *answer = NULL;
    int code = cli_ask(c, method, path, body, &answer);

    if (code == EXIT_DONE && answer) {
        if (c->json || !show)
            cli_print_json(answer);
        else
            show(answer);
    }
    json_decref(answer);
    return code;
}

/* --- status ---------------------------------------------------------------------- */

static const char *text_at(const json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));

    return text ? text : "";
}

static json_int_t number_at(const json_t *json, const char *name)
{
    return json_integer_value(json_object_get(json, name));
}

static void add_to(json_t *sum, const json_t *part, const char *name)
{
    json_object_set_new(
        sum, name, json_integer(number_at(sum, name) + number_at(part, name)));
}

/* Shards that run are one line: the first place, and what they have together. */
static json_t *with_shards_together(const json_t *partitions)
{
    json_t *rows = json_array(), *sum = NULL, *p;
    char name[32];
    int n = 0;
    size_t i;

    json_array_foreach(partitions, i, p) {
        if (strcmp(text_at(p, "source"), "outbox") != 0 ||
            strcmp(text_at(p, "state"), "running") != 0 ||
            *text_at(p, "trouble")) {
            json_array_append(rows, p);
            continue;
        }
        n++;
        if (!sum) {
            sum = json_copy(p);
            json_array_append_new(rows, sum);
            continue;
        }
        if (number_at(p, "next") < number_at(sum, "next"))
            json_object_set(sum, "next", json_object_get(p, "next"));
        add_to(sum, p, "backlog");
        add_to(sum, p, "window");
    }
    snprintf(name, sizeof(name), "%d shard%s", n, n == 1 ? "" : "s");
    if (sum)
        json_object_set_new(sum, "partition", json_string(name));
    return rows;
}

static void show_partitions(const json_t *sources)
{
    static const char *const columns[] = {
        "SOURCE:source",   "PARTITION:partition", "STATE:state",    "NEXT:next",
        "BACKLOG:backlog", "WINDOW:window",       "TROUBLE:trouble"};
    static const char *const of_hosts[] = {"HOST:node", "SHARDS:shards"};
    const json_t *outbox = json_object_get(sources, "outbox");
    json_t *rows = with_shards_together(json_object_get(sources, "partitions"));

    printf("\n");
    cli_print_table(rows, columns, 7);
    json_decref(rows);
    if (json_array_size(json_object_get(outbox, "hosts")) == 0)
        return;
    printf("\n");
    cli_print_table(json_object_get(outbox, "hosts"), of_hosts, 2);
}

static void show_handlers(const json_t *handlers)
{
    static const char *const columns[] = {"HANDLER:name",      "STATE:state",
                                          "VERSION:version",   "SINCE:since",
                                          "INFLIGHT:inflight", "NOTE:refused"};

    cli_print_table(handlers, columns, 6);
}

static void show_status(const json_t *status)
{
    const json_t *reasons = json_object_get(status, "reasons"), *reason;
    size_t i;

    printf("moontide %s on %s since %s\n\n", text_at(status, "version"),
           text_at(status, "node"), text_at(status, "since"));
    show_handlers(json_object_get(status, "handlers"));
    show_partitions(json_object_get(status, "sources"));
    if (json_array_size(reasons) == 0)
        printf("\nready\n");
    json_array_foreach(reasons, i, reason)
        printf("\nnot ready: %s%s%s\n", text_at(reason, "handler"),
               *text_at(reason, "handler") ? ": " : "", text_at(reason, "why"));
    json_array_foreach(json_object_get(status, "warnings"), i, reason)
        printf("\nwarning: %s: %s\n", text_at(reason, "what"),
               text_at(reason, "why"));
}

int cmd_status(const struct cli *c)
{
    return cli_ask_and_show(c, "GET", "/v1/status", NULL, show_status);
}

/* --- handlers --------------------------------------------------------------------- */

static void show_handler_list(const json_t *answer)
{
    show_handlers(json_object_get(answer, "handlers"));
}

/* The handler's own spec, here, without a host. */
static int test_handler(const struct cli *c)
{
    struct config_source from = {
        .path = c->config, .sets = c->sets, .n_sets = c->n_sets};
    json_t *request, *answer = NULL, *one;
    struct err err = {0};
    struct settings s;
    size_t i;
    int code = EXIT_FAILED;

    if (!config_load(&s, &from, &err)) {
        fprintf(stderr, "moontide: %s\n", err.msg);
        settings_fini(&s);
        return EXIT_REFUSED;
    }
    request = probe_handler_request(&s, cli_word(c, 1));
    json_object_set_new(request, "op", json_string("spec"));
    answer = probe_wait(request, SPEC_TIMEOUT_MS, &err);
    if (!answer)
        fprintf(stderr, "%s\n", err.msg);
    else if (c->json)
        cli_print_json(answer);
    else
        json_array_foreach(json_object_get(answer, "results"), i, one)
            printf("%s %s%s%s\n",
                   json_is_true(json_object_get(one, "ok")) ? "ok  " : "FAIL",
                   text_at(one, "name"),
                   *text_at(one, "error") ? "\n     " : "",
                   text_at(one, "error"));
    if (answer && json_integer_value(json_object_get(answer, "failed")) == 0)
        code = EXIT_DONE;
    json_decref(answer);
    json_decref(request);
    settings_fini(&s);
    return code;
}

int cmd_handlers(const struct cli *c)
{
    char path[200], *name = cli_escape(cli_word(c, 1));
    int code = EXIT_USAGE;

    if (c->n_words == 0 || cli_word_is(c, 0, "list")) {
        code =
            cli_ask_and_show(c, "GET", "/v1/handlers", NULL, show_handler_list);
    } else if (cli_word_is(c, 0, "show") && *name) {
        snprintf(path, sizeof(path), "/v1/handlers/%.100s", name);
        code = cli_ask_and_show(c, "GET", path, NULL, NULL);
    } else if (cli_word_is(c, 0, "reload")) {
        snprintf(path, sizeof(path),
                 *name ? "/v1/handlers/%.100s/reload" : "/v1/reload%.0s", name);
        code = cli_ask_and_show(c, "POST", path, NULL, NULL);
    } else if ((cli_word_is(c, 0, "pause") || cli_word_is(c, 0, "resume")) &&
               *name) {
        snprintf(path, sizeof(path), "/v1/handlers/%.100s/%.10s", name,
                 cli_word(c, 0));
        code = cli_ask_and_show(c, "POST", path, NULL, NULL);
    } else if (cli_word_is(c, 0, "test") && *name) {
        code = test_handler(c);
    } else {
        cli_usage("handlers list | show NAME | pause NAME | resume NAME | "
                  "reload [NAME] | test NAME");
    }
    free(name);
    return code;
}

/* --- flags --------------------------------------------------------------------------- */

static void show_flags(const json_t *answer)
{
    static const char *const columns[] = {"FLAG:name", "STATE:state",
                                          "WHEN OFF:whenOff", "FROM:from"};

    cli_print_table(json_object_get(answer, "flags"), columns, 4);
}

static int set_flag(const struct cli *c, const char *path)
{
    const char *when = cli_option(c, "--when-off");
    const char *lasts = cli_option(c, "--for");
    const char *reason = cli_option(c, "--reason");
    const char *who = getenv("USER");
    json_t *body = json_pack("{s:s}", "state", cli_word(c, 2));
    int code;

    if (when)
        json_object_set_new(body, "whenOff", json_string(when));
    if (lasts)
        json_object_set_new(body, "for", json_string(lasts));
    if (reason)
        json_object_set_new(body, "reason", json_string(reason));
    if (who)
        json_object_set_new(body, "who", json_string(who));
    code = cli_ask_and_show(c, "PUT", path, body, NULL);
    json_decref(body);
    return code;
}

int cmd_flags(const struct cli *c)
{
    char path[200], *name = cli_escape(cli_word(c, 1));
    int code;

    snprintf(path, sizeof(path), "/v1/flags/%.150s", name);
    free(name);
    if (c->n_words == 0 || cli_word_is(c, 0, "list"))
        code = cli_ask_and_show(c, "GET", "/v1/flags", NULL, show_flags);
    else if (cli_word_is(c, 0, "set") && c->n_words == 3)
        code = set_flag(c, path);
    else if (cli_word_is(c, 0, "unset") && c->n_words == 2)
        code = cli_ask_and_show(c, "DELETE", path, NULL, NULL);
    else
        code = cli_usage("flags list | set NAME on|off [--when-off hold|skip] "
                         "[--for 1h] [--reason TEXT] | unset NAME");
    return code;
}

/* --- publish ---------------------------------------------------------------------------------- */

static void print_ids(const json_t *answer)
{
    json_t *id;
    size_t i;

    json_array_foreach(json_object_get(answer, "ids"), i, id)
        printf("%s\n", json_string_value(id));
}

static int publish_batch(const struct cli *c, json_t *batch)
{
    int code = EXIT_DONE;

    if (json_array_size(batch) > 0)
        code = cli_ask_and_show(c, "POST", "/v1/events", batch, print_ids);
    json_array_clear(batch);
    return code;
}

int cmd_publish(const struct cli *c)
{
    const char *path = c->n_words ? cli_word(c, 0) : "-";
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    json_t *batch = json_array();
    char *line = NULL;
    size_t cap = 0, n = 0;
    int code = EXIT_DONE;

    if (!file) {
        fprintf(stderr, "moontide: %s: %m\n", path);
        code = EXIT_FAILED;
    }
    while (file && code == EXIT_DONE && getline(&line, &cap, file) >= 0) {
        json_error_t e;
        json_t *ev;

        n++;
        if (line[strspn(line, " \t\r\n")] == '\0')
            continue;
        ev = json_loads(line, 0, &e);
        if (!ev) {
            fprintf(stderr, "moontide: %s:%zu: %s\n", path, n, e.text);
            code = EXIT_REFUSED;
            break;
        }
        json_array_append_new(batch, ev);
        if (json_array_size(batch) == PUBLISH_BATCH)
            code = publish_batch(c, batch);
    }
    if (code == EXIT_DONE)
        code = publish_batch(c, batch);
    free(line);
    json_decref(batch);
    if (file && file != stdin)
        fclose(file);
    return code;
}
