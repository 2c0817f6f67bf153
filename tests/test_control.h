/* test_control.h - what the tests of src/control share: readings and demands in a line, and a simulated machine with a
 * clock of its own: a limit, other processes as the test moves them, and a cache that follows the decisions. */
#ifndef TEST_CONTROL_H
#define TEST_CONTROL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "control/control.h"

#define MIB ((uint64_t)1 << 20)
#define MS ((uint64_t)1000)

/* The horizon is fixed, so that forecasts can be checked by hand; the simulated machines take the real one. */
static const psi_control_options defaults = {.high = 0.7,
                                             .low = 0.3,
                                             .trim_min = 0.10,
                                             .trim_max = 0.20,
                                             .dwell_us = 2000 * MS,
                                             .horizon_us = 500 * MS,
                                             .guard_share = 0.5,
                                             .guard_period_us = 60000 * MS};

static inline psi_control new_control(void) {
    psi_control control;
    psi_control_init(&control, &defaults);
    return control;
}

/* 4 GiB limit: the reserve is 256 MiB. */
static inline psi_reading headroom_of(uint64_t mib) {
    return (psi_reading){
        .at_us = 10000 * MS, .have = PSI_HAVE_HEADROOM, .headroom_bytes = mib * MIB, .limit_bytes = 4096 * MIB};
}

/* For long enough that the whole horizon counts. */
static inline psi_reading filling(uint64_t headroom_mib, int64_t mib_per_s) {
    psi_reading reading = headroom_of(headroom_mib);
    reading.have |= PSI_HAVE_FILL;
    reading.fill_bytes_per_s = mib_per_s * (int64_t)MIB;
    reading.fill_age_us = 1000 * MS;
    return reading;
}

static inline psi_reading stalled(uint64_t headroom_mib, double share) {
    psi_reading reading = headroom_of(headroom_mib);
    reading.have |= PSI_HAVE_STALL;
    reading.stall_is_own = true;
    reading.stall_some_share = share;
    reading.stall_short_share = share;
    return reading;
}

static inline psi_demand cache_of(uint64_t mib) {
    return (psi_demand){.resident_bytes = mib * MIB, .evictable_bytes = mib * MIB * 9 / 10};
}

static inline psi_decision decide(psi_control *control, psi_reading reading, psi_demand demand) {
    psi_decision decision;
    memset(&decision, 0xa5, sizeof(decision));
    psi_control_decide(control, &reading, &demand, &decision);
    return decision;
}

static inline psi_decision decide_new(psi_reading reading, psi_demand demand) {
    psi_control control = new_control();
    return decide(&control, reading, demand);
}

static inline void assert_near(double value, double wanted, double error) {
    if (!(value > wanted - error && value < wanted + error))
        fail_msg("%f is not within %f of %f", value, error, wanted);
}

/* ---- A simulated machine ---------------------------------------------------------------------- */

/* Bytes are whole but signed. What is asked comes `reaction_us` after the first asking, as at an engine's safe point:
 * clean blocks at once, the rest as fast as the store writes. */
typedef struct machine {
    psi_control control;
    uint64_t at_us, next_us, given_at_us, reaction_us;
    int64_t limit, other, resident, stored, floor, pending, returned;
    int64_t unwritten, write_per_ms; /* 0 per ms: all is clean */
    double stall;                    /* now; sensed over 1 s, and over 100 ms */
    double stall_long, stall_short;
    double fill; /* as the signal room makes it: of the other processes, fast attack, slow decay */
    uint64_t fill_age_us;
    int64_t before_other;
    uint64_t before_us;
    bool knows_stall, cleans_ahead;
    /* seen */
    int64_t least_headroom;
    bool dead;
    unsigned trims, comfort_trims, restores, readings;
    unsigned trim_spells, restore_spells;
    int last; /* +1 trim, -1 restore */
} machine;

static inline int64_t machine_headroom(const machine *m) { return m->limit - m->other - m->resident; }

static inline machine new_machine(int64_t limit_mib, int64_t other_mib, int64_t resident_mib) {
    machine m = {.control = new_control(),
                 .reaction_us = 20 * MS,
                 .limit = limit_mib * (int64_t)MIB,
                 .other = other_mib * (int64_t)MIB,
                 .resident = resident_mib * (int64_t)MIB,
                 .floor = resident_mib * (int64_t)MIB / 10};
    m.control.options.horizon_us = 0;
    m.control.options.tune = true;
    m.before_other = m.other;
    m.least_headroom = machine_headroom(&m);
    return m;
}

