/* simdjson as a bare program would use it: three fields of an envelope. */
#ifndef MT_BENCH_THREE_H
#define MT_BENCH_THREE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct three;

struct three *three_new(void);
void three_free(struct three *t); /* NULL is allowed */
/* How many of eventType, payload.total and payload.currency are there. */
int three_read(struct three *t, const void *json, size_t len);

#ifdef __cplusplus
}
#endif

#endif
