#include "base/log.h"

#include "base/buf.h"
#include "base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PAIRS_MAX 16
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

struct pair {
    struct slice name;
    bool is_quoted;
    const char *at; /* in the data, or NULL: cut off */
};

/* The names stand in the format: a value can bring none. */
static size_t names_of(const char *fmt, struct pair *pairs)
{
    size_t n = 0;

    for (const char *eq; n < PAIRS_MAX && (eq = strchr(fmt, '=')); n++) {
        const char *start = eq;

        while (start > fmt && start[-1] != ' ')
            start--;
        fmt = eq + 1;
        pairs[n] = (struct pair){.name = {start, (size_t)(eq - start)},
                                 .is_quoted = *fmt == '"'};
    }
    return n;
}

/* The last one before `end`, and after `before`, which may end in a quote. */
static const char *find_pair(const char *data, const char *end,
                             const struct pair *pair, const struct pair *before)
{
    size_t len = pair->name.len;

    if ((size_t)(end - data) <= len)
        return NULL;
    for (const char *at = end - len; at > data + 1; at--)
        if (at[-1] == ' ' && (!before->is_quoted || at[-2] == '"') &&
            memcmp(at, pair->name.ptr, len) == 0 && at[len] == '=')
            return at;
    return NULL;
}

static void add_pair(struct buf *line, struct slice key, struct slice value)
{
    buf_add_char(line, ',');
    buf_add_json(line, key);
    buf_add_char(line, ':');
    buf_add_json(line, value);
}

static void add_value(struct buf *line, const struct pair *pair,
                      const char *end)
{
    const char *value = pair->at + pair->name.len + 1;

    value += pair->is_quoted && value < end;
    end -= pair->is_quoted && end > value && end[-1] == '"';
    add_pair(line, pair->name, (struct slice){value, (size_t)(end - value)});
}

/* From the last to the first, because a value may look like pairs. */
static void add_pairs_by(struct buf *line, const char *fmt, const char *data)
{
    struct pair pairs[PAIRS_MAX];
    size_t n = names_of(fmt, pairs);
    const char *end = data + strlen(data);

    for (size_t i = n; i-- > 1;) {
        pairs[i].at = find_pair(data, end, &pairs[i], &pairs[i - 1]);
        if (pairs[i].at)
            end = pairs[i].at - 1;
    }
    pairs[0].at = data;
    for (size_t i = 0; i < n; i++) {
        size_t next = i + 1;

        while (next < n && !pairs[next].at)
            next++;
        if (pairs[i].at)
            add_value(line, &pairs[i],
                      next < n ? pairs[next].at - 1 : data + strlen(data));
    }
}

/* The closing quote of a JSON string, or the end. */
static const char *string_end(const char *p)
{
    while (*p && *p != '"')
        p += *p == '\\' && p[1] ? 2 : 1;
    return p;
}

/* Made by a handler's log: names are checked, texts are JSON strings. */
static void add_pairs_made(struct buf *line, const char *data)
{
    const char *eq, *end;

    while ((eq = strchr(data, '='))) {
        bool is_quoted = eq[1] == '"';
        const char *value = eq + 1 + is_quoted;

        end = is_quoted ? string_end(value) : value + strcspn(value, " ");
        add_pair(line, (struct slice){data, (size_t)(eq - data)},
                 (struct slice){value, (size_t)(end - value)});
        end += is_quoted && *end;
        data = end + strspn(end, " ");
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
                    const char *component, const char *phrase, const char *fmt,
                    const char *data)
{
    char when[RFC3339_SIZE];

    clock_format(clock_wall_us(), when);
    if (logger.format == LOG_JSON) {
        buf_printf(line,
                   "{\"at\":\"%s\",\"level\":\"%s\",\"process\":\"%s\","
                   "\"component\":\"%s\",\"message\":",
                   when, level_names[level], logger.process, component);
        buf_add_json(line, slice_of(phrase));
        if (strchr(fmt, '='))
            add_pairs_by(line, fmt, data);
        else
            add_pairs_made(line, data);
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
    compose(&line, level, component, phrase, fmt, data);
    /* One write(2), so that lines of several processes do not mix. */
    if (write(STDERR_FILENO, line.ptr, line.len) < 0) {
        /* Nowhere left to say it. */
    }
    buf_fini(&line);
}
