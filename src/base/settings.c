/* The table of settings: names, defaults, and which values are allowed. */
#include "base/settings_priv.h"

#include "base/buf.h"
#include "base/check.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct setting setting_table[] = {
#define SETTING(type, name, field, dflt, env, effect, help) \
    {type, name, offsetof(struct settings, field), dflt, env, effect, help},
#include "base/settings.def"
#undef SETTING
};

const size_t setting_count = sizeof(setting_table) / sizeof(*setting_table);

void settings_init(struct settings *s)
{
    struct err err;

    memset(s, 0, sizeof(*s));
    for (size_t i = 0; i < setting_count; i++)
        CHECK(setting_from_text(s, &setting_table[i], setting_table[i].dflt,
                                "default", &err));
}

void settings_fini(struct settings *s)
{
    for (size_t i = 0; i < setting_count; i++) {
        void *slot = setting_slot(s, &setting_table[i]);

        if (setting_table[i].type == TEXT || setting_table[i].type == SECRET)
            free(*(char **)slot);
        else if (setting_table[i].type == LIST || setting_table[i].type == MAP)
            json_decref(*(json_t **)slot);
    }
    memset(s, 0, sizeof(*s));
}

/* --- names --------------------------------------------------------------- */

const struct setting *setting_find(const char *name)
{
    for (size_t i = 0; i < setting_count; i++)
        if (strcmp(setting_table[i].name, name) == 0)
            return &setting_table[i];
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

bool setting_unknown(const char *name, const char *origin, struct err *err)
{
    const char *nearest = setting_table[0].name;

    for (size_t i = 1; i < setting_count; i++)
        if (distance(name, setting_table[i].name) < distance(name, nearest))
            nearest = setting_table[i].name;
    return err_set(err, ERR_PERMANENT,
                   "%s: unknown setting \"%s\"; did you mean \"%s\"?", origin,
                   name, nearest);
}

/* database.url → MOONTIDE_DATABASE_URL */
void setting_env_name(const char *name, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "MOONTIDE_");

    for (; *name && n + 1 < size; name++)
        out[n++] = (char)(*name == '.' ? '_' : toupper((unsigned char)*name));
    out[n] = '\0';
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
           in_range("database.lease", s->database_lease, 1000, 3600000, err) &&
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
