/* test_control_index.c - src/control/index.c: the mapping from a reading to the index and its components, in all modes,
 * with what is missing and what is absurd. Nothing is random. */
#include "test_control.h"

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
        assert_true(decision.guarded); /* and it is said */
        assert_int_equal(decision.band, PSI_BAND_NONE);
    }
    assert_false(decide(&control, stalled(2048, 0.05), demand).guarded); /* would not have called */
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
    assert_int_equal(decision.look, PSI_LOOK_ALL); /* a source may come back */
    assert_false(decision.arm);                    /* with blocks to restore, it must see that it may */
    assert_true(decide_new(reading, cache_of(1000)).arm);
}

static void absurd_numbers_stay_in_range(void **state) {
    (void)state;
    static const double shares[] = {-1, 0, 1e300, (double)NAN, (double)INFINITY};
    static const uint64_t amounts[] = {0, 1, UINT64_MAX};
    static const int64_t rates[] = {INT64_MIN, 0, INT64_MAX};
    for (size_t i = 0; i < 5 * 3 * 3 * 3; i++) {
        psi_reading reading = {.at_us = 5,
                               .have = 255,
                               .stall_is_own = i % 2 == 0,
                               .missing_bytes = amounts[i / 15 % 3],
                               .refaults_per_s = shares[i % 5],
                               .reclaim_pages_per_s = shares[i % 5],
                               .stall_some_share = shares[i % 5],
                               .major_faults_per_s = shares[i % 5],
                               .headroom_bytes = amounts[i / 5 % 3],
                               .limit_bytes = amounts[i / 15 % 3],
                               .fill_bytes_per_s = rates[i / 45]};
        for (size_t d = 0; d < 3; d++) {
            psi_demand demand = {
                .resident_bytes = amounts[d], .evictable_bytes = amounts[d], .returnable_bytes = amounts[d]};
            psi_decision decision = decide_new(reading, demand);
            assert_true(decision.index >= 0 && decision.index <= 1);
            assert_true(decision.trim_bytes <= demand.evictable_bytes);
            assert_true(decision.restore_bytes <= demand.returnable_bytes);
            assert_true(decision.sleep_us >= 2 * MS && decision.sleep_us <= 1000 * MS);
        }
    }
}

/* ---- Horizon ---------------------------------------------------------------------------------- */

static double horizon_s(const psi_control_options *options, psi_reading reading, uint64_t unwritten_mib) {
    psi_mapping mapping;
    psi_tuning_map(NULL, reading.limit_bytes, 0, &mapping);
    psi_demand demand = cache_of(4000);
    demand.unwritten_bytes = unwritten_mib * MIB;
    return psi_index_expected_bytes(options, &mapping, &reading, &demand) / (double)reading.fill_bytes_per_s;
}

static void horizon_is_what_giving_back_takes(void **state) {
    (void)state;
    psi_control_options options = defaults;
    options.horizon_us = 0;
    assert_near(horizon_s(&options, filling(1024, 100), 0), 0.1, 1e-6); /* reaction alone: all is clean */
    assert_near(horizon_s(&options, filling(1024, 100), 100), 0.1 + 100.0 * (double)MIB / 200e6, 1e-6);
    assert_near(horizon_s(&options, filling(1024, 100), 4000), 3, 1e-6); /* bounded */
    assert_near(horizon_s(&defaults, filling(1024, 100), 4000), 0.5, 1e-6);
}

static void what_was_watched_shortly_is_not_foretold_far(void **state) {
    (void)state;
    psi_control_options options = defaults;
    options.horizon_us = 0;
    psi_reading reading = filling(1024, 4096);
    reading.fill_age_us = 5 * MS;
    assert_near(horizon_s(&options, reading, 4000), 0.120, 1e-6);
    assert_near(horizon_s(&defaults, reading, 0), 0.120, 1e-6); /* the option's horizon, too */
    reading.fill_age_us = UINT64_MAX;
    assert_near(horizon_s(&options, reading, 4000), 3, 1e-6);
}

/* ---- Thrash and stall ------------------------------------------------------------------------- */

static void refaults_are_thrash_too(void **state) {
    (void)state;
    psi_reading reading = headroom_of(512);
    reading.have |= PSI_HAVE_REFAULTS;
    reading.refaults_per_s = 500;
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0.35, 1e-9);
    reading.have |= PSI_HAVE_FAULTS;
    reading.major_faults_per_s = 400; /* the larger counts */
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 1, 1e-9);
    reading.headroom_bytes = 2048 * MIB;
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0, 1e-9);
}

