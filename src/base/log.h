/*
 * One line per thing worth knowing, on stderr, as text for people or as JSON.
 *
 * The message is a constant phrase, so that it can be searched and counted;
 * what changes follows as `key=value` pairs in the format string. Values with
 * spaces are quoted by the caller with LOG_Q. Nothing per event above debug.
 * Each error is logged once, by whoever decides what happens next.
 *
 *     static const char component[] = "outbox";
 *     log_warn("poll failed", "err=" LOG_Q " attempt=%d", err.msg, n);
 */
#ifndef MT_BASE_LOG_H
#define MT_BASE_LOG_H

#include <stdbool.h>

#define LOG_Q "\"%s\""

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_HUMAN, LOG_JSON };

/* Set once at start; the level may change later. Copies `process`. */
void log_init(enum log_level level, enum log_format format,
              const char *process);
void log_set_level(enum log_level level);
bool log_level_parse(const char *name, enum log_level *level);
bool log_wants(enum log_level level);

void log_write(enum log_level level, const char *component, const char *phrase,
               const char *fmt, ...) __attribute__((format(printf, 4, 5)));

#define log_debug(phrase, ...) LOG_AT(LOG_DEBUG, phrase, __VA_ARGS__)
#define log_info(phrase, ...)  LOG_AT(LOG_INFO, phrase, __VA_ARGS__)
#define log_warn(phrase, ...)  LOG_AT(LOG_WARN, phrase, __VA_ARGS__)
#define log_error(phrase, ...) LOG_AT(LOG_ERROR, phrase, __VA_ARGS__)

/* Every call gives a format string for the data, "%s","" when there is none. */
#define LOG_AT(level, phrase, ...)                                       \
    (log_wants(level) ? log_write(level, component, phrase, __VA_ARGS__) \
                      : (void)0)

#endif
