/* recompute.c - see recompute.h. A plan (plan.h) says what is computed. A piece that holds cells that are still there
 * is compared with them before any of it is used. */
#include "engine/llama/recompute.h"

#include <string.h>

#include "engine/llama/plan.h"
#include "os/os.h"
#include "pool/pool.h"

/* What is computed anew may differ by the order of its sums; what is of another token differs by as much as it is
 * long (psi_cells_difference, so as a square). */
#define MOST_DIFFERENCE 0.02

#define NO_ROOM_PAUSE_US 1000000u /* without room nothing is planned anew for so long */

enum { SHORT_PIECE = 64 }; /* where the time is bounded */

bool psi_llama_recomputes(void) {
    const psi_cache *cache = psi_llama_cache();
    return cache != NULL && psi_cache_recomputes(cache);
}

/* ---- Running it -------------------------------------------------------------------------------- */

typedef enum outcome { DONE, OUT_OF_TIME, NO_ROOM, FAILED } outcome;

/* A piece's cells that have bytes come to memory, and stay until the next step. */
static bool hold_cells(const psi_plan *p, uint32_t k) {
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t held = UINT32_MAX;
        for (uint32_t at = k * p->piece; at < psi_plan_piece_end(p, k); at++) {
            uint64_t cell = p->cells[i][at];
            if (psi_plan_is_there(p->kvs[i], cell) && psi_plan_block_of(p->kvs[i], cell) != held) {
                held = psi_plan_block_of(p->kvs[i], cell);
                if (psi_block_restore(p->kvs[i]->pool, held) != 0) {
                    return false; /* the store lost it: it is a target, too, from now on */
                }
            }
        }
    }
    return true;
}

/* How far what was computed lies from cells that are there, and that once saw all that it saw. */
static bool agrees(psi_plan *p, psi_hidden *hidden, uint32_t k) {
    for (uint32_t i = 0; i < p->count; i++) {
        const psi_kv *kv = p->kvs[i];
        uint32_t count = 0;
        for (uint32_t at = k * p->piece; at < psi_plan_piece_end(p, k); at++) {
            uint64_t cell = p->cells[i][at];
            if (psi_plan_is_there(kv, cell) && !psi_plan_is_partial(kv, cell)) {
                p->pairs[count++] = (psi_cell_pair){cell, psi_hidden_cells(hidden, i)[at - k * p->piece]};
            }
        }
        double apart = count > 0 ? psi_cells_difference(kv, psi_hidden_kv(hidden, i), p->pairs, count, p->scratch) : 0;
        if (count > 0) {
            psi_llama_say(PSI_LOG_DEBUG, "recomputed keys of %u cells at %u: %.6f from what was there", count,
                          k * p->piece, apart);
        }
        if (apart < 0 || apart > MOST_DIFFERENCE) {
            return false;
        }
        *psi_hidden_compared(hidden) += count;
    }
    return true;
}

static void find_again(psi_kv *kv, uint64_t cell) {
    psi_kv_set_bit(kv->lost, cell, false);
    psi_kv_set_bit(kv->partial, cell, false);
    kv->lost_cells--;
}

/* Bytes of the blocks that came back. */
static uint64_t bring_back(psi_plan *p, psi_hidden *hidden, uint32_t k) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        psi_kv *kv = p->kvs[i];
        uint32_t count = 0;
        for (uint32_t at = k * p->piece; at < psi_plan_piece_end(p, k); at++) {
            uint64_t cell = p->cells[i][at];
            if (psi_plan_is_target(kv, cell)) {
                bytes += psi_block_revive(kv->pool, psi_plan_block_of(kv, cell));
                p->pairs[count++] = (psi_cell_pair){psi_hidden_cells(hidden, i)[at - k * p->piece], cell};
            }
        }
        psi_cells_copy(psi_hidden_kv(hidden, i), kv, p->pairs, count, kv->v_transposed);
        for (uint32_t n = 0; n < count; n++) {
            find_again(kv, p->pairs[n].to);
        }
    }
    return bytes;
}

