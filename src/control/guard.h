/* guard.h - did the last trim help, and what may comfort trims still take? Keeps stall that is not of our making, or
 * that somebody induces, from emptying the cache. Safety trims are judged but never held back. control.c's; pure.
 *
 * Budget: comfort trims take at most guard_share of the whole cache (resident and returnable) in a guard period. A
 * period begins with the first comfort trim after the last one ended; so two that follow each other at once may
 * together take twice the share, and never more, in any span of one period. A trim that could not be trim_min any
 * more waits for the next period: less would show no effect. A share below trim_min therefore allows none.
 *
 * Effect: judged once the bytes are given (nothing pending, and half of what was asked has gone to the system; a cache
 * gives whole blocks and shared pages stay). Safety: by the next reading headroom must have grown by half of what was
 * given, less what the fill rate says others took meanwhile. Comfort: a second later the signal that called must have
 * fallen by a fifth. Two futile comfort trims in a row pause them for 10 s, each further one for twice as long, up to 5
 * min; a good one ends that. */
#ifndef PSI_CONTROL_GUARD_H
#define PSI_CONTROL_GUARD_H

#include "control/control.h"

#define PSI_GUARD_SHARE 0.5
#define PSI_GUARD_PERIOD_US ((uint64_t)60000000)
#define PSI_GUARD_EFFECT_US ((uint64_t)1000000) /* stall and faults are over a second */
#define PSI_GUARD_HELPS 0.8                     /* of what the signal was, or less: it helped */
#define PSI_GUARD_PAUSE_US ((uint64_t)10000000)
#define PSI_GUARD_PAUSE_MOST_US ((uint64_t)300000000)

/* Before anything is decided on this reading. */
psi_effect psi_guard_judge(psi_control *control, const psi_reading *reading, const psi_demand *demand);

/* How much of a comfort trim of `bytes` is allowed; 0 when that would be less than `least_bytes`. */
uint64_t psi_guard_allow(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                         uint64_t least_bytes, uint64_t bytes);

/* A trim was asked for: it is to be judged, and a comfort trim counts. */
void psi_guard_asked(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                     const psi_decision *decision);

#endif
