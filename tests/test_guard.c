/* test_guard.c - src/control/guard.c: was a trim of use, what may comfort trims take, and when do they pause. Pure
 * arithmetic with a time of its own; nothing is random. */
#include "test_control.h"

/* A cache that gives what is asked before the next reading, and a stall that the test sets. */
typedef struct bed {
    psi_control control;
    psi_reading reading;
    psi_demand demand;
} bed;

static bed new_bed(psi_reading reading) {
    bed b = {.control = new_control(), .reading = reading, .demand = cache_of(1000)};
    return b;
}

static psi_decision step(bed *b) { return decide(&b->control, b->reading, b->demand); }

static void give(bed *b, uint64_t bytes) {
    b->demand.resident_bytes -= bytes;
    b->demand.evictable_bytes -= bytes;
    b->demand.returnable_bytes += bytes;
    b->demand.returned_bytes += bytes;
}

/* One reading `after_ms` later; what it asks is given at once. */
static psi_decision go(bed *b, uint64_t after_ms) {
    b->reading.at_us += after_ms * MS;
    psi_decision decision = step(b);
    give(b, decision.trim_bytes);
    return decision;
}

/* ---- Effect: safety --------------------------------------------------------------------------- */

static void headroom_that_grew_by_half_is_good(void **state) {
    (void)state;
    for (uint64_t percent = 49; percent <= 51; percent += 2) {
        bed b = new_bed(headroom_of(200));
        psi_decision decision = go(&b, 0);
        assert_int_equal(decision.effect, PSI_EFFECT_NONE);
        b.demand.evictable_bytes = 0;                         /* no further trim mixes in */
        assert_int_equal(go(&b, 1).effect, PSI_EFFECT_WAITS); /* sees that it was given; its headroom may be older */
        assert_int_equal(go(&b, 0).effect, PSI_EFFECT_WAITS); /* nor while the clock stands */
        b.reading.headroom_bytes += decision.trim_bytes * percent / 100;
        assert_int_equal(go(&b, 1).effect, percent < 50 ? PSI_EFFECT_EATEN : PSI_EFFECT_GOOD);
    }
}

static void what_others_took_meanwhile_is_no_fault_of_ours(void **state) {
    (void)state;
    static const struct {
        uint64_t grown_mib;
        psi_effect effect;
    } cases[] = {{110, PSI_EFFECT_GOOD}, {60, PSI_EFFECT_GOOD}, {40, PSI_EFFECT_EATEN}};
    for (size_t i = 0; i < 3; i++) {
        bed b = new_bed(headroom_of(200));
        uint64_t given = go(&b, 0).trim_bytes;
        assert_near((double)given / (double)MIB, 158.4, 0.01);
        b.reading.have |= PSI_HAVE_FILL; /* 300 MiB/s for 100 ms: 79.2 - 30 must be there */
        b.reading.fill_bytes_per_s = 300 * (int64_t)MIB;
        b.reading.headroom_bytes += cases[i].grown_mib * MIB;
        b.demand.evictable_bytes = 0; /* no further trim mixes in */
        assert_int_equal(go(&b, 50).effect, PSI_EFFECT_WAITS);
        assert_int_equal(go(&b, 50).effect, cases[i].effect);
        assert_int_equal(go(&b, 50).effect, PSI_EFFECT_NONE);
    }
}

static void what_is_not_given_is_not_judged(void **state) {
    (void)state;
    bed b = new_bed(headroom_of(200));
    psi_decision decision = step(&b);
    b.demand.pending_bytes = decision.trim_bytes;
    for (unsigned i = 0; i < 100; i++) /* an engine that sleeps */
        assert_int_equal(go(&b, 100).effect, PSI_EFFECT_WAITS);
    give(&b, b.demand.pending_bytes / 4); /* a part: not yet */
    b.demand.pending_bytes = b.demand.pending_bytes * 3 / 4;
    assert_int_equal(go(&b, 1).effect, PSI_EFFECT_WAITS);
    b.demand.pending_bytes = 0; /* taken back, a second and more after: nothing to learn */
    b.demand.evictable_bytes = 0;
    assert_int_equal(go(&b, 1).effect, PSI_EFFECT_NONE);
    assert_false(b.control.action.open);
}

