/* watcher.h - the watcher thread's parts: the loop (watcher.c), carrying a decision out (give.c), and what is kept of
 * it for people and for the tuning (notes.c). Watcher's thread only; each is called under the cache's lock. */
#ifndef PSI_WATCHER_H
#define PSI_WATCHER_H

#include "pool/cache.h"

/* give.c */
void psi_give_measure(psi_cache *cache, psi_demand *demand);
void psi_give(psi_cache *cache, const psi_decision *decision, const psi_demand *demand);
/* Has a few MiB of the blocks that would go next written to the store. */
void psi_give_write_ahead(psi_cache *cache);

/* writer.c: the thread that writes. */
void *psi_writer_run(void *cache);

/* notes.c: after a decision, before and after it was carried out. */
void psi_notes_decided(psi_cache *cache, const psi_demand *demand);
void psi_notes_given(psi_cache *cache);
void psi_notes_say(psi_cache *cache, const psi_demand *demand);
/* Looks for who it is, while something presses. Without the cache's lock. */
void psi_notes_culprit(psi_cache *cache);

#endif
