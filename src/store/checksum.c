/* checksum.c - four independent multiply-and-rotate lanes, so that the processor overlaps them: a record is
 * checked at memory speed, in the step that trims. */
#include "store/checksum.h"

#include <string.h>

static uint64_t mix(uint64_t lane, uint64_t word) {
    lane = (lane ^ word) * UINT64_C(0x9e3779b97f4a7c15); /* 2^64 / golden ratio, odd: no bit is lost */
    return (lane << 31) | (lane >> 33);
}

uint64_t psi_checksum(const void *bytes, size_t count) {
    const unsigned char *next = bytes;
    uint64_t lanes[4] = {1, 2, 3, 4};
    for (size_t at = 0; at + 32 <= count; at += 32) {
        uint64_t words[4];
        memcpy(words, next + at, sizeof(words));
        for (int i = 0; i < 4; i++) {
            lanes[i] = mix(lanes[i], words[i]);
        }
    }
    uint64_t sum = count;
    for (int i = 0; i < 4; i++) {
        sum = mix(sum, lanes[i]);
    }
    return sum;
}
