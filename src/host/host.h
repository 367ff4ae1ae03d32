/* The host process: `moontide run`. */
#ifndef MT_HOST_HOST_H
#define MT_HOST_HOST_H

#include "host/config.h"

/* Runs until SIGTERM or SIGINT has drained it, or a fault ends it. Returns the
 * exit code: 0 drained, 1 failed. Waits at the start for databases and brokers
 * that are away, and says for what. */
int host_run(const struct config_source *config);

#endif
