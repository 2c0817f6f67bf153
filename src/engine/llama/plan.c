/* plan.c - see plan.h. */
#include "engine/llama/plan.h"

#include <stdlib.h>
#include <string.h>

/* ---- Which sequence ---------------------------------------------------------------------------- */

bool psi_wish_covers(const psi_wish *w, const psi_kv *kv, uint64_t cell) {
    bool in_range = w->kv == NULL || (w->kv == kv && cell >= w->first && cell <= w->last);
    return in_range && (!w->only_seen || kv->marks[psi_plan_block_of(kv, cell)] != 0);
}

uint64_t psi_plan_find_target(psi_kv *const *kvs, uint32_t count, const psi_wish *w, psi_kv **of) {
    uint64_t found = PSI_NO_CELL;
    for (uint32_t i = 0; i < count; i++) {
        psi_kv *kv = kvs[i];
        uint64_t all = (uint64_t)kv->cells * kv->streams;
        for (uint64_t cell = 0; kv->lost_cells > 0 && cell < all; cell++) {
            if (cell % 64 == 0 && kv->lost[cell / 64] == 0) {
                cell += 63;
            } else if (psi_plan_is_lost(kv, cell) && kv->tokens[cell].chain != 0 && psi_wish_covers(w, kv, cell) &&
                       (found == PSI_NO_CELL || kv->tokens[cell].position > (*of)->tokens[found].position)) {
                found = cell;
                *of = kv;
            }
        }
    }
    return found;
}

/* ---- The plan ---------------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b) {
    const psi_chain_entry *x = a, *y = b;
    return x->chain < y->chain ? -1 : x->chain > y->chain;
}

static bool index_kv(psi_plan *p, uint32_t i) {
    const psi_kv *kv = p->kvs[i];
    uint64_t all = (uint64_t)kv->cells * kv->streams;
    size_t known = 0;
    for (uint64_t cell = 0; cell < all; cell++) {
        known += kv->tokens[cell].chain != 0;
    }
    p->entries[i] = calloc(known + 1, sizeof(psi_chain_entry));
    for (uint64_t cell = 0; cell < all && p->entries[i] != NULL; cell++) {
        if (kv->tokens[cell].chain != 0) {
            p->entries[i][p->entry_count[i]++] =
                (psi_chain_entry){kv->tokens[cell].chain, cell, kv->tokens[cell].position};
        }
    }
    if (p->entries[i] != NULL) {
        qsort(p->entries[i], p->entry_count[i], sizeof(psi_chain_entry), compare_entries);
    }
    return p->entries[i] != NULL;
}

/* The cell of the chain's token at this position; where there are several, one that was dropped, so that each comes
 * back. */
static uint64_t find_cell(const psi_plan *p, uint32_t i, uint64_t chain, int32_t position) {
    const psi_chain_entry *entries = p->entries[i];
    size_t low = 0, high = p->entry_count[i];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        low = entries[middle].chain < chain ? middle + 1 : low;
        high = entries[middle].chain < chain ? high : middle;
    }
    uint64_t found = PSI_NO_CELL;
    for (; low < p->entry_count[i] && entries[low].chain == chain; low++) {
        if (entries[low].position == position &&
            (found == PSI_NO_CELL || psi_plan_is_lost(p->kvs[i], entries[low].cell))) {
            found = entries[low].cell;
        }
    }
    return found;
}

/* Notes the token of a chain at a position, where it lies. False: it is in no cache any more. */
static bool place_token(psi_plan *p, int32_t position, uint64_t chain) {
    bool known = false;
    for (uint32_t i = 0; i < p->count; i++) {
        uint64_t cell = find_cell(p, i, chain, position);
        p->cells[i][position] = cell;
        if (cell != PSI_NO_CELL) {
            p->tokens[position] = p->kvs[i]->tokens[cell].token;
            known = true;
        }
        p->misses[i] = p->misses[i] || cell == PSI_NO_CELL;
    }
    p->chains[position] = chain;
    return known;
}

