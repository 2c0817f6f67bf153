/* watcher.c - the one thread of a cache: reading -> decision -> bytes. It gives back at once what no step can read, and
 * leaves the rest as a request that the engine's thread takes at its safe point. */
#include <stdlib.h>

#include "os/os.h"
#include "pool/board.h"
#include "pool/cache.h"

/* A trim holds the pool's lock, for which the engine may wait: so in portions. */
#define PORTION_BYTES (UINT64_C(2) << 20)
#define PORTION_PAUSE_US 100u
#define REGROW_PERIOD_US 100000u

static void measure_demand(psi_cache *cache, psi_demand *demand) {
    *demand = (psi_demand){0};
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        psi_trim_survey(pool);
        demand->resident_bytes += (uint64_t)pool->resident * pool->block_total_bytes;
        demand->evictable_bytes += pool->evictable_bytes;
        demand->returnable_bytes += (uint64_t)pool->hidden * pool->block_total_bytes;
        demand->pending_bytes += atomic_load(&pool->want_trim_bytes);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Gives back blocks that the present step cannot read. Returns what is left to be given. */
static uint64_t trim_asleep(psi_cache *cache, uint64_t want_bytes) {
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        bool first = true;
        while (want_bytes > 0) {
            pthread_mutex_lock(&pool->lock);
            uint64_t portion = want_bytes < PORTION_BYTES ? want_bytes : PORTION_BYTES;
            uint64_t given = psi_trim(pool, portion, PSI_TRIM_ASLEEP, pool->floor_bytes);
            pool->trims += first && given > 0;
            first = false;
            pthread_mutex_unlock(&pool->lock);
            want_bytes = given < want_bytes ? want_bytes - given : 0;
            if (given == 0) {
                break;
            }
            psi_os_pause_us(PORTION_PAUSE_US);
        }
    }
    return want_bytes;
}

static void survey_of(psi_pool *pool, uint64_t *evictable_bytes, uint64_t *hidden_bytes) {
    pthread_mutex_lock(&pool->lock);
    *evictable_bytes = pool->evictable_bytes;
    *hidden_bytes = (uint64_t)pool->hidden * pool->block_total_bytes;
    pthread_mutex_unlock(&pool->lock);
}

/* Asks each pool for its part of the rest. */
static void ask_for_trim(psi_cache *cache, uint64_t want_bytes, uint64_t evictable_bytes) {
    for (psi_pool *pool = cache->pools; pool != NULL && evictable_bytes > 0; pool = pool->next) {
        uint64_t evictable = 0, hidden = 0;
        survey_of(pool, &evictable, &hidden);
        double part = (double)evictable / (double)evictable_bytes;
        uint64_t bytes = (uint64_t)((double)want_bytes * (part < 1 ? part : 1));
        (void)atomic_fetch_add(&pool->want_trim_bytes, bytes);
    }
}

static void ask_for_restore(psi_cache *cache, uint64_t bytes) {
    for (psi_pool *pool = cache->pools; pool != NULL && bytes > 0; pool = pool->next) {
        uint64_t evictable = 0, hidden = 0;
        survey_of(pool, &evictable, &hidden);
        uint64_t part = hidden < bytes ? hidden : bytes;
        if (part > 0) {
            atomic_store(&pool->want_restore_bytes, part);
            bytes -= part;
        }
    }
}

/* Takes back what the engine has not answered yet: an engine that fell idle may now be helped without it, and pressure
 * that went away needs no answer. */
static uint64_t withdraw(psi_cache *cache) {
    uint64_t bytes = 0;
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        bytes += atomic_exchange(&pool->want_trim_bytes, 0);
    }
    return bytes;
}

