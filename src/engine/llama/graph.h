/* graph.h - reads one step's graph: which cells it writes, which it can see, and where its masks are. */
#ifndef PSI_LLAMA_GRAPH_H
#define PSI_LLAMA_GRAPH_H

#include "engine/llama/kv.h"

enum { STEP_MAX_MASKS = 16, STEP_MAX_KVS = 8 };

/* One mask and the cache whose cells are its columns. */
typedef struct step_mask {
    tensor *mask;
    psi_kv *kv;
    uint32_t first_stream; /* of the mask's streams */
} step_mask;

/* A step, from before the engine computes it until after. */
typedef struct psi_llama_step {
    step_mask masks[STEP_MAX_MASKS];
    uint32_t mask_count;
    psi_kv *kvs[STEP_MAX_KVS]; /* the caches that it touches */
    uint32_t kv_count;
} psi_llama_step;

/* Before the engine computes `graph`: the safe point. Stored blocks that it needs come back, requested trims and
 * restores are done, and what is out of memory is hidden in its masks. False: the step needs new blocks and is refused;
 * the cache is as before. The list's lock is not held. */
bool psi_llama_step_begin(psi_llama_step *step, const psi_abi *abi, void *graph);
void psi_llama_step_end(psi_llama_step *step);

#endif
