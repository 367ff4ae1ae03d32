/*
 * The worker process: runs handlers' deliveries and owns nothing that must
 * survive it. Started by the host as
 *     moontide worker --fds MEM,WAKE_WORKER,WAKE_HOST,CONFIG
 * and the probe, a short-lived process that reads configuration and handler
 * files: `moontide probe`, one JSON request on stdin, one JSON answer on stdout;
 * `moontide probe --serve` forks one for each request of the host.
 */
#ifndef MT_WORKER_WORKER_H
#define MT_WORKER_WORKER_H

/* Address space for Lua's C stack: reserved, hardly ever touched. Nested
 * callbacks then end at Lua's own limits, not in a crash. */
#define LUA_STACK_BYTES ((size_t)1 << 30)

int worker_main(int argc, char **argv);
int probe_main(int argc, char **argv);

#endif
