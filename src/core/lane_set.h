/*
 * A set of lanes by their ids: 8 bytes a lane and a quarter of that to spare,
 * since a million lanes may have something parked. {0} is the empty set.
 */
#ifndef MT_CORE_LANE_SET_H
#define MT_CORE_LANE_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lane_set {
    uint64_t *at; /* open addressing; 0: free */
    size_t len, cap;
    bool has_zero; /* the one id that marks a free place */
};

void lane_set_fini(struct lane_set *s);
void lane_set_add(struct lane_set *s, uint64_t lane);
void lane_set_remove(struct lane_set *s, uint64_t lane);
bool lane_set_has(const struct lane_set *s, uint64_t lane);

#endif