static outcome run_piece(psi_plan *p, psi_hidden *hidden, uint32_t k, uint64_t *bytes) {
    psi_piece piece = {.tokens = p->tokens + (size_t)k * p->piece,
                       .position = (int32_t)(k * p->piece),
                       .count = psi_plan_piece_end(p, k) - k * p->piece};
    uint64_t *from[HIDDEN_MAX_KVS];
    const uint64_t *chains = p->chains + (size_t)k * p->piece;
    for (uint32_t i = 0; i < p->count; i++) {
        from[i] = p->cells[i] + (size_t)k * p->piece;
        piece.from[i] = from[i];
    }
    if (!hold_cells(p, k)) {
        return OUT_OF_TIME;
    }
    if (!p->needs[k]) {
        return psi_hidden_copy(hidden, &piece, chains) ? DONE : FAILED;
    }
    if (!psi_hidden_compute(hidden, &piece, chains) || !agrees(p, hidden, k) || *psi_hidden_compared(hidden) == 0) {
        return FAILED;
    }
    *bytes += bring_back(p, hidden, k);
    return DONE;
}

static uint64_t room_for(const psi_plan *p, const psi_hidden *hidden) {
    uint64_t cell_bytes = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        cell_bytes += psi_cells_bytes(p->kvs[i]);
    }
    return 2 * cell_bytes * (p->length - psi_hidden_length(hidden)); /* the copy, and what comes back */
}

static outcome run(psi_plan *p, psi_hidden *hidden, const psi_wish *w, uint64_t began_us, uint64_t *bytes) {
    uint32_t have = psi_plan_useful_length(p, hidden);
    if (!psi_plan_choose(p, hidden, have)) {
        have = 0;
        (void)psi_plan_choose(p, hidden, 0);
    }
    psi_hidden_cut(hidden, have);
    have = psi_hidden_length(hidden);
    uint64_t room = room_for(p, hidden);
    if (psi_cache_take_room(p->kvs[0]->pool->cache, room) < room) {
        return NO_ROOM;
    }
    outcome so_far = DONE;
    for (uint32_t k = have / p->piece; so_far == DONE && k * p->piece < p->length; k++) {
        so_far = run_piece(p, hidden, k, bytes);
        bool over = psi_os_now_us() - began_us >= w->most_us || *bytes >= w->most_bytes;
        so_far = so_far == DONE && over ? OUT_OF_TIME : so_far;
    }
    return so_far;
}

/* One sequence that ends in `cell`, or goes on from it. */
static outcome recompute_chain(psi_hidden *hidden, psi_kv *const *kvs, uint32_t count, psi_kv *of, uint64_t cell,
                               const psi_wish *w, uint64_t began_us, uint64_t *bytes) {
    uint32_t piece = psi_hidden_piece(hidden);
    piece = w->most_us != UINT64_MAX && piece > SHORT_PIECE ? SHORT_PIECE : piece;
    psi_plan p;
    psi_plan_state state = psi_plan_make(&p, kvs, count, piece, of->tokens[cell]);
    outcome result = state == PSI_PLAN_NO_MEMORY ? FAILED : DONE;
    if (state == PSI_PLAN_READY) {
        result = run(&p, hidden, w, began_us, bytes);
    }
    if (result == DONE && psi_plan_is_lost(of, cell)) {
        psi_tokens_forget(of, cell); /* it cannot come back, or did not: it stays hidden, and is not tried for ever */
    }
    psi_plan_free(&p);
    return result;
}

/* ---- When -------------------------------------------------------------------------------------- */

static void say_once(psi_kv *kv, const char *why) {
    if (!kv->recompute_said) {
        kv->recompute_said = true;
        psi_llama_say(PSI_LOG_WARN, "some dropped blocks stay hidden, and are not computed again: %s", why);
    }
}

