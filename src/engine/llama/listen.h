/* listen.h - listens to the queries of a step while the engine computes it, through ggml's evaluation callback: what
 * they attend to, and which hidden blocks they want. Engine's thread. */
#ifndef PSI_LLAMA_LISTEN_H
#define PSI_LLAMA_LISTEN_H

#include "engine/llama/graph.h"

/* While the graph is read: a layer's attention, `hook->after` being the node that multiplies K and Q, at `index` or
 * before. Layers that are not listened to are left out. */
void psi_listen_note(psi_llama_step *step, void *graph, int index, const step_hook *hook);

/* At the safe point, with the blocks' states known: decides whether this step is listened to. */
void psi_listen_begin(psi_llama_step *step, psi_kv *kv);

/* Computes the graph, listening. */
int psi_listen_compute(psi_llama_step *step, const psi_abi *abi, void *sched, void *graph);

/* After the step: tells the pools what was heard, and sums up blocks that became full. */
void psi_listen_end(psi_llama_step *step);

/* The engine's user's own callback of a scheduler, which ours calls in turn; a scheduler is freed. */
void psi_listen_keep_callback(const void *sched, psi_eval_callback callback, void *user);
void psi_listen_forget(const void *sched);

/* The user has one, or may have. */
bool psi_listen_has_callback(const void *sched);

/* Registers for fork(): the child must not find the list of callbacks locked. Once. */
void psi_listen_handle_forks(void);

#endif
