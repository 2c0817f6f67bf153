/* graph.h - reads one step's graph: which cells it writes, which it can see, and where its masks are. */
#ifndef PSI_LLAMA_GRAPH_H
#define PSI_LLAMA_GRAPH_H

#include "engine/llama/kv.h"
#include "engine/llama/mask.h"

enum { STEP_MAX_MASKS = 16, STEP_MAX_KVS = 8 };

/* One mask and the cache whose cells are its columns. */
typedef struct step_mask {
    tensor *mask;
    psi_kv *kv;
    uint32_t first_stream; /* of the mask's streams */
    const tensor *copy;    /* what an attention reads of it: itself, or a copy */
    bool several;          /* another one reads another copy */
} step_mask;

/* A node after which a layer's queries are there, and its attention is not computed yet. */
typedef struct step_hook {
    const tensor *after, *queries;
    psi_kv *kv;
    uint32_t layer; /* of kv->worth */
    float scale;
    tensor *mask; /* that the attention reads: the input, or a copy of it */
    const step_mask *input;
    uint32_t first_stream;
} step_hook;

enum { STEP_MAX_HOOKS = 64 };

/* A step, from before the engine computes it until after. */
typedef struct psi_llama_step {
    step_mask masks[STEP_MAX_MASKS];
    uint32_t mask_count;
    psi_kv *kvs[STEP_MAX_KVS]; /* the caches that it touches */
    uint32_t kv_count;
    step_hook hooks[STEP_MAX_HOOKS];
    uint32_t hook_count;
    uint64_t begin_us;
    bool listens;                    /* some cache attends or recalls in this step */
    psi_eval_callback user_callback; /* the engine's user's own */
    void *user;
    bool user_asked;
} psi_llama_step;

/* Before the engine computes `graph`: the safe point. Stored blocks that it needs come back, requested trims and
 * restores are done, and what is out of memory is hidden in its masks. False: the step needs new blocks and is refused;
 * the cache is as before. The list's lock is not held. */
bool psi_llama_step_begin(psi_llama_step *step, const psi_abi *abi, void *graph);
void psi_llama_step_end(psi_llama_step *step);

#endif
