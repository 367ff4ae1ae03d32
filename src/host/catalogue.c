/*
 * Handler versions: found in the handlers folder, checked by the probe, loaded
 * by every worker, switched to, replaced.
 *
 * A file's way: changed → probed (a bundle with its content hash, or refused
 * with file and line) → candidate, loaded by all workers beside the running
 * version → switched: new deliveries go to it, the old VM ends what it has.
 * Whatever goes wrong before the switch leaves the running version running.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/pattern.h"
#include "host/host_priv.h"
#include "host/open_breakers.h"
#include "host/probe.h"
#include "host/watch.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char component[] = "catalogue";

#define PROBES_MAX       4
#define PROBE_AGAIN_S    1.0 /* when no process could be started */
#define PROBE_TIMEOUT_MS 5000
#define NAME_MAX_LEN     63

struct version {
    struct bundle bundle;
    char *hash;
    json_t *decl;
    json_t *files;             /* [{path, sha256}] */
    struct handler_spec *spec; /* until the pipeline takes it */
    int64_t since_us;
};

struct entry {
    struct entry *next;
    struct catalogue *catalogue;
    char *name, *path;
    struct handler *handler;
    struct version *running, *candidate;
    struct probe *probe;
    struct list turn; /* among those to be probed; alone: it is not */
    uint64_t stamp;   /* of all files, before the last probing; 0: not known */
    json_t *files;    /* their paths; NULL when it failed */
    char *error;      /* why the last candidate was refused; NULL: it was not */
    bool is_there, is_disabled, is_known_to_intake;
};

struct catalogue {
    struct host *host;
    struct entry *entries;
    struct watch *watch;
    struct list to_probe;
    unsigned probing, candidates;
    ev_timer probe_later;
    uint32_t next_vm;
    bool was_scanned;
};

/* --- versions ------------------------------------------------------------------- */

