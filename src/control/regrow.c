/* regrow.c - steps of regrowing, what stops them, and the ceiling after a failure: regrow.h has the rules. Called by
 * control.c; pure. */
#include "control/regrow.h"

#include <string.h>

#include "control/numbers.h"

#define FILL_RESERVE_PARTS 2  /* others take half the reserve in a second: not now */
#define FILL_LASTS_S 20.0     /* unless what is left lasts for longer at that rate */
#define SLACK_RESERVE_PARTS 2 /* others may use half the reserve before it looks like more than our own steps, */
#define SLACK_LEFT_PARTS 32   /* or a thirty-second of what is left: a large machine is never quiet */

static bool is_auto(const psi_control *control) { return control->options.mode == PSI_MODE_AUTO; }

/* What keeps headroom and forecast below the lower limit afterwards: no regrowing into the next trim. */
static uint64_t room_bytes(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    if (!is_auto(control) || !psi_has(reading, PSI_HAVE_HEADROOM))
        return UINT64_MAX;
    double expected = psi_index_expected_bytes(&control->options, &control->mapping, reading, demand);
    double keep = PSI_INDEX_ANCHOR * ((double)control->mapping.reserve_bytes + expected) / control->options.low;
    return psi_to_whole((double)reading->headroom_bytes - keep - 1);
}

static bool stalls(const psi_control *control, const psi_reading *reading) {
    double normal = control->options.tune ? control->tuning.stall_normal_share : 0;
    return psi_has(reading, PSI_HAVE_STALL) && psi_index_stall_counts(reading) &&
           reading->stall_short_share > normal + PSI_REGROW_STALL;
}

static bool shrank_too_far(const psi_control *control, const psi_reading *reading) {
    if (!control->regrow.regrowing || !control->regrow.knows_left || !psi_has(reading, PSI_HAVE_HEADROOM))
        return false;
    double reserve = (double)(control->mapping.reserve_bytes / SLACK_RESERVE_PARTS);
    double left = psi_left_bytes(reading), part = left / SLACK_LEFT_PARTS;
    return left < control->regrow.began_left - (double)control->regrow.given_bytes - (reserve > part ? reserve : part);
}

static bool others_fill(const psi_control *control, const psi_reading *reading) {
    double rate = (double)reading->fill_bytes_per_s;
    bool lasts = psi_has(reading, PSI_HAVE_HEADROOM) && psi_left_bytes(reading) > FILL_LASTS_S * rate;
    return psi_has(reading, PSI_HAVE_FILL) && rate > (double)(control->mapping.reserve_bytes / FILL_RESERVE_PARTS) &&
           !lasts;
}

/* From here on what headroom does is compared with our steps, and these begin small again. */
static void measure_from(psi_control *control, const psi_reading *reading) {
    control->regrow.share = PSI_REGROW_FIRST_SHARE;
    control->regrow.knows_left = psi_has(reading, PSI_HAVE_HEADROOM);
    control->regrow.began_left = psi_left_bytes(reading);
    control->regrow.given_bytes = 0;
}

static bool is_stopped(psi_control *control, const psi_reading *reading) {
    if (!is_auto(control))
        return false;
    if (stalls(control, reading) || shrank_too_far(control, reading) || others_fill(control, reading)) {
        control->regrow.stopped_until_us = reading->at_us + PSI_REGROW_STOP_US;
        measure_from(control, reading);
    }
    return control->regrow.stopped_until_us > reading->at_us;
}

static bool is_too_soon(const psi_control *control, const psi_reading *reading) {
    bool dwells =
        control->trimmed_before && psi_since(reading->at_us, control->last_trim_us) < control->options.dwell_us;
    bool stepped =
        control->restored_before && psi_since(reading->at_us, control->last_restore_us) < PSI_REGROW_EVERY_US;
    return dwells || stepped;
}

static uint64_t below_ceiling(const psi_control *control, const psi_demand *demand) {
    return control->regrow.ceiling_until_us != 0
               ? psi_since(control->regrow.ceiling_bytes, demand->resident_bytes) /* the difference, or 0 */
               : UINT64_MAX;
}

