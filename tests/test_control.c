/* test_control.c - src/control: the mapping from reading to index, the hysteresis, and two simulated
 * machines (a spike, a square wave). Pure arithmetic with a time of its own; nothing is random. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "control/control.h"

#define MIB ((uint64_t)1 << 20)
#define MS ((uint64_t)1000)

static const psi_control_options defaults = {
    .high = 0.7, .low = 0.3, .trim_min = 0.10, .trim_max = 0.20, .dwell_us = 2000 * MS, .horizon_us = 500 * MS};

static psi_control new_control(void) {
    psi_control control;
    psi_control_init(&control, &defaults);
    return control;
}

/* 4 GiB limit: the reserve is 256 MiB. */
static psi_reading headroom_of(uint64_t mib) {
    return (psi_reading){
        .at_us = 10000 * MS, .have = PSI_HAVE_HEADROOM, .headroom_bytes = mib * MIB, .limit_bytes = 4096 * MIB};
}

static psi_reading filling(uint64_t headroom_mib, int64_t mib_per_s) {
    psi_reading reading = headroom_of(headroom_mib);
    reading.have |= PSI_HAVE_FILL;
    reading.fill_bytes_per_s = mib_per_s * (int64_t)MIB;
    return reading;
}

static psi_reading stalled(uint64_t headroom_mib, double share) {
    psi_reading reading = headroom_of(headroom_mib);
    reading.have |= PSI_HAVE_STALL;
    reading.stall_some_share = share;
    return reading;
}

static psi_demand cache_of(uint64_t mib) {
    return (psi_demand){.resident_bytes = mib * MIB, .evictable_bytes = mib * MIB * 9 / 10};
}

static psi_decision decide(psi_control *control, psi_reading reading, psi_demand demand) {
    psi_decision decision;
    memset(&decision, 0xa5, sizeof(decision));
    psi_control_decide(control, &reading, &demand, &decision);
    return decision;
}

static psi_decision decide_new(psi_reading reading, psi_demand demand) {
    psi_control control = new_control();
    return decide(&control, reading, demand);
}

static void assert_near(double value, double wanted, double error) {
    if (!(value > wanted - error && value < wanted + error))
        fail_msg("%f is not within %f of %f", value, error, wanted);
}

/* ---- Mapping ---------------------------------------------------------------------------------- */

static void headroom_reads_the_anchor_at_the_reserve(void **state) {
    (void)state;
    assert_near(decide_new(headroom_of(256), cache_of(1000)).index, 0.7, 1e-9);
    assert_near(decide_new(headroom_of(512), cache_of(1000)).index_headroom, 0.35, 1e-9);
    assert_near(decide_new(headroom_of(128), cache_of(1000)).index, 1, 1e-9);
    assert_near(decide_new(headroom_of(0), cache_of(1000)).index_headroom, 1, 1e-9);
}

static void reserve_follows_limit_within_bounds_or_the_option(void **state) {
    (void)state;
    static const struct {
        uint64_t limit_mib, reserve_mib;
    } cases[] = {{64, 16}, {1600, 100}, {65536, 256}};
    for (size_t i = 0; i < 3; i++) {
        psi_reading reading = headroom_of(400);
        reading.limit_bytes = cases[i].limit_mib * MIB;
        assert_near(decide_new(reading, cache_of(1000)).index_headroom, 0.7 * (double)cases[i].reserve_mib / 400, 1e-9);
    }
    psi_control control = new_control();
    control.options.reserve_bytes = 40 * MIB;
    assert_near(decide(&control, headroom_of(400), cache_of(1000)).index_headroom, 0.07, 1e-9);
}

static void forecast_looks_a_horizon_ahead(void **state) {
    (void)state;
    assert_near(decide_new(filling(1024, 512), cache_of(1000)).index_forecast, 0.35, 1e-9);
    assert_near(decide_new(filling(1024, 0), cache_of(1000)).index_forecast, 0, 1e-9);
    assert_near(decide_new(filling(1024, -512), cache_of(1000)).index_forecast, 0, 1e-9);
    psi_reading reading = filling(1024, 512);
    reading.have = PSI_HAVE_HEADROOM; /* a number that is not known is not used */
    assert_near(decide_new(reading, cache_of(1000)).index_forecast, 0, 1e-9);
    reading.have = PSI_HAVE_FILL;
    assert_near(decide_new(reading, cache_of(1000)).index, 0, 1e-9);
}

