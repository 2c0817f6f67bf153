/* test_derive.c - samples to readings, without any file: the tightest bound, what the own mappings miss, and how long
 * a fill has lasted. */
#include "samples.h"

/* ---- Headroom and its bound ------------------------------------------------------------------- */

static void the_tightest_bound_is_named(void **state) {
    (void)state;
    psi_reading reading = step(0, PSI_LOOK_ALL);
    assert_true(reading.bound == PSI_BOUND_NONE && reading.headroom_bytes == UINT64_MAX);
    set_machine(8192 * MIB, 1000 * MIB);
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_true(reading.bound == PSI_BOUND_MACHINE && reading.headroom_bytes == 1000 * MIB);
    set_bound(PSI_RAW_V2_BOUND, 0, 4096 * MIB, 3000 * MIB, 0);
    set_bound(PSI_RAW_V2_BOUND, 3, 4096 * MIB, 3500 * MIB, 100 * MIB);
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_true(reading.bound == PSI_BOUND_V2 && reading.bound_level == 3 && reading.headroom_bytes == 696 * MIB);
    set_bound(PSI_RAW_V1_BOUND, 0, 512 * MIB, 500 * MIB, 0);
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_true(reading.bound == PSI_BOUND_V1 && reading.bound_level == 0 && reading.headroom_bytes == 12 * MIB);
    set_bound(PSI_RAW_V1_BOUND, 0, 512 * MIB, 600 * MIB, 0); /* over it, as when it was lowered */
    set_bound(PSI_RAW_V2_BOUND, 0, 4096 * MIB, 4100 * MIB, 0);
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_true(reading.bound == PSI_BOUND_V1 && reading.headroom_bytes == 0 && reading.missing_bytes == 88 * MIB);
    lose(psi_raw_bound(PSI_RAW_V1_BOUND, 0, PSI_BOUND_USAGE)); /* a limit without its usage says nothing */
    assert_true(step(100 * MS, PSI_LOOK_ALL).bound == PSI_BOUND_V2);
}

/* ---- What the own mappings miss --------------------------------------------------------------- */

/* A group at 4000 of 4096 MiB that holds 1000 MiB of mapped weights, all of them in use. */
static uint64_t faults;

static void set_group(uint64_t usage, uint64_t file) {
    set_bound(PSI_RAW_V2_BOUND, 0, 4096 * MIB, usage, file);
    set(PSI_RAW_SELF_FILE_BYTES, file);
    set(PSI_RAW_SELF_MAJOR_FAULTS, faults);
}

static void begin_group(void) {
    faults = 0;
    set_machine(65536 * MIB, 60000 * MIB);
    set(PSI_RAW_SELF_MAPPED_BYTES, 1000 * MIB);
    set_group(4000 * MIB, 1000 * MIB);
    assert_int_equal(step(0, PSI_LOOK_ALL).headroom_bytes, 96 * MIB);
    step(1 * SECOND, PSI_LOOK_ALL);
}

static void weights_that_reclaim_took_are_no_relief(void **state) {
    (void)state;
    begin_group();
    psi_reading reading = {0};
    for (uint64_t taken = 50; taken <= 500; taken += 50) { /* the process faults for them all the time */
        faults += 100;
        set_group((4000 - taken) * MIB, (1000 - taken) * MIB);
        reading = step(100 * MS, PSI_LOOK_ALL);
        assert_int_equal(reading.headroom_bytes, 96 * MIB);
        assert_near(mib_per_s(&reading), 0, 1);
    }
    set_group(4000 * MIB, 500 * MIB); /* a neighbour in the group has taken their place */
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_int_equal(reading.headroom_bytes, 0);
    assert_int_equal(reading.missing_bytes, 404 * MIB);
    assert_true(mib_per_s(&reading) > 4000);
}

