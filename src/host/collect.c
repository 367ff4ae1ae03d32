/* Metrics: what is set at each scrape, so that it is right also when nothing
 * moves, and what workers send. */
#include "host/host_priv.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "host/open_breakers.h"
#include "pg/pg.h"
#include "stores/deadletters.h"
#include "stores/parked.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const char component[] = "metrics";

struct collect {
    /* Of each worker's process, as it last told: handler → bytes. */
    json_t *memory[PIPELINE_WORKERS_MAX];
};

static void collect_process(struct host *h)
{
    struct rusage usage;
    struct rlimit files;
    unsigned long size = 0, resident = 0;
    double page = (double)sysconf(_SC_PAGESIZE);
    FILE *statm = fopen("/proc/self/statm", "re");
    DIR *fds = opendir("/proc/self/fd");
    int n = 0;

    getrusage(RUSAGE_SELF, &usage);
    series_set(metrics_get(h->metrics, M_PROCESS_CPU),
               (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                   (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) /
                       1e6);
    /* NOLINTNEXTLINE(cert-err34-c): the kernel wrote it */
    if (statm && fscanf(statm, "%lu %lu", &size, &resident) == 2) {
        series_set(metrics_get(h->metrics, M_PROCESS_VIRTUAL),
                   (double)size * page);
        series_set(metrics_get(h->metrics, M_PROCESS_RESIDENT),
                   (double)resident * page);
    }
    if (statm)
        fclose(statm);
    while (fds && readdir(fds))
        n++;
    if (fds)
        closedir(fds);
    series_set(metrics_get(h->metrics, M_PROCESS_FDS), n > 3 ? n - 3 : 0);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0)
        series_set(metrics_get(h->metrics, M_PROCESS_MAX_FDS),
                   (double)files.rlim_cur);
}

static void on_dead_counts(void *arg, json_t *rows, const struct err *err)
{
    struct host *h = arg;
    json_t *row;
    size_t i;

    h->is_counting_dead = false;
    if (!err)
        metrics_zero(h->metrics, M_DEAD_LETTERS);
    json_array_foreach(rows, i, row) {
        const char *handler = json_string_value(json_array_get(row, 0));
        const char *class = json_string_value(json_array_get(row, 1));

        if (handler && class)
            series_set(metrics_get(h->metrics, M_DEAD_LETTERS, handler, class),
                       json_number_value(json_array_get(row, 2)));
    }
    json_decref(rows);
}

static void on_parked_counts(void *arg, json_t *rows)
{
    struct host *h = arg;
    json_t *row;
    size_t i;

    h->is_counting_parked = false;
    if (rows)
        metrics_zero(h->metrics, M_PARKED);
    json_array_foreach(rows, i, row) {
        const char *handler = json_string_value(json_array_get(row, 0));
        const char *reason = json_string_value(json_array_get(row, 1));

        if (handler && reason)
            series_set(metrics_get(h->metrics, M_PARKED, handler, reason),
                       json_number_value(json_array_get(row, 2)));
    }
    json_decref(rows);
}

static void count_parked(struct host *h)
{
    if (!h->parked || !h->db_is_migrated || h->is_counting_parked)
        return;
    h->is_counting_parked = true;
    parked_store_counts(h->parked, on_parked_counts, h);
}

/* The table is asked at each scrape; its answer is for the next one. */
static void count_dead(struct host *h)
{
    if (!h->db || !h->db_is_migrated || h->is_counting_dead)
        return;
    h->is_counting_dead = true;
    deadletters_counts(h->db, on_dead_counts, h);
}

static void collect(void *arg)
{
    struct host *h = arg;

    collect_process(h);
    count_dead(h);
    count_parked(h);
    supervisor_collect(h->supervisor);
    catalogue_collect(h->catalogue);
    intake_collect(h->intake);
    json_decref(switches_json(h));
    if (h->kafka)
        series_set(metrics_get(h->metrics, M_KAFKA_CONNECTED),
                   h->kafka_is_connected);
    if (h->db)
        series_set(metrics_get(h->metrics, M_DATABASE_CONNECTED, "main"),
                   h->db_is_connected);
}

void collect_start(struct host *h)
{
    h->collect = xcalloc(1, sizeof(*h->collect));
    for (int i = 0; i < PIPELINE_WORKERS_MAX; i++)
        h->collect->memory[i] = json_object();
    h->breakers = open_breakers_new(h->metrics);
    series_set(metrics_get(h->metrics, M_BUILD_INFO, MT_VERSION), 1);
    series_set(metrics_get(h->metrics, M_PROCESS_START),
               (double)h->started_us / 1e6);
    metrics_on_render(h->metrics, collect, h);
}

void collect_end(struct host *h)
{
    for (int i = 0; h->collect && i < PIPELINE_WORKERS_MAX; i++)
        json_decref(h->collect->memory[i]);
    free(h->collect);
    h->collect = NULL;
    open_breakers_free(h->breakers);
    h->breakers = NULL;
}

/* --- from workers ------------------------------------------------------------------ */