static bool walk_back(psi_plan *p, psi_cell_token last) {
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
static uint64_t next_chain(const psi_plan *p) {
    const psi_kv *kv = p->kvs[0];
    uint64_t last = p->chains[p->length - 1];
    for (size_t i = 0; i < p->entry_count[0]; i++) {
        const psi_chain_entry *e = &p->entries[0][i];
        if (e->position == (int32_t)p->length &&
            e->chain - psi_token_hash(kv->tokens[e->cell].token, e->position) == last) {
            return e->chain;
        }
    }
    return 0;
}

/* Up to the end of its piece: what is there of it shows whether the piece came out right, and a piece as long as the
 * step that computed it first gives the same bits. */
static void walk_on(psi_plan *p, uint32_t capacity) {
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

static uint32_t most_cells(const psi_plan *p) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        most = p->kvs[i]->cells > most ? p->kvs[i]->cells : most;
    }
    return most;
}

static bool allocate(psi_plan *p) {
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

void psi_plan_free(psi_plan *p) {
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

uint32_t psi_plan_piece_end(const psi_plan *p, uint32_t k) {
    return (k + 1) * p->piece < p->length ? (k + 1) * p->piece : p->length;
}

static bool has_target(const psi_plan *p, uint32_t k) {
    for (uint32_t at = k * p->piece; at < psi_plan_piece_end(p, k); at++) {
        for (uint32_t i = 0; i < p->count; i++) {
            if (psi_plan_is_target(p->kvs[i], p->cells[i][at])) {
                return true;
            }
        }
    }
    return false;
}

/* What a piece sees of a cache that forgets what lies behind its window must be whole: pieces before it that are not
 * are computed, too. False: a part of the hidden context that is there already is not whole. */
static bool need_window(psi_plan *p, uint32_t k, uint32_t window, uint32_t have, uint32_t holes_end) {
    uint32_t end = k * p->piece, from = window < end ? end - window : 0;
    for (uint32_t i = 0; i < p->count; i++) {
        for (uint32_t at = from; p->misses[i] && at < end; at++) {
            if (at < have && at < holes_end) {
                return false;
            }
            if (at >= have && p->cells[i][at] == PSI_NO_CELL) {
                p->needs[at / p->piece] = 1;
            }
        }
    }
    return true;
}

/* The first piece is always computed: what it holds is never trimmed, and shows whether all this is right. */
bool psi_plan_choose(psi_plan *p, const psi_hidden *hidden, uint32_t have) {
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
static bool is_sound(const psi_plan *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        if (p->misses[i] && p->kvs[i]->cells == most_cells(p)) {
            return false;
        }
    }
    return true;
}

psi_plan_state psi_plan_make(psi_plan *p, psi_kv *const *kvs, uint32_t count, uint32_t piece, psi_cell_token last) {
    *p = (psi_plan){.kvs = kvs, .count = count, .piece = piece};
    if (!allocate(p)) {
        return PSI_PLAN_NO_MEMORY;
    }
    if (!walk_back(p, last)) {
        return PSI_PLAN_UNKNOWN;
    }
    walk_on(p, most_cells(p));
    return is_sound(p) ? PSI_PLAN_READY : PSI_PLAN_UNKNOWN;
}

/* How much of what the hidden context has decoded already is this plan's. */
static uint32_t common_length(const psi_plan *p, const psi_hidden *hidden) {
    uint32_t most = psi_hidden_length(hidden) < p->length ? psi_hidden_length(hidden) : p->length;
    while (most > 0 && psi_hidden_chain(hidden, most - 1) != p->chains[most - 1]) {
        most--;
    }
    return most - most % p->piece;
}

/* What the hidden context has decoded already is of use up to the first piece that something is to come back to: of a
 * text that lies in several streams, one copy may be back and the other not. */
uint32_t psi_plan_useful_length(const psi_plan *p, const psi_hidden *hidden) {
    uint32_t have = common_length(p, hidden);
    for (uint32_t k = 0; k < have / p->piece; k++) {
        if (has_target(p, k)) {
            return k * p->piece;
        }
    }
    return have;
}
