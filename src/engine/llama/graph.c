/* graph.c - reads a step's graph and makes it the pool's safe point. Called on the engine's thread for each step,
 * between the filling of its inputs and its computation. SET_ROWS nodes say which cells are written; attention nodes
 * lead to K, which names the cache, and to the input mask, whose columns are cells. */
#include "engine/llama/graph.h"

#include "engine/llama/hooks.h"
#include "engine/llama/layers.h"
#include "engine/llama/listen.h"
#include "engine/llama/recompute.h"
#include "engine/llama/refusal.h"

#include "os/os.h"
#include "pool/pool.h"

#include <string.h>

static const tensor *root_of(const tensor *t) { return t->view_src != NULL ? t->view_src : t; }

static psi_kv *kv_of(const tensor *t, const kv_tensor **which) {
    const tensor *root = root_of(t);
    return root->data != NULL ? psi_kv_of_address(root->data, which) : NULL;
}

static void give_up(psi_kv *kv, const char *why) {
    if (!kv->given_up) {
        kv->given_up = true;
        psi_llama_say(PSI_LOG_WARN, "%s: this cache is committed lazily, but never trimmed", why);
    }
}

static bool add_kv(psi_llama_step *step, psi_kv *kv) {
    for (uint32_t i = 0; i < step->kv_count; i++) {
        if (step->kvs[i] == kv) {
            return true;
        }
    }
    if (step->kv_count == STEP_MAX_KVS) {
        return false;
    }
    memset(kv->marks, 0, kv->blocks);
    kv->wrote = false;
    kv->attentions = 0;
    kv->layered = false;
    if (kv->worth != NULL) {
        kv->worth->attends = kv->worth->recalls = false;
    }
    step->kvs[step->kv_count++] = kv;
    return true;
}

/* ---- Writes ------------------------------------------------------------------------------------ */

static void note_written(psi_kv *kv, const tensor *indices) {
    int64_t count = indices->ne[0];
    for (int64_t i = 0; i < count; i++) {
        int64_t cell =
            indices->type == TYPE_I64 ? ((const int64_t *)indices->data)[i] : ((const int32_t *)indices->data)[i];
        if (cell >= 0) {
            psi_kv_note_cell(kv, (uint64_t)cell);
        }
    }
}

typedef struct written {
    const tensor *indices[STEP_MAX_KVS]; /* all layers of a cache share one: read it once */
    uint32_t count;
} written;

static bool is_new(written *seen, const tensor *indices) {
    for (uint32_t i = 0; i < seen->count; i++) {
        if (seen->indices[i] == indices) {
            return false;
        }
    }
    if (seen->count < STEP_MAX_KVS) {
        seen->indices[seen->count++] = indices;
    }
    return true;
}

static void read_set_rows(psi_llama_step *step, written *seen, const tensor *node) {
    const kv_tensor *which = NULL;
    psi_kv *kv = kv_of(node, &which);
    const tensor *indices = node->src[1];
    if (kv == NULL || which == NULL || kv->given_up) {
        return;
    }
    if (!add_kv(step, kv) || indices == NULL || indices->data == NULL ||
        (indices->type != TYPE_I64 && indices->type != TYPE_I32)) {
        give_up(kv, "a graph that writes its cache in a way not known here");
        return;
    }
    if (which->is_key) {
        if (is_new(seen, indices)) {
            note_written(kv, indices);
            if (step->write_count < STEP_MAX_KVS) { /* as many as `seen` takes */
                step->writes[step->write_count++] = (step_write){kv, indices};
            }
        }
    } else if (kv->pool == NULL) {
        psi_kv_open_pool(kv, node->ne[0] == 1); /* a transposed V is written element by element */
    }
}

/* ---- Masks ------------------------------------------------------------------------------------- */

/* From the mask that an attention node reads back to the input that the engine filled. */
static tensor *mask_input(const psi_abi *abi, tensor *mask) {
    for (int depth = 0; mask != NULL && depth < 8; depth++) {
        if (mask->op == abi->op_none) {
            return mask;
        }
        bool passes = mask->op == abi->op_cpy || mask->op == abi->op_cont || mask->op == abi->op_dup ||
                      mask->op == abi->op_reshape || (mask->op == abi->op_view && mask->view_offs == 0);
        if (!passes) {
            return NULL;
        }
        mask = mask->src[0];
    }
    return NULL;
}

/* The node that multiplies K and Q: flash attention itself; for SOFT_MAX the way leads through scaling and capping. */
static const tensor *product_of(const psi_abi *abi, const tensor *node) {
    const tensor *t = node;
    for (int depth = 0; t != NULL && depth < 8; depth++) {
        if (t->op == abi->op_flash_attn || t->op == abi->op_mul_mat) {
            return t;
        }
        t = t->src[0];
    }
    return NULL;
}

