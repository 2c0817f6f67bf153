/* plan.h - which sequence is to be computed again, and which pieces of it: from what is remembered of each cell's token
 * (tokens.h). A cell's chain leads from its token back to the first one of its sequence: that is the sequence to be
 * decoded. What of it is in memory is copied into the hidden context, and only the pieces that miss something are
 * computed. Engine's thread. */
#ifndef PSI_LLAMA_PLAN_H
#define PSI_LLAMA_PLAN_H

#include "engine/llama/hidden.h"

#define PSI_NO_CELL UINT64_MAX

/* What is to come back, and what it may take. */
typedef struct psi_wish {
    uint64_t most_us, most_bytes;
    bool only_seen; /* by the step that begins */
    const psi_kv *kv;
    uint64_t first, last; /* of this cache only these cells, if it is not NULL */
} psi_wish;

typedef struct psi_chain_entry {
    uint64_t chain, cell;
    int32_t position;
} psi_chain_entry;

/* One sequence, from its first token to the piece that holds the last one to come back. */
typedef struct psi_plan {
    psi_kv *const *kvs;
    uint32_t count, length, piece;
    psi_chain_entry *entries[HIDDEN_MAX_KVS];
    size_t entry_count[HIDDEN_MAX_KVS];
    int32_t *tokens;
    uint64_t *chains;
    uint64_t *cells[HIDDEN_MAX_KVS];
    bool misses[HIDDEN_MAX_KVS]; /* some token of the chain is no longer in this cache */
    unsigned char *needs;        /* a byte a piece: it is computed */
    psi_cell_pair *pairs;        /* scratch: of a piece */
    float *scratch;              /* of two rows */
} psi_plan;

static inline bool psi_plan_is_lost(const psi_kv *kv, uint64_t cell) { return psi_kv_bit(kv->lost, cell); }

static inline bool psi_plan_is_partial(const psi_kv *kv, uint64_t cell) { return psi_kv_bit(kv->partial, cell); }

static inline uint32_t psi_plan_block_of(const psi_kv *kv, uint64_t cell) {
    return (uint32_t)(cell / kv->cells) * kv->stream_blocks + (uint32_t)(cell % kv->cells) / kv->block_cells;
}

static inline bool psi_plan_is_there(const psi_kv *kv, uint64_t cell) {
    unsigned char state = cell != PSI_NO_CELL ? kv->states[psi_plan_block_of(kv, cell)] : PSI_BLOCK_EMPTY;
    return (state == PSI_BLOCK_RESIDENT || state == PSI_BLOCK_STORED) && !psi_plan_is_lost(kv, cell);
}

static inline bool psi_plan_is_target(const psi_kv *kv, uint64_t cell) {
    return cell != PSI_NO_CELL && psi_plan_is_lost(kv, cell);
}

/* It asks for the cell, if that is lost. */
bool psi_wish_covers(const psi_wish *w, const psi_kv *kv, uint64_t cell);

/* The lost cell of the latest position whose token is known; PSI_NO_CELL: none. */
uint64_t psi_plan_find_target(psi_kv *const *kvs, uint32_t count, const psi_wish *w, psi_kv **of);

typedef enum psi_plan_state {
    PSI_PLAN_READY,
    PSI_PLAN_UNKNOWN, /* some token of the sequence is remembered nowhere: it cannot be decoded */
    PSI_PLAN_NO_MEMORY
} psi_plan_state;

/* The sequence that ends with `last`, or goes on from it, in pieces of `piece` tokens. psi_plan_free in each case. */
psi_plan_state psi_plan_make(psi_plan *p, psi_kv *const *kvs, uint32_t count, uint32_t piece, psi_cell_token last);
void psi_plan_free(psi_plan *p);

/* The token past the piece. */
uint32_t psi_plan_piece_end(const psi_plan *p, uint32_t k);

/* How many tokens, in whole pieces, of what the hidden context has decoded already are of use. */
uint32_t psi_plan_useful_length(const psi_plan *p, const psi_hidden *hidden);

/* Sets `needs`. False: of the first `have` tokens, which the hidden context has, a part is not whole. */
bool psi_plan_choose(psi_plan *p, const psi_hidden *hidden, uint32_t have);

#endif
