/*
 * dry-run HANDLER --dead-letters: how many of them would pass with the version
 * that runs now? Letters and code come from the host; they are run here, in
 * record mode, some at a time.
 */
#include "cli/dry_run.h"

#include "base/buf.h"
#include "base/mem.h"
#include "host/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LETTERS_DEFAULT 1000
#define LETTERS_MOST    100000
#define PAGE            20 /* as many as the API gives with their bytes */

/* What is known so far, by the fingerprint of the failure they died of. */
struct sums {
    json_t *groups; /* fingerprint → {…, failures: {reason → {…}}} */
    json_int_t letters, passed;
};

static const char *text_of(const json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));

    return text ? text : "";
}

static void count(json_t *object, const char *name)
{
    json_int_t n = json_integer_value(json_object_get(object, name));

    json_object_set_new(object, name, json_integer(n + 1));
}

static json_t *group_of(struct sums *sums, const json_t *letter)
{
    const char *print = text_of(letter, "fingerprint");
    json_t *group = json_object_get(sums->groups, print);

    if (group)
        return group;
    group = json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:{}}", "fingerprint",
                      print, "class", text_of(letter, "class"), "error",
                      text_of(letter, "error"), "count", 0, "passed", 0,
                      "failed", 0, "failures");
    json_object_set_new(sums->groups, print, group);
    return group;
}

static bool passes(const json_t *run)
{
    const char *verdict = text_of(run, "verdict");

    return strcmp(verdict, "ack") == 0 || strcmp(verdict, "skip") == 0;
}

/* The first line: what is behind it differs from letter to letter. */
static void add_failure(json_t *group, const json_t *run)
{
    json_t *failures = json_object_get(group, "failures"), *failure;
    const char *reason = text_of(run, "reason");
    char *line = xasprintf("%s: %.*s", text_of(run, "verdict"),
                           (int)strcspn(reason, "\n"), reason);

    failure = json_object_get(failures, line);
    if (!failure) {
        failure =
            json_pack("{s:s, s:s, s:i}", "verdict", text_of(run, "verdict"),
                      "reason", line, "count", 0);
        json_object_set(failure, "class", json_object_get(run, "class"));
        json_object_set_new(failures, line, failure);
    }
    count(failure, "count");
    free(line);
}

static void add_runs(struct sums *sums, const json_t *letters,
                     const json_t *runs)
{
    json_t *run;
    size_t i;

    json_array_foreach(runs, i, run) {
        json_t *group = group_of(sums, json_array_get(letters, i));

        sums->letters++;
        count(group, "count");
        if (passes(run)) {
            sums->passed++;
            count(group, "passed");
        } else {
            count(group, "failed");
            add_failure(group, run);
        }
    }
}

/* --- running ---------------------------------------------------------------------- */

static int64_t timeout_of(const json_t *bundle, size_t letters)
{
    const json_t *decl = json_object_get(bundle, "decl");
    int64_t each =
        json_integer_value(json_object_get(decl, "timeout_ms")) + 1000;

    return DRY_RUN_TIMEOUT_MS + (int64_t)letters * each;
}

static bool run_page(const struct settings *s, json_t *bundle, json_t *letters,
                     struct sums *sums, struct err *err)
{
    json_t *request =
        json_pack("{s:s, s:O, s:o, s:O}", "op", "dry_run", "bundle", bundle,
                  "settings", settings_json(s, true), "letters", letters);
    json_t *answer =
        probe_wait(request, timeout_of(bundle, json_array_size(letters)), err);

    if (answer)
        add_runs(sums, letters, json_object_get(answer, "runs"));
    json_decref(request);
    json_decref(answer);
    return answer != NULL;
}

