/* remote.c - a pool whose memory this process does not hold: it keeps counts, and carries the controller's wishes to an
 * owner that fulfils them elsewhere, for example in a worker process. The owner's thread, and the watcher's to ring. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/numbers.h"
#include "os/os.h"
#include "pool/pool.h"

static uint64_t above_floor(const psi_pool *pool) {
    uint64_t resident = (uint64_t)pool->resident * pool->block_total_bytes;
    return resident > pool->floor_bytes ? resident - pool->floor_bytes : 0;
}

/* Nothing here to be written first: what can go can go at once. */
void psi_remote_survey(psi_pool *pool) {
    pool->evictable_bytes = psi_least((uint64_t)pool->counts.evictable * pool->block_total_bytes, above_floor(pool));
    pool->admits = pool->evictable_bytes > 0;
    pool->unwritten_bytes = 0;
    pool->hidden = pool->counts.withheld;
}

void psi_remote_ring(const psi_pool *pool) {
    if (pool->is_remote && pool->wake_fd > 0) {
        psi_os_bell bell = {{pool->wake_fd, pool->wake_fd}};
        psi_os_bell_ring(&bell);
    }
}

uint64_t psi_pool_pending_bytes(const psi_pool *pool) {
    return atomic_load(&pool->want_trim_bytes) + (pool->is_remote ? pool->counts.going_bytes : 0);
}

psi_pool *psi_pool_remote(psi_cache *cache, const psi_pool_options *given) {
    psi_pool_options options;
    if (!psi_pool_read_options(&options, cache, given) || options.block_bytes == 0) {
        errno = EINVAL;
        return NULL;
    }
    psi_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) {
        return NULL;
    }
    pool->cache = cache;
    pool->is_remote = true;
    pool->wake_fd = options.wake_fd;
    (void)snprintf(pool->name, sizeof(pool->name), "%s", options.name != NULL ? options.name : "remote");
    pthread_mutex_init(&pool->lock, NULL);
    pool->page_bytes = psi_os_page_bytes();
    pool->lane_blocks = options.blocks; /* and no blocks of its own: `blocks` stays 0 */
    pool->block_total_bytes = options.block_bytes;
    pool->floor_bytes = psi_pool_floor_bytes(pool, &options, (uint64_t)options.blocks * options.block_bytes);
    atomic_init(&pool->policy, psi_policy_find(NULL));
    psi_cache_add_pool(cache, pool);
    return pool;
}

/* What happened since the last report. */
static void note_moves(psi_pool *pool, const psi_pool_counts *counts) {
    pool->trimmed_bytes += counts->given_bytes;
    pool->returned_bytes += counts->given_bytes;
    pool->restored_bytes += counts->taken_bytes;
    pool->trims += counts->given_bytes > 0;
    pool->restores += counts->taken_bytes > 0;
    pool->refusals += counts->refusals;
    pool->store_errors += counts->store_errors;
    if (counts->given_bytes > 0) {
        pool->given_at_us = psi_os_now_us();
        pool->first_given_at_us = pool->first_given_at_us != 0 ? pool->first_given_at_us : pool->given_at_us;
    }
}

/* By hand counts as the watcher's does: what is above the floor. */
static uint64_t take_trim(psi_pool *pool) {
    uint32_t permille = atomic_exchange(&pool->want_trim_permille, 0);
    uint64_t by_hand = (uint64_t)pool->resident * pool->block_total_bytes / 1000 * permille;
    uint64_t asked = atomic_exchange(&pool->want_trim_bytes, 0);
    return psi_least(psi_most(asked, by_hand), above_floor(pool));
}

static uint64_t take_restore(psi_pool *pool) {
    uint64_t asked = atomic_exchange(&pool->want_restore_bytes, 0);
    return atomic_exchange(&pool->want_restore_all, false) ? UINT64_MAX : asked;
}

static psi_pool_wish take_wish(psi_pool *pool) {
    psi_pool_wish wish = {.pressed = psi_cache_is_pressed(pool->cache),
                          .write_ahead = psi_cache_is_scarce(pool->cache)};
    if (!psi_is_forked_child(pool->cache)) {
        wish.trim_bytes = take_trim(pool);
        wish.restore_bytes = wish.trim_bytes > 0 ? 0 : take_restore(pool);
    }
    return wish;
}

/* A caller built with an older header knows fewer fields, of both structures. */
int psi_pool_report(psi_pool *pool, const psi_pool_counts *given, psi_pool_wish *wish) {
    if (pool == NULL || !pool->is_remote || given == NULL || given->size < sizeof(given->size) || wish == NULL ||
        wish->size < sizeof(wish->size)) {
        return -EINVAL;
    }
    psi_pool_counts counts = {0};
    memcpy(&counts, given, given->size < sizeof(counts) ? given->size : sizeof(counts));
    pthread_mutex_lock(&pool->lock);
    pool->counts = counts;
    pool->resident = counts.resident;
    pool->stored = counts.stored;
    pool->step++;
    note_moves(pool, &counts);
    psi_pool_wish made = take_wish(pool);
    pool->counts.going_bytes += made.trim_bytes; /* until the next report says what came of it */
    psi_remote_survey(pool);
    pthread_mutex_unlock(&pool->lock);
    made.size = wish->size;
    memcpy(wish, &made, made.size < sizeof(made) ? made.size : sizeof(made));
    return 0;
}
