/* layers.h - safe points inside a step, one before each layer's attention: a step that takes long (a prompt's piece, a
 * large model) delays no trim. Engine's thread. */
#ifndef PSI_LLAMA_LAYERS_H
#define PSI_LLAMA_LAYERS_H

#include "engine/llama/graph.h"

/* While the graph is read: says in the hook which of the cache's planes the attention of `key` reads. */
void psi_layers_note(step_hook *hook, const kv_tensor *key);

/* The next hook of a cache after `last`, in the order of the layers; NULL: the first; NULL is returned when there is
 * none. */
const step_hook *psi_layers_next_hook(const psi_llama_step *step, const psi_kv *kv, const step_hook *last);

/* About how many tokens the step has: steps of one size, below KV_ROW_SIZES, take about as long. */
uint32_t psi_layers_row_size(const step_hook *hook);

/* At the safe point before the step: decides whether a cache has others inside it (kv->layered). */
void psi_layers_begin(psi_llama_step *step, psi_kv *kv, void *graph);

/* At a hook of such a cache: what was asked for goes, and is hidden from this and the later layers. */
void psi_layers_pass(const psi_llama_step *step, const step_hook *hook);

/* A hook's attention comes, and its stop did not: nothing more goes in this step. */
void psi_layers_missed(const step_hook *hook);

/* Brings what is known of the blocks' states, and the masks of the hook's layer and later ones, up to what moved. */
void psi_layers_follow(const step_hook *hook);

/* The step was computed. */
void psi_layers_end(psi_llama_step *step);

#endif
