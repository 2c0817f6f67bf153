/* test_summary.c - arithmetic on keys and queries, each against the plain way to do it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "policy/summary.h"
#include "policy/vector.h"

enum { MOST = 67 };

static unsigned seed = 1;

/* From -1 to 1. */
static float any(void) {
    seed = seed * 1103515245u + 12345u;
    return (float)(seed >> 8 & 0xffff) / 32768.0f - 1;
}

static void near_enough(double got, double wanted, double most) {
    if (!(fabs(got - wanted) <= most)) {
        fail_msg("%g is not %g", got, wanted);
    }
}

static void products_are_those_of_a_plain_loop_at_any_length(void **state) {
    (void)state;
    float a[MOST], b[MOST];
    int8_t c[MOST];
    for (size_t i = 0; i < MOST; i++) {
        a[i] = any();
        b[i] = any();
        c[i] = (int8_t)(any() * 127);
    }
    for (size_t count = 0; count <= MOST; count++) {
        double floats = 0, bytes = 0;
        for (size_t i = 0; i < count; i++) {
            floats += (double)a[i] * (double)b[i];
            bytes += (double)a[i] * c[i];
        }
        near_enough((double)psi_dot(a, b, count), floats, 1e-4);
        near_enough((double)psi_dot_bytes(a, c, count), bytes, 1e-2);
    }
}

static double half_value(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -size : size;
}

static void every_half_that_is_a_number_becomes_that_number(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        uint16_t half = (uint16_t)bits;
        float got = 0;
        psi_from_halves(&got, &half, 1);
        if ((bits & 0x7c00) == 0x7c00) {
            assert_true((bits & 0x3ff) != 0 ? isnan(got) : isinf(got) && (signbit(got) != 0) == (bits >> 15 != 0));
        } else {
            assert_true((double)got == half_value(half) && (signbit(got) != 0) == (bits >> 15 != 0));
        }
    }
}

static void a_bfloat_is_the_upper_half_of_a_float(void **state) {
    (void)state;
    float value = -3.140625f, got = 0;
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint16_t upper = (uint16_t)(bits >> 16);
    psi_from_bfloats(&got, &upper, 1);
    assert_true(got == value);
}

static void shares_are_those_of_the_exponential(void **state) {
    (void)state;
    float logits[MOST], shares[MOST];
    double sum = 0;
    for (size_t i = 0; i < MOST; i++) {
        logits[i] = shares[i] = 30 * any();
        sum += exp((double)logits[i]);
    }
    psi_softmax(shares, MOST);
    for (size_t i = 0; i < MOST; i++) {
        double wanted = exp((double)logits[i]) / sum;
        near_enough((double)shares[i], wanted, 1e-3 * wanted + 1e-12);
    }
}

static void what_is_not_seen_has_no_share(void **state) {
    (void)state;
    float some[] = {-HUGE_VALF, 5, -HUGE_VALF, 5}, none[] = {-HUGE_VALF, -HUGE_VALF}, one[] = {-1000};
    psi_softmax(some, 4);
    assert_true(some[0] == 0 && some[2] == 0);
    near_enough((double)some[1], 0.5, 1e-6);
    psi_softmax(none, 2);
    assert_true(none[0] == 0 && none[1] == 0);
    psi_softmax(one, 1);
    near_enough((double)one[0], 1, 1e-6);
    psi_softmax(one, 0);
}

enum { CELLS = 32, DIMS = 70 };

static void a_summary_finds_what_its_keys_would(void **state) {
    (void)state;
    float rows[CELLS * DIMS], query[DIMS];
    int8_t means[PSI_SUMMARY_RUNS * DIMS];
    float scales[PSI_SUMMARY_RUNS];
    psi_summary summary = {means, scales};
    for (size_t i = 0; i < CELLS * DIMS; i++) {
        rows[i] = 10 * any();
    }
    for (size_t i = 0; i < DIMS; i++) {
        query[i] = any();
    }
    psi_summary_make(&summary, rows, CELLS, DIMS);
    double most = -HUGE_VAL;
    for (uint32_t run = 0; run < PSI_SUMMARY_RUNS; run++) {
        double logit = 0;
        for (uint32_t c = CELLS * run / PSI_SUMMARY_RUNS; c < CELLS * (run + 1) / PSI_SUMMARY_RUNS; c++) {
            for (uint32_t d = 16; d < 64; d++) {
                logit += (double)query[d - 16] * (double)rows[c * DIMS + d] * PSI_SUMMARY_RUNS / CELLS;
            }
        }
        most = logit > most ? logit : most;
    }
    near_enough((double)psi_summary_logit(&summary, DIMS, 16, query, 48), most, 0.5);
}

static void fewer_cells_than_runs_and_keys_of_zero_are_summed_up_too(void **state) {
    (void)state;
    float rows[2 * DIMS] = {0}, sum[DIMS] = {0};
    int8_t means[PSI_SUMMARY_RUNS * DIMS];
    float scales[PSI_SUMMARY_RUNS];
    psi_summary summary = {means, scales};
    psi_summary_make(&summary, rows, 2, DIMS);
    psi_summary_add(&summary, DIMS, sum);
    assert_true(sum[0] == 0 && sum[DIMS - 1] == 0);
    rows[0] = 4;
    rows[DIMS] = 4;
    psi_summary_make(&summary, rows, 2, DIMS);
    psi_summary_add(&summary, DIMS, sum);
    near_enough((double)sum[0], 4, 0.05);
}

