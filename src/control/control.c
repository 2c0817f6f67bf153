/* control.c - what to do about a reading: band, bytes to give back or to take again. Called by the watcher thread after
 * each psi_signal_read; index.c maps, guard.c judges and limits, regrow.c takes again, look.c plans the sleep. Pure: a
 * recorded trace gives the same decisions. */
#include "control/control.h"

#include <string.h>

#include "control/guard.h"
#include "control/look.h"
#include "control/numbers.h"
#include "control/regrow.h"

#define CLEAN_ABOVE 0.1              /* of index_headroom: headroom below 7 reserves, some time before it matters */
#define CALM_US ((uint64_t)10000000) /* after a trim or a regrow: its stall is not the normal one */

void psi_control_init(psi_control *control, const psi_control_options *options) {
    memset(control, 0, sizeof(*control)); /* padding too: equal controls and decisions are equal bytes */
    control->options = *options;
}

void psi_control_set_limits(psi_control *control, double high, double low) {
    control->options.high = high;
    control->options.low = low;
}

void psi_control_note_trim(psi_control *control, uint64_t at_us) {
    control->last_trim_us = at_us;
    control->trimmed_before = true;
}

/* What was to last until an instant that the clock went back before begins anew: late, but not for ever. */
static void keep_times_sane(psi_control *control, uint64_t at_us) {
    if (at_us >= control->seen_us)
        return;
    uint64_t back_us = control->seen_us - at_us;
    control->last_trim_us = psi_least(control->last_trim_us, at_us);
    control->last_restore_us = psi_least(control->last_restore_us, at_us);
    control->counters_us = psi_least(control->counters_us, at_us);
    control->action.at_us = psi_least(control->action.at_us, at_us);
    control->action.given_us = psi_least(control->action.given_us, at_us);
    control->guard.period_begin_us = psi_least(control->guard.period_begin_us, at_us);
    control->guard.futile_until_us = psi_since(control->guard.futile_until_us, back_us);
    control->regrow.stopped_until_us = psi_since(control->regrow.stopped_until_us, back_us);
    control->regrow.ceiling_until_us = psi_since(control->regrow.ceiling_until_us, back_us);
}

static double normal_share(const psi_control *control) {
    return control->options.tune ? control->tuning.stall_normal_share : 0;
}

static double expected_bytes(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    return psi_index_expected_bytes(&control->options, &control->mapping, reading, demand);
}

/* ---- Band ------------------------------------------------------------------------------------- */

static psi_band band_of(const psi_control *control, const psi_reading *reading, const psi_decision *decision) {
    double high = control->options.high;
    if (decision->index_headroom > high || decision->index_forecast > high)
        return PSI_BAND_SAFETY;
    if (control->options.mode == PSI_MODE_AUTO && decision->index_thrash > high && psi_index_misses_mappings(reading))
        return PSI_BAND_SAFETY; /* the bytes are known */
    return decision->index > high ? PSI_BAND_COMFORT : PSI_BAND_NONE;
}

/* No headroom, or none left within the horizon at this rate. */
static bool is_urgent(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    return psi_has(reading, PSI_HAVE_HEADROOM) &&
           (reading->headroom_bytes == 0 ||
            expected_bytes(control, reading, demand) >= (double)reading->headroom_bytes);
}

/* ---- How much to give back -------------------------------------------------------------------- */

/* Bytes that bring headroom and forecast to the middle between the limits: far enough below the upper one that the next
 * megabyte does not call again, and above the lower one, so that what was given is not taken back at once. */
static uint64_t safety_bytes(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    double middle = (control->options.high + control->options.low) / 2;
    double wanted = (double)control->mapping.reserve_bytes + expected_bytes(control, reading, demand);
    return psi_to_whole(PSI_INDEX_ANCHOR * wanted / middle - psi_left_bytes(reading));
}

/* Two readings saw the spike: one jump, however large, may be all there is. */
static bool goes_on(const psi_control *control, const psi_reading *reading) {
    return control->seen_fill_age_us > 0 && reading->fill_age_us > control->seen_fill_age_us &&
           reading->headroom_bytes < control->seen_headroom_bytes;
}

/* What must go at the coming safe point, written or not: at this rate the limit is reached before there is another one,
 * and the store is behind. A lost block is computed again; a killed process is not. */
static uint64_t drop_bytes(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    if (!psi_has(reading, PSI_HAVE_HEADROOM | PSI_HAVE_FILL) || reading->fill_bytes_per_s <= 0)
        return 0;
    if (!goes_on(control, reading))
        return 0;
    double until_next = (double)reading->fill_bytes_per_s * (double)control->mapping.reaction_us / 1e6;
    if (until_next < (double)reading->headroom_bytes)
        return 0;
    double wanted = (double)control->mapping.reserve_bytes + until_next - (double)reading->headroom_bytes;
    uint64_t unwritten = psi_least(demand->unwritten_bytes, demand->evictable_bytes);
    return psi_least(psi_since(psi_to_whole(wanted), demand->evictable_bytes - unwritten), unwritten);
}

static uint64_t share_of(double share, uint64_t bytes) { return psi_to_whole(share * (double)bytes); }