/* The next letters, newest first; `cursor` moves on, and is 0 after the last. */
static int next_page(const struct cli *c, json_int_t *cursor, json_int_t limit,
                     json_t **answer)
{
    char *query = cli_filter_query(c), *path,
         *handler = cli_escape(c->words[0]);
    int code;

    path = xasprintf("/v1/dead-letters?with=bodies&handler=%s&%slimit=%d&"
                     "cursor=%lld",
                     handler, query, limit < PAGE ? (int)limit : PAGE,
                     (long long)*cursor);
    code = cli_ask(c, "GET", path, NULL, answer);
    *cursor = json_integer_value(json_object_get(*answer, "cursor"));
    free(path);
    free(query);
    free(handler);
    return code;
}

static int run_all(const struct cli *c, const struct settings *s,
                   json_t *bundle, json_int_t limit, struct sums *sums,
                   struct err *err)
{
    json_int_t cursor = 0;

    do {
        json_t *answer = NULL, *letters;
        int code = next_page(c, &cursor, limit - sums->letters, &answer);
        bool ok = true;

        letters = json_object_get(answer, "deadLetters");
        if (code == EXIT_DONE && json_array_size(letters) > 0)
            ok = run_page(s, bundle, letters, sums, err);
        json_decref(answer);
        if (code != EXIT_DONE || !ok)
            return ok ? code : EXIT_FAILED;
    } while (cursor && sums->letters < limit);
    return EXIT_DONE;
}

/* --- showing ---------------------------------------------------------------------- */

static json_t *values_of(json_t *object)
{
    json_t *list = json_array(), *value;
    const char *name;

    json_object_foreach(object, name, value)
        json_array_append(list, value);
    return list;
}

/* The failures as a list, and the most frequent of them for the table. */
static json_t *groups_of(const struct sums *sums)
{
    json_t *list = values_of(sums->groups), *group, *failure;
    size_t i, k;

    json_array_foreach(list, i, group) {
        json_t *failures = values_of(json_object_get(group, "failures"));
        const json_t *most = NULL;

        json_array_foreach(failures, k, failure)
            if (!most || json_integer_value(json_object_get(failure, "count")) >
                             json_integer_value(json_object_get(most, "count")))
                most = failure;
        if (most)
            json_object_set(group, "failsWith",
                            json_object_get(most, "reason"));
        json_object_set_new(group, "failures", failures);
    }
    return list;
}

static void show(const struct cli *c, const json_t *bundle,
                 const struct sums *sums)
{
    static const char *const columns[] = {
        "FINGERPRINT:fingerprint", "N:count",       "WOULD PASS:passed",
        "WOULD FAIL:failed",       "DIED OF:error", "FAILS WITH:failsWith"};
    json_t *groups = groups_of(sums);
    json_t *all = json_pack(
        "{s:s, s:O?, s:I, s:I, s:I, s:o}", "handler", c->words[0], "version",
        json_object_get(bundle, "version"), "letters", sums->letters, "passed",
        sums->passed, "failed", sums->letters - sums->passed, "groups", groups);

    if (c->json) {
        cli_print_json(all);
    } else {
        cli_print_table(groups, columns, 6);
        printf("\n%lld of %lld would pass with version %s\n",
               (long long)sums->passed, (long long)sums->letters,
               text_of(bundle, "version"));
    }
    json_decref(all);
}

int dry_run_letters(const struct cli *c, const struct settings *s,
                    json_t *bundle, struct err *err)
{
    const char *limit = cli_option(c, "--limit");
    json_int_t most = limit ? strtoll(limit, NULL, 10) : LETTERS_DEFAULT;
    struct sums sums = {.groups = json_object()};
    int code = EXIT_REFUSED;

    if (most < 1 || most > LETTERS_MOST)
        err_set(err, ERR_PERMANENT, "--limit is 1 to %d", LETTERS_MOST);
    else
        code = run_all(c, s, bundle, most, &sums, err);
    if (code == EXIT_DONE)
        show(c, bundle, &sums);
    json_decref(sums.groups);
    return code;
}

/* The version that runs, as the host has it. */
int dry_run_running(const struct cli *c, json_t **bundle)
{
    char *name = cli_escape(c->words[0]);
    char *path = xasprintf("/v1/handlers/%s/bundle", name);
    int code = cli_ask(c, "GET", path, NULL, bundle);

    free(path);
    free(name);
    return code;
}
