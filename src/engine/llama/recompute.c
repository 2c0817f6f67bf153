/* recompute.c - see recompute.h. A cell's chain leads from its token back to the first one of its sequence: that is the
 * sequence to be decoded. What of it is in memory is copied into the hidden context, and only the pieces that miss
 * something are computed. A piece that holds cells that are still there is compared with them before any of it is used.
 */
#include "engine/llama/recompute.h"

#include <stdlib.h>
#include <string.h>

#include "engine/llama/hidden.h"
#include "os/os.h"
#include "pool/pool.h"

#define NO_CELL UINT64_MAX

/* What is computed anew may differ by the order of its sums; what is of another token differs by as much as it is
 * long (psi_cells_difference, so as a square). */
#define MOST_DIFFERENCE 0.02

#define NO_ROOM_PAUSE_US 1000000u /* without room nothing is planned anew for so long */

enum { SHORT_PIECE = 64 }; /* where the time is bounded */

/* What is to come back, and what it may take. */
typedef struct wish {
    uint64_t most_us, most_bytes;
    bool only_seen; /* by the step that begins */
    const psi_kv *kv;
    uint64_t first, last; /* of this cache only these cells, if it is not NULL */
} wish;

typedef struct chain_entry {
    uint64_t chain, cell;
    int32_t position;
} chain_entry;

/* One sequence, from its first token to the piece that holds the last one to come back. */
typedef struct plan {
    psi_kv *const *kvs;
    uint32_t count, length, piece;
    chain_entry *entries[HIDDEN_MAX_KVS];
    size_t entry_count[HIDDEN_MAX_KVS];
    int32_t *tokens;
    uint64_t *chains;
    uint64_t *cells[HIDDEN_MAX_KVS];
    bool misses[HIDDEN_MAX_KVS]; /* some token of the chain is no longer in this cache */
    unsigned char *needs;        /* a byte a piece: it is computed */
    psi_cell_pair *pairs;
    float *scratch;
} plan;

bool psi_llama_recomputes(void) {
    const psi_cache *cache = psi_llama_cache();
    return cache != NULL && psi_cache_recomputes(cache);
}

/* ---- Cells ------------------------------------------------------------------------------------- */

static bool is_lost(const psi_kv *kv, uint64_t cell) { return psi_kv_bit(kv->lost, cell); }

static bool is_partial(const psi_kv *kv, uint64_t cell) { return psi_kv_bit(kv->partial, cell); }

static uint32_t block_of(const psi_kv *kv, uint64_t cell) {
    return (uint32_t)(cell / kv->cells) * kv->stream_blocks + (uint32_t)(cell % kv->cells) / kv->block_cells;
}

static bool is_there(const psi_kv *kv, uint64_t cell) {
    unsigned char state = cell != NO_CELL ? kv->states[block_of(kv, cell)] : PSI_BLOCK_EMPTY;
    return (state == PSI_BLOCK_RESIDENT || state == PSI_BLOCK_STORED) && !is_lost(kv, cell);
}

static bool is_target(const psi_kv *kv, uint64_t cell) { return cell != NO_CELL && is_lost(kv, cell); }

static bool is_wished(const wish *w, const psi_kv *kv, uint64_t cell) {
    bool in_range = w->kv == NULL || (w->kv == kv && cell >= w->first && cell <= w->last);
    return in_range && (!w->only_seen || kv->marks[block_of(kv, cell)] != 0);
}

/* The lost cell of the latest position whose token is known; NO_CELL: none. */
static uint64_t find_target(psi_kv *const *kvs, uint32_t count, const wish *w, psi_kv **of) {
    uint64_t found = NO_CELL;
    for (uint32_t i = 0; i < count; i++) {
        psi_kv *kv = kvs[i];
        uint64_t all = (uint64_t)kv->cells * kv->streams;
        for (uint64_t cell = 0; kv->lost_cells > 0 && cell < all; cell++) {
            if (cell % 64 == 0 && kv->lost[cell / 64] == 0) {
                cell += 63;
            } else if (is_lost(kv, cell) && kv->tokens[cell].chain != 0 && is_wished(w, kv, cell) &&
                       (found == NO_CELL || kv->tokens[cell].position > (*of)->tokens[found].position)) {
                found = cell;
                *of = kv;
            }
        }
    }
    return found;
}

