/* trim.c - which blocks go, and which come back. Called under the pool's lock: by the engine's thread at its safe
 * point, and by the watcher for blocks asleep. No allocation on this path. */
#include <errno.h>

#include "control/numbers.h"
#include "os/os.h"
#include "pool/pool.h"

/* An idle engine's blocks count as asleep after this long: shorter than a user's pause, longer than the gap
 * between two decode steps. */
#define PSI_IDLE_US 100000u

/* A wake of so much takes the watcher by surprise at most; the pause is as long as a reading takes. */
#define PSI_WAKE_BYTES (UINT64_C(4) << 20)
#define PSI_WAKE_PAUSE_US 200u

/* True when the step that runs (or, before a safe point, the one that comes) cannot read the block. */
static bool is_asleep(const psi_pool *pool, const psi_block *b, psi_trim_scope scope) {
    if (scope == PSI_TRIM_ASLEEP && !pool->in_step && pool->step > 0) {
        bool idle = psi_os_now_us() - pool->step_end_us > PSI_IDLE_US;
        return b->used < pool->step || (idle && b->used == pool->step);
    }
    return b->used < pool->step;
}

static bool can_go(const psi_pool *pool, const psi_block *b) {
    uint64_t coming = pool->step + (pool->in_step ? 0 : 1);
    bool is_whole = b->written < coming || b->settled;
    return b->state == PSI_BLOCK_RESIDENT && !b->pinned && is_whole && b->held < coming;
}

static bool is_kept(const psi_pool *pool, uint32_t block) {
    const psi_block *b = &pool->block[block];
    return block % pool->lane_blocks < pool->keep_first || pool->writes - b->age < pool->keep_newest;
}

static size_t collect(psi_pool *pool, psi_trim_scope scope, bool asleep) {
    size_t count = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        const psi_block *b = &pool->block[i];
        if (!can_go(pool, b) || is_asleep(pool, b, scope) != asleep || (!asleep && is_kept(pool, i))) {
            continue;
        }
        pool->candidates[count++] = psi_score_candidate(pool, i);
    }
    psi_score_rate(pool, pool->candidates, count);
    psi_policy_heapify(pool->candidates, count);
    return count;
}

/* A full store makes room by forgetting the copy of a block that is in memory. */
static bool free_a_clean_copy(psi_pool *pool) {
    for (uint32_t i = 0; i < pool->blocks; i++) {
        psi_block *b = &pool->block[i];
        if (b->state == PSI_BLOCK_RESIDENT && b->slot != PSI_SLOT_NONE) {
            psi_store_free(pool->store, b->slot);
            b->slot = PSI_SLOT_NONE;
            return true;
        }
    }
    return false;
}

/* Makes sure that the store has the block's bytes. 0, or why it has not. */
static int clean(psi_pool *pool, uint32_t block) {
    psi_block *b = &pool->block[block];
    if (b->slot != PSI_SLOT_NONE) {
        return 0;
    }
    psi_layout_gather(pool, block, pool->record);
    int error = psi_clean_pause(pool);
    error = error == 0 ? psi_clean_write_record(pool, &b->slot) : error;
    if (psi_clean_is_full(error) && free_a_clean_copy(pool)) { /* which has room on the disk */
        error = psi_clean_write_record(pool, &b->slot);
    }
    if (error != 0 && error != -EAGAIN) { /* that is the hour's bound */
        psi_clean_say_error(pool, error);
    }
    return error;
}

static bool would_be_lost(const psi_pool *pool, uint32_t block, psi_trim_scope scope) {
    return pool->store == NULL || (scope == PSI_TRIM_DROP && pool->block[block].slot == PSI_SLOT_NONE);
}

/* Takes one block out of memory: to the store; to nowhere, when the user chose no store or there is no time to write.
 * False: it stays. */
static bool evict(psi_pool *pool, uint32_t block, psi_trim_scope scope, bool asleep) {
    psi_block *b = &pool->block[block];
    if (would_be_lost(pool, block, scope)) {
        psi_block_move(pool, block, PSI_BLOCK_DROPPED);
    } else {
        int error = clean(pool, block);
        /* Here is the engine's thread (the others give up clean blocks only): its owner knows before the next step. */
        if (error != 0 && (!atomic_load(&pool->may_drop) || is_kept(pool, block))) {
            return false;
        }
        psi_block_move(pool, block, error == 0 ? PSI_BLOCK_STORED : PSI_BLOCK_DROPPED);
    }
    b->hidden = !asleep && !psi_cache_is_exact(pool->cache); /* else it comes back before the step runs */
    b->releasing = true;
    return true;
}

