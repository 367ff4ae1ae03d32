#include "core/flags.h"

#include "base/hash.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static struct flag *find(const struct flags *f, const char *name)
{
    for (size_t i = 0; i < f->len; i++)
        if (strcmp(f->at[i].name, name) == 0)
            return &f->at[i];
    return NULL;
}

void flags_fini(struct flags *f)
{
    for (size_t i = 0; i < f->len; i++)
        free(f->at[i].name);
    free(f->at);
    *f = (struct flags){0};
}

void flags_set(struct flags *f, const char *name, enum flag_origin origin,
               int percent, enum when_off when_off)
{
    struct flag *flag = find(f, name);

    if (!flag) {
        f->at = xrealloc(f->at, (f->len + 1) * sizeof(*f->at));
        flag = &f->at[f->len++];
        *flag = (struct flag){.name = xstrdup(name)};
    }
    flag->by[origin] =
        (struct flag_value){true, percent > 0, when_off, percent};
}

void flags_clear(struct flags *f, enum flag_origin origin)
{
    for (size_t i = 0; i < f->len; i++)
        f->at[i].by[origin] = (struct flag_value){0};
}

static const struct flag_value everything = {false, true, OFF_HOLD, 100};

/* Off wins: the origin that admits the fewest. */
static struct flag_value get_all(const struct flag *flag,
                                 enum flag_origin *origin)
{
    struct flag_value found = everything;

    for (int o = 0; o < FLAG_ORIGINS; o++)
        if (flag->by[o].is_set && flag->by[o].percent < found.percent) {
            *origin = (enum flag_origin)o;
            found = flag->by[o];
        }
    found.is_set = true;
    return found;
}

struct flag_value flags_get(const struct flags *f, const char *name,
                            enum flag_origin *origin)
{
    static const enum flag_origin order[] = {FLAG_RUNTIME, FLAG_ENV, FLAG_FILE};
    const struct flag *flag = find(f, name);
    enum flag_origin unused;

    if (!origin)
        origin = &unused;
    *origin = FLAG_FILE;
    if (flag && strcmp(name, FLAG_ALL) == 0)
        return get_all(flag, origin);
    for (int i = 0; flag && i < FLAG_ORIGINS; i++)
        if (flag->by[order[i]].is_set) {
            *origin = order[i];
            return flag->by[order[i]];
        }
    return everything;
}

bool flag_admits(const struct flag_value *v, uint64_t key)
{
    if (v->percent >= 100 || v->percent <= 0)
        return v->is_on;
    return flag_bucket(key) < v->percent * 100;
}

int flag_bucket(uint64_t key)
{
    return (int)(hash_mix(key, 7) % 10000);
}

bool flag_name_is_known(const char *name)
{
    return strcmp(name, FLAG_ALL) == 0 ||
           (strncmp(name, "handler:", 8) == 0 && name[8]) ||
           (strncmp(name, "aggregate:", 10) == 0 && name[10]);
}

const char *flag_origin_name(enum flag_origin origin)
{
    static const char *const names[] = {"file", "environment", "runtime"};

    return names[origin];
}
