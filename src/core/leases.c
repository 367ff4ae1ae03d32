#include "core/leases.h"

#include "base/check.h"

unsigned shard_count(shard_set set)
{
    return (unsigned)__builtin_popcountll(set);
}

void leases_take(struct leases *l, unsigned shard, int64_t epoch,
                 int64_t sent_us)
{
    CHECK(shard < l->n && !((l->held | l->clearing) & SHARD(shard)));
    l->held |= SHARD(shard);
    l->at[shard] = (struct lease){epoch, sent_us + l->lease_us};
}

/* The owner is who must clear away what it did with it, before it may have it
 * again. */
void leases_lose(struct leases *l, unsigned shard)
{
    if (!(l->held & SHARD(shard)))
        return;
    l->held &= ~SHARD(shard);
    l->leaving &= ~SHARD(shard);
    l->clearing |= SHARD(shard);
}

void leases_clear(struct leases *l, unsigned shard)
{
    l->held &= ~SHARD(shard);
    l->leaving &= ~SHARD(shard);
    l->clearing &= ~SHARD(shard);
}

shard_set leases_renew(struct leases *l, shard_set asked, shard_set renewed,
                       int64_t sent_us)
{
    shard_set lost = l->held & asked & ~renewed;

    for (unsigned i = 0; i < l->n; i++)
        if (lost & SHARD(i))
            leases_lose(l, i);
        else if (l->held & asked & SHARD(i))
            l->at[i].until_us = sent_us + l->lease_us;
    return lost;
}

shard_set leases_expire(struct leases *l, int64_t now_us)
{
    shard_set over = 0;

    for (unsigned i = 0; i < l->n; i++)
        if (l->held & SHARD(i) && l->at[i].until_us <= now_us) {
            over |= SHARD(i);
            leases_lose(l, i);
        }
    return over;
}

int64_t leases_end(const struct leases *l)
{
    int64_t end = INT64_MAX;

    for (unsigned i = 0; i < l->n; i++)
        if (l->held & SHARD(i) && l->at[i].until_us < end)
            end = l->at[i].until_us;
    return end;
}

unsigned leases_share(unsigned shards, unsigned hosts, unsigned rank)
{
    return shards / hosts + (rank < shards % hosts);
}

/* Each host likes another end of the shards best, so that two that take at the
 * same time seldom want the same ones. */
static unsigned liked(const struct leases *l, const struct lease_view *view,
                      unsigned i)
{
    return (view->rank * l->n / view->hosts + i) % l->n;
}

shard_set leases_wanted(const struct leases *l, const struct lease_view *view)
{
    unsigned share = leases_share(l->n, view->hosts, view->rank);
    unsigned have = shard_count(l->held);
    shard_set wanted = 0;

    for (unsigned i = 0; i < l->n && have < share; i++) {
        shard_set shard = SHARD(liked(l, view, i));

        if (!(view->free & shard) || (l->held | l->clearing) & shard)
            continue;
        wanted |= shard;
        have++;
    }
    return wanted;
}

shard_set leases_excess(const struct leases *l, const struct lease_view *view)
{
    unsigned share = leases_share(l->n, view->hosts, view->rank);
    unsigned stay = shard_count(l->held & ~l->leaving);
    shard_set excess = 0;

    for (unsigned i = l->n; i-- > 0 && stay > share;) {
        shard_set shard = SHARD(liked(l, view, i));

        if (!(l->held & ~l->leaving & shard))
            continue;
        excess |= shard;
        stay--;
    }
    return excess;
}
