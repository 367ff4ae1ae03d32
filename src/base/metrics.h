/*
 * Counters, gauges and histograms of one process, rendered as Prometheus text.
 *
 * A series is looked up once by its label values and kept by its user; adding
 * to it is one addition. Label values come from configuration only; a family
 * holds at most METRIC_SERIES_MAX series, then everything new goes to the
 * series whose labels are all "other", so that no input can grow it. One
 * thread. Gauges that must be right when nothing moves are set by collectors,
 * which run at each rendering.
 */
#ifndef MT_BASE_METRICS_H
#define MT_BASE_METRICS_H

#include <stdbool.h>
#include <stddef.h>

struct buf;
struct metrics;
struct series;

#define METRIC_LABELS_MAX 4
#define METRIC_SERIES_MAX 2000

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

enum metric_id {
#define METRIC(kind, id, name, labels, help) M_##id,
#include "base/metrics.def"
#undef METRIC
    M_COUNT,
};

struct metrics *metrics_new(void);
void metrics_free(struct metrics *m);

/* The series with these label values, in the family's order; made when new.
 * As many values as the family has labels. Never NULL; lives as long as `m`. */
struct series *metrics_get(struct metrics *m, enum metric_id id, ...);

/* A family made while running (handlers' own metrics). NULL when the name is
 * taken by another kind or other labels. `names`, `values`: `n` each. */
struct series *metrics_own(struct metrics *m, enum metric_kind kind,
                           const char *name, const char *help, size_t n,
                           const char *const *names, const char *const *values);

void series_add(struct series *s, double n);
void series_set(struct series *s, double value);
double series_value(const struct series *s); /* a histogram's sum */
/* One observation, or `times` equal ones, in seconds. */
void series_observe(struct series *s, double value, unsigned times);

/* Set every series of a family to 0, so that a collector can start afresh. */
void metrics_zero(struct metrics *m, enum metric_id id);

/* Not rendered until it is set or added to again: what is not known is better
 * absent than wrong. Not for histograms. */
void series_hide(struct series *s);
void metrics_hide(struct metrics *m, enum metric_id id); /* the whole family */

typedef void metrics_collect_fn(void *arg);
void metrics_on_render(struct metrics *m, metrics_collect_fn *fn, void *arg);

/* Prometheus text; OpenMetrics (with # EOF) when asked. */
void metrics_render(struct metrics *m, bool openmetrics, struct buf *out);

#endif
