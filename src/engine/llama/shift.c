/* shift.c - see shift.h. In llama.cpp's graph (build_graph_shift) each layer's K is shown as [head, heads, cells of all
 * streams]; ROPE turns it by an input of one number a cell, in place or, for quantised keys, by way of a copy. Each
 * node's outermost dimension counts cells, so the same graph turns some cells alone where these dimensions are cut. */
#include "engine/llama/shift.h"

#include <stdlib.h>
#include <string.h>

#include "engine/llama/hooks.h"
#include "pool/pool.h"

#define PORTION_BYTES (UINT64_C(4) << 20) /* of stored blocks that are in memory at once */

enum { ROPE_EXT_FACTOR = 7, ROPE_ATTN_FACTOR = 8 }; /* in its op_params */

/* A tensor that is cut, and how it was. */
typedef struct cut {
    tensor *t;
    int dim;          /* that counts cells, times per_cell */
    int64_t per_cell; /* of ne[dim] */
    bool moves;       /* its data begins with the first cell of the portion; else it is scratch, used from its start */
    void *data;
    int64_t ne;
    size_t nb[GGML_LAYOUT_DIMS];
} cut;

typedef struct shift {
    const psi_abi *abi;
    psi_kv *kv;
    int64_t cells;
    const tensor *by; /* int32: what each cell is turned by */
    bool exact;       /* a cell that is turned by 0 stays as it is */
    cut *cuts;
    uint32_t count;
} shift;

/* ---- Reading the graph --------------------------------------------------------------------------- */

static const tensor *root_of(const tensor *t) { return t->view_src != NULL ? t->view_src : t; }

static psi_kv *kv_of(const tensor *t) {
    const tensor *root = root_of(t);
    return root->data != NULL ? psi_kv_of_address(root->data, NULL) : NULL;
}

static bool is_cut(const shift *s, const tensor *t) {
    for (uint32_t i = s->count; t != NULL && i > 0; i--) { /* what a node reads was made shortly before */
        if (s->cuts[i - 1].t == t) {
            return true;
        }
    }
    return false;
}

static bool add_cut(shift *s, tensor *t, bool moves) {
    int dim = GGML_LAYOUT_DIMS - 1;
    while (dim > 0 && t->ne[dim] == 1) {
        dim--;
    }
    if (t->data == NULL || t->ne[dim] % s->cells != 0 || (moves && t->ne[dim] != s->cells)) {
        return false;
    }
    cut *c = &s->cuts[s->count++];
    *c =
        (cut){.t = t, .dim = dim, .per_cell = t->ne[dim] / s->cells, .moves = moves, .data = t->data, .ne = t->ne[dim]};
    memcpy(c->nb, t->nb, sizeof(c->nb));
    return true;
}

/* Of the cache itself, or scratch of a backend that computes where it lies. */
static bool add_node(shift *s, tensor *node) {
    psi_kv *kv = kv_of(node);
    bool is_scratch = kv == NULL && node->buffer != NULL && s->abi->buffer_is_host(node->buffer);
    return (kv == s->kv || is_scratch) && add_cut(s, node, kv != NULL);
}

static bool is_same_amount(const tensor *rope, size_t param, float value) {
    float has = 0;
    memcpy(&has, &rope->op_params[param], sizeof(has));
    return has >= value && has <= value;
}

static bool read_rope(shift *s, tensor *node) {
    tensor *by = node->src[1];
    if (!is_cut(s, node->src[0]) || by == NULL || by->type != TYPE_I32 || (s->by != NULL && s->by != by)) {
        return false;
    }
    if (s->by == NULL && (by->op != s->abi->op_none || by->ne[0] != s->cells || !add_cut(s, by, true))) {
        return false;
    }
    s->by = by;
    s->exact = s->exact && kv_of(node) == s->kv && is_same_amount(node, ROPE_EXT_FACTOR, 0) &&
               is_same_amount(node, ROPE_ATTN_FACTOR, 1);
    return add_node(s, node);
}

static bool read_node(shift *s, tensor *node) {
    const psi_abi *abi = s->abi;
    if (node->op == abi->op_view || node->op == abi->op_reshape) {
        return (kv_of(node) == s->kv || is_cut(s, node->src[0])) && add_node(s, node);
    }
    if (node->op == abi->op_cpy || node->op == abi->op_cont || node->op == abi->op_dup) {
        return is_cut(s, node->src[0]) && add_node(s, node);
    }
    if (node->op == abi->op_mul_mat) {
        return !is_cut(s, node->src[0]) && is_cut(s, node->src[1]) && add_node(s, node);
    }
    return node->op == abi->op_rope && read_rope(s, node);
}

/* The first node shows a layer's K; other graphs begin otherwise. */
static psi_kv *kv_of_graph(const psi_abi *abi, void *graph) {
    const tensor *first = abi->graph_n_nodes(graph) > 0 ? abi->graph_node(graph, 0) : NULL;
    return first != NULL && first->op == abi->op_view ? kv_of(first) : NULL;
}

static bool read_graph(shift *s, void *graph) {
    int nodes = s->abi->graph_n_nodes(graph);
    s->cells = (int64_t)s->kv->cells * s->kv->streams;
    s->cuts = calloc((size_t)nodes + 1, sizeof(*s->cuts));
    s->exact = true;
    bool good = s->cuts != NULL;
    for (int i = 0; i < nodes && good; i++) {
        good = read_node(s, s->abi->graph_node(graph, i));
    }
    return good && s->by != NULL;
}

/* ---- Computing a portion -------------------------------------------------------------------------- */

