/*
 * The settings, as one plain struct made from settings.def.
 *
 * Later wins: default, file (as JSON, read by the probe process), environment,
 * --set a.b=c. Every error names the setting and where its value came from;
 * an unknown name is an error that names the nearest known one.
 */
#ifndef MT_BASE_SETTINGS_H
#define MT_BASE_SETTINGS_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct buf;

#define SETTING_C_TEXT     char *
#define SETTING_C_SECRET   char *
#define SETTING_C_INT      int64_t
#define SETTING_C_BOOL     bool
#define SETTING_C_DURATION int64_t /* ms */
#define SETTING_C_BYTES    int64_t
#define SETTING_C_LIST     json_t * /* array of strings */
#define SETTING_C_MAP      json_t * /* object (http.tokens: array); never NULL */

struct settings {
#define SETTING(type, name, field, dflt, env, effect, help) \
    SETTING_C_##type field;
#include "base/settings.def"
#undef SETTING
};

void settings_init(struct settings *s); /* the defaults */
void settings_fini(struct settings *s);

/* The configuration file's table. `origin` is its path, for messages. */
bool settings_apply_json(struct settings *s, const json_t *table,
                         const char *origin, struct err *err) MUST_CHECK;

/* Variables asked for by name and MOONTIDE_*. `env` as environ(7). */
bool settings_apply_env(struct settings *s, char *const *env,
                        struct err *err) MUST_CHECK;

/* One "a.b=c" of the command line. */
bool settings_apply_text(struct settings *s, const char *assignment,
                         struct err *err) MUST_CHECK;

/* Ranges, and what makes no sense together. */
bool settings_check(const struct settings *s, struct err *err) MUST_CHECK;

/* All of them by name; secrets as "***" unless `with_secrets`. Gives. The
 * object can be read back with settings_apply_json(). */
json_t *settings_json(const struct settings *s, bool with_secrets);

/* The page docs/SETTINGS.md and the text of --help-settings. */
void settings_markdown(struct buf *out);
void settings_help(struct buf *out);

/* "200ms", "1.5s", "5m", "2h", "7d" or plain seconds. */
bool duration_parse(const char *text, int64_t *ms);
/* "64KiB", "4MiB", "1GiB" or plain bytes. */
bool bytes_parse(const char *text, int64_t *bytes);

#endif