/* ---- The plan ---------------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b) {
    const chain_entry *x = a, *y = b;
    return x->chain < y->chain ? -1 : x->chain > y->chain;
}

static bool index_kv(plan *p, uint32_t i) {
    const psi_kv *kv = p->kvs[i];
    uint64_t all = (uint64_t)kv->cells * kv->streams;
    size_t known = 0;
    for (uint64_t cell = 0; cell < all; cell++) {
        known += kv->tokens[cell].chain != 0;
    }
    p->entries[i] = calloc(known + 1, sizeof(chain_entry));
    for (uint64_t cell = 0; cell < all && p->entries[i] != NULL; cell++) {
        if (kv->tokens[cell].chain != 0) {
            p->entries[i][p->entry_count[i]++] = (chain_entry){kv->tokens[cell].chain, cell, kv->tokens[cell].position};
        }
    }
    if (p->entries[i] != NULL) {
        qsort(p->entries[i], p->entry_count[i], sizeof(chain_entry), compare_entries);
    }
    return p->entries[i] != NULL;
}

/* The cell of the chain's token at this position; where there are several, one that was dropped, so that each comes
 * back. */
static uint64_t find_cell(const plan *p, uint32_t i, uint64_t chain, int32_t position) {
    const chain_entry *entries = p->entries[i];
    size_t low = 0, high = p->entry_count[i];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        low = entries[middle].chain < chain ? middle + 1 : low;
        high = entries[middle].chain < chain ? high : middle;
    }
    uint64_t found = NO_CELL;
    for (; low < p->entry_count[i] && entries[low].chain == chain; low++) {
        if (entries[low].position == position && (found == NO_CELL || is_lost(p->kvs[i], entries[low].cell))) {
            found = entries[low].cell;
        }
    }
    return found;
}

/* Notes the token of a chain at a position, where it lies. False: it is in no cache any more. */
static bool place_token(plan *p, int32_t position, uint64_t chain) {
    bool known = false;
    for (uint32_t i = 0; i < p->count; i++) {
        uint64_t cell = find_cell(p, i, chain, position);
        p->cells[i][position] = cell;
        if (cell != NO_CELL) {
            p->tokens[position] = p->kvs[i]->tokens[cell].token;
            known = true;
        }
        p->misses[i] = p->misses[i] || cell == NO_CELL;
    }
    p->chains[position] = chain;
    return known;
}

static bool walk_back(plan *p, psi_cell_token last) {
    uint64_t chain = last.chain;
    for (int32_t position = last.position; position >= 0; position--) {
        if (!place_token(p, position, chain)) {
            return false;
        }
        chain -= psi_token_hash(p->tokens[position], position);
    }
    p->length = (uint32_t)last.position + 1;
    return chain == 0;
}

/* A token that follows the chain's last one, in the first cache; 0: there is none. */
static uint64_t next_chain(const plan *p) {
    const psi_kv *kv = p->kvs[0];
    uint64_t last = p->chains[p->length - 1];
    for (size_t i = 0; i < p->entry_count[0]; i++) {
        const chain_entry *e = &p->entries[0][i];
        if (e->position == (int32_t)p->length &&
            e->chain - psi_token_hash(kv->tokens[e->cell].token, e->position) == last) {
            return e->chain;
        }
    }
    return 0;
}

/* Up to the end of its piece: what is there of it shows whether the piece came out right, and a piece as long as the
 * step that computed it first gives the same bits. */
static void walk_on(plan *p, uint32_t capacity) {
    while (p->length % p->piece != 0 && p->length < capacity) {
        uint64_t chain = next_chain(p);
        bool missed[HIDDEN_MAX_KVS];
        memcpy(missed, p->misses, sizeof(missed));
        if (chain == 0 || !place_token(p, (int32_t)p->length, chain)) {
            memcpy(p->misses, missed, sizeof(missed));
            return;
        }
        p->length++;
    }
}

static uint32_t most_cells(const plan *p) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        most = p->kvs[i]->cells > most ? p->kvs[i]->cells : most;
    }
    return most;
}

