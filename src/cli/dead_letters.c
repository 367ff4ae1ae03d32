/* dead-letters: list, group, show, redrive, discard and edit them, by the host's
 * API. */
#include "cli/cli.h"

#include "base/buf.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const filters[] = {"handler",     "type",  "aggregate",
                                      "correlation", "class", "fingerprint",
                                      "since",       "until"};
#define N_FILTERS (sizeof(filters) / sizeof(*filters))

static const char usage[] =
    "dead-letters list | groups | show ID | redrive ID…|--all|[filters] "
    "[--rate 100/s] [--force] [--dry-run] | discard ID…|--all|[filters] "
    "--reason TEXT | edit ID [--payload JSON | --file F] [--fact NAME=VALUE]… "
    "--reason TEXT\nfilters: --handler H --type T --aggregate A --correlation "
    "C --class C --fingerprint F --since T --until T";

/* --- seeing ----------------------------------------------------------------------- */

static void show_list(const json_t *answer)
{
    static const char *const columns[] = {
        "ID:id",           "HANDLER:handler",   "TYPE:eventType",
        "CLASS:class",     "ATTEMPTS:attempts", "REDRIVES:redrives",
        "FAILED:failedAt", "ERROR:error"};
    const json_t *next = json_object_get(answer, "cursor");

    cli_print_table(json_object_get(answer, "deadLetters"), columns, 8);
    if (next && !json_is_null(next)) {
        char *text = json_dumps(next, JSON_ENCODE_ANY);

        printf("more: --cursor %s\n", text);
        free(text);
    }
}

static void show_groups(const json_t *answer)
{
    static const char *const columns[] = {
        "FINGERPRINT:fingerprint", "N:count",        "HANDLER:handler",
        "VERSION:version",         "CLASS:class",    "FIRST:firstFailedAt",
        "LAST:lastFailedAt",       "MESSAGE:message"};

    cli_print_table(json_object_get(answer, "groups"), columns, 8);
}

static void add_query(struct buf *out, const struct cli *c, const char *name)
{
    char option[32], *value;

    snprintf(option, sizeof(option), "--%s", name);
    if (!cli_option(c, option))
        return;
    value = cli_escape(cli_option(c, option));
    buf_printf(out, "%s=%s&", name, value);
    free(value);
}

char *cli_filter_query(const struct cli *c)
{
    struct buf out = {0};

    for (size_t i = 0; i < N_FILTERS; i++)
        add_query(&out, c, filters[i]);
    buf_text(&out);
    return buf_give(&out);
}

int cli_filtered_list(const struct cli *c, const char *path,
                      void (*show)(const json_t *answer))
{
    static const char *const more[] = {"state", "limit", "cursor"};
    char *query = cli_filter_query(c);
    struct buf text = {0};
    int code;

    buf_printf(&text, "%s?%s", path, query);
    for (size_t i = 0; i < 3; i++)
        add_query(&text, c, more[i]);
    code = cli_ask_and_show(c, "GET", buf_text(&text), NULL, show);
    buf_fini(&text);
    free(query);
    return code;
}

/* --- redrive and discard -------------------------------------------------------------- */

/* IDs given as words, as "1,2,3". Gives. */
static char *ids_of(const struct cli *c)
{
    struct buf ids = {0};

    for (size_t i = 1; i < c->n_words; i++)
        buf_printf(&ids, "%s%s", i > 1 ? "," : "", c->words[i]);
    buf_text(&ids);
    return buf_give(&ids);
}

static void put_text(json_t *body, const char *name, const char *text)
{
    if (text)
        json_object_set_new(body, name, json_string(text));
}

/* Passed over, they would change more than was asked for. */
static bool has_list_option(const struct cli *c)
{
    return cli_option(c, "--state") || cli_option(c, "--limit") ||
           cli_option(c, "--cursor");
}

json_t *cli_filter_body(const struct cli *c)
{
    json_t *body = json_object();
    char *ids = ids_of(c);

    for (size_t i = 0; i < N_FILTERS; i++) {
        char option[32];

        snprintf(option, sizeof(option), "--%s", filters[i]);
        put_text(body, filters[i], cli_option(c, option));
    }
    put_text(body, "ids", *ids ? ids : NULL);
    put_text(body, "who", getenv("USER"));
    if (cli_flag(c, "--all"))
        json_object_set_new(body, "all", json_true());
    free(ids);
    return body;
}

/* What was left out is said, for it is what was asked for and not done. */
static void show_redrive(const json_t *answer)
{
    json_int_t left = json_integer_value(json_object_get(answer, "leftOut"));

    cli_print_json(answer);
    if (left > 0)
        fprintf(stderr,
                "moontide: %lld left out: redriven too often already. Name them"
                " by id, or --force\n",
                (long long)left);
}

