#include "base/metrics.h"

#include "base/buf.h"
#include "base/check.h"
#include "base/hash.h"
#include "base/mem.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* From a tenth of a millisecond, where a fast handler lives, to minutes. */
static const double bounds[] = {0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                0.025,  0.05,   0.1,   0.25,   0.5,   1,
                                2.5,    5,      10,    30,     60,    300};
#define N_BOUNDS (sizeof(bounds) / sizeof(*bounds))

struct series {
    struct series *next; /* in its family, newest first */
    struct series *next_in_bucket;
    uint64_t hash;
    char *labels; /* {a="b",c="d"} without the braces, "" when none */
    double value; /* a histogram's sum */
    double count;
    double *buckets; /* histograms only: observations per bound, not summed */
    bool is_hidden;
};

#define SERIES_BUCKETS 64

struct family {
    enum metric_kind kind;
    char *name, *help;
    char *label_names[METRIC_LABELS_MAX];
    size_t n_labels, n_series;
    struct series *series;
    struct series *by_hash[SERIES_BUCKETS];
    struct family *next; /* of those made while running */
};

struct collector {
    metrics_collect_fn *fn;
    void *arg;
};

struct metrics {
    struct family fixed[M_COUNT];
    struct family *own;
    size_t n_own;
    struct collector *collectors;
    size_t n_collectors;
};

#define METRIC_OWN_MAX 200

static const struct {
    enum metric_kind kind;
    const char *name, *labels, *help;
} table[] = {
#define METRIC(kind, id, name, labels, help) \
    {METRIC_##kind, name, labels, help},
#include "base/metrics.def"
#undef METRIC
};

static void split_labels(struct family *f, const char *labels)
{
    while (*labels) {
        size_t len = strcspn(labels, ",");

        CHECK(f->n_labels < METRIC_LABELS_MAX);
        f->label_names[f->n_labels++] = xstrndup(labels, len);
        labels += len + (labels[len] == ',');
    }
}

struct metrics *metrics_new(void)
{
    struct metrics *m = xcalloc(1, sizeof(*m));

    for (int i = 0; i < M_COUNT; i++) {
        struct family *f = &m->fixed[i];

        f->kind = table[i].kind;
        f->name = xstrdup(table[i].name);
        f->help = xstrdup(table[i].help);
        split_labels(f, table[i].labels);
        if (f->n_labels == 0)
            metrics_get(m, (enum metric_id)i);
    }
    return m;
}

static void family_fini(struct family *f)
{
    while (f->series) {
        struct series *next = f->series->next;

        free(f->series->labels);
        free(f->series->buckets);
        free(f->series);
        f->series = next;
    }
    for (size_t i = 0; i < f->n_labels; i++)
        free(f->label_names[i]);
    free(f->name);
    free(f->help);
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    for (int i = 0; i < M_COUNT; i++)
        family_fini(&m->fixed[i]);
    while (m->own) {
        struct family *next = m->own->next;

        family_fini(m->own);
        free(m->own);
        m->own = next;
    }
    free(m->collectors);
    free(m);
}

/* name="value" with the three escapes of the text format. */
static void add_label(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, "%s%s=\"", out->len ? "," : "", name);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            buf_add_char(out, '\\');
        if (*value == '\n')
            buf_add_text(out, "\\n");
        else
            buf_add_char(out, *value);
    }
    buf_add_char(out, '"');
}

/* `values`: as many as the family has labels. */
static struct series *find_or_add(struct family *f, const char *const *values)
{
    const char *other[METRIC_LABELS_MAX] = {"other", "other", "other", "other"};
    struct buf labels = {0};
    struct series *s, **bucket;
    uint64_t hash;

    for (size_t i = 0; i < f->n_labels; i++)
        add_label(&labels, f->label_names[i], values[i]);
    buf_text(&labels);
    hash = hash_bytes(labels.ptr, labels.len);
    bucket = &f->by_hash[hash % SERIES_BUCKETS];
    for (s = *bucket; s; s = s->next_in_bucket)
        if (s->hash == hash && strcmp(s->labels, labels.ptr) == 0) {
            buf_fini(&labels);
            return s;
        }
    if (f->n_labels > 0 && f->n_series >= METRIC_SERIES_MAX &&
        strcmp(values[0], "other") != 0) {
        buf_fini(&labels);
        return find_or_add(f, other);
    }
    s = xcalloc(1, sizeof(*s));
    s->hash = hash;
    s->labels = buf_give(&labels);
    if (f->kind == METRIC_HISTOGRAM)
        s->buckets = xcalloc(N_BOUNDS, sizeof(*s->buckets));
    s->next = f->series;
    f->series = s;
    s->next_in_bucket = *bucket;
    *bucket = s;
    f->n_series++;
    return s;
}

struct series *metrics_get(struct metrics *m, enum metric_id id, ...)
{
    const char *values[METRIC_LABELS_MAX] = {NULL};
    va_list ap;

    CHECK(id < M_COUNT);
    va_start(ap, id);
    for (size_t i = 0; i < m->fixed[id].n_labels; i++)
        values[i] = va_arg(ap, const char *);
    va_end(ap);
    return find_or_add(&m->fixed[id], values);
}

