/* hooks.h - where a step is stopped while the engine computes it, through ggml's evaluation callback: before each
 * layer's attention. What is done there is in layers.h and listen.h. Engine's thread. */
#ifndef PSI_LLAMA_HOOKS_H
#define PSI_LLAMA_HOOKS_H

#include "engine/llama/graph.h"

/* While the graph is read: `hook` for the attention node at `index`, whose K is `key`. */
void psi_hooks_note(psi_llama_step *step, void *graph, int index, const kv_tensor *key, const step_hook *hook);

/* Computes the graph, stopping at the hooks that are wanted. */
int psi_hooks_compute(psi_llama_step *step, const psi_abi *abi, void *sched, void *graph);

/* The engine's user's own callback of a scheduler, which ours calls in turn; a scheduler is freed. */
void psi_hooks_keep_callback(const void *sched, psi_eval_callback callback, void *user);
void psi_hooks_forget(const void *sched);

/* The user has one, or may have. */
bool psi_hooks_has_callback(const void *sched);

/* Registers for fork(): the child must not find the list of callbacks locked. Once. */
void psi_hooks_handle_forks(void);

#endif
