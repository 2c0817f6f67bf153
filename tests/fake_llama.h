/* fake_llama.h - a fake of llama.cpp that the adapter's own functions are driven with: two layers, one head, flash
 * attention, tensors laid out as ggml's. At each attention it looks at every cell that the mask shows, as an engine
 * would read it: what is shown must be what was written. For tests of the adapter only. */
#ifndef FAKE_LLAMA_H
#define FAKE_LLAMA_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/llama/graph.h"
#include "engine/llama/hooks.h"
#include "os/os.h"
#include "pool/cache.h"
#include "pool/pool.h"

enum { F_DIMS = 32, F_CELLS = 1024, F_LAYERS = 2, F_MOST_STREAMS = 4, F_MOST_ROWS = 64, F_BLOCK = 32 };
enum { OP_NONE, OP_SET_ROWS, OP_FLASH, OP_SOFT_MAX, OP_MUL_MAT, OP_CPY = 9, OP_OTHER = 20 };
enum { NODES_BEFORE = 2 + F_LAYERS * 2, NODES = NODES_BEFORE + 2 * F_LAYERS };

typedef struct fake_llama {
    psi_abi abi;
    tensor cache[2 * F_LAYERS]; /* K, V, K, V */
    uint32_t streams;
    psi_kv *kv;
    /* The coming step. */
    tensor nodes[NODES], input, indices, views[2 * F_LAYERS], casts[F_LAYERS];
    uint32_t rows, first_stream, step_streams;
    int64_t index[F_MOST_STREAMS * F_MOST_ROWS];
    float mask[F_MOST_STREAMS * F_MOST_ROWS * F_CELLS], cast[F_LAYERS][F_MOST_STREAMS * F_MOST_ROWS * F_CELLS];
    float query[F_MOST_STREAMS * F_MOST_ROWS * F_DIMS];
    bool quantised;    /* K is of a type that is quantised in groups of 32; its cells are not looked at */
    bool own_casts;    /* each layer has a cast of the mask of its own, made before the first layer */
    uint32_t piece_us; /* what it costs to begin a piece of a graph */
    int stop_at_layer; /* the engine's abort: the layer that is not computed; negative: none */
    /* What happened. */
    bool written[F_MOST_STREAMS * F_CELLS];
    uint32_t wrong_cells, shown_cells, wrong_groups;
    psi_eval_callback callback;
    void *user;
} fake_llama;

static fake_llama *the_fake;

static tensor *fake_first(const void *context) { return &((fake_llama *)(uintptr_t)context)->cache[0]; }
static tensor *fake_next(const void *context, const tensor *t) {
    fake_llama *fake = (fake_llama *)(uintptr_t)context;
    size_t at = (size_t)(t - fake->cache) + 1;
    return at < 2 * F_LAYERS ? &fake->cache[at] : NULL;
}
static bool fake_is_host(void *buffer) { return buffer != (void *)1; } /* 1: the fake's device */
static void *fake_buffer(void *address, size_t bytes) {
    (void)bytes;
    return address;
}
static int fake_alloc(void *buffer, tensor *t, void *address) {
    t->buffer = buffer;
    t->data = address;
    return 0;
}
static size_t fake_nbytes(const tensor *t) { return (size_t)t->ne[2] * t->nb[2]; }
static const char *fake_name(const tensor *t) { return t->name; }
static void *fake_data(const tensor *t) { return t->data; }
static int fake_n_nodes(void *graph) {
    (void)graph;
    return NODES;
}
static tensor *fake_node(void *graph, int index) { return &((fake_llama *)graph)->nodes[index]; }
static void fake_set_callback(void *sched, psi_eval_callback callback, void *user) {
    (void)sched;
    the_fake->callback = callback;
    the_fake->user = user;
}

