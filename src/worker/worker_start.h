/* What a worker process does once, before it has a loop. */
#ifndef MT_WORKER_WORKER_START_H
#define MT_WORKER_WORKER_START_H

#include "base/err.h"
#include "worker/runtime.h"

/* The four descriptors of "--fds MEM,WAKE_WORKER,WAKE_HOST,CONFIG". */
bool start_fds(int argc, char **argv, int fds[4]);
/* The configuration as the host wrote it to `fd`, which is closed. Gives, or
 * NULL. */
json_t *start_config(int fd, struct err *err) MUST_CHECK;
void start_log(const json_t *config, int index);
/* No core files, and a bound on address space. */
void start_limits(const struct runtime *rt);

#endif
