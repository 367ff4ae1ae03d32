#include "core/lane.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 1024

void lanes_init(struct lanes *l)
{
    l->n_buckets = FIRST_BUCKETS;
    l->len = 0;
    l->buckets = xcalloc(l->n_buckets, sizeof(*l->buckets));
    pool_init(&l->pool, sizeof(struct lane));
}

void lanes_fini(struct lanes *l)
{
    free(l->buckets);
    pool_fini(&l->pool);
}

static void grow(struct lanes *l)
{
    size_t n = 2 * l->n_buckets;
    struct lane **buckets = xcalloc(n, sizeof(*buckets));

    for (size_t i = 0; i < l->n_buckets; i++)
        while (l->buckets[i]) {
            struct lane *lane = l->buckets[i];

            l->buckets[i] = lane->next;
            lane->next = buckets[lane->id & (n - 1)];
            buckets[lane->id & (n - 1)] = lane;
        }
    free(l->buckets);
    l->buckets = buckets;
    l->n_buckets = n;
}

static struct lane *add(struct lanes *l, uint64_t id, uint64_t key,
                        struct handler *handler)
{
    struct lane *lane = pool_take(&l->pool);
    size_t at;

    if (l->len >= l->n_buckets)
        grow(l);
    at = id & (l->n_buckets - 1);
    memset(lane, 0, sizeof(*lane));
    lane->id = id;
    lane->key = key;
    lane->handler = handler;
    list_init(&lane->deliveries);
    list_init(&lane->link);
    lane->next = l->buckets[at];
    l->buckets[at] = lane;
    l->len++;
    return lane;
}

struct lane *lanes_get(struct lanes *l, uint64_t id, uint64_t key,
                       struct handler *handler)
{
    struct lane *lane = l->buckets[id & (l->n_buckets - 1)];

    while (lane && (lane->id != id || lane->handler != handler))
        lane = lane->next;
    return lane ? lane : add(l, id, key, handler);
}

void lanes_drop(struct lanes *l, struct lane *lane)
{
    struct lane **at = &l->buckets[lane->id & (l->n_buckets - 1)];

    CHECK(list_is_empty(&lane->deliveries));
    while (*at != lane)
        at = &(*at)->next;
    *at = lane->next;
    list_remove(&lane->link);
    pool_put(&l->pool, lane);
    l->len--;
}