static int redrive(const struct cli *c)
{
    json_t *body = cli_filter_body(c);
    int code;

    if (cli_flag(c, "--dry-run"))
        json_object_set_new(body, "dryRun", json_true());
    if (cli_flag(c, "--force"))
        json_object_set_new(body, "force", json_true());
    put_text(body, "rate", cli_option(c, "--rate"));
    code = cli_ask_and_show(c, "POST", "/v1/dead-letters/redrive", body,
                            show_redrive);
    json_decref(body);
    return code;
}

static int discard(const struct cli *c)
{
    const char *reason = cli_option(c, "--reason");
    json_t *body;
    int code;

    if (!reason || !*reason)
        return cli_usage("dead-letters discard ID…|--all|[filters] --reason "
                         "TEXT");
    body = cli_filter_body(c);
    put_text(body, "reason", reason);
    code = cli_ask_and_show(c, "POST", "/v1/dead-letters/discard", body, NULL);
    json_decref(body);
    return code;
}

/* --- edit ---------------------------------------------------------------------------------- */

static bool read_file(const char *path, struct buf *out)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char chunk[4096];
    size_t n;

    if (!file) {
        fprintf(stderr, "moontide: %s: %m\n", path);
        return false;
    }
    while ((n = fread(chunk, 1, sizeof(chunk), file)) > 0)
        buf_add(out, chunk, n);
    if (file != stdin)
        fclose(file);
    return true;
}

/* NAME=VALUE; NAME= takes the fact away. NULL when there is no "=". */
static json_t *facts_of(const struct cli *c)
{
    json_t *facts = json_object();
    const char *fact;
    int from = 0;

    while ((fact = cli_option_next(c, "--fact", &from))) {
        const char *eq = strchr(fact, '=');
        char *name;

        if (!eq) {
            fprintf(stderr, "moontide: --fact %s: NAME=VALUE expected\n", fact);
            json_decref(facts);
            return NULL;
        }
        name = xstrndup(fact, (size_t)(eq - fact));
        json_object_set_new(facts, name,
                            eq[1] ? json_string(eq + 1) : json_null());
        free(name);
    }
    return facts;
}

/* The payload goes as it was given: numbers keep their digits. */
static char *edit_text(json_t *rest, const struct buf *payload)
{
    char *text = json_dumps(rest, JSON_COMPACT);
    struct buf out = {0};

    if (payload->len == 0)
        return text;
    buf_printf(&out, "{\"payload\":%.*s,%s", (int)payload->len, payload->ptr,
               text + 1);
    free(text);
    return buf_give(&out);
}

static int edit(const struct cli *c)
{
    const char *reason = cli_option(c, "--reason");
    const char *payload = cli_option(c, "--payload");
    const char *file = cli_option(c, "--file");
    struct buf bytes = {0};
    json_t *facts, *rest, *answer = NULL;
    char path[100], *text;
    int code;

    if (!reason || !*reason || (payload && file) ||
        (!payload && !file && !cli_option(c, "--fact")))
        return cli_usage("dead-letters edit ID [--payload JSON | --file F] "
                         "[--fact NAME=VALUE]… --reason TEXT");
    if (payload)
        buf_add_text(&bytes, payload);
    if ((file && !read_file(file, &bytes)) || !(facts = facts_of(c))) {
        buf_fini(&bytes);
        return EXIT_USAGE;
    }
    rest = json_pack("{s:s, s:o}", "reason", reason, "facts", facts);
    put_text(rest, "who", getenv("USER"));
    text = edit_text(rest, &bytes);
    snprintf(path, sizeof(path), "/v1/dead-letters/%.40s/edit", cli_word(c, 1));
    code = cli_ask_text(c, "POST", path, text, &answer);
    if (code == EXIT_DONE && answer)
        cli_print_json(answer);
    json_decref(answer);
    json_decref(rest);
    free(text);
    buf_fini(&bytes);
    return code;
}

int cmd_dead_letters(const struct cli *c)
{
    char path[100];

    if (c->n_words == 0 || cli_word_is(c, 0, "list"))
        return cli_filtered_list(c, "/v1/dead-letters", show_list);
    if (cli_word_is(c, 0, "groups"))
        return cli_filtered_list(c, "/v1/dead-letters/groups", show_groups);
    if (cli_word_is(c, 0, "show") && c->n_words == 2) {
        snprintf(path, sizeof(path), "/v1/dead-letters/%.40s", cli_word(c, 1));
        return cli_ask_and_show(c, "GET", path, NULL, NULL);
    }
    if (cli_word_is(c, 0, "edit") && c->n_words == 2)
        return edit(c);
    if (cli_word_is(c, 0, "redrive") && !has_list_option(c))
        return redrive(c);
    if (cli_word_is(c, 0, "discard") && !has_list_option(c))
        return discard(c);
    return cli_usage(usage);
}
