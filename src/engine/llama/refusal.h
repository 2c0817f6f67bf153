/* refusal.h - how a step that gets no memory ends: it waits a while, and is then refused by the answer that the engine
 * has for a full cache. Engine's thread. */
#ifndef PSI_LLAMA_REFUSAL_H
#define PSI_LLAMA_REFUSAL_H

#include "engine/llama/graph.h"

/* A call of llama_decode or llama_process on this thread, until its answer. The answer 2 (aborted) becomes 1 (no room)
 * where the refused step was the first of the call: the cache is then as before. */
void psi_refusal_call_begins(const void *context);
int32_t psi_refusal_answer(int32_t status);

/* The step needs blocks that it does not get: waits until pressure has fallen, at most PSI_CACHE_REFUSE_WAIT_US in a
 * row. True: it is refused; never where a part of its call is computed. No lock is held. */
bool psi_refusal_of(const psi_llama_step *step);

/* The same where a step must have all that it reads and has not all of `kv`, after its safe points: waits a moment.
 * True: look again. False: it waited long enough since it began, and is refused; where a part of its
 * call is computed, it waits for as long as it takes. */
bool psi_refusal_waits_for(const psi_llama_step *step, psi_kv *kv);

/* False where a refusal would not be understood: a draft's context. */
bool psi_refusal_is_understood(void);

/* A step that writes a cache was computed. */
void psi_refusal_computed(const psi_llama_step *step);

/* A cache is freed. */
void psi_refusal_forget(const psi_kv *kv);

#endif
