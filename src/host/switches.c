/*
 * Flags at work: from environment, file and the runtime table to held handlers
 * and a held host. Off holds unless it says skip; a held handler is detached
 * from all partitions and comes back exactly where it was.
 */
#include "host/host_priv.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "stores/flags.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "flags";

/* on, off, or a percentage of the keys such as 25%. */
static bool parse_state(const char *text, int *percent)
{
    static const char *const on[] = {"on", "true", "1", "yes"};
    static const char *const off[] = {"off", "false", "0", "no"};
    char *end;
    long n;

    for (int i = 0; i < 4; i++) {
        bool is_on = strcasecmp(text, on[i]) == 0;

        if (is_on || strcasecmp(text, off[i]) == 0) {
            *percent = is_on ? 100 : 0;
            return true;
        }
    }
    n = strtol(text, &end, 10);
    if (end == text || strcmp(end, "%") != 0 || n < 0 || n > 100)
        return false;
    *percent = (int)n;
    return true;
}

#define NO_STATE "is neither on nor off nor a percentage of the keys"

/* A whole handler, or all of them, keep their places while they are held. What
 * is held of a part of a handler's events goes into the parked queue. */
static bool check_hold(const struct host *h, const char *name, int percent,
                       enum when_off when_off, struct err *err)
{
    bool is_part =
        strncmp(name, "aggregate:", 10) == 0 ? percent < 100 : percent > 0;

    if (percent == 100 || !is_part || when_off == OFF_SKIP ||
        h->settings.database_url[0])
        return true;
    return err_set(err, ERR_PERMANENT,
                   "%s holds a part of a handler's events, which needs "
                   "database.url; without it only when_off = skip is possible",
                   name);
}

static bool set_from_file(const struct host *h, struct flags *flags,
                          const char *name, const json_t *value,
                          struct err *err)
{
    const char *state = json_string_value(value), *when = NULL;
    enum when_off when_off = OFF_HOLD;
    int percent;

    if (json_is_boolean(value))
        state = json_is_true(value) ? "on" : "off";
    if (json_is_object(value)) {
        state = json_string_value(json_object_get(value, "state"));
        when = json_string_value(json_object_get(value, "when_off"));
    }
    if (!flag_name_is_known(name))
        return err_set(err, ERR_PERMANENT,
                       "flags: \"%s\" is not " FLAG_ALL
                       ", handler:<name> or aggregate:<type>",
                       name);
    if (!state || !parse_state(state, &percent))
        return err_set(err, ERR_PERMANENT, "flags.%s " NO_STATE, name);
    if (when && strcmp(when, "skip") == 0)
        when_off = OFF_SKIP;
    else if (when && strcmp(when, "hold") != 0)
        return err_set(err, ERR_PERMANENT,
                       "flags.%s: when_off is neither hold nor skip", name);
    if (!check_hold(h, name, percent, when_off, err))
        return false;
    flags_set(flags, name, FLAG_FILE, percent, when_off);
    return true;
}

static bool read_file_flags(const struct host *h, struct flags *flags,
                            const json_t *file, struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)file, name, value)
        if (!set_from_file(h, flags, name, value, err))
            return false;
    return true;
}

bool switches_check(const struct host *h, const json_t *file, struct err *err)
{
    struct flags unused = {0};
    bool ok = read_file_flags(h, &unused, file, err);

    flags_fini(&unused);
    return ok;
}

/* The setting carries the environment variable (or the file's own line). */
static bool read_all_flag(struct host *h, struct err *err)
{
    const char *text = h->settings.domain_events_enabled;
    enum flag_origin origin =
        getenv(FLAG_ALL) || getenv("MOONTIDE_FLAGS_" FLAG_ALL) ? FLAG_ENV
                                                               : FLAG_FILE;
    int percent;

    if (!*text)
        return true;
    if (!parse_state(text, &percent))
        return err_set(err, ERR_PERMANENT, "%s = \"%s\" " NO_STATE, FLAG_ALL,
                       text);
    if (!check_hold(h, FLAG_ALL, percent, OFF_HOLD, err))
        return false;
    flags_set(&h->flags, FLAG_ALL, origin, percent, OFF_HOLD);
    return true;
}

