/* kv.c - takes over the memory of llama.cpp's KV caches and keeps their cells' books. Called from the stand-ins on the
 * engine's threads, under one lock: contexts on several threads share the list, not the caches. */
#include "engine/llama/kv.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/llama/hidden.h"
#include "engine/llama/recompute.h"
#include "os/os.h"
#include "pool/settings.h"

#define LONG_STEP_US 20000u /* a shorter step is a safe point soon enough */

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static psi_kv *list;

void psi_kv_lock(void) { pthread_mutex_lock(&list_lock); }

void psi_kv_unlock(void) { pthread_mutex_unlock(&list_lock); }

void psi_kv_handle_forks(void) { (void)pthread_atfork(psi_kv_lock, psi_kv_unlock, psi_kv_unlock); }

psi_kv *psi_kv_first(void) { return list; }

psi_kv *psi_kv_of_buffer(const void *buffer) {
    for (psi_kv *kv = list; kv != NULL; kv = kv->next) {
        if (kv->buffer == buffer) {
            return kv;
        }
    }
    return NULL;
}

psi_kv *psi_kv_of_address(const void *address, const kv_tensor **which) {
    const unsigned char *at = address;
    for (psi_kv *kv = list; kv != NULL; kv = kv->next) {
        if (at < kv->arena || at >= kv->arena + kv->arena_bytes) {
            continue;
        }
        for (uint32_t i = 0; which != NULL && i < kv->tensor_count; i++) {
            if (at >= kv->tensors[i].data && at < kv->tensors[i].data + kv->tensors[i].bytes) {
                *which = &kv->tensors[i];
            }
        }
        return kv;
    }
    return NULL;
}

/* ---- Recognising a KV cache -------------------------------------------------------------------- */

static bool is_named(const char *name, const char *prefix) {
    size_t length = strlen(prefix);
    if (strncmp(name, prefix, length) != 0 || name[length] < '0' || name[length] > '9') {
        return false;
    }
    return strspn(name + length, "0123456789") == strlen(name + length);
}

static bool is_key(const tensor *t) { return is_named(t->name, "cache_k_l"); }

/* Every tensor of the context is a layer's K or V, or a view of one, of the same cells and streams. */
static bool is_kv_context(const psi_abi *abi, void *context, const tensor *first) {
    for (const tensor *t = first; t != NULL; t = abi->get_next_tensor(context, t)) {
        if (t->view_src != NULL) {
            continue;
        }
        if (!is_key(t) && !is_named(t->name, "cache_v_l")) {
            return false;
        }
        if (t->ne[1] != first->ne[1] || t->ne[2] != first->ne[2] || !psi_abi_tensor_fits(abi, t)) {
            return false;
        }
    }
    return first->ne[1] <= UINT32_MAX / first->ne[2];
}

/* ---- Placing it -------------------------------------------------------------------------------- */

static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

static bool add_tensors(psi_kv *kv, void *context) {
    const psi_abi *abi = kv->abi;
    size_t page = psi_os_page_bytes();
    for (tensor *t = abi->get_first_tensor(context); t != NULL; t = abi->get_next_tensor(context, t)) {
        if (t->view_src != NULL) {
            continue;
        }
        if (kv->tensor_count == KV_MAX_TENSORS) {
            return false;
        }
        uint32_t layer = (uint32_t)strtoul(t->name + strlen("cache_k_l"), NULL, 10); /* V's prefix is as long */
        kv->tensors[kv->tensor_count++] =
            (kv_tensor){.t = t, .bytes = abi->nbytes(t), .is_key = is_key(t), .layer = layer};
        kv->arena_bytes += round_up(abi->nbytes(t), page); /* each tensor begins on a page */
    }
    return true;
}