/* ggml stops the process where a part of a group is asked for. */
static void fake_to_float(const void *from, float *to, int64_t count) {
    (void)from;
    the_fake->wrong_groups += count % 32 != 0;
    memset(to, 0, (size_t)count * sizeof(*to));
}
static const psi_type_traits *fake_traits(int type) {
    static const psi_type_traits traits = {.group = 32, .group_bytes = 34, .to_float = fake_to_float};
    (void)type;
    return &traits;
}

/* Each block's keys are along an axis of their own. */
static float fake_key(uint32_t cell, uint32_t dim) {
    return (dim == cell % F_CELLS / F_BLOCK ? 8.0f : 0.0f) + 0.001f * (float)(cell % F_BLOCK) +
           0.01f * (float)(dim % 3);
}

static float *row_of(const tensor *t, uint32_t stream, uint32_t cell) {
    return (float *)(void *)((unsigned char *)t->data + stream * t->nb[2] + cell * t->nb[1]);
}

static void fake_write(fake_llama *fake, uint32_t layer) {
    for (uint32_t i = 0; i < fake->rows * fake->step_streams; i++) {
        uint32_t stream = (uint32_t)(fake->index[i] / F_CELLS), cell = (uint32_t)(fake->index[i] % F_CELLS);
        for (uint32_t d = 0; d < F_DIMS && !fake->quantised; d++) {
            row_of(&fake->cache[2 * layer], stream, cell)[d] = fake_key(cell, d);
            row_of(&fake->cache[2 * layer + 1], stream, cell)[d] = fake_key(cell, d) + (float)(layer + stream);
        }
        fake->written[fake->index[i]] = true;
    }
}

static bool any_row_shows(const fake_llama *fake, const float *mask, uint32_t stream, uint32_t cell) {
    bool any = false;
    for (uint32_t row = stream * fake->rows; row < (stream + 1) * fake->rows && !any; row++) {
        any = !isinf(mask[row * F_CELLS + cell]);
    }
    return any;
}

static void fake_attend(fake_llama *fake, uint32_t layer) {
    const float *mask = fake->cast[fake->own_casts ? layer : 0];
    for (uint32_t i = 0; i < fake->step_streams * F_CELLS; i++) {
        uint32_t stream = fake->first_stream + i / F_CELLS, cell = i % F_CELLS;
        if (!any_row_shows(fake, mask, i / F_CELLS, cell)) {
            continue;
        }
        fake->shown_cells++;
        bool good = true;
        for (uint32_t d = 0; d < F_DIMS && !fake->quantised; d++) {
            float k = fake_key(cell, d), v = k + (float)(layer + stream);
            good = good && row_of(&fake->cache[2 * layer], stream, cell)[d] == k &&
                   row_of(&fake->cache[2 * layer + 1], stream, cell)[d] == v;
        }
        fake->wrong_cells += !good;
    }
}

static void fake_run(fake_llama *fake, int node) {
    if (node >= 2 && node < NODES_BEFORE && node % 2 == 0) {
        fake_write(fake, (uint32_t)(node - 2) / 2);
    } else if (node == NODES_BEFORE) { /* all casts are made here */
        for (uint32_t layer = 0; layer < F_LAYERS; layer++) {
            memcpy(fake->cast[layer], fake->mask, sizeof(fake->mask));
        }
    } else if (node > NODES_BEFORE && (node - NODES_BEFORE) % 2 == 1) {
        fake_attend(fake, (uint32_t)(node - NODES_BEFORE) / 2);
    }
}

/* As ggml_backend_sched_compute_splits does, with its order of asking. */
static int fake_compute(void *sched, void *graph) {
    (void)sched;
    fake_llama *fake = graph;
    for (int first = 0; first < NODES; first++) {
        int last = first;
        bool need = fake->callback != NULL && fake->callback(&fake->nodes[first], true, fake->user);
        while (!need && last < NODES - 1) {
            last++;
            need = fake->callback != NULL && fake->callback(&fake->nodes[last], true, fake->user);
        }
        (void)usleep(fake->piece_us);
        for (int node = first; node <= last; node++) {
            if (fake->stop_at_layer >= 0 && node == NODES_BEFORE + 2 * fake->stop_at_layer) {
                return STATUS_ABORTED;
            }
            fake_run(fake, node);
        }
        if (need && !fake->callback(&fake->nodes[last], false, fake->user)) {
            break;
        }
        first = last;
    }
    return 0;
}

