/*
 * Which shards of an outbox this host may read, and which it should take or
 * give up. No I/O and no clock.
 *
 * The table is the truth: a shard has one owner there, until a time by the
 * database's clock, and its epoch rises with each owner. What is held here ends
 * by our own clock, counted from before the statement was sent that renewed it,
 * so it ends before the table's does: whoever finds it free there may be sure
 * that nobody else still acts on it. (Who was frozen acts after its time and
 * does not know it; that is what the epochs are for.)
 *
 * Each host's share is as many shards as there are over as many hosts, the
 * first ones by name one more where that does not come out even. Everybody
 * works it out alike, so what some give up the others lack.
 */
#ifndef MT_CORE_LEASES_H
#define MT_CORE_LEASES_H

#include <stdbool.h>
#include <stdint.h>

#define SHARDS_MAX 64

typedef uint64_t shard_set; /* bit n: shard n */

#define SHARD(n) ((shard_set)1 << (n))

struct lease {
    int64_t epoch;    /* the fencing token */
    int64_t until_us; /* ours until then */
};

struct leases {
    unsigned n;         /* shards there are */
    int64_t lease_us;   /* how long a lease is */
    shard_set held;     /* ours */
    shard_set leaving;  /* of those: being drained, to be given back */
    shard_set clearing; /* not ours any more, but not cleared away yet */
    struct lease at[SHARDS_MAX];
};

/* What the table said. */
struct lease_view {
    unsigned hosts; /* alive, we among them */
    unsigned rank;  /* ours among them by name, from 0 */
    shard_set free; /* without an owner, or its time is over */
};

unsigned shard_count(shard_set set);

/* The statement that was sent then made the shard ours. */
void leases_take(struct leases *l, unsigned shard, int64_t epoch,
                 int64_t sent_us);
/* The statement that was sent then renewed `renewed` of the shards `asked`;
 * gives those that are lost: others have them. */
shard_set leases_renew(struct leases *l, shard_set asked, shard_set renewed,
                       int64_t sent_us);
/* Gives those whose time is over; they are not held any more. */
shard_set leases_expire(struct leases *l, int64_t now_us);
/* When the first one ends; INT64_MAX: none is held. */
int64_t leases_end(const struct leases *l);
/* Another host has it, whatever the time is. */
void leases_lose(struct leases *l, unsigned shard);
/* What was lost, or left, is cleared away: it may be taken again. */
void leases_clear(struct leases *l, unsigned shard);

/* How many of them are ours by right. */
unsigned leases_share(unsigned shards, unsigned hosts, unsigned rank);
/* Worth a statement: free ones that we lack. At most one of the two is not
 * empty. */
shard_set leases_wanted(const struct leases *l, const struct lease_view *view);
/* Above our share: to be drained and given back. */
shard_set leases_excess(const struct leases *l, const struct lease_view *view);

#endif