/* One of the lists of MSG_METRICS: rows of texts and at the end a number. */
static void add_rows(struct host *h, const json_t *rows, enum metric_id id,
                     size_t labels)
{
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row) {
        const char *v[3] = {"", "", ""};

        for (size_t k = 0; k < labels; k++) {
            const char *text = json_string_value(json_array_get(row, k));

            v[k] = text && strlen(text) <= 200 ? text : "other";
        }
        series_add(metrics_get(h->metrics, id, v[0], v[1], v[2]),
                   json_number_value(json_array_get(row, labels)));
    }
}

static void add_stored(struct host *h, const json_t *rows)
{
    struct series *s = metrics_get(h->metrics, M_EVENTS_STORED);
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row)
        series_observe(s, json_number_value(json_array_get(row, 0)),
                       (unsigned)json_integer_value(json_array_get(row, 1)));
}

static void add_memory(struct host *h, const char *name, double bytes)
{
    series_add(metrics_get(h->metrics, M_HANDLER_MEMORY, name), bytes);
}

/* Each worker tells its own part; a handler's memory is the sum of them. */
static void set_memory(struct host *h, unsigned worker, const json_t *rows)
{
    json_t *told = h->collect->memory[worker], *row;
    size_t i;

    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_array_get(row, 0));
        double bytes = json_number_value(json_array_get(row, 1));
        const json_t *before = name ? json_object_get(told, name) : NULL;

        if (!name || (!before && !catalogue_knows(h->catalogue, name)))
            continue;
        add_memory(h, name, bytes - json_number_value(before));
        json_object_set_new(told, name, json_real(bytes));
    }
}

void collect_worker_gone(struct host *h, unsigned worker)
{
    json_t *told = h->collect->memory[worker], *bytes;
    const char *name;

    json_object_foreach(told, name, bytes)
        add_memory(h, name, -json_number_value(bytes));
    json_object_clear(told);
    open_breakers_worker_gone(h->breakers, worker);
}

static void add_values(struct series *s, enum metric_kind kind,
                       const json_t *metric)
{
    double value = json_number_value(json_object_get(metric, "value"));
    json_t *one;
    size_t i;

    if (kind == METRIC_COUNTER && value > 0)
        series_add(s, value);
    if (kind == METRIC_GAUGE)
        series_set(s, value);
    if (kind == METRIC_HISTOGRAM)
        json_array_foreach(json_object_get(metric, "values"), i, one)
            series_observe(s, json_number_value(one), 1);
}

/* A handler's own metric. The host trusts nothing: names and labels again. */
static void add_own(struct host *h, const json_t *metric)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    const char *kind = json_string_value(json_object_get(metric, "kind"));
    const char *name = json_string_value(json_object_get(metric, "name"));
    const char *help = json_string_value(json_object_get(metric, "help"));
    const char *names[METRIC_LABELS_MAX], *values[METRIC_LABELS_MAX], *key;
    struct series *s;
    json_t *value;
    size_t n = 0;
    int k = 0;

    while (k < 3 && (!kind || strcmp(kind, kinds[k]) != 0))
        k++;
    if (k == 3 || !name || strncmp(name, "handler_", 8) != 0 ||
        strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
        return;
    json_object_foreach(json_object_get(metric, "labels"), key, value) {
        if (n == METRIC_LABELS_MAX || !json_is_string(value))
            return;
        names[n] = key;
        values[n++] = json_string_value(value);
    }
    s = metrics_own(h->metrics, (enum metric_kind)k, name, help ? help : "", n,
                    names, values);
    if (s)
        add_values(s, (enum metric_kind)k, metric);
    else
        log_debug("handler metric refused", "name=%s", name);
}

/* Names of handlers only; a destination is as long as an url's origin. */
static void add_breakers(struct host *h, unsigned worker, const json_t *rows)
{
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_array_get(row, 0));
        const char *destination = json_string_value(json_array_get(row, 1));

        if (name && catalogue_knows(h->catalogue, name) && destination &&
            strlen(destination) <= 300)
            open_breakers_told(h->breakers, worker, name, destination,
                               json_integer_value(json_array_get(row, 2)) != 0);
    }
}

void collect_worker_news(struct host *h, unsigned worker, struct slice json)
{
    json_t *news = json_loadb(json.ptr, json.len, 0, NULL), *one;
    const char *name;
    size_t i;

    if (!news)
        return;
    add_rows(h, json_object_get(news, "effects"), M_EFFECTS, 3);
    add_rows(h, json_object_get(news, "cpu"), M_HANDLER_CPU, 2);
    add_rows(h, json_object_get(news, "raised"), M_EVENTS_RAISED, 2);
    add_stored(h, json_object_get(news, "stored"));
    set_memory(h, worker, json_object_get(news, "memory"));
    add_breakers(h, worker, json_object_get(news, "breakers"));
    json_array_foreach(json_object_get(news, "databases"), i, one) {
        name = json_string_value(json_array_get(one, 0));
        if (name && strcmp(name, "main") != 0)
            series_set(metrics_get(h->metrics, M_DATABASE_CONNECTED, name),
                       json_number_value(json_array_get(one, 1)));
    }
    json_array_foreach(json_object_get(news, "own"), i, one)
        add_own(h, one);
    json_decref(news);
}
