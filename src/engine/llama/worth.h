/* worth.h - what the blocks of one KV cache are worth: summaries of their keys, the attention that they receive, how
 * much hidden ones are wanted. Engine's thread. */
#ifndef PSI_LLAMA_WORTH_H
#define PSI_LLAMA_WORTH_H

#include "engine/llama/abi.h"
#include "policy/summary.h"

struct psi_kv;
struct kv_tensor;

/* `count` numbers of a cell's key (stream * cells + cell) as floats, from the `first` on, which begins a quantised
 * group; the tensor's rows are of a type that can be read. */
bool psi_key_is_readable(const psi_abi *abi, const tensor *key);
void psi_key_read(const psi_abi *abi, const struct kv_tensor *key, uint64_t cell, uint32_t first, uint32_t count,
                  float *to);

enum { WORTH_MAX_LAYERS = 8 }; /* listened to; of deeper models a part, evenly spread */

enum { KV_ROW_SIZES = 16 }; /* of steps: powers of two of their tokens */

/* Microseconds that may be spent: a share of the time that steps take is paid in. */
typedef struct psi_credit {
    double us;
    double cost_us; /* of the last time */
} psi_credit;

typedef struct psi_worth {
    struct psi_kv *kv;
    const struct kv_tensor *keys[WORTH_MAX_LAYERS];
    uint32_t dims[WORTH_MAX_LAYERS]; /* of a cell's key, all heads */
    uint32_t layers, all_dims, most_dims;
    /* Summaries: a block's lie together, layer by layer. */
    int8_t *means;
    float *scales;
    unsigned char *summed;                /* a byte a block: its summary is that of its content */
    unsigned char *hidden;                /* a byte a block: it was out when a step last read it */
    float usual[WORTH_MAX_LAYERS];        /* mean difference of keys so far */
    uint32_t usual_count;                 /* blocks in it */
    float *attention, *wants;             /* of the step: a float a block; negative: nothing known */
    float *rows, *around;                 /* scratch: a block's keys, their surroundings */
    float *difference, *layer_difference; /* scratch: a number a cell */
    float *logits;                        /* scratch, grows */
    size_t logits_count;
    uint64_t *seen; /* a bit a row and column of the mask: seen, before its block was hidden; grows */
    size_t seen_count;
    uint32_t seen_words;           /* of a row */
    bool plain;                    /* the mask says only seen or not seen: it can be made again from `seen` */
    bool attends, recalls;         /* in this step */
    bool at_once;                  /* what is wanted comes back inside the step */
    uint64_t attend_us, recall_us; /* spent in this step */
    psi_credit attend, recall;
    uint64_t exchanged_us;         /* the pool's recall_us when the last step ended */
    int64_t most_rows;             /* of a step so far */
    double usual_us[KV_ROW_SIZES]; /* of the last steps of a size that were not listened to; 0: not known */
} psi_worth;

/* NULL: memory is short, or keys of a kind that is not read here; the policies then go by age. */
psi_worth *psi_worth_make(struct psi_kv *kv);
void psi_worth_free(psi_worth *worth);

/* The listened layer that `key` is; WORTH_MAX_LAYERS: none. */
uint32_t psi_worth_layer(const psi_worth *worth, const struct kv_tensor *key);

/* Content changed: of a block; of all. */
void psi_worth_changed(psi_worth *worth, uint32_t block);
void psi_worth_changed_all(psi_worth *worth);

/* A block in memory whose keys were turned: its summary is made anew, if it had one. */
void psi_worth_turned(psi_worth *worth, uint32_t block);

/* Block `to` is a copy of `from`. */
void psi_worth_copied(psi_worth *worth, uint32_t from, uint32_t to);

/* After a step: sums up blocks that became full, and scores their keys. */
void psi_worth_sum_up(psi_worth *worth);

/* The queries of one layer in one stream, of the step's last rows. */
typedef struct psi_queries {
    const unsigned char *base; /* of the first of `rows` */
    size_t row_bytes, head_bytes;
    uint32_t rows, heads, head_dims;
    uint32_t layer;
    float scale;
    const tensor *mask; /* that the attention reads */
    int64_t mask_stream;
    uint32_t mask_row; /* of the first row */
    uint32_t stream;   /* of the cache */
} psi_queries;

/* Adds what the queries attend to, cell by cell, to worth->attention; how much they want blocks, from summaries, to
 * worth->wants. */
void psi_worth_attend(psi_worth *worth, const psi_queries *queries);
void psi_worth_want(psi_worth *worth, const psi_queries *queries);

/* What the mask's rows saw of blocks that are hidden now, so that they can be shown again inside the step. `stream` is
 * the mask's, `cache_stream` the cache's. False: memory is short. */
bool psi_worth_begin_seen(psi_worth *worth, const tensor *mask);
void psi_worth_note_seen(psi_worth *worth, const tensor *mask, int64_t stream, uint32_t cache_stream, uint32_t first,
                         uint32_t last);
bool psi_worth_was_seen(const psi_worth *worth, uint32_t mask_row, uint32_t column);
void psi_worth_show_again(const psi_worth *worth, tensor *mask, int64_t stream, uint32_t first, uint32_t last);

#endif
