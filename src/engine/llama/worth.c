/* worth.c - see worth.h. What an engine-neutral policy needs of llama.cpp's keys and queries is read here; the
 * arithmetic is in policy/. */
#include "engine/llama/worth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/llama/kv.h"
#include "engine/llama/mask.h"
#include "policy/vector.h"

/* A key's surroundings are its own block and so many before it: what follows is not written yet. */
enum { BLOCKS_AROUND = 3, SUM_UP_MOST = 128, USUAL_BLOCKS = 256 };

/* ---- Keys as floats ---------------------------------------------------------------------------- */

bool psi_key_is_readable(const psi_abi *abi, const tensor *t) {
    return t->type == TYPE_F32 || t->type == TYPE_F16 || t->type == TYPE_BF16 || psi_abi_to_float(abi, t) != NULL;
}

void psi_key_read(const psi_abi *abi, const kv_tensor *key, uint64_t cell, uint32_t first, uint32_t count, float *to) {
    const tensor *t = key->t;
    const unsigned char *from = key->data + cell * t->nb[1] + psi_abi_row_bytes(abi, t, first);
    if (t->type == TYPE_F32) {
        memcpy(to, from, count * sizeof(float));
    } else if (t->type == TYPE_F16) {
        psi_from_halves(to, (const uint16_t *)(const void *)from, count);
    } else if (t->type == TYPE_BF16) {
        psi_from_bfloats(to, (const uint16_t *)(const void *)from, count);
    } else {
        psi_abi_to_float(abi, t)(from, to, (int64_t)count);
    }
}

/* ---- Life -------------------------------------------------------------------------------------- */

static uint32_t count_keys(const psi_kv *kv) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < kv->tensor_count; i++) {
        count += kv->tensors[i].is_key;
    }
    return count;
}

/* Every so many layers one, the last among them. */
static void choose_layers(psi_worth *worth) {
    const psi_kv *kv = worth->kv;
    uint32_t count = count_keys(kv), wanted = count < WORTH_MAX_LAYERS ? count : WORTH_MAX_LAYERS, at = 0;
    for (uint32_t i = 0; i < kv->tensor_count; i++) {
        const kv_tensor *t = &kv->tensors[i];
        if (!t->is_key) {
            continue;
        }
        bool chosen = (at + 1) * wanted / count > at * wanted / count;
        at++;
        if (chosen && psi_key_is_readable(kv->abi, t->t)) {
            uint32_t dims = (uint32_t)t->t->ne[0];
            worth->keys[worth->layers] = t;
            worth->dims[worth->layers++] = dims;
            worth->all_dims += dims;
            worth->most_dims = dims > worth->most_dims ? dims : worth->most_dims;
        }
    }
}

psi_worth *psi_worth_make(psi_kv *kv) {
    psi_worth *worth = calloc(1, sizeof(*worth));
    if (worth == NULL) {
        return NULL;
    }
    worth->kv = kv;
    choose_layers(worth);
    size_t blocks = kv->blocks, runs = PSI_SUMMARY_RUNS;
    worth->means = calloc(blocks * runs, worth->all_dims);
    worth->scales = calloc(blocks * runs * worth->layers, sizeof(float));
    worth->summed = calloc(blocks, 1);
    worth->hidden = calloc(blocks, 1);
    worth->attention = calloc(blocks, sizeof(float));
    worth->wants = calloc(blocks, sizeof(float));
    worth->rows = calloc((size_t)kv->block_cells * worth->most_dims, sizeof(float));
    worth->around = calloc(worth->most_dims, sizeof(float));
    worth->difference = calloc(2 * (size_t)kv->block_cells, sizeof(float));
    worth->layer_difference = worth->difference != NULL ? worth->difference + kv->block_cells : NULL;
    if (worth->layers == 0 || worth->means == NULL || worth->scales == NULL || worth->summed == NULL ||
        worth->hidden == NULL || worth->attention == NULL || worth->wants == NULL || worth->rows == NULL ||
        worth->around == NULL || worth->difference == NULL) {
        psi_worth_free(worth);
        return NULL;
    }
    return worth;
}

void psi_worth_free(psi_worth *worth) {
    if (worth != NULL) {
        free(worth->means);
        free(worth->scales);
        free(worth->summed);
        free(worth->hidden);
        free(worth->attention);
        free(worth->wants);
        free(worth->rows);
        free(worth->around);
        free(worth->difference);
        free(worth->logits);
        free(worth->seen);
        free(worth);
    }
}

uint32_t psi_worth_layer(const psi_worth *worth, const kv_tensor *key) {
    for (uint32_t i = 0; i < worth->layers; i++) {
        if (worth->keys[i] == key) {
            return i;
        }
    }
    return WORTH_MAX_LAYERS;
}

