/* What the settings' files share; nobody else includes it. */
#ifndef MT_BASE_SETTINGS_PRIV_H
#define MT_BASE_SETTINGS_PRIV_H

#include "base/settings.h"

#include <stddef.h>

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

/* --- settings.c: the table --------------------------------------------------- */

extern const struct setting setting_table[];
extern const size_t setting_count;

const struct setting *setting_find(const char *name); /* NULL: none */
/* False, with an error that names the nearest known setting. */
bool setting_unknown(const char *name, const char *origin, struct err *err);
/* database.url → MOONTIDE_DATABASE_URL */
void setting_env_name(const char *name, char *out, size_t size);

/* --- settings_value.c: the value of one --------------------------------------- */

const char *setting_type_name(enum setting_type type);
/* The field: char *, int64_t, bool or json_t *, by the type. */
void *setting_slot(const struct settings *s, const struct setting *d);
void setting_put_text(char **slot, const char *text); /* copies */
void setting_put_json(json_t **slot, json_t *value);  /* takes */
/* A value given as text: default, environment or command line. `origin` says
 * where it stands, for the error. */
bool setting_from_text(struct settings *s, const struct setting *d,
                       const char *text, const char *origin,
                       struct err *err) MUST_CHECK;
/* False, with an error that says what it should have been. */
bool setting_refuse(const struct setting *d, const char *text,
                    const char *origin, struct err *err);

#endif
