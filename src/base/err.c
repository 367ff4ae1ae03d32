#include "base/err.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void set(struct err *err, enum err_kind kind, const char *code,
                const char *fmt, va_list ap)
{
    size_t len;

    err->kind = kind;
    snprintf(err->code, sizeof(err->code), "%s", code);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    len = strlen(err->msg);
    while (len > 0 && (err->msg[len - 1] == '\n' || err->msg[len - 1] == ' '))
        err->msg[--len] = '\0';
}

bool err_set(struct err *err, enum err_kind kind, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set(err, kind, "", fmt, ap);
    va_end(ap);
    return false;
}

bool err_code(struct err *err, enum err_kind kind, const char *code,
              const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set(err, kind, code, fmt, ap);
    va_end(ap);
    return false;
}

bool err_wrap(struct err *err, const char *fmt, ...)
{
    char old[sizeof(err->msg)], what[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    memcpy(old, err->msg, sizeof(old));
    snprintf(err->msg, sizeof(err->msg), "%s: %.*s", what,
             (int)(sizeof(old) - sizeof(what) - 3), old);
    return false;
}

const char *err_kind_name(enum err_kind kind)
{
    switch (kind) {
    case ERR_RETRIABLE: return "retriable";
    case ERR_PERMANENT: return "permanent";
    case ERR_FATAL: return "fatal";
    }
    UNREACHABLE();
}
