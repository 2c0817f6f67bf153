/* control.h - what to do about a reading: index, band, bytes to give or to take again, when and how to look next.
 * Called by the watcher thread, and by the command's replay; pure arithmetic over its inputs (no system call, no
 * clock): the same readings and demands give the same decisions. Knows nothing of caches but a few numbers. */
#ifndef PSI_CONTROL_H
#define PSI_CONTROL_H

#include "control/tuning.h"
#include "signal/signal.h"

/* The mapping's anchor: a component reads 0.7 exactly where trimming is called for. The user's
 * limits are compared with the index; they do not change the mapping. */
#define PSI_INDEX_ANCHOR 0.7

/* How a reading becomes the index (index.c). Each component goes from 0 to 1; the index is the largest; what
 * is not known takes no part. With the mapping of tuning.h:
 *
 *   index_headroom 0.7 * reserve / headroom                              (1 when headroom is 0)
 *   horizon        reaction + unwritten evictable bytes / write speed, at most 3 s (or the option in its place);
 *                  and at most reaction + 4 * fill_age: what was watched for 5 ms is not foretold for 500
 *   index_forecast 0.7 * (reserve + fill * horizon) / headroom, while headroom shrinks
 *   scarcity       0 while headroom is above 1/4 of the limit, 1 below 1/8, a line between
 *   index_stall    0.7 * max(0, stall_some_share - stall_normal) / stall_at_anchor * scarcity (stall alone if
 *                  headroom is not known); the system's stall counts only while the machine reclaims
 *                  (reclaim_pages_per_s above 0), if that is known
 *   index_thrash   0.7 * max(major faults a second / 200, refaults a second / 1000) * scarcity (0 if headroom is not
 *                  known); at least 0.7 * missing / (reserve / 4) when own mappings are missing and faults are taken
 *
 * Headroom and forecast lead: memory that nothing can reclaim stalls for less than 10 ms in all
 * before the kill. Stall and thrash alone never cost a block while memory is plenty: kswapd, a
 * neighbour, or a kernel that reports a constant 99 % would empty the cache for nothing. `full` has
 * no part of its own, since it never exceeds `some`.
 *
 * Modes, for comparison: psi is 0.7 * stall_some_share / 10 %, whatever the headroom; avg10 is the kernel's avg10,
 * unchanged. Their index stands in index_stall. */
typedef enum psi_mode { PSI_MODE_AUTO, PSI_MODE_PSI, PSI_MODE_AVG10 } psi_mode;

/* Why a trim is asked for.
 * Safety: headroom, forecast or missing mappings above the limit; at once, in each reading, and as much as brings
 *   0.7 * (reserve + fill * horizon) / headroom to the middle between the limits, and what is missing besides.
 * Comfort: stall or thrash; trim_min of the resident bytes at the limit up to trim_max at index 1, one cycle a second
 *   at most (stall and faults are over a second: sooner, no effect shows), and only while it helps (guard.h).
 * Modes psi and avg10 know only comfort, without a guard. */
typedef enum psi_band { PSI_BAND_NONE, PSI_BAND_COMFORT, PSI_BAND_SAFETY } psi_band;

typedef struct psi_control_options {
    psi_mode mode;
    double high, low;          /* trim above, regrow below */
    double trim_min, trim_max; /* shares of the resident bytes a cycle, comfort band */
    uint64_t dwell_us;         /* no regrowing this long after a trim */
    uint64_t horizon_us;       /* 0: from reaction time and store speed, as above */
    uint64_t reserve_bytes;    /* 0: from the limit, tuned */
    bool tune;                 /* false: the mapping's starting values */
    double guard_share;        /* of the cache: most that comfort trims may take in a guard period (0: default 0.5) */
    uint64_t guard_period_us;  /* 0: default 60 s */
} psi_control_options;

/* What the controller knows of what it controls. */
typedef struct psi_demand {
    uint64_t resident_bytes;
    uint64_t evictable_bytes;  /* of those, what could be given now; what is pending included */
    uint64_t unwritten_bytes;  /* of the evictable, what the store has not yet */
    uint64_t returnable_bytes; /* what regrowing would want back */
    uint64_t pending_bytes;    /* asked for earlier, not given yet */
    uint64_t returned_bytes;   /* given to the system so far, in all */
} psi_demand;