static uint64_t resident_bytes(const psi_pool *pool) { return (uint64_t)pool->resident * pool->block_total_bytes; }

static uint64_t take(psi_pool *pool, uint64_t want_bytes, psi_trim_scope scope, bool asleep, uint64_t floor_bytes) {
    size_t count = collect(pool, scope, asleep);
    uint64_t given = 0;
    bool only_clean = pool->store != NULL && scope < PSI_TRIM_ALL; /* writes none, loses none */
    while (count > 0 && given < want_bytes && resident_bytes(pool) > floor_bytes) {
        psi_candidate next = psi_policy_pop(pool->candidates, &count);
        if (only_clean && pool->block[next.block].slot == PSI_SLOT_NONE) {
            continue;
        }
        if (would_be_lost(pool, next.block, scope) && is_kept(pool, next.block)) {
            continue; /* asleep, and wanted when its sequence wakes */
        }
        if (evict(pool, next.block, scope, asleep)) {
            given += psi_layout_block_bytes(pool, next.block);
        } else if (!atomic_load(&pool->may_drop)) {
            only_clean = true; /* the store failed: what it has already goes all the same */
        }
    }
    return given;
}

uint64_t psi_trim(psi_pool *pool, uint64_t want_bytes, psi_trim_scope scope, uint64_t floor_bytes) {
    uint64_t given = 0;
    if (pool->store != NULL) {
        psi_store_rest(pool->store); /* what was read ahead between two steps, by a state that was saved */
    }
    /* Without a store even a block asleep is lost to the sequence that wakes: not behind the engine's back. */
    if (pool->store != NULL || scope != PSI_TRIM_ASLEEP) {
        given = take(pool, want_bytes, scope, true, floor_bytes);
    }
    if (given < want_bytes && scope != PSI_TRIM_ASLEEP) {
        given += take(pool, want_bytes - given, scope, false, floor_bytes);
    }
    if (given > 0) {
        pool->returned_bytes += psi_layout_give_back(pool);
        pool->trimmed_bytes += given;
        pool->given_at_us = psi_os_now_us();
        pool->first_given_at_us = pool->first_given_at_us != 0 ? pool->first_given_at_us : pool->given_at_us;
    }
    return given;
}

static size_t collect_unwritten(psi_pool *pool, psi_trim_scope scope, bool asleep) {
    size_t count = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        const psi_block *b = &pool->block[i];
        if (b->slot == PSI_SLOT_NONE && can_go(pool, b) && is_asleep(pool, b, PSI_TRIM_ASLEEP) == asleep &&
            (asleep || (scope != PSI_TRIM_ASLEEP && !is_kept(pool, i)))) {
            pool->candidates[count++] = psi_score_candidate(pool, i);
        }
    }
    return count;
}

/* What a recall would take next. */
static uint32_t next_leaving(const psi_pool *pool) {
    for (uint32_t i = 0; i < pool->blocks; i++) {
        const psi_block *b = &pool->block[i];
        if (b->leaving && b->slot == PSI_SLOT_NONE && can_go(pool, b)) {
            return i;
        }
    }
    return PSI_BLOCK_NONE;
}

uint32_t psi_trim_next_unwritten(psi_pool *pool, psi_trim_scope scope) {
    uint32_t leaving = scope != PSI_TRIM_ASLEEP ? next_leaving(pool) : PSI_BLOCK_NONE;
    if (leaving != PSI_BLOCK_NONE) {
        return leaving;
    }
    size_t count = collect_unwritten(pool, scope, true);
    count = count > 0 ? count : collect_unwritten(pool, scope, false);
    psi_score_rate(pool, pool->candidates, count);
    const psi_candidate *best = pool->candidates;
    for (size_t i = 1; i < count; i++) {
        best = psi_policy_goes_before(&pool->candidates[i], best) ? &pool->candidates[i] : best;
    }
    return count > 0 ? best->block : PSI_BLOCK_NONE;
}

bool psi_trim_has_admission(const psi_pool *pool) {
    return resident_bytes(pool) + pool->block_total_bytes <= pool->admit_bytes;
}

