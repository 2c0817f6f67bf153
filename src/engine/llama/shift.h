/* shift.h - a context shift: the engine turns all keys of a cache in place, in one graph. Here it is computed portion
 * by portion, so that what is out of memory is turned, too, and memory does not grow by it. Engine's thread. */
#ifndef PSI_LLAMA_SHIFT_H
#define PSI_LLAMA_SHIFT_H

#include "engine/llama/kv.h"

/* True: the graph was such a one and was computed; *status is the engine's. False: it is another, or is not understood
 * whole, and nothing was done. The list's lock is not held. */
bool psi_shift_compute(const psi_abi *abi, void *sched, void *graph, int *status);

#endif