static void fake_abi(psi_abi *abi) {
    *abi = (psi_abi){.fits = true,
                     .get_first_tensor = fake_first,
                     .get_next_tensor = fake_next,
                     .buft_is_host = fake_is_host,
                     .buffer_is_host = fake_is_host,
                     .cpu_buffer_from_ptr = fake_buffer,
                     .tensor_alloc = fake_alloc,
                     .nbytes = fake_nbytes,
                     .get_name = fake_name,
                     .get_data = fake_data,
                     .graph_n_nodes = fake_n_nodes,
                     .graph_node = fake_node,
                     .sched_graph_compute_async = fake_compute,
                     .sched_set_eval_callback = fake_set_callback,
                     .get_type_traits = fake_traits,
                     .op_none = OP_NONE,
                     .op_set_rows = OP_SET_ROWS,
                     .op_flash_attn = OP_FLASH,
                     .op_soft_max = OP_SOFT_MAX,
                     .op_mul_mat = OP_MUL_MAT,
                     .op_view = 5,
                     .op_reshape = 6,
                     .op_permute = 7,
                     .op_transpose = 8,
                     .op_cpy = OP_CPY,
                     .op_cont = 10,
                     .op_dup = 11};
}

static fake_llama *fake_open(uint32_t streams, bool quantised) {
    fake_llama *fake = calloc(1, sizeof(*fake));
    the_fake = fake;
    fake_abi(&fake->abi);
    fake->streams = streams;
    fake->stop_at_layer = -1;
    fake->quantised = quantised;
    for (uint32_t i = 0; i < 2 * F_LAYERS; i++) {
        tensor *t = &fake->cache[i];
        const size_t row = psi_os_page_bytes() / F_BLOCK; /* at least what a cell needs; a block is a page */
        *t = (tensor){.type = TYPE_F32, .ne = {F_DIMS, F_CELLS, streams, 1}, .nb = {4, row, row * F_CELLS, 0}};
        t->nb[3] = t->nb[2] * streams;
        if (quantised && i % 2 == 0) {
            *t = (tensor){.type = 8, .ne = {F_DIMS, F_CELLS, streams, 1}, .nb = {34, 34, 34 * F_CELLS, 0}};
            t->nb[3] = t->nb[2] * streams;
        }
        (void)snprintf(t->name, sizeof(t->name), "cache_%c_l%u", i % 2 == 0 ? 'k' : 'v', i / 2);
    }
    void *buffer = psi_kv_take(&fake->abi, NULL, fake, NULL);
    fake->kv = psi_kv_of_buffer(buffer);
    return fake;
}

static void fake_close(fake_llama *fake) {
    psi_kv_lock();
    psi_kv *kv = psi_kv_unlink(fake->kv->buffer);
    psi_kv_unlock();
    psi_kv_destroy(kv);
    free(fake);
}

