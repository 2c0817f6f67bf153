/* test_control_machine.c - the controller on simulated machines: spikes, waves of pressure, steady loads. Whole runs, a
 * millisecond at a time, with the controller's own sleep; nothing is random. */
#include "test_control.h"

static void spike_of_500_mib_per_s_leaves_headroom(void **state) {
    (void)state;
    static const uint64_t delays[] = {10 * MS, 100 * MS}; /* decode; prefill */
    for (size_t i = 0; i < 2; i++) {
        machine m = new_machine(4096, 2696, 1000);
        m.reaction_us = delays[i];
        assert_int_equal(machine_headroom(&m), 400 * MIB);
        for (unsigned ms = 0; ms < 3000; ms++) {
            if (ms >= 500 && ms < 2000) /* 750 MiB in all: more than there is without the cache's */
                m.other += 500 * (int64_t)MIB / 1000;
            machine_tick(&m);
        }
        assert_true(m.least_headroom > 0);
        assert_true(m.least_headroom > 100 * (int64_t)MIB);
        assert_true(m.trims > 0);
        assert_true(m.resident >= 100 * (int64_t)MIB); /* the tenth that is not evictable */
        assert_int_equal(m.resident + m.stored, 1000 * MIB);
    }
}

static void slow_waves_trim_and_regrow_once_each(void **state) {
    (void)state;
    machine m = new_machine(4096, 2000, 1000);
    m.reaction_us = 10 * MS;
    const unsigned periods = 10, half_ms = 6000; /* longer than a trim after a regrow counts as its failure */
    for (unsigned ms = 0; ms < periods * 2 * half_ms; ms++) {
        unsigned in_period = ms % (2 * half_ms);
        if (in_period >= half_ms && in_period < half_ms + 1000)
            m.other += 900 * (int64_t)MIB / 1000;
        if (in_period == 0 && ms > 0)
            m.other = 2000 * (int64_t)MIB;
        if (in_period == half_ms) /* and all is back before the next wave */
            assert_int_equal(m.resident, 1000 * MIB);
        machine_tick(&m);
    }
    assert_true(m.trims >= periods);                                             /* each wave needs it, */
    assert_int_equal(m.trim_spells, periods);                                    /* and once is enough */
    assert_true(m.restore_spells == periods || m.restore_spells == periods - 1); /* the last is cut off */
}

static void steady_load_at_the_limit_does_not_oscillate(void **state) {
    (void)state;
    machine m = new_machine(4096, 2900, 1000);
    m.reaction_us = 10 * MS;
    for (unsigned ms = 0; ms < 60000; ms++)
        machine_tick(&m);
    assert_int_equal(m.trims, 1);
    assert_int_equal(m.restores, 0); /* headroom ends at 358 MiB, between the limits */
}

/* ---- Waves ------------------------------------------------------------------------------------ */

typedef enum drive { BY_HEADROOM, BY_STALL, BY_STALL_OF_OTHERS } drive;
static const char *const drive_names[] = {"headroom", "stall", "stall of others"};

/* Stall as reclaim makes it: from nothing at 200 MiB of headroom to 60 % at 80. */
static double stall_of(const machine *m) {
    double left = (double)machine_headroom(m) / (double)MIB;
    double share = 0.6 * (200 - left) / 120;
    return share > 0.6 ? 0.6 : share > 0 ? share : 0;
}

/* Another process takes `amplitude` at the beginning of each period (at 1 GiB/s; in half of the half where stall is to
 * call, not the forecast) and gives it back in the middle. */
static void wave_tick(machine *m, drive by, int64_t quiet, int64_t amplitude, unsigned in_period, unsigned half_ms) {
    bool on = in_period < half_ms;
    int64_t wanted = quiet + (on ? amplitude : 0);
    int64_t per_ms = by == BY_HEADROOM ? (int64_t)MIB : amplitude * 2 / half_ms;
    m->other = wanted > m->other + per_ms ? m->other + per_ms : wanted;
    m->stall = by == BY_STALL ? stall_of(m) : by == BY_STALL_OF_OTHERS && on ? 0.5 : 0;
    machine_tick(m);
}