static uint64_t comfort_bytes(const psi_control *control, const psi_demand *demand, const psi_decision *decision) {
    const psi_control_options *o = &control->options;
    double above = (decision->index - o->high) / (1 - o->high); /* the index is above, so high is below 1 */
    return share_of(o->trim_min + above * (o->trim_max - o->trim_min), demand->resident_bytes);
}

/* `bytes` in all should be on their way. */
static void trim(psi_control *control, const psi_reading *reading, const psi_demand *demand, uint64_t bytes,
                 psi_decision *decision) {
    bytes = psi_least(bytes, demand->evictable_bytes);
    if (bytes <= demand->pending_bytes)
        return;
    decision->trim_bytes = bytes - demand->pending_bytes;
    psi_regrow_trimmed(control, reading);
    if (control->options.mode == PSI_MODE_AUTO)
        psi_guard_asked(control, reading, demand, decision);
    psi_control_note_trim(control, reading->at_us);
}

static void trim_for_comfort(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                             psi_decision *decision) {
    bool young = control->trimmed_before && psi_since(reading->at_us, control->last_trim_us) < PSI_GUARD_EFFECT_US;
    if (young || control->action.open || demand->evictable_bytes == 0) /* the effect of the last is not known yet */
        return;
    uint64_t bytes = comfort_bytes(control, demand, decision);
    if (control->options.mode == PSI_MODE_AUTO) {
        uint64_t least_bytes = share_of(control->options.trim_min, demand->resident_bytes);
        bytes = psi_guard_allow(control, reading, demand, least_bytes, bytes);
        decision->guarded = bytes == 0;
    }
    trim(control, reading, demand, bytes, decision);
}

/* Stall that would have called, were memory scarce or the stall ours. */
static bool is_pressure_elsewhere(const psi_control *control, const psi_reading *reading) {
    return control->options.mode == PSI_MODE_AUTO &&
           psi_index_stall_anywhere(&control->mapping, normal_share(control), reading) > control->options.high;
}

/* Nothing known is no reason to take memory. */
static bool knows_pressure(const psi_control *control, const psi_reading *reading) {
    static const uint32_t sources[] = {[PSI_MODE_AUTO] = PSI_HAVE_HEADROOM | PSI_HAVE_STALL,
                                       [PSI_MODE_PSI] = PSI_HAVE_STALL,
                                       [PSI_MODE_AVG10] = PSI_HAVE_AVG10};
    return (reading->have & sources[control->options.mode]) != 0;
}

static void act(psi_control *control, const psi_reading *reading, const psi_demand *demand, psi_decision *decision) {
    decision->band = band_of(control, reading, decision);
    decision->refuse = decision->index > control->options.high;
    if (decision->band == PSI_BAND_SAFETY) {
        decision->urgent = is_urgent(control, reading, demand);
        trim(control, reading, demand, safety_bytes(control, reading, demand), decision);
        decision->drop_bytes = drop_bytes(control, reading, demand);
    } else if (decision->band == PSI_BAND_COMFORT) {
        trim_for_comfort(control, reading, demand, decision);
    } else {
        decision->guarded = is_pressure_elsewhere(control, reading);
        if (decision->index < control->options.low && knows_pressure(control, reading))
            decision->restore_bytes = psi_regrow_step(control, reading, demand);
    }
}

/* ---- A decision ------------------------------------------------------------------------------- */

/* Stall that is seen now is what this machine always does. */
static bool is_calm(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                    const psi_decision *decision) {
    bool trimmed = control->trimmed_before && psi_since(reading->at_us, control->last_trim_us) < CALM_US;
    bool restored = control->restored_before && psi_since(reading->at_us, control->last_restore_us) < CALM_US;
    return !trimmed && !restored && demand->pending_bytes == 0 && decision->index < control->options.low &&
           psi_has(reading, PSI_HAVE_HEADROOM) && psi_index_scarcity(reading) <= 0;
}

void psi_control_decide(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                        psi_decision *decision) {
    memset(decision, 0, sizeof(*decision));
    keep_times_sane(control, reading->at_us);
    psi_tuning_map(control->options.tune ? &control->tuning : NULL, reading->limit_bytes,
                   control->options.reserve_bytes, &control->mapping);
    psi_index_map(&control->options, &control->mapping, normal_share(control), reading, demand, decision);
    decision->effect = psi_guard_judge(control, reading, demand);
    decision->ceiling_bytes = psi_regrow_ceiling(control, reading);
    act(control, reading, demand, decision);
    decision->ceiling_bytes = psi_regrow_ceiling(control, reading);
    decision->scarce = decision->index_headroom > CLEAN_ABOVE && decision->band != PSI_BAND_SAFETY;
    decision->clean = decision->scarce && demand->unwritten_bytes > 0;
    psi_look_plan(control, reading, demand, decision);
    if (control->options.tune)
        psi_tuning_see(&control->tuning, reading, is_calm(control, reading, demand, decision));
    control->seen_us = reading->at_us;
    control->seen_fill_age_us = psi_has(reading, PSI_HAVE_FILL) ? reading->fill_age_us : 0;
    control->seen_headroom_bytes = psi_has(reading, PSI_HAVE_HEADROOM) ? reading->headroom_bytes : 0;
}
