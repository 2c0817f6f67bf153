/* test_trace.c - samples as text and back, bit for bit; names; and a reader that is given anything at all. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "signal/parse.h"
#include "signal/sample.h"

static uint64_t seed;

/* xorshift64* */
static uint64_t roll(uint64_t below) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (seed * UINT64_C(2685821657736338717) >> 1) % below;
}

/* ---- Names ------------------------------------------------------------------------------------ */

static void every_name_leads_back(void **state) {
    (void)state;
    char a[PSI_RAW_NAME_BYTES], b[PSI_RAW_NAME_BYTES];
    for (size_t raw = 0; raw < PSI_RAW_COUNT; raw++) {
        const char *name = psi_raw_name(raw, a);
        assert_non_null(name);
        assert_true(strlen(name) > 0 && strlen(name) < PSI_RAW_NAME_BYTES);
        assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._"), strlen(name));
        assert_int_equal(psi_raw_find(name, strlen(name)), raw);
        assert_int_equal(psi_raw_find(name, strlen(name) - 1), PSI_RAW_COUNT);
        for (size_t other = 0; other < raw; other++)
            assert_string_not_equal(name, psi_raw_name(other, b));
    }
}

static void names_are_as_they_were(void **state) {
    (void)state;
    char name[PSI_RAW_NAME_BYTES];
    assert_string_equal(psi_raw_name(PSI_RAW_OWN_MEMORY_SOME_US, name), "psi.own.memory.some_us");
    assert_string_equal(psi_raw_name(psi_raw_bound(PSI_RAW_V1_BOUND, 0, PSI_BOUND_USAGE), name),
                        "bound.v1.0.usage_bytes");
    assert_string_equal(psi_raw_name(psi_raw_bound(PSI_RAW_V2_BOUND, 11, PSI_BOUND_CACHE), name),
                        "bound.v2.11.cache_bytes");
    static const char *const none[] = {"", "bound.", "bound.v1.12.limit_bytes", "bound.v1.00.limit_bytes", "x"};
    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++)
        assert_int_equal(psi_raw_find(none[i], strlen(none[i])), PSI_RAW_COUNT);
}

/* ---- There and back --------------------------------------------------------------------------- */

#define SAMPLES 300

static void change_some(psi_sample *sample) {
    sample->at_us += roll(3) == 0 ? 0 : roll(100000);
    sample->look = (uint32_t)roll(PSI_LOOK_ALL + 1);
    for (uint64_t i = roll(PSI_RAW_COUNT); i > 0; i--) {
        size_t raw = (size_t)roll(PSI_RAW_COUNT);
        sample->known[raw] = roll(3) != 0;
        sample->value[raw] = sample->known[raw] ? roll(PSI_AMOUNT_END >> roll(62)) : 0;
    }
}

/* Writes a trace of random samples; returns its length. */
static size_t write_trace(char *out, size_t capacity) {
    psi_sample before, now = {.at_us = roll(UINT64_C(1) << 60)};
    size_t length = (size_t)snprintf(out, capacity, "%s\n# kernel 6.18\n", PSI_TRACE_HEAD);
    for (int i = 0; i < SAMPLES; i++) {
        change_some(&now);
        int wrote = psi_trace_format(i > 0 ? &before : NULL, &now, out + length, capacity - length);
        assert_true(wrote > 0);
        length += (size_t)wrote;
        before = now;
    }
    return length;
}

static void assert_same(const psi_sample *a, const psi_sample *b) {
    assert_int_equal(a->at_us, b->at_us);
    assert_int_equal(a->look, b->look);
    assert_memory_equal(a->known, b->known, sizeof(a->known));
    assert_memory_equal(a->value, b->value, sizeof(a->value));
}

