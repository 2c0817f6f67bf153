/* vector.h - the loops that take the time in scores and summaries, compiled for what the processor has. Any thread. */
#ifndef PSI_VECTOR_H
#define PSI_VECTOR_H

#include <stddef.h>
#include <stdint.h>

float psi_dot(const float *a, const float *b, size_t count);
float psi_dot_bytes(const float *a, const int8_t *b, size_t count);

/* IEEE half precision (as bits) and bfloat16 to floats. */
void psi_from_halves(float *to, const uint16_t *from, size_t count);
void psi_from_bfloats(float *to, const uint16_t *from, size_t count);

/* Turns logits into shares of their whole, in place. Any that is -INFINITY becomes 0; so do all, when all are. */
void psi_softmax(float *logits, size_t count);

#endif
