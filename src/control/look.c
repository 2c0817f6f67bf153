/* look.c - when and how deep to look next: by what could be used up while asleep at the worst likely rate, as earlyoom
 * does, less what must be there when a trim begins. Called by control.c; pure. */
#include "control/look.h"

#include "control/numbers.h"

/* The worst rate that is likely: a quick allocator on one memory channel, or 4 times what is seen. */
#define WORST_BYTES_PER_S 4294967296.0
#define WORST_OF_SEEN 4.0

#define SLEEP_LEAST_US ((uint64_t)2000)
#define SLEEP_QUIET_LEAST_US ((uint64_t)5000) /* near, but little moves: 200 looks a second, not 500, */
#define SLEEP_QUIET_MOST_US ((uint64_t)20000) /* a fifth of what regrowing goes by */
#define SLEEP_PARTS 4                     /* or one in so much of the time that the reserve is off at the worst rate */
#define SLEEP_ABOVE_US ((uint64_t)10000)  /* above the limit: to see the effect, and ask for more */
#define SLEEP_STALL_US ((uint64_t)100000) /* only stall says so: a tenth of its window */
#define SLEEP_MOST_US ((uint64_t)500000)
#define SLEEP_FAR_US ((uint64_t)1000000) /* nothing known, or memory for seconds at the worst rate */
#define FAR_SPAN_US 2e6
#define COUNTERS_FAR_US ((uint64_t)1000000) /* readings without them are cheap */
#define COUNTERS_QUIET_US ((uint64_t)200000)
#define QUIET_SPAN_US 250000.0 /* little moves: at 4 times the fill that is seen the reserve is so far off */
#define QUIET_STALL 0.01

static double worst_bytes_per_s(const psi_reading *reading) {
    double seen = psi_has(reading, PSI_HAVE_FILL) ? WORST_OF_SEEN * (double)reading->fill_bytes_per_s : 0;
    return seen > WORST_BYTES_PER_S ? seen : WORST_BYTES_PER_S;
}

static double above_bytes(const psi_control *control, const psi_reading *reading) {
    return (double)reading->headroom_bytes - (double)control->mapping.reserve_bytes;
}

/* Until the reserve is reached, at the worst rate. */
static uint64_t reserve_in_us(const psi_control *control, const psi_reading *reading) {
    return psi_to_whole(above_bytes(control, reading) * 1e6 / worst_bytes_per_s(reading));
}

/* Until trimming must begin, so that it is done when the reserve is reached. */
static uint64_t spare_us(const psi_control *control, const psi_reading *reading) {
    return psi_since(reserve_in_us(control, reading), control->mapping.reaction_us);
}

static bool is_quiet(const psi_control *control, const psi_reading *reading, const psi_decision *decision) {
    return decision->band == PSI_BAND_NONE && psi_has(reading, PSI_HAVE_FILL) &&
           WORST_OF_SEEN * (double)reading->fill_bytes_per_s * QUIET_SPAN_US / 1e6 < above_bytes(control, reading);
}

static uint64_t near_sleep_us(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                              const psi_decision *decision) {
    uint64_t most = decision->band == PSI_BAND_SAFETY    ? SLEEP_ABOVE_US
                    : decision->band == PSI_BAND_COMFORT ? SLEEP_STALL_US
                                                         : SLEEP_MOST_US;
    uint64_t part = reserve_in_us(control, reading) / SLEEP_PARTS, least = SLEEP_LEAST_US;
    if (is_quiet(control, reading, decision))
        least = psi_most(SLEEP_QUIET_LEAST_US, psi_least(part, SLEEP_QUIET_MOST_US));
    else if (decision->band == PSI_BAND_NONE)
        least = psi_most(SLEEP_LEAST_US, psi_least(part, SLEEP_QUIET_LEAST_US));
    if (decision->band == PSI_BAND_SAFETY && demand->evictable_bytes == 0)
        return SLEEP_ABOVE_US; /* nothing to give: looking faster helps nobody */
    return psi_most(psi_least(spare_us(control, reading), most), least);
}

/* A group at its limit is filled up with page cache. An allocation takes the place of that, and its usage stays as it
 * is: to be seen at the next look, there must be room besides. */
static bool may_go_unseen(const psi_reading *reading, const psi_decision *decision) {
    uint64_t seen_bytes = psi_since(reading->headroom_bytes, reading->unseen_bytes); /* the difference */
    double asleep_bytes = worst_bytes_per_s(reading) * (double)decision->sleep_us / 1e6;
    return reading->unseen_bytes > 0 && (double)seen_bytes < asleep_bytes;
}

