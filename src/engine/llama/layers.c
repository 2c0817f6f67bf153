/* layers.c - see layers.h. A layer reads its own K and V in its attention and nowhere else. So at the node before the
 * attention the pool is told which planes come (psi_pool_step_layer): all others may go at any time until the next such
 * node, and the watcher needs not wait for the engine. Layers that were computed saw the blocks that go then, later
 * ones do not. */
#include "engine/llama/layers.h"

#include <string.h>

#include "os/os.h"
#include "pool/pool.h"

/* Where the stops would cost more than 1/STOP_SHARE of a step, it has none. */
#define STOP_US 10u
#define STOP_SHARE 200u

/* ---- Planes ------------------------------------------------------------------------------------ */

void psi_layers_note(step_hook *hook, const kv_tensor *key) {
    const psi_kv *kv = hook->kv;
    uint32_t first = (uint32_t)(key - kv->tensors), last = first;
    for (uint32_t i = 0; i < kv->tensor_count; i++) {
        if (kv->tensors[i].layer == key->layer) {
            first = i < first ? i : first;
            last = i > last ? i : last;
        }
    }
    hook->first_plane = first;
    hook->planes = last - first + 1;
}

static bool shows_only(const psi_abi *abi, const tensor *t) {
    return t->op == abi->op_none || t->op == abi->op_view || t->op == abi->op_reshape || t->op == abi->op_permute ||
           t->op == abi->op_transpose;
}

/* The plane that a node's source lies in; kv->tensor_count: none of the cache's. */
static uint32_t plane_behind(const psi_kv *kv, const tensor *source) {
    const tensor *root = source->view_src != NULL ? source->view_src : source;
    for (uint32_t i = 0; i < kv->tensor_count; i++) {
        if (root == kv->tensors[i].t) {
            return i;
        }
    }
    return kv->tensor_count;
}

static const step_hook *last_hook_before(const psi_llama_step *step, int index) {
    const step_hook *last = NULL;
    for (uint32_t i = 0; i < step->hook_count && step->hooks[i].index < index; i++) {
        last = &step->hooks[i];
    }
    return last;
}

/* Every node reads the planes of the last hook before it, and no others. A write is no read: what is written stays. */
static bool reads_by_layers(const psi_llama_step *step, const psi_kv *kv, void *graph, int nodes) {
    const psi_abi *abi = kv->abi;
    for (int i = 0; i < nodes; i++) {
        const tensor *node = abi->graph_node(graph, i);
        if (shows_only(abi, node) || node->op == abi->op_set_rows) {
            continue;
        }
        for (int s = 0; s < GGML_LAYOUT_SRC && node->src[s] != NULL; s++) {
            uint32_t plane = plane_behind(kv, node->src[s]);
            const step_hook *hook = plane < kv->tensor_count ? last_hook_before(step, i) : NULL;
            if (plane < kv->tensor_count && (hook == NULL || hook->kv != kv || plane < hook->first_plane ||
                                             plane >= hook->first_plane + hook->planes)) {
                return false;
            }
        }
    }
    return true;
}

/* Looked through once for each size of graph. */
static bool knows_reads(const psi_llama_step *step, psi_kv *kv, void *graph) {
    int nodes = kv->abi->graph_n_nodes(graph);
    for (uint32_t i = 0; i < KV_CHECKED_GRAPHS; i++) {
        if (kv->layers_nodes[i] == nodes) {
            return kv->layers_good[i];
        }
    }
    uint32_t at = kv->layers_count++ % KV_CHECKED_GRAPHS;
    kv->layers_nodes[at] = nodes;
    kv->layers_good[at] = reads_by_layers(step, kv, graph, nodes);
    return kv->layers_good[at];
}

/* ---- Masks ------------------------------------------------------------------------------------- */

