/* stall.c - stall counters to shares, and whether to believe them. Called by derive.c, on the watcher thread and in
 * replay; pure. Shares come from differences of `total`; avg10, which lags by seconds (a process was killed at
 * avg10 = 0.36 %), is passed on for comparison only. */
#include "signal/derive.h"

/* The kernel's total and our clock are not read at the same instant, so a window may seem to hold a
 * little more stall than time. More than this is a counter that was replaced, not stall. */
#define MOST_SHARE 2.0

/* A constant share: how high, how constant and for how long it must be to be doubted. */
#define CONSTANT_LEAST 0.9
#define CONSTANT_BAND 0.01
#define CONSTANT_US ((uint64_t)5000000)

/* ---- Taking ----------------------------------------------------------------------------------- */

static bool is_above(const psi_rate *rate) { return rate->known && rate->per_us > MOST_SHARE; }

static void take_memory(psi_stall *stall, const psi_sample *sample, psi_raw some, psi_raw full) {
    bool known = sample->known[some] && sample->known[full];
    /* All tasks stalled means some are. Not kept, not even as the begin of a window. */
    stall->contradicts = known && sample->value[full] > sample->value[some];
    if (stall->contradicts) {
        stall->some.known = stall->full.known = false;
        return;
    }
    psi_rate_take(&stall->some, sample->at_us, known, sample->value[some]);
    psi_rate_take(&stall->full, sample->at_us, known, sample->value[full]);
    if (is_above(&stall->some) || is_above(&stall->full)) {
        stall->contradicts = true;
        stall->some.known = stall->full.known = false;
        psi_window_begin(&stall->some.window, sample->at_us, sample->value[some]);
        psi_window_begin(&stall->full.window, sample->at_us, sample->value[full]);
    }
}

static void take_place(psi_stall *stall, const psi_sample *sample, psi_raw some, psi_raw full, psi_raw avg10,
                       psi_raw io) {
    take_memory(stall, sample, some, full);
    psi_rate_take(&stall->io, sample->at_us, sample->known[io], sample->value[io]);
    if (is_above(&stall->io)) {
        stall->io.known = false;
        psi_window_begin(&stall->io.window, sample->at_us, sample->value[io]);
    }
    stall->has_avg10 = sample->known[avg10];
    stall->avg10 = sample->value[avg10];
}

void psi_stall_take(psi_derive *derive, const psi_sample *sample) {
    take_place(&derive->own, sample, PSI_RAW_OWN_MEMORY_SOME_US, PSI_RAW_OWN_MEMORY_FULL_US, PSI_RAW_OWN_MEMORY_AVG10,
               PSI_RAW_OWN_IO_SOME_US);
    take_place(&derive->system, sample, PSI_RAW_SYSTEM_MEMORY_SOME_US, PSI_RAW_SYSTEM_MEMORY_FULL_US,
               PSI_RAW_SYSTEM_MEMORY_AVG10, PSI_RAW_SYSTEM_IO_SOME_US);
    derive->stall_is_own = sample->known[PSI_RAW_OWN_MEMORY_SOME_US] && sample->known[PSI_RAW_OWN_MEMORY_FULL_US];
    derive->stall_at_us = sample->at_us;
}

/* ---- Sense ------------------------------------------------------------------------------------ */

/* What moves when memory is really short: for the system's stall the machine's counters, for the own group's its
 * refaults as well. Anonymous refaults are not counted before Linux 5.9, so these need not be known. */
static const psi_raw calm_raw[] = {PSI_RAW_VM_REFAULT_FILE, PSI_RAW_VM_SCAN_DIRECT,  PSI_RAW_VM_SCAN_KSWAPD,
                                   PSI_RAW_VM_ALLOC_STALLS, PSI_RAW_VM_REFAULT_ANON, PSI_RAW_OWN_REFAULT_FILE,
                                   PSI_RAW_OWN_REFAULT_ANON};
enum { CALM_SYSTEM = 5 };
_Static_assert(sizeof(calm_raw) / sizeof(calm_raw[0]) == PSI_SENSE_COUNTERS, "as many as psi_sense.calm");

static size_t calm_count(bool own) { return own ? PSI_SENSE_COUNTERS : CALM_SYSTEM; }

