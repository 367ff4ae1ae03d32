/*
 * Time zones from the TZif files of /usr/share/zoneinfo, read once and kept.
 * The C library's zones belong to the whole process; these do not.
 */
#ifndef MT_WORKER_ZONE_H
#define MT_WORKER_ZONE_H

#include <stdbool.h>
#include <stdint.h>

/* Seconds east of UTC at a moment. False when there is no such zone. */
bool zone_offset(const char *name, int64_t unix_seconds, int32_t *offset);

/* Days since 1970 ↔ date of the Gregorian calendar. */
int64_t days_from_date(int64_t year, int month, int day);
void date_from_days(int64_t days, int64_t *year, int *month, int *day);

#endif
