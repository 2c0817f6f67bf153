/* keys.c - the block whose keys differ least from those around it first: nobody needs to have asked for a block to know
 * that it says what its surroundings say (key difference, after KeyDiff, arXiv 2504.15364; docs/policies.md has the
 * formula). */
#include "policy/policy.h"

#include <math.h>

static void rate(psi_candidate *candidates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        candidates[i].worth = candidates[i].keys >= 0 ? (double)candidates[i].keys : HUGE_VAL;
    }
}

const psi_policy psi_policy_keys = {.name = "keys", .rate = rate, .by_keys = true};