static bool place_tensors(psi_kv *kv, void *context) {
    const psi_abi *abi = kv->abi;
    unsigned char *next = kv->arena;
    for (uint32_t i = 0; i < kv->tensor_count; i++) {
        kv->tensors[i].data = next;
        if (abi->tensor_alloc(kv->buffer, kv->tensors[i].t, next) != 0) {
            return false;
        }
        next += round_up(kv->tensors[i].bytes, psi_os_page_bytes());
    }
    for (tensor *t = abi->get_first_tensor(context); t != NULL; t = abi->get_next_tensor(context, t)) {
        if (t->view_src != NULL && t->buffer == NULL && abi->view_init(t) != 0) {
            return false;
        }
    }
    return true;
}

/* Cells a block: the smallest multiple of 32 (PSI_CACHE_BLOCK_CELLS) that is whole pages in each row-major tensor, up
 * to 256: past that a page that two blocks share goes back when both are out. */
static uint32_t choose_block_cells(const psi_kv *kv, uint32_t least) {
    size_t page = psi_os_page_bytes();
    for (uint32_t cells = least; cells <= 256; cells += least) {
        bool whole = true;
        for (uint32_t i = 0; i < kv->tensor_count; i++) {
            whole = whole && cells * kv->tensors[i].t->nb[1] % page == 0;
        }
        if (whole) {
            return cells;
        }
    }
    return least;
}

static bool make_books(psi_kv *kv) {
    const tensor *t = kv->tensors[0].t;
    kv->cells = (uint32_t)t->ne[1];
    kv->streams = (uint32_t)t->ne[2];
    uint64_t least = psi_settings_bytes(NULL, "BLOCK_CELLS", 32);
    kv->block_cells = choose_block_cells(kv, least >= 1 && least <= 4096 ? (uint32_t)least : 32);
    kv->long_step_us = psi_settings_bytes(NULL, "LONG_STEP_US", LONG_STEP_US);
    kv->stream_blocks = (kv->cells + kv->block_cells - 1) / kv->block_cells;
    kv->blocks = kv->stream_blocks * kv->streams;
    size_t words = ((size_t)kv->cells * kv->streams + 63) / 64;
    kv->marks = calloc(kv->blocks, 1);
    kv->states = calloc(kv->blocks, 1);
    kv->before = calloc(kv->blocks, 1);
    kv->has = calloc(words, sizeof(uint64_t));
    kv->lost = calloc(words, sizeof(uint64_t));
    if (psi_llama_recomputes() && !kv->is_hidden) {
        kv->tokens = calloc((size_t)kv->cells * kv->streams, sizeof(*kv->tokens));
        kv->partial = calloc(words, sizeof(uint64_t));
        if (kv->tokens == NULL || kv->partial == NULL) {
            return false;
        }
    }
    return kv->marks != NULL && kv->states != NULL && kv->before != NULL && kv->has != NULL && kv->lost != NULL;
}

void psi_kv_destroy(psi_kv *kv) {
    psi_pool_destroy(kv->pool);
    psi_worth_free(kv->worth);
    psi_os_unreserve(kv->arena, kv->arena_bytes);
    free(kv->marks);
    free(kv->states);
    free(kv->before);
    free(kv->has);
    free(kv->lost);
    free(kv->tokens);
    free(kv->partial);
    free(kv);
}

static psi_kv *make_kv(const psi_abi *abi, void *context) {
    psi_kv *kv = calloc(1, sizeof(*kv));
    if (kv == NULL) {
        return NULL;
    }
    kv->abi = abi;
    kv->is_hidden = psi_hidden_is_being_made();
    bool good = add_tensors(kv, context) && make_books(kv);
    kv->arena = good ? psi_os_reserve(kv->arena_bytes) : NULL;
    kv->buffer = kv->arena != NULL ? abi->cpu_buffer_from_ptr(kv->arena, kv->arena_bytes) : NULL;
    if (kv->buffer == NULL) {
        psi_kv_destroy(kv);
        return NULL;
    }
    return kv;
}

/* Views come first where the engine copies a sequence's state to a second buffer, and bear the cache's names. */
static const tensor *first_own(const psi_abi *abi, void *context) {
    const tensor *t = abi->get_first_tensor(context);
    while (t != NULL && t->view_src != NULL) {
        t = abi->get_next_tensor(context, t);
    }
    return t;
}

