/* hidden.h - a second, hidden context on the model of one of the engine's user, made only to decode tokens anew: it
 * has a cache, threads and results of its own, so that the user's context is not touched. Engine's thread, which may be
 * inside a call of the engine's own (at a safe point, or saving a state). */
#ifndef PSI_LLAMA_HIDDEN_H
#define PSI_LLAMA_HIDDEN_H

#include "engine/llama/cells.h"
#include "engine/llama/graph.h"

enum { HIDDEN_MAX_KVS = STEP_MAX_KVS };

typedef struct psi_hidden psi_hidden;

/* What a piece of tokens does: its graph is left out, and the bytes are copied from the user's cache; or it is
 * computed. `from` has a row of cells for each cache, as many as tokens; UINT64_MAX: none. */
typedef struct psi_piece {
    const int32_t *tokens;
    int32_t position; /* of the first */
    uint32_t count;
    const uint64_t *from[HIDDEN_MAX_KVS];
} psi_piece;

/* The user's context `context` was made on `model` with these parameters (`bytes` of them can be read). Any thread. */
void psi_hidden_note_context(const void *context, void *model, const void *params, size_t bytes);

/* The user's context is gone, or another one stands at its address: its hidden one goes, too. */
void psi_hidden_forget_context(const void *context);

/* A cache goes: so do its context, and hidden ones that read it. */
void psi_hidden_forget_kv(const psi_kv *kv);

/* The hidden context of the user's, made now if it is not there yet: its caches answer to `kvs` one by one, it takes
 * pieces of psi_hidden_piece tokens at most. NULL, with the reason in *why: there can be none. */
psi_hidden *psi_hidden_of(const void *context, psi_kv *const *kvs, uint32_t count, const char **why);
void psi_hidden_free(const void *context);

uint32_t psi_hidden_piece(const psi_hidden *hidden);

/* How far back a token of the model sees in the layers of its smaller cache; UINT32_MAX: not known. */
uint32_t psi_hidden_window(const psi_hidden *hidden);

/* The chain of each token that it has decoded, in order, and how many. psi_hidden_cut takes back all but the first. */
uint64_t psi_hidden_chain(const psi_hidden *hidden, uint32_t at);
uint32_t psi_hidden_length(const psi_hidden *hidden);
void psi_hidden_cut(psi_hidden *hidden, uint32_t length);

/* Behind the last token whose bytes were not there to be copied. */
uint32_t psi_hidden_holes_end(const psi_hidden *hidden);

/* How many cells of the user's were compared with what was computed. */
uint64_t *psi_hidden_compared(psi_hidden *hidden);

/* Why the last piece failed; NULL: the engine's own call did. */
const char *psi_hidden_failure(const psi_hidden *hidden);

/* Decode a piece that goes on where the last one ended; `chains` are noted as its. False: it failed, and the hidden
 * context is to be freed. psi_hidden_cells are then the hidden cache's cells of the last piece. */
bool psi_hidden_copy(psi_hidden *hidden, const psi_piece *piece, const uint64_t *chains);
bool psi_hidden_compute(psi_hidden *hidden, const psi_piece *piece, const uint64_t *chains);
psi_kv *psi_hidden_kv(const psi_hidden *hidden, uint32_t kv);
const uint64_t *psi_hidden_cells(const psi_hidden *hidden, uint32_t kv);

/* In the stand-in for the computing of graphs: true when this thread's graph is a hidden context's, and *status is what
 * the engine gets for it. */
bool psi_hidden_takes_graph(const psi_abi *abi, void *sched, void *graph, int *status);

/* While a hidden context is made: its caches are told by this. A cache that is no KV cache is in it, too. */
bool psi_hidden_is_being_made(void);
void psi_hidden_note_unknown_cache(void);

#endif
