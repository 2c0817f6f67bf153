/* test_control.c - src/control/control.c and regrow.c: which band, how much to give back, how much to take again and
 * when. Pure arithmetic with a time of its own; nothing is random. */
#include "test_control.h"

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

static void headroom_takes_what_is_needed_and_no_more(void **state) {
    (void)state;
    /* needed: 0.7 * 256 / 0.5 - 250 = 108.4 MiB, whatever the size of the cache */
    assert_near((double)decide_new(headroom_of(250), cache_of(800)).trim_bytes / (double)MIB, 108.4, 0.01);
    assert_near((double)decide_new(headroom_of(250), cache_of(2000)).trim_bytes / (double)MIB, 108.4, 0.01);
    assert_int_equal(decide_new(headroom_of(250), cache_of(100)).trim_bytes, 90 * MIB);
    assert_int_equal(decide_new(headroom_of(250), cache_of(100)).band, PSI_BAND_SAFETY);
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
    psi_demand demand = cache_of(100); /* 90 MiB to give, 108 needed */
    demand.pending_bytes = 5 * MIB;
    assert_int_equal(decide(&control, headroom_of(250), demand).trim_bytes, 85 * MIB);
    demand.pending_bytes = 90 * MIB; /* all is asked for, however often we look */
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
    decision = decide_new(filling(300, 500), cache_of(1000)); /* 600 ms; 0.7 * (256 + 250) / 0.5 - 300 */
    assert_false(decision.urgent);
    assert_near((double)decision.trim_bytes / (double)MIB, 408.4, 0.01);
    decision = decide_new(headroom_of(0), cache_of(1000));
    assert_true(decision.urgent);
    assert_near((double)decision.trim_bytes / (double)MIB, 358.4, 0.01);
    assert_int_equal(decide_new(filling(10, 5000), cache_of(1000)).trim_bytes, 900 * MIB); /* what is evictable */
}

/* The second reading of a fill that goes on; reaction 100 ms. */
static uint64_t dropped(uint64_t headroom_mib, int64_t mib_per_s, uint64_t unwritten_mib) {
    psi_demand demand = cache_of(1000); /* 900 MiB evictable */
    psi_control control = new_control();
    control.options.tune = true;
    control.tuning.reaction_us = 100 * MS;
    psi_reading reading = filling(headroom_mib + 8, mib_per_s);
    reading.fill_age_us = 2 * MS;
    demand.unwritten_bytes = 0;
    (void)decide(&control, reading, demand);
    reading.at_us += 2 * MS;
    reading.fill_age_us += 2 * MS;
    reading.headroom_bytes -= 8 * MIB;
    demand.unwritten_bytes = unwritten_mib * MIB;
    return decide(&control, reading, demand).drop_bytes;
}

static void blocks_are_lost_only_when_there_is_no_second_chance(void **state) {
    (void)state;
    assert_int_equal(dropped(300, 2900, 800), 0); /* 290 MiB until the next safe point */
    /* 400 MiB until then; 256 + 400 - 300 wanted, and the store has 100 of them */
    assert_near((double)dropped(300, 4000, 800) / (double)MIB, 256, 0.01);
    assert_int_equal(dropped(300, 4000, 300), 0); /* the store has enough */
    assert_int_equal(dropped(0, 0, 900), 0);      /* nothing fills */
    assert_int_equal(dropped(0, 50000, 2000), 900 * MIB);
}

static void one_jump_loses_no_block(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_demand demand = cache_of(1000);
    demand.unwritten_bytes = 900 * MIB;
    (void)decide(&control, headroom_of(3000), demand);
    psi_reading reading = filling(0, 30000);
    reading.at_us += 100 * MS;
    reading.fill_age_us = 100 * MS;
    assert_int_equal(decide(&control, reading, demand).drop_bytes, 0);
    reading.at_us += 2 * MS;
    reading.fill_age_us += 2 * MS; /* the window still holds the jump */
    assert_int_equal(decide(&control, reading, demand).drop_bytes, 0);
}

