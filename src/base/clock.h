/* The two clocks. The core reads neither: it is handed `now`. */
#ifndef MT_BASE_CLOCK_H
#define MT_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

int64_t clock_mono_us(void); /* for deadlines; never goes back */
int64_t clock_wall_us(void); /* for people; since 1970 */

#define RFC3339_SIZE 32

/* 2026-01-31T12:00:00.000000Z into `text`; returns it. */
char *clock_format(int64_t wall_us, char text[static RFC3339_SIZE]);

/* Microseconds since 1970 of an RFC 3339 time (also with a space for the T
 * and PostgreSQL's short offsets such as +00), or INT64_MIN. */
int64_t clock_parse(const char *text, size_t len);

#endif
