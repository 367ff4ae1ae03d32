/* sources: list them, and let one that stands still go on somewhere else. */
#include "cli/cli.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

static const char usage[] =
    "sources [list] | moves | move TOPIC/PARTITION --to "
    "earliest|latest|OFFSET [--handler H] [--force] --reason TEXT | "
    "move outbox --to earliest|latest --reason TEXT";

static void show_list(const json_t *answer)
{
    static const char *const columns[] = {
        "SOURCE:source",   "PARTITION:partition", "STATE:state",    "NEXT:next",
        "BACKLOG:backlog", "WINDOW:window",       "TROUBLE:trouble"};
    const char *trouble = json_string_value(
        json_object_get(json_object_get(answer, "outbox"), "trouble"));

    cli_print_table(json_object_get(answer, "partitions"), columns, 7);
    if (trouble)
        printf("\noutbox: %s\n", trouble);
}

static void show_moves(const json_t *answer)
{
    static const char *const columns[] = {
        "ID:id",       "AT:at",     "HANDLER:handler", "PARTITION:partition",
        "FIRST:first", "LAST:last", "WHO:who",         "REASON:reason"};

    cli_print_table(json_object_get(answer, "givenUp"), columns, 8);
}

static void show_moved(const json_t *answer)
{
    static const char *const columns[] = {"HANDLER:handler", "FIRST:first",
                                          "LAST:last"};
    const json_t *lost = json_object_get(answer, "givenUp");

    printf("%s goes on at %lld\n",
           json_string_value(json_object_get(answer, "partition")),
           (long long)json_integer_value(json_object_get(answer, "next")));
    if (json_array_size(lost) == 0) {
        printf("nothing was given up\n");
        return;
    }
    printf("\ngiven up:\n");
    cli_print_table(lost, columns, 3);
}

static int move(const struct cli *c)
{
    const char *to = cli_option(c, "--to"), *reason = cli_option(c, "--reason");
    const char *handler = cli_option(c, "--handler"), *who = getenv("USER");
    json_t *body;
    int code;

    if (!to || !reason || !*reason)
        return cli_usage(usage);
    body = json_pack("{s:s, s:s, s:s, s:b, s:s*, s:s*}", "partition",
                     cli_word(c, 1), "to", to, "reason", reason, "force",
                     cli_flag(c, "--force"), "handler", handler, "who", who);
    code = cli_ask_and_show(c, "POST", "/v1/sources/move", body, show_moved);
    json_decref(body);
    return code;
}

int cmd_sources(const struct cli *c)
{
    if (c->n_words == 0 || (c->n_words == 1 && cli_word_is(c, 0, "list")))
        return cli_ask_and_show(c, "GET", "/v1/sources", NULL, show_list);
    if (c->n_words == 1 && cli_word_is(c, 0, "moves"))
        return cli_ask_and_show(c, "GET", "/v1/sources/moves", NULL,
                                show_moves);
    if (c->n_words == 2 && cli_word_is(c, 0, "move"))
        return move(c);
    return cli_usage(usage);
}
