/* tokens.c - see tokens.h. The graph's own inputs name token and position of each row; SET_ROWS names its cell; the row
 * of a mask says what it sees. So no call of the engine needs to be understood, and every build is read the same way.
 */
#include "engine/llama/tokens.h"

#include <string.h>

#include "engine/llama/graph.h"

/* splitmix64's finalizer: a chain is a sum of these, and must not be met by chance. */
uint64_t psi_token_hash(int32_t token, int32_t position) {
    uint64_t x = ((uint64_t)(uint32_t)token << 32 | (uint32_t)position) + UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* ---- The graph --------------------------------------------------------------------------------- */

static bool is_input(const psi_abi *abi, const tensor *t) {
    return t != NULL && t->op == abi->op_none && t->view_src == NULL && t->type == TYPE_I32 && t->data != NULL;
}

/* Layout and copies differ between batches of different shape; arithmetic does not. */
static bool is_arithmetic(const psi_abi *abi, int op) {
    return op != abi->op_none && op != abi->op_set_rows && op != abi->op_view && op != abi->op_reshape &&
           op != abi->op_permute && op != abi->op_transpose && op != abi->op_cpy && op != abi->op_cont &&
           op != abi->op_dup;
}

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * UINT64_C(0x9fb21c651e98df25);
    return hash ^ (hash >> 29);
}

/* An adapter, another scale or other RoPE settings make another signature: what they computed is not computed again
 * without them. */
static uint64_t sign(uint64_t signature, const psi_abi *abi, const tensor *node) {
    uint64_t hash = mix(signature + 1, (uint64_t)node->op);
    for (size_t i = 0; i < sizeof(node->op_params) / sizeof(node->op_params[0]); i += 2) {
        uint64_t two;
        memcpy(&two, &node->op_params[i], sizeof(two));
        hash = two != 0 ? mix(hash + i, two) : hash;
    }
    for (int i = 0; i < GGML_LAYOUT_SRC; i++) {
        const tensor *src = node->src[i];
        bool weight =
            src != NULL && src->op == abi->op_none && src->view_src == NULL && (src->flags & TENSOR_FLAG_INPUT) == 0;
        hash = weight ? mix(hash + (uint64_t)i, (uint64_t)(uintptr_t)src->data) : hash;
    }
    return hash;
}

static void see_tokens(psi_step_tokens *found, const psi_abi *abi, const tensor *node) {
    bool looks_up = node->src[0] != NULL && strcmp(node->src[0]->name, "token_embd.weight") == 0;
    if (looks_up && found->tokens == NULL && is_input(abi, node->src[1])) {
        found->tokens = node->src[1];
        found->looked_up = node;
    }
}

static void see_positions(psi_step_tokens *found, const psi_abi *abi, const tensor *node) {
    const tensor *positions = node->src[1];
    bool same = found->positions == NULL || found->positions == positions;
    found->unclear = found->unclear || !same || !is_input(abi, positions);
    found->positions = positions;
}

void psi_tokens_see_node(psi_step_tokens *found, const psi_abi *abi, const tensor *node) {
    const tensor *rows = found->looked_up;
    found->is_read =
        found->is_read || (rows != NULL && (node->src[0] == rows || node->src[1] == rows || node->view_src == rows));
    if (node->op == abi->op_set_rows) {
        found->write_flags |= node->flags;
    }
    if (!is_arithmetic(abi, node->op)) {
        return;
    }
    found->signature = sign(found->signature, abi, node);
    if (node->op == abi->op_get_rows) {
        see_tokens(found, abi, node);
    } else if (node->op == abi->op_rope) {
        see_positions(found, abi, node);
    }
}

/* Embeddings may come in place of tokens: the look-up is in the graph then, too, and nothing is computed of it. */
static bool is_known(const psi_llama_step *step, const psi_abi *abi, int64_t rows) {
    const psi_step_tokens *t = &step->tokens;
    if (t->tokens == NULL || t->positions == NULL || t->unclear || !t->is_read || abi->buffer_is_host == NULL) {
        return false;
    }
    bool computed = (t->write_flags & TENSOR_FLAG_COMPUTE) == 0 || (t->looked_up->flags & TENSOR_FLAG_COMPUTE) != 0;
    return computed && t->tokens->ne[0] == rows && t->positions->ne[0] == rows && t->tokens->buffer != NULL &&
           t->positions->buffer != NULL && abi->buffer_is_host(t->tokens->buffer) &&
           abi->buffer_is_host(t->positions->buffer);
}

