/* recompute.h - brings dropped cells back: their tokens are decoded again in a hidden context. Engine's thread. */
#ifndef PSI_LLAMA_RECOMPUTE_H
#define PSI_LLAMA_RECOMPUTE_H

#include "engine/llama/graph.h"

/* False: PSI_CACHE_RECOMPUTE=off. */
bool psi_llama_recomputes(void);

/* Between the pools' safe points and the hiding of what is out: as much as was asked for, within
 * PSI_CACHE_RECOMPUTE_US. */
void psi_recompute_at_safe_point(const psi_llama_step *step);

/* The engine is about to read the cells [first, last] outside a graph: what of them was dropped comes back, if it can.
 * The list's lock is not held. */
void psi_recompute_for_reading(psi_kv *kv, uint64_t first, uint64_t last);

/* Brings back all that was dropped of this llama_context's cache, now, as far as its tokens are known and there is
 * room; NULL: of all contexts. On the thread that decodes with it, while no decode runs. Bytes that came back. */
PSI_API uint64_t psi_llama_recompute(const void *context);

#endif
