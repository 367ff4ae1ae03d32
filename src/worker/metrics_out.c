#include "worker/metrics_out.h"

#include "base/mem.h"
#include "worker/vm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SERIES 2000 /* of handlers' own, per worker and message */
#define MAX_VALUES 4096 /* of one histogram between two messages */

struct metrics_out {
    json_t *effects, *cpu, *databases, *breakers, *raised, *own; /* by name */
    json_t *stored;
    json_t *memory; /* as last sent */
};

static void clear(struct metrics_out *m)
{
    m->effects = json_object();
    m->cpu = json_object();
    m->databases = json_object();
    m->breakers = json_object();
    m->raised = json_object();
    m->own = json_object();
    m->stored = json_array();
}

static void drop(struct metrics_out *m)
{
    json_decref(m->effects);
    json_decref(m->cpu);
    json_decref(m->databases);
    json_decref(m->breakers);
    json_decref(m->raised);
    json_decref(m->own);
    json_decref(m->stored);
}

struct metrics_out *metrics_out_new(void)
{
    struct metrics_out *m = xcalloc(1, sizeof(*m));

    clear(m);
    m->memory = json_object();
    return m;
}

void metrics_out_free(struct metrics_out *m)
{
    drop(m);
    json_decref(m->memory);
    free(m);
}

/* Add `n` to the last element of the row that `key` names. */
static void add(json_t *rows, const char *key, json_t *fresh, double n)
{
    json_t *row = json_object_get(rows, key), *last;

    if (!row) {
        json_object_set_new(rows, key, fresh);
        return;
    }
    json_decref(fresh);
    last = json_array_get(row, json_array_size(row) - 1);
    if (json_is_integer(last))
        json_integer_set(last, json_integer_value(last) + (json_int_t)n);
    else
        json_real_set(last, json_real_value(last) + n);
}

void metrics_effect(struct metrics_out *m, const char *handler,
                    const char *class, bool ok)
{
    char key[160];

    snprintf(key, sizeof(key), "%s %s %d", handler, class, ok);
    add(m->effects, key,
        json_pack("[sssi]", handler, class, ok ? "ok" : "error", 1), 1);
}

void metrics_cpu(struct metrics_out *m, const char *handler,
                 const char *version, double seconds)
{
    char key[160];

    snprintf(key, sizeof(key), "%s %s", handler, version);
    add(m->cpu, key, json_pack("[ssf]", handler, version, seconds), seconds);
}

void metrics_database(struct metrics_out *m, const char *name, bool connected)
{
    json_object_set_new(m->databases, name,
                        json_pack("[si]", name, connected ? 1 : 0));
}

void metrics_breaker(struct metrics_out *m, const char *handler,
                     const char *destination, bool is_open)
{
    char *key = xasprintf("%s %s", handler, destination);
    json_t *row = json_pack("[ssi]", handler, destination, is_open);

    if (row) /* else not UTF-8: no label */
        json_object_set_new(m->breakers, key, row);
    free(key);
}

void metrics_raised(struct metrics_out *m, const char *aggregate_type,
                    const char *type)
{
    char key[300];
    json_t *row = json_pack("[ssi]", aggregate_type, type, 1);

    if (!row)
        return; /* not UTF-8: no label */
    snprintf(key, sizeof(key), "%s %s", aggregate_type, type);
    add(m->raised, key, row, 1);
}

void metrics_stored(struct metrics_out *m, double seconds)
{
    if (json_array_size(m->stored) < MAX_VALUES)
        json_array_append_new(m->stored, json_pack("[fi]", seconds, 1));
}

static json_t *new_own(const char *kind, const char *name, const char *help,
                       json_t *labels)
{
    bool is_histogram = strcmp(kind, "histogram") == 0;
    json_t *own = json_pack("{s:s, s:s, s:s, s:O}", "kind", kind, "name", name,
                            "help", help, "labels", labels);

    if (is_histogram)
        json_object_set_new(own, "values", json_array());
    else
        json_object_set_new(own, "value", json_real(0));
    return own;
}

bool metrics_custom(struct metrics_out *m, const char *kind, const char *name,
                    const char *help, json_t *labels, double value)
{
    char *label_text = json_dumps(labels, JSON_SORT_KEYS | JSON_COMPACT);
    char *key = xasprintf("%s %s %s", kind, name, label_text);
    json_t *own = json_object_get(m->own, key), *at;
    bool ok = true;

    if (!own && json_object_size(m->own) >= MAX_SERIES) {
        ok = false;
    } else if (!own) {
        own = new_own(kind, name, help, labels);
        json_object_set_new(m->own, key, own);
    }
    if (ok && strcmp(kind, "histogram") == 0) {
        at = json_object_get(own, "values");
        if (json_array_size(at) < MAX_VALUES)
            json_array_append_new(at, json_real(value));
    } else if (ok) {
        at = json_object_get(own, "value");
        json_real_set(at, strcmp(kind, "counter") == 0
                              ? json_real_value(at) + value
                              : value);
    }
    free(label_text);
    free(key);
    json_decref(labels);
    return ok;
}

static json_t *rows_of(json_t *rows)
{
    json_t *list = json_array(), *row;
    const char *key;

    json_object_foreach(rows, key, row)
        json_array_append(list, row);
    return list;
}

/* Memory of a handler's VMs, where it changed by more than a little. */
static json_t *memory_rows(struct metrics_out *m, struct runtime *rt)
{
    json_t *now = json_object(), *list = json_array(), *value;
    const char *name;

    for (struct vm *vm = rt->vms; vm; vm = vm->next) {
        json_t *sum = json_object_get(now, vm->name);

        json_object_set_new(
            now, vm->name,
            json_integer(json_integer_value(sum) + (json_int_t)vm->used));
    }
    json_object_foreach(now, name, value) {
        json_int_t bytes = json_integer_value(value);
        json_int_t before =
            json_integer_value(json_object_get(m->memory, name));

        if (llabs(bytes - before) > before / 20)
            json_array_append_new(list, json_pack("[sI]", name, bytes));
        else
            json_object_set_new(now, name, json_integer(before));
    }
    json_object_foreach(m->memory, name, value)
        if (!json_object_get(now, name))
            json_array_append_new(list, json_pack("[si]", name, 0));
    json_decref(m->memory);
    m->memory = now;
    return list;
}

static void put_if_any(json_t *message, const char *name, json_t *list)
{
    if (json_array_size(list))
        json_object_set(message, name, list);
    json_decref(list);
}

json_t *metrics_take(struct metrics_out *m, struct runtime *rt)
{
    json_t *message = json_object();

    for (struct vm *vm = rt->vms; vm; vm = vm->next)
        if (vm->cpu_us) {
            metrics_cpu(m, vm->name, vm->version, (double)vm->cpu_us / 1e6);
            vm->cpu_us = 0;
        }
    put_if_any(message, "effects", rows_of(m->effects));
    put_if_any(message, "cpu", rows_of(m->cpu));
    put_if_any(message, "memory", memory_rows(m, rt));
    put_if_any(message, "raised", rows_of(m->raised));
    put_if_any(message, "stored", json_incref(m->stored));
    put_if_any(message, "databases", rows_of(m->databases));
    put_if_any(message, "breakers", rows_of(m->breakers));
    put_if_any(message, "own", rows_of(m->own));
    drop(m);
    clear(m);
    if (json_object_size(message))
        return message;
    json_decref(message);
    return NULL;
}
