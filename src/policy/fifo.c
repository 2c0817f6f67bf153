/* fifo.c - the oldest block first. The pool keeps the first (attention sinks) and the newest out of it. */
#include "policy/policy.h"

static int goes_before(const psi_candidate *a, const psi_candidate *b) {
    if (a->age != b->age) {
        return a->age < b->age;
    }
    return a->block < b->block;
}

const psi_policy psi_policy_fifo = {"fifo", goes_before};