static void stall_alone_gives_one_step_a_second(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = stalled(512, 0.1000001); /* just above the limit: the least step */
    psi_decision decision = decide(&control, reading, cache_of(1000));
    assert_int_equal(decision.band, PSI_BAND_COMFORT);
    assert_near((double)decision.trim_bytes / (double)MIB, 100, 0.01);
    reading.at_us += 999 * MS; /* the window still holds the old stall */
    assert_int_equal(decide(&control, reading, cache_of(900)).trim_bytes, 0);
    reading.at_us += 1 * MS;
    assert_near((double)decide(&control, reading, cache_of(900)).trim_bytes / (double)MIB, 90, 0.01);
    reading.at_us += 1 * MS; /* headroom does not wait */
    reading.headroom_bytes = 200 * MIB;
    assert_true(decide(&control, reading, cache_of(810)).trim_bytes > 100 * MIB);
}

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
    demand.pending_bytes = 1; /* what is on its way out comes first */
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
    demand.pending_bytes = 0;
    static const uint64_t steps_mib[] = {10, 20, 40, 50, 50};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(decide(&control, reading, demand).restore_bytes, steps_mib[i] * MIB);
        reading.at_us += 99 * MS;
        assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
        reading.at_us += 1 * MS;
    }
    demand.returnable_bytes = 7 * MIB;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 7 * MIB);
    demand.returnable_bytes = 0;
    reading.at_us += 100 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
}

static void restore_keeps_the_index_below_the_lower_limit(void **state) {
    (void)state;
    psi_demand demand = cache_of(8000);
    demand.returnable_bytes = 2000 * MIB; /* a step is 500 MiB, 100 where memory is scarce; 0.3 is reached at 597.3 */
    for (uint64_t mib = 598; mib < 1200; mib += 7) {
        psi_control control = new_control();
        control.regrow.regrowing = control.restored_before = true; /* under way */
        control.regrow.share = 0.05;
        control.last_restore_us = 9000 * MS;
        uint64_t bytes = decide(&control, headroom_of(mib), demand).restore_bytes;
        double room = (double)mib - 597.3333, step = mib < 1024 ? 100 : 500;
        assert_near((double)bytes / (double)MIB, room < step ? room : step, 0.01);
        psi_reading after = headroom_of(mib);
        after.headroom_bytes -= bytes;
        assert_true(decide_new(after, demand).index < 0.3);
    }
}

/* ---- Bands ------------------------------------------------------------------------------------ */

static void comfort_steps_grow_to_a_fifth(void **state) {
    (void)state;
    assert_near((double)decide_new(stalled(512, 0.99), cache_of(1000)).trim_bytes / (double)MIB, 200, 0.01);
    /* index 0.85 is half way from the limit to 1 */
    assert_near((double)decide_new(stalled(512, 0.85 / 7), cache_of(1000)).trim_bytes / (double)MIB, 150, 0.01);
}

static void safety_goes_on_in_every_reading_while_it_is_needed(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_demand demand = cache_of(1000);
    for (unsigned i = 0; i < 4; i++) { /* 2 ms apart, what was asked is given, and all is taken by somebody */
        psi_reading reading = headroom_of(200);
        reading.at_us += i * 2 * MS;
        psi_decision decision = decide(&control, reading, demand);
        assert_near((double)decision.trim_bytes / (double)MIB, 158.4, 0.01);
        demand.evictable_bytes -= decision.trim_bytes;
        demand.resident_bytes -= decision.trim_bytes;
        demand.returned_bytes += decision.trim_bytes;
    }
}

static void missing_mappings_are_given_their_bytes_at_once(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = headroom_of(0);
    reading.have |= PSI_HAVE_FAULTS;
    reading.major_faults_per_s = 500;
    reading.missing_bytes = 300 * MIB;
    psi_decision decision = decide(&control, reading, cache_of(1000));
    assert_int_equal(decision.band, PSI_BAND_SAFETY);
    assert_near((double)decision.trim_bytes / (double)MIB, 358.4 + 300, 0.01);
    control.options.high = 1; /* no limit that headroom could pass; nor thrash */
    assert_int_equal(decide(&control, reading, cache_of(1000)).trim_bytes, 0);
}