void psi_trim_survey(psi_pool *pool) {
    if (pool->is_remote) {
        psi_remote_survey(pool);
        return;
    }
    uint64_t bytes = 0, unwritten = 0;
    pool->hidden = 0;
    pool->clean_bytes = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        const psi_block *b = &pool->block[i];
        bool resident = b->state == PSI_BLOCK_RESIDENT;
        bool clean = b->slot != PSI_SLOT_NONE || pool->store == NULL;
        if (resident && !b->pinned && ((b->used < pool->step && pool->store != NULL) || !is_kept(pool, i))) {
            bytes += pool->block_total_bytes;
            unwritten += clean ? 0 : pool->block_total_bytes;
        }
        pool->clean_bytes += resident && b->slot != PSI_SLOT_NONE ? pool->block_total_bytes : 0;
        pool->hidden += b->state == PSI_BLOCK_STORED && b->hidden && b->used >= pool->step;
    }
    uint64_t above = resident_bytes(pool) > pool->floor_bytes ? resident_bytes(pool) - pool->floor_bytes : 0;
    pool->evictable_bytes = psi_least(bytes, above);
    pool->unwritten_bytes = psi_least(unwritten, pool->evictable_bytes);
    pool->admits = bytes > 0 || psi_trim_has_admission(pool);
}

static bool is_wanted(const psi_pool *pool, uint32_t block) {
    const psi_block *b = &pool->block[block];
    bool hidden = b->hidden && !psi_cache_is_exact(pool->cache);
    return b->state == PSI_BLOCK_STORED && !hidden && b->used >= pool->step;
}

/* Of `wanted` blocks as many as do not fit turn hidden, in the policy's order, and wait for room like those that it
 * took. Sinks and the newest are not among them. */
static void hide_surplus(psi_pool *pool, uint64_t wanted, uint64_t fit) {
    size_t count = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        if (is_wanted(pool, i) && !is_kept(pool, i)) {
            pool->candidates[count++] = psi_score_candidate(pool, i);
        }
    }
    psi_score_rate(pool, pool->candidates, count);
    psi_policy_heapify(pool->candidates, count);
    for (; count > 0 && wanted > fit; wanted--) {
        pool->block[psi_policy_pop(pool->candidates, &count).block].hidden = true;
    }
}

static uint64_t count_wanted(const psi_pool *pool) {
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        wanted += is_wanted(pool, i);
    }
    return wanted;
}

/* Where blocks share pages (a transposed V), the first of them to come takes the pages of all. `allowed_bytes` is taken
 * from the room already. */
static bool has_page_room(const psi_pool *pool, uint32_t block, uint64_t allowed_bytes) {
    uint64_t bytes = psi_layout_own_bytes(pool, block);
    return bytes <= allowed_bytes || psi_cache_take_whole_room(pool->cache, bytes - allowed_bytes);
}

size_t psi_trim_collect_stored(psi_pool *pool, uint32_t *from, uint64_t most, psi_trim_takes takes) {
    size_t count = 0;
    for (; *from < pool->blocks && count < most; ++*from) {
        if (takes(pool, *from)) {
            pool->candidates[count++] = (psi_candidate){.block = *from, .worth = pool->block[*from].slot};
        }
    }
    psi_policy_heapify(pool->candidates, count);
    return count;
}

/* Those that share pages may find no room: then others come in their place. */
static uint64_t wake(psi_pool *pool, uint64_t most) {
    uint64_t woken = 0;
    for (uint32_t next = 0; next < pool->blocks && woken < most;) {
        for (size_t count = psi_trim_collect_stored(pool, &next, most - woken, is_wanted); count > 0;) {
            uint32_t block = psi_policy_pop(pool->candidates, &count).block;
            woken += has_page_room(pool, block, pool->block_total_bytes) && psi_block_bring_back(pool, block) == 0;
        }
    }
    return woken;
}

/* Others of the machine fill memory, too, and other engines wake: between two portions the watcher looks again. */
static void let_the_watcher_look(psi_pool *pool) {
    psi_cache_look_again(pool->cache);
    pthread_mutex_unlock(&pool->lock);
    psi_os_pause_us(PSI_WAKE_PAUSE_US);
    pthread_mutex_lock(&pool->lock);
}

/* Where there is no room, those who sleep make it for those who wake. */
static uint64_t take_from_sleepers(psi_pool *pool, uint64_t blocks) {
    return psi_trim(pool, blocks * pool->block_total_bytes, PSI_TRIM_ASLEEP, 0) / pool->block_total_bytes;
}

/* Under pressure an exact step waits: what came back for it would go again at once. */
static uint64_t take_room(psi_pool *pool, uint64_t bytes) {
    bool waits = psi_cache_is_exact(pool->cache) && psi_cache_is_pressed(pool->cache);
    return waits ? 0 : psi_cache_take_room(pool->cache, bytes);
}

/* Blocks that went while nobody read them, and that the coming step reads: they come back before it runs, portion by
 * portion, as many as there is room for. */