void psi_worth_changed(psi_worth *worth, uint32_t block) {
    if (worth != NULL) {
        worth->summed[block] = worth->hidden[block] = 0;
    }
}

void psi_worth_changed_all(psi_worth *worth) {
    if (worth != NULL) {
        memset(worth->summed, 0, worth->kv->blocks);
        memset(worth->hidden, 0, worth->kv->blocks);
    }
}

/* ---- Summaries --------------------------------------------------------------------------------- */

static psi_summary summary_of(const psi_worth *worth, uint32_t block, uint32_t layer) {
    size_t before = 0, runs = PSI_SUMMARY_RUNS;
    for (uint32_t i = 0; i < layer; i++) {
        before += worth->dims[i];
    }
    return (psi_summary){.means = worth->means + (block * (size_t)worth->all_dims + before) * runs,
                         .scales = worth->scales + ((size_t)block * worth->layers + layer) * runs};
}

static uint32_t heads_of(const psi_worth *worth, uint32_t layer) {
    uint32_t head_dims = worth->kv->head_dims;
    return head_dims > 0 && worth->dims[layer] % head_dims == 0 ? worth->dims[layer] / head_dims : 1;
}

/* Sets worth->around to the sum of the keys in and before the block. */
static void look_around(psi_worth *worth, uint32_t block, uint32_t layer) {
    uint32_t at = block % worth->kv->stream_blocks;
    memset(worth->around, 0, worth->dims[layer] * sizeof(float));
    for (uint32_t back = 0; back <= BLOCKS_AROUND && back <= at; back++) {
        if (back == 0 || worth->summed[block - back]) {
            psi_summary summary = summary_of(worth, block - back, layer);
            psi_summary_add(&summary, worth->dims[layer], worth->around);
        }
    }
}

/* Adds each cell's difference from its surroundings, in units of what is usual in this layer. */
static void add_difference(psi_worth *worth, uint32_t block, uint32_t layer) {
    uint32_t heads = heads_of(worth, layer), cells = worth->kv->block_cells;
    look_around(worth, block, layer);
    float mean = psi_keys_difference(worth->layer_difference, worth->rows, cells, worth->around, heads,
                                     worth->dims[layer] / heads);
    worth->usual[layer] += (mean - worth->usual[layer]) / (float)(worth->usual_count + 1);
    for (uint32_t c = 0; c < cells && worth->usual[layer] > 0; c++) {
        worth->difference[c] += worth->layer_difference[c] / worth->usual[layer];
    }
}

static bool is_full(const psi_kv *kv, uint32_t block) {
    uint64_t first = (uint64_t)(block / kv->stream_blocks) * kv->cells + block % kv->stream_blocks * kv->block_cells;
    bool full = block % kv->stream_blocks * kv->block_cells + kv->block_cells <= kv->cells;
    for (uint64_t cell = first; full && cell < first + kv->block_cells; cell++) {
        full = psi_kv_bit(kv->has, cell) && !psi_kv_bit(kv->lost, cell);
    }
    return full;
}

static void read_rows(psi_worth *worth, uint32_t block, uint32_t layer) {
    const psi_kv *kv = worth->kv;
    uint64_t first = (uint64_t)(block / kv->stream_blocks) * kv->cells + block % kv->stream_blocks * kv->block_cells;
    for (uint32_t c = 0; c < kv->block_cells; c++) {
        psi_key_read(kv->abi, worth->keys[layer], first + c, 0, worth->dims[layer],
                     worth->rows + (size_t)c * worth->dims[layer]);
    }
}

/* The score is the sum over layers, each in units of its own usual difference, of the cells that differ most. */
static float sum_up(psi_worth *worth, uint32_t block) {
    uint32_t cells = worth->kv->block_cells;
    memset(worth->difference, 0, cells * sizeof(float));
    for (uint32_t layer = 0; layer < worth->layers; layer++) {
        read_rows(worth, block, layer);
        psi_summary summary = summary_of(worth, block, layer);
        psi_summary_make(&summary, worth->rows, cells, worth->dims[layer]);
        add_difference(worth, block, layer);
    }
    worth->usual_count += worth->usual_count < USUAL_BLOCKS;
    worth->summed[block] = 1;
    return psi_keys_score(worth->difference, cells);
}

