/* The layers: configuration file, environment, command line. */
#include "base/settings_priv.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

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
    len = fread(text, 1, sizeof(text), file);
    fclose(file);
    if (len == sizeof(text))
        return err_set(err, ERR_PERMANENT,
                       "%s: %s_file: %s has more than %zu bytes", origin,
                       d->name, path, sizeof(text) - 1);
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        len--;
    text[len] = '\0';
    setting_put_text(setting_slot(s, d), text);
    return true;
}

/* A number or a boolean of the file as the text the parser knows. */
static bool scalar_text(const json_t *value, char *text, size_t size)
{
    if (json_is_integer(value))
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
        setting_put_json(setting_slot(s, d), json_array());
        return true;
    }
    if (!json_is_array(value))
        return err_set(err, ERR_PERMANENT, "%s: %s is not a list", origin,
                       d->name);
    json_array_foreach(value, i, item)
        if (!json_is_string(item))
            return err_set(err, ERR_PERMANENT, "%s: %s[%zu] is not text",
                           origin, d->name, i + 1);
    setting_put_json(setting_slot(s, d), json_deep_copy(value));
    return true;
}

static bool set_from_json(struct settings *s, const struct setting *d,
                          const json_t *value, const char *origin,
                          struct err *err)
{
    char text[64];

    if (d->type == LIST && !json_is_string(value))
        return set_list(s, d, value, origin, err);
    if (d->type == MAP) {
        if (!json_is_object(value) && !json_is_array(value))
            return err_set(err, ERR_PERMANENT, "%s: %s is not a table", origin,
                           d->name);
        setting_put_json(setting_slot(s, d), json_deep_copy(value));
        return true;
    }
    if (d->type == TEXT && json_is_boolean(value)) {
        setting_put_text(setting_slot(s, d),
                         json_is_true(value) ? "on" : "off");
        return true;
    }
    if (json_is_string(value))
        return setting_from_text(s, d, json_string_value(value), origin, err);
    if (!scalar_text(value, text, sizeof(text)))
        return setting_refuse(d, "(table)", origin, err);
    return setting_from_text(s, d, text, origin, err);
}

/* `key` below a MAP: handlers.audit = {…}, rdkafka["ssl.ca.location"] = … */
static bool set_in_map(struct settings *s, const char *prefix, const char *key,
                       const json_t *value)
{
    const struct setting *d = *prefix ? setting_find(prefix) : NULL;

    if (!d || d->type != MAP)
        return false;
    json_object_set_new(*(json_t **)setting_slot(s, d), key,
                        json_deep_copy(value));
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
    d = setting_find(name);
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
        d = setting_find(secret);
        if (d && d->type == SECRET && json_is_string(value))
            return read_secret_file(s, d, json_string_value(value), origin,
                                    err);
    }
    if (json_is_object(value) && !strchr(key, '.'))
        return apply_table(s, name, value, origin, err);
    return setting_unknown(name, origin, err);
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

/* MOONTIDE_A_B, said as a.b. */
static bool unknown_variable(const char *variable, struct err *err)
{
    char name[64], origin[100];
    size_t n = 0;

    for (const char *p = variable + 9; *p && n < sizeof(name) - 1; p++)
        name[n++] = *p == '_' ? '.' : (char)tolower((unsigned char)*p);
    name[n] = '\0';
    snprintf(origin, sizeof(origin), "environment: %.80s", variable);
    return setting_unknown(name, origin, err);
}

static const struct setting *find_env(const char *variable)
{
    char name[160];

    for (size_t i = 0; i < setting_count; i++) {
        if (setting_table[i].env[0] &&
            strcmp(setting_table[i].env, variable) == 0)
            return &setting_table[i];
        setting_env_name(setting_table[i].name, name, sizeof(name));
        if (strcmp(name, variable) == 0)
            return &setting_table[i];
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
    return setting_from_text(s, d, value, variable, err);
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
    d = setting_find(prefix);
    if (!d || d->type != MAP)
        return false;
    map = *(json_t **)setting_slot(s, d);
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
    d = setting_find(name);
    if (d)
        return setting_from_text(s, d, eq + 1, "--set", err);
    if (set_below_map(s, name, eq + 1))
        return true;
    return setting_unknown(name, "--set", err);
}
