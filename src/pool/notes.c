/* notes.c - what is kept of each decision: counts for psi_stats, reaction time and store speed for the tuning, who
 * pressed, and a line in the log. Watcher's thread; nothing here stands between a reading and its pages. */
#include <string.h>

#include "pool/watcher.h"

#define CULPRIT_EVERY_US 200000u
#define TUNING_SAVE_EVERY_US 60000000u
#define MIB (1u << 20)

/* 0: not yet. */
static uint64_t earlier(uint64_t a_us, uint64_t b_us) { return b_us != 0 && (a_us == 0 || b_us < a_us) ? b_us : a_us; }

static psi_totals totals_of(psi_cache *cache) {
    psi_totals t = {0};
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        t.trimmed_bytes += pool->trimmed_bytes;
        t.restored_bytes += pool->restored_bytes;
        t.returned_bytes += pool->returned_bytes;
        t.pending_bytes += psi_pool_pending_bytes(pool);
        t.written_bytes += pool->written_bytes;
        t.write_us += pool->write_us;
        t.read_bytes += pool->read_bytes;
        t.read_us += pool->read_us;
        t.given_at_us = pool->given_at_us > t.given_at_us ? pool->given_at_us : t.given_at_us;
        t.first_given_at_us = earlier(t.first_given_at_us, pool->first_given_at_us);
        pthread_mutex_unlock(&pool->lock);
    }
    return t;
}

static void log_trim(const psi_cache *cache, const psi_demand *demand) {
    const psi_decision *d = &cache->decision;
    psi_log_line(&cache->settings.log, PSI_LOG_INFO,
                 "%s: index %.2f (%s), headroom %llu MiB: %llu of %llu MiB asked back", d->urgent ? "urgent" : "trim",
                 d->index, psi_decision_reason(d), (unsigned long long)(cache->reading.headroom_bytes / MIB),
                 (unsigned long long)(d->trim_bytes / MIB), (unsigned long long)(demand->resident_bytes / MIB));
}

/* An ask begins with a trim while none is on its way; what later readings want more of belongs to the next. */
static void open_ask(psi_cache *cache, const psi_demand *demand) {
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        pool->first_given_at_us = 0;
        pthread_mutex_unlock(&pool->lock);
    }
    psi_totals t = totals_of(cache);
    cache->ask = (psi_ask){.open = true,
                           .since_us = cache->fine_at_us != 0 ? cache->fine_at_us : cache->reading.at_us,
                           .asked_us = cache->reading.at_us,
                           .written_before_us = t.write_us,
                           .returned_before = demand->returned_bytes,
                           .bytes = cache->decision.trim_bytes};
    cache->ask_is_new = true;
}

void psi_notes_decided(psi_cache *cache, const psi_demand *demand) {
    const psi_decision *d = &cache->decision;
    psi_tally *tally = &cache->tally;
    tally->readings++;
    tally->safety_trims += d->trim_bytes > 0 && d->band == PSI_BAND_SAFETY;
    tally->comfort_trims += d->trim_bytes > 0 && d->band == PSI_BAND_COMFORT;
    tally->guarded_trims += d->guarded && !cache->guarded_before;
    cache->guarded_before = d->guarded;
    if (d->trim_bytes > 0 && !cache->ask.open) {
        open_ask(cache, demand);
    }
    if (d->trim_bytes == 0) { /* above the limit, too: nothing more was needed then */
        cache->fine_at_us = cache->reading.at_us;
    }
}

static void see_first_pages(psi_cache *cache, const psi_totals *t) {
    psi_tally *tally = &cache->tally;
    if (!cache->ask.open || cache->ask.seen || t->first_given_at_us == 0) {
        return;
    }
    cache->ask.seen = true;
    tally->reaction_last_us = t->first_given_at_us - cache->ask.since_us;
    tally->reaction_most_us =
        tally->reaction_last_us > tally->reaction_most_us ? tally->reaction_last_us : tally->reaction_most_us;
}