void psi_worth_sum_up(psi_worth *worth) {
    psi_kv *kv = worth->kv;
    uint32_t done = 0;
    for (uint32_t block = 0; block < kv->blocks && done < SUM_UP_MOST; block++) {
        bool awake = kv->marks[block] != 0; /* no other thread takes it meanwhile */
        if (awake && !worth->summed[block] && kv->states[block] == PSI_BLOCK_RESIDENT && is_full(kv, block)) {
            (void)psi_block_score(kv->pool, block, PSI_SCORE_KEYS, sum_up(worth, block));
            done++;
        }
    }
}

void psi_worth_turned(psi_worth *worth, uint32_t block) {
    if (worth != NULL && worth->summed[block]) {
        worth->summed[block] = 0;
        if (is_full(worth->kv, block)) {
            (void)psi_block_score(worth->kv->pool, block, PSI_SCORE_KEYS, sum_up(worth, block));
        }
    }
}

void psi_worth_copied(psi_worth *worth, uint32_t from, uint32_t to) {
    if (worth == NULL) {
        return;
    }
    size_t means = (size_t)worth->all_dims * PSI_SUMMARY_RUNS, scales = (size_t)worth->layers * PSI_SUMMARY_RUNS;
    memcpy(worth->means + to * means, worth->means + from * means, means * sizeof(*worth->means));
    memcpy(worth->scales + to * scales, worth->scales + from * scales, scales * sizeof(*worth->scales));
    worth->summed[to] = worth->summed[from];
}

/* ---- Queries ----------------------------------------------------------------------------------- */

static const float *query(const psi_queries *q, uint32_t row, uint32_t head) {
    return (const float *)(const void *)(q->base + row * q->row_bytes + head * q->head_bytes);
}

static bool make_logits(psi_worth *worth, size_t count) {
    if (count > worth->logits_count) {
        float *grown = realloc(worth->logits, count * sizeof(float));
        if (grown == NULL) {
            return false;
        }
        worth->logits = grown;
        worth->logits_count = count;
    }
    return true;
}

static float greater(float a, float b) { return a > b ? a : b; }

static bool any_row_sees(const psi_queries *q, uint32_t cell) {
    for (uint32_t row = 0; row < q->rows; row++) {
        if (psi_mask_get(q->mask, q->mask_stream, q->mask_row + row, cell) != MASK_HIDDEN) {
            return true;
        }
    }
    return false;
}

/* Logits of one key head's cells: rows and the heads that share the key, one after the other, `columns` each. */
static void cell_logits(psi_worth *worth, const psi_queries *q, uint32_t key_head, uint32_t group, uint32_t columns) {
    const psi_kv *kv = worth->kv;
    for (uint32_t cell = 0; cell < columns; cell++) {
        bool seen = any_row_sees(q, cell);
        if (seen) {
            psi_key_read(kv->abi, worth->keys[q->layer], (uint64_t)q->stream * kv->cells + cell,
                         key_head * q->head_dims, q->head_dims, worth->rows);
        }
        for (uint32_t i = 0; i < q->rows * group; i++) {
            bool sees = seen && psi_mask_get(q->mask, q->mask_stream, q->mask_row + i / group, cell) != MASK_HIDDEN;
            worth->logits[(size_t)i * columns + cell] =
                sees ? q->scale * psi_dot(query(q, i / group, key_head * group + i % group), worth->rows, q->head_dims)
                     : -HUGE_VALF;
        }
    }
}

static void note_most(float *of_blocks, const float *shares, uint32_t columns, uint32_t block_cells) {
    for (uint32_t cell = 0; cell < columns; cell++) {
        float *block = &of_blocks[cell / block_cells];
        if (shares[cell] > 0) { /* a block of another sequence gets no score, and does not fade */
            *block = greater(*block, shares[cell]);
        }
    }
}

void psi_worth_attend(psi_worth *worth, const psi_queries *q) {
    const psi_kv *kv = worth->kv;
    uint32_t key_heads = worth->dims[q->layer] / q->head_dims, group = q->heads / key_heads;
    uint32_t columns = (uint32_t)q->mask->ne[0];
    if (!make_logits(worth, (size_t)q->rows * group * columns)) {
        return;
    }
    for (uint32_t key_head = 0; key_head < key_heads; key_head++) {
        cell_logits(worth, q, key_head, group, columns);
        for (uint32_t i = 0; i < q->rows * group; i++) {
            psi_softmax(worth->logits + (size_t)i * columns, columns);
            note_most(worth->attention + (size_t)q->stream * kv->stream_blocks, worth->logits + (size_t)i * columns,
                      columns, kv->block_cells);
        }
    }
}

