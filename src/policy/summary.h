/* summary.h - arithmetic on keys and queries, for any engine: what stays of a block's keys when the block is out of
 * memory, how much its keys differ from those around it, and how much the queries of a step want it. Floats in, numbers
 * out; called on the engine's thread, allocates nothing. */
#ifndef PSI_SUMMARY_H
#define PSI_SUMMARY_H

#include <stdint.h>

/* A block's cells are summed up in so many runs, one after the other: a mean over a whole block of 32 cells hides a
 * short fact in it (measured: docs/policies.md). */
enum { PSI_SUMMARY_RUNS = 8 };

/* One layer's part of a block's summary: the mean key of each run, in 8 bits with a scale. */
typedef struct psi_summary {
    int8_t *means; /* PSI_SUMMARY_RUNS * dims */
    float *scales; /* PSI_SUMMARY_RUNS */
} psi_summary;

/* Sums up `cells` rows of `dims` floats. Fewer cells than runs: the last ones repeat. cells > 0. */
void psi_summary_make(const psi_summary *summary, const float *rows, uint32_t cells, uint32_t dims);

/* Adds the block's mean key to `sum` (dims floats). */
void psi_summary_add(const psi_summary *summary, uint32_t dims, float *sum);

/* Query times mean key, the largest over the runs: `query` has head_dims floats, and reads the means at `offset`. */
float psi_summary_logit(const psi_summary *summary, uint32_t dims, uint32_t offset, const float *query,
                        uint32_t head_dims);

/* Sets difference[cell] to one minus the cosine between the cell's key and `around` (of any length), its mean over
 * heads; 0 to 2. Returns the mean over cells. */
float psi_keys_difference(float *difference, const float *rows, uint32_t cells, const float *around, uint32_t heads,
                          uint32_t head_dims);

/* A block's score from its cells': the mean of the four highest. Reorders them. */
float psi_keys_score(float *difference, uint32_t cells);

#endif
