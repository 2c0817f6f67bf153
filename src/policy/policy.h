/* policy.h - which blocks go first. One table, one file a policy; nothing here knows of pressure, memory or
 * engines. Called by the pool, under its lock; allocates nothing. */
#ifndef PSI_POLICY_H
#define PSI_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PSI_SCORE_UNKNOWN (-1.0f) /* scores that are known are 0 or more */

/* What a policy may look at. */
typedef struct psi_candidate {
    uint32_t block;
    uint64_t age;    /* running number of the block's last write: the lowest is the oldest */
    uint64_t used;   /* number of the last step that read or wrote it */
    float attention; /* the share of attention that it received lately, or PSI_SCORE_UNKNOWN */
    float keys;      /* how much its keys differ from those around it, or PSI_SCORE_UNKNOWN */
    double worth;    /* the policy's word: the lowest goes first */
} psi_candidate;

typedef struct psi_policy {
    const char *name;
    /* Sets every candidate's worth; may put them into another order. They are looked at together, because what is much
     * for one context is little for another. */
    void (*rate)(psi_candidate *candidates, size_t count);
    bool by_attention, by_keys; /* what it looks at, so that nothing else need be measured */
} psi_policy;

extern const psi_policy psi_policy_fifo;      /* the oldest first */
extern const psi_policy psi_policy_lru;       /* the longest not used first */
extern const psi_policy psi_policy_attention; /* the least attended first */
extern const psi_policy psi_policy_keys;      /* whose keys differ least first */
extern const psi_policy psi_policy_auto;      /* the last two together, and the newest */

/* By name; NULL: unknown. NULL or "" name: the default, auto. */
const psi_policy *psi_policy_find(const char *name);

/* Non-zero when `a` goes before `b`, both rated: by worth, then age, then block. A strict order. */
int psi_policy_goes_before(const psi_candidate *a, const psi_candidate *b);

/* Turns rated candidates into a heap whose top goes first; pop takes the top away (count shrinks by one). A trim
 * takes a few of many, which is why this is not a sort. */
void psi_policy_heapify(psi_candidate *candidates, size_t count);
psi_candidate psi_policy_pop(psi_candidate *candidates, size_t *count);

#endif
