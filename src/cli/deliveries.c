/* deliveries: what waits in the parked queue, by the host's API. */
#include "cli/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "deliveries list | retry | skip | dead  ID…|--all|[filters] [--reason TEXT]"
    "\nfilters: --handler H --state retry|behind|held --type T --aggregate A "
    "--class C --since T --until T";

static void show_list(const json_t *answer)
{
    static const char *const columns[] = {"ID:id",
                                          "HANDLER:handler",
                                          "STATE:state",
                                          "TYPE:eventType",
                                          "KEY:aggregateId",
                                          "BLOCKS:blocks",
                                          "ATTEMPTS:attempts",
                                          "DUE:dueAt",
                                          "ERROR:error"};
    const json_t *next = json_object_get(answer, "cursor");

    cli_print_table(json_object_get(answer, "deliveries"), columns, 9);
    if (json_is_integer(next))
        printf("more: --cursor %lld\n", (long long)json_integer_value(next));
}

static int act(const struct cli *c, const char *what)
{
    const char *reason = cli_option(c, "--reason");
    const char *state = cli_option(c, "--state");
    json_t *body;
    char path[64];
    int code;

    if (strcmp(what, "retry") != 0 && (!reason || !*reason))
        return cli_usage("deliveries skip|dead ID…|--all|[filters] --reason "
                         "TEXT");
    body = cli_filter_body(c);
    if (reason)
        json_object_set_new(body, "reason", json_string(reason));
    if (state)
        json_object_set_new(body, "state", json_string(state));
    snprintf(path, sizeof(path), "/v1/deliveries/%s", what);
    code = cli_ask_and_show(c, "POST", path, body, NULL);
    json_decref(body);
    return code;
}

int cmd_deliveries(const struct cli *c)
{
    static const char *const acts[] = {"retry", "skip", "dead"};

    if (cli_word_is(c, 0, "list"))
        return cli_filtered_list(c, "/v1/deliveries", show_list);
    for (int i = 0; i < 3; i++)
        if (cli_word_is(c, 0, acts[i]))
            return act(c, acts[i]);
    return cli_usage(usage);
}