/* The cache tensor behind K, which may be cast or copied on its way. */
static psi_kv *kv_behind(const tensor *key, const kv_tensor **which, const tensor **view) {
    for (int depth = 0; key != NULL && depth < 8; depth++) {
        psi_kv *kv = kv_of(key, which);
        if (kv != NULL) {
            *view = key;
            return kv;
        }
        key = key->src[0];
    }
    return NULL;
}

/* The step's entry for a mask, which attention reads as `copy`, and the cache whose cells are its columns; NULL: the
 * cache was given up. */
static const step_mask *note_mask(psi_llama_step *step, psi_kv *kv, tensor *mask, const tensor *copy,
                                  uint32_t first_stream) {
    for (uint32_t i = 0; i < step->mask_count; i++) {
        if (step->masks[i].mask == mask && step->masks[i].kv == kv) {
            step->masks[i].several = step->masks[i].several || step->masks[i].copy != copy;
            return &step->masks[i];
        }
    }
    bool good = mask != NULL && mask->data != NULL && psi_abi_in_host(kv->abi, mask) &&
                (mask->type == TYPE_F32 || mask->type == TYPE_F16) && mask->ne[0] <= kv->cells &&
                first_stream + (uint64_t)mask->ne[3] <= kv->streams;
    if (!good || !add_kv(step, kv) || step->mask_count == STEP_MAX_MASKS) {
        give_up(kv, "a graph whose attention mask was not found");
        return NULL;
    }
    step->masks[step->mask_count] = (step_mask){mask, kv, first_stream, copy, false};
    return &step->masks[step->mask_count++];
}

static void read_attention(psi_llama_step *step, const psi_abi *abi, void *graph, int index) {
    const tensor *node = abi->graph_node(graph, index), *product = product_of(abi, node), *view = NULL;
    const kv_tensor *which = NULL;
    bool flash = node->op == abi->op_flash_attn;
    psi_kv *kv = product != NULL ? kv_behind(flash ? product->src[1] : product->src[0], &which, &view) : NULL;
    if (kv == NULL || which == NULL || kv->given_up) {
        return;
    }
    tensor *mask = flash ? node->src[3] : node->src[1];
    uint32_t first_stream = (uint32_t)((size_t)((const unsigned char *)view->data - which->data) / which->t->nb[2]);
    const step_mask *input = note_mask(step, kv, mask_input(abi, mask), mask, first_stream);
    kv->head_dims = (uint32_t)view->ne[0];
    if (input != NULL) {
        kv->attentions++;
        psi_hooks_note(step, graph, index, which,
                       &(step_hook){.product = product,
                                    .queries = product->src[flash ? 0 : 1],
                                    .kv = kv,
                                    .mask = mask,
                                    .input = input,
                                    .first_stream = first_stream});
    }
}

/* Calls `visit` for each block of the mask's streams with its columns, cut at the mask's end. */
typedef void (*visit_fn)(const step_mask *m, int64_t stream, uint32_t block, uint32_t first, uint32_t last);

static void for_each_block(const step_mask *m, visit_fn visit) {
    const psi_kv *kv = m->kv;
    uint32_t columns = (uint32_t)m->mask->ne[0];
    for (int64_t s = 0; s < m->mask->ne[3]; s++) {
        uint32_t block = (m->first_stream + (uint32_t)s) * kv->stream_blocks;
        for (uint32_t first = 0; first < columns; first += kv->block_cells, block++) {
            uint32_t last = first + kv->block_cells < columns ? first + kv->block_cells : columns;
            visit(m, s, block, first, last);
        }
    }
}

static void mark_visible(const step_mask *m, int64_t stream, uint32_t block, uint32_t first, uint32_t last) {
    psi_kv *kv = m->kv;
    if (kv->marks[block] == 0 && kv->states[block] != PSI_BLOCK_EMPTY &&
        psi_mask_any_seen(m->mask, stream, first, last)) {
        kv->marks[block] = PSI_MARK_USED;
    }
}

static void hide_lost_cells(const step_mask *m, int64_t stream, uint32_t first, uint32_t last) {
    const psi_kv *kv = m->kv;
    uint64_t row = (uint64_t)(m->first_stream + (uint32_t)stream) * kv->cells;
    for (uint32_t column = first; column < last; column++) {
        uint64_t cell = row + column;
        if (psi_kv_bit(kv->lost, cell)) {
            psi_mask_hide(m->mask, stream, column, column + 1);
        }
    }
}

