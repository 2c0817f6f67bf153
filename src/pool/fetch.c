/* fetch.c - reads hidden blocks from the store ahead of their coming, so that no step waits for the disk: the engine's
 * thread asks, the writer's thread reads, and at a later safe point the bytes are there. */
#include "os/os.h"
#include "pool/pool.h"

static psi_fetch *find(psi_pool *pool, psi_fetch_state state) {
    for (int i = 0; i < PSI_FETCH_BLOCKS; i++) {
        if (pool->fetches[i].state == state) {
            return &pool->fetches[i];
        }
    }
    return NULL;
}

static bool is_asked(const psi_pool *pool, uint32_t block) {
    for (int i = 0; i < PSI_FETCH_BLOCKS; i++) {
        if (pool->fetches[i].state != PSI_FETCH_FREE && pool->fetches[i].block == block) {
            return true;
        }
    }
    return false;
}

bool psi_fetch_ask(psi_pool *pool, uint32_t block) {
    if (is_asked(pool, block)) {
        return true;
    }
    psi_fetch *fetch = find(pool, PSI_FETCH_FREE);
    if (fetch == NULL) {
        return false;
    }
    if (fetch->record == NULL) {
        fetch->record = psi_os_reserve(pool->record_bytes);
    }
    if (fetch->record == NULL) {
        return false;
    }
    const psi_block *b = &pool->block[block];
    fetch->block = block;
    fetch->slot = b->slot;
    fetch->written = b->written;
    fetch->state = PSI_FETCH_ASKED;
    atomic_store(&pool->wants_fetch, true);
    return true;
}

static void release(psi_pool *pool, psi_fetch *fetch) {
    fetch->state = PSI_FETCH_FREE;
    (void)psi_os_give_back(fetch->record, pool->record_bytes);
}

/* The bytes are the block's: it was not written, freed or lost meanwhile, so that its slot is still its own. */
static bool is_good(const psi_pool *pool, const psi_fetch *fetch) {
    const psi_block *b = &pool->block[fetch->block];
    return b->state == PSI_BLOCK_STORED && b->slot == fetch->slot && b->written == fetch->written;
}

bool psi_fetch_one(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    psi_fetch *fetch = find(pool, PSI_FETCH_ASKED);
    if (fetch != NULL) {
        fetch->state = PSI_FETCH_READING;
    } else {
        atomic_store(&pool->wants_fetch, false);
    }
    pthread_mutex_unlock(&pool->lock);
    if (fetch == NULL) {
        return false;
    }
    uint64_t began_us = psi_os_now_us();
    int error = psi_store_get(pool->store, fetch->slot, fetch->record);
    uint64_t took_us = psi_os_now_us() - began_us;
    pthread_mutex_lock(&pool->lock);
    pool->read_us += took_us;
    pool->read_bytes += pool->record_bytes;
    if (error == 0 && is_good(pool, fetch) && psi_store_check(pool->store, fetch->slot, fetch->record) == 0) {
        fetch->state = PSI_FETCH_READY;
    } else { /* it is read again, and its loss said, when it comes the ordinary way */
        release(pool, fetch);
    }
    pthread_mutex_unlock(&pool->lock);
    return true;
}

static psi_fetch *ready(psi_pool *pool, uint32_t block) {
    for (int i = 0; i < PSI_FETCH_BLOCKS; i++) {
        psi_fetch *fetch = &pool->fetches[i];
        if (fetch->state == PSI_FETCH_READY && fetch->block == block && is_good(pool, fetch)) {
            return fetch;
        }
    }
    return NULL;
}

const unsigned char *psi_fetch_record(psi_pool *pool, uint32_t block) {
    psi_fetch *fetch = ready(pool, block);
    return fetch != NULL ? fetch->record : NULL;
}

bool psi_fetch_any_ready(psi_pool *pool) { return find(pool, PSI_FETCH_READY) != NULL; }

void psi_fetch_release(psi_pool *pool) {
    for (psi_fetch *fetch = find(pool, PSI_FETCH_READY); fetch != NULL; fetch = find(pool, PSI_FETCH_READY)) {
        release(pool, fetch);
    }
}

void psi_fetch_close(psi_pool *pool) {
    for (int i = 0; i < PSI_FETCH_BLOCKS; i++) {
        psi_os_unreserve(pool->fetches[i].record, pool->record_bytes);
    }
}