static void stall_counts_only_while_memory_is_scarce(void **state) {
    (void)state;
    assert_near(decide_new(stalled(512, 0.10), cache_of(1000)).index_stall, 0.7, 1e-9);
    assert_near(decide_new(stalled(512, 0.05), cache_of(1000)).index_stall, 0.35, 1e-9);
    assert_near(decide_new(stalled(512, 0.99), cache_of(1000)).index_stall, 1, 1e-9);
    assert_near(decide_new(stalled(768, 0.10), cache_of(1000)).index_stall, 0.35, 1e-9); /* half way */
    assert_near(decide_new(stalled(1024, 0.99), cache_of(1000)).index_stall, 0, 1e-9);
    psi_reading reading = stalled(4000, 0.10);
    reading.have = PSI_HAVE_STALL; /* headroom not known: stall is all there is */
    assert_near(decide_new(reading, cache_of(1000)).index, 0.7, 1e-9);
}

static void thrash_needs_scarce_memory(void **state) {
    (void)state;
    psi_reading reading = headroom_of(512);
    reading.have |= PSI_HAVE_FAULTS;
    reading.major_faults_per_s = 200;
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0.7, 1e-9);
    reading.headroom_bytes = 2048 * MIB;
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0, 1e-9);
    reading.have = PSI_HAVE_FAULTS;
    assert_near(decide_new(reading, cache_of(1000)).index, 0, 1e-9);
}

static void pressure_without_scarcity_costs_nothing(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_demand demand = cache_of(1000);
    for (uint64_t i = 0; i < 1000; i++) { /* a kernel that says 99 % for ever */
        psi_reading reading = stalled(2048, 0.99);
        reading.have |= PSI_HAVE_FAULTS;
        reading.major_faults_per_s = 5000;
        reading.stall_full_share = 0.99;
        reading.at_us += i * 500 * MS;
        psi_decision decision = decide(&control, reading, demand);
        assert_int_equal(decision.trim_bytes, 0);
        assert_false(decision.refuse);
    }
}

static void nothing_known_is_no_action(void **state) {
    (void)state;
    psi_reading reading = {.at_us = 1, .headroom_bytes = UINT64_MAX, .limit_bytes = UINT64_MAX};
    psi_demand demand = cache_of(1000);
    demand.returnable_bytes = 100 * MIB;
    psi_decision decision = decide_new(reading, demand);
    assert_near(decision.index, 0, 1e-9);
    assert_int_equal(decision.trim_bytes, 0);
    assert_int_equal(decision.restore_bytes, 0);
    assert_false(decision.refuse || decision.urgent);
    assert_int_equal(decision.sleep_us, 1000 * MS);
}

static void absurd_numbers_stay_in_range(void **state) {
    (void)state;
    static const double shares[] = {-1, 0, 1e300, (double)NAN, (double)INFINITY};
    static const uint64_t amounts[] = {0, 1, UINT64_MAX};
    static const int64_t rates[] = {INT64_MIN, 0, INT64_MAX};
    for (size_t i = 0; i < 5 * 3 * 3 * 3; i++) {
        psi_reading reading = {.at_us = 5,
                               .have = 15,
                               .stall_some_share = shares[i % 5],
                               .major_faults_per_s = shares[i % 5],
                               .headroom_bytes = amounts[i / 5 % 3],
                               .limit_bytes = amounts[i / 15 % 3],
                               .fill_bytes_per_s = rates[i / 45]};
        for (size_t d = 0; d < 3; d++) {
            psi_demand demand = {amounts[d], amounts[d], amounts[d], 0};
            psi_decision decision = decide_new(reading, demand);
            assert_true(decision.index >= 0 && decision.index <= 1);
            assert_true(decision.trim_bytes <= demand.evictable_bytes);
            assert_true(decision.restore_bytes <= demand.returnable_bytes);
            assert_true(decision.sleep_us >= 2 * MS && decision.sleep_us <= 1000 * MS);
        }
    }
}

/* ---- Trim ------------------------------------------------------------------------------------- */

static void between_the_limits_nothing_happens(void **state) {
    (void)state;
    for (uint64_t mib = 257; mib < 597; mib++) { /* 0.7 down to 0.3 */
        psi_demand demand = cache_of(1000);
        demand.returnable_bytes = 500 * MIB;
        psi_decision decision = decide_new(headroom_of(mib), demand);
        assert_int_equal(decision.trim_bytes, 0);
        assert_int_equal(decision.restore_bytes, 0);
        assert_false(decision.refuse);
    }
    psi_reading reading = stalled(700, 0.10); /* enough headroom to regrow, but stall between the limits */
    psi_demand some_stored = cache_of(1000);
    some_stored.returnable_bytes = 500 * MIB;
    assert_near(decide_new(reading, some_stored).index, 0.443, 0.01);
    assert_int_equal(decide_new(reading, some_stored).restore_bytes, 0);
    assert_true(decide_new(headroom_of(255), cache_of(1000)).refuse);
}