static void a_key_unlike_its_surroundings_differs_most(void **state) {
    (void)state;
    float rows[CELLS * DIMS], around[DIMS] = {0}, difference[CELLS];
    for (size_t c = 0; c < CELLS; c++) {
        for (size_t d = 0; d < DIMS; d++) {
            rows[c * DIMS + d] = c == 11 ? (d % 2 == 0 ? 1 : -1) : 1 + 0.1f * any();
            around[d] += rows[c * DIMS + d];
        }
    }
    float mean = psi_keys_difference(difference, rows, CELLS, around, 2, DIMS / 2);
    for (size_t c = 0; c < CELLS; c++) {
        assert_true(c == 11 ? difference[c] > 0.5f : difference[c] < 0.1f);
    }
    assert_true(mean > 0 && mean < 0.1f);
}

static void a_block_s_score_is_that_of_its_four_cells_that_differ_most(void **state) {
    (void)state;
    float difference[] = {0, 4, 1, 2, 0, 3, 0.5f}, few[] = {1, 2};
    near_enough((double)psi_keys_score(difference, 7), 2.5, 1e-6);
    near_enough((double)psi_keys_score(few, 2), 1.5, 1e-6);
}

/* An engine whose keys or queries overflowed: what is not a number says nothing, and spoils nothing else. */
static void what_is_not_a_number_does_not_spread(void **state) {
    (void)state;
    float logits[] = {NAN, 1, 1, -HUGE_VALF}, none[] = {NAN, NAN}, most[] = {HUGE_VALF, 1};
    psi_softmax(logits, 4);
    assert_true(logits[0] == 0 && logits[3] == 0);
    near_enough((double)logits[1], 0.5, 1e-6);
    psi_softmax(none, 2);
    assert_true(none[0] == 0 && none[1] == 0);
    psi_softmax(most, 2);
    assert_true(most[0] >= 0 && most[1] >= 0);
    const float bad[] = {NAN, HUGE_VALF, -HUGE_VALF, 3e38f};
    for (size_t kind = 0; kind < sizeof(bad) / sizeof(bad[0]); kind++) {
        float rows[CELLS * DIMS], around[DIMS] = {0}, query[DIMS], difference[CELLS];
        int8_t means[PSI_SUMMARY_RUNS * DIMS];
        float scales[PSI_SUMMARY_RUNS];
        psi_summary summary = {means, scales};
        for (size_t i = 0; i < CELLS * DIMS; i++) {
            rows[i] = 1;
        }
        for (size_t i = 0; i < DIMS; i++) {
            query[i] = 0.01f;
        }
        rows[13 * DIMS + 5] = rows[13 * DIMS + 6] = bad[kind];
        psi_summary_make(&summary, rows, CELLS, DIMS);
        for (uint32_t run = 0; run < PSI_SUMMARY_RUNS; run++) {
            assert_true(isfinite(scales[run]));
        }
        psi_summary_add(&summary, DIMS, around);
        assert_true(isfinite(psi_summary_logit(&summary, DIMS, 0, query, DIMS)));
        assert_true(isfinite(psi_keys_difference(difference, rows, CELLS, around, 2, DIMS / 2)));
        for (size_t c = 0; c < CELLS; c++) {
            assert_true(difference[c] >= -0.01f && difference[c] <= 2.01f);
        }
        assert_true(isfinite(psi_keys_score(difference, CELLS)));
    }
}

static void keys_next_to_nothing_are_summed_up_without_overflow(void **state) {
    (void)state;
    float rows[DIMS], sum[DIMS];
    int8_t means[PSI_SUMMARY_RUNS * DIMS];
    float scales[PSI_SUMMARY_RUNS];
    psi_summary summary = {means, scales};
    for (float value = 1e-45f; value < 1e-36f; value *= 1.7f) {
        for (size_t i = 0; i < DIMS; i++) {
            rows[i] = value;
            sum[i] = 0;
        }
        psi_summary_make(&summary, rows, 1, DIMS);
        psi_summary_add(&summary, DIMS, sum);
        assert_true(sum[3] >= 0 && sum[3] <= 1.1f * value);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_those_of_a_plain_loop_at_any_length),
        cmocka_unit_test(every_half_that_is_a_number_becomes_that_number),
        cmocka_unit_test(a_bfloat_is_the_upper_half_of_a_float),
        cmocka_unit_test(shares_are_those_of_the_exponential),
        cmocka_unit_test(what_is_not_seen_has_no_share),
        cmocka_unit_test(a_summary_finds_what_its_keys_would),
        cmocka_unit_test(fewer_cells_than_runs_and_keys_of_zero_are_summed_up_too),
        cmocka_unit_test(what_is_not_a_number_does_not_spread),
        cmocka_unit_test(keys_next_to_nothing_are_summed_up_without_overflow),
        cmocka_unit_test(a_key_unlike_its_surroundings_differs_most),
        cmocka_unit_test(a_block_s_score_is_that_of_its_four_cells_that_differ_most),
    };
    return cmocka_run_group_tests_name("summary", tests, NULL, NULL);
}
