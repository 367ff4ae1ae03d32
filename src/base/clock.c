#include "base/clock.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int64_t read_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64_t clock_mono_us(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

int64_t clock_wall_us(void)
{
    return read_clock(CLOCK_REALTIME);
}

char *clock_format(int64_t wall_us, char text[static RFC3339_SIZE])
{
    int64_t us = wall_us % 1000000;
    time_t sec;
    struct tm tm;

    if (us < 0)
        us += 1000000;
    sec = (time_t)((wall_us - us) / 1000000);
    gmtime_r(&sec, &tm);
    snprintf(text, RFC3339_SIZE, "%04u-%02u-%02uT%02u:%02u:%02u.%06uZ",
             (unsigned)(tm.tm_year + 1900) % 10000,
             (unsigned)tm.tm_mon % 12 + 1, (unsigned)tm.tm_mday % 100,
             (unsigned)tm.tm_hour % 100, (unsigned)tm.tm_min % 100,
             (unsigned)tm.tm_sec % 100, (unsigned)us % 1000000);
    return text;
}

static bool digits(const char **p, int n, int *value)
{
    *value = 0;
    for (int i = 0; i < n; i++, (*p)++) {
        if (**p < '0' || **p > '9')
            return false;
        *value = *value * 10 + (**p - '0');
    }
    return true;
}

static int64_t fraction_us(const char **p)
{
    int64_t us = 0, unit = 100000;

    if (**p != '.')
        return 0;
    for ((*p)++; **p >= '0' && **p <= '9'; (*p)++, unit /= 10)
        us += (**p - '0') * unit;
    return us;
}

/* Z, +hh, +hhmm or +hh:mm as seconds. */
static bool offset_sec(const char **p, int *sec)
{
    int sign = **p == '-' ? -1 : 1, hour, min = 0;

    *sec = 0;
    if (**p == 'Z' || **p == 'z') {
        (*p)++;
        return true;
    }
    if (**p != '+' && **p != '-')
        return false;
    (*p)++;
    if (!digits(p, 2, &hour))
        return false;
    if (**p == ':')
        (*p)++;
    if (**p && !digits(p, 2, &min))
        return false;
    *sec = sign * (hour * 3600 + min * 60);
    return true;
}

int64_t clock_parse(const char *text, size_t len)
{
    char copy[40];
    const char *p = copy;
    struct tm tm = {0};
    int64_t us;
    int year, month, offset;

    if (len >= sizeof(copy))
        return INT64_MIN;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (!digits(&p, 4, &year) || *p++ != '-' || !digits(&p, 2, &month) ||
        *p++ != '-' || !digits(&p, 2, &tm.tm_mday))
        return INT64_MIN;
    if (*p != 'T' && *p != 't' && *p != ' ')
        return INT64_MIN;
    p++;
    if (!digits(&p, 2, &tm.tm_hour) || *p++ != ':' ||
        !digits(&p, 2, &tm.tm_min) || *p++ != ':' || !digits(&p, 2, &tm.tm_sec))
        return INT64_MIN;
    us = fraction_us(&p);
    if (!offset_sec(&p, &offset) || *p || month < 1 || month > 12 ||
        tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 ||
        tm.tm_min > 59 || tm.tm_sec > 60)
        return INT64_MIN;
    tm.tm_year = year - 1900;
    tm.tm_mon = month - 1;
    return ((int64_t)timegm(&tm) - offset) * 1000000 + us;
}