void *psi_kv_take(const psi_abi *abi, const void *caller, void *context, void *buffer_type) {
    const tensor *first = first_own(abi, context);
    if (first == NULL || strncmp(first->name, "cache_", 6) != 0) {
        return NULL; /* weights and the like: nothing to say */
    }
    if (!abi->buft_is_host(buffer_type)) {
        psi_llama_say(PSI_LOG_WARN,
                      "this KV cache lies in a device's memory: left to the engine (run with -nkvo to keep it in RAM)");
        return NULL;
    }
    if (!is_kv_context(abi, context, first)) {
        psi_hidden_note_unknown_cache();
        psi_llama_say(PSI_LOG_WARN, "a cache of tensors like %s is of a kind not known here: left to the engine",
                      first->name);
        return NULL;
    }
    psi_kv *kv = psi_llama_cache() != NULL ? make_kv(abi, context) : NULL;
    if (kv == NULL) {
        return NULL;
    }
    kv->code = caller;
    if (!place_tensors(kv, context)) { /* some lie in the arena already, so it stays: the engine fails on the others */
        psi_llama_say(PSI_LOG_ERROR, "the engine refused the KV tensors' place: the context cannot be made");
        return NULL;
    }
    psi_llama_say(PSI_LOG_INFO,
                  "managing a KV cache of %u cells x %u stream(s), %zu MiB of address space, blocks of %u cells",
                  kv->cells, kv->streams, kv->arena_bytes >> 20, kv->block_cells);
    psi_kv_lock();
    kv->next = list;
    list = kv;
    psi_kv_unlock();
    return kv->buffer;
}

psi_kv *psi_kv_unlink(const void *buffer) {
    for (psi_kv **link = &list; *link != NULL; link = &(*link)->next) {
        psi_kv *kv = *link;
        if (kv->buffer == buffer) {
            *link = kv->next;
            return kv;
        }
    }
    return NULL;
}

/* ---- The pool ---------------------------------------------------------------------------------- */

/* The pool dropped a block: what its cells held is lost, and they stay hidden until they are written anew. */
static void block_moved(void *user, psi_block_id block, psi_block_state from, psi_block_state to) {
    psi_kv *kv = user;
    (void)from;
    if (to != PSI_BLOCK_DROPPED) {
        return;
    }
    uint32_t stream = block / kv->stream_blocks, first = block % kv->stream_blocks * kv->block_cells;
    for (uint32_t c = first; c < first + kv->block_cells && c < kv->cells; c++) {
        uint64_t cell = (uint64_t)stream * kv->cells + c;
        if (psi_kv_bit(kv->has, cell) && !psi_kv_bit(kv->lost, cell)) {
            psi_kv_set_bit(kv->lost, cell, true);
            kv->lost_cells++;
        }
    }
}

/* Of a block's cells. */
static bool any_bit(const psi_kv *kv, const uint64_t *bits, uint32_t block) {
    uint32_t first = block % kv->stream_blocks * kv->block_cells;
    uint64_t row = (uint64_t)(block / kv->stream_blocks) * kv->cells;
    for (uint32_t c = first; c < first + kv->block_cells && c < kv->cells; c++) {
        if (psi_kv_bit(bits, row + c)) {
            return true;
        }
    }
    return false;
}

bool psi_kv_has_lost(const psi_kv *kv, uint32_t block) { return any_bit(kv, kv->lost, block); }

static uint32_t block_of_cell(const psi_kv *kv, uint64_t cell) {
    return (uint32_t)(cell / kv->cells) * kv->stream_blocks + (uint32_t)(cell % kv->cells) / kv->block_cells;
}

void psi_kv_note_cell(psi_kv *kv, uint64_t cell) {
    if (cell >= (uint64_t)kv->cells * kv->streams) {
        return;
    }
    psi_kv_set_bit(kv->has, cell, true);
    if (psi_kv_bit(kv->lost, cell)) {
        psi_kv_set_bit(kv->lost, cell, false);
        kv->lost_cells--;
    }
    kv->step_last = cell;
    kv->last_cells[kv->noted++ % KV_LAST_CELLS] = cell;
    kv->wrote = true;
    psi_tokens_forget(kv, cell);
    kv->marks[block_of_cell(kv, cell)] |= PSI_MARK_WRITE;
    psi_worth_changed(kv->worth, block_of_cell(kv, cell));
}