static void an_instant_jump_is_not_a_spike_of_seconds(void **state) {
    (void)state;
    psi_control control = new_control();
    control.options.horizon_us = 0;
    control.options.tune = true;
    control.tuning.reaction_us = 20 * MS;
    psi_demand demand = cache_of(4000);
    demand.unwritten_bytes = 3000 * MIB; /* 15 s to write */
    psi_reading reading = filling(330, 2048);
    reading.fill_age_us = 5 * MS; /* horizon 40 ms: 0.7 * (256 + 81.9) / 0.5 - 330 */
    psi_decision decision = decide(&control, reading, demand);
    assert_near((double)decision.trim_bytes / (double)MIB, 143.1, 0.1);
    assert_false(decision.urgent);
    reading.at_us += 45 * MS;
    reading.fill_age_us = 50 * MS; /* it goes on: 220 ms */
    demand.pending_bytes = decision.trim_bytes;
    decision = decide(&control, reading, demand);
    assert_near((double)(decision.trim_bytes + demand.pending_bytes) / (double)MIB, 1.4 * (256 + 450.56) - 330, 0.1);
    assert_true(decision.urgent);
}

static void classic_modes_trim_in_steps_and_restore_after_dwell(void **state) {
    (void)state;
    psi_control control = new_control();
    control.options.mode = PSI_MODE_AVG10;
    psi_reading reading = stalled(4000, 0);
    reading.have |= PSI_HAVE_AVG10;
    reading.avg10_share = 0.85;
    psi_demand demand = cache_of(1000);
    demand.returnable_bytes = 100 * MIB;
    for (unsigned i = 0; i < 5; i++) { /* no guard: a step a second, for ever */
        psi_decision decision = decide(&control, reading, demand);
        assert_near((double)decision.trim_bytes / (double)MIB, 150, 0.01);
        assert_false(decision.guarded || decision.urgent);
        assert_int_equal(decision.effect, PSI_EFFECT_NONE);
        reading.at_us += 500 * MS;
        assert_int_equal(decide(&control, reading, demand).trim_bytes, 0);
        reading.at_us += 500 * MS;
    }
    reading.avg10_share = 0.29;
    reading.headroom_bytes = 1 * MIB; /* nobody asks */
    reading.at_us += 999 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
    reading.at_us += 1 * MS;
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 55 * MIB);
    reading.at_us += 10000 * MS;
    reading.have &= ~(uint32_t)PSI_HAVE_AVG10; /* not known: no reason to take memory */
    assert_int_equal(decide(&control, reading, demand).restore_bytes, 0);
}

static void cleaning_goes_on_while_there_is_time(void **state) {
    (void)state;
    psi_demand demand = cache_of(1000);
    demand.unwritten_bytes = 10 * MIB;
    assert_true(decide_new(headroom_of(1700), demand).clean);
    assert_false(decide_new(headroom_of(1800), demand).clean); /* 0.0996 */
    assert_false(decide_new(headroom_of(200), demand).clean);  /* now there is better to do */
    demand.unwritten_bytes = 0;
    assert_false(decide_new(headroom_of(1700), demand).clean);
}

/* ---- Regrowing -------------------------------------------------------------------------------- */

static psi_demand half_stored(uint64_t resident_mib) {
    psi_demand demand = cache_of(resident_mib);
    demand.returnable_bytes = (1000 - resident_mib) * MIB;
    return demand;
}