static bool allocate(plan *p) {
    uint32_t capacity = most_cells(p), dims = 1;
    bool good = true;
    for (uint32_t i = 0; i < p->count; i++) {
        p->cells[i] = calloc(capacity, sizeof(uint64_t));
        good = good && p->cells[i] != NULL && index_kv(p, i);
        for (uint32_t t = 0; t < p->kvs[i]->tensor_count; t++) {
            uint32_t of_row = (uint32_t)p->kvs[i]->tensors[t].t->ne[0];
            dims = of_row > dims ? of_row : dims;
        }
    }
    p->tokens = calloc(capacity, sizeof(*p->tokens));
    p->chains = calloc(capacity, sizeof(*p->chains));
    p->needs = calloc(capacity / p->piece + 1, 1);
    p->pairs = calloc(p->piece, sizeof(*p->pairs));
    p->scratch = calloc(2 * (size_t)dims, sizeof(float));
    return good && p->tokens != NULL && p->chains != NULL && p->needs != NULL && p->pairs != NULL && p->scratch != NULL;
}

static void free_plan(plan *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        free(p->entries[i]);
        free(p->cells[i]);
    }
    free(p->tokens);
    free(p->chains);
    free(p->needs);
    free(p->pairs);
    free(p->scratch);
}

/* ---- What is computed, what copied ------------------------------------------------------------- */

static uint32_t piece_end(const plan *p, uint32_t k) {
    return (k + 1) * p->piece < p->length ? (k + 1) * p->piece : p->length;
}

static bool has_target(const plan *p, uint32_t k) {
    for (uint32_t at = k * p->piece; at < piece_end(p, k); at++) {
        for (uint32_t i = 0; i < p->count; i++) {
            if (is_target(p->kvs[i], p->cells[i][at])) {
                return true;
            }
        }
    }
    return false;
}

/* What a piece sees of a cache that forgets what lies behind its window must be whole: pieces before it that are not
 * are computed, too. False: a part of the hidden context that is there already is not whole. */
static bool need_window(plan *p, uint32_t k, uint32_t window, uint32_t have, uint32_t holes_end) {
    uint32_t end = k * p->piece, from = window < end ? end - window : 0;
    for (uint32_t i = 0; i < p->count; i++) {
        for (uint32_t at = from; p->misses[i] && at < end; at++) {
            if (at < have && at < holes_end) {
                return false;
            }
            if (at >= have && p->cells[i][at] == NO_CELL) {
                p->needs[at / p->piece] = 1;
            }
        }
    }
    return true;
}

/* The first piece is always computed: what it holds is never trimmed, and shows whether all this is right. */
static bool choose_pieces(plan *p, const psi_hidden *hidden, uint32_t have) {
    uint32_t pieces = (p->length + p->piece - 1) / p->piece;
    for (uint32_t k = 0; k < pieces; k++) {
        p->needs[k] = k == 0 || has_target(p, k);
    }
    for (uint32_t k = pieces; k-- > have / p->piece;) {
        if (p->needs[k] && !need_window(p, k, psi_hidden_window(hidden), have, psi_hidden_holes_end(hidden))) {
            return false;
        }
    }
    return true;
}

/* Only the cache that is smaller than the other may have forgotten some of the chain. */
static bool is_sound(const plan *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        if (p->misses[i] && p->kvs[i]->cells == most_cells(p)) {
            return false;
        }
    }
    return true;
}

/* How much of what the hidden context has decoded already is this plan's. */
static uint32_t common_length(const plan *p, const psi_hidden *hidden) {
    uint32_t most = psi_hidden_length(hidden) < p->length ? psi_hidden_length(hidden) : p->length;
    while (most > 0 && psi_hidden_chain(hidden, most - 1) != p->chains[most - 1]) {
        most--;
    }
    return most - most % p->piece;
}

/* What the hidden context has decoded already is of use up to the first piece that something is to come back to: of a
 * text that lies in several streams, one copy may be back and the other not. */
static uint32_t useful_length(const plan *p, const psi_hidden *hidden) {
    uint32_t have = common_length(p, hidden);
    for (uint32_t k = 0; k < have / p->piece; k++) {
        if (has_target(p, k)) {
            return k * p->piece;
        }
    }
    return have;
}

/* ---- Running it -------------------------------------------------------------------------------- */

typedef enum outcome { DONE, OUT_OF_TIME, NO_ROOM, FAILED } outcome;

/* A piece's cells that have bytes come to memory, and stay until the next step. */
static bool hold_cells(const plan *p, uint32_t k) {
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t held = UINT32_MAX;
        for (uint32_t at = k * p->piece; at < piece_end(p, k); at++) {
            uint64_t cell = p->cells[i][at];
            if (is_there(p->kvs[i], cell) && block_of(p->kvs[i], cell) != held) {
                held = block_of(p->kvs[i], cell);
                if (psi_block_restore(p->kvs[i]->pool, held) != 0) {
                    return false; /* the store lost it: it is a target, too, from now on */
                }
            }
        }
    }
    return true;
}

