/* fifo.c - the oldest block first. The pool keeps the first (attention sinks) and the newest out of it. */
#include "policy/policy.h"

static void rate(psi_candidate *candidates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        candidates[i].worth = (double)candidates[i].age;
    }
}

const psi_policy psi_policy_fifo = {.name = "fifo", .rate = rate};
