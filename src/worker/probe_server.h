/*
 * `moontide probe --serve`: a process that has been exec'd and linked, and forks
 * a child for each request. The children do not know of each other: the server
 * keeps nothing of them open. It starts no thread and draws no random number,
 * or each child would go on with the same ones.
 */
#ifndef MT_WORKER_PROBE_SERVER_H
#define MT_WORKER_PROBE_SERVER_H

#include <stdbool.h>

/* Serves the host at the other end of standard input (ipc/spawn.h). Comes back
 * like fork(2): true in a child, whose standard input and output are those of
 * its request, and false in the server when the host has gone; all children
 * have ended then. */
bool probe_serve(void);

#endif