/* ---- What a row saw ---------------------------------------------------------------------------- */

/* A row of a mask: the tokens of a stream lie one after the other. */
typedef struct row_place {
    int64_t stream, row;
} row_place;

static row_place place_of(const tensor *mask, int64_t rows, int64_t row) {
    int64_t a_stream = rows / mask->ne[3];
    return (row_place){row / a_stream, row % a_stream};
}

static uint64_t stream_start(const step_mask *m, row_place at) {
    return (uint64_t)(m->first_stream + (uint32_t)at.stream) * m->kv->cells;
}

/* The chain of all that the row sees; 0 unless that is one known token at each position up to its own. */
static uint64_t sum_of_row(const step_mask *m, row_place at, int32_t position) {
    const psi_cell_token *tokens = m->kv->tokens + stream_start(m, at);
    uint64_t sum = 0;
    int64_t seen = 0;
    for (uint32_t c = 0; c < m->mask->ne[0]; c++) {
        if (psi_mask_get(m->mask, at.stream, at.row, c) == MASK_HIDDEN) {
            continue;
        }
        if (tokens[c].chain == 0 || tokens[c].position > position) {
            return 0;
        }
        sum += psi_token_hash(tokens[c].token, tokens[c].position);
        seen++;
    }
    return seen == (int64_t)position + 1 ? sum : 0;
}

/* True when the row sees what the one before it saw, and its own cell: then nothing is summed anew. */
static bool extends(const step_mask *m, row_place at, uint64_t own_cell) {
    uint64_t column = own_cell - stream_start(m, at);
    if (at.row == 0 || column >= (uint64_t)m->mask->ne[0]) {
        return false;
    }
    const tensor *mask = m->mask;
    const unsigned char *row =
        (const unsigned char *)mask->data + (size_t)at.stream * mask->nb[3] + (size_t)at.row * mask->nb[1];
    const unsigned char *before = row - mask->nb[1];
    size_t from = column * mask->nb[0], to = from + mask->nb[0], all = (size_t)mask->ne[0] * mask->nb[0];
    return memcmp(row, before, from) == 0 && memcmp(row + to, before + to, all - to) == 0 &&
           psi_mask_get(mask, at.stream, at.row, (uint32_t)column) != MASK_HIDDEN &&
           psi_mask_get(mask, at.stream, at.row - 1, (uint32_t)column) == MASK_HIDDEN;
}

/* ---- Noting ------------------------------------------------------------------------------------ */

static int64_t cell_of(const tensor *indices, int64_t row) {
    return indices->type == TYPE_I64 ? ((const int64_t *)indices->data)[row] : ((const int32_t *)indices->data)[row];
}

static const step_write *write_of(const psi_llama_step *step, const psi_kv *kv) {
    for (uint32_t i = 0; i < step->write_count; i++) {
        if (step->writes[i].kv == kv) {
            return &step->writes[i];
        }
    }
    return NULL;
}

static void set_cells(const psi_llama_step *step, int64_t row, psi_cell_token token) {
    for (uint32_t i = 0; i < step->write_count; i++) {
        const psi_kv *kv = step->writes[i].kv;
        int64_t cell = cell_of(step->writes[i].indices, row);
        if (cell >= 0 && cell < (int64_t)kv->cells * kv->streams) {
            kv->tokens[cell] = token;
            psi_kv_set_bit(kv->partial, (uint64_t)cell, false);
        }
    }
}

static uint64_t try_mask(const psi_llama_step *step, const step_mask *m, int64_t row, int64_t rows, psi_cell_token own,
                         uint64_t chain_before) {
    const step_write *write = write_of(step, m->kv);
    if (write == NULL || rows % m->mask->ne[3] != 0 || m->mask->ne[1] < rows / m->mask->ne[3]) {
        return 0;
    }
    row_place at = place_of(m->mask, rows, row);
    uint64_t cell = (uint64_t)cell_of(write->indices, row);
    if (chain_before != 0 && extends(m, at, cell)) {
        return chain_before + psi_token_hash(own.token, own.position);
    }
    return sum_of_row(m, at, own.position);
}

