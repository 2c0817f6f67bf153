/* test_tuning.c - src/control/tuning.c: what is learned, within which bounds, what it does to the mapping, and the
 * text. Pure arithmetic with a time of its own; nothing is random. */
#include <errno.h>
#include <locale.h>

#include "test_control.h"

static void see(psi_tuning *tuning, uint64_t at_s, double stall, int64_t fill, uint64_t age_ms, bool calm) {
    psi_reading reading = {.at_us = at_s * 1000 * MS,
                           .have = PSI_HAVE_STALL | PSI_HAVE_FILL,
                           .stall_some_share = stall,
                           .fill_bytes_per_s = fill,
                           .fill_age_us = age_ms * MS};
    psi_tuning_see(tuning, &reading, calm);
}

/* ---- Learning --------------------------------------------------------------------------------- */

static void normal_stall_is_learned_in_minutes_and_only_in_calm(void **state) {
    (void)state;
    psi_tuning t = {0};
    for (uint64_t s = 1; s <= 61; s++)
        see(&t, s, 0.05, 0, 0, true);
    assert_near(t.stall_normal_share, 0.05 * (1 - exp(-0.2)), 0.001); /* a minute of five */
    double learned = t.stall_normal_share;
    for (uint64_t s = 62; s <= 1000; s++)
        see(&t, s, 0.9, 0, 0, false);
    assert_near(t.stall_normal_share, learned, 1e-12);
    for (uint64_t s = 1001; s <= 9000; s++)
        see(&t, s, 0.9, 0, 0, true);
    assert_near(t.stall_normal_share, PSI_STALL_NORMAL_MOST, 1e-12); /* nobody trains it further */
    for (uint64_t s = 9001; s <= 19000; s++)
        see(&t, s, 0, 0, 0, true);
    assert_near(t.stall_normal_share, 0, 1e-6);
    see(&t, 1000000, 0.1, 0, 0, true); /* one reading after a long sleep stands for a second */
    assert_true(t.stall_normal_share < 0.001);
    see(&t, 1000001, (double)NAN, 0, 0, true);
    see(&t, 1000002, (double)INFINITY, 0, 0, true);
    see(&t, 5, -5, 0, 0, true); /* and the clock goes back */
    assert_true(t.stall_normal_share >= 0 && t.stall_normal_share < 0.01);
}

static void fill_most_halves_in_an_hour_and_ignores_jumps(void **state) {
    (void)state;
    psi_tuning t = {0};
    see(&t, 1, 0, 4000000000, 19, true); /* one reading's jump */
    assert_near(t.fill_most_bytes_per_s, 0, 1e-3);
    see(&t, 2, 0, 800000000, 20, false); /* in a spike, too */
    assert_near(t.fill_most_bytes_per_s, 8e8, 1);
    see(&t, 3, 0, 500000000, 100, false);
    assert_near(t.fill_most_bytes_per_s, 8e8, 1e6);
    for (uint64_t s = 4; s <= 3602; s++)
        see(&t, s, 0, 0, 0, true);
    assert_near(t.fill_most_bytes_per_s, 4e8, 1e6);
    psi_tuning at_once = {.fill_most_bytes_per_s = 8e8, .at_us = 2000 * MS};
    see(&at_once, 3602, 0, 0, 0, true); /* the same over one long gap */
    assert_near(at_once.fill_most_bytes_per_s, 4e8, 4e6);
    see(&t, 3603, 0, INT64_MAX, 100, true);
    assert_near(t.fill_most_bytes_per_s, PSI_FILL_MOST, 1);
}