bool switches_holds(const struct host *h, const char *handler, char *why,
                    size_t size)
{
    enum flag_origin origin;
    struct flag_value v;
    char name[100];

    snprintf(name, sizeof(name), "handler:%s", handler);
    v = flags_get(&h->flags, name, &origin);
    if (v.is_on || v.when_off == OFF_SKIP)
        return false;
    snprintf(why, size, "flag %s (%s)", name, flag_origin_name(origin));
    return true;
}

void switches_apply(struct host *h)
{
    struct handler *const *handlers;
    size_t n = pipeline_handlers(h->pipeline, &handlers);
    enum flag_origin origin;
    struct flag_value all = flags_get(&h->flags, FLAG_ALL, &origin);
    bool held = !all.is_on && all.when_off == OFF_HOLD;

    for (size_t i = 1; i < n; i++) {
        bool holds = switches_holds(h, handlers[i]->name, NULL, 0);

        if (holds && !handlers[i]->is_held) {
            log_info("handler held", "handler=%s", handlers[i]->name);
            pipeline_detach(h->pipeline, handlers[i], false);
        } else if (!holds && handlers[i]->is_held) {
            log_info("handler goes on", "handler=%s", handlers[i]->name);
            if (handlers[i]->is_removed)
                handlers[i]->is_held = false;
            else
                pipeline_attach(h->pipeline, handlers[i]);
        }
    }
    if (h->is_held != held)
        log_info(held ? "host held" : "host goes on", "by=%s",
                 flag_origin_name(origin));
    h->is_held = held;
    pipeline_flags(h->pipeline, &h->flags, held);
    parking_flags_changed(h);
}

static void on_rows(void *arg, const json_t *rows)
{
    struct host *h = arg;
    json_t *row;
    size_t i;

    flags_clear(&h->flags, FLAG_RUNTIME);
    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_object_get(row, "name"));
        const char *state = json_string_value(json_object_get(row, "state"));
        const char *when = json_string_value(json_object_get(row, "when_off"));
        enum when_off when_off =
            when && strcmp(when, "skip") == 0 ? OFF_SKIP : OFF_HOLD;
        const json_t *part = json_object_get(row, "percent");
        int percent;

        if (!name || !state || !flag_name_is_known(name) ||
            !parse_state(state, &percent))
            continue;
        if (json_is_integer(part) && percent == 100)
            percent = (int)json_integer_value(part);
        flags_set(&h->flags, name, FLAG_RUNTIME, percent, when_off);
    }
    host_now(h);
    switches_apply(h);
}

bool switches_start(struct host *h, struct err *err)
{
    flags_clear(&h->flags, FLAG_FILE);
    if (!read_file_flags(h, &h->flags, h->settings.flags, err) ||
        !read_all_flag(h, err))
        return false;
    if (h->db && !h->flag_store)
        h->flag_store = flag_store_new(h->loop, h->db, on_rows, h);
    switches_apply(h);
    return true;
}

/* --- changing ------------------------------------------------------------------ */

/* Off in the environment or the file wins for the switch of all: a runtime
 * "on" that could do nothing is refused and says who is in the way. */
static bool can_take_effect(const struct host *h, const struct flag_set *set,
                            struct err *err)
{
    enum flag_origin origin;
    struct flags others = {0};
    struct flag_value v;
    const struct flag *flag = NULL;

    for (size_t i = 0; i < h->flags.len; i++)
        if (strcmp(h->flags.at[i].name, FLAG_ALL) == 0)
            flag = &h->flags.at[i];
    if (strcmp(set->name, FLAG_ALL) != 0 || set->percent == 0 || !flag)
        return true;
    for (int o = FLAG_FILE; o <= FLAG_ENV; o++)
        if (flag->by[o].is_set)
            flags_set(&others, FLAG_ALL, (enum flag_origin)o,
                      flag->by[o].percent, flag->by[o].when_off);
    v = flags_get(&others, FLAG_ALL, &origin);
    flags_fini(&others);
    if (v.is_on)
        return true;
    return err_set(err, ERR_PERMANENT,
                   "%s is off by the %s of host %s, which wins", FLAG_ALL,
                   flag_origin_name(origin), h->node);
}