/* Reading files fills a group as an allocation does. Halfway to a forecast that calls for a trim the counters tell. */
static bool may_be_foretold(const psi_control *control, const psi_reading *reading, const psi_demand *demand) {
    return 2 * psi_index_expected_bytes(&control->options, &control->mapping, reading, demand) >
           above_bytes(control, reading);
}

/* Between two of these, headroom goes by the page cache as it was. */
static void leave_out_counters(const psi_control *control, const psi_reading *reading, uint64_t every_us,
                               psi_decision *decision) {
    if (psi_since(reading->at_us + decision->sleep_us, control->counters_us) < every_us &&
        !may_go_unseen(reading, decision))
        decision->look &= ~(uint32_t)PSI_LOOK_COUNTERS;
}

static void plan_near(psi_control *control, const psi_reading *reading, const psi_demand *demand,
                      psi_decision *decision) {
    decision->sleep_us = near_sleep_us(control, reading, demand, decision);
    if (is_quiet(control, reading, decision) && !may_be_foretold(control, reading, demand))
        leave_out_counters(control, reading, COUNTERS_QUIET_US, decision);
}

static bool nothing_waits(const psi_demand *demand) {
    return demand->returnable_bytes == 0 && demand->pending_bytes == 0;
}

/* Stall cannot call for anything here, so that it need not be read; guarded stall is watched. A spike at the worst rate
 * that begins with the sleep still finds the reserve, which is there for this. */
static bool is_far(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                   const psi_decision *decision) {
    return nothing_waits(demand) && !decision->guarded && decision->index < control->options.low / 2 &&
           psi_index_scarcity(reading) <= 0 && reserve_in_us(control, reading) > SLEEP_MOST_US;
}

static void plan_far(psi_control *control, const psi_reading *reading, psi_decision *decision) {
    double span_us = (double)reading->headroom_bytes * 1e6 / worst_bytes_per_s(reading);
    decision->arm = true;
    decision->sleep_us = span_us > FAR_SPAN_US ? SLEEP_FAR_US : SLEEP_MOST_US;
    decision->look = PSI_LOOK_AMOUNTS | PSI_LOOK_RARE | PSI_LOOK_COUNTERS;
    leave_out_counters(control, reading, COUNTERS_FAR_US, decision);
}

/* Headroom is not known. */
static void plan_on_stall(const psi_control *control, const psi_reading *reading, const psi_demand *demand,
                          psi_decision *decision) {
    double normal = control->options.tune ? control->tuning.stall_normal_share : 0;
    bool quiet = nothing_waits(demand) && decision->index < control->options.low / 2 &&
                 reading->stall_short_share <= normal + QUIET_STALL;
    decision->arm = quiet;
    decision->sleep_us = quiet ? SLEEP_MOST_US : decision->refuse ? SLEEP_ABOVE_US : SLEEP_STALL_US;
}

/* The classic modes poll. */
static void plan_classic(const psi_control *control, const psi_reading *reading, psi_decision *decision) {
    uint32_t source = control->options.mode == PSI_MODE_AVG10 ? PSI_HAVE_AVG10 : PSI_HAVE_STALL;
    decision->sleep_us = (reading->have & source) == 0 ? SLEEP_FAR_US
                         : decision->refuse            ? SLEEP_ABOVE_US
                                                       : SLEEP_STALL_US;
}

void psi_look_plan(psi_control *control, const psi_reading *reading, const psi_demand *demand, psi_decision *decision) {
    decision->look = PSI_LOOK_ALL;
    control->counters_us = psi_least(control->counters_us, reading->at_us); /* woken before they were due */
    if (control->options.mode != PSI_MODE_AUTO) {
        plan_classic(control, reading, decision);
    } else if (psi_has(reading, PSI_HAVE_HEADROOM)) {
        if (is_far(control, reading, demand, decision))
            plan_far(control, reading, decision);
        else
            plan_near(control, reading, demand, decision);
    } else if (psi_has(reading, PSI_HAVE_STALL)) {
        plan_on_stall(control, reading, demand, decision);
    } else {
        decision->sleep_us = SLEEP_FAR_US;
        decision->arm = nothing_waits(demand);
    }
    if (decision->look & PSI_LOOK_COUNTERS)
        control->counters_us = reading->at_us + decision->sleep_us;
}
