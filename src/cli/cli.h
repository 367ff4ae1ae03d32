/*
 * The commands. Exit codes: 0 done, 1 failed, 2 usage, 3 host not reached,
 * 4 refused by a check.
 */
#ifndef MT_CLI_CLI_H
#define MT_CLI_CLI_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum exit_code {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_UNREACHED = 3,
    EXIT_REFUSED = 4,
};

int cli_main(int argc, char **argv);

/* --- for the command files -------------------------------------------------- */

#define CLI_WORDS_MAX 64
#define CLI_SETS_MAX  64

/* A command line, taken apart: words, and options with their values. */
struct cli {
    const char *words[CLI_WORDS_MAX]; /* without the command itself */
    size_t n_words;
    const char *config, *url, *token;
    char *sets[CLI_SETS_MAX];
    size_t n_sets;
    bool json;
    int argc;
    char **argv; /* for cli_option() */
};

/* The value of --name VALUE or --name=VALUE; NULL when it was not given. */
const char *cli_option(const struct cli *c, const char *name);
/* One that may come several times: the next from argument *from (0 at first),
 * which moves on. */
const char *cli_option_next(const struct cli *c, const char *name, int *from);
/* The i-th word, "" when there are not so many. */
const char *cli_word(const struct cli *c, size_t i);
bool cli_word_is(const struct cli *c, size_t i, const char *text);
bool cli_flag(const struct cli *c, const char *name);

typedef int cli_command_fn(const struct cli *c);
cli_command_fn cmd_run, cmd_check, cmd_migrate, cmd_publish, cmd_status,
    cmd_handlers, cmd_flags, cmd_sources, cmd_dead_letters, cmd_deliveries,
    cmd_dry_run, cmd_reconcile;

/* Ask the host. `body` is borrowed, NULL for none. Gives the answer through
 * `answer`; a problem document is printed, and the exit code says which kind. */
int cli_ask(const struct cli *c, const char *method, const char *path,
            const json_t *body, json_t **answer);

/* The same with a body that is JSON text already. */
int cli_ask_text(const struct cli *c, const char *method, const char *path,
                 const char *text, json_t **answer);
/* Ask, print the answer as JSON or by `show`, free it. */
int cli_ask_and_show(const struct cli *c, const char *method, const char *path,
                     const json_t *body, void (*show)(const json_t *answer));

/* --- dead_letters.c: the filters of dead-letters, deliveries and dry-run ---- */

/* As a body, with the words as ids. Gives. */
json_t *cli_filter_body(const struct cli *c);
/* A page of what the filters mean. */
int cli_filtered_list(const struct cli *c, const char *path,
                      void (*show)(const json_t *answer));

/* As a query, "handler=h&class=bug&". Gives. */
char *cli_filter_query(const struct cli *c);

/* --- local.c ---------------------------------------------------------------- */

/* What a handler's file declares: {bundle: {decl, version, …}}. Gives; NULL with
 * err. */
struct settings;
json_t *cli_probe_handler(const struct settings *s, const char *name,
                          struct err *err);

/* A path or query component, percent-encoded. Gives. */
char *cli_escape(const char *text);

void cli_print_json(const json_t *json);
/* Rows as a table for people: `columns` are "title:member", a member may be a
 * path a.b. */
void cli_print_table(const json_t *rows, const char *const *columns, size_t n);

int cli_usage(const char *text);

#endif
