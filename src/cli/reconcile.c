/* reconcile: does every event of the store and of the topics stand where it
 * should? */
#include "cli/cli.h"

#include "base/mem.h"
#include "host/config.h"
#include "host/reconcile.h"

#include <stdio.h>
#include <stdlib.h>

/* As they are found: there may be very many. */
static void print_fault(void *arg, const json_t *fault)
{
    const struct cli *c = arg;
    const char *partition =
        json_string_value(json_object_get(fault, "partition"));
    char *text;

    if (!c->json) {
        printf("%s: event %s (%s) at %s%s%lld %s\n",
               json_string_value(json_object_get(fault, "handler")),
               json_string_value(json_object_get(fault, "event")),
               json_string_value(json_object_get(fault, "type")),
               partition ? partition : "", partition ? " " : "",
               (long long)json_integer_value(json_object_get(fault, "place")),
               json_string_value(json_object_get(fault, "why")));
        return;
    }
    text = json_dumps(fault, JSON_COMPACT);
    printf("%s\n", text);
    free(text);
}

static void print_sums(const struct cli *c, const json_t *sums)
{
    static const char *const columns[] = {"HANDLER:handler",
                                          "PROOF:proof",
                                          "ACCEPTED:accepted",
                                          "DONE:done",
                                          "DEAD:dead",
                                          "SKIPPED:skipped",
                                          "PARKED:parked",
                                          "PENDING:pending",
                                          "BY POSITION:byPosition",
                                          "BEFORE START:beforeStart",
                                          "GIVEN UP:givenUp",
                                          "FAULTS:faults"};
    const json_t *note;
    json_t *rows;
    char *text;
    size_t i;

    if (c->json) {
        text = json_dumps(sums, JSON_COMPACT);
        printf("%s\n", text);
        free(text);
        return;
    }
    rows = json_pack("[O]", sums);
    cli_print_table(rows, columns, 12);
    json_decref(rows);
    json_array_foreach(json_object_get(sums, "notes"), i, note)
        printf("  %s\n", json_string_value(note));
    printf("\n");
}

/* Its faults; -1: it could not be checked. */
static json_int_t check(const struct cli *c, struct reconcile *r,
                        const struct settings *s, const char *name)
{
    struct err err;
    json_t *answer = cli_probe_handler(s, name, &err), *sums = NULL;
    json_int_t faults = -1;

    if (answer)
        sums = reconcile_handler(
            r, name, json_object_get(json_object_get(answer, "bundle"), "decl"),
            print_fault, (void *)(uintptr_t)c, &err);
    if (sums) {
        print_sums(c, sums);
        faults = json_integer_value(json_object_get(sums, "faults"));
    } else {
        fprintf(stderr, "moontide: %s: cannot be checked: %s\n", name, err.msg);
    }
    json_decref(answer);
    json_decref(sums);
    return faults;
}

static int check_all(const struct cli *c, struct reconcile *r,
                     const struct settings *s, struct err *err)
{
    json_t *names = c->n_words ? json_pack("[s]", cli_word(c, 0))
                               : reconcile_handlers(r, err);
    int code = names ? EXIT_DONE : EXIT_FAILED;
    const json_t *name;
    size_t i;

    json_array_foreach(names, i, name)
        if (check(c, r, s, json_string_value(name)) != 0)
            code = EXIT_FAILED;
    json_decref(names);
    return code;
}

int cmd_reconcile(const struct cli *c)
{
    struct config_source from = {
        .path = c->config, .sets = c->sets, .n_sets = c->n_sets};
    struct reconcile *r = NULL;
    struct err err = {0};
    struct settings s;
    int code = EXIT_REFUSED;

    if (c->n_words > 1)
        return cli_usage("reconcile [HANDLER] [-c FILE] [--json]");
    if (!config_load(&s, &from, &err))
        ;
    else if (!*s.database_url)
        (void)!err_set(&err, ERR_PERMANENT,
                       "database.url (DATABASE_URL) is not set: without "
                       "PostgreSQL there is nothing to hold events against");
    else if (!(r = reconcile_open(&s, &err)))
        code = EXIT_FAILED;
    else
        code = check_all(c, r, &s, &err);
    if (err.msg[0])
        fprintf(stderr, "moontide: %s\n", err.msg);
    reconcile_close(r);
    settings_fini(&s);
    return code;
}