uint64_t psi_wake_wanted(psi_pool *pool) {
    uint64_t portion = PSI_WAKE_BYTES / pool->block_total_bytes + 1, woken = 0;
    for (uint64_t wanted = count_wanted(pool); wanted > 0; wanted = count_wanted(pool)) {
        uint64_t now = psi_least(wanted, portion);
        uint64_t fit = take_room(pool, now * pool->block_total_bytes) / pool->block_total_bytes;
        uint64_t found = fit < now ? take_from_sleepers(pool, now - fit) : 0;
        fit = psi_least(fit + found, now);
        if (fit < now && !psi_cache_is_exact(pool->cache)) {
            hide_surplus(pool, wanted, fit);
        }
        uint64_t came = wake(pool, fit);
        woken += came * pool->block_total_bytes;
        if (fit < now || came == 0) {
            break;
        }
        if (wanted > now) {
            let_the_watcher_look(pool);
        }
    }
    return woken;
}

/* Hidden blocks that the coming step would read, in a heap whose top the policy would take last. */
static size_t collect_hidden(psi_pool *pool) {
    size_t count = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        const psi_block *b = &pool->block[i];
        if (b->state == PSI_BLOCK_STORED && b->hidden && b->used >= pool->step) {
            pool->candidates[count++] = psi_score_candidate(pool, i);
        }
    }
    psi_score_rate(pool, pool->candidates, count);
    for (size_t i = 0; i < count; i++) {
        psi_candidate *c = &pool->candidates[i];
        c->worth = -c->worth;
        c->age = UINT64_MAX - c->age;
    }
    psi_policy_heapify(pool->candidates, count);
    return count;
}

uint64_t psi_regrow(psi_pool *pool, uint64_t want_bytes) {
    uint64_t restored = 0;
    size_t count = collect_hidden(pool);
    while (restored < want_bytes && count > 0) {
        uint32_t block = psi_policy_pop(pool->candidates, &count).block;
        uint64_t bytes = psi_layout_own_bytes(pool, block);
        bytes = bytes > pool->block_total_bytes ? bytes : pool->block_total_bytes;
        if (has_page_room(pool, block, want_bytes - restored) && psi_block_bring_back(pool, block) == 0) {
            restored += bytes;
        }
    }
    if (restored > 0) {
        pool->restores++;
    }
    return restored;
}

/* Not one asleep: it would come back by itself, and the cache would be larger for it. */
bool psi_trim_may_take(const psi_pool *pool, uint32_t block) {
    const psi_block *b = &pool->block[block];
    return can_go(pool, b) && b->used >= pool->step && !is_kept(pool, block);
}

bool psi_trim_make_clean(psi_pool *pool, uint32_t block) {
    if (pool->block[block].slot == PSI_SLOT_NONE && !psi_cache_may_write(pool->cache, pool->record_bytes)) {
        return false; /* the hour's bound is for those who need room */
    }
    int error = clean(pool, block);
    if (error != 0) {
        psi_clean_say_error(pool, error);
    }
    return error == 0;
}

void psi_trim_take(psi_pool *pool, uint32_t block) {
    psi_block_move(pool, block, PSI_BLOCK_STORED);
    pool->block[block].hidden = pool->block[block].releasing = true;
    pool->returned_bytes += psi_layout_give_back(pool);
}

int psi_block_borrow(psi_pool *pool, uint32_t block) {
    psi_block *b = &pool->block[block];
    pthread_mutex_lock(&pool->lock);
    b->lent = b->hidden;
    int error = psi_block_bring_back(pool, block);
    if (error == 0) {
        psi_store_free(pool->store, b->slot);
        b->slot = PSI_SLOT_NONE;
        b->keys = PSI_SCORE_UNKNOWN;
        psi_block_changes(pool, block); /* no other thread takes or copies it meanwhile, and what was fetched is void */
    }
    pthread_mutex_unlock(&pool->lock);
    return error;
}

void psi_block_put_away(psi_pool *pool, uint32_t block) {
    psi_block *b = &pool->block[block];
    pthread_mutex_lock(&pool->lock);
    bool may = b->state == PSI_BLOCK_RESIDENT && pool->store != NULL && !psi_is_forked_child(pool->cache);
    if (may && evict(pool, block, PSI_TRIM_ALL, !b->lent)) { /* else it stays, and goes when there is a way */
        pool->returned_bytes += psi_layout_give_back(pool);
        pool->trimmed_bytes += psi_layout_block_bytes(pool, block);
    }
    pthread_mutex_unlock(&pool->lock);
}
