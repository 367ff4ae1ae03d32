/* What the two files of dry-run share. */
#ifndef MT_CLI_DRY_RUN_H
#define MT_CLI_DRY_RUN_H

#include "base/err.h"
#include "base/settings.h"
#include "cli/cli.h"

#define DRY_RUN_TIMEOUT_MS 60000

/* Run the handler's dead letters that the filters name; an exit code. `err`
 * where there is something to say. */
int dry_run_letters(const struct cli *c, const struct settings *s,
                    json_t *bundle, struct err *err);
/* The code that runs now, from the host; gives `bundle`. An exit code. */
int dry_run_running(const struct cli *c, json_t **bundle);

#endif
