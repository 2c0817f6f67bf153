/* test_control_look.c - src/control/look.c: how long to sleep, how deep to look, when to rely on triggers. Pure
 * arithmetic with a time of its own; nothing is random. */
#include "test_control.h"

/* With reaction and reserve set: the mapping's own are in test_tuning.c. */
static psi_control quick_control(uint64_t reaction_ms, uint64_t reserve_mib) {
    psi_control control = new_control();
    control.options.tune = true;
    control.options.reserve_bytes = reserve_mib * MIB;
    control.tuning.reaction_us = (double)(reaction_ms * MS);
    return control;
}

static psi_decision decide_quick(psi_reading reading, psi_demand demand) {
    psi_control control = quick_control(20, 256);
    return decide(&control, reading, demand);
}

static void sleep_follows_headroom_and_rate(void **state) {
    (void)state;
    /* at 4 GiB/s: reserve 256 MiB, 20 ms of reaction 81.92 MiB */
    assert_near((double)decide_quick(headroom_of(1024), cache_of(1000)).sleep_us, 167500, 2);
    assert_near((double)decide_quick(headroom_of(400), cache_of(1000)).sleep_us, 15156, 2);
    psi_control control = quick_control(20, 256);
    psi_control_set_limits(&control, 1, 0.3); /* 4 * 2 GiB/s: 163.84 MiB of reaction */
    assert_near((double)decide(&control, filling(1024, 2048), cache_of(1000)).sleep_us, 73750, 2);
    assert_int_equal(decide_quick(filling(1024, 2048), cache_of(1000)).sleep_us, 10 * MS); /* above the limit */
    assert_int_equal(decide_quick(filling(4000, 900), cache_of(1000)).sleep_us, 500 * MS);
    assert_int_equal(decide_quick(headroom_of(1), cache_of(1000)).sleep_us, 2 * MS);
}

static void what_is_left_asleep_is_enough_to_begin(void **state) {
    (void)state;
    for (uint64_t mib = 360; mib < 4000; mib += 13) { /* at the worst rate */
        psi_decision decision = decide_quick(headroom_of(mib), cache_of(1000));
        double left = (double)mib - 4096 * (double)decision.sleep_us / 1e6;
        assert_true(left >= (decision.arm ? 256 : 256 + 81.9) || decision.sleep_us == 2 * MS);
    }
}

static void near_but_quiet_looks_less_often(void **state) {
    (void)state;
    /* The reserve is 44 MiB away: a quarter of the time that the worst rate takes for it. Fill is not known. */
    assert_near((double)decide_quick(headroom_of(300), cache_of(1000)).sleep_us, 2685, 2);
    assert_int_equal(decide_quick(filling(300, 0), cache_of(1000)).sleep_us, 5 * MS);
    /* Quiet: at four times the fill the reserve, 84 MiB away, is more than 250 ms off. */
    assert_near((double)decide_quick(filling(340, 83), cache_of(1000)).sleep_us, 5126, 2);
    assert_int_equal(decide_quick(filling(340, 85), cache_of(1000)).sleep_us, 5 * MS); /* moves: 5 ms at most, */
    assert_int_equal(decide_quick(filling(280, 85), cache_of(1000)).sleep_us, 2 * MS); /* and 2 near the reserve */
    assert_int_equal(decide_quick(filling(250, 0), cache_of(1000)).sleep_us, 2 * MS);  /* above the limit */
    psi_demand floor_reached = cache_of(1000);
    floor_reached.evictable_bytes = 0;
    assert_int_equal(decide_quick(headroom_of(10), floor_reached).sleep_us, 10 * MS); /* nothing to give */
}

/* Where trimming may take longer than the reserve is away at the worst rate: a quarter of that. */
static void quiet_sleeps_by_what_is_left(void **state) {
    (void)state;
    for (uint64_t mib = 300; mib < 700; mib += 13) {
        psi_control control = quick_control(100, 64);
        psi_decision quiet = decide(&control, filling(mib, 10), cache_of(1000));
        psi_decision moves = decide(&control, filling(mib, 1000), cache_of(1000));
        double spare_us = ((double)mib - 64) * 1e6 / 4096 - 100000;
        double quarter_us = ((double)mib - 64) * 1e6 / 4096 / 4;
        quarter_us = quarter_us > 20000 ? 20000 : quarter_us;
        assert_int_equal(quiet.band, PSI_BAND_NONE);
        assert_near((double)quiet.sleep_us,
                    spare_us > quarter_us ? spare_us
                    : quarter_us > 5000   ? quarter_us
                                          : 5000,
                    2);
        quarter_us = quarter_us > 5000 ? 5000 : quarter_us < 2000 ? 2000 : quarter_us;
        assert_true(spare_us > quarter_us || moves.band != PSI_BAND_NONE ||
                    fabs((double)moves.sleep_us - quarter_us) < 2);
    }
}