static void regrow_stops_for_a_second_at_the_first_stall(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = stalled(3000, 0.01);
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    reading.at_us += 100 * MS;
    reading.stall_short_share = 0.03;
    assert_int_equal(decide(&control, reading, half_stored(510)).restore_bytes, 0);
    reading.stall_short_share = 0;
    reading.at_us += 999 * MS;
    assert_int_equal(decide(&control, reading, half_stored(510)).restore_bytes, 0);
    reading.at_us += 1 * MS;
    assert_int_equal(decide(&control, reading, half_stored(510)).restore_bytes, 10 * MIB); /* small again */
    reading.at_us += 100 * MS;
    reading.stall_short_share = 0.03;
    reading.have &= ~(uint32_t)PSI_HAVE_STALL; /* a number that is not known is not used */
    assert_int_equal(decide(&control, reading, half_stored(520)).restore_bytes, 20 * MIB);
}

static void nobody_regrows_against_a_filling_neighbour(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = filling(2500, 129); /* half the reserve is 128 MiB a second */
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 0);
    reading.fill_bytes_per_s = 127 * (int64_t)MIB;
    reading.at_us += 1000 * MS;
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
}

/* A machine with gigabytes to spare, on which somebody is always starting something. */
static void a_neighbour_fills_what_is_far_from_full_and_all_regrow(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = filling(3000, 149); /* lasts for more than 20 s */
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    control = new_control();
    reading = filling(18000, 800);
    reading.limit_bytes = 24000 * MIB;
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    reading.at_us += 100 * MS;
    reading.headroom_bytes -= 500 * MIB; /* no thirty-second of what is left */
    assert_int_equal(decide(&control, reading, half_stored(510)).restore_bytes, 20 * MIB);
    reading.at_us += 100 * MS;
    reading.headroom_bytes -= 500 * MIB;
    assert_int_equal(decide(&control, reading, half_stored(530)).restore_bytes, 0);
}

static void regrow_stops_when_headroom_goes_faster_than_it_takes(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = headroom_of(3000);
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    reading.at_us += 100 * MS;
    reading.headroom_bytes = 2870 * MIB; /* 10 of ours, and up to half the reserve of others */
    assert_int_equal(decide(&control, reading, half_stored(510)).restore_bytes, 20 * MIB);
    reading.at_us += 100 * MS;
    reading.headroom_bytes = 2840 * MIB;
    assert_int_equal(decide(&control, reading, half_stored(530)).restore_bytes, 0);
    reading.at_us += 1000 * MS; /* measured anew from there */
    assert_int_equal(decide(&control, reading, half_stored(530)).restore_bytes, 10 * MIB);
}

