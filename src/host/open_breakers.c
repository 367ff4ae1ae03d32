#include "host/open_breakers.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/pipeline.h"

#include <stdlib.h>
#include <string.h>

static const char component[] = "breaker";

struct pair {
    struct pair *next;
    char *handler, *destination;
    bool is_open[PIPELINE_WORKERS_MAX];
    int n_open;
    int64_t since_us; /* wall clock; of the first that opened */
};

struct open_breakers {
    struct metrics *metrics;
    struct pair *pairs;
    int len;
};

struct open_breakers *open_breakers_new(struct metrics *metrics)
{
    struct open_breakers *all = xcalloc(1, sizeof(*all));

    all->metrics = metrics;
    return all;
}

void open_breakers_free(struct open_breakers *all)
{
    while (all && all->pairs) {
        struct pair *next = all->pairs->next;

        free(all->pairs->handler);
        free(all->pairs->destination);
        free(all->pairs);
        all->pairs = next;
    }
    free(all);
}

static struct pair *pair_of(struct open_breakers *all, const char *handler,
                            const char *destination)
{
    struct pair *p = all->pairs;

    while (p && (strcmp(p->handler, handler) != 0 ||
                 strcmp(p->destination, destination) != 0))
        p = p->next;
    if (p || all->len == OPEN_BREAKERS_MAX)
        return p;
    p = xcalloc(1, sizeof(*p));
    p->handler = xstrdup(handler);
    p->destination = xstrdup(destination);
    p->next = all->pairs;
    all->pairs = p;
    all->len++;
    return p;
}

static void set(struct open_breakers *all, struct pair *p, unsigned worker,
                bool is_open)
{
    if (p->is_open[worker] == is_open)
        return;
    p->is_open[worker] = is_open;
    p->n_open += is_open ? 1 : -1;
    series_set(
        metrics_get(all->metrics, M_BREAKER_OPEN, p->handler, p->destination),
        p->n_open > 0);
    if (is_open && p->n_open == 1) {
        p->since_us = clock_wall_us();
        log_warn("breaker open: it failed too often and is not asked for a "
                 "while",
                 "handler=%s destination=" LOG_Q, p->handler, p->destination);
    }
    if (p->n_open == 0)
        log_info("breaker closed", "handler=%s destination=" LOG_Q, p->handler,
                 p->destination);
}

void open_breakers_told(struct open_breakers *all, unsigned worker,
                        const char *handler, const char *destination,
                        bool is_open)
{
    struct pair *p = pair_of(all, handler, destination);

    if (p)
        set(all, p, worker, is_open);
}

void open_breakers_worker_gone(struct open_breakers *all, unsigned worker)
{
    for (struct pair *p = all->pairs; p; p = p->next)
        set(all, p, worker, false);
}

json_t *open_breakers_json(const struct open_breakers *all, const char *handler)
{
    json_t *list = json_array();
    char since[RFC3339_SIZE];

    for (const struct pair *p = all->pairs; p; p = p->next)
        if (p->n_open > 0 && strcmp(p->handler, handler) == 0)
            json_array_append_new(
                list, json_pack("{s:s, s:i, s:s}", "destination",
                                p->destination, "workers", p->n_open, "since",
                                clock_format(p->since_us, since)));
    return list;
}