static void reaction_rises_at_once_and_falls_slowly(void **state) {
    (void)state;
    psi_tuning t = {0};
    psi_tuning_note_reaction(&t, 1); /* one quick answer is no proof */
    assert_near(t.reaction_us, 100000 - 80000 / 16.0, 1e-6);
    psi_tuning_note_reaction(&t, 300 * MS);
    assert_near(t.reaction_us, 300000, 1e-3);
    psi_tuning_note_reaction(&t, 20 * MS);
    assert_near(t.reaction_us, 300000 - 280000 / 16.0, 1e-6);
    for (unsigned i = 0; i < 200; i++)
        psi_tuning_note_reaction(&t, 20 * MS);
    assert_near(t.reaction_us, 20000, 10);
    psi_tuning_note_reaction(&t, UINT64_MAX);
    assert_near(t.reaction_us, 2e6, 1e-3);
}

static void speeds_are_averages_within_bounds(void **state) {
    (void)state;
    psi_tuning t = {0};
    psi_tuning_note_write(&t, 256 * 1024 - 1, 1000); /* says nothing */
    psi_tuning_note_write(&t, 10 * MIB, 0);
    assert_near(t.write_bytes_per_s, 0, 1e-3);
    psi_tuning_note_write(&t, 1000000, 10000);
    assert_near(t.write_bytes_per_s, 1e8, 1e-3);
    psi_tuning_note_write(&t, 9000000, 10000);
    assert_near(t.write_bytes_per_s, 2e8, 1e-3);
    assert_near(t.read_bytes_per_s, 0, 1e-3);
    psi_tuning_note_read(&t, 1000000, UINT64_MAX);
    assert_near(t.read_bytes_per_s, PSI_WRITE_LEAST, 1e-3);
    for (unsigned i = 0; i < 100; i++)
        psi_tuning_note_read(&t, UINT64_MAX, 1);
    assert_near(t.read_bytes_per_s, PSI_WRITE_MOST, 1e5);
}

static void the_controller_learns_only_when_told_to(void **state) {
    (void)state;
    for (unsigned tune = 0; tune < 2; tune++) {
        psi_control control = new_control();
        control.options.tune = tune != 0;
        for (unsigned i = 0; i < 100; i++) {
            psi_reading reading = stalled(3000, 0.05);
            reading.have |= PSI_HAVE_FILL;
            reading.fill_bytes_per_s = (int64_t)MIB;
            reading.fill_age_us = 50 * MS;
            reading.at_us += i * 1000 * MS;
            (void)decide(&control, reading, cache_of(1000));
        }
        assert_true((control.tuning.stall_normal_share > 0.001) == (tune != 0));
        assert_int_equal(control.tuning.readings, tune != 0 ? 100 : 0);
        double learned = control.tuning.stall_normal_share;
        psi_reading reading = stalled(700, 0.5); /* scarce: not calm */
        reading.at_us += 101000 * MS;
        (void)decide(&control, reading, cache_of(1000));
        assert_near(control.tuning.stall_normal_share, learned, 1e-12);
        assert_true(control.options.high == defaults.high && control.options.low == defaults.low);
    }
}

static void what_was_learned_is_not_used_when_switched_off(void **state) {
    (void)state;
    psi_control control = new_control();
    control.tuning = (psi_tuning){.stall_normal_share = 0.2,
                                  .reaction_us = 2e6,
                                  .write_bytes_per_s = 1e7,
                                  .fill_most_bytes_per_s = 4e9,
                                  .readings = 100000};
    (void)decide(&control, headroom_of(1000), cache_of(1000));
    psi_mapping start;
    psi_tuning_map(NULL, 4096 * MIB, 0, &start);
    assert_int_equal(control.mapping.reserve_bytes, start.reserve_bytes);
    assert_int_equal(control.mapping.reaction_us, start.reaction_us);
    assert_near(control.mapping.write_bytes_per_s, start.write_bytes_per_s, 1e-3);
    assert_near(control.mapping.stall_at_anchor, start.stall_at_anchor, 1e-12);
}

/* ---- Mapping ---------------------------------------------------------------------------------- */