static void say_what_is_not_known(psi_kv *const *kvs, uint32_t count, const psi_wish *w) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t all = (uint64_t)kvs[i]->cells * kvs[i]->streams;
        for (uint64_t cell = 0; kvs[i]->lost_cells > 0 && cell < all; cell++) {
            if (psi_plan_is_lost(kvs[i], cell) && psi_wish_covers(w, kvs[i], cell)) {
                say_once(kvs[0], "not all that they saw is known any more (keys that were shifted, a state that was "
                                 "loaded, text that was removed, embeddings)");
                return;
            }
        }
    }
}

static void give_up(psi_kv *const *kvs, uint32_t count, const char *why) {
    say_once(kvs[0], why);
    for (uint32_t i = 0; i < count; i++) {
        psi_tokens_forget_all(kvs[i]);
    }
}

static void count_work(psi_kv *const *kvs, uint64_t bytes, uint64_t began_us) {
    psi_pool_count_recompute(kvs[0]->pool, bytes, psi_os_now_us() - began_us);
}

static bool can_recompute(psi_kv *const *kvs, uint32_t count) {
    bool can = count > 0 && count <= HIDDEN_MAX_KVS;
    for (uint32_t i = 0; can && i < count; i++) {
        can = kvs[i]->pool != NULL && !kvs[i]->given_up && kvs[i]->tokens != NULL && kvs[i]->context != NULL &&
              !psi_is_forked_child(kvs[i]->pool->cache);
    }
    return can;
}

/* In one order, whoever asks: by this the hidden context knows its caches. */
static void sort_kvs(psi_kv **sorted, psi_kv *const *kvs, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = i;
        for (; at > 0 && (uintptr_t)sorted[at - 1] > (uintptr_t)kvs[i]; at--) {
            sorted[at] = sorted[at - 1];
        }
        sorted[at] = kvs[i];
    }
}

/* What came back is added to *bytes. */
static outcome recompute(psi_kv *const *unsorted, uint32_t count, const psi_wish *w, uint64_t *bytes) {
    uint64_t began_us = psi_os_now_us(), before = *bytes;
    outcome result = DONE;
    psi_hidden *hidden = NULL;
    psi_kv *of = NULL, *kvs[HIDDEN_MAX_KVS];
    const void *context = unsorted[0]->context;
    sort_kvs(kvs, unsorted, count);
    if (began_us - kvs[0]->no_room_us < NO_ROOM_PAUSE_US) {
        return NO_ROOM;
    }
    while (result == DONE) {
        for (uint32_t i = 0; i < count; i++) {
            psi_pool_states(kvs[i]->pool, kvs[i]->states);
        }
        uint64_t cell = psi_plan_find_target(kvs, count, w, &of);
        if (cell == PSI_NO_CELL) {
            say_what_is_not_known(kvs, count, w);
            break;
        }
        const char *why = NULL;
        hidden = psi_hidden_of(context, kvs, count, &why);
        if (hidden == NULL) {
            give_up(kvs, count, why);
            break;
        }
        result = recompute_chain(hidden, kvs, count, of, cell, w, began_us, bytes);
    }
    if (result == FAILED) {
        const char *why = psi_hidden_failure(hidden);
        give_up(kvs, count, why != NULL ? why : "what was computed again is not what was there");
    }
    if (hidden != NULL && result != OUT_OF_TIME) {
        psi_hidden_free(context);
    }
    kvs[0]->no_room_us = result == NO_ROOM ? began_us : 0;
    count_work(kvs, *bytes - before, began_us);
    return result;
}

/* Dropped blocks that the step would see, and whose tokens are known. */
static uint32_t count_recomputable(const psi_kv *kv) {
    uint32_t blocks = 0;
    for (uint32_t b = 0; kv->lost_cells > 0 && b < kv->blocks; b++) {
        uint64_t first = (uint64_t)(b / kv->stream_blocks) * kv->cells + b % kv->stream_blocks * kv->block_cells;
        bool known = false;
        for (uint64_t c = first; kv->marks[b] != 0 && !known && c < first + kv->block_cells; c++) {
            known = c < (uint64_t)kv->cells * kv->streams && psi_plan_is_lost(kv, c) && kv->tokens[c].chain != 0;
        }
        blocks += known;
    }
    return blocks;
}