static void missing_mappings_are_thrash_however_few_faults(void **state) {
    (void)state;
    psi_reading reading = headroom_of(0);
    reading.have |= PSI_HAVE_FAULTS;
    reading.missing_bytes = 32 * MIB; /* half of a quarter of the reserve of 256 */
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0, 1e-9);
    reading.major_faults_per_s = 20;
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0.35, 1e-9);
    reading.missing_bytes = 64 * MIB;
    assert_near(decide_new(reading, cache_of(1000)).index_thrash, 0.7, 1e-9);
}

static void the_systems_stall_counts_while_the_machine_reclaims(void **state) {
    (void)state;
    psi_reading reading = stalled(512, 0.5);
    reading.stall_is_own = false;
    assert_near(decide_new(reading, cache_of(1000)).index_stall, 1, 1e-9); /* reclaim not known */
    reading.have |= PSI_HAVE_RECLAIM;
    psi_decision decision = decide_new(reading, cache_of(1000));
    assert_near(decision.index_stall, 0, 1e-9);
    assert_true(decision.guarded);
    reading.reclaim_pages_per_s = 1000;
    assert_near(decide_new(reading, cache_of(1000)).index_stall, 1, 1e-9);
    reading.reclaim_pages_per_s = 0;
    reading.stall_is_own = true;
    assert_near(decide_new(reading, cache_of(1000)).index_stall, 1, 1e-9);
}

static void what_is_normal_here_is_no_pressure(void **state) {
    (void)state;
    psi_control control = new_control();
    control.options.tune = true;
    control.tuning.stall_normal_share = 0.05; /* the anchor moves to 0.15 */
    assert_near(decide(&control, stalled(512, 0.05), cache_of(1000)).index_stall, 0, 1e-9);
    assert_near(decide(&control, stalled(512, 0.20), cache_of(1000)).index_stall, 0.7, 1e-9);
    control.options.tune = false;
    assert_near(decide(&control, stalled(512, 0.05), cache_of(1000)).index_stall, 0.35, 1e-9);
}

/* ---- Modes, reason ---------------------------------------------------------------------------- */

static void classic_modes_know_stall_alone(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = stalled(4000, 0.05);
    reading.have |= PSI_HAVE_AVG10 | PSI_HAVE_FAULTS;
    reading.avg10_share = 0.65;
    reading.major_faults_per_s = 9000;
    control.options.mode = PSI_MODE_PSI;
    assert_near(decide(&control, reading, cache_of(1000)).index, 0.35, 1e-9);
    control.options.mode = PSI_MODE_AVG10;
    assert_near(decide(&control, reading, cache_of(1000)).index, 0.65, 1e-9);
    reading.headroom_bytes = 0;
    assert_near(decide(&control, reading, cache_of(1000)).index, 0.65, 1e-9);
    reading.have = PSI_HAVE_HEADROOM;
    assert_near(decide(&control, reading, cache_of(1000)).index, 0, 1e-9);
    assert_int_equal(decide(&control, reading, cache_of(1000)).sleep_us, 1000 * MS);
}

static void reason_is_the_largest_component(void **state) {
    (void)state;
    psi_reading reading = headroom_of(512);
    assert_string_equal(psi_decision_reason(&(psi_decision){.index = 0}), "none");
    psi_decision decision = decide_new(reading, cache_of(1000));
    assert_string_equal(psi_decision_reason(&decision), "headroom");
    decision = decide_new(filling(512, 100), cache_of(1000));
    assert_string_equal(psi_decision_reason(&decision), "forecast");
    decision = decide_new(stalled(512, 0.09), cache_of(1000));
    assert_string_equal(psi_decision_reason(&decision), "stall");
    reading.have |= PSI_HAVE_FAULTS;
    reading.major_faults_per_s = 150;
    decision = decide_new(reading, cache_of(1000));
    assert_string_equal(psi_decision_reason(&decision), "thrash");
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
        cmocka_unit_test(horizon_is_what_giving_back_takes),
        cmocka_unit_test(what_was_watched_shortly_is_not_foretold_far),
        cmocka_unit_test(refaults_are_thrash_too),
        cmocka_unit_test(missing_mappings_are_thrash_however_few_faults),
        cmocka_unit_test(the_systems_stall_counts_while_the_machine_reclaims),
        cmocka_unit_test(what_is_normal_here_is_no_pressure),
        cmocka_unit_test(classic_modes_know_stall_alone),
        cmocka_unit_test(reason_is_the_largest_component),
    };
    return cmocka_run_group_tests_name("control index", tests, NULL, NULL);
}