static void act(psi_cache *cache, const psi_decision *decision, const psi_demand *demand) {
    bool pressed = decision->index > cache->control.options.high;
    atomic_store(&cache->pressed, pressed);
    atomic_store(&cache->refuses, decision->refuse && demand->evictable_bytes == 0);
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->refuses, decision->refuse && !pool->exchangeable);
        pthread_mutex_unlock(&pool->lock);
        atomic_store(&pool->may_drop, decision->urgent);
    }
    uint64_t want = decision->trim_bytes + withdraw(cache);
    if (pressed && want > 0) {
        ask_for_trim(cache, trim_asleep(cache, want), demand->evictable_bytes);
    }
    ask_for_restore(cache, decision->restore_bytes);
}

static void take_requests(psi_board *board) {
    uint32_t permille = atomic_exchange(&board->trim_permille, 0);
    bool restore = atomic_exchange(&board->restore, 0) != 0;
    if (permille > 0 && permille <= 1000) {
        (void)psi_cache_trim(NULL, permille / 1000.0); /* the board is the process's */
    }
    if (restore) {
        (void)psi_cache_restore(NULL);
    }
}

/* What we took and gave ourselves is no spike. Never more is taken than was given: where blocks share pages, less went
 * than the blocks' bytes. */
static void tell_own_moves(psi_cache *cache) {
    int64_t balance = 0;
    pthread_mutex_lock(&cache->lock);
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        balance += psi_pool_own_balance_bytes(pool);
        pthread_mutex_unlock(&pool->lock);
    }
    psi_signal_took(cache->signal, balance - cache->own_balance_bytes);
    cache->own_balance_bytes = balance;
    pthread_mutex_unlock(&cache->lock);
}

static uint64_t watch_once(psi_cache *cache) {
    psi_reading reading;
    psi_demand demand;
    psi_decision decision;
    tell_own_moves(cache);
    psi_signal_read(cache->signal, &reading);
    pthread_mutex_lock(&cache->lock);
    measure_demand(cache, &demand);
    psi_control_decide(&cache->control, &reading, &demand, &decision);
    cache->reading = reading;
    cache->decision = decision;
    atomic_store(&cache->room_bytes, (reading.have & PSI_HAVE_HEADROOM) != 0 ? reading.headroom_bytes / 2 : UINT64_MAX);
    if (cache->settings.controller) {
        act(cache, &decision, &demand);
    }
    pthread_mutex_unlock(&cache->lock);
    /* Far from every limit a reading is rare; what waits to come back should not wait for it. */
    bool regrows = demand.returnable_bytes > 0 && decision.sleep_us > REGROW_PERIOD_US;
    return regrows ? REGROW_PERIOD_US : decision.sleep_us;
}

static void publish(void) {
    psi_board *board = psi_board_own();
    psi_stats stats = {.size = sizeof(stats)};
    take_requests(board);
    psi_registry_stats(&stats);
    psi_board_write_stats(board, &stats);
}

static void *watch(void *argument) {
    psi_cache *cache = argument;
    bool stop = false;
    while (!stop) {
        uint64_t sleep_us = watch_once(cache);
        publish();
        pthread_mutex_lock(&cache->lock);
        if (!cache->stop) {
            psi_os_condition_wait(&cache->wake, &cache->lock, sleep_us);
        }
        stop = cache->stop;
        pthread_mutex_unlock(&cache->lock);
    }
    return NULL;
}

void psi_watcher_start(psi_cache *cache) {
    pthread_mutex_lock(&cache->lock);
    if (!cache->watching && !cache->stop) {
        int error = psi_os_thread_start(&cache->watcher, watch, cache);
        cache->watching = error == 0;
        if (error != 0) {
            psi_log_line(&cache->settings.log, PSI_LOG_WARN,
                         "no watcher thread (error %d): nothing is trimmed by itself", -error);
        }
    }
    pthread_mutex_unlock(&cache->lock);
}

void psi_watcher_stop(psi_cache *cache) {
    pthread_mutex_lock(&cache->lock);
    bool watching = cache->watching && !psi_is_forked_child(cache);
    cache->stop = true;
    pthread_cond_signal(&cache->wake);
    pthread_mutex_unlock(&cache->lock);
    if (watching) {
        (void)pthread_join(cache->watcher, NULL);
    }
}
