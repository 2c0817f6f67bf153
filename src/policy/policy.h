/* policy.h - which blocks go first. One table, one file a policy; nothing here knows of pressure, memory or
 * engines. Called by the pool, under its lock; allocates nothing. */
#ifndef PSI_POLICY_H
#define PSI_POLICY_H

#include <stddef.h>
#include <stdint.h>

/* What a policy may look at. */
typedef struct psi_candidate {
    uint32_t block;
    uint64_t age;  /* running number of the block's last write: the lowest is the oldest */
    uint64_t used; /* number of the last step that read or wrote it */
} psi_candidate;

typedef struct psi_policy {
    const char *name;
    /* Non-zero when `a` shall go before `b`. A strict order: ties are broken by `age`, then `block`. */
    int (*goes_before)(const psi_candidate *a, const psi_candidate *b);
} psi_policy;

extern const psi_policy psi_policy_fifo; /* the oldest first */
extern const psi_policy psi_policy_lru;  /* the longest not used first */

/* By name; NULL: unknown. NULL or "" name: the default, fifo. */
const psi_policy *psi_policy_find(const char *name);

/* Turns candidates into a heap whose top goes first; pop takes the top away (count shrinks by one). A trim
 * takes a few of many, which is why this is not a sort. */
void psi_policy_heapify(const psi_policy *policy, psi_candidate *candidates, size_t count);
psi_candidate psi_policy_pop(const psi_policy *policy, psi_candidate *candidates, size_t *count);

#endif