static void version_free(struct version *v)
{
    if (!v)
        return;
    free(v->bundle.json);
    free(v->hash);
    json_decref(v->decl);
    json_decref(v->files);
    handler_spec_free(v->spec);
    free(v);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static int64_t number_of(const json_t *object, const char *key, int64_t dflt)
{
    json_t *value = json_object_get(object, key);

    return json_is_integer(value) ? json_integer_value(value) : dflt;
}

static bool start_of(const char *text, int64_t *start, struct err *err)
{
    if (!*text || strcmp(text, "now") == 0)
        *start = POSITION_LATEST;
    else if (strcmp(text, "earliest") == 0)
        *start = POSITION_EARLIEST;
    else if ((*start = clock_parse(text, strlen(text))) == INT64_MIN)
        return err_set(err, ERR_PERMANENT,
                       "start = \"%s\" is not now, earliest or a time", text);
    return true;
}

/* key = "payload.phone" for all types, or a table from type to path. */
static void read_keys(struct handler_spec *spec, const json_t *key)
{
    void *it = json_object_iter((json_t *)(uintptr_t)key);

    spec->keys = xcalloc(json_object_size(key) + 1, sizeof(*spec->keys));
    if (json_is_string(key))
        spec->keys[spec->n_keys++] =
            (struct key_path){NULL, xstrdup(json_string_value(key))};
    for (; it; it = json_object_iter_next((json_t *)(uintptr_t)key, it))
        spec->keys[spec->n_keys++] = (struct key_path){
            xstrdup(json_object_iter_key(it)),
            xstrdup(json_string_value(json_object_iter_value(it)))};
}

/* Rounded up, so that it is never more than was asked for. */
static struct rate rate_of(const json_t *rate)
{
    int64_t events = number_of(rate, "events", 0);
    int64_t per_ns = number_of(rate, "per_ms", 1000) * 1000000;

    if (events <= 0)
        return (struct rate){0};
    return (struct rate){.interval_ns = (per_ns + events - 1) / events,
                         .burst = number_of(rate, "burst", 1)};
}

static struct handler_spec *spec_of(const json_t *decl, const char *hash,
                                    struct err *err)
{
    struct handler_spec *spec = xcalloc(1, sizeof(*spec));
    const json_t *retry = json_object_get(decl, "retry");
    const char *ordering = text_of(decl, "ordering");
    json_t *pattern;
    size_t i;

    spec->version = xstrdup(hash);
    spec->ordering = strcmp(ordering, "partition") == 0 ? ORDER_PARTITION
                     : strcmp(ordering, "none") == 0    ? ORDER_NONE
                                                        : ORDER_KEY;
    read_keys(spec, json_object_get(decl, "key"));
    spec->concurrency = (int)number_of(decl, "concurrency", 16);
    spec->retry = (struct retry_policy){
        .max_attempts = (int)number_of(retry, "max_attempts", 5),
        .base_ms = number_of(retry, "base_ms", 200),
        .cap_ms = number_of(retry, "cap_ms", 300000),
        .jitter = strcmp(text_of(retry, "jitter"), "none") != 0,
    };
    spec->on_dead = strcmp(text_of(decl, "on_dead"), "park") == 0 ? ON_DEAD_PARK
                    : strcmp(text_of(decl, "on_dead"), "stop") == 0
                        ? ON_DEAD_STOP
                        : ON_DEAD_CONTINUE;
    spec->rate = rate_of(json_object_get(decl, "rate"));
    spec->batch_max = (int)number_of(json_object_get(decl, "batch"), "max", 0);
    spec->is_transactional = json_is_true(json_object_get(decl, "transaction"));
    spec->in_kafka = strcmp(text_of(decl, "transaction"), "kafka") == 0;
    spec->subscribes =
        xcalloc(json_array_size(json_object_get(decl, "subscribes")) + 1,
                sizeof(char *));
    json_array_foreach(json_object_get(decl, "subscribes"), i, pattern)
        spec->subscribes[spec->n_subscribes++] =
            xstrdup(json_string_value(pattern));
    for (i = 0; i < spec->n_subscribes; i++)
        if (!pattern_check(spec->subscribes[i], err))
            goto fail;
    if (start_of(text_of(decl, "start"), &spec->start, err))
        return spec;
fail:
    handler_spec_free(spec);
    return NULL;
}

/* What this host cannot keep is refused, not ignored. */
static bool can_keep(const struct host *h, const json_t *decl, struct err *err)
{
    if (json_is_true(json_object_get(decl, "transaction")) && !h->db)
        return err_set(err, ERR_PERMANENT,
                       "transaction = true needs database.url");
    if (strcmp(text_of(decl, "transaction"), "kafka") == 0 &&
        !config_keeps_kafka_transactions(&h->settings, err))
        return false;
    if (strcmp(text_of(decl, "on_dead"), "park") == 0 && !h->db)
        return err_set(err, ERR_PERMANENT,
                       "on_dead = \"park\" needs database.url");
    return true;
}

static struct version *version_new(struct catalogue *c, struct entry *e,
                                   const json_t *bundle, struct err *err)
{
    const json_t *decl = json_object_get(bundle, "decl");
    const char *hash = text_of(bundle, "version");
    struct handler_spec *spec;
    struct version *v;

    char *json = json_dumps(bundle, JSON_COMPACT);

    if (strlen(json) > (size_t)c->host->settings.event_max_bytes) {
        err_set(err, ERR_PERMANENT,
                "the handler with its modules and templates is larger than "
                "event.max_bytes (%zu bytes)",
                strlen(json));
        free(json);
        return NULL;
    }
    if (!can_keep(c->host, decl, err) || !(spec = spec_of(decl, hash, err))) {
        free(json);
        return NULL;
    }
    v = xcalloc(1, sizeof(*v));
    v->hash = xstrdup(hash);
    v->spec = spec;
    v->decl = json_deep_copy(decl);
    v->files = json_deep_copy(json_object_get(bundle, "files"));
    v->since_us = clock_wall_us();
    v->bundle = (struct bundle){
        .handler = e->handler,
        .vm = ++c->next_vm,
        .json = json,
        .concurrency = spec->concurrency,
    };
    return v;
}

/* --- entries ----------------------------------------------------------------------- */

static struct entry *find(const struct catalogue *c, const char *name)
{
    struct entry *e = c->entries;

    while (e && strcmp(e->name, name) != 0)
        e = e->next;
    return e;
}

static struct entry *entry_new(struct catalogue *c, const char *name)
{
    struct entry *e = xcalloc(1, sizeof(*e));

    e->catalogue = c;
    list_init(&e->turn);
    e->name = xstrdup(name);
    e->path = xasprintf("%s/%s.lua", c->host->settings.handlers_path, name);
    e->handler = pipeline_handler(c->host->pipeline, name);
    e->next = c->entries;
    c->entries = e;
    return e;
}

static void count_reload(struct catalogue *c, const char *name,
                         const char *result)
{
    series_add(metrics_get(c->host->metrics, M_RELOADS, name, result), 1);
}

static void refuse(struct entry *e, const char *text)
{
    log_error("handler refused", "handler=%s running=%s err=" LOG_Q, e->name,
              e->running ? e->running->hash : "none", text);
    count_reload(e->catalogue, e->name, "refused");
    free(e->error);
    e->error = xstrdup(text);
}

static void set_candidate(struct entry *e, struct version *v)
{
    if (v)
        e->catalogue->candidates++;
    if (e->candidate)
        e->catalogue->candidates--;
    e->candidate = v;
}

static void drop_candidate(struct entry *e)
{
    if (!e->candidate)
        return;
    supervisor_unload(e->catalogue->host->supervisor, e->candidate->bundle.vm);
    version_free(e->candidate);
    set_candidate(e, NULL);
}

/* mtime, size and inode of everything the last good probing read. */
static uint64_t stamp_of(const struct entry *e)
{
    uint64_t stamp = 1;
    struct stat st;
    json_t *file;
    size_t i;

    if (stat(e->path, &st) == 0)
        stamp = (uint64_t)st.st_mtim.tv_nsec * 31 +
                (uint64_t)st.st_mtim.tv_sec * 17 + (uint64_t)st.st_ino * 7 +
                (uint64_t)st.st_size;
    json_array_foreach(e->files, i, file) {
        stamp *= 1099511628211u;
        if (stat(json_string_value(file), &st) == 0)
            stamp ^= (uint64_t)st.st_mtim.tv_nsec * 31 +
                     (uint64_t)st.st_mtim.tv_sec * 17 +
                     (uint64_t)st.st_ino * 7 + (uint64_t)st.st_size;
    }
    return stamp;
}

/* The stamp stays the one from before the probing: what was saved after the
 * probe had read it must not look like what the probe has seen. It covers the
 * former list only, so another list is probed once more at the next look. */
static void remember_files(struct entry *e, const json_t *files)
{
    json_t *file, *paths = json_array();
    size_t i;

    json_array_foreach(files, i, file)
        json_array_append_new(paths, json_string(text_of(file, "path")));
    if (!json_equal(paths, e->files))
        e->stamp = 0;
    json_decref(e->files);
    e->files = paths;
}

/* --- probing ------------------------------------------------------------------------- */

static void probe_next(struct catalogue *c);

static bool wants_probe(const struct entry *e)
{
    return !list_is_empty(&e->turn);
}

static void want_probe(struct entry *e)
{
    if (!wants_probe(e))
        list_append(&e->catalogue->to_probe, &e->turn);
}

/* Nothing was learnt about the file: there was no process to read it. */
static void probe_later(struct entry *e, const char *why)
{
    struct catalogue *c = e->catalogue;

    log_warn("handlers cannot be checked now", "err=" LOG_Q, why);
    want_probe(e);
    ev_timer_set(&c->probe_later, PROBE_AGAIN_S, 0);
    ev_timer_start(c->host->loop, &c->probe_later);
}

static void on_later(struct ev_loop *loop, ev_timer *w, int events)
{
    (void)loop;
    (void)events;
    probe_next(w->data);
}

static void become_candidate(struct entry *e, const json_t *bundle)
{
    struct err err;
    struct version *v = version_new(e->catalogue, e, bundle, &err);

    if (!v) {
        char text[1200];

        snprintf(text, sizeof(text), "%s: %s", e->path, err.msg);
        refuse(e, text);
        return;
    }
    drop_candidate(e);
    set_candidate(e, v);
    supervisor_load(e->catalogue->host->supervisor, &v->bundle);
}

static void on_probed(void *arg, const json_t *answer, const struct err *err)
{
    struct entry *e = arg;
    struct catalogue *c = e->catalogue;
    const json_t *bundle = json_object_get(answer, "bundle");
    const char *hash = text_of(bundle, "version");

    e->probe = NULL;
    c->probing--;
    if (!e->is_there || wants_probe(e)) {
        probe_next(c); /* the file went, or changed again meanwhile */
        return;
    }
    if (!bundle && err->kind == ERR_RETRIABLE) {
        probe_later(e, err->msg);
        return;
    }
    if (!bundle) {
        json_decref(e->files);
        e->files = NULL;
        drop_candidate(e);
        if (!e->error || strcmp(e->error, err->msg) != 0)
            refuse(e, err->msg);
        probe_next(c);
        return;
    }
    remember_files(e, json_object_get(bundle, "files"));
    free(e->error);
    e->error = NULL;
    if (e->running && strcmp(e->running->hash, hash) == 0)
        drop_candidate(e); /* back to what runs */
    else if (!e->candidate || strcmp(e->candidate->hash, hash) != 0)
        become_candidate(e, bundle);
    probe_next(c);
}

static void probe(struct entry *e)
{
    struct host *h = e->catalogue->host;
    json_t *request = probe_handler_request(&h->settings, e->name);

    list_remove(&e->turn);
    e->stamp = stamp_of(e);
    e->catalogue->probing++;
    e->probe = probe_start(h->loop, request, PROBE_TIMEOUT_MS, on_probed, e);
    json_decref(request);
}

static void probe_next(struct catalogue *c)
{
    if (ev_is_active(&c->probe_later))
        return;
    list_foreach_safe(item, &c->to_probe) {
        struct entry *e = CONTAINER_OF(item, struct entry, turn);

        if (c->probing == PROBES_MAX)
            return;
        if (!e->probe)
            probe(e);
    }
}

/* --- scanning ------------------------------------------------------------------------- */

/* handlers/<name>.lua; specs and dot files are not handlers. */
static bool handler_name(const char *file, char name[NAME_MAX_LEN + 1])
{
    size_t len = strlen(file);

    if (len < 5 || strcmp(file + len - 4, ".lua") != 0 ||
        len - 4 > NAME_MAX_LEN || !islower((unsigned char)file[0]))
        return false;
    if (len > 9 && strcmp(file + len - 9, "_spec.lua") == 0)
        return false;
    for (size_t i = 0; i < len - 4; i++)
        if (!islower((unsigned char)file[i]) &&
            !isdigit((unsigned char)file[i]) && file[i] != '_')
            return false;
    memcpy(name, file, len - 4);
    name[len - 4] = '\0';
    return true;
}

static bool is_enabled(const struct catalogue *c, const char *name)
{
    json_t *own = json_object_get(c->host->settings.handlers, name);
    json_t *enabled = json_object_get(own, "enabled");

    return !json_is_false(enabled) &&
           !(json_is_string(enabled) &&
             strcmp(json_string_value(enabled), "false") == 0);
}

/* A folder that cannot be read says nothing: no handler is removed. */
static void find_files(struct catalogue *c)
{
    DIR *dir = opendir(c->host->settings.handlers_path);
    char name[NAME_MAX_LEN + 1];
    struct dirent *file;

    if (!dir) {
        log_warn("cannot read the handlers folder", "path=" LOG_Q " err=" LOG_Q,
                 c->host->settings.handlers_path, strerror(errno));
        return;
    }
    for (struct entry *e = c->entries; e; e = e->next)
        e->is_there = false;
    while ((file = readdir(dir))) {
        struct entry *e;

        if (!handler_name(file->d_name, name))
            continue;
        e = find(c, name);
        if (!e)
            e = entry_new(c, name);
        e->is_disabled = !is_enabled(c, name);
        e->is_there = !e->is_disabled;
    }
    closedir(dir);
}

/* Its file went: the position stays, the rest goes. */
static void take_away(struct entry *e)
{
    struct host *h = e->catalogue->host;

    drop_candidate(e);
    free(e->error);
    e->error = NULL;
    json_decref(e->files);
    e->files = NULL;
    e->stamp = 0;
    if (!e->running)
        return;
    log_info("handler removed", "handler=%s version=%s", e->name,
             e->running->hash);
    pipeline_detach(h->pipeline, e->handler, true);
    supervisor_unload(h->supervisor, e->running->bundle.vm);
    e->handler->vm = 0;
    version_free(e->running);
    e->running = NULL;
}

void catalogue_scan(struct catalogue *c, const char *force)
{
    find_files(c);
    for (struct entry *e = c->entries; e; e = e->next) {
        if (!e->is_there)
            take_away(e);
        else if (!e->files || stamp_of(e) != e->stamp ||
                 (force &&
                  (strcmp(force, "*") == 0 || strcmp(force, e->name) == 0)))
            want_probe(e);
    }
    c->was_scanned = true;
    probe_next(c);
}

static void on_files_changed(void *arg)
{
    catalogue_scan(arg, NULL);
}

/* --- loading and switching ---------------------------------------------------------------- */

static void switch_over(struct entry *e)
{
    struct catalogue *c = e->catalogue;
    struct host *h = c->host;
    struct version *old = e->running, *v = e->candidate;
    bool was_gone = e->handler->is_removed;

    e->running = v;
    set_candidate(e, NULL);
    pipeline_switch(h->pipeline, e->handler, v->spec, v->bundle.vm);
    v->spec = NULL;
    log_info("handler loaded", "handler=%s version=%s former=%s", e->name,
             v->hash, old ? old->hash : "none");
    count_reload(c, e->name, "loaded");
    if (old) {
        series_set(metrics_get(h->metrics, M_HANDLER_INFO, e->name, old->hash),
                   0);
        supervisor_unload(h->supervisor, old->bundle.vm);
        version_free(old);
    }
    series_set(metrics_get(h->metrics, M_HANDLER_INFO, e->name, v->hash), 1);
    if (switches_holds(h, e->name, NULL, 0))
        pipeline_detach(h->pipeline, e->handler, false);
    else if (was_gone)
        pipeline_attach(h->pipeline, e->handler);
    if (!e->is_known_to_intake && h->intake)
        intake_handler_added(h->intake, e->handler);
    e->is_known_to_intake = true;
}

bool catalogue_loaded(struct catalogue *c, uint32_t vm, bool ok,
                      struct slice text)
{
    struct entry *e = c->entries;
    char *reason;

    while (e && (!e->running || e->running->bundle.vm != vm) &&
           (!e->candidate || e->candidate->bundle.vm != vm))
        e = e->next;
    if (e && e->running && e->running->bundle.vm == vm)
        return false;
    if (!e || ok)
        return true;
    reason = xstrndup(text.ptr, text.len);
    refuse(e, reason);
    free(reason);
    drop_candidate(e);
    return true;
}

void catalogue_turn(struct catalogue *c)
{
    if (c->candidates == 0)
        return;
    for (struct entry *e = c->entries; e; e = e->next)
        if (e->candidate &&
            supervisor_has_loaded(c->host->supervisor, e->candidate->bundle.vm))
            switch_over(e);
}

bool catalogue_is_ready(const struct catalogue *c)
{
    return catalogue_probed(c) && c->candidates == 0;
}

size_t catalogue_bundles(const struct catalogue *c,
                         const struct bundle **bundles, size_t max)
{
    size_t n = 0;

    for (const struct entry *e = c->entries; e && n + 2 <= max; e = e->next) {
        if (e->running)
            bundles[n++] = &e->running->bundle;
        if (e->candidate)
            bundles[n++] = &e->candidate->bundle;
    }
    return n;
}

const char *catalogue_bundle(const struct catalogue *c, const char *name)
{
    const struct entry *e = find(c, name);

    return e && e->running ? e->running->bundle.json : NULL;
}

bool catalogue_knows(const struct catalogue *c, const char *name)
{
    return find(c, name) != NULL;
}

bool catalogue_probed(const struct catalogue *c)
{
    return c->was_scanned && c->probing == 0 && list_is_empty(&c->to_probe);
}

/* --- new, free, show ------------------------------------------------------------------------ */

struct catalogue *catalogue_new(struct host *h)
{
    struct catalogue *c = xcalloc(1, sizeof(*c));
    const char *const folders[] = {h->settings.handlers_path,
                                   h->settings.handlers_lua,
                                   h->settings.templates_path};

    c->host = h;
    list_init(&c->to_probe);
    ev_timer_init(&c->probe_later, on_later, 0, 0);
    c->probe_later.data = c;
    if (h->settings.reload_watch)
        c->watch = watch_new(h->loop, folders, 3, on_files_changed, c);
    return c;
}

void catalogue_free(struct catalogue *c)
{
    if (!c)
        return;
    watch_free(c->watch);
    ev_timer_stop(c->host->loop, &c->probe_later);
    while (c->entries) {
        struct entry *e = c->entries;

        c->entries = e->next;
        probe_cancel(e->probe);
        version_free(e->running);
        version_free(e->candidate);
        json_decref(e->files);
        free(e->error);
        free(e->name);
        free(e->path);
        free(e);
    }
    free(c);
}

static const char *state_of(const struct entry *e)
{
    if (e->is_disabled)
        return "disabled";
    if (!e->is_there)
        return "absent";
    if (!e->running)
        return e->candidate || e->probe || wants_probe(e) ? "loading"
                                                          : "refused";
    if (e->handler->is_held)
        return "held";
    return e->handler->n_behind > 0 ? "behind" : "running";
}

/* What a handler declares, without the values of its secrets. */
static json_t *shown(const json_t *decl)
{
    json_t *copy = json_deep_copy(decl), *name;
    json_t *config = json_object_get(copy, "config");
    size_t i;

    json_array_foreach(json_object_get(copy, "secrets"), i, name)
        if (json_object_get(config, json_string_value(name)))
            json_object_set_new(config, json_string_value(name),
                                json_string("***"));
    return copy;
}

static json_t *breakers_json(const struct entry *e)
{
    json_t *open = open_breakers_json(e->catalogue->host->breakers, e->name);

    if (json_array_size(open) > 0)
        return open;
    json_decref(open);
    return NULL;
}

static json_t *entry_json(const struct entry *e)
{
    const struct host *h = e->catalogue->host;
    const struct version *v = e->running;
    char why[160], since[RFC3339_SIZE];
    json_t *breakers = breakers_json(e);
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:i}", "name", e->name, "state", state_of(e),
                  "file", e->path, "inflight", (int)e->handler->inflight);

    if (switches_holds(h, e->name, why, sizeof(why)))
        json_object_set_new(json, "heldBy", json_string(why));
    if (handler_is_limited(e->handler))
        json_object_set_new(json, "limitedByRate", json_true());
    if (breakers)
        json_object_set_new(json, "openBreakers", breakers);
    if (e->error)
        json_object_set_new(json, "refused", json_string(e->error));
    if (e->candidate)
        json_object_set_new(json, "candidate", json_string(e->candidate->hash));
    if (!v)
        return json;
    json_object_set_new(json, "version", json_string(v->hash));
    json_object_set_new(json, "since",
                        json_string(clock_format(v->since_us, since)));
    json_object_set_new(json, "declared", shown(v->decl));
    json_object_set(json, "files", v->files);
    if (e->handler->quarantined_until_us > clock_mono_us())
        json_object_set_new(json, "quarantined", json_true());
    return json;
}

json_t *catalogue_json(const struct catalogue *c, const char *name)
{
    json_t *list;

    if (name) {
        const struct entry *e = find(c, name);

        return e ? entry_json(e) : NULL;
    }
    list = json_array();
    for (const struct entry *e = c->entries; e; e = e->next)
        json_array_insert_new(list, 0, entry_json(e));
    return list;
}

void catalogue_collect(struct catalogue *c)
{
    struct metrics *m = c->host->metrics;

    metrics_zero(m, M_HANDLER_STATE);
    for (const struct entry *e = c->entries; e; e = e->next) {
        series_set(metrics_get(m, M_HANDLER_STATE, e->name, state_of(e)), 1);
        series_set(metrics_get(m, M_INFLIGHT, e->name), e->handler->inflight);
        series_set(metrics_get(m, M_RATE_LIMITED, e->name),
                   handler_is_limited(e->handler));
        series_set(metrics_get(m, M_DETACHED, e->name),
                   e->handler->is_held || e->handler->is_removed ||
                       e->handler->n_behind > 0);
    }
}