static void one_trim_and_one_regrow_a_period(drive by, unsigned period_s, int64_t amplitude_mib) {
    machine m = new_machine(1200, 300, 500); /* 400 MiB left; the reserve is 75, scarcity 300 to 150 */
    m.knows_stall = by != BY_HEADROOM;
    unsigned half_ms = period_s * 500, periods = period_s < 6 ? 120 / period_s : 20;
    unsigned trim_spells = 0, restore_spells = 0, most_trims = 0, most_restores = 0;
    for (unsigned p = 0; p < periods; p++) {
        trim_spells = m.trim_spells, restore_spells = m.restore_spells;
        for (unsigned ms = 0; ms < 2 * half_ms; ms++)
            wave_tick(&m, by, 300 * (int64_t)MIB, amplitude_mib * (int64_t)MIB, ms, half_ms);
        most_trims = m.trim_spells - trim_spells > most_trims ? m.trim_spells - trim_spells : most_trims;
        most_restores =
            m.restore_spells - restore_spells > most_restores ? m.restore_spells - restore_spells : most_restores;
    }
    if (getenv("PSI_TEST_SHOW") != NULL)
        printf("%-15s %2u s %4d MiB: %3u periods, %3u trim (%2u comfort) and %3u regrow spells, cache %4d MiB, least "
               "%4d MiB\n",
               drive_names[by], period_s, (int)amplitude_mib, periods, m.trim_spells, m.comfort_trims, m.restore_spells,
               (int)(m.resident / (int64_t)MIB), (int)(m.least_headroom / (int64_t)MIB));
    if (most_trims > 1 || most_restores > 1)
        fail_msg("by %s, %u s, %d MiB: %u trims and %u regrows in one period", drive_names[by], period_s,
                 (int)amplitude_mib, most_trims, most_restores);
    assert_false(m.dead);
    assert_true(m.trims > 0); /* the wave is one */
    assert_true(by == BY_HEADROOM || period_s < 5 || m.comfort_trims > 0);
}

static void waves_of_all_periods_trim_and_regrow_once_each(void **state) {
    (void)state;
    static const unsigned periods_s[] = {1, 2, 5, 10, 20, 60};
    static const int64_t amplitudes_mib[] = {340, 400, 600, 800};
    for (size_t i = 0; i < 6; i++) {
        for (size_t a = 0; a < 4; a++)
            one_trim_and_one_regrow_a_period(BY_HEADROOM, periods_s[i], amplitudes_mib[a]);
        for (int64_t mib = 240; mib <= 300; mib += 20) /* scarce, above the reserve: stall calls */
            one_trim_and_one_regrow_a_period(BY_STALL, periods_s[i], mib);
        one_trim_and_one_regrow_a_period(BY_STALL_OF_OTHERS, periods_s[i], 280);
    }
}

static void no_wave_no_move(void **state) {
    (void)state;
    for (int64_t other_mib = 300; other_mib <= 700; other_mib += 10) { /* headroom from 400 down to 0 */
        for (unsigned knows_stall = 0; knows_stall < 2; knows_stall++) {
            machine m = new_machine(1200, other_mib, 500);
            m.knows_stall = knows_stall != 0;
            for (unsigned ms = 0; ms < 30000; ms++) {
                m.stall = stall_of(&m);
                machine_tick(&m);
            }
            unsigned trims = m.trims, restores = m.restores;
            if (m.trim_spells > 1 || m.restore_spells > 1)
                fail_msg("%d MiB, stall %u: %u trim and %u regrow spells", (int)other_mib, knows_stall, m.trim_spells,
                         m.restore_spells);
            for (unsigned ms = 0; ms < 120000; ms++) {
                m.stall = stall_of(&m);
                machine_tick(&m);
            }
            if (m.trims != trims || m.restores != restores)
                fail_msg("%d MiB, stall %u: %u trims and %u restores later", (int)other_mib, knows_stall,
                         m.trims - trims, m.restores - restores);
        }
    }
}

/* ---- Spikes ----------------------------------------------------------------------------------- */

#define SPIKE_MIB 620 /* of 300 of headroom and 400 that can be given */

/* A 1,200 MiB limit; the store has all blocks already (write_mb 0), or writes this fast. */
static machine spike(uint64_t mb_per_s, int64_t write_mb_per_s, bool reaction_is_known, bool cleans_ahead,
                     unsigned phase_ms) {
    machine m = new_machine(1200, 450, 450);
    m.floor = 50 * (int64_t)MIB;
    m.write_per_ms = write_mb_per_s * 1000;
    m.unwritten = write_mb_per_s > 0 ? 400 * (int64_t)MIB : 0;
    m.cleans_ahead = cleans_ahead;
    if (reaction_is_known)
        m.control.tuning.reaction_us = (double)m.reaction_us;
    int64_t left = SPIKE_MIB * (int64_t)MIB, per_ms = (int64_t)mb_per_s * 1000;
    for (unsigned ms = 0; ms < 10000 + phase_ms; ms++)
        machine_tick(&m);
    for (unsigned ms = 0; ms < 20000 && !m.dead; ms++) {
        int64_t bytes = left < per_ms ? left : per_ms;
        m.other += bytes;
        left -= bytes;
        machine_tick(&m);
    }
    return m;
}