/* Regrows from 500 to 510 MiB, and is pressed `later_us` after. */
static psi_decision fail_to_regrow(psi_control *control, uint64_t *at_us, uint64_t later_us) {
    psi_reading reading = headroom_of(3000);
    reading.at_us = *at_us;
    assert_int_equal(decide(control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    *at_us = reading.at_us += later_us;
    reading.headroom_bytes = 200 * MIB;
    return decide(control, reading, half_stored(510));
}

static void a_regrow_that_fails_lowers_the_ceiling_for_longer_each_time(void **state) {
    (void)state;
    psi_control control = new_control();
    uint64_t at_us = 10000 * MS, wait_us = 10000 * MS;
    for (unsigned i = 0; i < 9; i++) {
        assert_int_equal(fail_to_regrow(&control, &at_us, 4999 * MS).ceiling_bytes, 500 * MIB);
        psi_reading reading = headroom_of(3000);
        reading.at_us = at_us + wait_us - 1;
        psi_decision decision = decide(&control, reading, half_stored(500));
        assert_int_equal(decision.restore_bytes, 0);
        assert_int_equal(decision.ceiling_bytes, 500 * MIB);
        decision = decide(&control, reading, half_stored(493)); /* up to it, and no further */
        assert_int_equal(decision.restore_bytes, 7 * MIB);
        reading.at_us += 100 * MS;
        decision = decide(&control, reading, half_stored(500));
        assert_int_equal(decision.ceiling_bytes, UINT64_MAX);
        at_us = reading.at_us + 6000 * MS;
        wait_us = wait_us * 2 < 600000 * MS ? wait_us * 2 : 600000 * MS;
    }
}

/* What failed under a limit says nothing of a larger one; but a machine whose nearest limit is now this one and now
 * that one is not told anew each time. */
static void a_larger_limit_lifts_the_ceiling(void **state) {
    (void)state;
    psi_control control = new_control();
    uint64_t at_us = 10000 * MS;
    assert_int_equal(fail_to_regrow(&control, &at_us, 1000 * MS).ceiling_bytes, 500 * MIB);
    psi_reading reading = headroom_of(3000);
    reading.at_us = at_us + 3000 * MS;
    reading.have &= ~(uint32_t)PSI_HAVE_HEADROOM; /* nor is a limit known */
    reading.limit_bytes = UINT64_MAX;
    assert_int_equal(decide(&control, reading, half_stored(500)).ceiling_bytes, 500 * MIB);
    reading = headroom_of(3000);
    reading.limit_bytes -= 1;
    reading.at_us = at_us + 4000 * MS;
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 0);
    reading.limit_bytes += 2;
    reading.at_us += 100 * MS;
    psi_decision decision = decide(&control, reading, half_stored(500));
    assert_int_equal(decision.ceiling_bytes, UINT64_MAX);
    assert_int_equal(decision.restore_bytes, 10 * MIB);
    assert_int_equal(control.regrow.wait_us, 0);
    at_us = reading.at_us + 10000 * MS;
    reading.headroom_bytes = 200 * MIB; /* it held until then; the next one fails under the larger limit */
    reading.at_us = at_us;
    (void)decide(&control, reading, half_stored(510));
    reading.headroom_bytes = 3000 * MIB;
    reading.at_us += 3000 * MS;
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    reading.headroom_bytes = 200 * MIB;
    reading.at_us += 1000 * MS;
    assert_int_equal(decide(&control, reading, half_stored(510)).ceiling_bytes, 500 * MIB);
    at_us = reading.at_us + 10000 * MS; /* the ceiling's time is over */
    assert_int_equal(fail_to_regrow(&control, &at_us, 1000 * MS).ceiling_bytes, 500 * MIB); /* under the smaller one */
    reading.headroom_bytes = 3000 * MIB;
    reading.at_us = at_us + 3000 * MS;
    assert_int_equal(decide(&control, reading, half_stored(500)).ceiling_bytes, 500 * MIB);
}

/* Where the nearest limit is now the group's and now the machine's, the machine's larger one is told once: else a
 * neighbour that comes and goes would have each failure be the first. */
static void a_nearest_limit_that_comes_and_goes_lifts_the_ceiling_once(void **state) {
    (void)state;
    psi_control control = new_control();
    uint64_t at_us = 10000 * MS;
    for (unsigned i = 0; i < 3; i++, at_us += 30000 * MS) {
        assert_int_equal(fail_to_regrow(&control, &at_us, 1000 * MS).ceiling_bytes, 500 * MIB);
        psi_reading reading = headroom_of(1500);
        reading.bound = PSI_BOUND_MACHINE;
        reading.limit_bytes = 65536 * MIB;
        reading.at_us = at_us + 1000 * MS;
        psi_decision decision = decide(&control, reading, half_stored(500));
        assert_int_equal(decision.ceiling_bytes, i == 0 ? UINT64_MAX : 500 * MIB);
    }
    psi_reading larger = headroom_of(3000); /* the group's own is still heard of */
    larger.limit_bytes += MIB;
    larger.at_us = at_us - 27000 * MS;
    assert_int_equal(decide(&control, larger, half_stored(500)).ceiling_bytes, UINT64_MAX);
}

static void a_regrow_that_holds_forgets_the_failures(void **state) {
    (void)state;
    psi_control control = new_control();
    uint64_t at_us = 10000 * MS;
    assert_int_equal(fail_to_regrow(&control, &at_us, 5000 * MS).ceiling_bytes, UINT64_MAX); /* it had held */
    at_us += 5000 * MS;
    (void)fail_to_regrow(&control, &at_us, 1000 * MS);
    at_us += 10000 * MS;
    (void)fail_to_regrow(&control, &at_us, 1000 * MS);
    assert_int_equal(control.regrow.wait_us, 20000 * MS);
    psi_reading reading = headroom_of(3000);
    reading.at_us = at_us + 61000 * MS;
    (void)decide(&control, reading, half_stored(1000)); /* a minute without a trim */
    assert_int_equal(control.regrow.wait_us, 0);
}

static void a_trim_of_the_users_is_no_failure_but_dwells(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = headroom_of(3000);
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 10 * MIB);
    psi_control_note_trim(&control, reading.at_us + 1000 * MS);
    reading.at_us += 2999 * MS;
    psi_decision decision = decide(&control, reading, half_stored(500));
    assert_int_equal(decision.restore_bytes, 0);
    assert_int_equal(decision.ceiling_bytes, UINT64_MAX);
    reading.at_us += 1 * MS;
    assert_true(decide(&control, reading, half_stored(500)).restore_bytes > 0);
}

