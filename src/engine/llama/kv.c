/* kv.c - takes over the memory of llama.cpp's KV caches and keeps their cells' books. Called from the stand-ins on the
 * engine's threads, under one lock: contexts on several threads share the list, not the caches. */
#include "engine/llama/kv.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"
#include "pool/settings.h"

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
        kv->tensors[kv->tensor_count++] = (kv_tensor){.t = t, .bytes = abi->nbytes(t), .is_key = is_key(t)};
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
    kv->stream_blocks = (kv->cells + kv->block_cells - 1) / kv->block_cells;
    kv->blocks = kv->stream_blocks * kv->streams;
    size_t words = ((size_t)kv->cells * kv->streams + 63) / 64;
    kv->marks = calloc(kv->blocks, 1);
    kv->states = calloc(kv->blocks, 1);
    kv->has = calloc(words, sizeof(uint64_t));
    kv->lost = calloc(words, sizeof(uint64_t));
    return kv->marks != NULL && kv->states != NULL && kv->has != NULL && kv->lost != NULL;
}

void psi_kv_destroy(psi_kv *kv) {
    psi_pool_destroy(kv->pool);
    psi_worth_free(kv->worth);
    psi_os_unreserve(kv->arena, kv->arena_bytes);
    free(kv->marks);
    free(kv->states);
    free(kv->has);
    free(kv->lost);
    free(kv);
}

static psi_kv *make_kv(const psi_abi *abi, void *context) {
    psi_kv *kv = calloc(1, sizeof(*kv));
    if (kv == NULL) {
        return NULL;
    }
    kv->abi = abi;
    bool good = add_tensors(kv, context) && make_books(kv);
    kv->arena = good ? psi_os_reserve(kv->arena_bytes) : NULL;
    kv->buffer = kv->arena != NULL ? abi->cpu_buffer_from_ptr(kv->arena, kv->arena_bytes) : NULL;
    if (kv->buffer == NULL) {
        psi_kv_destroy(kv);
        return NULL;
    }
    return kv;
}

void *psi_kv_take(const psi_abi *abi, void *context, void *buffer_type) {
    const tensor *first = abi->get_first_tensor(context);
    if (first == NULL || strncmp(first->name, "cache_", 6) != 0) {
        return NULL; /* weights and the like: nothing to say */
    }
    if (!abi->buft_is_host(buffer_type)) {
        psi_llama_say(PSI_LOG_WARN,
                      "this KV cache lies in a device's memory: left to the engine (run with -nkvo to keep it in RAM)");
        return NULL;
    }
    if (!is_kv_context(abi, context, first)) {
        psi_llama_say(PSI_LOG_WARN, "a cache of tensors like %s is of a kind not known here: left to the engine",
                      first->name);
        return NULL;
    }
    psi_kv *kv = psi_llama_cache() != NULL ? make_kv(abi, context) : NULL;
    if (kv == NULL) {
        return NULL;
    }
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

static bool bit(const uint64_t *bits, uint64_t at) { return (bits[at / 64] >> (at % 64) & 1) != 0; }

static void set_bit(uint64_t *bits, uint64_t at, bool value) {
    uint64_t mask = UINT64_C(1) << (at % 64);
    bits[at / 64] = value ? bits[at / 64] | mask : bits[at / 64] & ~mask;
}

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
        if (bit(kv->has, cell) && !bit(kv->lost, cell)) {
            set_bit(kv->lost, cell, true);
            kv->lost_cells++;
        }
    }
}

static uint32_t block_of_cell(const psi_kv *kv, uint64_t cell) {
    return (uint32_t)(cell / kv->cells) * kv->stream_blocks + (uint32_t)(cell % kv->cells) / kv->block_cells;
}