/* How far what was computed lies from cells that are there, and that once saw all that it saw. */
static bool agrees(plan *p, psi_hidden *hidden, uint32_t k) {
    for (uint32_t i = 0; i < p->count; i++) {
        const psi_kv *kv = p->kvs[i];
        uint32_t count = 0;
        for (uint32_t at = k * p->piece; at < piece_end(p, k); at++) {
            uint64_t cell = p->cells[i][at];
            if (is_there(kv, cell) && !is_partial(kv, cell)) {
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
static uint64_t bring_back(plan *p, psi_hidden *hidden, uint32_t k) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        psi_kv *kv = p->kvs[i];
        uint32_t count = 0;
        for (uint32_t at = k * p->piece; at < piece_end(p, k); at++) {
            uint64_t cell = p->cells[i][at];
            if (is_target(kv, cell)) {
                bytes += psi_block_revive(kv->pool, block_of(kv, cell));
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

static outcome run_piece(plan *p, psi_hidden *hidden, uint32_t k, uint64_t *bytes) {
    psi_piece piece = {.tokens = p->tokens + (size_t)k * p->piece,
                       .position = (int32_t)(k * p->piece),
                       .count = piece_end(p, k) - k * p->piece};
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

static uint64_t room_for(const plan *p, const psi_hidden *hidden) {
    uint64_t cell_bytes = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        cell_bytes += psi_cells_bytes(p->kvs[i]);
    }
    return 2 * cell_bytes * (p->length - psi_hidden_length(hidden)); /* the copy, and what comes back */
}

static outcome run(plan *p, psi_hidden *hidden, const wish *w, uint64_t began_us, uint64_t *bytes) {
    uint32_t have = useful_length(p, hidden);
    if (!choose_pieces(p, hidden, have)) {
        have = 0;
        (void)choose_pieces(p, hidden, 0);
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
                               const wish *w, uint64_t began_us, uint64_t *bytes) {
    uint32_t piece = psi_hidden_piece(hidden);
    plan p = {
        .kvs = kvs, .count = count, .piece = w->most_us != UINT64_MAX && piece > SHORT_PIECE ? SHORT_PIECE : piece};
    outcome result = FAILED;
    if (allocate(&p)) {
        if (walk_back(&p, of->tokens[cell])) {
            walk_on(&p, most_cells(&p));
        } else {
            p.length = 0;
        }
        if (p.length == 0 || !is_sound(&p)) {
            psi_tokens_forget(of, cell); /* what it saw is gone: it stays hidden */
            result = DONE;
        } else {
            result = run(&p, hidden, w, began_us, bytes);
            if (result == DONE && is_lost(of, cell)) {
                psi_tokens_forget(of, cell); /* it did not come back, and is not to be tried for ever */
            }
        }
    }
    free_plan(&p);
    return result;
}

/* ---- When -------------------------------------------------------------------------------------- */

static void say_once(psi_kv *kv, const char *why) {
    if (!kv->recompute_said) {
        kv->recompute_said = true;
        psi_llama_say(PSI_LOG_WARN, "some dropped blocks stay hidden, and are not computed again: %s", why);
    }
}

static void say_what_is_not_known(psi_kv *const *kvs, uint32_t count, const wish *w) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t all = (uint64_t)kvs[i]->cells * kvs[i]->streams;
        for (uint64_t cell = 0; kvs[i]->lost_cells > 0 && cell < all; cell++) {
            if (is_lost(kvs[i], cell) && is_wished(w, kvs[i], cell)) {
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
static outcome recompute(psi_kv *const *unsorted, uint32_t count, const wish *w, uint64_t *bytes) {
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
        uint64_t cell = find_target(kvs, count, w, &of);
        if (cell == NO_CELL) {
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
            known = c < (uint64_t)kv->cells * kv->streams && is_lost(kv, c) && kv->tokens[c].chain != 0;
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
    wish w = {.most_us = psi_cache_recompute_us(cache), .most_bytes = wanted, .only_seen = wanted != UINT64_MAX};
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
            &(wish){.most_us = UINT64_MAX, .most_bytes = UINT64_MAX, .kv = kv, .first = first, .last = last}, &bytes);
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
        (void)recompute(kvs, count, &(wish){.most_us = UINT64_MAX, .most_bytes = UINT64_MAX}, &bytes);
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
