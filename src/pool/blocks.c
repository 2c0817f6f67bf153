/* blocks.c - a block's states: one table of allowed moves, one function that moves. Called under the pool's lock
 * by the engine's thread, and by the watcher for blocks that no step can read. */
#include <errno.h>
#include <string.h>

#include "os/os.h"
#include "pool/pool.h"

enum { E = 1 << PSI_BLOCK_EMPTY, R = 1 << PSI_BLOCK_RESIDENT, S = 1 << PSI_BLOCK_STORED, D = 1 << PSI_BLOCK_DROPPED };

static const int allowed[] = {
    [PSI_BLOCK_EMPTY] = R,
    [PSI_BLOCK_RESIDENT] = S | D | E,
    [PSI_BLOCK_STORED] = R | D | E, /* D: the store lost its bytes */
    [PSI_BLOCK_DROPPED] = R | E,
};

static uint32_t *counter(psi_pool *pool, psi_block_state state) {
    switch (state) {
    case PSI_BLOCK_RESIDENT:
        return &pool->resident;
    case PSI_BLOCK_STORED:
        return &pool->stored;
    case PSI_BLOCK_DROPPED:
        return &pool->dropped;
    default:
        return NULL;
    }
}

void psi_block_move(psi_pool *pool, uint32_t block, psi_block_state to) {
    psi_block *b = &pool->block[block];
    psi_block_state from = (psi_block_state)b->state;
    if ((allowed[from] & (1 << to)) == 0) {
        psi_log_line(psi_cache_log(pool->cache), PSI_LOG_ERROR,
                     "defect: block %u of pool %s asked to move from state %d to %d", block, pool->name, (int)from,
                     (int)to);
        return;
    }
    uint32_t *out = counter(pool, from), *in = counter(pool, to);
    if (out != NULL) {
        *out -= 1;
    }
    if (in != NULL) {
        *in += 1;
    }
    b->state = (uint8_t)to;
    if (b->slot != PSI_SLOT_NONE && (to == PSI_BLOCK_EMPTY || to == PSI_BLOCK_DROPPED)) {
        psi_store_free(pool->store, b->slot);
        b->slot = PSI_SLOT_NONE;
    }
    if (to == PSI_BLOCK_EMPTY || to == PSI_BLOCK_RESIDENT) {
        b->hidden = false;
    }
    pool->moves += from == PSI_BLOCK_RESIDENT || to == PSI_BLOCK_RESIDENT;
    if (pool->moved != NULL && (from == PSI_BLOCK_RESIDENT || to == PSI_BLOCK_RESIDENT || to == PSI_BLOCK_DROPPED)) {
        pool->moved(pool->moved_user, block, from, to);
    }
}

void psi_block_lose(psi_pool *pool, uint32_t block, int error) {
    pool->store_errors++;
    if (!pool->read_error_said) {
        pool->read_error_said = true;
        psi_log_line(
            psi_cache_log(pool->cache), PSI_LOG_ERROR,
            "block %u of pool %s could not be read back from the store (error %d): it stays hidden, as will all "
            "others that cannot (store_errors counts them); check the disk below PSI_CACHE_STORE_DIR",
            block, pool->name, -error);
    }
    psi_block_move(pool, block, PSI_BLOCK_DROPPED);
}

static int read_record(psi_pool *pool, uint32_t slot, const void **record) {
    uint64_t began_us = psi_os_now_us();
    int error = psi_store_read_again(pool->store, slot, pool->record, record);
    if (error == 0) {
        pool->read_us += psi_os_now_us() - began_us;
        pool->read_bytes += pool->record_bytes;
    }
    return error;
}

const unsigned char *psi_block_read(psi_pool *pool, uint32_t block) {
    const void *record = psi_fetch_record(pool, block);
    int error = record == NULL ? read_record(pool, pool->block[block].slot, &record) : 0;
    if (error != 0) {
        psi_block_lose(pool, block, error);
        return NULL;
    }
    return record;
}

void psi_block_fill(psi_pool *pool, uint32_t block, const unsigned char *record) {
    psi_layout_scatter(pool, block, record);
    psi_block_move(pool, block, PSI_BLOCK_RESIDENT); /* keeps its slot: it is clean, and goes again for free */
    pool->restored_bytes += psi_layout_block_bytes(pool, block);
}

int psi_block_bring_back(psi_pool *pool, uint32_t block) {
    const psi_block *b = &pool->block[block];
    if (b->state != PSI_BLOCK_STORED) {
        return b->state == PSI_BLOCK_DROPPED ? -ENOENT : 0;
    }
    const unsigned char *record = psi_block_read(pool, block);
    if (record == NULL) {
        return -EIO;
    }
    psi_block_fill(pool, block, record);
    return 0;
}

int psi_block_copy_stored(psi_pool *pool, uint32_t from, uint32_t to) {
    const psi_block *source = &pool->block[from];
    psi_block *b = &pool->block[to];
    psi_block_free(pool, to);
    pthread_mutex_lock(&pool->lock);
    const void *record = NULL;
    int error = source->state == PSI_BLOCK_STORED ? read_record(pool, source->slot, &record) : -EINVAL;
    if (error == 0 && record != pool->record) {
        memcpy(pool->record, record, pool->record_bytes);
    }
    error = error == 0 ? psi_clean_pause(pool) : error;
    error = error == 0 ? psi_clean_write_record(pool, &b->slot) : error;
    if (error == 0) {
        b->age = ++pool->writes;
        pool->last_written = to;
        psi_block_changes(pool, to);
        b->used = source->used;
        b->attention = source->attention;
        b->keys = source->keys;
        psi_block_move(pool, to, PSI_BLOCK_RESIDENT); /* in name: no page is touched */
        psi_block_move(pool, to, PSI_BLOCK_STORED);
        b->hidden = source->hidden;
    }
    pthread_mutex_unlock(&pool->lock);
    return error;
}

uint64_t psi_block_revive(psi_pool *pool, uint32_t block) {
    pthread_mutex_lock(&pool->lock);
    psi_block *b = &pool->block[block];
    uint64_t bytes = 0;
    if (b->state == PSI_BLOCK_DROPPED) {
        psi_block_move(pool, block, PSI_BLOCK_RESIDENT);
        bytes = psi_layout_block_bytes(pool, block);
        pool->restored_bytes += bytes;
    }
    if (b->slot != PSI_SLOT_NONE) { /* of a block that was dropped in part: its copy is about to be wrong */
        psi_store_free(pool->store, b->slot);
        b->slot = PSI_SLOT_NONE;
    }
    psi_block_changes(pool, block);
    b->used = pool->step + 1;
    pthread_mutex_unlock(&pool->lock);
    return bytes;
}

uint64_t psi_pool_wants_recompute(psi_pool *pool, uint32_t recomputable) {
    pthread_mutex_lock(&pool->lock);
    uint64_t bytes = pool->want_recompute_bytes;
    pool->recomputable = recomputable;
    pool->want_recompute_bytes = bytes == UINT64_MAX ? bytes : 0;
    pthread_mutex_unlock(&pool->lock);
    return bytes;
}

void psi_pool_end_recompute(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->want_recompute_bytes = 0;
    pthread_mutex_unlock(&pool->lock);
}

void psi_pool_count_recompute(psi_pool *pool, uint64_t bytes, uint64_t took_us) {
    pthread_mutex_lock(&pool->lock);
    pool->recomputed_bytes += bytes;
    pool->recompute_us += took_us;
    pool->restores += bytes > 0;
    pthread_mutex_unlock(&pool->lock);
}