static void quiet_reads_counters_5_times_a_second(void **state) {
    (void)state;
    psi_control control = quick_control(100, 64);
    psi_reading reading = filling(500, 10);
    unsigned counters = 0, looks = 0;
    for (uint64_t begin_us = reading.at_us; reading.at_us < begin_us + 2000 * MS; looks++) {
        psi_decision decision = decide(&control, reading, cache_of(1000));
        assert_int_equal(decision.look | PSI_LOOK_COUNTERS, PSI_LOOK_ALL);
        counters += (decision.look & PSI_LOOK_COUNTERS) != 0;
        reading.at_us += decision.sleep_us;
    }
    assert_in_range(counters, 8, 11);
    assert_true(looks > 50);
    psi_reading moves = filling(500, 1000);
    moves.at_us = reading.at_us;
    assert_int_equal(decide(&control, moves, cache_of(1000)).look, PSI_LOOK_ALL);
}

/* Far, it slept for a second, and was woken early: what it had in mind to read then is no reading. */
static void who_was_woken_early_reads_counters_in_time(void **state) {
    (void)state;
    psi_control control = quick_control(100, 64);
    psi_demand nothing = cache_of(1000);
    psi_reading reading = filling(4000, 0);
    assert_int_equal(decide(&control, reading, nothing).sleep_us, 500 * MS);
    uint64_t woken_us = reading.at_us += 10 * MS;
    reading.headroom_bytes = 500 * MIB;
    psi_decision decision = decide(&control, reading, nothing);
    while ((decision.look & PSI_LOOK_COUNTERS) == 0) {
        reading.at_us += decision.sleep_us;
        decision = decide(&control, reading, nothing);
    }
    assert_in_range(reading.at_us + decision.sleep_us - woken_us, 1, 250 * MS);
}

/* Reading files fills a group as an allocation does. Before it is taken for one, the counters tell. */
static void before_a_forecast_calls_the_counters_are_read(void **state) {
    (void)state;
    psi_control control = quick_control(500, 64);
    control.options.horizon_us = 0;
    psi_demand demand = cache_of(1000);
    demand.unwritten_bytes = demand.evictable_bytes; /* a long horizon */
    psi_reading reading = filling(464, 0);
    while (decide(&control, reading, demand).look != PSI_LOOK_ALL) {
        reading.at_us += 20 * MS;
    }
    psi_decision decision = {.band = PSI_BAND_NONE};
    bool read_anew = false;
    reading.fill_bytes_per_s = 390 * (int64_t)MIB;
    for (reading.fill_age_us = 0; decision.band == PSI_BAND_NONE && !read_anew;) {
        reading.at_us += 20 * MS;
        reading.fill_age_us += 20 * MS;
        decision = decide(&control, reading, demand);
        read_anew = decision.band == PSI_BAND_NONE && (decision.look & PSI_LOOK_COUNTERS) != 0;
    }
    assert_true(read_anew);
}

static void comfort_has_time(void **state) {
    (void)state;
    psi_reading reading = stalled(900, 0.9); /* of 8 GiB: scarce, and far from the end */
    reading.limit_bytes = 8192 * MIB;
    psi_decision decision = decide_quick(reading, cache_of(1000));
    assert_int_equal(decision.band, PSI_BAND_COMFORT);
    assert_int_equal(decision.sleep_us, 100 * MS);
    assert_int_equal(decision.look, PSI_LOOK_ALL);
}