/* Of a hidden block the mask no longer tells who saw it; `seen` does. */
static bool row_sees_block(const psi_worth *worth, const psi_queries *q, uint32_t row, uint32_t at) {
    const psi_kv *kv = worth->kv;
    bool hidden = kv->states[q->stream * kv->stream_blocks + at] == PSI_BLOCK_STORED;
    uint32_t mask_row = (uint32_t)(q->mask_stream * q->mask->ne[1]) + q->mask_row + row;
    for (uint32_t c = at * kv->block_cells; c < (at + 1) * kv->block_cells && c < q->mask->ne[0]; c++) {
        if (hidden ? psi_worth_was_seen(worth, mask_row, c)
                   : psi_mask_get(q->mask, q->mask_stream, q->mask_row + row, c) != MASK_HIDDEN) {
            return true;
        }
    }
    return false;
}

static void want_by_head(psi_worth *worth, const psi_queries *q, uint32_t row, uint32_t head, uint32_t blocks) {
    const psi_kv *kv = worth->kv;
    uint32_t first = q->stream * kv->stream_blocks, group = q->heads * q->head_dims / worth->dims[q->layer];
    float *logits = worth->logits, *sees = worth->logits + blocks;
    for (uint32_t at = 0; at < blocks; at++) {
        psi_summary summary = summary_of(worth, first + at, q->layer);
        logits[at] = sees[at] > 0
                         ? q->scale * psi_summary_logit(&summary, worth->dims[q->layer], head / group * q->head_dims,
                                                        query(q, row, head), q->head_dims)
                         : -HUGE_VALF;
    }
    psi_softmax(logits, blocks);
    for (uint32_t at = 0; at < blocks; at++) {
        float *want = &worth->wants[first + at];
        *want = sees[at] > 0 ? greater(*want, logits[at]) : *want;
    }
}

void psi_worth_want(psi_worth *worth, const psi_queries *q) {
    const psi_kv *kv = worth->kv;
    uint32_t blocks = ((uint32_t)q->mask->ne[0] + kv->block_cells - 1) / kv->block_cells;
    if (!make_logits(worth, 2 * (size_t)blocks)) {
        return;
    }
    for (uint32_t row = 0; row < q->rows; row++) {
        for (uint32_t at = 0; at < blocks; at++) {
            bool sees = worth->summed[q->stream * kv->stream_blocks + at] && row_sees_block(worth, q, row, at);
            worth->logits[blocks + at] = sees ? 1 : 0;
        }
        for (uint32_t head = 0; head < q->heads; head++) {
            want_by_head(worth, q, row, head, blocks);
        }
    }
}

/* ---- What was seen ----------------------------------------------------------------------------- */

bool psi_worth_was_seen(const psi_worth *worth, uint32_t mask_row, uint32_t column) {
    return (worth->seen[(size_t)mask_row * worth->seen_words + column / 64] >> (column % 64) & 1) != 0;
}

bool psi_worth_begin_seen(psi_worth *worth, const tensor *mask) {
    worth->seen_words = (uint32_t)(mask->ne[0] + 63) / 64;
    worth->plain = true;
    size_t count = (size_t)mask->ne[3] * (size_t)mask->ne[1] * worth->seen_words;
    if (count > worth->seen_count) {
        uint64_t *grown = realloc(worth->seen, count * sizeof(*grown));
        if (grown == NULL) {
            return false;
        }
        worth->seen = grown;
        worth->seen_count = count;
    }
    memset(worth->seen, 0, count * sizeof(*worth->seen));
    return true;
}

void psi_worth_note_seen(psi_worth *worth, const tensor *mask, int64_t stream, uint32_t cache_stream, uint32_t first,
                         uint32_t last) {
    const psi_kv *kv = worth->kv;
    for (int64_t row = 0; row < mask->ne[1]; row++) {
        uint64_t *bits = worth->seen + (size_t)(stream * mask->ne[1] + row) * worth->seen_words;
        for (uint32_t c = first; c < last; c++) {
            psi_mask_value value = psi_mask_get(mask, stream, row, c);
            uint64_t cell = (uint64_t)cache_stream * kv->cells + c;
            bool lost = psi_kv_bit(kv->lost, cell); /* its bytes are gone: it is not shown again */
            bits[c / 64] |= (uint64_t)(value != MASK_HIDDEN && !lost) << (c % 64);
            worth->plain = worth->plain && value != MASK_WEIGHED;
        }
    }
}

void psi_worth_show_again(const psi_worth *worth, tensor *mask, int64_t stream, uint32_t first, uint32_t last) {
    for (int64_t row = 0; row < mask->ne[1]; row++) {
        for (uint32_t c = first; c < last; c++) {
            if (psi_worth_was_seen(worth, (uint32_t)(stream * mask->ne[1] + row), c)) {
                psi_mask_set(mask, stream, row, c, true);
            }
        }
    }
}