static psi_plane plane_of(const psi_kv *kv, const kv_tensor *k, uint32_t stream, bool transposed) {
    const tensor *t = k->t;
    psi_plane plane = {.base = k->data + stream * t->nb[2]};
    if (transposed) {
        plane.columns = (size_t)t->ne[0];
        plane.column_stride_bytes = kv->cells * t->nb[0];
        plane.block_bytes = kv->block_cells * t->nb[0];
        plane.column_bytes = kv->cells * t->nb[0];
    } else {
        plane.columns = 1;
        plane.block_bytes = kv->block_cells * t->nb[1];
        plane.column_bytes = kv->cells * t->nb[1];
    }
    return plane;
}

/* What was written before the pool was there (a state that was loaded first) is resident, and whole: not the work of
 * the step that the pool is made in. What that one writes is marked, or will be, as in any step. */
static void take_what_is_there(psi_kv *kv) {
    for (uint32_t block = 0; block < kv->blocks; block++) {
        if (any_bit(kv, kv->has, block)) {
            psi_block_found(kv->pool, block, (kv->marks[block] & PSI_MARK_WRITE) != 0);
        }
    }
}

void psi_kv_open_pool(psi_kv *kv, bool v_transposed) {
    kv->v_transposed = v_transposed;
    psi_plane *planes = calloc((size_t)kv->streams * kv->tensor_count, sizeof(*planes));
    if (planes == NULL) {
        kv->given_up = true;
        return;
    }
    for (uint32_t s = 0; s < kv->streams; s++) {
        for (uint32_t i = 0; i < kv->tensor_count; i++) {
            planes[s * kv->tensor_count + i] = plane_of(kv, &kv->tensors[i], s, v_transposed && !kv->tensors[i].is_key);
        }
    }
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.name = kv->tensors[0].t->name;
    options.blocks = kv->stream_blocks;
    options.lanes = kv->streams;
    options.planes = planes;
    options.planes_per_lane = kv->tensor_count;
    options.keep_newest = 2 * kv->streams;
    options.moved = block_moved;
    options.moved_user = kv;
    kv->pool = psi_pool_adopt(psi_llama_cache(), &options);
    free(planes);
    if (kv->pool == NULL) {
        psi_llama_say(PSI_LOG_ERROR, "no pool for the KV cache (error %d): it is committed lazily, and never trimmed",
                      errno);
        kv->given_up = true;
        return;
    }
    kv->worth = psi_worth_make(kv);
    take_what_is_there(kv);
}

void psi_kv_clear(psi_kv *kv) {
    size_t words = ((size_t)kv->cells * kv->streams + 63) / 64;
    memset(kv->has, 0, words * sizeof(uint64_t));
    memset(kv->lost, 0, words * sizeof(uint64_t));
    memset(kv->marks, 0, kv->blocks);
    kv->lost_cells = 0;
    psi_tokens_forget_all(kv);
    psi_worth_changed_all(kv->worth);
    if (kv->pool != NULL) {
        psi_pool_clear(kv->pool);
    }
    (void)psi_os_give_back(kv->arena, kv->arena_bytes); /* reads as zero, which is what clearing means */
}

/* ---- Reads and writes outside a graph ----------------------------------------------------------- */

_Thread_local const void *psi_llama_context;

void psi_kv_copy_books(const kv_tensor *from_tensor, const psi_kv *from, size_t from_offset, const kv_tensor *to_tensor,
                       psi_kv *to, size_t to_offset, size_t count) {
    if (!from_tensor->is_key || !to_tensor->is_key) {
        return; /* V's cells are K's */
    }
    uint64_t first = from_offset / from_tensor->t->nb[1], target = to_offset / to_tensor->t->nb[1];
    for (uint64_t i = 0; i < count / from_tensor->t->nb[1]; i++) {
        psi_tokens_copy(from, first + i, to, target + i);
        bool lost = psi_kv_bit(from->lost, first + i), was = psi_kv_bit(to->lost, target + i);
        psi_kv_set_bit(to->lost, target + i, lost);
        to->lost_cells = to->lost_cells + lost - was;
    }
}