static psi_mapping map(psi_tuning tuning, uint64_t limit_mib) {
    psi_mapping mapping;
    psi_tuning_map(&tuning, limit_mib * MIB, 0, &mapping);
    return mapping;
}

static void nothing_seen_is_the_start(void **state) {
    (void)state;
    psi_mapping start, empty = map((psi_tuning){0}, 1600);
    psi_tuning_map(NULL, 1600 * MIB, 0, &start);
    assert_int_equal(start.reserve_bytes, 100 * MIB);
    assert_int_equal(start.reaction_us, PSI_REACTION_START_US);
    assert_near(start.write_bytes_per_s, PSI_WRITE_START, 1e-3);
    assert_near(start.stall_at_anchor, PSI_STALL_ANCHOR_LEAST, 1e-12);
    assert_int_equal(empty.reserve_bytes, start.reserve_bytes);
    assert_int_equal(empty.reaction_us, start.reaction_us);
    psi_tuning_map(NULL, UINT64_MAX, 0, &start);
    assert_int_equal(start.reserve_bytes, 256 * MIB);
    psi_tuning_map(NULL, 0, 0, &start);
    assert_int_equal(start.reserve_bytes, 16 * MIB);
}

static void reserve_is_for_the_highest_fill_over_the_reaction(void **state) {
    (void)state;
    psi_tuning t = {.fill_most_bytes_per_s = 1e9, .reaction_us = 120000, .readings = 1000};
    assert_int_equal(map(t, 1600).reserve_bytes, 120000000);
    t.reaction_us = 2e6;
    assert_int_equal(map(t, 1600).reserve_bytes, 200 * MIB); /* twice */
    t.fill_most_bytes_per_s = 1;
    assert_int_equal(map(t, 1600).reserve_bytes, 50 * MIB); /* half, */
    t.readings = 999;
    assert_int_equal(map(t, 1600).reserve_bytes, 100 * MIB); /* but not before it knows the place */
    psi_mapping mapping;
    psi_tuning_map(&t, 1600 * MIB, 33 * MIB, &mapping);
    assert_int_equal(mapping.reserve_bytes, 33 * MIB);
}

static void mapping_stays_within_bounds_whatever_was_learned(void **state) {
    (void)state;
    psi_tuning low = {.stall_normal_share = -5, .reaction_us = 1, .write_bytes_per_s = 1, .fill_most_bytes_per_s = -1};
    psi_tuning high = {.stall_normal_share = 5,
                       .reaction_us = 1e30,
                       .write_bytes_per_s = 1e30,
                       .fill_most_bytes_per_s = (double)INFINITY};
    assert_int_equal(map(low, 1600).reaction_us, PSI_REACTION_LEAST_US);
    assert_near(map(low, 1600).write_bytes_per_s, PSI_WRITE_LEAST, 1e-3);
    assert_near(map(low, 1600).stall_at_anchor, PSI_STALL_ANCHOR_LEAST, 1e-12);
    assert_int_equal(map(high, 1600).reaction_us, PSI_REACTION_MOST_US);
    assert_near(map(high, 1600).write_bytes_per_s, PSI_WRITE_MOST, 1e-3);
    assert_near(map(high, 1600).stall_at_anchor, PSI_STALL_ANCHOR_MOST, 1e-12);
    assert_int_equal(map(high, 1600).reserve_bytes, 200 * MIB);
}

/* ---- Text ------------------------------------------------------------------------------------- */

static const psi_tuning sample = {.stall_normal_share = 0.0125,
                                  .fill_most_bytes_per_s = 512000000,
                                  .reaction_us = 34567,
                                  .write_bytes_per_s = 210000000,
                                  .read_bytes_per_s = 330000000,
                                  .readings = 1234567};

static const char sample_text[] = "psi-cache-tuning 1\n"
                                  "stall_normal_ppm 12500\n"
                                  "fill_most_bytes_per_s 512000000\n"
                                  "reaction_us 34567\n"
                                  "write_bytes_per_s 210000000\n"
                                  "read_bytes_per_s 330000000\n"
                                  "readings 1234567\n";

