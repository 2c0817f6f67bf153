/* vector.c - plain loops; the compiler makes a second copy of each for x86-64 processors of the last ten years, and the
 * loader picks one. CMakeLists.txt lets this file's sums run in any order. */
#include "policy/vector.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "arch=haswell")))
#else /* the choice is made before a sanitizer is ready, and only glibc makes it */
#define FOR_EACH_PROCESSOR
#endif

static FOR_EACH_PROCESSOR float dot(const float *a, const float *b, size_t count) {
    float sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

static FOR_EACH_PROCESSOR float dot_bytes(const float *a, const int8_t *b, size_t count) {
    float sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += a[i] * (float)b[i];
    }
    return sum;
}

static FOR_EACH_PROCESSOR void from_bfloats(float *to, const uint16_t *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof(bits));
    }
}

/* A half's exponent and fraction, moved to a float's place, are 2^112 times too small; infinities apart, that is all.
 */
static FOR_EACH_PROCESSOR void from_halves(float *to, const uint16_t *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)(from[i] & 0x7fff) << 13, sign = (uint32_t)(from[i] & 0x8000) << 16;
        float value;
        memcpy(&value, &bits, sizeof(value));
        value *= 0x1p112f;
        memcpy(&bits, &value, sizeof(bits));
        bits |= sign | ((from[i] & 0x7c00) == 0x7c00 ? UINT32_C(0x7f800000) : 0);
        memcpy(&to[i], &bits, sizeof(bits));
    }
}

/* e^x for x <= 0, to 2e-4 of it: 2^whole times a polynomial of the rest. Good enough to compare shares. */
static inline float exponential(float x) {
    float power = x * 1.44269504f;
    power = power < -126 ? -126 : power;
    int32_t whole = (int32_t)power - 1; /* at or below power, as a cast goes towards zero */
    float rest = power - (float)whole;  /* 0 to 2 */
    float half = rest * 0.5f;           /* 2^rest = (2^half)^2 */
    float root = 1 + half * (0.69314718f + half * (0.24022651f + half * (0.05550411f + half * 0.00961813f)));
    int32_t bits = (whole + 127) << 23;
    float scale;
    bits = bits < 0 ? 0 : bits;
    memcpy(&scale, &bits, sizeof(scale));
    return scale * root * root;
}

static float most_of(const float *values, size_t count) {
    float most = -HUGE_VALF;
    for (size_t i = 0; i < count; i++) {
        most = values[i] > most ? values[i] : most;
    }
    return most;
}

static FOR_EACH_PROCESSOR float exponentials(float *logits, size_t count, float most) {
    float sum = 0;
    for (size_t i = 0; i < count; i++) {
        float below = logits[i] - most;
        logits[i] = below > -80 ? exponential(below < -80 ? -80 : below) : 0;
        sum += logits[i];
    }
    return sum;
}

void psi_softmax(float *logits, size_t count) {
    float most = most_of(logits, count);
    float sum = most > -HUGE_VALF ? exponentials(logits, count, most) : 0;
    for (size_t i = 0; i < count; i++) {
        logits[i] = sum > 0 ? logits[i] / sum : 0;
    }
}

/* A copy for each processor must be static: the linker would show it to the world. */
float psi_dot(const float *a, const float *b, size_t count) { return dot(a, b, count); }
float psi_dot_bytes(const float *a, const int8_t *b, size_t count) { return dot_bytes(a, b, count); }
void psi_from_halves(float *to, const uint16_t *from, size_t count) { from_halves(to, from, count); }
void psi_from_bfloats(float *to, const uint16_t *from, size_t count) { from_bfloats(to, from, count); }
