#include "worker/zone.h"

#include "base/err.h"
#include "base/mem.h"
#include "worker/bundle.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A rule of the footer: when summer time starts or ends, in years after the
 * last transition of the table. Mm.w.d, Jn or n, and seconds of the day. */
struct rule {
    char kind; /* 'M', 'J' or 'N' */
    int month, week, day;
    int32_t at;
};

struct zone {
    struct zone *next;
    char *name;
    int64_t *times; /* of transitions */
    uint8_t *kinds; /* type after each */
    int n_times, n_kinds;
    int32_t *offsets; /* by type */
    bool has_footer, has_summer;
    int32_t winter, summer; /* offsets of the footer */
    struct rule start, end;
};

/* Of the worker's one Lua thread. Names come from events, so only those that
 * there are stay: made-up ones would fill the memory. */
static struct zone *zones;

int64_t days_from_date(int64_t year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t yoe = y - era * 400;
    int64_t doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;

    return era * 146097 + doe - 719468;
}

void date_from_days(int64_t days, int64_t *year, int *month, int *day)
{
    int64_t z = days + 719468;
    int64_t era = (z >= 0 ? z : z - 146096) / 146097;
    int64_t doe = z - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    int64_t mp = (5 * doy + 2) / 153;

    *day = (int)(doy - (153 * mp + 2) / 5 + 1);
    *month = (int)(mp < 10 ? mp + 3 : mp - 9);
    *year = yoe + era * 400 + (*month <= 2);
}

/* --- the footer: "EST5EDT,M3.2.0,M11.1.0" ---------------------------------------- */

static bool read_name(const char **at)
{
    const char *p = *at;

    if (*p == '<') {
        p = strchr(p, '>');
        if (!p)
            return false;
        *at = p + 1;
        return true;
    }
    while (isalpha((unsigned char)*p))
        p++;
    if (p == *at)
        return false;
    *at = p;
    return true;
}

/* [+-]h[:mm[:ss]] in seconds */
static bool read_time(const char **at, int32_t *seconds)
{
    int sign = 1, unit = 3600, total = 0;
    char *end;

    if (**at == '-' || **at == '+')
        sign = *(*at)++ == '-' ? -1 : 1;
    if (!isdigit((unsigned char)**at))
        return false;
    for (; unit; unit /= 60) {
        total += (int)strtol(*at, &end, 10) * unit;
        *at = end;
        if (**at != ':' || !isdigit((unsigned char)(*at)[1]))
            break;
        (*at)++;
    }
    *seconds = sign * total;
    return true;
}

static bool read_rule(const char **at, struct rule *rule)
{
    int n = 0;

    rule->at = 7200;
    if (**at != ',')
        return false;
    (*at)++;
    if (sscanf(*at, "M%d.%d.%d%n", &rule->month, &rule->week, &rule->day, &n) ==
        3) {
        rule->kind = 'M';
    } else if (sscanf(*at, "J%d%n", &rule->day, &n) == 1) {
        rule->kind = 'J';
    } else if (sscanf(*at, "%d%n", &rule->day, &n) == 1) {
        rule->kind = 'N';
    } else {
        return false;
    }
    *at += n;
    if (**at == '/') {
        (*at)++;
        return read_time(at, &rule->at);
    }
    return true;
}

static void read_footer(struct zone *z, const char *at)
{
    int32_t west;

    if (!read_name(&at) || !read_time(&at, &west))
        return;
    z->winter = -west;
    z->has_footer = true;
    if (!read_name(&at))
        return;
    z->summer = z->winter + 3600;
    if (*at != ',') {
        if (!read_time(&at, &west))
            return;
        z->summer = -west;
    }
    z->has_summer = read_rule(&at, &z->start) && read_rule(&at, &z->end);
}