static inline void machine_sense_fill(machine *m) {
    double span = (double)(m->at_us - m->before_us);
    if (span <= 0)
        return;
    double rate = (double)(m->other - m->before_other) / span * 1e6;
    m->fill_age_us = rate > 0 && rate >= m->fill / 2 ? m->fill_age_us + (uint64_t)span : 0;
    double time = rate > m->fill ? 2000 : 433000;
    if (rate < 0 && m->fill > 0)
        rate = 0;
    m->fill += span / (span + time) * (rate - m->fill);
    m->before_other = m->other;
    m->before_us = m->at_us;
}

static inline psi_reading machine_sense(machine *m) {
    machine_sense_fill(m);
    int64_t left = machine_headroom(m);
    return (psi_reading){.at_us = m->at_us,
                         .have = PSI_HAVE_HEADROOM | PSI_HAVE_FILL | (m->knows_stall ? (uint32_t)PSI_HAVE_STALL : 0),
                         .stall_is_own = true,
                         .stall_some_share = m->stall_long,
                         .stall_short_share = m->stall_short,
                         .limit_bytes = (uint64_t)m->limit,
                         .headroom_bytes = left > 0 ? (uint64_t)left : 0,
                         .fill_bytes_per_s = (int64_t)m->fill,
                         .fill_age_us = m->fill_age_us};
}

static inline void machine_act(machine *m, const psi_decision *decision) {
    if (decision->trim_bytes > 0) {
        if (m->pending == 0)
            m->given_at_us = m->at_us + m->reaction_us;
        m->pending += (int64_t)decision->trim_bytes;
        m->trims++;
        m->comfort_trims += decision->band == PSI_BAND_COMFORT;
        m->trim_spells += m->last != 1;
        m->last = 1;
    }
    if (decision->restore_bytes > 0) {
        m->resident += (int64_t)decision->restore_bytes;
        m->stored -= (int64_t)decision->restore_bytes;
        m->restores++;
        m->restore_spells += m->last != -1;
        m->last = -1;
    }
    if (decision->clean && m->cleans_ahead) { /* the watcher's 5 ms in 50 */
        int64_t bytes = m->write_per_ms * (int64_t)(decision->sleep_us / MS) / 10;
        m->unwritten -= bytes < m->unwritten ? bytes : m->unwritten;
    }
}

static inline void machine_give(machine *m) {
    if (m->pending == 0 || m->at_us < m->given_at_us)
        return;
    int64_t evictable = m->resident - m->floor, clean = evictable - m->unwritten;
    int64_t bytes = m->pending;
    if (m->write_per_ms > 0 && bytes > clean) {
        int64_t written = m->write_per_ms < m->unwritten ? m->write_per_ms : m->unwritten;
        m->unwritten -= written;
        bytes = clean + written < bytes ? clean + written : bytes;
    }
    m->resident -= bytes;
    m->stored += bytes;
    m->returned += bytes;
    m->pending -= bytes;
}

/* One millisecond. */
static inline void machine_tick(machine *m) {
    m->at_us += 1 * MS;
    machine_give(m);
    m->stall_long += (m->stall - m->stall_long) / 500;
    m->stall_short += (m->stall - m->stall_short) / 50;
    if (machine_headroom(m) < m->least_headroom)
        m->least_headroom = machine_headroom(m);
    m->dead = m->dead || machine_headroom(m) < 0;
    if (m->at_us < m->next_us)
        return;
    psi_reading reading = machine_sense(m);
    psi_demand demand = {.resident_bytes = (uint64_t)m->resident,
                         .evictable_bytes = (uint64_t)(m->resident - m->floor),
                         .unwritten_bytes = (uint64_t)m->unwritten,
                         .returnable_bytes = (uint64_t)m->stored,
                         .pending_bytes = (uint64_t)m->pending,
                         .returned_bytes = (uint64_t)m->returned};
    psi_decision decision = decide(&m->control, reading, demand);
    m->readings++;
    machine_act(m, &decision);
    bool waits = m->stored > 0 && decision.sleep_us > 100 * MS; /* to come back: the watcher's bound (watcher.c) */
    m->next_us = m->at_us + (waits ? 100 * MS : decision.sleep_us);
}

#endif