static bool is_optional(psi_raw raw) { return raw == PSI_RAW_VM_REFAULT_ANON || raw == PSI_RAW_OWN_REFAULT_ANON; }

static bool is_calm(const psi_sense *sense, const psi_sample *sample) {
    for (size_t i = 0; i < calm_count(sense->of_own); i++)
        if (sample->value[calm_raw[i]] != sense->calm[i])
            return false;
    return true;
}

static bool is_all_known(const psi_sample *sample, bool own) {
    for (size_t i = 0; i < calm_count(own); i++)
        if (!sample->known[calm_raw[i]] && !is_optional(calm_raw[i]))
            return false;
    return true;
}

static bool is_plenty(const psi_reading *reading) {
    return (reading->have & PSI_HAVE_HEADROOM) && reading->headroom_bytes > reading->limit_bytes / 4;
}

static void begin_sense(psi_derive *derive, const psi_sample *sample, double share) {
    psi_sense *sense = &derive->sense;
    *sense = (psi_sense){.begun = true, .of_own = derive->stall_is_own, .since_us = sample->at_us, .share = share};
    for (size_t i = 0; i < PSI_SENSE_COUNTERS; i++)
        sense->calm[i] = sample->value[calm_raw[i]];
}

/* A share above 90 % that does not move, with plenty of memory and no reclaim, is a constant and not stall. Judged
 * only where stall and counters were looked at together; between, and while nobody looks, a doubt stays. */
static void judge(psi_derive *derive, const psi_sample *sample, double share, const psi_reading *reading) {
    psi_sense *sense = &derive->sense;
    if (!(sample->look & PSI_LOOK_STALL) || !(sample->look & PSI_LOOK_COUNTERS))
        return;
    double off = share > sense->share ? share - sense->share : sense->share - share;
    bool odd = share > CONSTANT_LEAST && is_plenty(reading) && is_all_known(sample, derive->stall_is_own);
    if (!odd)
        *sense = (psi_sense){.begun = false};
    else if (!sense->begun || sense->of_own != derive->stall_is_own || off > CONSTANT_BAND || !is_calm(sense, sample) ||
             sample->at_us < sense->since_us)
        begin_sense(derive, sample, share);
    else if (sample->at_us - sense->since_us > CONSTANT_US)
        sense->doubted = true;
}

/* ---- Filling ---------------------------------------------------------------------------------- */

static double clamp_share(double share) { return share > 1 ? 1 : share; }

static void fill_beside(const psi_derive *derive, uint64_t now_us, psi_reading *reading) {
    double share = 0;
    if (psi_rate_get(&derive->own.io, now_us, &share) || psi_rate_get(&derive->system.io, now_us, &share)) {
        reading->have |= PSI_HAVE_IO;
        reading->io_some_share = clamp_share(share);
    }
    const psi_stall *stall = derive->own.has_avg10 ? &derive->own : &derive->system;
    if (stall->has_avg10 && now_us >= derive->stall_at_us && now_us - derive->stall_at_us <= PSI_RATE_KEEPS_US) {
        reading->have |= PSI_HAVE_AVG10;
        reading->avg10_share = clamp_share((double)stall->avg10 / 10000);
    }
}

void psi_stall_fill(psi_derive *derive, const psi_sample *sample, psi_reading *reading) {
    double some = 0, full = 0, recent = 0;
    const psi_stall *stall = derive->stall_is_own ? &derive->own : &derive->system;
    fill_beside(derive, sample->at_us, reading);
    reading->stall_is_own = derive->stall_is_own;
    reading->stall_is_doubted = stall->contradicts;
    if (!psi_rate_get(&stall->some, sample->at_us, &some) || !psi_rate_get(&stall->full, sample->at_us, &full))
        return;
    judge(derive, sample, some, reading);
    if (derive->sense.doubted) {
        reading->stall_is_doubted = true;
        return;
    }
    reading->have |= PSI_HAVE_STALL;
    reading->stall_some_share = clamp_share(some);
    reading->stall_full_share = clamp_share(full < some ? full : some);
    if (psi_window_recent(&stall->some.window, PSI_WINDOW_LEAST_US, &recent))
        reading->stall_short_share = clamp_share(recent);
}
