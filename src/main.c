/* One binary: the host, its workers, its checking process, and the commands. */
#include "base/mem.h"
#include "cli/cli.h"
#include "worker/worker.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    json_set_alloc_funcs(xmalloc, free); /* there, or the process is not */
    if (argc > 1 && strcmp(argv[1], "worker") == 0)
        return worker_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "probe") == 0)
        return probe_main(argc - 1, argv + 1);
    return cli_main(argc, argv);
}
