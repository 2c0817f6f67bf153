/* lru.c - the block that no step has read for longest first; among equals the oldest. */
#include "policy/policy.h"

static int goes_before(const psi_candidate *a, const psi_candidate *b) {
    if (a->used != b->used) {
        return a->used < b->used;
    }
    return psi_policy_fifo.goes_before(a, b);
}

const psi_policy psi_policy_lru = {"lru", goes_before};