static void spikes_of_clean_blocks_are_survived(void **state) {
    (void)state;
    static const uint64_t rates[] = {50, 100, 200, 500, 1000, 2000, 4000};
    for (size_t i = 0; i < 7 * 2; i++) {
        int64_t least = INT64_MAX;
        for (unsigned phase_ms = 0; phase_ms < 50; phase_ms++) { /* wherever in a sleep it begins */
            machine m = spike(rates[i / 2], 0, i % 2 == 1, false, phase_ms);
            least = m.least_headroom < least ? m.least_headroom : least;
            if (m.dead)
                fail_msg("killed by %u MB/s, %u ms into a sleep", (unsigned)rates[i / 2], phase_ms);
        }
        if (getenv("PSI_TEST_SHOW") != NULL)
            printf("%4u MB/s, reaction %s: least headroom %d MiB\n", (unsigned)rates[i / 2],
                   i % 2 == 1 ? "known" : "assumed", (int)(least / (int64_t)MIB));
    }
}

/* What the store must write first is bounded by its speed: shown, not promised, but where the blocks go faster than the
 * spike comes. */
static void spikes_of_unwritten_blocks_are_a_race_of_store_and_spike(void **state) {
    (void)state;
    static const uint64_t rates[] = {50, 100, 200, 500, 1000, 2000, 4000};
    static const int64_t writes[] = {50, 200, 1000};
    for (size_t i = 0; i < 7 * 3 * 2; i++) {
        uint64_t rate = rates[i / 6];
        int64_t write = writes[i / 2 % 3];
        machine m = spike(rate, write, false, i % 2 == 1, 7);
        if (getenv("PSI_TEST_SHOW") != NULL)
            printf("%4u MB/s, store %4d MB/s, %s: %s, least headroom %4d MiB\n", (unsigned)rate, (int)write,
                   i % 2 == 1 ? "10 s to clean ahead" : "none written yet   ", m.dead ? "killed  " : "survived",
                   (int)(m.least_headroom / (int64_t)MIB));
        if ((uint64_t)write >= rate)
            assert_false(m.dead);
    }
}

/* ---- Cost and comfort ------------------------------------------------------------------------- */

static void far_from_pressure_there_are_two_readings_a_second(void **state) {
    (void)state;
    machine m = new_machine(16384, 4000, 1000);
    for (unsigned ms = 0; ms < 60000; ms++)
        machine_tick(&m);
    assert_true(m.readings <= 120);
    assert_int_equal(m.trims + m.restores, 0);
}

static void a_stall_that_trimming_cures_is_cured(void **state) {
    (void)state;
    machine m = new_machine(1200, 580, 500); /* 120 MiB left: 40 % of stall */
    m.knows_stall = true;
    unsigned cured_ms = 0;
    for (unsigned ms = 0; ms < 20000; ms++) {
        m.stall = stall_of(&m);
        machine_tick(&m);
        cured_ms = m.stall > 0.10 ? ms : cured_ms;
    }
    assert_true(cured_ms < 4000);
    assert_true(m.resident >= 380 * (int64_t)MIB);
    assert_true(m.trim_spells == 1 && m.restore_spells <= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spike_of_500_mib_per_s_leaves_headroom),
        cmocka_unit_test(slow_waves_trim_and_regrow_once_each),
        cmocka_unit_test(steady_load_at_the_limit_does_not_oscillate),
        cmocka_unit_test(waves_of_all_periods_trim_and_regrow_once_each),
        cmocka_unit_test(no_wave_no_move),
        cmocka_unit_test(spikes_of_clean_blocks_are_survived),
        cmocka_unit_test(spikes_of_unwritten_blocks_are_a_race_of_store_and_spike),
        cmocka_unit_test(far_from_pressure_there_are_two_readings_a_second),
        cmocka_unit_test(a_stall_that_trimming_cures_is_cured),
    };
    return cmocka_run_group_tests_name("control machine", tests, NULL, NULL);
}
