/* test_stall.c - samples to rates and shares, without any file: windows across gaps, and stall that is not believed. */
#include "samples.h"

/* ---- Windows ---------------------------------------------------------------------------------- */

static uint64_t stall_us;

static psi_reading stall(double share, uint64_t for_us) {
    psi_reading reading = {0};
    for (uint64_t us = 0; us < for_us; us += 10 * MS) {
        stall_us += (uint64_t)(share * 10000);
        set(PSI_RAW_SYSTEM_MEMORY_SOME_US, stall_us);
        set(PSI_RAW_SYSTEM_MEMORY_FULL_US, stall_us / 2);
        reading = step(10 * MS, PSI_LOOK_STALL);
    }
    return reading;
}

static void the_short_share_leads(void **state) {
    (void)state;
    stall_us = 0;
    stall(0, 1 * SECOND);
    psi_reading reading = stall(1, 100 * MS);
    assert_near(reading.stall_some_share, 0.1, 0.011);
    assert_true(reading.stall_short_share > 0.6);
    reading = stall(1, 50 * MS);
    assert_near(reading.stall_short_share, 1, 1e-9);
    reading = stall(0, 150 * MS);
    assert_near(reading.stall_short_share, 0, 1e-9);
    assert_near(reading.stall_some_share, 0.15, 0.011);
}

static void a_gap_is_an_average_and_then_forgotten(void **state) {
    (void)state;
    stall_us = 0;
    stall(0.5, 1 * SECOND);
    assert_true(step(1 * SECOND, PSI_LOOK_AMOUNTS).have & PSI_HAVE_STALL); /* the last share, for a while */
    assert_near(step(1 * SECOND, PSI_LOOK_AMOUNTS).stall_some_share, 0.5, 0.01);
    psi_reading reading = step(10 * MS, PSI_LOOK_AMOUNTS);
    assert_false(reading.have & (PSI_HAVE_STALL | PSI_HAVE_AVG10 | PSI_HAVE_IO));
    step(2990 * MS, PSI_LOOK_AMOUNTS); /* five seconds asleep on a trigger */
    stall_us += SECOND;
    set(PSI_RAW_SYSTEM_MEMORY_SOME_US, stall_us);
    set(PSI_RAW_SYSTEM_MEMORY_FULL_US, stall_us / 2);
    reading = step(0, PSI_LOOK_STALL);
    assert_true(reading.have & PSI_HAVE_STALL);
    assert_near(reading.stall_some_share, 0.2, 0.01);
    reading = stall(0.9, 90 * MS);
    assert_near(reading.stall_some_share, 0.21, 0.02);
    reading = stall(0.9, 20 * MS); /* a tenth of a second awake tells more than the sleep */
    assert_near(reading.stall_some_share, 0.9, 1e-6);
    assert_near(reading.stall_short_share, 0.9, 1e-6);
}

static void rates_of_counters_keep_for_two_seconds(void **state) {
    (void)state;
    const uint32_t bits = PSI_HAVE_FAULTS | PSI_HAVE_REFAULTS | PSI_HAVE_RECLAIM;
    for (uint64_t i = 0; i <= 10; i++) {
        set(PSI_RAW_SELF_MAJOR_FAULTS, i * 10);
        set(PSI_RAW_VM_REFAULT_FILE, i * 20);
        set(PSI_RAW_VM_SCAN_DIRECT, i * 100);
        set(PSI_RAW_VM_SCAN_KSWAPD, i * 200);
        step(100 * MS, PSI_LOOK_COUNTERS);
    }
    psi_reading reading = step(2 * SECOND, PSI_LOOK_AMOUNTS);
    assert_int_equal(reading.have & bits, bits);
    assert_near(reading.major_faults_per_s, 100, 1e-6);
    assert_near(reading.refaults_per_s, 200, 1e-6);
    assert_near(reading.reclaim_pages_per_s, 3000, 1e-6);
    assert_int_equal(step(1, PSI_LOOK_AMOUNTS).have & bits, 0);
    lose(PSI_RAW_SELF_MAJOR_FAULTS);
    reading = step(100 * MS, PSI_LOOK_COUNTERS);
    assert_int_equal(reading.have & bits, PSI_HAVE_REFAULTS | PSI_HAVE_RECLAIM);
}