/* A sliding window hides what lies behind it: some mask of the step shows all, or the chain is not known. */
static void note_row(psi_llama_step *step, int64_t row, int64_t rows, uint32_t *best) {
    psi_cell_token own = {.token = ((const int32_t *)step->tokens.tokens->data)[row],
                          .position = ((const int32_t *)step->tokens.positions->data)[row],
                          .chain = 1};
    psi_cell_token before = {0};
    if (row > 0) {
        const step_write *write = write_of(step, step->masks[*best].kv);
        before = write != NULL ? step->masks[*best].kv->tokens[cell_of(write->indices, row - 1)] : before;
    }
    bool next = before.chain != 0 && before.position + 1 == own.position;
    set_cells(step, row, own); /* it sees itself */
    uint64_t chain = try_mask(step, &step->masks[*best], row, rows, own, next ? before.chain : 0);
    for (uint32_t i = 0; i < step->mask_count && chain == 0; i++) {
        chain = i != *best ? try_mask(step, &step->masks[i], row, rows, own, 0) : 0;
        *best = chain != 0 ? i : *best;
    }
    own.chain = chain;
    set_cells(step, row, own);
}

/* Every cache of the step is written once, with the same rows; what it held is forgotten already. */
static bool is_writable(const psi_llama_step *step, int64_t rows) {
    for (uint32_t i = 0; i < step->write_count; i++) {
        const step_write *w = &step->writes[i];
        if (w->kv->tokens == NULL || w->indices->ne[0] != rows || write_of(step, w->kv) != w) {
            return false;
        }
    }
    return step->write_count > 0 && step->mask_count > 0;
}

void psi_tokens_note(psi_llama_step *step) {
    int64_t rows = step->write_count > 0 ? step->writes[0].indices->ne[0] : 0;
    const psi_abi *abi = step->write_count > 0 ? step->writes[0].kv->abi : NULL;
    if (rows == 0 || !is_writable(step, rows) || !is_known(step, abi, rows)) {
        return;
    }
    for (uint32_t i = 0; i < step->write_count; i++) {
        psi_kv *kv = step->writes[i].kv;
        if (kv->signature != step->tokens.signature) {
            psi_tokens_forget_all(kv); /* computed in another way: with an adapter that is gone, for example */
        }
        kv->signature = step->tokens.signature;
        kv->tokens_noted = true;
    }
    uint32_t best = 0;
    for (int64_t row = 0; row < rows; row++) {
        note_row(step, row, rows, &best);
    }
}

/* The cells that the step writes. */
static void for_each_written(const psi_llama_step *step, void (*does)(psi_kv *kv, uint64_t cell)) {
    for (uint32_t i = 0; i < step->write_count; i++) {
        const step_write *w = &step->writes[i];
        for (int64_t row = 0; row < w->indices->ne[0]; row++) {
            int64_t cell = cell_of(w->indices, row);
            if (cell >= 0 && cell < (int64_t)w->kv->cells * w->kv->streams) {
                does(w->kv, (uint64_t)cell);
            }
        }
    }
}

static void note_partial(psi_kv *kv, uint64_t cell) {
    if (kv->partial != NULL) {
        psi_kv_set_bit(kv->partial, cell, true);
    }
}

void psi_tokens_note_partial(const psi_llama_step *step) { for_each_written(step, note_partial); }

/* ---- Forgetting -------------------------------------------------------------------------------- */

void psi_tokens_forget(psi_kv *kv, uint64_t cell) {
    if (kv->tokens_noted) {
        kv->tokens[cell] = (psi_cell_token){0};
    }
}

void psi_tokens_copy(const psi_kv *from, uint64_t cell, psi_kv *to, uint64_t target) {
    if (from->tokens_noted && to->tokens != NULL && from->signature == to->signature) {
        to->tokens[target] = from->tokens[cell];
        psi_kv_set_bit(to->partial, target, psi_kv_bit(from->partial, cell));
        to->tokens_noted = true;
    }
}

void psi_tokens_forget_all(psi_kv *kv) {
    if (kv->tokens_noted) {
        memset(kv->tokens, 0, (size_t)kv->cells * kv->streams * sizeof(*kv->tokens));
        kv->tokens_noted = false;
    }
}

void psi_tokens_forget_step(const psi_llama_step *step) { for_each_written(step, psi_tokens_forget); }
