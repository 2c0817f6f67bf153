/* test_fill.c - the fill rate of fake machines: fast attack, slow decay, and what is no fill. */
#include "fake_root.h"

/* ---- Fill rate -------------------------------------------------------------------------------- */

static void fill_attacks_within_two_readings(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    assert_int_equal(read_after(signal, 0).have & PSI_HAVE_FILL, 0); /* one reading is no rate */
    psi_reading reading = use_and_read(signal, 101 * MIB, 2 * MS);   /* 500 MiB/s */
    assert_true(mib_per_s(&reading) >= 249);
    reading = use_and_read(signal, 102 * MIB, 2 * MS);
    assert_true(mib_per_s(&reading) >= 374 && mib_per_s(&reading) <= 500.1);
    reading = use_and_read(signal, 112 * MIB, 20 * MS); /* one longer reading is enough */
    assert_true(mib_per_s(&reading) >= 480 && mib_per_s(&reading) <= 500.1);
    psi_signal_close(signal);
}

static void fill_decays_by_half_in_300_ms(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    psi_reading reading = use_and_read(signal, 600 * MIB, 1000 * MS);
    double start = mib_per_s(&reading);
    assert_near(start, 500, 5);
    for (int i = 0; i < 150; i++)
        reading = read_after(signal, 2 * MS);
    assert_near(mib_per_s(&reading) / start, 0.5, 0.03);
    for (int i = 0; i < 150; i++)
        reading = read_after(signal, 2 * MS);
    assert_near(mib_per_s(&reading) / start, 0.25, 0.03);
    psi_signal_close(signal);
}

static void memory_given_back_does_not_wipe_out_the_fill_rate(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    psi_reading reading = use_and_read(signal, 600 * MIB, 1000 * MS);
    reading = use_and_read(signal, 100 * MIB, 2 * MS);
    assert_true(mib_per_s(&reading) > 450);
    for (int i = 0; i < 20; i++)
        reading = read_after(signal, 1000 * MS);
    for (int i = 0; i < 3; i++)
        reading = use_and_read(signal, (uint64_t)(90 - i * 10) * MIB, 1000 * MS);
    assert_true(reading.fill_bytes_per_s < 0); /* headroom that grows reads as such in the end */
    psi_signal_close(signal);
}

static void readings_within_a_millisecond_are_merged(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    use_and_read(signal, 100 * MIB, 10 * MS);
    psi_reading reading = use_and_read(signal, 101 * MIB, 100); /* 10 GiB/s if it were believed */
    assert_int_equal(reading.fill_bytes_per_s, 0);
    assert_int_equal(reading.headroom_bytes, 3995 * MIB); /* but headroom is what it is */
    reading = use_and_read(signal, 102 * MIB, 1900);      /* 2 MiB in 2 ms: 1000 MiB/s */
    assert_near(mib_per_s(&reading), 500, 1);
    psi_signal_close(signal);
}

static void reading_files_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(1000 * MIB);
    psi_reading reading = read_after(signal, 0);
    double most = 0;
    for (uint64_t ms = 2; ms <= 1000; ms += 2) { /* 1000 MiB/s into the page cache */
        put_v2_stat("/cg/a/b/c/memory.stat", ms * MIB, 0);
        reading = use_and_read(signal, (1000 + ms) * MIB, 2 * MS);
        if (ms > 50 && mib_per_s(&reading) > most)
            most = mib_per_s(&reading);
    }
    assert_true(most < 1000);               /* what the first 50 ms made us believe */
    assert_true(mib_per_s(&reading) < 150); /* decays, and nothing renews it */
    psi_signal_close(signal);
}

/* A cold model load in a tight group: 4000 MiB/s between two looks at memory.stat must not raise an alarm. */
static void before_an_alarm_the_cache_is_read_anew(void **state) {
    (void)state;
    psi_signal *signal = open_group(3800 * MIB);
    (void)read_after(signal, 0);
    for (uint64_t ms = 2; ms <= 60; ms += 2) {
        put_v2_stat("/cg/a/b/c/memory.stat", 4 * ms * MIB, 0);
        psi_reading reading = use_and_read(signal, (3800 + 4 * ms) * MIB, 2 * MS);
        assert_true(!(reading.have & PSI_HAVE_FILL) || reading.fill_bytes_per_s < (int64_t)reading.headroom_bytes);
    }
    psi_signal_close(signal);
}

/* The counters' files cost as much as the rest of a look. */
static void an_alarm_that_lasts_reads_the_cache_each_10_ms(void **state) {
    (void)state;
    psi_signal *signal = open_group(1000 * MIB);
    unsigned counters = 0, alarms = 0;
    (void)read_after(signal, 0);
    for (uint64_t ms = 2; ms <= 500; ms += 2) {
        psi_reading reading = use_and_read(signal, (1000 + 5 * ms) * MIB, 2 * MS);
        bool alarms_now = (reading.have & PSI_HAVE_FILL) && reading.fill_bytes_per_s >= (int64_t)reading.headroom_bytes;
        alarms += alarms_now;
        counters += alarms_now && (psi_signal_last(signal)->look & PSI_LOOK_COUNTERS);
    }
    assert_in_range(alarms, 100, 250);
    assert_in_range(counters, alarms / 6, alarms / 4);
    psi_signal_close(signal);
}