static void weights_that_come_back_are_no_fill(void **state) {
    (void)state;
    begin_group();
    psi_reading reading = {0};
    faults += 100;
    set_group(3500 * MIB, 500 * MIB);
    step(1 * SECOND, PSI_LOOK_ALL);
    for (uint64_t back = 0; back <= 500; back += 4) { /* 2000 MiB/s, counters fresh only at each 25th look */
        faults += 5;
        set(psi_raw_bound(PSI_RAW_V2_BOUND, 0, PSI_BOUND_USAGE), (3500 + back) * MIB);
        uint32_t look = PSI_LOOK_AMOUNTS;
        if (back % 100 == 0) {
            set_group((3500 + back) * MIB, (500 + back) * MIB);
            look |= PSI_LOOK_COUNTERS;
        }
        reading = step(2 * MS, look);
        assert_true(mib_per_s(&reading) < 1);
    }
    assert_int_equal(reading.headroom_bytes, 96 * MIB);
    set_group(4050 * MIB, 1000 * MIB); /* all are back: what is used now is fill */
    reading = step(50 * MS, PSI_LOOK_ALL);
    assert_true(mib_per_s(&reading) > 900);
}

static void mappings_that_nobody_wants_are_forgotten(void **state) {
    (void)state;
    begin_group();
    psi_reading reading = {0};
    set_group(3500 * MIB, 500 * MIB); /* reclaim took what was used for loading only: no faults */
    reading = step(1 * SECOND, PSI_LOOK_ALL);
    for (int i = 0; i < 100; i++) {
        reading = step(100 * MS, PSI_LOOK_ALL);
        assert_near(mib_per_s(&reading), 0, 1);
    }
    assert_near((double)reading.headroom_bytes / (double)MIB, 596 - 500 * 0.5 * 0.93, 10); /* a half-life of 10 s */
    faults += 1000; /* wanted again: what is left of it stays */
    set_group(3500 * MIB, 500 * MIB);
    uint64_t before = step(100 * MS, PSI_LOOK_ALL).headroom_bytes;
    for (int i = 0; i < 100; i++) {
        faults += 10;
        set_group(3500 * MIB, 500 * MIB);
        reading = step(100 * MS, PSI_LOOK_ALL);
    }
    assert_int_equal(reading.headroom_bytes, before);
    for (int i = 0; i < 100; i++) { /* a few faults that read ahead far are as good */
        faults += 1;
        set(PSI_RAW_OWN_REFAULT_FILE, (uint64_t)i * 5000);
        set_group(3500 * MIB, 500 * MIB);
        reading = step(100 * MS, PSI_LOOK_ALL);
    }
    assert_int_equal(reading.headroom_bytes, before);
    reading = step(300 * SECOND, PSI_LOOK_ALL);
    assert_near((double)reading.headroom_bytes / (double)MIB, 596, 0.1);
}

static void forgetting_hides_no_fill(void **state) {
    (void)state;
    begin_group();
    set_group(3000 * MIB, 0);
    psi_reading reading = step(50 * MS, PSI_LOOK_ALL);
    for (uint64_t i = 1; i <= 40; i++) { /* 100 MiB/s, while 70 MiB/s are forgotten */
        set_group((3000 + i * 5) * MIB, 0);
        reading = step(50 * MS, PSI_LOOK_ALL);
    }
    assert_near(mib_per_s(&reading), 100, 5);
}

static void a_cold_load_misses_nothing(void **state) {
    (void)state;
    set_machine(8192 * MIB, 6000 * MIB);
    set(PSI_RAW_SELF_MAPPED_BYTES, 2000 * MIB);
    for (uint64_t loaded = 0; loaded <= 2000; loaded += 100) {
        set(PSI_RAW_SELF_FILE_BYTES, loaded * MIB);
        psi_reading reading = step(100 * MS, PSI_LOOK_ALL);
        assert_int_equal(reading.headroom_bytes, (6000 - loaded) * MIB);
        assert_int_equal(reading.missing_bytes, 0);
    }
}