/* The hidden context holds a copy of a sequence, which is not worth its memory any more. */
static void let_go(const psi_llama_step *step) {
    if (step->kvs[0]->has_hidden) {
        step->kvs[0]->has_hidden = false;
        psi_hidden_free(step->kvs[0]->context);
    }
}

void psi_recompute_at_safe_point(const psi_llama_step *step) {
    uint64_t wanted = 0;
    bool lost = false;
    if (!can_recompute(step->kvs, step->kv_count)) {
        return;
    }
    for (uint32_t i = 0; i < step->kv_count; i++) {
        uint64_t own = psi_pool_wants_recompute(step->kvs[i]->pool, count_recomputable(step->kvs[i]));
        wanted = own > UINT64_MAX - wanted ? UINT64_MAX : wanted + own;
        lost = lost || step->kvs[i]->lost_cells > 0;
    }
    psi_cache *cache = step->kvs[0]->pool->cache;
    uint64_t bytes = 0;
    psi_wish w = {.most_us = psi_cache_recompute_us(cache), .most_bytes = wanted, .only_seen = wanted != UINT64_MAX};
    bool may = lost && !psi_cache_is_pressed(cache);
    outcome result = OUT_OF_TIME;
    if (!may) {
        let_go(step);
    } else if (wanted > 0) {
        step->kvs[0]->has_hidden = true;
        result = recompute(step->kvs, step->kv_count, &w, &bytes);
    }
    bool over = !lost || result == DONE || result == FAILED;
    for (uint32_t i = 0; over && wanted > 0 && i < step->kv_count; i++) {
        psi_pool_end_recompute(step->kvs[i]->pool);
    }
}

/* The caches of a context; under the list's lock. */
static uint32_t caches_of(const void *context, psi_kv **kvs) {
    uint32_t count = 0;
    for (psi_kv *kv = psi_kv_first(); kv != NULL; kv = kv->next) {
        if (kv->context == context && !kv->is_hidden) {
            if (count == HIDDEN_MAX_KVS) {
                return 0;
            }
            kvs[count++] = kv;
        }
    }
    return count;
}

void psi_recompute_for_reading(psi_kv *kv, uint64_t first, uint64_t last) {
    psi_kv *kvs[HIDDEN_MAX_KVS];
    uint64_t bytes = 0;
    psi_kv_lock();
    uint32_t count = kv->context != NULL && kv->lost_cells > 0 ? caches_of(kv->context, kvs) : 0;
    psi_kv_unlock();
    if (can_recompute(kvs, count)) {
        (void)recompute(
            kvs, count,
            &(psi_wish){.most_us = UINT64_MAX, .most_bytes = UINT64_MAX, .kv = kv, .first = first, .last = last},
            &bytes);
    }
}

static const void *next_context(const void *after) {
    const void *found = NULL;
    psi_kv_lock();
    for (psi_kv *kv = psi_kv_first(); kv != NULL; kv = kv->next) {
        bool later = !kv->is_hidden && (uintptr_t)kv->context > (uintptr_t)after;
        found = later && (found == NULL || (uintptr_t)kv->context < (uintptr_t)found) ? kv->context : found;
    }
    psi_kv_unlock();
    return found;
}

static uint64_t recompute_context(const void *context) {
    psi_kv *kvs[HIDDEN_MAX_KVS];
    uint64_t bytes = 0;
    psi_kv_lock();
    uint32_t count = caches_of(context, kvs);
    psi_kv_unlock();
    if (can_recompute(kvs, count)) {
        (void)recompute(kvs, count, &(psi_wish){.most_us = UINT64_MAX, .most_bytes = UINT64_MAX}, &bytes);
    }
    return bytes;
}

uint64_t psi_llama_recompute(const void *context) {
    uint64_t bytes = 0;
    const void *each = context != NULL ? context : next_context(NULL);
    while (each != NULL) {
        bytes += recompute_context(each);
        each = context != NULL ? NULL : next_context(each);
    }
    return bytes;
}
