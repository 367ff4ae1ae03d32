#include "sample.h"

#include "base/clock.h"
#include "base/hash.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const types[] = {"order.created", "order.paid",
                                    "order.payment_failed", "order.shipped"};
static const char *const names[] = {"Ann",      "Bartholomew", "Chiara",
                                    "Dmitri",   "Eleanor",     "Fu",
                                    "Giovanna", "Hans-Peter"};
static const char *const currencies[] = {"USD", "EUR", "GBP", "JPY"};
static const char *const words[] = {"leave", "it",     "with", "the", "porter",
                                    "call",  "before", "noon", "or",  "return"};

#define OF(list, n) (list)[(n) % (sizeof(list) / sizeof((list)[0]))]

/* Appends to the value; a sample is made to fit. */
static void add(struct sample *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void add(struct sample *s, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    s->value_len += (size_t)vsnprintf(
        s->value + s->value_len, sizeof(s->value) - s->value_len, fmt, args);
    va_end(args);
}

static void add_items(struct sample *s, uint64_t r)
{
    for (uint64_t i = 0; i <= r % 3; i++)
        add(s,
            "%s{\"sku\":\"%c-%llu\",\"name\":\"%s %s\",\"quantity\":%llu,"
            "\"price\":\"%llu.%02llu\"}",
            i ? "," : "", (char)('A' + (r + i) % 26),
            (unsigned long long)(r >> 8) % 10000, OF(words, r + i),
            OF(words, r / 7 + i), (unsigned long long)(1 + (r >> i) % 9),
            (unsigned long long)(r >> 16) % 200,
            (unsigned long long)(r >> 24) % 100);
}

void sample_make(struct sample *s, uint64_t number, uint64_t keys, size_t size)
{
    static const char tail[] = "\"},\"metadata\":{\"actorId\":\"u-%llu\","
                               "\"correlationId\":\"c-%llu\"}}";
    uint64_t r = hash_mix(number, 20261121), key = hash_mix(number, 7) % keys;
    unsigned long long total = r % 100000;

    snprintf(s->id, sizeof(s->id), "%08x-0000-4000-8000-%012llx",
             (unsigned)(r >> 32), (unsigned long long)number & 0xffffffffffff);
    snprintf(s->key, sizeof(s->key), "o-%llu", (unsigned long long)key);
    snprintf(s->type, sizeof(s->type), "%s", OF(types, r >> 5));
    snprintf(s->occurred_at, sizeof(s->occurred_at),
             "2026-03-%02lluT%02llu:15:%02llu.%06lluZ",
             (unsigned long long)(1 + number / 86400 % 28),
             (unsigned long long)(r >> 9) % 24,
             (unsigned long long)(r >> 14) % 60,
             (unsigned long long)(r >> 20) % 1000000);
    s->value_len = 0;
    add(s,
        "{\"id\":\"%s\",\"eventType\":\"%s\",\"eventVersion\":1,"
        "\"aggregateType\":\"Order\",\"aggregateId\":\"%s\",\"occurredAt\":"
        "\"%s\",\"payload\":{\"number\":\"R-%llu\",\"customer\":{\"name\":"
        "\"%s\",\"email\":\"%s.%llu@example.com\"},\"total\":%llu.%02llu,"
        "\"currency\":\"%s\",\"items\":[",
        s->id, s->type, s->key, s->occurred_at, (unsigned long long)number,
        OF(names, r), OF(names, r), (unsigned long long)key, total / 100,
        total % 100, OF(currencies, r >> 3));
    add_items(s, r);
    add(s, "],\"note\":\"");
    for (uint64_t i = r; s->value_len + sizeof(tail) < size - 16 + r % 32; i++)
        add(s, "%s ", OF(words, i ^ (i >> 4)));
    add(s, tail, (unsigned long long)(r % 997), (unsigned long long)number);
}

void sample_stamp(struct sample *s, int64_t us)
{
    char *at = strstr(s->value, s->occurred_at);

    clock_format(us, s->occurred_at);
    memcpy(at, s->occurred_at, strlen(s->occurred_at)); /* as long as before */
}

const char *sample_payload(const struct sample *s, size_t *len)
{
    const char *start = strstr(s->value, "\"payload\":") + 10;

    *len = (size_t)(strstr(start, ",\"metadata\":") - start);
    return start;
}
