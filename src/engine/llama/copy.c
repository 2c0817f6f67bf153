/* copy.c - a sequence is copied to one of another stream (llama_memory_seq_cp with a cache a sequence): the engine
 * copies each tensor's whole stream, most of it empty. Here the pool's blocks are copied, each as it is. Engine's
 * thread. */
#include <string.h>

#include "engine/llama/kv.h"
#include "pool/pool.h"

typedef struct copy {
    psi_kv *kv;
    const kv_tensor *which;
    uint32_t from, to; /* streams */
} copy;

/* The stream that `t` shows, whole; kv->streams: it shows something else. */
static uint32_t stream_of(const psi_kv *kv, const kv_tensor *which, const tensor *t) {
    size_t offset = (size_t)((const unsigned char *)t->data - which->data), bytes = which->t->nb[2];
    bool whole = kv->abi->nbytes(t) == bytes && offset % bytes == 0 && t->nb[1] == which->t->nb[1];
    return whole ? (uint32_t)(offset / bytes) : kv->streams;
}

static bool read_copy(copy *c, const tensor *from, const tensor *to) {
    const kv_tensor *to_which = NULL;
    if (from->data == NULL || to->data == NULL) {
        return false;
    }
    c->kv = psi_kv_of_address(from->data, &c->which);
    if (c->kv == NULL || psi_kv_of_address(to->data, &to_which) != c->kv || c->which == NULL || c->which != to_which ||
        c->kv->pool == NULL || c->kv->given_up) {
        return false;
    }
    c->from = stream_of(c->kv, c->which, from);
    c->to = stream_of(c->kv, c->which, to);
    return c->from < c->kv->streams && c->to < c->kv->streams && c->from != c->to;
}

/* ---- Once for all tensors ----------------------------------------------------------------------- */

static void copy_books(const copy *c) {
    psi_kv *kv = c->kv;
    uint64_t from = (uint64_t)c->from * kv->cells, to = (uint64_t)c->to * kv->cells;
    for (uint32_t i = 0; i < kv->cells; i++) {
        bool lost = psi_kv_bit(kv->lost, from + i), was = psi_kv_bit(kv->lost, to + i);
        psi_tokens_copy(kv, from + i, kv, to + i);
        psi_kv_set_bit(kv->has, to + i, psi_kv_bit(kv->has, from + i));
        psi_kv_set_bit(kv->lost, to + i, lost);
        kv->lost_cells = kv->lost_cells + lost - was;
    }
}

/* What is in memory is copied there, tensor by tensor; what was lost is lost in both, and hidden cell by cell. */
static void ready_block(psi_kv *kv, uint32_t from, uint32_t to) {
    psi_pool *pool = kv->pool;
    psi_block_state state = psi_block_get_state(pool, from);
    psi_worth_changed(kv->worth, to);
    if (state == PSI_BLOCK_STORED && psi_block_copy_stored(pool, from, to) == 0) {
        psi_worth_copied(kv->worth, from, to);
        return;
    }
    psi_block_free(pool, to);
    if (state != PSI_BLOCK_EMPTY) {
        (void)psi_block_restore(pool, from); /* and it does not go before the next step */
        (void)psi_block_write(pool, to);
    }
}

static void begin(const copy *c) {
    psi_kv *kv = c->kv;
    for (uint32_t i = 0; i < kv->stream_blocks; i++) {
        ready_block(kv, c->from * kv->stream_blocks + i, c->to * kv->stream_blocks + i);
    }
    copy_books(c);
    kv->copy_from = c->from;
    kv->copy_to = c->to;
    memset(kv->copied, 0, sizeof(kv->copied));
}

/* ---- A tensor ----------------------------------------------------------------------------------- */

static void copy_piece(const copy *c, uint32_t index) {
    const psi_kv *kv = c->kv;
    const tensor *t = c->which->t;
    bool transposed = kv->v_transposed && !c->which->is_key;
    size_t columns = transposed ? (size_t)t->ne[0] : 1, cell = transposed ? t->nb[0] : t->nb[1];
    uint32_t first = index * kv->block_cells, left = kv->cells - first;
    size_t bytes = (left < kv->block_cells ? left : kv->block_cells) * cell;
    for (size_t i = 0; i < columns; i++) {
        size_t offset = (i * kv->cells + first) * cell;
        memcpy(c->which->data + c->to * t->nb[2] + offset, c->which->data + c->from * t->nb[2] + offset, bytes);
    }
}

static void copy_tensor(const copy *c) {
    psi_kv *kv = c->kv;
    for (uint32_t i = 0; i < kv->stream_blocks; i++) {
        if (psi_block_get_state(kv->pool, c->to * kv->stream_blocks + i) == PSI_BLOCK_RESIDENT) {
            copy_piece(c, i);
        }
    }
}

bool psi_kv_copy_stream(const tensor *from, const tensor *to) {
    copy c = {.kv = NULL};
    psi_kv_lock();
    bool good = read_copy(&c, from, to);
    if (good) {
        size_t at = (size_t)(c.which - c.kv->tensors);
        if (c.kv->copied[at] || c.kv->copy_from != c.from || c.kv->copy_to != c.to) {
            begin(&c);
        }
        c.kv->copied[at] = 1;
        copy_tensor(&c);
    }
    psi_kv_unlock();
    return good;
}