static void a_cycle_gives_10_to_20_per_cent(void **state) {
    (void)state;
    /* needed: 0.7 * 256 / 0.5 - 250 = 108.4 MiB */
    assert_near((double)decide_new(headroom_of(250), cache_of(800)).trim_bytes / (double)MIB, 108.4, 0.01);
    assert_int_equal(decide_new(headroom_of(250), cache_of(2000)).trim_bytes, 200 * MIB); /* at least 10 % */
    assert_int_equal(decide_new(headroom_of(250), cache_of(100)).trim_bytes, 20 * MIB);   /* at most 20 % */
    /* headroom that grows is no promise: as without a rate */
    assert_near((double)decide_new(filling(250, -500), cache_of(800)).trim_bytes / (double)MIB, 108.4, 0.01);
    psi_demand demand = cache_of(800);
    demand.evictable_bytes = 30 * MIB;
    assert_int_equal(decide_new(headroom_of(250), demand).trim_bytes, 30 * MIB);
}

static void limits_of_the_user_move_the_decision(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_control_set_limits(&control, 0.4, 0.2);
    psi_decision decision = decide(&control, headroom_of(400), cache_of(1500));
    assert_near(decision.index, 0.448, 1e-3); /* the mapping stays */
    assert_near((double)decision.trim_bytes / (double)MIB, 0.7 * 256 / 0.3 - 400, 0.01);
}

static void pending_bytes_are_not_asked_for_twice(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_demand demand = cache_of(100); /* 20 MiB a cycle, 108 needed */
    demand.pending_bytes = 5 * MIB;
    assert_int_equal(decide(&control, headroom_of(250), demand).trim_bytes, 15 * MIB);
    demand.pending_bytes = 20 * MIB; /* the cycle is full, however often we look */
    psi_decision decision = decide(&control, headroom_of(250), demand);
    assert_int_equal(decision.trim_bytes, 0);
    assert_true(decision.refuse);
}

static void urgent_gives_all_that_is_needed_at_once(void **state) {
    (void)state;
    /* 300 MiB at 800 MiB/s: gone in 375 ms. 0.7 * (256 + 400) / 0.5 - 300 = 618.4 MiB */
    psi_decision decision = decide_new(filling(300, 800), cache_of(1000));
    assert_true(decision.urgent);
    assert_near((double)decision.trim_bytes / (double)MIB, 618.4, 0.01);
    decision = decide_new(filling(300, 500), cache_of(1000)); /* 600 ms: in steps */
    assert_false(decision.urgent);
    assert_int_equal(decision.trim_bytes, 200 * MIB);
    decision = decide_new(headroom_of(0), cache_of(1000));
    assert_true(decision.urgent);
    assert_near((double)decision.trim_bytes / (double)MIB, 358.4, 0.01);
    assert_int_equal(decide_new(filling(10, 5000), cache_of(1000)).trim_bytes, 900 * MIB); /* what is evictable */
}

static void stall_alone_gives_one_step_a_second(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = stalled(512, 0.5);
    assert_int_equal(decide(&control, reading, cache_of(1000)).trim_bytes, 100 * MIB);
    reading.at_us += 999 * MS; /* the window still holds the old stall */
    assert_int_equal(decide(&control, reading, cache_of(900)).trim_bytes, 0);
    reading.at_us += 1 * MS;
    assert_int_equal(decide(&control, reading, cache_of(900)).trim_bytes, 90 * MIB);
    reading.at_us += 1 * MS; /* headroom does not wait */
    reading.headroom_bytes = 200 * MIB;
    assert_true(decide(&control, reading, cache_of(810)).trim_bytes > 100 * MIB);
}

/* ---- Restore ---------------------------------------------------------------------------------- */

static void restore_waits_for_dwell_and_goes_in_steps(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_demand demand = cache_of(800);
    demand.returnable_bytes = 200 * MIB;
    assert_true(decide(&control, headroom_of(200), demand).trim_bytes > 0);
    psi_reading reading = headroom_of(3000);
    reading.at_us += 1999 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
    reading.at_us += 1 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 50 * MIB);
    reading.at_us += 99 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
    reading.at_us += 1 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 50 * MIB);
    demand.returnable_bytes = 7 * MIB;
    reading.at_us += 100 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 7 * MIB);
    demand.returnable_bytes = 0;
    reading.at_us += 100 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
}

