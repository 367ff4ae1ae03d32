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

/* Run request.bundle over request.events (native envelopes) and then over
 * request.letters (see letter.h), one after the other, without a host.
 * Gives { "runs": [{event, letter, verdict, reason, class, code, effects}] }. */
json_t *probe_dry_run(struct runtime *rt, const json_t *request,
                      struct err *err) MUST_CHECK;

/* Run the spec beside a handler file. Gives { "results": […] }. */
json_t *probe_spec(struct runtime *rt, const json_t *request,
                   struct err *err) MUST_CHECK;

int testing_open(struct lua_State *L);

#endif
