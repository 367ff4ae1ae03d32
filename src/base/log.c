#include "base/log.h"

#include "base/buf.h"
#include "base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define VALUE_MAX 2048 /* bytes of data kept per line; the rest is cut */

static struct {
    enum log_level level;
    enum log_format format;
    char process[32];
} logger = {LOG_INFO, LOG_HUMAN, "host"};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_init(enum log_level level, enum log_format format, const char *process)
{
    logger.level = level;
    logger.format = format;
    snprintf(logger.process, sizeof(logger.process), "%s", process);
}

void log_set_level(enum log_level level)
{
    logger.level = level;
}

bool log_level_parse(const char *name, enum log_level *level)
{
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++)
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    return false;
}

bool log_wants(enum log_level level)
{
    return level >= logger.level;
}

/* After a closing quote comes the end, or a space and the next `key=`. */
static bool is_end(const char *p)
{
    size_t n;

    if (*p == '\0')
        return true;
    n = strspn(p + 1, "abcdefghijklmnopqrstuvwxyz_");
    return *p == ' ' && n > 0 && p[1 + n] == '=';
}

/* `key=value` or `key="value with spaces"`; returns the rest of the text. Not
 * every quote ends a value: messages have quotes of their own. */
static const char *next_pair(const char *p, struct slice *key,
                             struct slice *value)
{
    const char *eq = strchr(p, '='), *end;

    if (!eq)
        return NULL;
    *key = (struct slice){p, (size_t)(eq - p)};
    if (eq[1] == '"') {
        for (end = eq + 2; *end; end++)
            if (*end == '"' && is_end(end + 1))
                break;
        *value = (struct slice){eq + 2, (size_t)(end - eq - 2)};
        end += *end == '"';
    } else {
        end = eq + 1 + strcspn(eq + 1, " ");
        *value = (struct slice){eq + 1, (size_t)(end - eq - 1)};
    }
    return end + strspn(end, " ");
}

static void add_pairs_as_json(struct buf *line, const char *data)
{
    struct slice key, value;

    while (data && *data) {
        data = next_pair(data, &key, &value);
        if (!data)
            return;
        buf_add_char(line, ',');
        buf_add_json(line, key);
        buf_add_char(line, ':');
        buf_add_json(line, value);
    }
}

/* Control characters would let an event forge log lines (terminals, too). */
static void add_clean(struct buf *line, const char *data)
{
    for (; *data; data++)
        buf_add_char(
            line, (unsigned char)*data < 0x20 || *data == 0x7f ? ' ' : *data);
}

static void compose(struct buf *line, enum log_level level,
                    const char *component, const char *phrase, const char *data)
{
    char when[RFC3339_SIZE];

    clock_format(clock_wall_us(), when);
    if (logger.format == LOG_JSON) {
        buf_printf(line,
                   "{\"at\":\"%s\",\"level\":\"%s\",\"process\":\"%s\","
                   "\"component\":\"%s\",\"message\":",
                   when, level_names[level], logger.process, component);
        buf_add_json(line, slice_of(phrase));
        add_pairs_as_json(line, data);
        buf_add_text(line, "}\n");
        return;
    }
    buf_printf(line, "%.23sZ %-5s %s/%s: %s", when, level_names[level],
               logger.process, component, phrase);
    if (*data)
        buf_add_char(line, ' ');
    add_clean(line, data);
    buf_add_char(line, '\n');
}

void log_write(enum log_level level, const char *component, const char *phrase,
               const char *fmt, ...)
{
    char data[VALUE_MAX];
    struct buf line = {0};
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(data, sizeof(data), fmt, ap);
    va_end(ap);
    compose(&line, level, component, phrase, data);
    /* One write(2), so that lines of several processes do not mix. */
    if (write(STDERR_FILENO, line.ptr, line.len) < 0) {
        /* Nowhere left to say it. */
    }
    buf_fini(&line);
}