static void restore_keeps_the_index_below_the_lower_limit(void **state) {
    (void)state;
    psi_demand demand = cache_of(8000);
    demand.returnable_bytes = 2000 * MIB; /* a step would be 500 MiB; 0.3 is reached at 597.3 */
    for (uint64_t mib = 598; mib < 1200; mib += 7) {
        uint64_t bytes = decide_new(headroom_of(mib), demand).restore_bytes;
        double room = (double)mib - 597.3333;
        assert_near((double)bytes / (double)MIB, room < 500 ? room : 500, 0.01);
        psi_reading after = headroom_of(mib);
        after.headroom_bytes -= bytes;
        assert_true(decide_new(after, demand).index < 0.3);
    }
}

/* ---- Sleep ------------------------------------------------------------------------------------ */

static void sleep_follows_headroom_and_rate(void **state) {
    (void)state;
    psi_reading reading = headroom_of(1024);
    assert_int_equal(decide_new(reading, cache_of(1000)).sleep_us, 250 * MS);
    reading = filling(1024, 2048); /* 4 * 2 GiB/s, and urgent */
    assert_int_equal(decide_new(reading, cache_of(1000)).sleep_us, 10 * MS);
    psi_control control = new_control();
    psi_control_set_limits(&control, 1, 0.3);
    assert_int_equal(decide(&control, reading, cache_of(1000)).sleep_us, 125 * MS);
    reading = headroom_of(4096);
    assert_int_equal(decide_new(reading, cache_of(1000)).sleep_us, 500 * MS);
    assert_int_equal(decide_new(headroom_of(1), cache_of(1000)).sleep_us, 2 * MS);
    assert_int_equal(decide_new(headroom_of(20), cache_of(1000)).sleep_us, 4882);
    reading = stalled(0, 0.0);
    reading.have = PSI_HAVE_STALL;
    assert_int_equal(decide_new(reading, cache_of(1000)).sleep_us, 100 * MS);
}

/* ---- Simulated machines ----------------------------------------------------------------------- */

/* A cache under a limit beside another process. What is asked comes `delay_us` later, all of it. */
typedef struct machine {
    psi_control control;
    uint64_t at_us, next_us, given_at_us, delay_us;
    int64_t limit, other, resident, stored, pending;
    int64_t before_other, least_headroom;
    uint64_t before_us;
    double fill; /* as the signal room makes it: of the other process, fast attack, slow decay */
    unsigned trims, restores, urgent;
    unsigned trim_spells, restore_spells;
    int last; /* +1 trim, -1 restore */
} machine;

static int64_t headroom(const machine *m) { return m->limit - m->other - m->resident; }

static psi_reading sense(machine *m) {
    double span = (double)(m->at_us - m->before_us);
    if (span > 0) {
        double rate = (double)(m->other - m->before_other) / span * 1e6;
        double time = rate > m->fill ? 2000 : 433000;
        if (rate < 0 && m->fill > 0)
            rate = 0;
        m->fill += span / (span + time) * (rate - m->fill);
    }
    m->before_other = m->other;
    m->before_us = m->at_us;
    int64_t left = headroom(m);
    return (psi_reading){.at_us = m->at_us,
                         .have = PSI_HAVE_HEADROOM | PSI_HAVE_FILL,
                         .limit_bytes = (uint64_t)m->limit,
                         .headroom_bytes = left > 0 ? (uint64_t)left : 0,
                         .fill_bytes_per_s = (int64_t)m->fill};
}