static void own_refaults_and_the_machines_are_two_counters(void **state) {
    (void)state;
    set(PSI_RAW_VM_REFAULT_FILE, 1000000);
    set(PSI_RAW_OWN_REFAULT_FILE, 10);
    step(0, PSI_LOOK_COUNTERS);
    set(PSI_RAW_OWN_REFAULT_ANON, 40);
    assert_near(step(1 * SECOND, PSI_LOOK_COUNTERS).refaults_per_s, 40, 1e-6);
    lose(PSI_RAW_OWN_REFAULT_FILE);
    lose(PSI_RAW_OWN_REFAULT_ANON);
    assert_false(step(1 * SECOND, PSI_LOOK_COUNTERS).have & PSI_HAVE_REFAULTS);
    set(PSI_RAW_VM_REFAULT_FILE, 1000500);
    assert_near(step(1 * SECOND, PSI_LOOK_COUNTERS).refaults_per_s, 500, 1e-6);
}

static void io_and_avg10_are_passed_on(void **state) {
    (void)state;
    set(PSI_RAW_SYSTEM_MEMORY_AVG10, 36);
    set(PSI_RAW_SYSTEM_IO_SOME_US, 0);
    psi_reading reading = step(0, PSI_LOOK_STALL);
    assert_near(reading.avg10_share, 0.0036, 1e-9);
    assert_false(reading.have & PSI_HAVE_IO);
    set(PSI_RAW_OWN_MEMORY_AVG10, 10000);
    set(PSI_RAW_SYSTEM_IO_SOME_US, 250 * MS);
    reading = step(1 * SECOND, PSI_LOOK_STALL);
    assert_true((reading.have & PSI_HAVE_AVG10) && (reading.have & PSI_HAVE_IO));
    assert_near(reading.avg10_share, 1, 1e-9);
    assert_near(reading.io_some_share, 0.25, 1e-9);
}

/* ---- Doubt ------------------------------------------------------------------------------------ */

enum { PLENTY = 4096 };

/* A machine that does nothing and reports a constant 99 %. */
static psi_reading constant(uint64_t for_us, double share) {
    psi_reading reading = {0};
    for (uint64_t us = 0; us < for_us; us += 100 * MS) {
        stall_us += (uint64_t)(share * 100000);
        set(PSI_RAW_SYSTEM_MEMORY_SOME_US, stall_us);
        set(PSI_RAW_SYSTEM_MEMORY_FULL_US, stall_us);
        reading = step(100 * MS, PSI_LOOK_ALL);
    }
    return reading;
}

static void begin_idle(void) {
    static const psi_raw calm[] = {PSI_RAW_VM_REFAULT_FILE, PSI_RAW_VM_REFAULT_ANON, PSI_RAW_VM_SCAN_DIRECT,
                                   PSI_RAW_VM_SCAN_KSWAPD, PSI_RAW_VM_ALLOC_STALLS};
    (void)set_up(NULL);
    stall_us = 0;
    set_machine(8192 * MIB, PLENTY * MIB);
    for (size_t i = 0; i < sizeof(calm) / sizeof(calm[0]); i++)
        set(calm[i], 1000);
}

static void assert_doubted(const psi_reading *reading, bool doubted) {
    assert_int_equal(reading->stall_is_doubted, doubted);
    assert_int_equal((reading->have & PSI_HAVE_STALL) != 0, !doubted);
}

static void a_constant_share_without_reclaim_is_doubted(void **state) {
    (void)state;
    begin_idle();
    psi_reading reading = constant(5 * SECOND, 0.99);
    assert_doubted(&reading, false);
    assert_near(reading.stall_some_share, 0.99, 1e-6);
    reading = constant(1 * SECOND, 0.99);
    assert_doubted(&reading, true);
    reading = step(1 * MS, PSI_LOOK_AMOUNTS); /* and stays so between looks */
    assert_doubted(&reading, true);
    reading = constant(20 * SECOND, 0.99);
    assert_doubted(&reading, true);
    reading = constant(2 * SECOND, 0.5); /* it moves: a counter after all */
    assert_doubted(&reading, false);
    assert_near(reading.stall_some_share, 0.5, 0.01);
}

