/* give.c - carries a decision out: gives back at once what no step can read, has written what goes next (writer.c), and
 * leaves the rest as a request that the engine's thread takes at its safe point. Watcher's thread, under the cache's
 * lock. */
#include "pool/watcher.h"

/* A trim holds the pool's lock, for which the engine may wait: so in portions. In a hurry they are large: neighbours
 * that go together are one call to the kernel, and a tenth of the time. */
#define PORTION_BYTES (UINT64_C(2) << 20)
#define PORTION_URGENT_BYTES (UINT64_C(32) << 20)
#define WRITE_AHEAD_US 5000u /* in each WRITE_AHEAD_PERIOD_US */

void psi_give_measure(psi_cache *cache, psi_demand *demand) {
    *demand = (psi_demand){0};
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        psi_trim_survey(pool);
        demand->resident_bytes += (uint64_t)pool->resident * pool->block_total_bytes;
        demand->evictable_bytes += pool->evictable_bytes;
        demand->unwritten_bytes += pool->unwritten_bytes;
        demand->returnable_bytes += (uint64_t)(pool->hidden + pool->recomputable) * pool->block_total_bytes;
        demand->pending_bytes += psi_pool_pending_bytes(pool);
        demand->returned_bytes += pool->returned_bytes;
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Inside a step that says which layer it reads, the blocks that it reads may go, too: its owner hides them from the
 * layers to come, and what the present one reads of them stays until then. An exact step is to have them all. */
static psi_trim_scope reach(const psi_pool *pool) {
    return pool->layered && !psi_cache_is_exact(pool->cache) && pool->store != NULL ? PSI_TRIM_CLEAN : PSI_TRIM_ASLEEP;
}

/* Portion by portion, of what the store has. */
static uint64_t trim_portions(psi_pool *pool, uint64_t want_bytes, bool urgent) {
    uint64_t most = urgent ? PORTION_URGENT_BYTES : PORTION_BYTES, all = 0, given = 1;
    while (given > 0 && all < want_bytes) {
        uint64_t portion = want_bytes - all < most ? want_bytes - all : most;
        pthread_mutex_lock(&pool->lock);
        given = psi_trim(pool, portion, reach(pool), pool->floor_bytes);
        pthread_mutex_unlock(&pool->lock);
        all += given;
    }
    return all;
}

static void count_trim(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->trims++;
    pthread_mutex_unlock(&pool->lock);
}

/* Gives back blocks that the present step cannot read, as far as the store has them. Returns bytes given. What there is
 * no time to write is the engine's thread's to lose: its owner must know before the next step. */
static uint64_t trim_asleep(psi_pool *pool, uint64_t want_bytes, bool urgent) {
    uint64_t given = trim_portions(pool, want_bytes, urgent);
    if (given > 0) {
        count_trim(pool);
    }
    return given;
}

static psi_demand survey_of(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    psi_demand own = {.evictable_bytes = pool->evictable_bytes,
                      .unwritten_bytes = pool->unwritten_bytes,
                      .returnable_bytes = (uint64_t)(pool->hidden + pool->recomputable) * pool->block_total_bytes};
    pthread_mutex_unlock(&pool->lock);
    return own;
}

static uint64_t part_of(uint64_t bytes, uint64_t own, uint64_t all) {
    return own < all ? (uint64_t)((double)bytes * (double)own / (double)all) : bytes;
}

/* Asks each pool for its part of the rest, and has written what it will take. */
static void ask_for_trim(psi_cache *cache, uint64_t want_bytes, uint64_t drop_bytes, const psi_demand *demand) {
    for (psi_pool *pool = cache->pools; pool != NULL && demand->evictable_bytes > 0; pool = pool->next) {
        psi_demand own = survey_of(pool);
        uint64_t bytes = part_of(want_bytes, own.evictable_bytes, demand->evictable_bytes);
        atomic_store(&pool->may_drop_bytes, part_of(drop_bytes, own.unwritten_bytes, demand->unwritten_bytes));
        (void)atomic_fetch_add(&pool->want_trim_bytes, bytes);
        atomic_store(&pool->want_write_bytes, bytes);
        if (bytes > 0) {
            psi_remote_ring(pool);
        }
    }
}

static void ask_for_restore(psi_cache *cache, uint64_t bytes) {
    for (psi_pool *pool = cache->pools; pool != NULL && bytes > 0; pool = pool->next) {
        uint64_t hidden = survey_of(pool).returnable_bytes;
        uint64_t part = hidden < bytes ? hidden : bytes;
        if (part > 0) {
            atomic_store(&pool->want_restore_bytes, part);
            psi_remote_ring(pool);
            bytes -= part;
        }
    }
}

/* Takes back what the engine has not answered yet: an engine that fell idle may now be helped without it, and pressure
 * that went away needs no answer. */
static uint64_t withdraw(psi_cache *cache) {
    uint64_t bytes = 0;
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        atomic_store(&pool->may_drop_bytes, 0);
        atomic_store(&pool->want_write_bytes, 0);
        bytes += atomic_exchange(&pool->want_trim_bytes, 0);
    }
    return bytes;
}

static void tell_pools(psi_cache *cache, const psi_decision *decision) {
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->refuses, decision->refuse && !pool->admits);
        pthread_mutex_unlock(&pool->lock);
        atomic_store(&pool->may_drop, decision->urgent);
    }
}

/* Their owners write ahead themselves; a wish that stays is taken with their steps. */
static void tell_scarcity(psi_cache *cache, bool scarce) {
    if (!atomic_exchange(&cache->scarce, scarce) && scarce) {
        for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
            psi_remote_ring(pool);
        }
    }
}

static void wake_writer(psi_cache *cache, uint64_t until_us) {
    atomic_store(&cache->write_until_us, until_us);
    psi_os_bell_ring(&cache->writer_bell);
}

void psi_give(psi_cache *cache, const psi_decision *decision, const psi_demand *demand) {
    bool pressed = decision->band != PSI_BAND_NONE;
    atomic_store(&cache->pressed, pressed);
    atomic_store(&cache->uneasy, pressed || decision->index > cache->control.options.low);
    atomic_store(&cache->refuses, decision->refuse && demand->evictable_bytes == 0);
    tell_pools(cache, decision);
    tell_scarcity(cache, decision->scarce);
    uint64_t want = decision->trim_bytes + withdraw(cache);
    if (pressed && want > 0) {
        for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
            uint64_t given = trim_asleep(pool, want, decision->urgent);
            want = given < want ? want - given : 0;
        }
        ask_for_trim(cache, want, decision->drop_bytes, demand);
        wake_writer(cache, UINT64_MAX);
    }
    ask_for_restore(cache, decision->restore_bytes);
}

void psi_give_write_ahead(psi_cache *cache) {
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        atomic_store(&pool->want_write_bytes, PORTION_BYTES);
    }
    wake_writer(cache, psi_os_now_us() + WRITE_AHEAD_US);
}
