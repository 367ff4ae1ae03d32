/*
 * What the flags say, from three places: environment, configuration file, and
 * runtime rows. For DOMAIN_EVENTS_ENABLED off wins: it is on only if all three
 * say so. For the others the runtime row decides, else environment, else file;
 * a flag nobody set is on.
 */
#ifndef MT_CORE_FLAGS_H
#define MT_CORE_FLAGS_H

#include <stdbool.h>
#include <stddef.h>

#define FLAG_ALL "DOMAIN_EVENTS_ENABLED"

enum flag_origin { FLAG_FILE, FLAG_ENV, FLAG_RUNTIME, FLAG_ORIGINS };
enum when_off { OFF_HOLD, OFF_SKIP };

struct flag_value {
    bool is_set, is_on;
    enum when_off when_off;
};

struct flag {
    char *name;
    struct flag_value by[FLAG_ORIGINS];
};

struct flags {
    struct flag *at;
    size_t len;
};

void flags_fini(struct flags *f);
void flags_set(struct flags *f, const char *name, enum flag_origin origin,
               bool is_on, enum when_off when_off);
/* Forget everything an origin said, before its rows are read again. */
void flags_clear(struct flags *f, enum flag_origin origin);

/* The answer and, when off, how (and which origin said it, may be NULL). */
struct flag_value flags_get(const struct flags *f, const char *name,
                            enum flag_origin *origin);

/* A name of the known kinds: FLAG_ALL, handler:<name>, aggregate:<type>. */
bool flag_name_is_known(const char *name);

const char *flag_origin_name(enum flag_origin origin);

#endif