/* The mask that the attention reads is the input itself, or a copy that is there before the first stop. */
static bool is_there(const step_hook *hook, void *graph) {
    const psi_abi *abi = hook->kv->abi;
    const tensor *made = hook->mask;
    while (made != NULL && made->op != abi->op_none && shows_only(abi, made)) {
        made = made->src[0];
    }
    if (made == NULL || made->op == abi->op_none) {
        return made != NULL && hook->mask->data == hook->input->mask->data;
    }
    int index = hook->index;
    while (index >= 0 && abi->graph_node(graph, index) != made) {
        index--;
    }
    return index >= 0;
}

static bool is_in_reach(const psi_abi *abi, const tensor *mask) {
    const tensor *root = mask->view_src != NULL ? mask->view_src : mask;
    return mask->data != NULL && root->buffer != NULL && abi->buffer_is_host(root->buffer) &&
           (mask->type == TYPE_F32 || mask->type == TYPE_F16);
}

static bool can_edit(const step_hook *hook, void *graph) {
    const tensor *m = hook->mask, *input = hook->input->mask;
    return is_in_reach(hook->kv->abi, m) && is_in_reach(hook->kv->abi, input) && m->ne[0] == input->ne[0] &&
           m->ne[1] == input->ne[1] && m->ne[3] == input->ne[3] && is_there(hook, graph);
}

/* A block's columns in a hook's masks. */
typedef struct columns {
    uint32_t stream; /* of the cache */
    int64_t mask_stream;
    uint32_t first, last;
} columns;

/* False: the block is none of the hook's. */
static bool columns_of(const step_hook *hook, uint32_t block, columns *c) {
    const psi_kv *kv = hook->kv;
    uint32_t most = (uint32_t)hook->mask->ne[0];
    c->stream = block / kv->stream_blocks;
    c->mask_stream = (int64_t)c->stream - hook->first_stream;
    c->first = block % kv->stream_blocks * kv->block_cells;
    c->last = c->first + kv->block_cells < most ? c->first + kv->block_cells : most;
    return c->mask_stream >= 0 && c->mask_stream < hook->mask->ne[3] && c->first < c->last;
}

/* What came back is shown in a mask as it was before, what went is hidden. */
static void edit_mask(const psi_worth *worth, tensor *mask, const columns *c, bool show) {
    if (show) {
        psi_worth_show_again(worth, mask, c->mask_stream, c->first, c->last);
    } else {
        psi_mask_hide(mask, c->mask_stream, c->first, c->last);
    }
}

static void edit_masks(const step_hook *hook, uint32_t block, bool show) {
    psi_worth *worth = hook->kv->worth;
    columns c;
    bool knows_seen = worth != NULL && worth->recalls;
    if (!columns_of(hook, block, &c) || (show && !knows_seen)) {
        return;
    }
    if (!show && knows_seen) { /* it may come back in a later layer */
        psi_worth_note_seen(worth, hook->mask, c.mask_stream, c.stream, c.first, c.last);
    }
    edit_mask(worth, hook->mask, &c, show);
    if (hook->input->mask->data != hook->mask->data) {
        edit_mask(worth, hook->input->mask, &c, show);
    }
}

void psi_layers_follow(const step_hook *hook) {
    psi_kv *kv = hook->kv;
    memcpy(kv->before, kv->states, kv->blocks);
    psi_pool_states(kv->pool, kv->states);
    for (uint32_t block = 0; block < kv->blocks; block++) {
        if (kv->before[block] != kv->states[block]) {
            edit_masks(hook, block, kv->states[block] == PSI_BLOCK_RESIDENT);
        }
    }
}

/* ---- The step ---------------------------------------------------------------------------------- */

uint32_t psi_layers_row_size(const step_hook *hook) {
    uint32_t size = 0;
    int64_t rows = hook->queries != NULL ? hook->queries->ne[1] * hook->queries->ne[3] : 1;
    for (; rows > 1 && size + 1 < KV_ROW_SIZES; rows /= 2) {
        size++;
    }
    return size;
}

/* As far as the last one of its kind tells; one that is not known is. */
static bool is_long(const psi_kv *kv, const step_hook *hook) {
    uint64_t us = kv->step_us[psi_layers_row_size(hook)];
    return us == 0 || kv->long_step_us == 0 ||
           (us >= kv->long_step_us && us >= (uint64_t)kv->attentions * STOP_US * STOP_SHARE);
}

