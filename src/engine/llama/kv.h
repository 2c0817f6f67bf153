/* kv.h - one KV cache of the engine: its tensors in our arena, its cells as the pool's blocks. Engine's threads. */
#ifndef PSI_LLAMA_KV_H
#define PSI_LLAMA_KV_H

#include "engine/llama/abi.h"
#include "engine/llama/tokens.h"
#include "engine/llama/worth.h"
#include "psicache.h"

enum { KV_MAX_TENSORS = 512 }; /* two a layer; the deepest models have 126 layers */
enum { KV_CHECKED_GRAPHS = 4 };

enum { KV_LAST_CELLS = 8 };

typedef struct kv_tensor {
    tensor *t;
    unsigned char *data;
    size_t bytes;
    bool is_key;
    uint32_t layer; /* the number in its name */
} kv_tensor;

typedef struct psi_kv {
    struct psi_kv *next;
    const psi_abi *abi;
    void *buffer; /* the engine's handle of the memory below */
    unsigned char *arena;
    size_t arena_bytes;
    kv_tensor tensors[KV_MAX_TENSORS];
    uint32_t tensor_count;
    uint32_t cells; /* a stream */
    uint32_t streams;
    uint32_t block_cells;
    uint32_t stream_blocks;
    uint32_t blocks;
    const void *code;                     /* some of the engine's: leads to its library */
    const void *context;                  /* the llama_context that used it last; NULL: not known */
    psi_pool *pool;                       /* NULL until the first step shows how V lies */
    bool v_transposed;                    /* flash attention is off: a cell is a column of V */
    bool given_up;                        /* a graph was not understood: lazily committed, never trimmed */
    int checked_nodes[KV_CHECKED_GRAPHS]; /* sizes of the graphs that were looked through whole */
    uint32_t checked_count;
    unsigned char *marks, *states; /* a byte a block */
    unsigned char *before;         /* scratch: states before a move inside a step */
    uint64_t *has, *lost;          /* a bit a cell: has content; its content was dropped */
    uint32_t lost_cells;
    psi_cell_token *tokens; /* one a cell; NULL: not remembered */
    uint64_t *partial;      /* a bit a cell: computed while something that it should have seen was out */
    bool tokens_noted;      /* some are */
    uint64_t signature;     /* of the arithmetic that computed them */
    bool has_hidden;        /* of its context there may be a hidden one */
    bool recompute_said;
    uint64_t no_room_us; /* when there was no room to compute it again; 0: there was */
    bool is_hidden;      /* of a context of ours: never trimmed, and no pool (recompute.c) */
    uint32_t head_dims;  /* of a key's head; 0: no attention was seen yet */
    psi_worth *worth;    /* NULL: nothing is known of the blocks' worth */
    bool lost_said;
    uint64_t step_last;    /* last cell that the coming step writes (stream * cells + cell) */
    uint64_t last_written; /* the same of the last step that was computed */
    bool wrote;
    uint64_t last_cells[KV_LAST_CELLS];  /* written last, in the order of a step's tokens: a ring */
    uint32_t noted;                      /* cells in all; the next one's place in it */
    uint32_t attentions;                 /* of the step: nodes that read the cache */
    bool layered;                        /* the step has safe points between its layers */
    bool layers_said;                    /* why it has none was said */
    int layers_nodes[KV_CHECKED_GRAPHS]; /* sizes of the graphs whose reads were looked through */
    bool layers_good[KV_CHECKED_GRAPHS]; /* each layer reads its own tensors there */
    uint32_t layers_count;               /* of looks */
    uint64_t long_step_us;               /* PSI_CACHE_LONG_STEP_US */
    uint64_t step_us[KV_ROW_SIZES];      /* how long the last step of about so many tokens took; 0: not known */
    /* A copy of one stream to another, tensor by tensor: which streams, and which tensors are copied. */
    uint32_t copy_from, copy_to;
    unsigned char copied[KV_MAX_TENSORS];
    uint64_t refused_from_us, refused_at_us; /* when refusals in a row began, and the last one; 0: none since a step */
} psi_kv;

/* Of `has` and `lost`. */
static inline bool psi_kv_bit(const uint64_t *bits, uint64_t at) { return (bits[at / 64] >> (at % 64) & 1) != 0; }

static inline void psi_kv_set_bit(uint64_t *bits, uint64_t at, bool value) {
    uint64_t mask = UINT64_C(1) << (at % 64);
    bits[at / 64] = value ? bits[at / 64] | mask : bits[at / 64] & ~mask;
}

/* Places the tensors of a KV cache's context in an arena of ours; `caller` is the engine's code that asks. The engine's
 * buffer for it, or NULL when the context is none or not understood (the caller then lets the engine do as always). */
void *psi_kv_take(const psi_abi *abi, const void *caller, void *context, void *buffer_type);

/* Registers for fork(): the child must not find the list locked by a thread that it does not have. Once. */
void psi_kv_handle_forks(void);

/* Lookups; hold the list's lock while the result is used. */
void psi_kv_lock(void);
void psi_kv_unlock(void);
psi_kv *psi_kv_first(void);
psi_kv *psi_kv_of_buffer(const void *buffer);
psi_kv *psi_kv_of_address(const void *address, const kv_tensor **which);

/* The engine clears the buffer. */
void psi_kv_clear(psi_kv *kv);

/* The engine frees the buffer: out of the list, under its lock; then the memory, once the engine let go of it. */
psi_kv *psi_kv_unlink(const void *buffer);
void psi_kv_destroy(psi_kv *kv);

/* The llama_context that this thread decodes with; NULL: not known. */
extern _Thread_local const void *psi_llama_context;

/* Copies of whole cells between caches of ours: what is lost in one is lost in the other. */
void psi_kv_copy_books(const kv_tensor *from_tensor, const psi_kv *from, size_t from_offset, const kv_tensor *to_tensor,
                       psi_kv *to, size_t to_offset, size_t count);

/* copy.c: a whole stream to another of the same cache, where both are that: what is empty stays empty, and what is
 * stored is copied in the store. False: it is another copy, and nothing was done. */
bool psi_kv_copy_stream(const tensor *from, const tensor *to);

/* Makes the pool, once it is known whether V is transposed. */
void psi_kv_open_pool(psi_kv *kv, bool v_transposed);

/* READ and WRITE: about to. WROTE: it is over, and what was written may go in the coming step, as any other block. */
typedef enum psi_kv_access { KV_READ, KV_WRITE, KV_WROTE } psi_kv_access;

/* The engine's access to [address, address + count) of a tensor outside a graph: stored blocks come back first. */
void psi_kv_touch(psi_kv *kv, const kv_tensor *which, const void *address, size_t count, psi_kv_access access);

/* Everything comes back, and nothing goes before the next step: for a graph that uses the cache in a way of its own. */
void psi_kv_make_whole(psi_kv *kv);

/* True when some cell of the block was dropped, and not written since. */
bool psi_kv_has_lost(const psi_kv *kv, uint32_t block);

/* Notes that a cell (with its stream: stream * cells + cell) is written. */
void psi_kv_note_cell(psi_kv *kv, uint64_t cell);

/* One line to the user. */
void psi_llama_say(psi_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The process's cache, opened on first use; NULL: switched off, or it could not be opened (said once). */
psi_cache *psi_llama_cache(void);

#endif