static void far_from_every_limit_it_hardly_looks(void **state) {
    (void)state;
    psi_control control = quick_control(20, 256);
    psi_reading reading = headroom_of(3000);
    unsigned counters = 0;
    for (unsigned i = 0; i < 20; i++) {
        psi_decision decision = decide(&control, reading, cache_of(1000));
        assert_true(decision.arm);
        assert_int_equal(decision.sleep_us, 500 * MS);
        assert_int_equal(decision.look & ~(uint32_t)PSI_LOOK_COUNTERS, PSI_LOOK_AMOUNTS | PSI_LOOK_RARE);
        counters += (decision.look & PSI_LOOK_COUNTERS) != 0;
        reading.at_us += decision.sleep_us;
    }
    assert_int_equal(counters, 10);
    reading.limit_bytes = 16384 * MIB;
    reading.headroom_bytes = 9000 * MIB; /* more than two seconds at the worst rate */
    assert_int_equal(decide(&control, reading, cache_of(1000)).sleep_us, 1000 * MS);
}

static void far_needs_plenty_and_nothing_waiting(void **state) {
    (void)state;
    psi_demand demand = cache_of(1000);
    assert_true(decide_quick(headroom_of(2500), demand).arm);
    assert_false(decide_quick(headroom_of(1500), demand).arm); /* near at 4 GiB/s */
    psi_reading reading = headroom_of(3000);
    reading.limit_bytes = 16384 * MIB; /* less than a quarter: stall could call, so it is read */
    assert_false(decide_quick(reading, demand).arm);
    assert_int_equal(decide_quick(reading, demand).look, PSI_LOOK_ALL);
    assert_int_equal(decide_quick(reading, demand).sleep_us, 500 * MS);
    assert_false(decide_quick(stalled(3000, 0.9), demand).arm); /* guarded: stays in sight */
    demand.returnable_bytes = 1;
    assert_false(decide_quick(headroom_of(2500), demand).arm);
    demand = (psi_demand){.pending_bytes = 1};
    assert_false(decide_quick(headroom_of(2500), demand).arm);
    assert_false(decide_quick(filling(3500, 2000), cache_of(1000)).arm); /* fast */
}

static void with_stall_alone_it_reads_stall(void **state) {
    (void)state;
    psi_reading reading = stalled(0, 0.02);
    reading.have = PSI_HAVE_STALL;
    psi_decision decision = decide_new(reading, cache_of(1000));
    assert_int_equal(decision.sleep_us, 100 * MS);
    assert_false(decision.arm);
    assert_int_equal(decision.look, PSI_LOOK_ALL);
    reading.stall_some_share = 0.5;
    assert_int_equal(decide_new(reading, cache_of(1000)).sleep_us, 10 * MS);
    reading.stall_some_share = reading.stall_short_share = 0.0; /* quiet: a trigger wakes sooner than 100 ms */
    decision = decide_new(reading, cache_of(1000));
    assert_int_equal(decision.sleep_us, 500 * MS);
    assert_true(decision.arm);
    assert_int_equal(decision.look, PSI_LOOK_ALL);
    psi_demand stored = cache_of(1000);
    stored.returnable_bytes = 1 * MIB;
    assert_int_equal(decide_new(reading, stored).sleep_us, 100 * MS);
    assert_false(decide_new(reading, stored).arm);
}

static void classic_modes_poll(void **state) {
    (void)state;
    psi_control control = new_control();
    control.options.mode = PSI_MODE_PSI;
    psi_decision decision = decide(&control, stalled(4000, 0), cache_of(1000));
    assert_int_equal(decision.sleep_us, 100 * MS);
    assert_false(decision.arm);
    assert_int_equal(decision.look, PSI_LOOK_ALL);
    assert_int_equal(decide(&control, stalled(4000, 0.5), cache_of(1000)).sleep_us, 10 * MS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sleep_follows_headroom_and_rate),
        cmocka_unit_test(what_is_left_asleep_is_enough_to_begin),
        cmocka_unit_test(near_but_quiet_looks_less_often),
        cmocka_unit_test(quiet_sleeps_by_what_is_left),
        cmocka_unit_test(quiet_reads_counters_5_times_a_second),
        cmocka_unit_test(who_was_woken_early_reads_counters_in_time),
        cmocka_unit_test(before_a_forecast_calls_the_counters_are_read),
        cmocka_unit_test(comfort_has_time),
        cmocka_unit_test(far_from_every_limit_it_hardly_looks),
        cmocka_unit_test(far_needs_plenty_and_nothing_waiting),
        cmocka_unit_test(with_stall_alone_it_reads_stall),
        cmocka_unit_test(classic_modes_poll),
    };
    return cmocka_run_group_tests_name("control look", tests, NULL, NULL);
}
