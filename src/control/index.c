/* index.c - from a reading to the pressure index and its components; the formulas are in control.h. Called by control.c
 * on the watcher thread; pure. */
#include "control/control.h"
#include "control/numbers.h"

#define HORIZON_MOST_US 3e6 /* further ahead a fill rate says nothing */
#define FORESIGHT 4.0       /* what was watched for 5 ms is not foretold for 500 */

#define SCARCE_BEGINS (1.0 / 4) /* of the limit left */
#define SCARCE_FULLY (1.0 / 8)

#define FAULTS_PER_S_AT_ANCHOR 200.0 /* a token then waits for the disk more than it computes */
#define REFAULTS_PER_S_AT_ANCHOR 1000.0
#define FAULTS_TAKEN_PER_S 1.0    /* fewer: what is missing is not asked for */
#define MISSING_RESERVE_PARTS 4.0 /* a quarter of the reserve missing is as bad as no reserve */

#define STALL_AT_ANCHOR_CLASSIC 0.10 /* mode psi: Android lmkd and systemd act at 7 to 10 % */

static double larger(double a, double b) { return a > b ? a : b; }

static double anchored(double value, double at_anchor) { return psi_to_share(PSI_INDEX_ANCHOR * value / at_anchor); }

static double index_of(double wanted_bytes, uint64_t headroom_bytes) {
    return headroom_bytes == 0 ? 1 : anchored(wanted_bytes, (double)headroom_bytes);
}

static double horizon_us(const psi_control_options *options, const psi_mapping *mapping, const psi_reading *reading,
                         const psi_demand *demand) {
    double reaction = (double)mapping->reaction_us;
    double unwritten = (double)psi_least(demand->unwritten_bytes, demand->evictable_bytes);
    double horizon = reaction + unwritten * 1e6 / mapping->write_bytes_per_s;
    horizon = horizon < HORIZON_MOST_US ? horizon : HORIZON_MOST_US;
    if (options->horizon_us != 0)
        horizon = (double)options->horizon_us;
    double foresight = reaction + FORESIGHT * (double)reading->fill_age_us;
    return horizon < foresight ? horizon : foresight;
}

double psi_index_expected_bytes(const psi_control_options *options, const psi_mapping *mapping,
                                const psi_reading *reading, const psi_demand *demand) {
    if (!psi_has(reading, PSI_HAVE_HEADROOM | PSI_HAVE_FILL) || reading->fill_bytes_per_s <= 0)
        return 0;
    return (double)reading->fill_bytes_per_s * horizon_us(options, mapping, reading, demand) / 1e6;
}

double psi_index_scarcity(const psi_reading *reading) {
    if (!psi_has(reading, PSI_HAVE_HEADROOM) || reading->limit_bytes == 0)
        return 1;
    double left = (double)reading->headroom_bytes / (double)reading->limit_bytes;
    return psi_to_share((SCARCE_BEGINS - left) / (SCARCE_BEGINS - SCARCE_FULLY));
}

/* Someone else's stall raises the system's number while the machine has no need of our memory. */
bool psi_index_stall_counts(const psi_reading *reading) {
    return reading->stall_is_own || !psi_has(reading, PSI_HAVE_RECLAIM) || reading->reclaim_pages_per_s > 0;
}

double psi_index_stall_anywhere(const psi_mapping *mapping, double stall_normal_share, const psi_reading *reading) {
    if (!psi_has(reading, PSI_HAVE_STALL))
        return 0;
    return anchored(reading->stall_some_share - stall_normal_share, mapping->stall_at_anchor);
}

double psi_index_thrash_score(const psi_reading *reading) {
    double score = 0;
    if (psi_has(reading, PSI_HAVE_FAULTS))
        score = larger(reading->major_faults_per_s / FAULTS_PER_S_AT_ANCHOR, score);
    if (psi_has(reading, PSI_HAVE_REFAULTS))
        score = larger(reading->refaults_per_s / REFAULTS_PER_S_AT_ANCHOR, score);
    return score;
}

bool psi_index_misses_mappings(const psi_reading *reading) {
    bool faults = psi_has(reading, PSI_HAVE_FAULTS) && reading->major_faults_per_s >= FAULTS_TAKEN_PER_S;
    bool refaults = psi_has(reading, PSI_HAVE_REFAULTS) && reading->refaults_per_s >= FAULTS_TAKEN_PER_S;
    return psi_has(reading, PSI_HAVE_HEADROOM) && reading->missing_bytes > 0 && (faults || refaults);
}

static double thrash(const psi_mapping *mapping, const psi_reading *reading, double scarcity) {
    double index = scarcity * psi_to_share(PSI_INDEX_ANCHOR * psi_index_thrash_score(reading));
    if (!psi_index_misses_mappings(reading))
        return index;
    double bad = (double)mapping->reserve_bytes / MISSING_RESERVE_PARTS;
    return larger(index, anchored((double)reading->missing_bytes, bad));
}

static void map_auto(const psi_control_options *options, const psi_mapping *mapping, double stall_normal_share,
                     const psi_reading *reading, const psi_demand *demand, psi_decision *decision) {
    double scarcity = psi_index_scarcity(reading);
    if (psi_has(reading, PSI_HAVE_HEADROOM)) {
        double reserve = (double)mapping->reserve_bytes;
        double expected = psi_index_expected_bytes(options, mapping, reading, demand);
        decision->index_headroom = index_of(reserve, reading->headroom_bytes);
        decision->index_forecast = expected > 0 ? index_of(reserve + expected, reading->headroom_bytes) : 0;
        decision->index_thrash = thrash(mapping, reading, scarcity);
    }
    if (psi_index_stall_counts(reading))
        decision->index_stall = scarcity * psi_index_stall_anywhere(mapping, stall_normal_share, reading);
}

void psi_index_map(const psi_control_options *options, const psi_mapping *mapping, double stall_normal_share,
                   const psi_reading *reading, const psi_demand *demand, psi_decision *decision) {
    decision->index_headroom = decision->index_forecast = decision->index_thrash = decision->index_stall = 0;
    if (options->mode == PSI_MODE_AUTO)
        map_auto(options, mapping, stall_normal_share, reading, demand, decision);
    else if (options->mode == PSI_MODE_AVG10 && psi_has(reading, PSI_HAVE_AVG10))
        decision->index_stall = psi_to_share(reading->avg10_share);
    else if (options->mode == PSI_MODE_PSI && psi_has(reading, PSI_HAVE_STALL))
        decision->index_stall = anchored(reading->stall_some_share, STALL_AT_ANCHOR_CLASSIC);
    decision->index = larger(larger(decision->index_headroom, decision->index_forecast),
                             larger(decision->index_stall, decision->index_thrash));
}

const char *psi_decision_reason(const psi_decision *decision) {
    if (!(decision->index > 0))
        return "none";
    if (decision->index_forecast >= decision->index)
        return decision->index_headroom >= decision->index ? "headroom" : "forecast";
    if (decision->index_headroom >= decision->index)
        return "headroom";
    return decision->index_stall >= decision->index ? "stall" : "thrash";
}
