/* control.h - what to do about a reading: index, target bytes, hysteresis. Called by the watcher
 * thread; pure arithmetic over its inputs (no system call, no clock), so it can be replayed. Knows
 * nothing of caches but four numbers. */
#ifndef PSI_CONTROL_H
#define PSI_CONTROL_H

#include "signal/signal.h"

/* The mapping's anchor: a component reads 0.7 exactly where trimming is called for. The user's
 * limits are compared with the index; they do not change the mapping. */
#define PSI_INDEX_ANCHOR 0.7

/* How a reading becomes the index. Each component goes from 0 to 1; the index is the largest; what
 * is not known takes no part.
 *
 *   reserve        the option, or limit / 16, from 16 MiB to 256 MiB: what may be allocated before a
 *                  trim takes effect
 *   index_headroom 0.7 * reserve / headroom
 *   index_forecast 0.7 * (reserve + fill * horizon) / headroom, while headroom shrinks
 *   scarcity       0 while headroom is above 1/4 of the limit, 1 below 1/8, a line between
 *   index_stall    0.7 * stall_some_share / 10 % * scarcity (stall alone if headroom is not known)
 *   index_thrash   0.7 * major faults a second / 200 * scarcity (0 if headroom is not known)
 *
 * Headroom and forecast lead: memory that nothing can reclaim stalls for less than 10 ms in all
 * before the kill. Stall and thrash alone never cost a block while memory is plenty: kswapd, a
 * neighbour, or a kernel that reports a constant 99 % would empty the cache for nothing. `full` has
 * no part of its own, since it never exceeds `some`.
 */

typedef struct psi_control_options {
    double high, low;          /* trim above, regrow below */
    double trim_min, trim_max; /* shares of the resident bytes a cycle */
    uint64_t dwell_us;
    uint64_t horizon_us;
    uint64_t reserve_bytes; /* 0: 1/16 of the limit, 16 MiB to 256 MiB */
} psi_control_options;

/* What the controller knows of what it controls. */
typedef struct psi_demand {
    uint64_t resident_bytes;
    uint64_t evictable_bytes;  /* of those, what could be given now; what is pending included */
    uint64_t returnable_bytes; /* what regrowing would want back */
    uint64_t pending_bytes;    /* asked for earlier, not given yet */
} psi_demand;

typedef struct psi_decision {
    double index, index_stall, index_headroom, index_forecast, index_thrash;
    uint64_t trim_bytes;    /* give back this many more now; 0: none */
    uint64_t restore_bytes; /* may take this many again; 0: none */
    bool urgent;            /* no time to go in steps: exhaustion within the horizon */
    bool refuse;            /* index above high: no new memory once nothing is left to trim */
    uint64_t sleep_us;      /* until the next reading */
} psi_decision;

typedef struct psi_control {
    psi_control_options options;
    uint64_t last_trim_us, last_restore_us;
    bool trimmed_before, restored_before;
} psi_control;

void psi_control_init(psi_control *control, const psi_control_options *options);
/* Says that a trim was made that the controller did not ask for: its dwell time begins. */
void psi_control_note_trim(psi_control *control, uint64_t at_us);
void psi_control_set_limits(psi_control *control, double high, double low);
void psi_control_decide(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                        psi_decision *decision);

#endif