static void hide_block(const step_mask *m, int64_t stream, uint32_t block, uint32_t first, uint32_t last) {
    unsigned char state = m->kv->states[block];
    if (state == PSI_BLOCK_STORED && m->kv->worth != NULL && m->kv->worth->recalls) {
        psi_worth_note_seen(m->kv->worth, m->mask, stream, m->first_stream + (uint32_t)stream, first, last);
    }
    if (state == PSI_BLOCK_STORED || state == PSI_BLOCK_DROPPED) {
        psi_mask_hide(m->mask, stream, first, last);
    } else if (m->kv->lost_cells > 0 && state == PSI_BLOCK_RESIDENT) {
        hide_lost_cells(m, stream, first, last);
    }
}

/* ---- Graphs that use the cache in a way of their own --------------------------------------------- */

static bool shows_only(const psi_abi *abi, int op) {
    return op == abi->op_none || op == abi->op_view || op == abi->op_reshape || op == abi->op_permute ||
           op == abi->op_transpose;
}

/* A node that writes into a cache other than by SET_ROWS: a context shift turns keys in place. */
static psi_kv *written_in_place(const psi_abi *abi, const tensor *node) {
    if (node->view_src == NULL || node->op == abi->op_set_rows || shows_only(abi, node->op)) {
        return NULL;
    }
    return kv_of(node, NULL);
}

static bool reads_as_known(const psi_abi *abi, int op) {
    return shows_only(abi, op) || op == abi->op_set_rows || op == abi->op_flash_attn || op == abi->op_mul_mat ||
           op == abi->op_cpy || op == abi->op_cont || op == abi->op_dup;
}

/* Every use of the cache must be one that a mask governs. Looked through once for each size of graph. */
static void check_reads(const psi_abi *abi, void *graph, int nodes) {
    for (int i = 0; i < nodes; i++) {
        const tensor *node = abi->graph_node(graph, i);
        for (int s = 0; s < GGML_LAYOUT_SRC && !reads_as_known(abi, node->op); s++) {
            psi_kv *kv = node->src[s] != NULL ? kv_of(node->src[s], NULL) : NULL;
            if (kv != NULL && written_in_place(abi, node) == NULL) {
                give_up(kv, "a graph that reads its cache in a way not known here");
            }
        }
    }
}

static bool needs_check(psi_kv *kv, int nodes) {
    for (size_t i = 0; i < sizeof(kv->checked_nodes) / sizeof(kv->checked_nodes[0]); i++) {
        if (kv->checked_nodes[i] == nodes) {
            return false;
        }
    }
    kv->checked_nodes[kv->checked_count++ % (sizeof(kv->checked_nodes) / sizeof(kv->checked_nodes[0]))] = nodes;
    return true;
}

/* ---- The step ---------------------------------------------------------------------------------- */

static bool has_mask(const psi_llama_step *step, const psi_kv *kv) {
    for (uint32_t i = 0; i < step->mask_count; i++) {
        if (step->masks[i].kv == kv) {
            return true;
        }
    }
    return false;
}

static void read_graph(psi_llama_step *step, const psi_abi *abi, void *graph) {
    written seen = {0};
    int nodes = abi->graph_n_nodes(graph);
    for (int i = 0; i < nodes; i++) {
        const tensor *node = abi->graph_node(graph, i);
        psi_tokens_see_node(&step->tokens, abi, node);
        if (node->op == abi->op_set_rows) {
            read_set_rows(step, &seen, node);
        } else if (node->op == abi->op_flash_attn || node->op == abi->op_soft_max) {
            read_attention(step, abi, graph, i);
        } else {
            psi_kv *kv = written_in_place(abi, node);
            if (kv != NULL) {
                psi_kv_make_whole(kv);
            }
        }
    }
    for (uint32_t i = 0; i < step->kv_count; i++) {
        if (step->kvs[i]->wrote && !has_mask(step, step->kvs[i])) {
            give_up(step->kvs[i], "a graph that writes its cache, and reads it by no mask");
        }
        if (needs_check(step->kvs[i], nodes)) {
            check_reads(abi, graph, nodes);
        }
    }
}

/* A cache without V shows no transposition: its pool is made from K alone. One that was given up comes back for good.
 */
static void settle(psi_kv *kv) {
    if (kv->pool == NULL && kv->wrote && !kv->given_up) {
        psi_kv_open_pool(kv, false);
    }
    if (kv->given_up && kv->pool != NULL) {
        psi_kv_make_whole(kv);
        if (kv->lost_cells > 0) {
            psi_llama_say(PSI_LOG_ERROR,
                          "%u cells that were dropped before are zero now, and no longer hidden: clear the context",
                          kv->lost_cells);
        }
        psi_pool_destroy(kv->pool);
        kv->pool = NULL;
    }
}

