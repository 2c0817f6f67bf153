/* attention.c - the block that received the least attention lately first. One that no sampled step has seen is newer
 * than the scores, and stays. */
#include "policy/policy.h"

#include <math.h>

static void rate(psi_candidate *candidates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        candidates[i].worth = candidates[i].attention >= 0 ? (double)candidates[i].attention : HUGE_VAL;
    }
}

const psi_policy psi_policy_attention = {.name = "attention", .rate = rate, .by_attention = true};