static bool is_leap(int64_t year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

/* Local seconds since 1970 at which the rule takes effect in `year`. */
static int64_t rule_time(const struct rule *r, int64_t year)
{
    static const int days_in[] = {31, 28, 31, 30, 31, 30,
                                  31, 31, 30, 31, 30, 31};
    int64_t first, days;
    int wday, in_month;

    if (r->kind != 'M') {
        days = days_from_date(year, 1, 1) + r->day;
        if (r->kind == 'J' && !(is_leap(year) && r->day >= 60))
            days--;
        return days * 86400 + r->at;
    }
    first = days_from_date(year, r->month, 1);
    wday = (int)(((first + 4) % 7 + 7) % 7); /* 0 is Sunday */
    days = (r->day - wday + 7) % 7 + (r->week - 1) * 7;
    in_month = days_in[r->month - 1] + (r->month == 2 && is_leap(year));
    if (days >= in_month)
        days -= 7;
    return (first + days) * 86400 + r->at;
}

static int32_t footer_offset(const struct zone *z, int64_t now)
{
    int64_t year, start, end;
    int month, day;

    if (!z->has_summer)
        return z->winter;
    date_from_days((now + z->winter) / 86400, &year, &month, &day);
    start = rule_time(&z->start, year) - z->winter;
    end = rule_time(&z->end, year) - z->summer;
    if (start < end)
        return now >= start && now < end ? z->summer : z->winter;
    return now >= end && now < start ? z->winter : z->summer;
}

/* --- TZif (RFC 8536) ----------------------------------------------------------------- */

static int64_t big_endian(const uint8_t *at, int n)
{
    uint64_t v = (int8_t)at[0] < 0 ? UINT64_MAX : 0;

    for (int i = 0; i < n; i++)
        v = v << 8 | at[i];
    return (int64_t)v;
}

struct counts {
    int64_t isut, isstd, leap, time, type, chars;
};

static void read_counts(const uint8_t *head, struct counts *c)
{
    int64_t *fields[] = {&c->isut, &c->isstd, &c->leap,
                         &c->time, &c->type,  &c->chars};

    for (int i = 0; i < 6; i++)
        *fields[i] = big_endian(head + 20 + i * 4, 4);
}

static int64_t block_size(const struct counts *c, int time_size)
{
    return c->time * time_size + c->time + c->type * 6 + c->chars +
           c->leap * (time_size + 4) + c->isstd + c->isut;
}

static bool counts_fit(const struct counts *c, int64_t left)
{
    return c->time >= 0 && c->time < 100000 && c->type > 0 && c->type < 256 &&
           c->chars >= 0 && c->chars < 100000 && c->leap >= 0 &&
           c->leap < 100000 && c->isstd >= 0 && c->isut >= 0 &&
           c->isstd < 256 && c->isut < 256 && block_size(c, 8) <= left;
}

/* The 64-bit block; `data` ends with a NUL. */
static bool read_block(struct zone *z, const uint8_t *at,
                       const struct counts *c)
{
    const uint8_t *kinds = at + c->time * 8, *types = kinds + c->time;

    z->n_times = (int)c->time;
    z->n_kinds = (int)c->type;
    z->times = xcalloc((size_t)c->time + 1, sizeof(*z->times));
    z->kinds = xcalloc((size_t)c->time + 1, 1);
    z->offsets = xcalloc((size_t)c->type, sizeof(*z->offsets));
    for (int i = 0; i < z->n_times; i++) {
        z->times[i] = big_endian(at + i * 8, 8);
        z->kinds[i] = kinds[i];
        if (kinds[i] >= c->type)
            return false;
    }
    for (int i = 0; i < z->n_kinds; i++)
        z->offsets[i] = (int32_t)big_endian(types + i * 6, 4);
    return true;
}

static bool parse(struct zone *z, const uint8_t *data, int64_t len)
{
    struct counts c;
    int64_t at;

    if (len < 44 || memcmp(data, "TZif", 4) != 0 || data[4] < '2')
        return false;
    read_counts(data, &c);
    if (!counts_fit(&c, len * 2))
        return false;
    at = 44 + block_size(&c, 4);
    if (len - at < 44 || memcmp(data + at, "TZif", 4) != 0)
        return false;
    read_counts(data + at, &c);
    at += 44;
    if (!counts_fit(&c, len - at) || !read_block(z, data + at, &c))
        return false;
    at += block_size(&c, 8);
    if (at < len && data[at] == '\n')
        read_footer(z, (const char *)data + at + 1);
    return true;
}

static bool is_zone_name(const char *name)
{
    return *name && *name != '/' && !strstr(name, "..") &&
           !strstr(name, "//") && strlen(name) < 64 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                        "0123456789_+-/") == strlen(name);
}

static void zone_free(struct zone *z)
{
    free(z->name);
    free(z->times);
    free(z->kinds);
    free(z->offsets);
    free(z);
}

static struct zone *load(const char *name)
{
    struct zone *z = xcalloc(1, sizeof(*z));
    bool is_known = false;
    char path[128], *text;
    struct err err;
    size_t len;

    z->name = xstrdup(name);
    snprintf(path, sizeof(path), "/usr/share/zoneinfo/%s", name);
    if (read_whole_file(path, &text, &len, &err)) {
        text = xrealloc(text, len + 1);
        text[len] = '\0';
        is_known = parse(z, (const uint8_t *)text, (int64_t)len);
        free(text);
    }
    if (!is_known) {
        zone_free(z);
        return NULL;
    }
    z->next = zones;
    zones = z;
    return z;
}

static int32_t offset_at(const struct zone *z, int64_t now)
{
    int low = 0, high = z->n_times;

    if (z->n_times == 0 || now >= z->times[z->n_times - 1]) {
        if (z->has_footer)
            return footer_offset(z, now);
        return z->n_times ? z->offsets[z->kinds[z->n_times - 1]]
                          : z->offsets[0];
    }
    while (low < high) { /* the first transition after now */
        int mid = low + (high - low) / 2;

        if (z->times[mid] > now)
            high = mid;
        else
            low = mid + 1;
    }
    return low ? z->offsets[z->kinds[low - 1]] : z->offsets[0];
}

bool zone_offset(const char *name, int64_t unix_seconds, int32_t *offset)
{
    struct zone *z = zones;

    while (z && strcmp(z->name, name) != 0)
        z = z->next;
    if (!z && is_zone_name(name))
        z = load(name);
    if (z)
        *offset = offset_at(z, unix_seconds);
    return z != NULL;
}