static void the_machine_taking_weights_and_giving_them_back_changes_nothing(void **state) {
    (void)state;
    set_machine(8192 * MIB, 1500 * MIB);
    set(PSI_RAW_SELF_FILE_BYTES, 1000 * MIB);
    set(PSI_RAW_SELF_MAJOR_FAULTS, 0);
    assert_int_equal(step(0, PSI_LOOK_ALL).headroom_bytes, 500 * MIB);
    for (uint64_t i = 0; i < 20; i++) {
        faults += 10;
        set(PSI_RAW_SELF_MAJOR_FAULTS, faults);
        set(PSI_RAW_SELF_FILE_BYTES, (i % 2 ? 1000 : 300) * MIB);
        psi_reading reading = step(100 * MS, PSI_LOOK_ALL);
        assert_near((double)reading.headroom_bytes / (double)MIB, 500, 10); /* the first looks have no fault rate yet */
        assert_near(mib_per_s(&reading), 0, 1);
    }
    set(PSI_RAW_SELF_FILE_BYTES, 300 * MIB);
    set_machine(8192 * MIB, 900 * MIB); /* what it took is used by another now */
    psi_reading reading = step(100 * MS, PSI_LOOK_ALL);
    assert_int_equal(reading.headroom_bytes, 0);
    assert_near((double)reading.missing_bytes / (double)MIB, 100, 10);
}

static void what_is_unmapped_or_locked_is_not_missing(void **state) {
    (void)state;
    begin_group();
    set(PSI_RAW_SELF_MAPPED_BYTES, 0); /* the model was unloaded; its pages stay in the cache for a while */
    set_bound(PSI_RAW_V2_BOUND, 0, 4096 * MIB, 4000 * MIB, 1000 * MIB);
    set(PSI_RAW_SELF_FILE_BYTES, 2 * MIB);
    psi_reading reading = step(100 * MS, PSI_LOOK_ALL);
    assert_int_equal(reading.headroom_bytes, (96 + 998) * MIB);
    set(PSI_RAW_SELF_MAPPED_BYTES, 1000 * MIB);
    set(PSI_RAW_SELF_FILE_BYTES, 1000 * MIB);
    assert_int_equal(step(100 * MS, PSI_LOOK_ALL).headroom_bytes, 96 * MIB);
    set(PSI_RAW_SELF_LOCKED_BYTES, 1000 * MIB); /* locked: out of the cache that can be reclaimed */
    set_bound(PSI_RAW_V2_BOUND, 0, 4096 * MIB, 4000 * MIB, 0);
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_int_equal(reading.headroom_bytes, 96 * MIB);
    assert_int_equal(reading.missing_bytes, 0);
}

/* ---- How long a fill has lasted --------------------------------------------------------------- */

static uint64_t used;

static psi_reading use(double mib_a_second, uint64_t for_us) {
    psi_reading reading = {0};
    for (uint64_t us = 0; us < for_us; us += 2 * MS) {
        used += (uint64_t)(mib_a_second * (double)MIB * 0.002);
        set_bound(PSI_RAW_V1_BOUND, 0, 65536 * MIB, used, 0);
        reading = step(2 * MS, PSI_LOOK_AMOUNTS);
    }
    return reading;
}

static void fill_age_is_what_was_watched(void **state) {
    (void)state;
    used = 1000 * MIB;
    assert_int_equal(use(0, 100 * MS).fill_age_us, 0);
    assert_near((double)use(500, 4 * MS).fill_age_us, 4000, 2001);
    assert_near((double)use(500, 196 * MS).fill_age_us, 200000, 5001);
    assert_near((double)use(0, 2 * MS).fill_age_us, 202000, 8001); /* descheduled for a moment: no break */
    assert_near((double)use(500, 98 * MS).fill_age_us, 300000, 8001);
    assert_int_equal(use(0, 20 * MS).fill_age_us, 0);
    assert_near((double)use(500, 50 * MS).fill_age_us, 50000, 8001); /* it began anew */
    use(0, 10 * SECOND);
    use(100, 300 * MS); /* slow at first ... */
    psi_reading reading = use(500, 40 * MS);
    assert_true(mib_per_s(&reading) > 450);
    assert_near((double)reading.fill_age_us, 40000, 8001);            /* ... so that it is fast only since then */
    assert_near((double)use(300, 60 * MS).fill_age_us, 100000, 8001); /* half the rate or more */
    use(0, 10 * SECOND);
    for (int i = 1; i <= 60; i++) /* faster and faster: what is half as fast as now */
        reading = use(10 * i, 10 * MS);
    assert_true(reading.fill_age_us <= 306 * MS && reading.fill_age_us >= 240 * MS); /* never too long */
    sample.at_us -= 5 * SECOND;                                                      /* a clock that goes back */
    assert_int_equal(use(0, 2 * MS).fill_age_us, 0);
}

