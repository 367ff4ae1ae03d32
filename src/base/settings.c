#include "base/settings.h"

#include "base/buf.h"
#include "base/check.h"
#include "base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum setting_type { TEXT, SECRET, INT, BOOL, DURATION, BYTES, LIST, MAP };
enum setting_effect { RELOAD, RESTART };

struct setting {
    enum setting_type type;
    const char *name;
    size_t offset; /* of the field in struct settings */
    const char *dflt, *env;
    enum setting_effect effect;
    const char *help;
};

static const struct setting table[] = {
#define SETTING(type, name, field, dflt, env, effect, help) \
    {type, name, offsetof(struct settings, field), dflt, env, effect, help},
#include "base/settings.def"
#undef SETTING
};

#define N_SETTINGS (sizeof(table) / sizeof(*table))

static const char *const type_names[] = {
    "text", "secret", "number", "yes/no", "duration", "size", "list", "table",
};

static void *field(const struct settings *s, const struct setting *d)
{
    return (char *)(uintptr_t)s + d->offset;
}

/* A number with a fraction and a unit out of `units`, times its factor. */
static bool scaled(const char *text, const char *const *units,
                   const double *factors, double plain, int64_t *value)
{
    char *end;
    double number;

    errno = 0;
    number = strtod(text, &end);
    if (end == text || errno || number < 0 || number > 1e15)
        return false;
    while (*end == ' ')
        end++;
    if (!*end) {
        *value = (int64_t)(number * plain);
        return true;
    }
    for (int i = 0; units[i]; i++)
        if (strcmp(end, units[i]) == 0) {
            *value = (int64_t)(number * factors[i]);
            return true;
        }
    return false;
}

bool duration_parse(const char *text, int64_t *ms)
{
    static const char *const units[] = {"ms", "s", "m", "h", "d", NULL};
    static const double factors[] = {1, 1e3, 6e4, 36e5, 864e5};

    return scaled(text, units, factors, 1e3, ms);
}

bool bytes_parse(const char *text, int64_t *bytes)
{
    static const char *const units[] = {"B",   "kB", "KiB", "MB",
                                        "MiB", "GB", "GiB", NULL};
    static const double factors[] = {1,       1e3, 1024,      1e6,
                                     1048576, 1e9, 1073741824};

    return scaled(text, units, factors, 1, bytes);
}

static bool bool_parse(const char *text, bool *value)
{
    static const char *const yes[] = {"true", "on", "yes", "1", NULL};
    static const char *const no[] = {"false", "off", "no", "0", NULL};

    for (int i = 0; yes[i]; i++) {
        if (strcasecmp(text, yes[i]) == 0)
            return *value = true;
        if (strcasecmp(text, no[i]) == 0) {
            *value = false;
            return true;
        }
    }
    return false;
}

static bool int_parse(const char *text, int64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoll(text, &end, 10);
    return end != text && !*end && !errno;
}

static void put_text(char **slot, const char *text)
{
    char *copy = xstrdup(text);

    free(*slot);
    *slot = copy;
}

static void put_json(json_t **slot, json_t *value)
{
    json_decref(*slot);
    *slot = value;
}

/* "a, b" as ["a","b"]. */
static json_t *split_list(const char *text)
{
    json_t *list = json_array();

    while (*text) {
        size_t len = strcspn(text, ",");
        const char *a = text, *z = text + len;

        while (a < z && isspace((unsigned char)*a))
            a++;
        while (z > a && isspace((unsigned char)z[-1]))
            z--;
        if (z > a)
            json_array_append_new(list, json_stringn(a, (size_t)(z - a)));
        text += len + (text[len] == ',');
    }
    return list;
}

static bool bad_value(const struct setting *d, const char *text,
                      const char *origin, struct err *err)
{
    return err_set(err, ERR_PERMANENT, "%s: %s = \"%s\" is not a %s", origin,
                   d->name, d->type == SECRET ? "***" : text,
                   type_names[d->type]);
}

/* A value given as text: default, environment or command line. */
static bool set_from_text(struct settings *s, const struct setting *d,
                          const char *text, const char *origin, struct err *err)
{
    void *slot = field(s, d);
    json_t *map;

    switch (d->type) {
    case TEXT:
    case SECRET: put_text(slot, text); return true;
    case INT:
        if (int_parse(text, slot))
            return true;
        break;
    case BOOL:
        if (bool_parse(text, slot))
            return true;
        break;
    case DURATION:
        if (duration_parse(text, slot))
            return true;
        break;
    case BYTES:
        if (bytes_parse(text, slot))
            return true;
        break;
    case LIST: put_json(slot, split_list(text)); return true;
    case MAP:
        map = *text ? json_loads(text, 0, NULL) : json_object();
        if (!map)
            break;
        put_json(slot, map);
        return true;
    }
    return bad_value(d, text, origin, err);
}