/* The answer is there when what was asked is given, or is asked no more. How long it took is this engine's reaction
 * time. While the store wrote meanwhile, only the time beyond that is surely the engine's: it may show a worse
 * reaction, and never a better one. */
static void close_ask(psi_cache *cache, const psi_totals *t) {
    psi_ask *ask = &cache->ask;
    uint64_t returned = t->returned_bytes - ask->returned_before;
    if (!ask->open || (t->pending_bytes > 0 && returned < ask->bytes)) {
        return;
    }
    ask->open = false;
    cache->fine_at_us = cache->reading.at_us;
    if (returned == 0 || t->given_at_us < ask->asked_us) {
        return;
    }
    uint64_t took_us = t->given_at_us - ask->asked_us, wrote_us = t->write_us - ask->written_before_us;
    uint64_t own_us = took_us > wrote_us ? took_us - wrote_us : 0;
    if (wrote_us == 0 || (double)own_us > cache->control.tuning.reaction_us) {
        psi_tuning_note_reaction(&cache->control.tuning, own_us);
    }
}

static void note_direction(psi_cache *cache, const psi_totals *t) {
    if (t->trimmed_bytes > cache->totals.trimmed_bytes && cache->direction != -1) {
        cache->direction = -1;
        cache->tally.trim_cycles++;
    }
    if (t->restored_bytes > cache->totals.restored_bytes && cache->direction != 1) {
        cache->direction = 1;
        cache->tally.regrow_cycles++;
    }
}

static void note_store(psi_cache *cache, const psi_totals *t) {
    psi_tuning *tuning = &cache->control.tuning;
    if (t->written_bytes > cache->totals.written_bytes) {
        psi_tuning_note_write(tuning, t->written_bytes - cache->totals.written_bytes,
                              t->write_us - cache->totals.write_us);
    }
    if (t->read_bytes > cache->totals.read_bytes) {
        psi_tuning_note_read(tuning, t->read_bytes - cache->totals.read_bytes, t->read_us - cache->totals.read_us);
    }
}

void psi_notes_given(psi_cache *cache) {
    psi_totals t = totals_of(cache);
    see_first_pages(cache, &t);
    close_ask(cache, &t);
    note_direction(cache, &t);
    note_store(cache, &t);
    cache->totals = t;
}

void psi_notes_say(psi_cache *cache, const psi_demand *demand) {
    if (cache->ask_is_new) {
        cache->ask_is_new = false;
        log_trim(cache, demand);
    }
    uint64_t now_us = cache->reading.at_us;
    if (cache->decision.band == PSI_BAND_NONE && now_us - cache->tuning_saved_us >= TUNING_SAVE_EVERY_US) {
        cache->tuning_saved_us = now_us;
        cache->save_tuning = true;
    }
}

void psi_notes_culprit(psi_cache *cache) {
    bool pressed = cache->decision.band != PSI_BAND_NONE || cache->decision.guarded;
    uint64_t now_us = psi_os_now_us();
    if (!pressed || cache->culprits == NULL || now_us - cache->culprits_at_us < CULPRIT_EVERY_US) {
        return;
    }
    cache->culprits_at_us = now_us;
    psi_culprits_look(cache->culprits, now_us);
    psi_culprit named;
    psi_culprits_name(cache->culprits, &named);
    if (!named.has_grower && !named.has_staller) {
        return;
    }
    pthread_mutex_lock(&cache->lock);
    bool is_new = strcmp(named.grower, cache->culprit.grower) != 0;
    if (named.has_grower) {
        memcpy(cache->culprit.grower, named.grower, sizeof(named.grower));
        cache->culprit.has_grower = true;
    }
    if (named.has_staller) {
        memcpy(cache->culprit.staller, named.staller, sizeof(named.staller));
        cache->culprit.has_staller = true;
    }
    pthread_mutex_unlock(&cache->lock);
    if (named.has_grower && is_new) {
        psi_log_line(&cache->settings.log, PSI_LOG_INFO, "growing most: %s, %lld MiB/s", named.grower,
                     (long long)(named.grew_bytes_per_s / (int64_t)MIB));
    }
}