/* What became of the last action: did the system get the bytes? */
typedef enum psi_effect {
    PSI_EFFECT_NONE,  /* nothing to judge */
    PSI_EFFECT_WAITS, /* not given yet, or too young to judge */
    PSI_EFFECT_GOOD,
    PSI_EFFECT_EATEN, /* given, but headroom did not grow: somebody took it at once */
    PSI_EFFECT_FUTILE /* given, but the stall went on as before: not of our making, comfort trims pause */
} psi_effect;

typedef struct psi_decision {
    double index, index_stall, index_headroom, index_forecast, index_thrash;
    psi_band band;
    uint64_t trim_bytes;    /* give back this many more now; 0: none */
    uint64_t drop_bytes;    /* so many may go unwritten: they are needed before the engine can be asked again */
    uint64_t restore_bytes; /* may take this many again; 0: none */
    bool urgent;            /* no time to go in steps: exhaustion within the horizon */
    bool refuse;            /* index above high: no new memory once nothing is left to trim */
    bool guarded; /* a comfort trim was due and withheld: budget spent, futile, or pressure without scarcity */
    bool scarce;  /* memory is getting so, and there is time: whoever can should write ahead of need */
    bool clean;   /* and there are blocks to be written */
    psi_effect effect;
    uint64_t ceiling_bytes; /* resident bytes above which regrowing does not go for now; UINT64_MAX: none */
    uint64_t sleep_us;      /* until the next reading (look.c) */
    uint32_t look;          /* PSI_LOOK_* for the next reading */
    bool arm;               /* far from every limit: sleep on triggers, do not read stall meanwhile */
} psi_decision;

typedef struct psi_control {
    psi_control_options options;
    psi_tuning tuning;
    psi_mapping mapping; /* of the last decision */
    uint64_t last_trim_us, last_restore_us;
    bool trimmed_before, restored_before;
    uint64_t seen_us, seen_fill_age_us, seen_headroom_bytes; /* of the last reading */
    uint64_t counters_us;                                    /* when COUNTERS were asked for last */
    struct {                                                 /* guard.c: the trim being judged */
        bool open, given, by_thrash;
        psi_band band;
        uint64_t at_us, given_us, bytes, given_bytes, returned_before;
        bool knows_left;
        double left_before, filled_bytes; /* headroom less missing; what others took since */
        double before;                    /* stall share, or thrash score */
    } action;
    struct { /* guard.c: what comfort trims may take */
        uint64_t period_begin_us, given_bytes;
        uint64_t futile_until_us, pause_us;
        uint32_t futile_in_row;
    } guard;
    struct { /* regrow.c: the present or last row of restore steps, and the ceiling after one that failed */
        bool regrowing, knows_left;
        uint64_t began_bytes, given_bytes, stopped_until_us;
        double began_left, share; /* headroom less missing; of the next step */
        uint64_t ceiling_bytes, ceiling_until_us, wait_us;
        uint64_t limit_bytes[PSI_BOUND_V1 + 1]; /* of each kind, the largest of the failures in a row, or told since */
    } regrow;
} psi_control;

void psi_control_init(psi_control *control, const psi_control_options *options);
/* Says that a trim was made that the controller did not ask for: its dwell time begins. */
void psi_control_note_trim(psi_control *control, uint64_t at_us);
void psi_control_set_limits(psi_control *control, double high, double low);
void psi_control_decide(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                        psi_decision *decision);

/* index.c: fills the index and its components. */
void psi_index_map(const psi_control_options *options, const psi_mapping *mapping, double stall_normal_share,
                   const psi_reading *reading, const psi_demand *demand, psi_decision *decision);
/* Bytes that the forecast expects to be used within its horizon; 0 while headroom grows. */
double psi_index_expected_bytes(const psi_control_options *options, const psi_mapping *mapping,
                                const psi_reading *reading, const psi_demand *demand);
double psi_index_scarcity(const psi_reading *reading);   /* 1 when headroom is not known */
bool psi_index_stall_counts(const psi_reading *reading); /* own, or the machine reclaims, or that is not known */
/* index_stall before scarcity, and wherever it comes from. */
double psi_index_stall_anywhere(const psi_mapping *mapping, double stall_normal_share, const psi_reading *reading);
double psi_index_thrash_score(const psi_reading *reading);  /* 1 at the anchor, before scarcity; unbounded */
bool psi_index_misses_mappings(const psi_reading *reading); /* and takes faults for them */

/* Text for logs and status: "headroom", "forecast", "stall", "thrash": the largest component; "none" at index 0. */
const char *psi_decision_reason(const psi_decision *decision);

#endif
