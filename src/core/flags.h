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
#include <stdint.h>

#define FLAG_ALL "DOMAIN_EVENTS_ENABLED"

enum flag_origin { FLAG_FILE, FLAG_ENV, FLAG_RUNTIME, FLAG_ORIGINS };
enum when_off { OFF_HOLD, OFF_SKIP };

struct flag_value {
    bool is_set, is_on;
    enum when_off when_off;
    int percent; /* of the keys for which it is on; 100 when it is for all */
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
/* `percent`: 0…100 of the keys when it is on; 0 is off. */
void flags_set(struct flags *f, const char *name, enum flag_origin origin,
               int percent, enum when_off when_off);
/* Forget everything an origin said, before its rows are read again. */
void flags_clear(struct flags *f, enum flag_origin origin);

/* The answer and, when off, how (and which origin said it, may be NULL). */
struct flag_value flags_get(const struct flags *f, const char *name,
                            enum flag_origin *origin);

/* Is it on for this key (a hash of it)? A key keeps its answer as the percentage
 * grows. */
bool flag_admits(const struct flag_value *v, uint64_t key);

/* Of a hash of a key: 0 to 9999, the flag admits those below 100 a percent. */
int flag_bucket(uint64_t key);

/* A name of the known kinds: FLAG_ALL, handler:<name>, aggregate:<type>. */
bool flag_name_is_known(const char *name);

const char *flag_origin_name(enum flag_origin origin);

#endif
