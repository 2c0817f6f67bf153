/* regrow.h - relief at once, probing slowly: how much may be taken again, and how high. control.c's; pure.
 *
 * Steps of 1, 2, 4 and then 5 % of the whole cache (always 1 % while memory is scarce, where stall may begin at any of
 * them), one in 100 ms at most, no sooner than the dwell time after a trim, as far as headroom and forecast stay below
 * the lower limit. None for a second, and then from 1 % again, at the first stall
 * (2 % above the normal level over the last 100 ms or so), when headroom is smaller than our own steps and half a
 * reserve (or a thirty-second of what is left) explain, or while others fill more than half a reserve a second and what
 * is left does not last for 20 s of that.
 *
 * A regrow has failed when a trim is called for within 5 s of its last step. The ceiling is then where it began: that
 * much has lived through the pressure, while of anything above we only know that it did not (a level just below the
 * failed one would be tried, and fail, once in each period of a wave). It holds for 10 s, twice as long after each
 * further failure, up to 10 min; a minute without any trim after the last step forgets the row, and so does a limit
 * that was made larger since. */
#ifndef PSI_CONTROL_REGROW_H
#define PSI_CONTROL_REGROW_H

#include "control/control.h"

#define PSI_REGROW_EVERY_US ((uint64_t)100000)
#define PSI_REGROW_FIRST_SHARE 0.01 /* a step must not be the one that calls the next trim */
#define PSI_REGROW_SHARE 0.05       /* half the cache in a second at most */
#define PSI_REGROW_STALL 0.02
#define PSI_REGROW_STOP_US ((uint64_t)1000000)
#define PSI_REGROW_FAILED_US ((uint64_t)5000000)
#define PSI_REGROW_WAIT_US ((uint64_t)10000000)
#define PSI_REGROW_WAIT_MOST_US ((uint64_t)600000000)
#define PSI_REGROW_HELD_US ((uint64_t)60000000)

/* The step that may be taken now; 0: none. The index is below the lower limit. */
uint64_t psi_regrow_step(psi_control *control, const psi_reading *reading, const psi_demand *demand);

/* A trim is called for. */
void psi_regrow_trimmed(psi_control *control, const psi_reading *reading);

/* Resident bytes above which no step goes now; UINT64_MAX: none. In each reading, before the others. */
uint64_t psi_regrow_ceiling(psi_control *control, const psi_reading *reading);

#endif