static void pass_safe_point(psi_llama_step *step, psi_kv *kv) {
    psi_pool_states_follow(kv->pool, kv->states); /* what was loaded since the last step is read by this one */
    for (uint32_t i = 0; i < step->mask_count; i++) {
        if (step->masks[i].kv == kv) {
            for_each_block(&step->masks[i], mark_visible);
        }
    }
    kv->last_written = kv->wrote ? kv->step_last : kv->last_written;
    (void)psi_pool_mark(kv->pool, kv->marks);
    (void)psi_pool_step(kv->pool);
}

/* True when some token of the step does not see all that it should. */
static bool misses_some(const psi_kv *kv) {
    bool misses = false;
    for (uint32_t i = 0; i < kv->blocks && !misses; i++) {
        bool out = kv->states[i] == PSI_BLOCK_STORED || kv->states[i] == PSI_BLOCK_DROPPED;
        misses = kv->marks[i] != 0 && (out || (kv->lost_cells > 0 && psi_kv_has_lost(kv, i)));
    }
    return misses;
}

static void hide_what_is_out(psi_llama_step *step, psi_kv *kv) {
    psi_pool_states(kv->pool, kv->states);
    if (misses_some(kv)) {
        psi_tokens_note_partial(step);
    }
    psi_listen_begin(step, kv);
    for (uint32_t i = 0; i < step->mask_count; i++) {
        if (step->masks[i].kv == kv) {
            for_each_block(&step->masks[i], hide_block);
        }
    }
}

static bool is_managed(const psi_kv *kv) { return kv->pool != NULL && !kv->given_up; }

/* Where no step may run without all that it reads: a cache that it has not all of. */
static psi_kv *incomplete(const psi_llama_step *step) {
    for (uint32_t i = 0; psi_refusal_is_understood() && i < step->kv_count; i++) {
        psi_kv *kv = step->kvs[i];
        if (is_managed(kv) && psi_cache_is_exact(kv->pool->cache)) {
            psi_pool_states(kv->pool, kv->states);
            if (misses_some(kv)) {
                return kv;
            }
        }
    }
    return NULL;
}

static void leave_safe_points(const psi_llama_step *step) {
    for (uint32_t i = 0; i < step->kv_count; i++) {
        psi_pool_step_end(step->kvs[i]->pool);
    }
}

/* False: the step is refused. */
static bool pass_safe_points(psi_llama_step *step) {
    for (;;) {
        if (psi_refusal_of(step)) {
            return false;
        }
        for (uint32_t i = 0; i < step->kv_count; i++) {
            if (is_managed(step->kvs[i])) {
                pass_safe_point(step, step->kvs[i]);
            }
        }
        psi_recompute_at_safe_point(step);
        psi_kv *kv = incomplete(step);
        if (kv == NULL) {
            return true;
        }
        leave_safe_points(step);
        if (!psi_refusal_waits_for(step, kv)) {
            return false;
        }
    }
}

bool psi_llama_step_begin(psi_llama_step *step, const psi_abi *abi, void *graph) {
    step->mask_count = step->kv_count = step->hook_count = step->next_hook = step->write_count = 0;
    step->tokens = (psi_step_tokens){0};
    step->listens = step->layered = false;
    step->begin_us = psi_os_now_us();
    psi_kv_lock();
    if (psi_kv_first() != NULL) {
        read_graph(step, abi, graph);
    }
    for (uint32_t i = 0; i < step->kv_count; i++) {
        step->kvs[i]->context = psi_llama_context;
        settle(step->kvs[i]); /* under the lock: another thread may be asking whether it refuses */
    }
    psi_kv_unlock();
    if (!pass_safe_points(step)) {
        return false;
    }
    psi_tokens_note(step); /* now: what the step writes is no content yet that could be copied or compared */
    for (uint32_t i = 0; i < step->kv_count; i++) {
        if (is_managed(step->kvs[i])) {
            hide_what_is_out(step, step->kvs[i]);
            psi_layers_begin(step, step->kvs[i], graph);
        }
    }
    psi_refusal_computed(step);
    return true;
}

void psi_llama_step_end(psi_llama_step *step, bool computed) {
    psi_layers_end(step);
    if (!computed) {
        psi_tokens_forget_step(step);
    }
    psi_listen_end(step);
    for (uint32_t i = 0; i < step->kv_count; i++) {
        psi_pool_step_end(step->kvs[i]->pool);
    }
}