static bool check_set(const struct host *h, const struct flag_set *set,
                      struct err *err)
{
    enum when_off when_off = OFF_HOLD;

    if (!flag_name_is_known(set->name))
        return err_set(err, ERR_PERMANENT,
                       "no flag is called \"%s\": " FLAG_ALL
                       ", handler:<name>, aggregate:<type>",
                       set->name);
    if (set->percent < 0)
        return err_set(err, ERR_PERMANENT, "state " NO_STATE);
    if (set->when_off && strcmp(set->when_off, "hold") != 0 &&
        strcmp(set->when_off, "skip") != 0)
        return err_set(err, ERR_PERMANENT, "whenOff is neither hold nor skip");
    if (strncmp(set->name, "handler:", 8) == 0 &&
        !catalogue_knows(h->catalogue, set->name + 8))
        return err_set(err, ERR_PERMANENT, "no handler is called \"%s\"",
                       set->name + 8);
    if (set->when_off && strcmp(set->when_off, "skip") == 0)
        when_off = OFF_SKIP;
    return check_hold(h, set->name, set->percent, when_off, err) &&
           can_take_effect(h, set, err);
}

/* What is set before the table is there would be forgotten once it is. */
static bool can_store(const struct host *h, struct err *err)
{
    return h->flag_store || !h->db ||
           err_set(err, ERR_RETRIABLE, "the database has no tables yet");
}

void switches_set(struct host *h, const struct flag_set *asked,
                  switch_done_fn *done, void *arg)
{
    struct flag_set set = *asked;
    struct err err;

    if (!set.state || !parse_state(set.state, &set.percent))
        set.percent = -1;
    if (!can_store(h, &err) || !check_set(h, &set, &err)) {
        done(arg, &err);
        return;
    }
    if (h->flag_store) {
        flag_store_set(h->flag_store, &set, done, arg);
        return;
    }
    /* Without PostgreSQL flags live in this host's memory. */
    if (set.for_ms > 0) {
        err_set(&err, ERR_PERMANENT,
                "--for needs the database: the former "
                "state must return after a restart, too");
        done(arg, &err);
        return;
    }
    flags_set(&h->flags, set.name, FLAG_RUNTIME, set.percent,
              set.when_off && strcmp(set.when_off, "skip") == 0 ? OFF_SKIP
                                                                : OFF_HOLD);
    switches_apply(h);
    done(arg, NULL);
}

void switches_unset(struct host *h, const char *name, switch_done_fn *done,
                    void *arg)
{
    struct err err;

    if (!can_store(h, &err)) {
        done(arg, &err);
        return;
    }
    if (h->flag_store) {
        flag_store_unset(h->flag_store, name, done, arg);
        return;
    }
    for (size_t i = 0; i < h->flags.len; i++)
        if (strcmp(h->flags.at[i].name, name) == 0)
            h->flags.at[i].by[FLAG_RUNTIME] = (struct flag_value){0};
    switches_apply(h);
    done(arg, NULL);
}

json_t *switches_json(const struct host *h)
{
    json_t *list = json_array();

    for (size_t i = 0; i < h->flags.len; i++) {
        const struct flag *flag = &h->flags.at[i];
        enum flag_origin origin;
        struct flag_value v = flags_get(&h->flags, flag->name, &origin);
        json_t *json = json_pack("{s:s, s:s, s:s}", "name", flag->name, "state",
                                 v.is_on ? "on" : "off", "whenOff",
                                 v.when_off == OFF_SKIP ? "skip" : "hold");

        if (v.percent > 0 && v.percent < 100)
            json_object_set_new(json, "percent", json_integer(v.percent));
        if (v.is_set)
            json_object_set_new(json, "from",
                                json_string(flag_origin_name(origin)));
        json_array_append_new(list, json);
        series_set(metrics_get(h->metrics, M_FLAG, flag->name),
                   v.percent / 100.);
    }
    return list;
}