static void cut_all(const shift *s, uint64_t first, uint64_t count) {
    for (uint32_t i = 0; i < s->count; i++) {
        const cut *c = &s->cuts[i];
        c->t->ne[c->dim] = c->per_cell * (int64_t)count;
        c->t->data = c->moves ? (unsigned char *)c->data + first * c->nb[c->dim] : c->data;
        for (int d = c->dim + 1; d < GGML_LAYOUT_DIMS; d++) {
            c->t->nb[d] = c->t->nb[d - 1] * (size_t)c->t->ne[d - 1];
        }
    }
}

static void mend_all(const shift *s) {
    for (uint32_t i = 0; i < s->count; i++) {
        const cut *c = &s->cuts[i];
        c->t->ne[c->dim] = c->ne;
        c->t->data = c->data;
        memcpy(c->t->nb, c->nb, sizeof(c->nb));
    }
}

/* Cells of blocks [block, end), which are one stream's. */
static int compute(const shift *s, void *sched, void *graph, uint32_t block, uint32_t end) {
    const psi_kv *kv = s->kv;
    uint64_t stream = block / kv->stream_blocks, begin = (uint64_t)(block % kv->stream_blocks) * kv->block_cells;
    uint64_t most = kv->cells - begin, count = (uint64_t)(end - block) * kv->block_cells;
    cut_all(s, stream * kv->cells + begin, count < most ? count : most);
    int status = s->abi->sched_graph_compute_async(sched, graph);
    s->abi->sched_synchronize(sched);
    mend_all(s);
    return status;
}

/* ---- Blocks --------------------------------------------------------------------------------------- */

typedef enum kind { SKIPPED, TURNED_IN_PLACE, TURNED_AND_PUT_AWAY } kind;

static bool stays_as_it_is(const shift *s, uint32_t block) {
    const psi_kv *kv = s->kv;
    const int32_t *by = s->by->data;
    uint32_t begin = block % kv->stream_blocks * kv->block_cells;
    uint64_t row = (uint64_t)(block / kv->stream_blocks) * kv->cells;
    for (uint32_t c = begin; s->exact && c < begin + kv->block_cells && c < kv->cells; c++) {
        if (by[row + c] != 0) {
            return false;
        }
    }
    return s->exact;
}

static kind kind_of(const shift *s, uint32_t block) {
    switch (s->kv->states[block]) {
    case PSI_BLOCK_RESIDENT:
        return TURNED_IN_PLACE;
    case PSI_BLOCK_STORED:
        return stays_as_it_is(s, block) ? SKIPPED : TURNED_AND_PUT_AWAY;
    default:
        return SKIPPED; /* nothing is there to be turned, and its pages stay away */
    }
}

/* The end of the run of `block`'s kind, in its stream. */
static uint32_t end_of_run(const shift *s, uint32_t block, kind k) {
    const psi_kv *kv = s->kv;
    uint32_t end = block + 1, stream_end = (block / kv->stream_blocks + 1) * kv->stream_blocks;
    uint64_t most = k == TURNED_AND_PUT_AWAY ? PORTION_BYTES / kv->pool->block_total_bytes + 1 : UINT64_MAX;
    while (end < stream_end && end - block < most && kind_of(s, end) == k) {
        end++;
    }
    return end;
}

static int turn_in_place(const shift *s, void *sched, void *graph, uint32_t block, uint32_t end) {
    for (uint32_t i = block; i < end; i++) {
        (void)psi_block_write(s->kv->pool, i);
        psi_worth_changed(s->kv->worth, i);
    }
    return compute(s, sched, graph, block, end);
}

/* The blocks' pages are lent for a moment. */
static int turn_and_put_away(const shift *s, void *sched, void *graph, uint32_t block, uint32_t end) {
    for (uint32_t i = block; i < end; i++) {
        (void)psi_block_borrow(s->kv->pool, i);
    }
    int status = compute(s, sched, graph, block, end);
    for (uint32_t i = block; i < end; i++) {
        psi_worth_turned(s->kv->worth, i); /* only now can it be read */
        psi_block_put_away(s->kv->pool, i);
    }
    return status;
}

static int turn_all(const shift *s, void *sched, void *graph) {
    psi_kv *kv = s->kv;
    int status = 0;
    psi_pool_states(kv->pool, kv->states);
    psi_tokens_forget_all(kv); /* positions are others now */
    for (uint32_t block = 0, end = 0; block < kv->blocks && status == 0; block = end) {
        kind k = kind_of(s, block);
        end = end_of_run(s, block, k);
        if (k == TURNED_IN_PLACE) {
            status = turn_in_place(s, sched, graph, block, end);
        } else if (k == TURNED_AND_PUT_AWAY) {
            status = turn_and_put_away(s, sched, graph, block, end);
        }
    }
    return status;
}

static bool can_be_cut(const psi_abi *abi, void *sched) {
    return abi->op_rope >= 0 && abi->op_view >= 0 && abi->buffer_is_host != NULL && abi->sched_get_n_splits != NULL &&
           abi->sched_synchronize != NULL && abi->sched_get_n_splits(sched) == 1 && !psi_hooks_has_callback(sched);
}

bool psi_shift_compute(const psi_abi *abi, void *sched, void *graph, int *status) {
    psi_kv_lock();
    shift s = {.abi = abi, .kv = psi_kv_first() != NULL ? kv_of_graph(abi, graph) : NULL};
    bool good =
        s.kv != NULL && s.kv->pool != NULL && !s.kv->given_up && can_be_cut(abi, sched) && read_graph(&s, graph);
    psi_kv_unlock();
    if (good) {
        *status = turn_all(&s, sched, graph);
    }
    free(s.cuts);
    return good;
}
