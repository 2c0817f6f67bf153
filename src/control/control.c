/* control.c - what to do about a reading: index, bytes to give back or to take again, time to sleep.
 * Called by the watcher thread after each psi_signal_read. Pure arithmetic: the same readings and
 * demands give the same decisions, so a recorded trace can be replayed. The mapping is in control.h. */
#include "control/control.h"

#define MIB ((uint64_t)1 << 20)

#define RESERVE_LIMIT_PARTS 16   /* a limit is tight when a sixteenth is left, */
#define RESERVE_LEAST (16 * MIB) /* but allocators and page cache take megabytes at a time, */
#define RESERVE_MOST (256 * MIB) /* and half a second of 500 MiB/s is enough on any machine */

#define STALL_SHARE_AT_ANCHOR 0.10   /* Android lmkd and systemd act at 7 to 10 % */
#define FAULTS_PER_S_AT_ANCHOR 200.0 /* a token then waits for the disk more than it computes */

#define STALL_EFFECT_US ((uint64_t)1000000) /* stall and faults are over a second: sooner, no effect shows */
#define RESTORE_EVERY_US ((uint64_t)100000) /* relief at once, probing slowly: */
#define RESTORE_SHARE 0.05                  /* half the cache in a second at most */

/* The worst rate that is likely: a quick allocator on one memory channel, or 4 times what is seen. */
#define WORST_BYTES_PER_S 4294967296.0
#define SLEEP_LEAST_US ((uint64_t)2000)
#define SLEEP_ABOVE_US ((uint64_t)10000)  /* above the limit: to see the effect, and ask for more */
#define SLEEP_STALL_US ((uint64_t)100000) /* only stall is known: a tenth of its window */
#define SLEEP_MOST_US ((uint64_t)500000)
#define SLEEP_BLIND_US ((uint64_t)1000000)

void psi_control_init(psi_control *control, const psi_control_options *options) {
    *control = (psi_control){.options = *options};
}

void psi_control_set_limits(psi_control *control, double high, double low) {
    control->options.high = high;
    control->options.low = low;
}

void psi_control_note_trim(psi_control *control, uint64_t at_us) {
    control->last_trim_us = at_us;
    control->trimmed_before = true;
}

/* ---- Reading to index ------------------------------------------------------------------------- */

static bool has(const psi_reading *reading, uint32_t what) { return (reading->have & what) == what; }

/* To 0..1; what is not a number counts as nothing. */
static double clamp_index(double index) { return index > 1 ? 1 : index > 0 ? index : 0; }