void settings_init(struct settings *s)
{
    struct err err;

    memset(s, 0, sizeof(*s));
    for (size_t i = 0; i < N_SETTINGS; i++)
        CHECK(set_from_text(s, &table[i], table[i].dflt, "default", &err));
}

void settings_fini(struct settings *s)
{
    for (size_t i = 0; i < N_SETTINGS; i++) {
        void *slot = field(s, &table[i]);

        if (table[i].type == TEXT || table[i].type == SECRET)
            free(*(char **)slot);
        else if (table[i].type == LIST || table[i].type == MAP)
            json_decref(*(json_t **)slot);
    }
    memset(s, 0, sizeof(*s));
}

/* --- names --------------------------------------------------------------- */

static const struct setting *find(const char *name)
{
    for (size_t i = 0; i < N_SETTINGS; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

/* Levenshtein's distance, short names only. */
static size_t distance(const char *a, const char *b)
{
    size_t row[64], la = strlen(a), lb = strlen(b);

    if (la > 63 || lb > 63)
        return 99;
    for (size_t j = 0; j <= lb; j++)
        row[j] = j;
    for (size_t i = 1; i <= la; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= lb; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);

            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[lb];
}

static bool unknown(const char *name, const char *origin, struct err *err)
{
    const char *nearest = table[0].name;

    for (size_t i = 1; i < N_SETTINGS; i++)
        if (distance(name, table[i].name) < distance(name, nearest))
            nearest = table[i].name;
    return err_set(err, ERR_PERMANENT,
                   "%s: unknown setting \"%s\"; did you mean \"%s\"?", origin,
                   name, nearest);
}

/* MOONTIDE_A_B, said as a.b. */
static bool unknown_variable(const char *variable, struct err *err)
{
    char name[64], origin[100];
    size_t n = 0;

    for (const char *p = variable + 9; *p && n < sizeof(name) - 1; p++)
        name[n++] = *p == '_' ? '.' : (char)tolower((unsigned char)*p);
    name[n] = '\0';
    snprintf(origin, sizeof(origin), "environment: %.80s", variable);
    return unknown(name, origin, err);
}

/* --- the file ------------------------------------------------------------ */

static bool read_secret_file(struct settings *s, const struct setting *d,
                             const char *path, const char *origin,
                             struct err *err)
{
    char text[4096];
    size_t len;
    FILE *file = fopen(path, "re");

    if (!file)
        return err_set(err, ERR_PERMANENT, "%s: %s_file: cannot read %s: %s",
                       origin, d->name, path, strerror(errno));
    len = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        len--;
    text[len] = '\0';
    put_text(field(s, d), text);
    return true;
}

/* A number or a boolean of the file as the text the parser knows. */
static bool scalar_text(const json_t *value, char *text, size_t size)
{
    if (json_is_string(value))
        snprintf(text, size, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(text, size, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, size, "%.9g", json_real_value(value));
    else if (json_is_boolean(value))
        snprintf(text, size, "%s", json_is_true(value) ? "true" : "false");
    else
        return false;
    return true;
}

static bool set_list(struct settings *s, const struct setting *d,
                     const json_t *value, const char *origin, struct err *err)
{
    size_t i;
    json_t *item;

    /* An empty Lua table has no shape: {} is an empty list, too. */
    if (json_is_object(value) && json_object_size(value) == 0) {
        put_json(field(s, d), json_array());
        return true;
    }
    if (!json_is_array(value))
        return err_set(err, ERR_PERMANENT, "%s: %s is not a list", origin,
                       d->name);
    json_array_foreach(value, i, item)
        if (!json_is_string(item))
            return err_set(err, ERR_PERMANENT, "%s: %s[%zu] is not text",
                           origin, d->name, i + 1);
    put_json(field(s, d), json_deep_copy(value));
    return true;
}

static bool set_from_json(struct settings *s, const struct setting *d,
                          const json_t *value, const char *origin,
                          struct err *err)
{
    char text[4096];

    if (d->type == LIST && !json_is_string(value))
        return set_list(s, d, value, origin, err);
    if (d->type == MAP) {
        if (!json_is_object(value) && !json_is_array(value))
            return err_set(err, ERR_PERMANENT, "%s: %s is not a table", origin,
                           d->name);
        put_json(field(s, d), json_deep_copy(value));
        return true;
    }
    if (d->type == TEXT && json_is_boolean(value)) {
        put_text(field(s, d), json_is_true(value) ? "on" : "off");
        return true;
    }
    if (!scalar_text(value, text, sizeof(text)))
        return bad_value(d, "(table)", origin, err);
    return set_from_text(s, d, text, origin, err);
}

/* `key` below a MAP: handlers.audit = {…}, rdkafka["ssl.ca.location"] = … */
static bool set_in_map(struct settings *s, const char *prefix, const char *key,
                       const json_t *value)
{
    const struct setting *d = *prefix ? find(prefix) : NULL;

    if (!d || d->type != MAP)
        return false;
    json_object_set_new(*(json_t **)field(s, d), key, json_deep_copy(value));
    return true;
}

static bool apply_table(struct settings *s, const char *prefix,
                        const json_t *values, const char *origin,
                        struct err *err);

static bool apply_entry(struct settings *s, const char *prefix, const char *key,
                        const json_t *value, const char *origin,
                        struct err *err)
{
    char name[160], secret[160];
    const struct setting *d;
    size_t len;

    snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", key);
    d = find(name);
    if (d && d->type != MAP)
        return set_from_json(s, d, value, origin, err);
    if (d && json_is_array(value))
        return set_from_json(s, d, value, origin, err);
    if (d && json_is_object(value))
        return apply_table(s, name, value, origin, err);
    if (set_in_map(s, prefix, key, value))
        return true;
    len = strlen(name);
    if (len > 5 && strcmp(name + len - 5, "_file") == 0) {
        snprintf(secret, sizeof(secret), "%.*s", (int)len - 5, name);
        d = find(secret);
        if (d && d->type == SECRET && json_is_string(value))
            return read_secret_file(s, d, json_string_value(value), origin,
                                    err);
    }
    if (json_is_object(value) && !strchr(key, '.'))
        return apply_table(s, name, value, origin, err);
    return unknown(name, origin, err);
}

static bool apply_table(struct settings *s, const char *prefix,
                        const json_t *values, const char *origin,
                        struct err *err)
{
    const char *key;
    json_t *value;
    void *iter = json_object_iter((json_t *)(uintptr_t)values);

    for (; iter;
         iter = json_object_iter_next((json_t *)(uintptr_t)values, iter)) {
        key = json_object_iter_key(iter);
        value = json_object_iter_value(iter);
        if (!apply_entry(s, prefix, key, value, origin, err))
            return false;
    }
    return true;
}

bool settings_apply_json(struct settings *s, const json_t *values,
                         const char *origin, struct err *err)
{
    if (!json_is_object(values))
        return err_set(err, ERR_PERMANENT, "%s: does not return a table",
                       origin);
    return apply_table(s, "", values, origin, err);
}

/* --- environment and command line ---------------------------------------- */

/* database.url → MOONTIDE_DATABASE_URL */
static void env_name(const char *name, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "MOONTIDE_");

    for (; *name && n + 1 < size; name++)
        out[n++] = (char)(*name == '.' ? '_' : toupper((unsigned char)*name));
    out[n] = '\0';
}

static const struct setting *find_env(const char *variable)
{
    char name[160];

    for (size_t i = 0; i < N_SETTINGS; i++) {
        if (table[i].env[0] && strcmp(table[i].env, variable) == 0)
            return &table[i];
        env_name(table[i].name, name, sizeof(name));
        if (strcmp(name, variable) == 0)
            return &table[i];
    }
    return NULL;
}

/* EVENT_BUS_DELIVERY_INTERVAL_MS is a bare number of milliseconds. */
static bool set_from_env(struct settings *s, const struct setting *d,
                         const char *variable, const char *value,
                         struct err *err)
{
    char text[64];
    size_t len = strlen(variable);

    if (d->type == DURATION && len > 3 &&
        strcmp(variable + len - 3, "_MS") == 0 &&
        strspn(value, "0123456789") == strlen(value) && *value) {
        snprintf(text, sizeof(text), "%.20sms", value);
        value = text;
    }
    return set_from_text(s, d, value, variable, err);
}

bool settings_apply_env(struct settings *s, char *const *env, struct err *err)
{
    for (; *env; env++) {
        const char *eq = strchr(*env, '=');
        const struct setting *d;
        char variable[160];

        if (!eq || (size_t)(eq - *env) >= sizeof(variable))
            continue;
        snprintf(variable, sizeof(variable), "%.*s", (int)(eq - *env), *env);
        d = find_env(variable);
        if (d && !set_from_env(s, d, variable, eq + 1, err))
            return false;
        if (!d && strncmp(variable, "MOONTIDE_", 9) == 0 &&
            strcmp(variable, "MOONTIDE_CONFIG") != 0 &&
            strcmp(variable, "MOONTIDE_URL") != 0 &&
            strcmp(variable, "MOONTIDE_TOKEN") != 0 &&
            strncmp(variable, "MOONTIDE_TEST_", 14) != 0)
            return unknown_variable(variable, err);
    }
    return true;
}

/* rdkafka.debug=all, handlers.audit.concurrency=4: the rest below a MAP. */
static bool set_below_map(struct settings *s, const char *name,
                          const char *value)
{
    char prefix[64], key[96];
    const char *dot = strchr(name, '.'), *deep;
    json_t *map, *inner;
    const struct setting *d;

    if (!dot || (size_t)(dot - name) >= sizeof(prefix))
        return false;
    snprintf(prefix, sizeof(prefix), "%.*s", (int)(dot - name), name);
    d = find(prefix);
    if (!d || d->type != MAP)
        return false;
    map = *(json_t **)field(s, d);
    deep = strcmp(prefix, "handlers") == 0 || strcmp(prefix, "databases") == 0
               ? strchr(dot + 1, '.')
               : NULL;
    if (!deep) {
        json_object_set_new(map, dot + 1, json_string(value));
        return true;
    }
    snprintf(key, sizeof(key), "%.*s", (int)(deep - dot - 1), dot + 1);
    inner = json_object_get(map, key);
    if (!inner) {
        inner = json_object();
        json_object_set_new(map, key, inner);
    }
    json_object_set_new(inner, deep + 1, json_string(value));
    return true;
}

bool settings_apply_text(struct settings *s, const char *assignment,
                         struct err *err)
{
    const char *eq = strchr(assignment, '=');
    const struct setting *d;
    char name[160];

    if (!eq || (size_t)(eq - assignment) >= sizeof(name))
        return err_set(err, ERR_PERMANENT, "--set %s: not of the form a.b=c",
                       assignment);
    snprintf(name, sizeof(name), "%.*s", (int)(eq - assignment), assignment);
    d = find(name);
    if (d)
        return set_from_text(s, d, eq + 1, "--set", err);
    if (set_below_map(s, name, eq + 1))
        return true;
    return unknown(name, "--set", err);
}

/* --- checks --------------------------------------------------------------- */

static bool one_of(const char *name, const char *value,
                   const char *const *choices, struct err *err)
{
    struct buf known = {0};

    for (int i = 0; choices[i]; i++) {
        if (strcmp(value, choices[i]) == 0) {
            buf_fini(&known);
            return true;
        }
        buf_printf(&known, "%s%s", i ? ", " : "", choices[i]);
    }
    err_set(err, ERR_PERMANENT, "%s = \"%s\" is not one of %s", name, value,
            buf_text(&known));
    buf_fini(&known);
    return false;
}

static bool in_range(const char *name, int64_t value, int64_t min, int64_t max,
                     struct err *err)
{
    if (value >= min && value <= max)
        return true;
    return err_set(err, ERR_PERMANENT, "%s = %lld is outside %lld…%lld", name,
                   (long long)value, (long long)min, (long long)max);
}

#define CHOICES(...) ((const char *const[]){__VA_ARGS__, NULL})

bool settings_check(const struct settings *s, struct err *err)
{
    return one_of("kafka.format", s->kafka_format,
                  CHOICES("auto", "native", "cloudevents", "debezium"), err) &&
           one_of("kafka.start", s->kafka_start, CHOICES("earliest", "latest"),
                  err) &&
           one_of("outbox.start", s->outbox_start,
                  CHOICES("earliest", "latest"), err) &&
           one_of("outbox.enabled", s->outbox_enabled,
                  CHOICES("auto", "on", "off"), err) &&
           one_of("outbox.columns", s->outbox_columns,
                  CHOICES("native", "camel", "debezium"), err) &&
           one_of("reload.gate", s->reload_gate, CHOICES("compile"), err) &&
           one_of("log.level", s->log_level,
                  CHOICES("debug", "info", "warn", "error"), err) &&
           one_of("log.format", s->log_format, CHOICES("human", "json"), err) &&
           in_range("workers.count", s->workers_count, 0, 64, err) &&
           in_range("workers.memory_limit", s->workers_memory_limit, 1 << 20,
                    (int64_t)4 << 30, err) &&
           in_range("workers.soft_limit", s->workers_soft_limit, 1, 600000,
                    err) &&
           in_range("database.pool", s->database_pool, 1, 100, err) &&
           in_range("window.events", s->window_events, 16, 1 << 20, err) &&
           in_range("window.bytes", s->window_bytes, 1 << 16, (int64_t)1 << 34,
                    err) &&
           in_range("event.max_bytes", s->event_max_bytes, 1024, 64 << 20,
                    err) &&
           in_range("outbox.batch", s->outbox_batch, 1, 100000, err) &&
           in_range("outbox.interval", s->outbox_interval, 1, 3600000, err) &&
           in_range("positions.interval", s->positions_interval, 10, 60000,
                    err) &&
           in_range("retry.max_attempts", s->max_attempts, 1, 1000, err);
}

/* --- showing them ---------------------------------------------------------- */

static json_t *value_json(const struct settings *s, const struct setting *d,
                          bool with_secrets)
{
    void *slot = field(s, d);
    const char *text;

    switch (d->type) {
    case TEXT: return json_string(*(char **)slot);
    case SECRET:
        text = *(char **)slot;
        return json_string(with_secrets || !*text ? text : "***");
    case INT:
    case BYTES: return json_integer(*(int64_t *)slot);
    case BOOL: return json_boolean(*(bool *)slot);
    case DURATION: return json_sprintf("%lldms", (long long)*(int64_t *)slot);
    case LIST:
    case MAP: return json_incref(*(json_t **)slot);
    }
    UNREACHABLE();
}

static bool is_secret_name(const char *name)
{
    return strstr(name, "password") || strstr(name, "secret") ||
           strstr(name, "token") || strstr(name, "url") ||
           strstr(name, "key") || strstr(name, "sasl.");
}

/* What a MAP holds is free-form: anything that sounds like a secret is one. */
static json_t *masked(const json_t *value)
{
    json_t *copy = json_deep_copy(value), *item;
    const char *key;

    json_object_foreach(copy, key, item) {
        if (json_is_object(item))
            json_object_set_new(copy, key, masked(item));
        else if (is_secret_name(key) && !json_is_array(item))
            json_object_set_new(copy, key, json_string("***"));
    }
    return copy;
}

json_t *settings_json(const struct settings *s, bool with_secrets)
{
    json_t *all = json_object();

    for (size_t i = 0; i < N_SETTINGS; i++) {
        const struct setting *d = &table[i];
        json_t *value = value_json(s, d, with_secrets);

        if (d->type == MAP && !with_secrets) {
            json_t *shown = masked(value);

            json_decref(value);
            value = shown;
        }
        json_object_set_new(all, d->name, value);
    }
    return all;
}

void settings_markdown(struct buf *out)
{
    char env[160];

    buf_add_text(out,
                 "# Settings\n\nGenerated by `moontide run --help-settings "
                 "--markdown`; do not edit.\n\nLater wins: default, "
                 "configuration file, environment, `--set name=value`. Secrets "
                 "can also be given as `<name>_file`. Durations are text "
                 "(`\"200ms\"`, `\"5m\"`) or seconds, sizes are text "
                 "(`\"4MiB\"`) or bytes.\n\n| setting | type | default | "
                 "environment | change takes effect | what it is for |\n"
                 "| --- | --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < N_SETTINGS; i++) {
        const struct setting *d = &table[i];

        env_name(d->name, env, sizeof(env));
        buf_printf(out, "| `%s` | %s | %s%s%s | %s%s%s`%s` | %s | %s |\n",
                   d->name, type_names[d->type], *d->dflt ? "`" : "", d->dflt,
                   *d->dflt ? "`" : "", *d->env ? "`" : "", d->env,
                   *d->env ? "`, " : "", env,
                   d->effect == RELOAD ? "at reload (SIGHUP)" : "at restart",
                   d->help);
    }
}

void settings_help(struct buf *out)
{
    for (size_t i = 0; i < N_SETTINGS; i++)
        buf_printf(out, "%s  (%s, default %s%s%s%s)\n    %s\n", table[i].name,
                   type_names[table[i].type],
                   *table[i].dflt ? table[i].dflt : "empty",
                   *table[i].env ? ", " : "", table[i].env,
                   table[i].effect == RELOAD ? ", reload" : "", table[i].help);
}