void psi_kv_note_cell(psi_kv *kv, uint64_t cell) {
    if (cell >= (uint64_t)kv->cells * kv->streams) {
        return;
    }
    set_bit(kv->has, cell, true);
    if (bit(kv->lost, cell)) {
        set_bit(kv->lost, cell, false);
        kv->lost_cells--;
    }
    kv->step_last = cell;
    kv->last_cells[kv->noted++ % KV_LAST_CELLS] = cell;
    kv->wrote = true;
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

/* What was written before the pool was there (a state that was loaded first) counts as resident. */
static void mark_what_is_there(psi_kv *kv) {
    for (uint64_t cell = 0; cell < (uint64_t)kv->cells * kv->streams; cell++) {
        if (bit(kv->has, cell)) {
            kv->marks[block_of_cell(kv, cell)] |= PSI_MARK_WRITE;
        }
    }
    (void)psi_pool_mark(kv->pool, kv->marks);
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
    mark_what_is_there(kv);
}

void psi_kv_clear(psi_kv *kv) {
    size_t words = ((size_t)kv->cells * kv->streams + 63) / 64;
    memset(kv->has, 0, words * sizeof(uint64_t));
    memset(kv->lost, 0, words * sizeof(uint64_t));
    memset(kv->marks, 0, kv->blocks);
    kv->lost_cells = 0;
    psi_worth_changed_all(kv->worth);
    if (kv->pool != NULL) {
        psi_pool_clear(kv->pool);
    }
    (void)psi_os_give_back(kv->arena, kv->arena_bytes); /* reads as zero, which is what clearing means */
}

/* ---- Reads and writes outside a graph ----------------------------------------------------------- */

/* Cells of a key's rows; a V tensor's cells were or will be noted with its K. */
static void note_rows(psi_kv *kv, const kv_tensor *which, const unsigned char *address, size_t count) {
    if (which->is_key && count > 0) {
        size_t row = which->t->nb[1], offset = (size_t)(address - which->data);
        for (uint64_t cell = offset / row; cell <= (offset + count - 1) / row; cell++) {
            psi_kv_note_cell(kv, cell);
        }
    }
}

_Thread_local const void *psi_llama_context;

void psi_kv_copy_books(const kv_tensor *from_tensor, const psi_kv *from, size_t from_offset, const kv_tensor *to_tensor,
                       psi_kv *to, size_t to_offset, size_t count) {
    if (!from_tensor->is_key || !to_tensor->is_key || from->lost_cells + to->lost_cells == 0) {
        return; /* V's cells are K's */
    }
    uint64_t first = from_offset / from_tensor->t->nb[1], target = to_offset / to_tensor->t->nb[1];
    for (uint64_t i = 0; i < count / from_tensor->t->nb[1]; i++) {
        bool lost = bit(from->lost, first + i), was = bit(to->lost, target + i);
        set_bit(to->lost, target + i, lost);
        to->lost_cells = to->lost_cells + lost - was;
    }
}

void psi_kv_copied(const kv_tensor *from_tensor, const psi_kv *from, size_t from_offset, const kv_tensor *to_tensor,
                   psi_kv *to, size_t to_offset, size_t count) {
    size_t from_stream = from_tensor->t->nb[2], to_stream = to_tensor->t->nb[2];
    bool whole = count == from_stream && count == to_stream && from_offset % count == 0 && to_offset % count == 0;
    if (!whole || from->pool == NULL || to->pool == NULL || from->stream_blocks != to->stream_blocks) {
        return;
    }
    uint32_t first = (uint32_t)(from_offset / count) * from->stream_blocks;
    uint32_t target = (uint32_t)(to_offset / count) * to->stream_blocks;
    for (uint32_t i = 0; i < from->stream_blocks; i++) {
        if (psi_block_get_state(from->pool, first + i) == PSI_BLOCK_EMPTY) {
            psi_block_free(to->pool, target + i);
        }
    }
}

/* Bytes that were dropped leave the context by a way that has no mask: nothing can hide them there. */
static void say_lost(psi_kv *kv) {
    if (kv->lost_cells > 0 && !kv->lost_said) {
        kv->lost_said = true;
        psi_llama_say(
            PSI_LOG_ERROR,
            "a state is saved while %u cells are dropped: they are zero in it; keep a store (PSI_CACHE_STORE=file)",
            kv->lost_cells);
    }
}

static void touch_block(psi_kv *kv, uint32_t block, bool write) {
    if (write) {
        (void)psi_block_write(kv->pool, block);
    } else {
        (void)psi_block_restore(kv->pool, block); /* and it does not go before the next step */
    }
}

/* Blocks of [address, address + count): exact for rows, all of the stream's for what crosses a transposed V's columns.
 */
static void blocks_of_range(const psi_kv *kv, const kv_tensor *which, size_t offset, size_t count, uint32_t *first,
                            uint32_t *last) {
    const tensor *t = which->t;
    uint32_t stream = (uint32_t)(offset / t->nb[2]), last_stream = (uint32_t)((offset + count - 1) / t->nb[2]);
    *first = stream * kv->stream_blocks;
    *last = (last_stream + 1) * kv->stream_blocks - 1;
    bool rows = which->is_key || !kv->v_transposed;
    if (rows && stream == last_stream) {
        size_t row = t->nb[1], in_stream = offset % t->nb[2];
        *first = stream * kv->stream_blocks + (uint32_t)(in_stream / row) / kv->block_cells;
        *last = stream * kv->stream_blocks + (uint32_t)((in_stream + count - 1) / row) / kv->block_cells;
    }
}

void psi_kv_touch(psi_kv *kv, const kv_tensor *which, const void *address, size_t count, bool write) {
    if (count == 0 || which == NULL) {
        return;
    }
    if (write) {
        note_rows(kv, which, address, count);
    } else {
        say_lost(kv);
    }
    if (kv->pool == NULL) {
        return;
    }
    uint32_t first = 0, last = 0;
    blocks_of_range(kv, which, (size_t)((const unsigned char *)address - which->data), count, &first, &last);
    for (uint32_t i = first; i <= last && i < kv->blocks; i++) {
        /* V's rows cannot be told apart here: what is empty stays so until its K is written */
        if (which->is_key || psi_block_get_state(kv->pool, i) != PSI_BLOCK_EMPTY) {
            touch_block(kv, i, write);
        }
    }
}

void psi_kv_make_whole(psi_kv *kv) {
    psi_worth_changed_all(kv->worth);
    for (uint32_t i = 0; kv->pool != NULL && i < kv->blocks; i++) {
        if (psi_block_get_state(kv->pool, i) != PSI_BLOCK_EMPTY) {
            (void)psi_block_write(kv->pool, i);
        }
    }
}
