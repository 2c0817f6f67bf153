/* cells.h - the bytes of cells, K and V of all layers, between two caches of one shape: the engine's and a hidden
 * context's. Engine's thread. */
#ifndef PSI_LLAMA_CELLS_H
#define PSI_LLAMA_CELLS_H

#include "engine/llama/kv.h"

/* A cell of one cache and its counterpart in the other (each stream * cells + cell). */
typedef struct psi_cell_pair {
    uint64_t from, to;
} psi_cell_pair;

/* True when the tensors are the same layers', and their rows are alike. */
bool psi_cells_are_alike(const psi_kv *a, const psi_kv *b);

/* Bytes of a cell in all tensors. */
size_t psi_cells_bytes(const psi_kv *kv);

/* Copies cells; pairs that go on where the one before ended are copied together. */
void psi_cells_copy(const psi_kv *from, psi_kv *to, const psi_cell_pair *pairs, uint32_t count, bool v_transposed);

/* How far the keys of the cells lie apart: the sum of their differences' squares over that of the first ones' squares,
 * of the layer where it is largest. Negative: keys that are not read here. `scratch` has two rows of floats. */
double psi_cells_difference(const psi_kv *a, const psi_kv *b, const psi_cell_pair *pairs, uint32_t count,
                            float *scratch);

#endif
