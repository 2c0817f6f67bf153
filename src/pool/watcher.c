/* watcher.c - the one thread of a cache: sleep, reading, decision, bytes. It sleeps on triggers while every limit is
 * far, and by its own clock when one is near. What is done about a decision is in give.c, what is kept of it in
 * notes.c. */
#include "pool/watcher.h"

#include <stdlib.h>

#include "control/numbers.h"
#include "pool/board.h"

#define REGROW_PERIOD_US 100000u
#define UNARMED_PERIOD_US 100000u    /* stall is all that is known, and nothing would wake us: a tenth of its window */
#define WRITE_AHEAD_PERIOD_US 50000u /* 5 ms of writing in each: far from busy */

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

static void publish(void) {
    psi_board *board = psi_board_own();
    psi_stats stats = {.size = sizeof(stats)};
    take_requests(board);
    psi_registry_stats(&stats);
    psi_board_write_stats(board, &stats);
}

/* Sources that went missing or came back are said once each, when it happens. */
static void say_changes(psi_cache *cache) {
    size_t count = 0;
    uint64_t changed = psi_signal_changes(cache->signal);
    const psi_source *rows = changed != 0 ? psi_signal_sources(cache->signal, &count) : NULL;
    for (size_t i = 0; i < count && i < 64; i++) {
        if ((changed >> i & 1) != 0) {
            psi_cache_log_source(cache, &rows[i]);
        }
    }
}

static void look(psi_cache *cache, psi_reading *reading) {
    uint32_t depth = cache->decision.look != 0 ? cache->decision.look : PSI_LOOK_ALL;
    if (cache->armed > 0 && !cache->woken) { /* reading would swallow the kernel's next event */
        depth &= ~(uint32_t)PSI_LOOK_STALL;
    } else if (cache->woken) {
        depth = PSI_LOOK_ALL;
    }
    psi_signal_note_trigger(cache->signal, cache->trigger_events);
    psi_signal_read(cache->signal, depth, reading);
}

static void decide_and_act(psi_cache *cache, const psi_reading *reading) {
    psi_demand demand;
    pthread_mutex_lock(&cache->lock);
    psi_give_measure(cache, &demand);
    cache->waits_to_return = demand.returnable_bytes > 0;
    cache->reading = *reading;
    psi_control_decide(&cache->control, reading, &demand, &cache->decision);
    bool known = (reading->have & PSI_HAVE_HEADROOM) != 0;
    if (known) { /* what was known last holds until then */
        atomic_store(&cache->room_bytes, reading->headroom_bytes / 2);
    }
    if (cache->settings.controller) {
        psi_notes_decided(cache, &demand);
        psi_give(cache, &cache->decision, &demand);
        if (cache->decision.clean) {
            psi_give_write_ahead(cache);
        }
        psi_notes_given(cache);
        psi_notes_say(cache, &demand);
    }
    pthread_mutex_unlock(&cache->lock);
}

static void watch_once(psi_cache *cache) {
    psi_reading reading;
    tell_own_moves(cache);
    look(cache, &reading);
    decide_and_act(cache, &reading);
    say_changes(cache);
    psi_notes_culprit(cache);
    if (cache->save_tuning) {
        cache->save_tuning = false;
        psi_tuning_file_save(cache);
    }
}

/* Far from every limit a reading is rare; what waits to come back, or to be written, should not wait for it. */
static uint64_t sleep_us(const psi_cache *cache) {
    uint64_t us = cache->decision.sleep_us;
    us = cache->waits_to_return ? psi_least(us, REGROW_PERIOD_US) : us;
    return cache->decision.clean && cache->settings.controller ? psi_least(us, WRITE_AHEAD_PERIOD_US) : us;
}

static void sleep_until_needed(psi_cache *cache, uint64_t us) {
    psi_os_watch watches[PSI_TRIGGERS];
    size_t count = 0;
    cache->armed = 0;
    if (cache->trigger != NULL && cache->decision.arm) {
        cache->armed = psi_trigger_arm(cache->trigger);
    } else if (cache->trigger != NULL) {
        psi_trigger_disarm(cache->trigger);
    }
    if (cache->trigger != NULL) {
        count = psi_trigger_watches(cache->trigger, watches);
    }
    if (cache->armed == 0 && (cache->reading.have & PSI_HAVE_HEADROOM) == 0 &&
        (cache->reading.have & PSI_HAVE_STALL) != 0) {
        us = psi_least(us, UNARMED_PERIOD_US);
    }
    size_t ready = psi_os_wait(&cache->bell, watches, count, us);
    size_t events = ready > 0 ? psi_trigger_take(cache->trigger, watches, count) : 0;
    cache->woken = events > 0;
    if (events > 0) {
        psi_trigger_disarm(cache->trigger);
        pthread_mutex_lock(&cache->lock);
        cache->trigger_events += events;
        pthread_mutex_unlock(&cache->lock);
    }
}

static void *watch(void *argument) {
    psi_cache *cache = argument;
    bool stop = false;
    psi_os_name_thread("psi-watcher");
    while (!stop) {
        watch_once(cache);
        publish();
        pthread_mutex_lock(&cache->lock);
        stop = cache->stop;
        uint64_t us = sleep_us(cache);
        pthread_mutex_unlock(&cache->lock);
        if (!stop) {
            sleep_until_needed(cache, us);
        }
    }
    if (cache->trigger != NULL) {
        psi_trigger_disarm(cache->trigger);
    }
    return NULL;
}

void psi_watcher_start(psi_cache *cache) {
    pthread_mutex_lock(&cache->lock);
    if (!cache->watching && !cache->stop) {
        int error = psi_os_thread_start(&cache->watcher, watch, cache);
        cache->watching = error == 0;
        cache->has_writer = error == 0 && psi_os_thread_start(&cache->writer, psi_writer_run, cache) == 0;
        if (error != 0) {
            psi_log_line(&cache->settings.log, PSI_LOG_WARN,
                         "no watcher thread (error %d): nothing is trimmed by itself", -error);
        }
    }
    pthread_mutex_unlock(&cache->lock);
}

void psi_watcher_stop(psi_cache *cache) {
    pthread_mutex_lock(&cache->lock);
    bool own = !psi_is_forked_child(cache);
    bool watching = cache->watching && own, writing = cache->has_writer && own;
    cache->stop = true;
    cache->has_writer = false;
    psi_os_bell_ring(&cache->bell);
    pthread_mutex_unlock(&cache->lock);
    if (watching) {
        (void)pthread_join(cache->watcher, NULL);
    }
    if (writing) {
        atomic_store(&cache->writer_stops, true);
        psi_os_bell_ring(&cache->writer_bell);
        (void)pthread_join(cache->writer, NULL);
    }
}
