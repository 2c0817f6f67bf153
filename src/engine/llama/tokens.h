/* tokens.h - which token at which position lies in each cell of a KV cache, and what it saw: what a dropped block is
 * decoded from again. Read from each step's graph before it is computed. Engine's thread. */
#ifndef PSI_LLAMA_TOKENS_H
#define PSI_LLAMA_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct psi_kv;
struct psi_llama_step;
struct psi_abi;
struct tensor;

/* What a cell holds. The chain is a sum of hashes of the tokens and positions that the cell's token saw, itself among
 * them: cells of equal chain hold the same text's same end. 0: not known. A token whose sight is not exactly what its
 * predecessor saw and itself has no chain, so a chain's cells can be decoded one after the other as a sequence. */
typedef struct psi_cell_token {
    int32_t token, position;
    uint64_t chain;
} psi_cell_token;

/* One for all caches of a step. */
typedef struct psi_step_tokens {
    const struct tensor *tokens, *positions; /* inputs of the graph; NULL: not found */
    const struct tensor *looked_up;          /* the node that looks the tokens up */
    bool is_read;                            /* some other node reads what was looked up */
    bool unclear;                            /* positions of a kind, or in a way, not known here */
    int32_t write_flags;                     /* of the nodes that write the cache */
    uint64_t signature;                      /* of the graph's arithmetic: operations, their parameters, weights */
} psi_step_tokens;

/* While the graph is read, for each node. */
void psi_tokens_see_node(psi_step_tokens *found, const struct psi_abi *abi, const struct tensor *node);

/* When all nodes were seen, while the masks are as the engine filled them: notes what the step writes. */
void psi_tokens_note(struct psi_llama_step *step);

/* What the step writes did not see all that it should have: it is no measure for what is computed again. */
void psi_tokens_note_partial(const struct psi_llama_step *step);

/* The step was not computed to its end. */
void psi_tokens_forget_step(const struct psi_llama_step *step);

void psi_tokens_forget(struct psi_kv *kv, uint64_t cell);
/* A cell of the one was copied to a cell of the other. */
void psi_tokens_copy(const struct psi_kv *from, uint64_t cell, struct psi_kv *to, uint64_t target);

void psi_tokens_forget_all(struct psi_kv *kv);

/* A token's and position's part of a chain. */
uint64_t psi_token_hash(int32_t token, int32_t position);

#endif