const step_hook *psi_layers_next_hook(const psi_llama_step *step, const psi_kv *kv, const step_hook *last) {
    const step_hook *end = step->hooks + step->hook_count;
    for (const step_hook *hook = last != NULL ? last + 1 : step->hooks; hook < end; hook++) {
        if (hook->kv == kv) {
            return hook;
        }
    }
    return NULL;
}

/* Each attention of the cache has its hook, and all read one mask. */
static bool are_hooked(const psi_llama_step *step, const psi_kv *kv, const step_hook *first) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < step->hook_count; i++) {
        const step_hook *hook = &step->hooks[i];
        if (hook->kv == kv) {
            count++;
            if (hook->mask->data != first->mask->data || hook->input != first->input ||
                hook->first_stream != first->first_stream) {
                return false;
            }
        }
    }
    return count == kv->attentions;
}

static const char *why_not(const psi_llama_step *step, psi_kv *kv, const step_hook *first, void *graph) {
    if (kv->abi->sched_set_eval_callback == NULL || kv->abi->buffer_is_host == NULL) {
        return "the build has no evaluation callback";
    }
    if (!are_hooked(step, kv, first)) {
        return "its layers read several masks, or one begins with its attention";
    }
    if (!can_edit(first, graph)) {
        return "its mask is out of reach inside the step";
    }
    return knows_reads(step, kv, graph) ? NULL : "a layer reads what is not its own";
}

void psi_layers_begin(psi_llama_step *step, psi_kv *kv, void *graph) {
    const step_hook *first = psi_layers_next_hook(step, kv, NULL);
    if (first == NULL || !is_long(kv, first)) {
        return;
    }
    const char *why = why_not(step, kv, first, graph);
    if (why != NULL && !kv->layers_said) {
        kv->layers_said = true;
        psi_llama_say(PSI_LOG_DEBUG, "no safe points inside a step of this cache: %s", why);
    }
    kv->layered = why == NULL;
    step->layered = step->layered || kv->layered;
}

void psi_layers_pass(const psi_llama_step *step, const step_hook *hook) {
    if (psi_pool_step_layer(hook->kv->pool, hook->first_plane, hook->planes) > 0) {
        psi_layers_follow(hook);
        psi_tokens_note_partial(step);
    }
    for (uint32_t i = 0; i < step->kv_count; i++) { /* what moves in others is hidden before they are read again */
        if (step->kvs[i] != hook->kv && step->kvs[i]->layered) {
            (void)psi_pool_step_layer(step->kvs[i]->pool, 0, 0);
        }
    }
}

/* What the masks do not hide yet must be there. */
static void come_back(psi_kv *kv) {
    for (uint32_t block = 0; block < kv->blocks; block++) {
        if (kv->states[block] == PSI_BLOCK_RESIDENT) {
            (void)psi_block_restore(kv->pool, block);
        }
    }
}

void psi_layers_missed(const step_hook *hook) {
    psi_kv *kv = hook->kv;
    if (kv->layered) {
        kv->layered = false;
        (void)psi_pool_step_layer(kv->pool, 0, kv->tensor_count);
        come_back(kv);
        psi_llama_say(PSI_LOG_DEBUG,
                      "a step's nodes came in another order than its graph's: no safe point in the rest");
    }
}

void psi_layers_end(psi_llama_step *step) {
    uint64_t took_us = psi_os_now_us() - step->begin_us;
    for (uint32_t i = 0; i < step->kv_count; i++) {
        psi_kv *kv = step->kvs[i];
        const step_hook *first = psi_layers_next_hook(step, kv, NULL);
        if (first != NULL) {
            kv->step_us[psi_layers_row_size(first)] = took_us > 0 ? took_us : 1;
        }
        if (kv->layered) {
            (void)psi_pool_step_layer(kv->pool, 0, 0);
        }
        if (kv->layered && psi_pool_step_layer(kv->pool, 0, kv->tensor_count) > 0) {
            psi_pool_states(kv->pool, kv->states);
        }
        kv->layered = false;
    }
}