static void seconds_without_a_look_are_no_watching(void **state) {
    (void)state;
    used = 1000 * MIB;
    use(500, 100 * MS);
    lose(psi_raw_bound(PSI_RAW_V1_BOUND, 0, PSI_BOUND_USAGE));
    for (int i = 0; i < 10; i++)
        step(10 * MS, PSI_LOOK_AMOUNTS);
    psi_reading reading = use(500, 10 * MS);
    assert_true(reading.fill_age_us <= 10 * MS);
}

/* ---- Pure, and sane whatever comes ------------------------------------------------------------- */

static uint64_t seed;

static uint64_t roll(uint64_t below) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (seed * UINT64_C(2685821657736338717) >> 1) % below;
}

static void change_some(void) {
    for (uint64_t i = roll(30); i > 0; i--) {
        size_t raw = (size_t)roll(PSI_RAW_COUNT);
        if (roll(4) == 0)
            lose(raw);
        else
            set(raw, roll(PSI_AMOUNT_END >> roll(62)));
    }
    if (roll(50) == 0)
        sample.at_us = roll(UINT64_MAX / 2);
}

static void any_sample_gives_a_sane_reading_and_the_same_one_again(void **state) {
    (void)state;
    static psi_derive again;
    psi_derive_init(&again);
    seed = 4711;
    for (int i = 0; i < 30000; i++) {
        int64_t took = roll(5) == 0 ? (int64_t)(roll(UINT64_MAX) - roll(UINT64_MAX)) : 0;
        change_some();
        psi_derive_took(&derive, took);
        psi_derive_took(&again, took);
        psi_reading reading = step(roll(2) ? roll(3 * SECOND) : roll(3 * MS), (uint32_t)roll(PSI_LOOK_ALL + 1)), same;
        psi_derive_read(&again, &sample, &same);
        assert_true(reading.have == same.have && reading.headroom_bytes == same.headroom_bytes &&
                    reading.fill_bytes_per_s == same.fill_bytes_per_s && reading.fill_age_us == same.fill_age_us &&
                    reading.stall_some_share == same.stall_some_share && reading.bound == same.bound);
        assert_true(reading.stall_some_share >= 0 && reading.stall_some_share <= 1);
        assert_true(reading.stall_full_share <= reading.stall_some_share && reading.io_some_share <= 1);
        assert_true(reading.stall_short_share >= 0 && reading.stall_short_share <= 1);
        assert_true(reading.fill_age_us == 0 || reading.fill_bytes_per_s > 0);
        if (reading.have & PSI_HAVE_HEADROOM)
            assert_true(reading.headroom_bytes <= reading.limit_bytes && reading.bound != PSI_BOUND_NONE &&
                        (reading.headroom_bytes == 0 || reading.missing_bytes == 0));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(the_tightest_bound_is_named),
        CASE(weights_that_reclaim_took_are_no_relief),
        CASE(weights_that_come_back_are_no_fill),
        CASE(mappings_that_nobody_wants_are_forgotten),
        CASE(forgetting_hides_no_fill),
        CASE(a_cold_load_misses_nothing),
        CASE(the_machine_taking_weights_and_giving_them_back_changes_nothing),
        CASE(what_is_unmapped_or_locked_is_not_missing),
        CASE(fill_age_is_what_was_watched),
        CASE(seconds_without_a_look_are_no_watching),
        CASE(any_sample_gives_a_sane_reading_and_the_same_one_again),
    };
    return cmocka_run_group_tests_name("derive", tests, NULL, NULL);
}
