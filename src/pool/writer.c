/* writer.c - the thread that writes blocks to the store, one at a time, as the watcher asks, and reads those that are
 * to come back, as the engine's thread asks: a disk that takes its time holds up no reading, trim or step. It sleeps
 * while nothing is asked. */
#include <errno.h>

#include "pool/pool.h"
#include "pool/watcher.h"

#define SLEEP_US (UINT64_C(3600) * 1000000)

/* The first pool with something to write; NULL when there is none, or the time for it is over. */
static psi_pool *next_to_write(psi_cache *cache) {
    psi_pool *found = NULL;
    bool in_time = psi_os_now_us() < atomic_load(&cache->write_until_us);
    pthread_mutex_lock(&cache->lock);
    for (psi_pool *pool = cache->pools; in_time && found == NULL && pool != NULL; pool = pool->next) {
        found = pool->store != NULL && atomic_load(&pool->want_write_bytes) > 0 ? pool : NULL;
    }
    pthread_mutex_unlock(&cache->lock);
    return found;
}

static psi_pool *next_to_read(psi_cache *cache) {
    psi_pool *found = NULL;
    pthread_mutex_lock(&cache->lock);
    for (psi_pool *pool = cache->pools; found == NULL && pool != NULL; pool = pool->next) {
        found = atomic_load(&pool->wants_fetch) ? pool : NULL;
    }
    pthread_mutex_unlock(&cache->lock);
    return found;
}

static void write_one(psi_cache *cache, psi_pool *pool) {
    uint64_t want = atomic_load(&pool->want_write_bytes);
    int64_t bytes = psi_clean_one(pool, PSI_TRIM_ALL);
    uint64_t left = bytes > 0 && (uint64_t)bytes < want ? want - (uint64_t)bytes : 0;
    (void)atomic_compare_exchange_strong(&pool->want_write_bytes, &want, left); /* a newer wish stays */
    if (bytes < 0 && (bytes != -EAGAIN || psi_cache_is_pressed(cache))) { /* the hour's bound yields to pressure */
        atomic_store(&pool->may_write, true);
    } else if (bytes > 0) {
        atomic_store(&pool->may_write, false);
    }
    if (left == 0 && psi_cache_is_pressed(cache)) {
        psi_os_bell_ring(&cache->bell); /* what is written may go */
    }
}

static psi_pool *next_to_tidy(psi_cache *cache) {
    psi_pool *found = NULL;
    pthread_mutex_lock(&cache->lock);
    for (psi_pool *pool = cache->pools; found == NULL && pool != NULL; pool = pool->next) {
        found = atomic_load(&pool->wants_tidy) ? pool : NULL;
    }
    pthread_mutex_unlock(&cache->lock);
    return found;
}

static void tidy_one(psi_pool *pool) {
    atomic_store(&pool->wants_tidy, false); /* before: what is freed meanwhile asks anew */
    if (psi_clean_tidy_one(pool)) {
        atomic_store(&pool->wants_tidy, true);
    }
}

/* Reads go first: a step may want them soon. `writing` keeps the pool alive meanwhile. */
static bool do_next(psi_cache *cache) {
    pthread_mutex_lock(&cache->writing);
    psi_pool *to_read = next_to_read(cache);
    psi_pool *to_write = to_read == NULL ? next_to_write(cache) : NULL;
    psi_pool *to_tidy = to_read == NULL && to_write == NULL ? next_to_tidy(cache) : NULL;
    if (to_read != NULL) {
        (void)psi_fetch_one(to_read);
    } else if (to_write != NULL) {
        write_one(cache, to_write);
    } else if (to_tidy != NULL) {
        tidy_one(to_tidy);
    }
    pthread_mutex_unlock(&cache->writing);
    return to_read != NULL || to_write != NULL || to_tidy != NULL;
}

void *psi_writer_run(void *argument) {
    psi_cache *cache = argument;
    psi_os_name_thread("psi-writer");
    while (!atomic_load(&cache->writer_stops)) {
        if (!do_next(cache)) {
            (void)psi_os_wait(&cache->writer_bell, NULL, 0, SLEEP_US);
        }
    }
    return NULL;
}
