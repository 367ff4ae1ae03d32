/* The value of one setting: from text into its field. */
#include "base/settings_priv.h"

#include "base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const type_names[] = {
    "text", "secret", "number", "yes/no", "duration", "size", "list", "table",
};

const char *setting_type_name(enum setting_type type)
{
    return type_names[type];
}

void *setting_slot(const struct settings *s, const struct setting *d)
{
    return (char *)(uintptr_t)s + d->offset;
}

/* A number with a fraction and a unit out of `units`, times its factor. */
static bool scaled(const char *text, const char *const *units,
                   const double *factors, double plain, int64_t *value)
{
    char *end;
    double number, factor = plain;
    int i = 0;

    errno = 0;
    number = strtod(text, &end);
    if (end == text || errno || !(number >= 0)) /* nor is it a NaN */
        return false;
    while (*end == ' ')
        end++;
    while (*end && units[i] && strcmp(end, units[i]) != 0)
        i++;
    if (*end && !units[i])
        return false;
    if (*end)
        factor = factors[i];
    if (number * factor > 1e15)
        return false;
    *value = (int64_t)(number * factor);
    return true;
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

void setting_put_text(char **slot, const char *text)
{
    char *copy = xstrdup(text);

    free(*slot);
    *slot = copy;
}

void setting_put_json(json_t **slot, json_t *value)
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

bool setting_refuse(const struct setting *d, const char *text,
                    const char *origin, struct err *err)
{
    return err_set(err, ERR_PERMANENT, "%s: %s = \"%s\" is not a %s", origin,
                   d->name, d->type == SECRET || d->type == MAP ? "***" : text,
                   setting_type_name(d->type));
}

bool setting_from_text(struct settings *s, const struct setting *d,
                       const char *text, const char *origin, struct err *err)
{
    void *slot = setting_slot(s, d);
    json_t *map;

    switch (d->type) {
    case TEXT:
    case SECRET: setting_put_text(slot, text); return true;
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
    case LIST: setting_put_json(slot, split_list(text)); return true;
    case MAP:
        map = *text ? json_loads(text, 0, NULL) : json_object();
        if (!map)
            break;
        setting_put_json(slot, map);
        return true;
    }
    return setting_refuse(d, text, origin, err);
}
