/*
 * Errors as values.
 *
 * A function that can fail returns bool and takes a `struct err *` last; it
 * fills the error if and only if it returns false. The kind is what the rest
 * of the program acts on: nobody compares message text. `code` is the machine
 * readable detail of whoever failed: an SQLSTATE, an HTTP status, a name.
 */
#ifndef MT_BASE_ERR_H
#define MT_BASE_ERR_H

#include <stdbool.h>

#define MUST_CHECK        __attribute__((warn_unused_result))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

enum err_kind {
    ERR_RETRIABLE, /* the same call may succeed later: network, lock, limit */
    ERR_PERMANENT, /* it will not: bad input, missing table, script error */
    ERR_FATAL,     /* this process cannot go on: fenced producer, lost disk */
};

struct err {
    enum err_kind kind;
    char code[32];  /* "" when there is none */
    char msg[1000]; /* sentence fragment, lower case, no newline at the end */
};

/* Fill `err` and return false, so that failing reads `return err_set(...)`. */
bool err_set(struct err *err, enum err_kind kind, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* The same with a code; a code too long is cut. */
bool err_code(struct err *err, enum err_kind kind, const char *code,
              const char *fmt, ...) PRINTF_LIKE(4, 5);

/* Prefix the message with what the caller was doing; returns false. */
bool err_wrap(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

const char *err_kind_name(enum err_kind kind);

#endif