/* Reads text[0, length) and writes what it said into `out`; returns the length and the number of samples. */
static size_t rewrite_trace(const char *text, size_t length, char *out, size_t capacity, int *samples) {
    static char line[PSI_TRACE_SAMPLE_BYTES];
    static psi_trace_reader reader;
    psi_sample before, now;
    memset(&reader, 0, sizeof(reader));
    *samples = 0;
    size_t wrote = (size_t)snprintf(out, capacity, "%s\n# kernel 6.18\n", PSI_TRACE_HEAD);
    for (size_t at = 0; at <= length;) {
        size_t count = at < length ? strcspn(text + at, "\n") : 0;
        memcpy(line, text + at, count);
        line[count] = '\0';
        int result = at < length ? psi_trace_take(&reader, line, &now) : psi_trace_finish(&reader, &now);
        assert_true(result >= 0);
        if (result == 1) {
            int more = psi_trace_format(*samples > 0 ? &before : NULL, &now, out + wrote, capacity - wrote);
            assert_true(more > 0);
            wrote += (size_t)more;
            before = now;
            ++*samples;
        }
        at += count + 1;
        if (at > length && result >= 0 && count == 0)
            break;
    }
    return wrote;
}

static void samples_survive_the_trip_bit_for_bit(void **state) {
    (void)state;
    const size_t capacity = SAMPLES * PSI_TRACE_SAMPLE_BYTES;
    char *text = malloc(capacity), *again = malloc(capacity);
    assert_true(text != NULL && again != NULL);
    for (uint64_t begin = 1; begin <= 20; begin++) {
        seed = begin * 7919;
        int samples = 0;
        size_t length = write_trace(text, capacity);
        size_t wrote = rewrite_trace(text, length, again, capacity, &samples);
        if (samples != SAMPLES || wrote != length || memcmp(text, again, length) != 0)
            fail_msg("not the same with seed %llu", (unsigned long long)begin);
    }
    free(text);
    free(again);
}

static void a_sample_is_what_was_written(void **state) {
    (void)state;
    static char out[PSI_TRACE_SAMPLE_BYTES];
    static psi_trace_reader reader;
    psi_sample a = {.at_us = 5, .look = PSI_LOOK_ALL}, b, got;
    a.known[PSI_RAW_VM_SWAP_IN] = a.known[PSI_RAW_VM_SWAP_OUT] = true;
    a.value[PSI_RAW_VM_SWAP_IN] = 77;
    b = a;
    b.at_us = 9;
    b.look = PSI_LOOK_AMOUNTS;
    b.known[PSI_RAW_VM_SWAP_IN] = false;
    b.value[PSI_RAW_VM_SWAP_IN] = 0;
    int length = psi_trace_format(NULL, &a, out, sizeof(out));
    assert_int_equal(length, strlen(out));
    assert_string_equal(out, "@ 5 15\nvm.swap_in 77\nvm.swap_out 0\n");
    assert_true(psi_trace_format(&a, &b, out, sizeof(out)) > 0);
    assert_string_equal(out, "@ 9 1\nvm.swap_in -\n");
    memset(&reader, 0, sizeof(reader));
    assert_int_equal(psi_trace_take(&reader, PSI_TRACE_HEAD, &got), 0);
    assert_int_equal(psi_trace_take(&reader, "# a comment", &got), 0);
    assert_int_equal(psi_trace_take(&reader, "@ 5 15", &got), 0);
    assert_int_equal(psi_trace_take(&reader, "vm.swap_in 77", &got), 0);
    assert_int_equal(psi_trace_take(&reader, "vm.swap_out 0", &got), 0);
    assert_int_equal(psi_trace_take(&reader, "vm.of_the_future 8", &got), 0); /* a newer writer */
    assert_int_equal(psi_trace_take(&reader, "@ 9 1", &got), 1);
    assert_same(&got, &a);
    assert_int_equal(psi_trace_take(&reader, "vm.swap_in -", &got), 0);
    assert_int_equal(psi_trace_finish(&reader, &got), 1);
    assert_same(&got, &b);
    assert_int_equal(psi_trace_finish(&reader, &got), 0);
    assert_int_equal(reader.line, 8);
}