static void text_goes_there_and_back(void **state) {
    (void)state;
    char text[PSI_TUNING_TEXT_BYTES];
    (void)setlocale(LC_ALL, "de_DE.UTF-8"); /* where it is installed: a comma in numbers */
    assert_int_equal(psi_tuning_format(&sample, text, sizeof(text)), sizeof(sample_text) - 1);
    (void)setlocale(LC_ALL, "C");
    assert_string_equal(text, sample_text);
    psi_tuning back = {.at_us = 77};
    assert_int_equal(psi_tuning_parse(text, &back), 0);
    assert_near(back.stall_normal_share, sample.stall_normal_share, 1e-12);
    assert_near(back.fill_most_bytes_per_s, sample.fill_most_bytes_per_s, 1e-3);
    assert_near(back.reaction_us, sample.reaction_us, 1e-3);
    assert_near(back.write_bytes_per_s, sample.write_bytes_per_s, 1e-3);
    assert_near(back.read_bytes_per_s, sample.read_bytes_per_s, 1e-3);
    assert_int_equal(back.readings, sample.readings);
    assert_int_equal(back.at_us, 0); /* another boot's clock */
    psi_tuning empty = {0};
    assert_true(psi_tuning_format(&empty, text, sizeof(text)) > 0);
    assert_int_equal(psi_tuning_parse(text, &back), 0);
    assert_near(back.reaction_us, 0, 1e-3);
}

static void text_that_does_not_fit_is_refused(void **state) {
    (void)state;
    char text[PSI_TUNING_TEXT_BYTES];
    for (size_t room = 0; room < sizeof(sample_text); room++)
        assert_int_equal(psi_tuning_format(&sample, text, room), -ENOBUFS);
    assert_true(psi_tuning_format(&sample, text, sizeof(sample_text)) > 0);
    psi_tuning most = {.stall_normal_share = PSI_STALL_NORMAL_MOST,
                       .fill_most_bytes_per_s = PSI_FILL_MOST,
                       .reaction_us = 2e6,
                       .write_bytes_per_s = 4e9,
                       .read_bytes_per_s = 4e9,
                       .readings = UINT64_MAX};
    assert_true(psi_tuning_format(&most, text, sizeof(text)) > 0);
    assert_int_equal(psi_tuning_parse(text, &most), 0);
    assert_true(most.readings == UINT64_MAX);
}

