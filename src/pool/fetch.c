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
    fetch->version = b->version;
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
    return b->state == PSI_BLOCK_STORED && b->slot == fetch->slot && b->version == fetch->version;
}

/* What became of one read: the bytes are there, or nobody wants them any more, or (false) they are wrong. A failure
 * counts only while the block is as it was asked for: else another record may lie there now. */
static bool settle(psi_pool *pool, psi_fetch *fetch, int error, uint64_t took_us) {
    bool good = is_good(pool, fetch);
    if (error == 0) {
        pool->read_us += took_us;
        pool->read_bytes += pool->record_bytes;
        error = psi_store_check(pool->store, fetch->slot, fetch->record);
    }
    if (good && error == 0) {
        fetch->state = PSI_FETCH_READY;
    } else if (!good) {
        release(pool, fetch);
    }
    return !good || error == 0;
}

static bool read_once(psi_pool *pool, psi_fetch *fetch) {
    uint64_t began_us = psi_os_now_us();
    int error = psi_store_get(pool->store, fetch->slot, fetch->record);
    uint64_t took_us = psi_os_now_us() - began_us;
    pthread_mutex_lock(&pool->lock);
    bool settled = settle(pool, fetch, error, took_us);
    pthread_mutex_unlock(&pool->lock);
    return settled;
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
    bool settled = fetch == NULL;
    for (int i = 0; i < PSI_READ_TRIES && !settled; i++) {
        settled = read_once(pool, fetch);
    }
    if (!settled) { /* the engine's thread is to say so: no other drops a block */
        pthread_mutex_lock(&pool->lock);
        fetch->state = PSI_FETCH_FAILED;
        pthread_mutex_unlock(&pool->lock);
    }
    return fetch != NULL;
}

uint32_t psi_fetch_take_failed(psi_pool *pool) {
    for (psi_fetch *fetch = find(pool, PSI_FETCH_FAILED); fetch != NULL; fetch = find(pool, PSI_FETCH_FAILED)) {
        bool good = is_good(pool, fetch);
        release(pool, fetch);
        if (good) {
            return fetch->block;
        }
    }
    return PSI_BLOCK_NONE;
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
