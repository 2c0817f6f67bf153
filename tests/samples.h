/* samples.h - samples made by hand, for the tests that derive readings from them without any file. */
#ifndef PSI_TESTS_SAMPLES_H
#define PSI_TESTS_SAMPLES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "signal/derive.h"
#include "signal/parse.h"

#define MIB ((uint64_t)1 << 20)
#define MS ((uint64_t)1000)
#define SECOND ((uint64_t)1000000)

static psi_derive derive;
static psi_sample sample;

static inline int set_up(void **state) {
    (void)state;
    psi_derive_init(&derive);
    memset(&sample, 0, sizeof(sample));
    sample.at_us = 1000 * SECOND;
    return 0;
}

static inline void set(size_t raw, uint64_t value) {
    sample.known[raw] = true;
    sample.value[raw] = value;
}

static inline void lose(size_t raw) {
    sample.known[raw] = false;
    sample.value[raw] = 0;
}

static inline psi_reading step(uint64_t us, uint32_t look) {
    psi_reading reading;
    sample.at_us += us;
    sample.look = look;
    psi_derive_read(&derive, &sample, &reading);
    return reading;
}

static inline void assert_near(double value, double wanted, double error) {
    if (!(value > wanted - error && value < wanted + error))
        fail_msg("%f is not within %f of %f", value, error, wanted);
}

static inline void set_bound(psi_raw first, size_t level, uint64_t limit, uint64_t usage, uint64_t cache) {
    set(psi_raw_bound(first, level, PSI_BOUND_LIMIT), limit);
    set(psi_raw_bound(first, level, PSI_BOUND_USAGE), usage);
    set(psi_raw_bound(first, level, PSI_BOUND_CACHE), cache);
}

static inline void set_machine(uint64_t total, uint64_t available) {
    set(PSI_RAW_MEMORY_TOTAL_BYTES, total);
    set(PSI_RAW_MEMORY_AVAILABLE_BYTES, available);
}

static inline double mib_per_s(const psi_reading *reading) { return (double)reading->fill_bytes_per_s / (double)MIB; }

#define CASE(test) cmocka_unit_test_setup(test, set_up)

#endif