static void mappings_that_come_back_count_as_grown(void **state) {
    (void)state;
    bed b = new_bed(headroom_of(0));
    b.reading.missing_bytes = 300 * MIB;
    uint64_t given = go(&b, 0).trim_bytes;
    b.reading.missing_bytes = 0;
    b.reading.headroom_bytes = given - 300 * MIB;
    b.demand.evictable_bytes = 0;
    assert_int_equal(go(&b, 1).effect, PSI_EFFECT_WAITS);
    assert_int_equal(go(&b, 1).effect, PSI_EFFECT_GOOD);
}

static void safety_asks_again_though_the_last_was_eaten(void **state) {
    (void)state;
    bed b = new_bed(headroom_of(200));
    unsigned eaten = 0;
    uint64_t asked = 0;
    for (unsigned i = 0; i < 20; i++) {
        psi_decision decision = go(&b, 2);
        asked += decision.trim_bytes;
        assert_false(decision.guarded);
        eaten += decision.effect == PSI_EFFECT_EATEN;
    }
    assert_int_equal(asked, 900 * MIB); /* all that can be given */
    assert_true(eaten >= 3);            /* and it is said while it goes on */
}

/* ---- Effect: comfort -------------------------------------------------------------------------- */

static void stall_must_fall_by_a_fifth_in_a_second(void **state) {
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        bed b = new_bed(stalled(512, 0.5));
        assert_true(go(&b, 0).trim_bytes > 0);
        b.reading.stall_some_share = i == 0 ? 0.39 : 0.41;
        assert_int_equal(go(&b, 10).effect, PSI_EFFECT_WAITS);
        assert_int_equal(go(&b, 999).effect, PSI_EFFECT_WAITS);
        psi_decision decision = go(&b, 1);
        assert_int_equal(decision.effect, i == 0 ? PSI_EFFECT_GOOD : PSI_EFFECT_FUTILE);
        assert_true(decision.trim_bytes > 0); /* one futile trim may be bad luck */
    }
}

static void thrash_is_judged_by_thrash(void **state) {
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        bed b = new_bed(stalled(512, 0.05));
        b.reading.have |= PSI_HAVE_FAULTS;
        b.reading.major_faults_per_s = 5000; /* far beyond where the index ends */
        assert_true(go(&b, 0).trim_bytes > 0);
        b.reading.stall_some_share = 0.5;
        b.reading.major_faults_per_s = i == 0 ? 3900 : 4100;
        (void)go(&b, 10);
        assert_int_equal(go(&b, 1000).effect, i == 0 ? PSI_EFFECT_GOOD : PSI_EFFECT_FUTILE);
    }
    bed b = new_bed(stalled(512, 0.5));
    assert_true(go(&b, 0).trim_bytes > 0);
    (void)go(&b, 10);
    b.reading.have &= ~(uint32_t)PSI_HAVE_STALL; /* the source is gone: no judgement */
    assert_int_equal(go(&b, 1000).effect, PSI_EFFECT_NONE);
}

static void futile_trims_pause_for_longer_each_time(void **state) {
    (void)state;
    bed b = new_bed(stalled(512, 0.11));
    b.control.options.guard_share = 1;
    b.control.options.guard_period_us = 1000 * MS; /* the pause alone */
    uint64_t pause_ms = 10000;
    assert_true(go(&b, 0).trim_bytes > 0);
    (void)go(&b, 10);
    assert_true(go(&b, 1000).trim_bytes > 0);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(go(&b, 10).effect, PSI_EFFECT_WAITS);
        psi_decision decision = go(&b, 1000);
        assert_int_equal(decision.effect, PSI_EFFECT_FUTILE);
        assert_int_equal(decision.trim_bytes, 0);
        assert_true(decision.guarded);
        decision = go(&b, pause_ms - 1);
        assert_int_equal(decision.trim_bytes, 0);
        assert_true(decision.guarded);
        decision = go(&b, 1);
        assert_true(decision.trim_bytes > 0);
        assert_false(decision.guarded);
        pause_ms = pause_ms * 2 < 300000 ? pause_ms * 2 : 300000;
    }
    b.reading.headroom_bytes = 200 * MIB; /* safety does not pause */
    assert_true(go(&b, 1).trim_bytes > 0);
}

