#include "cli/cli.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct command {
    const char *name;
    cli_command_fn *fn;
    const char *usage, *help;
};

static const struct command commands[] = {
    {"run", cmd_run, "[-c FILE] [--set a.b=c] [--help-settings]",
     "run the host until SIGTERM"},
    {"check", cmd_check, "[-c FILE]",
     "check configuration and handlers; errors as file:line: text"},
    {"migrate", cmd_migrate, "up|down|status|uninstall|adopt TABLE",
     "make or change the tables"},
    {"status", cmd_status, "", "what the host does now"},
    {"publish", cmd_publish, "[FILE|-]",
     "publish events, one JSON envelope a line; prints their ids"},
    {"handlers", cmd_handlers, "list|show|pause|resume|reload|test [NAME]",
     "handlers and their versions"},
    {"sources", cmd_sources,
     "list | moves | move TOPIC/PARTITION --to earliest|latest|OFFSET "
     "[--handler H] --reason TEXT",
     "partitions, and one that stands still"},
    {"dead-letters", cmd_dead_letters,
     "list|groups|show|redrive|discard|edit [ID…] [--handler H] [--class C] …",
     "deliveries given up"},
    {"deliveries", cmd_deliveries,
     "list|retry|skip|dead [ID…] [--handler H] [--state retry|behind|held] …",
     "what waits in the parked queue"},
    {"flags", cmd_flags, "list | set NAME on|off|25% | unset NAME",
     "switch handlers, aggregates or everything"},
    {"reconcile", cmd_reconcile, "[HANDLER] [-c FILE]",
     "hold every event of the store against what was done with it"},
    {"dry-run", cmd_dry_run,
     "HANDLER --file F | --event ID | --last N | --dead-letters",
     "run a handler over events and show its effects, without any"},
};

#define N_COMMANDS (sizeof(commands) / sizeof(*commands))

static const char *const flags[] = {
    "--json",    "--help-settings", "--markdown",     "--all",     "--yes",
    "--dry-run", "--force",         "--dead-letters", "--on-disk",
};

/* Options with a value. */
static const char *const valued[] = {
    "-c",         "--config",      "--url",
    "--token",    "--set",         "--handler",
    "--type",     "--aggregate",   "--correlation",
    "--class",    "--fingerprint", "--state",
    "--since",    "--until",       "--reason",
    "--when-off", "--for",         "--file",
    "--limit",    "--cursor",      "--ids",
    "--preset",   "--steps",       "--rate",
    "--wait",     "--dir",         "--event",
    "--last",     "--payload",     "--fact",
    "--to",
};

#define COUNT(list) (sizeof(list) / sizeof(*(list)))

static bool is_in(const char *const *list, size_t n, const char *option)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], option) == 0)
            return true;
    return false;
}

static bool takes_value(const char *option)
{
    return is_in(valued, COUNT(valued), option);
}

const char *cli_option_next(const struct cli *c, const char *name, int *from)
{
    size_t len = strlen(name);

    for (int i = *from; i < c->argc; i++) {
        bool is_apart = strcmp(c->argv[i], name) == 0 && i + 1 < c->argc;

        if (!is_apart &&
            (strncmp(c->argv[i], name, len) != 0 || c->argv[i][len] != '='))
            continue;
        *from = i + 1 + is_apart;
        return is_apart ? c->argv[i + 1] : c->argv[i] + len + 1;
    }
    return NULL;
}

const char *cli_option(const struct cli *c, const char *name)
{
    int from = 0;

    return cli_option_next(c, name, &from);
}

const char *cli_word(const struct cli *c, size_t i)
{
    return i < c->n_words ? c->words[i] : "";
}

bool cli_word_is(const struct cli *c, size_t i, const char *text)
{
    return strcmp(cli_word(c, i), text) == 0;
}

bool cli_flag(const struct cli *c, const char *name)
{
    for (int i = 0; i < c->argc; i++)
        if (strcmp(c->argv[i], name) == 0)
            return true;
    return false;
}

/* False when there are more of it than can be kept. */
static bool keep_option(struct cli *c, const char *option, char *value)
{
    if (strcmp(option, "-c") == 0 || strcmp(option, "--config") == 0)
        c->config = value;
    else if (strcmp(option, "--url") == 0)
        c->url = value;
    else if (strcmp(option, "--token") == 0)
        c->token = value;
    if (strcmp(option, "--set") != 0)
        return true;
    if (c->n_sets == CLI_SETS_MAX) {
        fprintf(stderr,
                "moontide: more than %d --set: put them into the file\n",
                CLI_SETS_MAX);
        return false;
    }
    c->sets[c->n_sets++] = value;
    return true;
}

static bool parse(struct cli *c, int argc, char **argv)
{
    *c = (struct cli){.argc = argc, .argv = argv};
    for (int i = 0; i < argc; i++) {
        char *arg = argv[i], *eq = strchr(arg, '=');

        if (arg[0] != '-' || strcmp(arg, "-") == 0) {
            if (c->n_words == CLI_WORDS_MAX)
                return false;
            c->words[c->n_words++] = arg;
        } else if (takes_value(arg)) {
            if (i + 1 == argc)
                return false;
            if (!keep_option(c, arg, argv[++i]))
                return false;
        } else if (eq && strncmp(arg, "--", 2) == 0) {
            char name[64];

            snprintf(name, sizeof(name), "%.*s", (int)(eq - arg), arg);
            if (!takes_value(name) || !keep_option(c, name, eq + 1))
                return false;
        } else if (is_in(flags, COUNT(flags), arg)) {
            c->json |= strcmp(arg, "--json") == 0;
        } else { /* a --dryrun that nobody knows must not run for real */
            fprintf(stderr, "moontide: no option is called \"%s\"\n", arg);
            return false;
        }
    }
    return true;
}

static void print_help(FILE *out)
{
    fprintf(out, "moontide " MT_VERSION
                 ": Lua handlers for Kafka and PostgreSQL events\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  moontide %s %s\n      %s\n", commands[i].name,
                commands[i].usage, commands[i].help);
    fprintf(out, "\nEverywhere: --json, -c FILE (or MOONTIDE_CONFIG), --set "
                 "a.b=c, --url URL (or MOONTIDE_URL),\n--token TOKEN (or "
                 "MOONTIDE_TOKEN). Exit: 0 done, 1 failed, 2 usage, 3 host not "
                 "reached, 4 refused by a check.\n");
}

int cli_usage(const char *text)
{
    fprintf(stderr, "usage: moontide %s\n", text);
    return EXIT_USAGE;
}

int cli_main(int argc, char **argv)
{
    struct cli c;

    log_init(LOG_INFO, LOG_HUMAN, "cli");
    if (argc < 2 || strcmp(argv[1], "help") == 0 ||
        strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_USAGE : EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("moontide " MT_VERSION "\n");
        return EXIT_DONE;
    }
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, argv[1]) != 0)
            continue;
        if (!parse(&c, argc - 2, argv + 2)) {
            fprintf(stderr, "usage: moontide %s %s\n", commands[i].name,
                    commands[i].usage);
            return EXIT_USAGE;
        }
        return commands[i].fn(&c);
    }
    fprintf(stderr, "moontide: no command is called \"%s\"\n\n", argv[1]);
    print_help(stderr);
    return EXIT_USAGE;
}