static void act(machine *m, const psi_decision *decision) {
    if (decision->trim_bytes > 0) {
        if (m->pending == 0)
            m->given_at_us = m->at_us + m->delay_us;
        m->pending += (int64_t)decision->trim_bytes;
        m->trims++;
        m->urgent += decision->urgent;
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
}

/* One millisecond. */
static void tick(machine *m) {
    m->at_us += 1 * MS;
    if (m->pending > 0 && m->at_us >= m->given_at_us) {
        m->resident -= m->pending;
        m->stored += m->pending;
        m->pending = 0;
    }
    if (headroom(m) < m->least_headroom)
        m->least_headroom = headroom(m);
    if (m->at_us < m->next_us)
        return;
    psi_reading reading = sense(m);
    psi_demand demand = {.resident_bytes = (uint64_t)m->resident,
                         .evictable_bytes = (uint64_t)(m->resident * 9 / 10),
                         .returnable_bytes = (uint64_t)m->stored,
                         .pending_bytes = (uint64_t)m->pending};
    psi_decision decision = decide(&m->control, reading, demand);
    act(m, &decision);
    m->next_us = m->at_us + decision.sleep_us;
}

static void spike_of_500_mib_per_s_leaves_headroom(void **state) {
    (void)state;
    static const uint64_t delays[] = {10 * MS, 100 * MS}; /* decode; prefill */
    for (size_t i = 0; i < 2; i++) {
        machine m = {.control = new_control(),
                     .delay_us = delays[i],
                     .limit = 4096 * (int64_t)MIB,
                     .other = 2696 * (int64_t)MIB,
                     .resident = 1000 * (int64_t)MIB};
        m.least_headroom = headroom(&m);
        m.before_other = m.other;
        assert_int_equal(headroom(&m), 400 * MIB);
        for (unsigned ms = 0; ms < 3000; ms++) {
            if (ms >= 500 && ms < 2000) /* 750 MiB in all: more than there is without the cache's */
                m.other += 500 * (int64_t)MIB / 1000;
            tick(&m);
        }
        assert_true(m.least_headroom > 0);
        assert_true(m.least_headroom > 100 * (int64_t)MIB);
        assert_true(m.trims > 0);
        assert_true(m.resident >= 100 * (int64_t)MIB); /* the tenth that is not evictable */
        assert_int_equal(m.resident + m.stored, 1000 * MIB);
    }
}

static void square_wave_gives_one_trim_and_one_regrow_a_period(void **state) {
    (void)state;
    machine m = {.control = new_control(),
                 .delay_us = 10 * MS,
                 .limit = 4096 * (int64_t)MIB,
                 .other = 2000 * (int64_t)MIB,
                 .resident = 1000 * (int64_t)MIB};
    m.before_other = m.other;
    const unsigned periods = 10, half_ms = 5000;
    for (unsigned ms = 0; ms < periods * 2 * half_ms; ms++) {
        unsigned in_period = ms % (2 * half_ms);
        if (in_period >= half_ms && in_period < half_ms + 1000)
            m.other += 900 * (int64_t)MIB / 1000;
        if (in_period == 0 && ms > 0)
            m.other = 2000 * (int64_t)MIB;
        if (in_period == half_ms) /* and all is back before the next wave */
            assert_int_equal(m.resident, 1000 * MIB);
        tick(&m);
    }
    assert_true(m.trims >= periods);                                             /* each wave needs it, */
    assert_int_equal(m.trim_spells, periods);                                    /* and once is enough */
    assert_true(m.restore_spells == periods || m.restore_spells == periods - 1); /* the last is cut off */
}

static void steady_load_at_the_limit_does_not_oscillate(void **state) {
    (void)state;
    machine m = {.control = new_control(),
                 .delay_us = 10 * MS,
                 .limit = 4096 * (int64_t)MIB,
                 .other = 2900 * (int64_t)MIB,
                 .resident = 1000 * (int64_t)MIB};
    m.before_other = m.other;
    for (unsigned ms = 0; ms < 60000; ms++)
        tick(&m);
    assert_int_equal(m.trims, 1);
    assert_int_equal(m.restores, 0); /* headroom ends at 358 MiB, between the limits */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headroom_reads_the_anchor_at_the_reserve),
        cmocka_unit_test(reserve_follows_limit_within_bounds_or_the_option),
        cmocka_unit_test(forecast_looks_a_horizon_ahead),
        cmocka_unit_test(stall_counts_only_while_memory_is_scarce),
        cmocka_unit_test(thrash_needs_scarce_memory),
        cmocka_unit_test(pressure_without_scarcity_costs_nothing),
        cmocka_unit_test(nothing_known_is_no_action),
        cmocka_unit_test(absurd_numbers_stay_in_range),
        cmocka_unit_test(between_the_limits_nothing_happens),
        cmocka_unit_test(a_cycle_gives_10_to_20_per_cent),
        cmocka_unit_test(limits_of_the_user_move_the_decision),
        cmocka_unit_test(pending_bytes_are_not_asked_for_twice),
        cmocka_unit_test(urgent_gives_all_that_is_needed_at_once),
        cmocka_unit_test(stall_alone_gives_one_step_a_second),
        cmocka_unit_test(restore_waits_for_dwell_and_goes_in_steps),
        cmocka_unit_test(restore_keeps_the_index_below_the_lower_limit),
        cmocka_unit_test(sleep_follows_headroom_and_rate),
        cmocka_unit_test(spike_of_500_mib_per_s_leaves_headroom),
        cmocka_unit_test(square_wave_gives_one_trim_and_one_regrow_a_period),
        cmocka_unit_test(steady_load_at_the_limit_does_not_oscillate),
    };
    return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