static void a_good_trim_ends_the_row(void **state) {
    (void)state;
    bed b = new_bed(stalled(512, 0.5));
    (void)go(&b, 0);
    (void)go(&b, 10);
    assert_int_equal(go(&b, 1000).effect, PSI_EFFECT_FUTILE);
    (void)go(&b, 10);
    b.reading.stall_some_share = 0.3;
    assert_int_equal(go(&b, 1000).effect, PSI_EFFECT_GOOD);
    (void)go(&b, 10);
    assert_int_equal(go(&b, 1000).effect, PSI_EFFECT_FUTILE); /* the first again */
    assert_int_equal(b.control.guard.futile_until_us, 0);
}

/* ---- Budget ----------------------------------------------------------------------------------- */

/* Stall that falls by a fifth with each trim, as if it helped, and comes back: the budget alone can end it. */
static uint64_t press_for(bed *b, unsigned seconds, unsigned *guarded) {
    uint64_t taken = 0;
    for (unsigned i = 0; i < seconds * 10; i++) {
        psi_decision decision = go(b, 100);
        b->control.guard.futile_in_row = 0;
        taken += decision.trim_bytes;
        *guarded += decision.guarded;
    }
    return taken;
}

static void comfort_takes_no_more_than_its_share_in_a_period(void **state) {
    (void)state;
    bed b = new_bed(stalled(512, 0.9));
    unsigned guarded = 0;
    uint64_t taken = press_for(&b, 59, &guarded);
    assert_true(taken <= 500 * MIB && taken > 400 * MIB);
    assert_true(guarded > 500); /* and says so all the while */
    assert_int_equal(press_for(&b, 1, &guarded), 0);
    assert_true(press_for(&b, 2, &guarded) > 0); /* the next period */
    bed tight = new_bed(stalled(512, 0.9));
    tight.control.options.guard_share = 0.15;
    taken = press_for(&tight, 59, &guarded);
    assert_int_equal(taken, 150 * MIB); /* the first step is cut to what is left */
}

static void safety_is_outside_the_budget(void **state) {
    (void)state;
    bed b = new_bed(stalled(512, 0.9));
    unsigned guarded = 0;
    (void)press_for(&b, 50, &guarded);
    b.reading.headroom_bytes = 100 * MIB;
    psi_decision decision = go(&b, 1);
    assert_int_equal(decision.band, PSI_BAND_SAFETY);
    assert_near((double)decision.trim_bytes / (double)MIB, 258.4, 0.01);
    assert_false(decision.guarded);
}

static void zero_options_are_the_defaults(void **state) {
    (void)state;
    bed b = new_bed(stalled(512, 0.9));
    b.control.options.guard_share = 0;
    b.control.options.guard_period_us = 0;
    unsigned guarded = 0;
    uint64_t taken = press_for(&b, 59, &guarded);
    assert_true(taken <= 500 * MIB && taken > 400 * MIB);
}

static void pressure_that_we_do_not_make_costs_little(void **state) {
    (void)state;
    bed b = new_bed(stalled(512, 0.9)); /* scarce, and a neighbour stalls whatever we do: ten minutes */
    for (unsigned i = 0; i < 6000; i++)
        (void)go(&b, 100);
    assert_true(b.demand.resident_bytes > 200 * MIB); /* 2 trims, then after 10, 20, 40, 80, 160 and 300 s */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headroom_that_grew_by_half_is_good),
        cmocka_unit_test(what_others_took_meanwhile_is_no_fault_of_ours),
        cmocka_unit_test(what_is_not_given_is_not_judged),
        cmocka_unit_test(mappings_that_come_back_count_as_grown),
        cmocka_unit_test(safety_asks_again_though_the_last_was_eaten),
        cmocka_unit_test(stall_must_fall_by_a_fifth_in_a_second),
        cmocka_unit_test(thrash_is_judged_by_thrash),
        cmocka_unit_test(futile_trims_pause_for_longer_each_time),
        cmocka_unit_test(a_good_trim_ends_the_row),
        cmocka_unit_test(comfort_takes_no_more_than_its_share_in_a_period),
        cmocka_unit_test(safety_is_outside_the_budget),
        cmocka_unit_test(zero_options_are_the_defaults),
        cmocka_unit_test(pressure_that_we_do_not_make_costs_little),
    };
    return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
