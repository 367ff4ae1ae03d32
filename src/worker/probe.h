/* The probe's parts that others need: bundles from files, and the primitives
 * that a spec's VM gets (host.testing). */
#ifndef MT_WORKER_PROBE_H
#define MT_WORKER_PROBE_H

#include "base/err.h"

#include <jansson.h>

struct lua_State;
struct runtime;

/* The bundle of a handler file, checked; `request` as of op "handler". Gives,
 * or NULL. */
json_t *probe_bundle(struct runtime *rt, const json_t *request,
                     struct err *err) MUST_CHECK;

/* Run a bundle over native envelopes, one after the other, without a host.
 * Gives { "runs": [{event, verdict, reason, class, code, effects}] }. */
json_t *probe_dry_run(struct runtime *rt, json_t *bundle, const json_t *events,
                      struct err *err) MUST_CHECK;

/* Run the spec beside a handler file. Gives { "results": […] }. */
json_t *probe_spec(struct runtime *rt, const json_t *request,
                   struct err *err) MUST_CHECK;

int testing_open(struct lua_State *L);

#endif
