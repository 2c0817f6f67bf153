/* listen.h - listens to the queries of a step while the engine computes it: what they attend to, and which hidden
 * blocks they want. Engine's thread. */
#ifndef PSI_LLAMA_LISTEN_H
#define PSI_LLAMA_LISTEN_H

#include "engine/llama/graph.h"

/* While the graph is read: says in the hook of an attention node which layer of worth it is, and whether it can be
 * listened to. */
void psi_listen_note(step_hook *hook, const kv_tensor *key, const tensor *attention);

/* At the safe point, with the blocks' states known: decides whether this step is listened to. */
void psi_listen_begin(psi_llama_step *step, psi_kv *kv);

/* At a hook: whether it is listened to in this step; listens. */
bool psi_listen_wants(const step_hook *hook);
void psi_listen_at(const step_hook *hook);

/* After the step: tells the pools what was heard, and sums up blocks that became full. */
void psi_listen_end(psi_llama_step *step);

#endif