static void a_clock_that_goes_back_does_not_end_regrowing(void **state) {
    (void)state;
    psi_control control = new_control();
    psi_reading reading = headroom_of(200);
    reading.at_us = 1000000 * 1000 * MS;
    assert_true(decide(&control, reading, half_stored(500)).trim_bytes > 0);
    reading = headroom_of(3000); /* ten seconds after boot */
    assert_int_equal(decide(&control, reading, half_stored(500)).restore_bytes, 0);
    reading.at_us += 2000 * MS;
    assert_true(decide(&control, reading, half_stored(500)).restore_bytes > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(between_the_limits_nothing_happens),
        cmocka_unit_test(headroom_takes_what_is_needed_and_no_more),
        cmocka_unit_test(limits_of_the_user_move_the_decision),
        cmocka_unit_test(pending_bytes_are_not_asked_for_twice),
        cmocka_unit_test(urgent_gives_all_that_is_needed_at_once),
        cmocka_unit_test(blocks_are_lost_only_when_there_is_no_second_chance),
        cmocka_unit_test(one_jump_loses_no_block),
        cmocka_unit_test(stall_alone_gives_one_step_a_second),
        cmocka_unit_test(restore_waits_for_dwell_and_goes_in_steps),
        cmocka_unit_test(restore_keeps_the_index_below_the_lower_limit),
        cmocka_unit_test(comfort_steps_grow_to_a_fifth),
        cmocka_unit_test(safety_goes_on_in_every_reading_while_it_is_needed),
        cmocka_unit_test(missing_mappings_are_given_their_bytes_at_once),
        cmocka_unit_test(an_instant_jump_is_not_a_spike_of_seconds),
        cmocka_unit_test(classic_modes_trim_in_steps_and_restore_after_dwell),
        cmocka_unit_test(cleaning_goes_on_while_there_is_time),
        cmocka_unit_test(regrow_stops_for_a_second_at_the_first_stall),
        cmocka_unit_test(nobody_regrows_against_a_filling_neighbour),
        cmocka_unit_test(a_neighbour_fills_what_is_far_from_full_and_all_regrow),
        cmocka_unit_test(regrow_stops_when_headroom_goes_faster_than_it_takes),
        cmocka_unit_test(a_regrow_that_fails_lowers_the_ceiling_for_longer_each_time),
        cmocka_unit_test(a_larger_limit_lifts_the_ceiling),
        cmocka_unit_test(a_nearest_limit_that_comes_and_goes_lifts_the_ceiling_once),
        cmocka_unit_test(a_regrow_that_holds_forgets_the_failures),
        cmocka_unit_test(a_trim_of_the_users_is_no_failure_but_dwells),
        cmocka_unit_test(a_clock_that_goes_back_does_not_end_regrowing),
    };
    return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