static bool same_shape(const struct family *f, enum metric_kind kind, size_t n,
                       const char *const *names)
{
    if (f->kind != kind || f->n_labels != n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (strcmp(f->label_names[i], names[i]) != 0)
            return false;
    return true;
}

struct series *metrics_own(struct metrics *m, enum metric_kind kind,
                           const char *name, const char *help, size_t n,
                           const char *const *names, const char *const *values)
{
    struct family *f;

    for (int i = 0; i < M_COUNT; i++)
        if (strcmp(m->fixed[i].name, name) == 0)
            return NULL;
    for (f = m->own; f; f = f->next)
        if (strcmp(f->name, name) == 0)
            return same_shape(f, kind, n, names) ? find_or_add(f, values)
                                                 : NULL;
    if (n > METRIC_LABELS_MAX || m->n_own >= METRIC_OWN_MAX)
        return NULL;
    f = xcalloc(1, sizeof(*f));
    f->kind = kind;
    f->name = xstrdup(name);
    f->help = xstrdup(help);
    for (; f->n_labels < n; f->n_labels++)
        f->label_names[f->n_labels] = xstrdup(names[f->n_labels]);
    f->next = m->own;
    m->own = f;
    m->n_own++;
    return find_or_add(f, values);
}

void series_add(struct series *s, double n)
{
    s->value += n;
    s->is_hidden = false;
}

void series_set(struct series *s, double value)
{
    s->value = value;
    s->is_hidden = false;
}

void series_hide(struct series *s)
{
    s->value = 0;
    s->is_hidden = true;
}

double series_value(const struct series *s)
{
    return s->value;
}

void series_observe(struct series *s, double value, unsigned times)
{
    s->value += value * times;
    s->count += times;
    for (size_t i = 0; i < N_BOUNDS; i++)
        if (value <= bounds[i]) {
            s->buckets[i] += times;
            return;
        }
}

void metrics_zero(struct metrics *m, enum metric_id id)
{
    for (struct series *s = m->fixed[id].series; s; s = s->next)
        s->value = 0;
}

void metrics_hide(struct metrics *m, enum metric_id id)
{
    for (struct series *s = m->fixed[id].series; s; s = s->next)
        series_hide(s);
}

void metrics_on_render(struct metrics *m, metrics_collect_fn *fn, void *arg)
{
    m->collectors =
        xrealloc(m->collectors, (m->n_collectors + 1) * sizeof(*m->collectors));
    m->collectors[m->n_collectors++] = (struct collector){fn, arg};
}

static void add_number(struct buf *out, double value)
{
    if (value == floor(value) && fabs(value) < 1e15)
        buf_printf(out, " %.0f\n", value);
    else
        buf_printf(out, " %.9g\n", value);
}

static void add_histogram(struct buf *out, const struct family *f,
                          const struct series *s)
{
    const char *comma = *s->labels ? "," : "";
    double below = 0;

    for (size_t i = 0; i < N_BOUNDS; i++) {
        below += s->buckets[i];
        buf_printf(out, "%s_bucket{%s%sle=\"%g\"}", f->name, s->labels, comma,
                   bounds[i]);
        add_number(out, below);
    }
    buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"}", f->name, s->labels, comma);
    add_number(out, s->count);
    buf_printf(out, *s->labels ? "%s_sum{%s}" : "%s_sum%s", f->name, s->labels);
    add_number(out, s->value);
    buf_printf(out, *s->labels ? "%s_count{%s}" : "%s_count%s", f->name,
               s->labels);
    add_number(out, s->count);
}

static void add_series(struct buf *out, const struct family *f,
                       const struct series *s)
{
    if (f->kind == METRIC_HISTOGRAM) {
        add_histogram(out, f, s);
        return;
    }
    if (s->is_hidden)
        return;
    buf_printf(out, *s->labels ? "%s{%s}" : "%s%s", f->name, s->labels);
    add_number(out, s->value);
}

/* OpenMetrics names a counter's family without its _total. */
static void add_family(struct buf *out, const struct family *f, bool open)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    size_t len = strlen(f->name);

    if (!f->series)
        return;
    if (open && f->kind == METRIC_COUNTER && len > 6 &&
        strcmp(f->name + len - 6, "_total") == 0)
        len -= 6;
    buf_printf(out, "# HELP %.*s %s\n# TYPE %.*s %s\n", (int)len, f->name,
               f->help, (int)len, f->name, kinds[f->kind]);
    for (const struct series *s = f->series; s; s = s->next)
        add_series(out, f, s);
}

void metrics_render(struct metrics *m, bool openmetrics, struct buf *out)
{
    for (size_t i = 0; i < m->n_collectors; i++)
        m->collectors[i].fn(m->collectors[i].arg);
    for (int i = 0; i < M_COUNT; i++)
        add_family(out, &m->fixed[i], openmetrics);
    for (const struct family *f = m->own; f; f = f->next)
        add_family(out, f, openmetrics);
    if (openmetrics)
        buf_add_text(out, "# EOF\n");
}
