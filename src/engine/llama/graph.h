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

/* A layer's attention, and the node before it: once that is computed, the layer's queries are there. */
typedef struct step_hook {
    const tensor *after, *product, *queries; /* product: of K and Q, the first node of the attention */
    int index;                               /* of `after` in the graph */
    psi_kv *kv;
    uint32_t first_plane, planes; /* of kv->pool, that the attention reads */
    uint32_t layer;               /* of kv->worth */
    bool listenable;
    float scale;
    tensor *mask; /* that the attention reads: the input, or a copy of it */
    const step_mask *input;
    uint32_t first_stream;
} step_hook;

enum { STEP_MAX_HOOKS = 256 };

/* A step, from before the engine computes it until after. */
typedef struct psi_llama_step {
    step_mask masks[STEP_MAX_MASKS];
    uint32_t mask_count;
    psi_kv *kvs[STEP_MAX_KVS]; /* the caches that it touches */
    uint32_t kv_count;
    step_hook hooks[STEP_MAX_HOOKS];
    uint32_t hook_count;
    uint32_t next_hook; /* the first that was not passed yet */
    uint64_t begin_us;
    bool listens;                    /* some cache attends or recalls in this step */
    bool layered;                    /* some cache has safe points in it */
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
