/* guard.c - the effect of a trim, and the budget of comfort trims: guard.h has the rules. Called by control.c; pure. */
#include "control/guard.h"

#include "control/numbers.h"

/* ---- Effect ----------------------------------------------------------------------------------- */

/* Nothing to learn from it: a source that is gone, or bytes that never came. */
static psi_effect drop_action(psi_control *control) {
    control->action.open = false;
    return PSI_EFFECT_NONE;
}

static psi_effect close_action(psi_control *control, psi_effect effect) {
    control->action.open = false;
    return effect;
}

/* True once the bytes were given; then their effect can be looked for from the next reading on. */
static bool is_given(psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    uint64_t given = psi_since(demand->returned_bytes, control->action.returned_before);
    if (demand->pending_bytes > 0 || given < control->action.bytes / 2 || given == 0)
        return false;
    control->action.given = true;
    control->action.given_us = reading->at_us;
    control->action.given_bytes = given;
    return true;
}

static psi_effect judge_safety(psi_control *control, const psi_reading *reading) {
    if (reading->at_us <= control->action.given_us) /* that reading was older than the giving */
        return PSI_EFFECT_WAITS;
    if (!control->action.knows_left || !psi_has(reading, PSI_HAVE_HEADROOM))
        return drop_action(control);
    double grown = psi_left_bytes(reading) - control->action.left_before;
    double wanted = (double)control->action.given_bytes / 2 - control->action.filled_bytes;
    return close_action(control, grown >= wanted ? PSI_EFFECT_GOOD : PSI_EFFECT_EATEN);
}

static psi_effect futile(psi_control *control, const psi_reading *reading) {
    uint64_t pause_us = control->guard.pause_us * 2;
    if (control->guard.futile_in_row < UINT32_MAX)
        control->guard.futile_in_row++;
    if (control->guard.futile_in_row >= 2) {
        control->guard.pause_us = psi_least(psi_most(pause_us, PSI_GUARD_PAUSE_US), PSI_GUARD_PAUSE_MOST_US);
        control->guard.futile_until_us = reading->at_us + control->guard.pause_us;
    }
    return close_action(control, PSI_EFFECT_FUTILE);
}

static psi_effect judge_comfort(psi_control *control, const psi_reading *reading) {
    uint32_t source = control->action.by_thrash ? PSI_HAVE_FAULTS | PSI_HAVE_REFAULTS : PSI_HAVE_STALL;
    if (psi_since(reading->at_us, control->action.given_us) < PSI_GUARD_EFFECT_US)
        return PSI_EFFECT_WAITS;
    if ((reading->have & source) == 0)
        return drop_action(control);
    double now = control->action.by_thrash ? psi_index_thrash_score(reading) : reading->stall_some_share;
    if (!(now <= PSI_GUARD_HELPS * control->action.before))
        return futile(control, reading);
    control->guard.futile_in_row = 0;
    control->guard.pause_us = 0;
    return close_action(control, PSI_EFFECT_GOOD);
}

/* What others took between two readings; the rate is quick to rise and slow to fall, so rather too much. */
static double filled_bytes(const psi_control *control, const psi_reading *reading) {
    if (!psi_has(reading, PSI_HAVE_FILL) || reading->fill_bytes_per_s <= 0)
        return 0;
    return (double)reading->fill_bytes_per_s * (double)psi_since(reading->at_us, control->seen_us) / 1e6;
}

psi_effect psi_guard_judge(psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    if (!control->action.open)
        return PSI_EFFECT_NONE;
    control->action.filled_bytes += filled_bytes(control, reading);
    if (control->action.given)
        return control->action.band == PSI_BAND_SAFETY ? judge_safety(control, reading)
                                                       : judge_comfort(control, reading);
    bool late = psi_since(reading->at_us, control->action.at_us) >= PSI_GUARD_EFFECT_US;
    if (!is_given(control, reading, demand) && demand->pending_bytes == 0 && late)
        return drop_action(control);
    return PSI_EFFECT_WAITS;
}

/* ---- Budget ----------------------------------------------------------------------------------- */

static bool period_is_over(const psi_control *control, const psi_reading *reading) {
    uint64_t option = control->options.guard_period_us;
    return psi_since(reading->at_us, control->guard.period_begin_us) >= (option != 0 ? option : PSI_GUARD_PERIOD_US);
}

static uint64_t budget_left(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    double share = control->options.guard_share > 0 ? control->options.guard_share : PSI_GUARD_SHARE;
    uint64_t budget = psi_to_whole(share * ((double)demand->resident_bytes + (double)demand->returnable_bytes));
    return psi_since(budget, period_is_over(control, reading) ? 0 : control->guard.given_bytes);
}

uint64_t psi_guard_allow(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                         uint64_t least_bytes, uint64_t bytes) {
    if (control->guard.futile_until_us > reading->at_us)
        return 0;
    uint64_t allowed = psi_least(bytes, budget_left(control, reading, demand));
    return allowed < least_bytes ? 0 : allowed;
}

/* ---- Asked ------------------------------------------------------------------------------------ */

static void count_comfort(psi_control *control, const psi_reading *reading, uint64_t bytes) {
    if (control->guard.given_bytes == 0 || period_is_over(control, reading)) {
        control->guard.period_begin_us = reading->at_us;
        control->guard.given_bytes = 0;
    }
    control->guard.given_bytes += bytes;
}

static void open_action(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                        const psi_decision *decision) {
    control->action.open = true;
    control->action.at_us = reading->at_us;
    control->action.bytes = 0;
    control->action.returned_before = demand->returned_bytes;
    control->action.filled_bytes = 0;
    control->action.knows_left = psi_has(reading, PSI_HAVE_HEADROOM);
    control->action.left_before = psi_left_bytes(reading);
    control->action.by_thrash = decision->index_thrash > decision->index_stall;
    control->action.before = control->action.by_thrash ? psi_index_thrash_score(reading) : reading->stall_some_share;
}

/* A spike asks in every reading: until its bytes are given that is one action, and while it is judged what comes on top
 * is none. */
void psi_guard_asked(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                     const psi_decision *decision) {
    if (decision->band == PSI_BAND_COMFORT)
        count_comfort(control, reading, decision->trim_bytes);
    if (control->action.open && control->action.given && control->action.band == PSI_BAND_SAFETY)
        return;
    if (!control->action.open)
        open_action(control, reading, demand, decision);
    control->action.given = false;
    control->action.band = decision->band;
    control->action.bytes += decision->trim_bytes;
}