/* Cells [first, last], with their streams: stream * cells + cell. */
typedef struct cell_range {
    uint64_t first, last;
} cell_range;

/* The cells of [offset, offset + count) in a tensor: exact for rows and within one column of a transposed V; all of the
 * streams' for what crosses its columns. */
static cell_range cells_of(const psi_kv *kv, const kv_tensor *which, size_t offset, size_t count) {
    const tensor *t = which->t;
    size_t end = offset + count - 1, row = t->nb[1], column = kv->cells * t->nb[0];
    if (which->is_key || !kv->v_transposed) {
        return (cell_range){offset / row, end / row};
    }
    uint64_t stream = offset / t->nb[2], last_stream = end / t->nb[2];
    if (offset / column != end / column) {
        return (cell_range){stream * kv->cells, (last_stream + 1) * kv->cells - 1};
    }
    return (cell_range){stream * kv->cells + offset % column / t->nb[0], stream * kv->cells + end % column / t->nb[0]};
}

static uint32_t count_lost(const psi_kv *kv, cell_range cells) {
    uint32_t lost = 0;
    for (uint64_t cell = cells.first; cell <= cells.last && kv->lost_cells > 0; cell++) {
        lost += psi_kv_bit(kv->lost, cell);
    }
    return lost;
}

/* A V tensor's cells were or will be noted with its K. */
static void note_rows(psi_kv *kv, const kv_tensor *which, cell_range cells) {
    for (uint64_t cell = cells.first; which->is_key && cell <= cells.last; cell++) {
        psi_kv_note_cell(kv, cell);
    }
}

/* Bytes that were dropped leave the context by a way that has no mask: nothing can hide them there. */
static void say_lost(psi_kv *kv, cell_range cells) {
    uint32_t lost = kv->lost_said ? 0 : count_lost(kv, cells);
    if (lost > 0) {
        kv->lost_said = true;
        psi_llama_say(
            PSI_LOG_ERROR,
            "a state is saved with %u cells that are dropped: they are zero in it; keep a store (PSI_CACHE_STORE=file)",
            lost);
    }
}

static void touch_block(psi_kv *kv, uint32_t block, psi_kv_access access) {
    if (access == KV_WROTE) {
        psi_block_settle(kv->pool, block);
    } else if (access == KV_WRITE) {
        (void)psi_block_write(kv->pool, block);
    } else {
        (void)psi_block_restore(kv->pool, block); /* and it does not go before the next step */
    }
}

void psi_kv_touch(psi_kv *kv, const kv_tensor *which, const void *address, size_t count, psi_kv_access access) {
    if (count == 0 || which == NULL) {
        return;
    }
    cell_range cells = cells_of(kv, which, (size_t)((const unsigned char *)address - which->data), count);
    if (access == KV_WRITE) {
        note_rows(kv, which, cells);
    } else if (access == KV_READ) {
        say_lost(kv, cells);
    }
    if (kv->pool == NULL) {
        return;
    }
    for (uint32_t i = block_of_cell(kv, cells.first); i <= block_of_cell(kv, cells.last) && i < kv->blocks; i++) {
        /* what is empty stays so until its K is written: V's range may be wider than what is meant */
        if (which->is_key || psi_block_get_state(kv->pool, i) != PSI_BLOCK_EMPTY) {
            touch_block(kv, i, access);
        }
    }
}

void psi_kv_make_whole(psi_kv *kv) {
    psi_tokens_forget_all(kv);
    psi_worth_changed_all(kv->worth);
    for (uint32_t i = 0; kv->pool != NULL && i < kv->blocks; i++) {
        if (psi_block_get_state(kv->pool, i) != PSI_BLOCK_EMPTY) {
            (void)psi_block_write(kv->pool, i);
        }
    }
}