static void note_step(psi_control *control, const psi_reading *reading, const psi_demand *demand, uint64_t bytes) {
    if (!control->regrow.regrowing) {
        control->regrow.regrowing = true;
        control->regrow.began_bytes = demand->resident_bytes;
        measure_from(control, reading);
    }
    control->regrow.given_bytes += bytes;
    control->regrow.share *= 2;
    if (control->regrow.share > PSI_REGROW_SHARE)
        control->regrow.share = PSI_REGROW_SHARE;
    control->restored_before = true;
    control->last_restore_us = reading->at_us;
    control->action.open = false; /* taking again hides the effect of what was given */
}

static double step_share(const psi_control *control, const psi_reading *reading) {
    if (!is_auto(control))
        return PSI_REGROW_SHARE;
    bool small = !control->regrow.regrowing || psi_index_scarcity(reading) > 0;
    return small ? PSI_REGROW_FIRST_SHARE : control->regrow.share;
}

uint64_t psi_regrow_step(psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    if (is_stopped(control, reading) || is_too_soon(control, reading) || demand->pending_bytes > 0)
        return 0;
    double whole_bytes = (double)demand->resident_bytes + (double)demand->returnable_bytes;
    uint64_t step = psi_to_whole(step_share(control, reading) * whole_bytes);
    step = psi_least(psi_least(step, demand->returnable_bytes), room_bytes(control, reading, demand));
    step = psi_least(step, below_ceiling(control, demand));
    if (step > 0)
        note_step(control, reading, demand, step);
    return step;
}

/* ---- The ceiling ------------------------------------------------------------------------------ */

static void note_limit(psi_control *control, const psi_reading *reading) {
    uint64_t *known_bytes = &control->regrow.limit_bytes[reading->bound];
    *known_bytes = psi_most(*known_bytes, reading->limit_bytes);
}

void psi_regrow_trimmed(psi_control *control, const psi_reading *reading) {
    bool failed = control->regrow.regrowing && is_auto(control) &&
                  psi_since(reading->at_us, control->last_restore_us) < PSI_REGROW_FAILED_US;
    control->regrow.regrowing = false;
    if (!failed)
        return;
    uint64_t wait_us = psi_most(control->regrow.wait_us * 2, PSI_REGROW_WAIT_US);
    control->regrow.wait_us = psi_least(wait_us, PSI_REGROW_WAIT_MOST_US);
    control->regrow.ceiling_bytes = control->regrow.began_bytes;
    control->regrow.ceiling_until_us = reading->at_us + control->regrow.wait_us;
    if (psi_has(reading, PSI_HAVE_HEADROOM))
        note_limit(control, reading);
}

/* Of the bound's own kind; where none of it is known, the largest of all. */
static uint64_t known_limit_bytes(const psi_control *control, psi_bound_kind bound) {
    uint64_t most_bytes = 0;
    for (size_t i = 0; i <= PSI_BOUND_V1; i++)
        most_bytes = psi_most(most_bytes, control->regrow.limit_bytes[i]);
    return control->regrow.limit_bytes[bound] != 0 ? control->regrow.limit_bytes[bound] : most_bytes;
}

/* Where the nearest limit is now the group's and now the machine's, that is told once. */
static bool has_larger_limit(const psi_control *control, const psi_reading *reading) {
    uint64_t known_bytes = known_limit_bytes(control, reading->bound);
    return known_bytes != 0 && psi_has(reading, PSI_HAVE_HEADROOM) && reading->limit_bytes > known_bytes;
}

static void forget_row(psi_control *control) {
    control->regrow.wait_us = 0;
    memset(control->regrow.limit_bytes, 0, sizeof(control->regrow.limit_bytes));
}

uint64_t psi_regrow_ceiling(psi_control *control, const psi_reading *reading) {
    uint64_t calm_us = psi_since(reading->at_us, psi_most(control->last_restore_us, control->last_trim_us));
    if (control->regrow.regrowing && psi_since(reading->at_us, control->last_restore_us) >= PSI_REGROW_FAILED_US)
        control->regrow.regrowing = false; /* it held */
    if (has_larger_limit(control, reading)) {
        control->regrow.ceiling_until_us = control->regrow.wait_us = 0;
        note_limit(control, reading);
    }
    if (control->regrow.ceiling_until_us <= reading->at_us) {
        control->regrow.ceiling_until_us = 0;
        if (calm_us >= PSI_REGROW_HELD_US)
            forget_row(control);
    }
    return control->regrow.ceiling_until_us != 0 ? control->regrow.ceiling_bytes : UINT64_MAX;
}