static void fake_layer(fake_llama *fake, uint32_t layer) {
    tensor *k = &fake->cache[2 * layer], *v = &fake->cache[2 * layer + 1];
    fake->nodes[2 + 2 * layer] = (tensor){.op = OP_SET_ROWS, .view_src = k, .data = k->data, .ne = {F_DIMS, 1, 1, 1}};
    fake->nodes[2 + 2 * layer].src[1] = &fake->indices;
    fake->nodes[3 + 2 * layer] = (tensor){.op = OP_SET_ROWS, .view_src = v, .data = v->data, .ne = {F_DIMS, 1, 1, 1}};
    fake->nodes[3 + 2 * layer].src[1] = &fake->indices;
    tensor *view = &fake->views[layer];
    *view = (tensor){.type = TYPE_F32, .op = 7, .view_src = k, .ne = {F_DIMS, F_CELLS, 1, fake->step_streams}};
    view->data = row_of(k, fake->first_stream, 0);
    fake->casts[layer] = fake->input;
    fake->casts[layer].op = OP_CPY;
    fake->casts[layer].data = fake->cast[layer];
    fake->casts[layer].src[0] = &fake->input;
    tensor *before = &fake->nodes[NODES_BEFORE + 2 * layer], *attention = before + 1;
    *before = (tensor){.op = OP_OTHER};
    *attention = (tensor){.op = OP_FLASH};
    const float scale = 1;
    memcpy(attention->op_params, &scale, sizeof(scale));
    attention->src[0] = &fake->nodes[0];
    attention->src[1] = view;
    attention->src[3] = &fake->casts[fake->own_casts ? layer : 0];
}

/* A step of `rows` tokens in each of `streams` streams, written from cell `at` on; row r sees the cells `sees` of its
 * stream up to its own. Set queries and mask anew before fake_step where it is to be otherwise. */
static void fake_prepare(fake_llama *fake, uint32_t first_stream, uint32_t streams, uint32_t at, uint32_t rows) {
    fake->rows = rows;
    fake->first_stream = first_stream;
    fake->step_streams = streams;
    for (uint32_t i = 0; i < rows * streams; i++) {
        uint32_t stream = first_stream + i / rows;
        fake->index[i] = (int64_t)stream * F_CELLS + at + i % rows;
        for (uint32_t cell = 0; cell < F_CELLS; cell++) {
            bool sees = cell <= at + i % rows && (fake->written[stream * F_CELLS + cell] || cell >= at);
            fake->mask[i * F_CELLS + cell] = sees ? 0 : -HUGE_VALF;
        }
        memset(&fake->query[i * F_DIMS], 0, F_DIMS * sizeof(float));
    }
    int64_t row_bytes = F_CELLS * sizeof(float), query_bytes = F_DIMS * sizeof(float);
    fake->indices = (tensor){.type = TYPE_I64, .ne = {rows * streams, 1, 1, 1}, .data = fake->index};
    fake->input = (tensor){.type = TYPE_F32, .ne = {F_CELLS, rows, 1, streams}, .data = fake->mask, .name = "mask"};
    fake->input.nb[0] = 4;
    fake->input.nb[1] = (size_t)row_bytes;
    fake->input.nb[2] = fake->input.nb[3] = (size_t)row_bytes * rows;
    tensor *q = &fake->nodes[0];
    *q = (tensor){.type = TYPE_F32, .op = OP_OTHER, .ne = {F_DIMS, rows, 1, streams}, .data = fake->query};
    q->nb[0] = 4;
    q->nb[1] = (size_t)query_bytes;
    q->nb[2] = q->nb[3] = (size_t)query_bytes * rows;
    fake->nodes[1] = (tensor){.op = OP_OTHER};
    for (uint32_t layer = 0; layer < F_LAYERS; layer++) {
        fake_layer(fake, layer);
    }
}

/* All of the step's queries ask for a block of their stream. */
static inline void fake_ask_for(fake_llama *fake, uint32_t block) {
    for (uint32_t i = 0; i < fake->rows * fake->step_streams; i++) {
        fake->query[i * F_DIMS + block] = 8;
    }
}

static int fake_step(fake_llama *fake, void *sched) {
    psi_llama_step step = {.kv_count = 0};
    if (!psi_llama_step_begin(&step, &fake->abi, fake)) {
        return STATUS_ABORTED;
    }
    int status = psi_hooks_compute(&step, &fake->abi, sched, fake);
    psi_llama_step_end(&step, status == 0);
    return status;
}

#endif
