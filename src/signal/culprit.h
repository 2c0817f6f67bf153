/* culprit.h - who it is: which cgroup stalls most, which one grows most. The kernel tells it in each group's
 * memory.pressure and usage; looked at only around a trim, a bounded number of groups and of microseconds at a
 * time, after the bytes are given. Watcher thread only. */
#ifndef PSI_CULPRIT_H
#define PSI_CULPRIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "signal/signal.h"

#define PSI_CULPRIT_NAME_BYTES 96

typedef struct psi_culprit {
    bool has_grower, has_staller;
    char grower[PSI_CULPRIT_NAME_BYTES]; /* path of the group in its tree, cut from the left: ".../camera.service" */
    int64_t grew_bytes_per_s;
    bool grower_is_own; /* the own group, or one that holds it */
    char staller[PSI_CULPRIT_NAME_BYTES];
    double stall_share;
    bool staller_is_own;
} psi_culprit;

typedef struct psi_culprits psi_culprits;

/* Walks below `root`'s cgroup mounts (v2 and v1 memory). NULL when memory is short. */
psi_culprits *psi_culprits_open(const char *root);
void psi_culprits_close(psi_culprits *culprits);

/* One look at all groups (at most 128, 3 levels deep). Two looks, 100 ms or more apart, make an answer. */
void psi_culprits_look(psi_culprits *culprits, uint64_t now_us);

/* How long one look may take, 10 ms if nothing is said; groups that it does not reach are named by neither this look
 * nor the next. For who is in no hurry (the command), or must not depend on the clock (tests). */
void psi_culprits_set_budget(psi_culprits *culprits, uint64_t budget_us);

/* What the last two looks say; all false when they say nothing. */
void psi_culprits_name(const psi_culprits *culprits, psi_culprit *culprit);

#endif