static void doubt_needs_everything_at_once(void **state) {
    (void)state;
    static const psi_raw movers[] = {PSI_RAW_VM_REFAULT_FILE, PSI_RAW_VM_REFAULT_ANON, PSI_RAW_VM_SCAN_DIRECT,
                                     PSI_RAW_VM_SCAN_KSWAPD, PSI_RAW_VM_ALLOC_STALLS};
    psi_reading reading;
    for (size_t i = 0; i < sizeof(movers) / sizeof(movers[0]); i++) {
        begin_idle();
        constant(4 * SECOND, 0.99);
        set(movers[i], 1001); /* reclaim after all */
        reading = constant(4 * SECOND, 0.99);
        assert_doubted(&reading, false);
        reading = constant(3 * SECOND, 0.99);
        assert_doubted(&reading, true);
        set(movers[i], 1002);
        reading = constant(100 * MS, 0.99);
        assert_doubted(&reading, false);
        begin_idle();
        lose(movers[i]);
        reading = constant(10 * SECOND, 0.99);
        assert_doubted(&reading, movers[i] == PSI_RAW_VM_REFAULT_ANON); /* counted from Linux 5.9 on only */
    }
    begin_idle();
    set_machine(8192 * MIB, 2000 * MIB); /* less than a quarter free: it may be true */
    reading = constant(10 * SECOND, 0.99);
    assert_doubted(&reading, false);
    begin_idle();
    reading = constant(10 * SECOND, 0.89); /* not that high */
    assert_doubted(&reading, false);
    begin_idle();
    for (int i = 0; i < 10; i++) /* not that constant */
        reading = constant(1 * SECOND, i % 2 ? 0.99 : 0.95);
    assert_doubted(&reading, false);
}

static void own_stall_is_doubted_by_own_refaults_too(void **state) {
    (void)state;
    psi_reading reading = {0};
    for (int known = 0; known < 2; known++) {
        begin_idle();
        if (known)
            set(PSI_RAW_OWN_REFAULT_FILE, 5);
        for (uint64_t i = 0; i < 100; i++) {
            set(PSI_RAW_OWN_MEMORY_SOME_US, i * 99 * MS);
            set(PSI_RAW_OWN_MEMORY_FULL_US, i * 99 * MS);
            reading = constant(100 * MS, 0);
        }
        assert_true(reading.stall_is_own);
        assert_doubted(&reading, known);
    }
}

static void a_source_that_contradicts_itself_is_doubted(void **state) {
    (void)state;
    begin_idle();
    psi_reading reading = constant(1 * SECOND, 0.2);
    assert_doubted(&reading, false);
    set(PSI_RAW_SYSTEM_MEMORY_FULL_US, stall_us + 1); /* all stalled, but not some */
    reading = step(100 * MS, PSI_LOOK_ALL);
    assert_doubted(&reading, true);
    reading = constant(1 * SECOND, 0.2);
    assert_doubted(&reading, false);
    stall_us += 900 * SECOND; /* more stall than time */
    reading = constant(100 * MS, 0.2);
    assert_doubted(&reading, true);
    reading = constant(100 * MS, 0.2);
    assert_doubted(&reading, false);
    assert_near(reading.stall_some_share, 0.2, 1e-6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(the_short_share_leads),
        CASE(a_gap_is_an_average_and_then_forgotten),
        CASE(rates_of_counters_keep_for_two_seconds),
        CASE(own_refaults_and_the_machines_are_two_counters),
        CASE(io_and_avg10_are_passed_on),
        CASE(a_constant_share_without_reclaim_is_doubted),
        CASE(doubt_needs_everything_at_once),
        CASE(own_stall_is_doubted_by_own_refaults_too),
        CASE(a_source_that_contradicts_itself_is_doubted),
    };
    return cmocka_run_group_tests_name("stall", tests, NULL, NULL);
}