static void what_is_no_tuning_is_refused_and_changes_nothing(void **state) {
    (void)state;
#define HEAD "psi-cache-tuning 1\n"
    static const struct {
        const char *text;
        int error;
    } cases[] = {{"", -EPROTO},
                 {"\n", -EPROTO},
                 {"psi-cache-tuning 2\n", -EPROTO},
                 {"psi-cache-tuning 10\nreaction_us 20000\n", -EPROTO},
                 {" psi-cache-tuning 1\n", -EPROTO},
                 {"psi-cache-trace 1\n", -EPROTO},
                 {"\x7f"
                  "ELF\x02\x01\x01",
                  -EPROTO},
                 {"psi-cache-tuning 1\r\nreaction_us 20000\r\n", -EINVAL},
                 {HEAD "reaction_us 20000\r\n", -EINVAL},
                 {HEAD "reaction_us nan\n", -EINVAL},
                 {HEAD "reaction_us inf\n", -EINVAL},
                 {HEAD "reaction_us -20000\n", -EINVAL},
                 {HEAD "reaction_us +20000\n", -EINVAL},
                 {HEAD "reaction_us 2e4\n", -EINVAL},
                 {HEAD "reaction_us 20000.0\n", -EINVAL},
                 {HEAD "reaction_us 0x8000\n", -EINVAL},
                 {HEAD "reaction_us  20000\n", -EINVAL},
                 {HEAD "reaction_us 20000 \n", -EINVAL},
                 {HEAD "reaction_us\n", -EINVAL},
                 {HEAD "reaction_us \n", -EINVAL},
                 {HEAD " 20000\n", -EINVAL},
                 {HEAD "\n", -EINVAL},
                 {HEAD "Reaction_us 20000\n", -EINVAL},
                 {HEAD "reaction_us 19999\n", -EINVAL},
                 {HEAD "reaction_us 2000001\n", -EINVAL},
                 {HEAD "reaction_us 99999999999999999999999999999999999999\n", -EINVAL},
                 {HEAD "reaction_us 18446744073709551616\n", -EINVAL},
                 {HEAD "reaction_us 20000\nreaction_us 20000\n", -EINVAL},
                 {HEAD "stall_normal_ppm 200001\n", -EINVAL},
                 {HEAD "fill_most_bytes_per_s 64000000001\n", -EINVAL},
                 {HEAD "write_bytes_per_s 9999999\n", -EINVAL},
                 {HEAD "read_bytes_per_s 4000000001\n", -EINVAL},
                 {HEAD "a_newer_name x\n", -EINVAL},
                 {HEAD "\xff\xfe 1\n", -EINVAL}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        psi_tuning t = sample;
        int error = psi_tuning_parse(cases[i].text, &t);
        if (error != cases[i].error)
            fail_msg("case %u: %d, wanted %d", (unsigned)i, error, cases[i].error);
        assert_memory_equal(&t, &sample, sizeof(t));
    }
    psi_tuning t = sample;
    assert_int_equal(psi_tuning_parse("psi-cache-tuning 1", &t), 0);
    assert_near(t.reaction_us, 0, 1e-3);
    assert_int_equal(psi_tuning_parse(HEAD "a_newer_name 1\nreaction_us 20000", &t), 0); /* no newline at the end */
    assert_near(t.reaction_us, 20000, 1e-3);
}

static void every_cut_and_every_flipped_byte_is_taken_or_refused(void **state) {
    (void)state;
    char text[sizeof(sample_text)];
    for (size_t i = 0; i < sizeof(sample_text) - 1; i++) {
        for (unsigned bit = 0; bit < 9; bit++) {
            memcpy(text, sample_text, sizeof(text));
            text[i] = (char)(bit < 8 ? text[i] ^ (int)(1u << bit) : 0);
            psi_tuning t = sample;
            int error = psi_tuning_parse(text, &t);
            assert_true(error == 0 || error == -EINVAL || error == -EPROTO);
            assert_true(error == 0 || memcmp(&t, &sample, sizeof(t)) == 0);
            assert_true(t.reaction_us <= 2e6 && t.stall_normal_share <= PSI_STALL_NORMAL_MOST);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(normal_stall_is_learned_in_minutes_and_only_in_calm),
        cmocka_unit_test(fill_most_halves_in_an_hour_and_ignores_jumps),
        cmocka_unit_test(reaction_rises_at_once_and_falls_slowly),
        cmocka_unit_test(speeds_are_averages_within_bounds),
        cmocka_unit_test(the_controller_learns_only_when_told_to),
        cmocka_unit_test(what_was_learned_is_not_used_when_switched_off),
        cmocka_unit_test(nothing_seen_is_the_start),
        cmocka_unit_test(reserve_is_for_the_highest_fill_over_the_reaction),
        cmocka_unit_test(mapping_stays_within_bounds_whatever_was_learned),
        cmocka_unit_test(text_goes_there_and_back),
        cmocka_unit_test(text_that_does_not_fit_is_refused),
        cmocka_unit_test(what_is_no_tuning_is_refused_and_changes_nothing),
        cmocka_unit_test(every_cut_and_every_flipped_byte_is_taken_or_refused),
    };
    return cmocka_run_group_tests_name("tuning", tests, NULL, NULL);
}
