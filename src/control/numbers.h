/* numbers.h - small arithmetic that the files of this room and of src/pool share: casts, differences and shares that
 * stay finite and in range whatever a reading says. Pure. */
#ifndef PSI_CONTROL_NUMBERS_H
#define PSI_CONTROL_NUMBERS_H

#include <stdbool.h>
#include <stdint.h>

#include "signal/signal.h"

static inline bool psi_has(const psi_reading *reading, uint32_t what) { return (reading->have & what) == what; }

/* To 0..1; what is not a number counts as nothing. */
static inline double psi_to_share(double value) { return value > 1 ? 1 : value > 0 ? value : 0; }

/* To 0..2^63, so that sums of a few stay exact enough and no cast overflows. */
static inline uint64_t psi_to_whole(double value) {
    const double end = 9223372036854775808.0;
    return value >= end ? (uint64_t)1 << 63 : value > 0 ? (uint64_t)value : 0;
}

static inline uint64_t psi_least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t psi_most(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* 0, not 580,000 years, when the clock went back. */
static inline uint64_t psi_since(uint64_t now_us, uint64_t then_us) { return now_us > then_us ? now_us - then_us : 0; }

/* Headroom, or below zero what is missing. */
static inline double psi_left_bytes(const psi_reading *reading) {
    return (double)reading->headroom_bytes - (double)reading->missing_bytes;
}

#endif