static void the_largest_sample_fits_and_a_small_buffer_is_told(void **state) {
    (void)state;
    static char out[PSI_TRACE_SAMPLE_BYTES + 1];
    psi_sample now = {.at_us = UINT64_MAX, .look = UINT32_MAX};
    for (size_t raw = 0; raw < PSI_RAW_COUNT; raw++) {
        now.known[raw] = true;
        now.value[raw] = UINT64_MAX;
    }
    int length = psi_trace_format(NULL, &now, out, PSI_TRACE_SAMPLE_BYTES);
    assert_true(length > 0);
    for (size_t capacity = 0; capacity <= (size_t)length; capacity++) {
        memset(out, 'x', sizeof(out));
        assert_int_equal(psi_trace_format(NULL, &now, out, capacity), -ENOBUFS);
        assert_true(capacity == 0 || out[0] == '\0');
        assert_int_equal(out[capacity], 'x');
    }
}

/* ---- Anything at all -------------------------------------------------------------------------- */

static int take(psi_trace_reader *reader, const char *line) {
    psi_sample complete;
    return psi_trace_take(reader, line, &complete);
}

static void what_is_no_trace_is_refused(void **state) {
    (void)state;
    static const char *const heads[] = {"", "psi-cache-trace", "psi-cache-trace 2", "psi-cache-trace 1 ", "@ 5 15"};
    static const char *const lines[] = {"",
                                        " ",
                                        "@",
                                        "@ ",
                                        "@ 7",
                                        "@ 7 ",
                                        "@ 7 15 ",
                                        "@ 7 15 3",
                                        "@ -7 15",
                                        "@7 15",
                                        "@ 7 4294967296",
                                        "@ 4 15", /* time that goes back */
                                        "@ 18446744073709551616 15",
                                        "vm.swap_in",
                                        "vm.swap_in ",
                                        "vm.swap_in  5",
                                        "vm.swap_in 5 ",
                                        "vm.swap_in -5",
                                        "vm.swap_in --",
                                        "vm.swap_in 4611686018427387904",
                                        "vm.swap_in 0x5",
                                        "Vm.swap_in 5",
                                        "vm.swap_in\t5",
                                        "vm.of_the_future many",
                                        "\xff\xfe"};
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
        psi_trace_reader reader = {.line = 0};
        assert_int_equal(take(&reader, heads[i]), -EPROTO);
    }
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        psi_trace_reader reader = {.line = 0};
        assert_int_equal(take(&reader, PSI_TRACE_HEAD), 0);
        assert_int_equal(take(&reader, "vm.swap_in 5"), -EINVAL); /* of which sample? */
        assert_int_equal(take(&reader, "@ 5 15"), 0);
        if (take(&reader, lines[i]) != -EINVAL)
            fail_msg("taken: \"%s\"", lines[i]);
        assert_int_equal(take(&reader, "@ 5 15"), 1); /* and the next good line is taken */
    }
}

static void garbage_is_survived(void **state) {
    (void)state;
    static const char *const words[] = {
        "@", " ", "-",    "5",         "vm.swap_in", "bound.v1.0.limit_bytes", "999999999999999999",
        "#", ".", "\xff", "bound.v9.", "psi.own"};
    static psi_trace_reader reader;
    psi_sample complete;
    for (uint64_t begin = 1; begin <= 20000; begin++) {
        seed = begin * 104729;
        char line[256] = "";
        for (uint64_t i = roll(8); i > 0; i--)
            strcat(line, words[roll(sizeof(words) / sizeof(words[0]))]);
        if (begin % 100 == 1) {
            memset(&reader, 0, sizeof(reader));
            assert_int_equal(take(&reader, PSI_TRACE_HEAD), 0);
        }
        int result = psi_trace_take(&reader, line, &complete);
        if (result != 0 && result != 1 && result != -EINVAL)
            fail_msg("%d for \"%s\" (seed %llu)", result, line, (unsigned long long)begin);
        for (size_t raw = 0; result == 1 && raw < PSI_RAW_COUNT; raw++)
            assert_true(complete.known[raw] ? complete.value[raw] < PSI_AMOUNT_END : complete.value[raw] == 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_name_leads_back),
        cmocka_unit_test(names_are_as_they_were),
        cmocka_unit_test(samples_survive_the_trip_bit_for_bit),
        cmocka_unit_test(a_sample_is_what_was_written),
        cmocka_unit_test(the_largest_sample_fits_and_a_small_buffer_is_told),
        cmocka_unit_test(what_is_no_trace_is_refused),
        cmocka_unit_test(garbage_is_survived),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
