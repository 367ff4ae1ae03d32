/*
 * Asking the short-lived Lua process: `moontide probe` of the same binary gets
 * one JSON request on its standard input and answers one JSON. It reads
 * configuration and handler files, so the host itself never runs Lua. It is
 * killed when it takes too long: a file with an endless loop is an error like
 * any other. Each request has a process of its own, forked by the probe server
 * (probe_server.h); when that dies, its requests are asked again.
 */
#ifndef MT_HOST_PROBE_H
#define MT_HOST_PROBE_H

#include "base/err.h"

#include <jansson.h>
#include <stdint.h>

struct ev_loop;
struct probe;

/* `answer` is borrowed; NULL when the process failed, died or was killed. An
 * answer {"ok":false,"error":…} comes as an error, too. ERR_RETRIABLE: nothing
 * was learnt about the file. */
typedef void probe_fn(void *arg, const json_t *answer, const struct err *err);

/* The callback comes once, later, unless probe_cancel() was called before. One
 * loop of a process may do this, and it lives as long as the process. */
struct probe *probe_start(struct ev_loop *loop, const json_t *request,
                          int64_t timeout_ms, probe_fn *done, void *arg);
void probe_cancel(struct probe *p);

/* For commands without a loop of their own. Gives the answer, or NULL. */
json_t *probe_wait(const json_t *request, int64_t timeout_ms, struct err *err);

/* The request to check handlers/<name>.lua with these settings. Gives. */
struct settings;
json_t *probe_handler_request(const struct settings *s, const char *name);

/* Path of the running binary, for exec. */
const char *self_path(void);

#endif
