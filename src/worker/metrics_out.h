/* What is counted in a worker between two MSG_METRICS; see ipc/msg.h. */
#ifndef MT_WORKER_METRICS_OUT_H
#define MT_WORKER_METRICS_OUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct metrics_out;
struct runtime;

struct metrics_out *metrics_out_new(void);
void metrics_out_free(struct metrics_out *m);

void metrics_effect(struct metrics_out *m, const char *handler,
                    const char *class, bool ok);
void metrics_cpu(struct metrics_out *m, const char *handler,
                 const char *version, double seconds);
void metrics_database(struct metrics_out *m, const char *name, bool connected);
void metrics_breaker(struct metrics_out *m, const char *handler,
                     const char *destination, bool is_open);
void metrics_raised(struct metrics_out *m, const char *aggregate_type,
                    const char *type);
void metrics_stored(struct metrics_out *m, double seconds);

/* A handler's own metric. `labels` is taken; false when there are too many
 * series: the value was dropped. */
bool metrics_custom(struct metrics_out *m, const char *kind, const char *name,
                    const char *help, json_t *labels, double value);

/* The message, or NULL without news; what was added starts from 0 again.
 * Gives. Reads memory and CPU of the runtime's VMs. */
json_t *metrics_take(struct metrics_out *m, struct runtime *rt);

#endif
