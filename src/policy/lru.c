/* lru.c - the block that no step has read for longest first; among equals the oldest. */
#include "policy/policy.h"

static void rate(psi_candidate *candidates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        candidates[i].worth = (double)candidates[i].used;
    }
}

const psi_policy psi_policy_lru = {.name = "lru", .rate = rate};
