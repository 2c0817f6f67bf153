/* policy.c - the table of policies, and the heap through which the pool takes victims in their order. */
#include "policy/policy.h"

#include <string.h>

static const psi_policy *const table[] = {&psi_policy_auto, &psi_policy_attention, &psi_policy_keys, &psi_policy_fifo,
                                          &psi_policy_lru};

const psi_policy *psi_policy_find(const char *name) {
    if (name == NULL || name[0] == '\0') {
        return table[0];
    }
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strcmp(table[i]->name, name) == 0) {
            return table[i];
        }
    }
    return NULL;
}

int psi_policy_goes_before(const psi_candidate *a, const psi_candidate *b) {
    if (a->worth < b->worth || a->worth > b->worth) {
        return a->worth < b->worth;
    }
    return a->age != b->age ? a->age < b->age : a->block < b->block;
}

static void sift_down(psi_candidate *heap, size_t count, size_t at) {
    for (;;) {
        size_t first = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++) {
            if (psi_policy_goes_before(&heap[child], &heap[first])) {
                first = child;
            }
        }
        if (first == at) {
            return;
        }
        psi_candidate moved = heap[at];
        heap[at] = heap[first];
        heap[first] = moved;
        at = first;
    }
}

void psi_policy_heapify(psi_candidate *candidates, size_t count) {
    for (size_t i = count / 2; i-- > 0;) {
        sift_down(candidates, count, i);
    }
}

psi_candidate psi_policy_pop(psi_candidate *candidates, size_t *count) {
    psi_candidate top = candidates[0];
    *count -= 1;
    candidates[0] = candidates[*count];
    sift_down(candidates, *count, 0);
    return top;
}