/* A program takes memory and then reads its files: what it reads is no part of the spike. */
static void what_is_read_during_an_alarm_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(3100 * MIB);
    double most = 0;
    (void)read_after(signal, 0);
    for (uint64_t ms = 2; ms <= 200; ms += 2) /* 1500 MiB/s, and 696 MiB left */
        (void)use_and_read(signal, (3100 + 3 * ms / 2) * MIB, 2 * MS);
    for (uint64_t ms = 2; ms <= 100; ms += 2) { /* 3000 MiB/s into the page cache */
        put_v2_stat("/cg/a/b/c/memory.stat", 3 * ms * MIB, 0);
        psi_reading reading = use_and_read(signal, (3400 + 3 * ms) * MIB, 2 * MS);
        if (mib_per_s(&reading) > most)
            most = mib_per_s(&reading);
    }
    assert_true(most < 1600);
    psi_signal_close(signal);
}

static void dropped_page_cache_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(2000 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 1500 * MIB, 0);
    read_after(signal, 0);
    read_after(signal, 20 * MS);
    psi_reading reading = use_and_read(signal, 1000 * MIB, 2 * MS); /* usage falls at once, ... */
    put_v2_stat("/cg/a/b/c/memory.stat", 500 * MIB, 0);             /* ... and is explained later */
    for (int i = 0; i < 40; i++) {
        reading = read_after(signal, 2 * MS);
        assert_true(mib_per_s(&reading) < 1);
    }
    assert_int_equal(reading.headroom_bytes, 3596 * MIB);
    psi_signal_close(signal);
}

static void growth_behind_a_full_group_is_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(4096 * MIB); /* at its limit, with cache; usage cannot rise */
    put_v2_stat("/cg/a/b/c/memory.stat", 3000 * MIB, 0);
    psi_reading reading = read_after(signal, 0);
    for (uint64_t ms = 2; ms <= 400; ms += 2) {
        put_v2_stat("/cg/a/b/c/memory.stat", 3000 * MIB - ms * MIB / 2, 0); /* 500 MiB/s of it are lost */
        reading = read_after(signal, 2 * MS);
        if (ms > 52)
            assert_near(mib_per_s(&reading), 465, 36); /* a saw: renewed every 50 ms */
    }
    psi_signal_close(signal);
}

/* Between two fresh looks at the cache such a group does not move: that is no pause of the spike. */
static void a_spike_behind_a_full_group_gets_older(void **state) {
    (void)state;
    psi_signal *signal = open_group(4096 * MIB);
    psi_reading reading = {0};
    put_v2_stat("/cg/a/b/c/memory.stat", 900 * MIB, 0);
    (void)read_after(signal, 0);
    for (uint64_t ms = 2; ms <= 300; ms += 2) {
        put_v2_stat("/cg/a/b/c/memory.stat", 900 * MIB - ms * MIB, 0); /* 1000 MiB/s */
        reading = read_after(signal, 2 * MS);
        if (ms > 150) /* an alarm, and all is known to the last 10 ms */
            assert_in_range(reading.fill_age_us, (ms - 70) * MS, ms * MS);
    }
    assert_near(mib_per_s(&reading), 1000, 100);
    psi_signal_close(signal);
}

static void changed_limit_or_other_bound_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    read_after(signal, 100 * MS);
    put_amount("/cg/a/b/c/memory.max", 200 * MIB);
    psi_reading reading = read_after(signal, 100 * MS);
    assert_int_equal(reading.headroom_bytes, 100 * MIB);
    assert_near(mib_per_s(&reading), 0, 1);
    put_amount("/cg/a/b/memory.max", 250 * MIB); /* 200 used: this one is the tightest now */
    reading = read_after(signal, 100 * MS);
    assert_int_equal(reading.headroom_bytes, 50 * MIB);
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_close(signal);
}

static void what_we_took_ourselves_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    read_after(signal, 100 * MS);
    psi_signal_took(signal, (int64_t)(50 * MIB));
    psi_reading reading = use_and_read(signal, 150 * MIB, 10 * MS);
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_took(signal, (int64_t)(20 * MIB));
    reading = use_and_read(signal, 170 * MIB, 100 * MS); /* with memory.stat fresh, too */
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_took(signal, -(int64_t)(100 * MIB)); /* given back, and another took 10 meanwhile */
    reading = use_and_read(signal, 80 * MIB, 20 * MS);
    assert_true(mib_per_s(&reading) > 400);
    psi_signal_took(signal, INT64_MAX);
    psi_signal_took(signal, INT64_MIN);
    read_after(signal, 20 * MS);
    psi_signal_close(signal);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(fill_attacks_within_two_readings),
        CASE(fill_decays_by_half_in_300_ms),
        CASE(memory_given_back_does_not_wipe_out_the_fill_rate),
        CASE(readings_within_a_millisecond_are_merged),
        CASE(reading_files_is_no_fill),
        CASE(before_an_alarm_the_cache_is_read_anew),
        CASE(an_alarm_that_lasts_reads_the_cache_each_10_ms),
        CASE(what_is_read_during_an_alarm_is_no_fill),
        CASE(dropped_page_cache_is_no_fill),
        CASE(growth_behind_a_full_group_is_fill),
        CASE(a_spike_behind_a_full_group_gets_older),
        CASE(changed_limit_or_other_bound_is_no_fill),
        CASE(what_we_took_ourselves_is_no_fill),
    };
    return cmocka_run_group_tests_name("fill", tests, NULL, NULL);
}
