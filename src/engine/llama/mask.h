/* mask.h - cells of an attention mask: its columns are a cache's cells, its rows a step's tokens. */
#ifndef PSI_LLAMA_MASK_H
#define PSI_LLAMA_MASK_H

#include "engine/llama/abi.h"

typedef enum psi_mask_value { MASK_HIDDEN, MASK_SEEN, MASK_WEIGHED } psi_mask_value; /* weighed: seen with a bias */

psi_mask_value psi_mask_get(const tensor *mask, int64_t stream, int64_t row, uint32_t column);
void psi_mask_set(tensor *mask, int64_t stream, int64_t row, uint32_t column, bool seen);

/* True when any of the mask's tokens sees any of the columns [first, last). */
bool psi_mask_any_seen(const tensor *mask, int64_t stream, uint32_t first, uint32_t last);
void psi_mask_hide(tensor *mask, int64_t stream, uint32_t first, uint32_t last);

#endif
