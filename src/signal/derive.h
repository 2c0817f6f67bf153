/* derive.h - samples to readings: windows over counters, headroom against every limit, fill rate, what the own
 * mappings miss. Pure arithmetic over the samples that it is given: no system call, no clock, so a trace that
 * was recorded gives the same readings again. Watcher thread, and the command's replay. */
#ifndef PSI_DERIVE_H
#define PSI_DERIVE_H

#include "signal/rates.h"
#include "signal/signal.h"

/* What was not looked at for a sample keeps its last rate for PSI_RATE_KEEPS_US, and is then not known: while a
 * trigger is armed nobody reads stall, and the first rate after that is the average over the gap. */

/* The stall of one place: the own group, or the system. */
typedef struct psi_stall {
    psi_rate some, full, io;
    bool contradicts; /* at the last look: full above some, or more stall than time */
    uint64_t avg10;   /* hundredths of a per cent */
    bool has_avg10;
} psi_stall;

/* A share that stays high and the same while nothing is reclaimed is not believed (stall.c). */
#define PSI_SENSE_COUNTERS 7
typedef struct psi_sense {
    bool begun, doubted, of_own;
    uint64_t since_us;
    double share;
    uint64_t calm[PSI_SENSE_COUNTERS]; /* the counters that would move if it were true */
} psi_sense;

struct psi_derive {
    psi_stall own, system;
    bool stall_is_own;
    uint64_t stall_at_us; /* of the last look */
    psi_sense sense;
    psi_rate major_faults, refaults, reclaim;
    bool refaults_are_own;
    psi_bound machine, v2[PSI_LEVELS], v1[PSI_LEVELS];
    bool has_amounts;
    uint64_t amounts_at_us; /* of the last look */
    psi_fill fill;
    psi_run run;
    bool alarmed;           /* at the rate of the last reading all is used up in a second */
    int64_t took_bytes;     /* since the last sample (psi_derive_took) */
    uint64_t present_bytes; /* own file mappings, resident and not locked */
    uint64_t hot_bytes;     /* own file mappings that were resident and in use: the most seen, locked ones included (so
                               that locking pages does not look like losing them), decaying only while the process takes
                               few major faults, and never more than is mapped */
    uint64_t missing_bytes; /* of those, what is not resident */
    uint64_t hot_at_us;
    bool has_hot;
};

void psi_derive_init(psi_derive *derive);
void psi_derive_took(psi_derive *derive, int64_t bytes);
void psi_derive_read(psi_derive *derive, const psi_sample *sample, psi_reading *reading);

/* ---- stall.c: the part that is about stall ------------------------------------------------------- */

/* Takes what a sample with PSI_LOOK_STALL says. */
void psi_stall_take(psi_derive *derive, const psi_sample *sample);
/* Fills the stall fields of a reading, whose headroom is filled already. */
void psi_stall_fill(psi_derive *derive, const psi_sample *sample, psi_reading *reading);

#endif
