/*
 * The settings of a host or a command: defaults, the configuration file (read
 * by the probe), environment, --set; paths made absolute.
 */
#ifndef MT_HOST_CONFIG_H
#define MT_HOST_CONFIG_H

#include "base/settings.h"

struct config_source {
    const char *path;  /* of the file; NULL: conf/moontide.lua if there */
    char *const *sets; /* "a.b=c", n_sets of them */
    size_t n_sets;
};

/* Fills `s` (settings_init() is done here; settings_fini() it also after a
 * failure). Folders are relative to the configuration file's folder's parent
 * when that is called conf, else to the file's folder. */
bool config_load(struct settings *s, const struct config_source *from,
                 struct err *err) MUST_CHECK;

/* Does this host keep what transaction = "kafka" promises? */
bool config_keeps_kafka_transactions(const struct settings *s,
                                     struct err *err) MUST_CHECK;

/* share/moontide of an installed binary, or the source tree of a built one:
 * where migrations/ lies. NULL when neither is found. */
const char *config_share_dir(void);

#endif