/* Never more than 2^63, so that sums of a few stay exact enough and no cast overflows. */
static uint64_t to_bytes(double bytes) {
    const double end = 9223372036854775808.0;
    return bytes >= end ? (uint64_t)1 << 63 : bytes > 0 ? (uint64_t)bytes : 0;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t reserve_bytes(const psi_control *control, const psi_reading *reading) {
    uint64_t reserve = reading->limit_bytes / RESERVE_LIMIT_PARTS;
    if (control->options.reserve_bytes != 0)
        return control->options.reserve_bytes;
    return reserve < RESERVE_LEAST ? RESERVE_LEAST : least(reserve, RESERVE_MOST);
}

/* What the forecast expects to be used within the horizon; 0 while headroom grows. */
static double expected_bytes(const psi_control *control, const psi_reading *reading) {
    if (!has(reading, PSI_HAVE_HEADROOM | PSI_HAVE_FILL) || reading->fill_bytes_per_s <= 0)
        return 0;
    return (double)reading->fill_bytes_per_s * ((double)control->options.horizon_us / 1e6);
}

static double anchored(double value, double at_anchor) { return clamp_index(PSI_INDEX_ANCHOR * value / at_anchor); }

static double index_of(double wanted_bytes, uint64_t headroom_bytes) {
    return headroom_bytes == 0 ? 1 : anchored(wanted_bytes, (double)headroom_bytes);
}

static double scarcity(const psi_reading *reading) {
    if (reading->limit_bytes == 0)
        return 1;
    double left = (double)reading->headroom_bytes / (double)reading->limit_bytes;
    return clamp_index((1.0 / 4 - left) / (1.0 / 4 - 1.0 / 8));
}

static void map_index(const psi_control *control, const psi_reading *reading, psi_decision *decision) {
    double scarce = 1;
    if (has(reading, PSI_HAVE_HEADROOM)) {
        double reserve = (double)reserve_bytes(control, reading);
        double expected = expected_bytes(control, reading);
        scarce = scarcity(reading);
        decision->index_headroom = index_of(reserve, reading->headroom_bytes);
        decision->index_forecast = expected > 0 ? index_of(reserve + expected, reading->headroom_bytes) : 0;
        if (has(reading, PSI_HAVE_FAULTS))
            decision->index_thrash = scarce * anchored(reading->major_faults_per_s, FAULTS_PER_S_AT_ANCHOR);
    }
    if (has(reading, PSI_HAVE_STALL))
        decision->index_stall = scarce * anchored(reading->stall_some_share, STALL_SHARE_AT_ANCHOR);
    decision->index = decision->index_headroom;
    if (decision->index_forecast > decision->index)
        decision->index = decision->index_forecast;
    if (decision->index_stall > decision->index)
        decision->index = decision->index_stall;
    if (decision->index_thrash > decision->index)
        decision->index = decision->index_thrash;
}

/* ---- Index above the limit: how much to give back ---------------------------------------------- */

/* No headroom, or none left within the horizon at this rate. */
static bool is_urgent(const psi_control *control, const psi_reading *reading) {
    if (!has(reading, PSI_HAVE_HEADROOM))
        return false;
    return reading->headroom_bytes == 0 || expected_bytes(control, reading) >= (double)reading->headroom_bytes;
}

/* Bytes that bring headroom and forecast to the middle between the limits: far enough below the
 * upper one that the next megabyte does not call again, and above the lower one, so that what was
 * given is not taken back at once. */
static uint64_t needed_bytes(const psi_control *control, const psi_reading *reading) {
    double middle = (control->options.high + control->options.low) / 2;
    double wanted = (double)reserve_bytes(control, reading) + expected_bytes(control, reading);
    return to_bytes(PSI_INDEX_ANCHOR * wanted / middle - (double)reading->headroom_bytes);
}

static uint64_t in_steps(const psi_control *control, const psi_demand *demand, uint64_t bytes) {
    uint64_t step_least = to_bytes(control->options.trim_min * (double)demand->resident_bytes);
    uint64_t step_most = to_bytes(control->options.trim_max * (double)demand->resident_bytes);
    return bytes < step_least ? step_least : least(bytes, step_most);
}

/* Stall and faults are measured over a second; they can show nothing of a younger trim. */
static bool waits_for_effect(const psi_control *control, const psi_reading *reading) {
    return control->trimmed_before && reading->at_us - control->last_trim_us < STALL_EFFECT_US;
}

/* What should be outstanding in all: the steps bound a whole cycle, from the asking to the giving,
 * however many readings fall into it. */
static uint64_t outstanding_bytes(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                                  const psi_decision *decision) {
    double high = control->options.high;
    bool by_headroom = decision->index_headroom > high || decision->index_forecast > high;
    if (decision->urgent)
        return needed_bytes(control, reading);
    if (by_headroom)
        return in_steps(control, demand, needed_bytes(control, reading));
    return waits_for_effect(control, reading) ? 0 : in_steps(control, demand, 0);
}

static void decide_trim(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                        psi_decision *decision) {
    decision->refuse = true;
    decision->urgent = is_urgent(control, reading);
    uint64_t bytes = least(outstanding_bytes(control, reading, demand, decision), demand->evictable_bytes);
    if (bytes <= demand->pending_bytes)
        return;
    decision->trim_bytes = bytes - demand->pending_bytes;
    control->trimmed_before = true;
    control->last_trim_us = reading->at_us;
}

/* ---- Index below the lower limit: how much to take again --------------------------------------- */

/* What keeps the headroom index below the lower limit afterwards: no regrowing into the next trim. */
static uint64_t room_to_restore(const psi_control *control, const psi_reading *reading) {
    if (!has(reading, PSI_HAVE_HEADROOM))
        return UINT64_MAX;
    double keep = PSI_INDEX_ANCHOR * (double)reserve_bytes(control, reading) / control->options.low;
    return to_bytes((double)reading->headroom_bytes - keep - 1);
}

static void decide_restore(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                           psi_decision *decision) {
    if (control->trimmed_before && reading->at_us - control->last_trim_us < control->options.dwell_us)
        return;
    if (control->restored_before && reading->at_us - control->last_restore_us < RESTORE_EVERY_US)
        return;
    uint64_t step = to_bytes(RESTORE_SHARE * ((double)demand->resident_bytes + (double)demand->returnable_bytes));
    decision->restore_bytes = least(least(step, demand->returnable_bytes), room_to_restore(control, reading));
    if (decision->restore_bytes == 0)
        return;
    control->restored_before = true;
    control->last_restore_us = reading->at_us;
}

/* ---- When to look again ------------------------------------------------------------------------ */

/* Not later than memory could be used up at the worst likely rate, as earlyoom does. */
static uint64_t sleep_us(const psi_reading *reading, const psi_decision *decision) {
    double rate = WORST_BYTES_PER_S;
    if (!has(reading, PSI_HAVE_HEADROOM))
        return !has(reading, PSI_HAVE_STALL) ? SLEEP_BLIND_US : decision->refuse ? SLEEP_ABOVE_US : SLEEP_STALL_US;
    if (has(reading, PSI_HAVE_FILL) && 4.0 * (double)reading->fill_bytes_per_s > rate)
        rate = 4.0 * (double)reading->fill_bytes_per_s;
    uint64_t us = to_bytes((double)reading->headroom_bytes * 1e6 / rate);
    us = least(us, decision->refuse ? SLEEP_ABOVE_US : SLEEP_MOST_US);
    return us < SLEEP_LEAST_US ? SLEEP_LEAST_US : us;
}

void psi_control_decide(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                        psi_decision *decision) {
    *decision = (psi_decision){.index = 0};
    map_index(control, reading, decision);
    if (decision->index > control->options.high)
        decide_trim(control, reading, demand, decision);
    else if (decision->index < control->options.low && (reading->have & (PSI_HAVE_HEADROOM | PSI_HAVE_STALL)) != 0)
        decide_restore(control, reading, demand, decision);
    decision->sleep_us = sleep_us(reading, decision);
}
