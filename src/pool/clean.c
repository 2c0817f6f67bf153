/* clean.c - writes blocks to the store ahead of need: giving one up is then a mask and an madvise, and no disk stands
 * between a spike and its memory. Watcher's thread. A block's bytes stay as they are until a step writes it, and a
 * step says so first: so they are copied under the lock, and written without it. */
#include <errno.h>

#include "os/os.h"
#include "pool/pool.h"

/* A disk that failed may take seconds to fail again. */
#define PAUSE_LEAST_US UINT64_C(1000000)
#define PAUSE_MOST_US UINT64_C(64000000)

bool psi_clean_is_full(int error) { return error == -ENOSPC || error == -EFBIG || error == -EDQUOT; }

void psi_clean_say_error(psi_pool *pool, int error) {
    pool->store_errors++;
    if (pool->store_error_said) {
        return;
    }
    pool->store_error_said = true;
    psi_log_line(psi_cache_log(pool->cache), PSI_LOG_WARN,
                 "the store of pool %s %s (error %d): blocks stay in memory, and are dropped where that would end the "
                 "process; %s",
                 pool->name, psi_clean_is_full(error) ? "is full" : "cannot be written", -error,
                 psi_clean_is_full(error) ? "give it room with PSI_CACHE_STORE_MAX_BYTES or another PSI_CACHE_STORE_DIR"
                                          : "check the disk below PSI_CACHE_STORE_DIR");
}

int psi_clean_pause(const psi_pool *pool) {
    return pool->write_error != 0 && psi_os_now_us() < pool->write_again_us ? pool->write_error : 0;
}

/* What a write came to. Want of memory passes, and is no fault of the disk. */
static void note_write(psi_pool *pool, int error, uint64_t took_us) {
    if (error == 0) {
        pool->written_bytes += pool->record_bytes;
        pool->write_us += took_us;
        pool->write_pause_us = 0;
    } else if (error != -ENOMEM) {
        uint64_t longer_us = pool->write_pause_us * 2;
        longer_us = longer_us > PAUSE_LEAST_US ? longer_us : PAUSE_LEAST_US;
        pool->write_pause_us = longer_us < PAUSE_MOST_US ? longer_us : PAUSE_MOST_US;
        pool->write_again_us = psi_os_now_us() + pool->write_pause_us;
    }
    pool->write_error = error;
}

int psi_clean_write_record(psi_pool *pool, uint32_t *slot) {
    uint32_t chosen = PSI_SLOT_NONE;
    int error = psi_store_reserve(pool->store, &chosen);
    if (error != 0) {
        return error;
    }
    error = psi_cache_take_write(pool->cache, pool->record_bytes, true);
    if (error != 0) {
        psi_store_free(pool->store, chosen);
        return error;
    }
    uint64_t began_us = psi_os_now_us();
    error = psi_store_put(pool->store, chosen, pool->record);
    note_write(pool, error, psi_os_now_us() - began_us);
    if (error != 0) {
        psi_store_free(pool->store, chosen);
        return error;
    }
    *slot = chosen;
    return 0;
}

bool psi_clean_tidy_one(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    uint32_t slot = psi_store_take_idle(pool->store);
    pthread_mutex_unlock(&pool->lock);
    if (slot == PSI_SLOT_NONE) {
        return false;
    }
    psi_store_vacate(pool->store, slot);
    pthread_mutex_lock(&pool->lock);
    psi_store_hand_back_idle(pool->store, slot);
    pthread_mutex_unlock(&pool->lock);
    return true;
}

typedef struct psi_copy {
    uint32_t block, slot;
    uint64_t version; /* of the block, when it was copied: a later write makes the copy worthless */
} psi_copy;

/* Copies the next block and sets a slot aside. 1, 0 when there is nothing to do, or a negative errno. */
static int begin(psi_pool *pool, psi_trim_scope scope, psi_copy *copy) {
    copy->block = pool->store == NULL ? PSI_BLOCK_NONE : psi_trim_next_unwritten(pool, scope);
    if (copy->block == PSI_BLOCK_NONE) {
        return 0;
    }
    int error = psi_clean_pause(pool);
    if (error != 0) {
        return error;
    }
    error = psi_store_reserve(pool->store, &copy->slot);
    if (error != 0) { /* its own bound: no matter, until memory is short */
        if (psi_cache_is_pressed(pool->cache)) {
            psi_clean_say_error(pool, error);
        }
        return error;
    }
    error = psi_cache_take_write(pool->cache, pool->record_bytes, psi_cache_is_pressed(pool->cache));
    if (error != 0) {
        psi_store_free(pool->store, copy->slot);
        return error;
    }
    copy->version = pool->block[copy->block].version;
    psi_layout_gather(pool, copy->block, pool->ahead);
    return 1;
}

/* The copy becomes the block's, unless it was written, freed, or stored by the engine's thread meanwhile. */
static void end(psi_pool *pool, const psi_copy *copy, int error, uint64_t took_us) {
    psi_block *b = &pool->block[copy->block];
    note_write(pool, error, took_us);
    if (error != 0) {
        psi_clean_say_error(pool, error);
    }
    if (error == 0 && b->state == PSI_BLOCK_RESIDENT && b->version == copy->version && b->slot == PSI_SLOT_NONE) {
        b->slot = copy->slot;
    } else {
        psi_store_free(pool->store, copy->slot);
    }
}

int64_t psi_clean_one(psi_pool *pool, psi_trim_scope scope) {
    psi_copy copy;
    pthread_mutex_lock(&pool->lock);
    int error = begin(pool, scope, &copy);
    pthread_mutex_unlock(&pool->lock);
    if (error <= 0) {
        return error;
    }
    uint64_t began_us = psi_os_now_us();
    error = psi_store_put(pool->store, copy.slot, pool->ahead);
    uint64_t took_us = psi_os_now_us() - began_us;
    pthread_mutex_lock(&pool->lock);
    end(pool, &copy, error, took_us);
    pthread_mutex_unlock(&pool->lock);
    return error != 0 ? error : (int64_t)pool->record_bytes;
}
