#include "base/words.h"

#include "base/check.h"

#include <string.h>

static const char *const facts[] = {
#define X(id, name) name,
    FACTS(X)
#undef X
};

static const char *const forms[BODY_FORM_COUNT] = {"payload", "native",
                                                   "cloudevents", "binary"};

static const char *const verdicts[] = {
#define X(id, name) name,
    VERDICTS(X)
#undef X
};

static const char *const classes[] = {
#define X(id, name) name,
    ERROR_CLASSES(X)
#undef X
};

const char *fact_name(enum fact fact)
{
    CHECK(fact < FACT_COUNT);
    return facts[fact];
}

const char *body_form_name(enum body_form form)
{
    CHECK((unsigned)form < BODY_FORM_COUNT);
    return forms[form];
}

/* Index of `name` in `names`, or -1. */
static int lookup(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

bool body_form_parse(const char *name, enum body_form *form)
{
    int i = lookup(forms, BODY_FORM_COUNT, name);

    if (i >= 0)
        *form = (enum body_form)i;
    return i >= 0;
}

const char *verdict_name(enum verdict verdict)
{
    CHECK(verdict < VERDICT_COUNT);
    return verdicts[verdict];
}

const char *class_name(enum error_class class)
{
    CHECK(class < CLASS_COUNT);
    return classes[class];
}

bool class_parse(const char *name, enum error_class *class)
{
    int i = lookup(classes, CLASS_COUNT, name);

    if (i >= 0)
        *class = (enum error_class)i;
    return i >= 0;
}
