/* cache.c - the cache: opens signals and control, keeps the pools, answers for them. The watcher thread itself is in
 * watcher.c. Lock order: registry, writing, cache, pool; a pool's code takes none of the first two. */
#include "pool/cache.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static psi_cache *registry;
static double process_high = -1, process_low = -1; /* psi_set_cache_limit; under registry_lock */
static pthread_once_t fork_handlers = PTHREAD_ONCE_INIT;

/* ---- fork: the child must not find a lock held by a thread that it does not have ---------------- */

static void before_fork(void) {
    pthread_mutex_lock(&registry_lock);
    for (psi_cache *cache = registry; cache != NULL; cache = cache->next) {
        pthread_mutex_lock(&cache->writing); /* waits for one block at most */
        pthread_mutex_lock(&cache->lock);
        for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
            pthread_mutex_lock(&pool->lock);
        }
    }
}

/* A cache's lock last: it guards the list of its pools. */
static void after_fork(void) {
    for (psi_cache *cache = registry; cache != NULL; cache = cache->next) {
        for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
            pthread_mutex_unlock(&pool->lock);
        }
        pthread_mutex_unlock(&cache->lock);
        pthread_mutex_unlock(&cache->writing);
    }
    pthread_mutex_unlock(&registry_lock);
}

static void add_fork_handlers(void) { (void)pthread_atfork(before_fork, after_fork, after_fork); }

/* ---- limits ----------------------------------------------------------------------------------- */

int psi_set_cache_limits(double high, double low) {
    if (!(low >= 0 && low < high && high <= 1)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&registry_lock);
    process_high = high;
    process_low = low;
    for (psi_cache *cache = registry; cache != NULL; cache = cache->next) {
        pthread_mutex_lock(&cache->lock);
        psi_control_set_limits(&cache->control, high, low);
        psi_os_bell_ring(&cache->bell);
        pthread_mutex_unlock(&cache->lock);
    }
    pthread_mutex_unlock(&registry_lock);
    return 0;
}

int psi_set_cache_limit(double high) { return psi_set_cache_limits(high, high * 3 / 7); }

/* ---- open, close ------------------------------------------------------------------------------- */

/* Never silently inactive: what leads the controller is missed aloud, the rest on request. */
void psi_cache_log_source(const psi_cache *cache, const psi_source *s) {
    bool leads = strcmp(s->name, "psi.system.memory") == 0 || strcmp(s->name, "meminfo") == 0;
    if (s->in_use) {
        psi_log_line(&cache->settings.log, PSI_LOG_INFO, "source %s: %s", s->name, s->detail);
    } else {
        psi_log_line(&cache->settings.log, leads ? PSI_LOG_WARN : PSI_LOG_INFO, "source %s is missing: %s%s%s", s->name,
                     s->detail, s->cure[0] != '\0' ? "; " : "", s->cure);
    }
}

static void log_sources(const psi_cache *cache) {
    size_t count = 0;
    const psi_source *sources = psi_signal_sources(cache->signal, &count);
    for (size_t i = 0; i < count; i++) {
        psi_cache_log_source(cache, &sources[i]);
    }
}

static int open_senses(psi_cache *cache) {
    psi_signal_options options = {.root = cache->settings.root};
    cache->signal = psi_signal_open(&options);
    if (cache->signal == NULL) {
        return -ENOMEM;
    }
    /* Both are a help and no need: without them (memory is short) the watcher sleeps less long, and names nobody. */
    cache->trigger = psi_trigger_open(cache->settings.root, psi_signal_group_v2(cache->signal));
    cache->culprits = psi_culprits_open(cache->settings.root);
    int error = psi_os_bell_open(&cache->bell);
    return error != 0 ? error : psi_os_bell_open(&cache->writer_bell);
}

static void close_senses(psi_cache *cache) {
    psi_culprits_close(cache->culprits);
    psi_trigger_close(cache->trigger);
    psi_signal_close(cache->signal);
    psi_os_bell_close(&cache->bell);
    psi_os_bell_close(&cache->writer_bell);
}

psi_cache *psi_cache_open(const psi_options *options) {
    psi_cache *cache = calloc(1, sizeof(*cache));
    if (cache == NULL) {
        return NULL;
    }
    int error = psi_settings_resolve(&cache->settings, options);
    cache->bell = cache->writer_bell = (psi_os_bell){{-1, -1}};
    if (error == 0) {
        error = open_senses(cache);
    }
    if (error != 0) {
        close_senses(cache);
        free(cache);
        errno = -error;
        return NULL;
    }
    cache->process_id = psi_os_process_id();
    cache->store_left_bytes = cache->settings.store_max_bytes;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_mutex_init(&cache->writing, NULL);
    psi_budget_open(&cache->write_budget, cache->settings.store_hour_max_bytes);
    psi_control_init(&cache->control, &cache->settings.control);
    psi_tuning_file_load(cache);
    atomic_init(&cache->room_bytes, UINT64_MAX);
    atomic_init(&cache->recalls, cache->settings.recall);
    atomic_init(&cache->exact, cache->settings.exact);
    atomic_init(&cache->score_share, cache->settings.score_share);
    atomic_init(&cache->recall_share, cache->settings.recall_share);
    log_sources(cache);
    (void)pthread_once(&fork_handlers, add_fork_handlers);
    pthread_mutex_lock(&registry_lock);
    if (process_high >= 0) {
        psi_control_set_limits(&cache->control, process_high, process_low);
    }
    cache->next = registry;
    registry = cache;
    pthread_mutex_unlock(&registry_lock);
    return cache;
}

void psi_cache_close(psi_cache *cache) {
    if (cache == NULL) {
        return;
    }
    psi_watcher_stop(cache);
    pthread_mutex_lock(&registry_lock);
    psi_cache **link = &registry;
    while (*link != NULL && *link != cache) {
        link = &(*link)->next;
    }
    if (*link == cache) {
        *link = cache->next;
    }
    pthread_mutex_unlock(&registry_lock);
    if (!psi_is_forked_child(cache)) {
        psi_tuning_file_save(cache);
    }
    close_senses(cache);
    pthread_mutex_destroy(&cache->lock);
    pthread_mutex_destroy(&cache->writing);
    psi_budget_close(&cache->write_budget);
    free(cache);
}

#define WRITE_FOR_RECALL_US 20000u

/* ---- for the pools ----------------------------------------------------------------------------- */

bool psi_is_forked_child(const psi_cache *cache) { return cache->process_id != psi_os_process_id(); }

const psi_log *psi_cache_log(const psi_cache *cache) { return &cache->settings.log; }

uint64_t psi_cache_floor_bytes(const psi_cache *cache) { return cache->settings.floor_bytes; }

bool psi_cache_refuses(const psi_cache *cache) { return atomic_load(&cache->refuses); }

bool psi_cache_is_pressed(const psi_cache *cache) { return atomic_load(&cache->pressed); }

uint64_t psi_cache_take_room(psi_cache *cache, uint64_t want_bytes) {
    uint64_t room = atomic_load(&cache->room_bytes), taken = 0;
    do {
        taken = want_bytes < room ? want_bytes : room;
    } while (room != UINT64_MAX && !atomic_compare_exchange_weak(&cache->room_bytes, &room, room - taken));
    return taken;
}

bool psi_cache_take_whole_room(psi_cache *cache, uint64_t want_bytes) {
    uint64_t room = atomic_load(&cache->room_bytes);
    while (room != UINT64_MAX && room >= want_bytes &&
           !atomic_compare_exchange_weak(&cache->room_bytes, &room, room - want_bytes)) {
    }
    return room >= want_bytes;
}

void psi_cache_wake_writer(psi_cache *cache) {
    uint64_t until_us = psi_os_now_us() + WRITE_FOR_RECALL_US, before_us = atomic_load(&cache->write_until_us);
    if (before_us < until_us) {
        (void)atomic_compare_exchange_strong(&cache->write_until_us, &before_us, until_us); /* a newer one stays */
    }
    psi_os_bell_ring(&cache->writer_bell);
}

static void say_budget(psi_cache *cache) {
    if (!atomic_exchange(&cache->budget_said, true)) {
        psi_log_line(&cache->settings.log, PSI_LOG_WARN,
                     "the stores have written what PSI_CACHE_STORE_HOUR_MAX_BYTES allows in an hour: %s",
                     cache->settings.store_hour_strict
                         ? "blocks stay in memory, and are dropped where that would end the process"
                         : "blocks are written only once memory is short, which makes trims slower");
    }
}

int psi_cache_take_write(psi_cache *cache, uint64_t bytes, bool must) {
    uint64_t now_us = psi_os_now_us();
    if (must && !cache->settings.store_hour_strict) {
        psi_budget_overdraw(&cache->write_budget, bytes, now_us);
        return 0;
    }
    if (psi_budget_take(&cache->write_budget, bytes, now_us)) {
        return 0;
    }
    say_budget(cache);
    return -EAGAIN;
}

bool psi_cache_may_write(psi_cache *cache, uint64_t bytes) {
    bool pressed = atomic_load(&cache->pressed) && !cache->settings.store_hour_strict;
    bool may = pressed || psi_budget_allows(&cache->write_budget, bytes, psi_os_now_us());
    if (!may) {
        say_budget(cache);
    }
    return may;
}

void psi_cache_tidy(psi_cache *cache) { psi_os_bell_ring(&cache->writer_bell); }

void psi_cache_look_again(psi_cache *cache) {
    if (!psi_is_forked_child(cache)) { /* the bell is the parent's */
        psi_os_bell_ring(&cache->bell);
    }
}

/* Each pool's store is a file of its own; together they stay below store_max_bytes. */
int psi_cache_open_store(psi_cache *cache, psi_pool *pool) {
    if (strcmp(cache->settings.store, "none") == 0) {
        return 0;
    }
    uint32_t slots = pool->blocks + 1; /* a block may be on its way twice: written ahead, and by its engine */
    uint64_t want = (uint64_t)slots * pool->record_bytes;
    pthread_mutex_lock(&cache->lock);
    uint64_t may = want < cache->store_left_bytes ? want : cache->store_left_bytes;
    int error = psi_store_open(&pool->store, "file", cache->settings.store_dir, may, pool->record_bytes, slots);
    if (error == 0) {
        pool->store_granted_bytes = may;
        cache->store_left_bytes -= may;
    }
    pthread_mutex_unlock(&cache->lock);
    return error;
}

void psi_cache_add_pool(psi_cache *cache, psi_pool *pool) {
    pthread_mutex_lock(&cache->lock);
    atomic_store(&pool->policy, cache->settings.policy);
    pool->next = cache->pools;
    cache->pools = pool;
    pthread_mutex_unlock(&cache->lock);
    psi_watcher_start(cache);
}

void psi_cache_remove_pool(psi_cache *cache, psi_pool *pool) {
    pthread_mutex_lock(&cache->writing);
    pthread_mutex_lock(&cache->lock);
    psi_pool **link = &cache->pools;
    while (*link != NULL && *link != pool) {
        link = &(*link)->next;
    }
    if (*link == pool) {
        *link = pool->next;
    }
    cache->own_balance_bytes -= psi_pool_own_balance_bytes(pool);
    cache->store_left_bytes += pool->store_granted_bytes;
    pthread_mutex_unlock(&cache->lock);
    pthread_mutex_unlock(&cache->writing);
}

/* ---- by hand ----------------------------------------------------------------------------------- */

static void request(psi_cache *cache, uint32_t trim_permille, bool restore) {
    pthread_mutex_lock(&cache->lock);
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        if (trim_permille > 0) {
            psi_control_note_trim(&cache->control, psi_os_now_us()); /* nor does the controller undo it at once */
            atomic_store(&pool->want_trim_permille, trim_permille);
            atomic_store(&pool->want_restore_all, false);
        }
        if (restore) {
            atomic_store(&pool->want_restore_all, true);
            atomic_store(&pool->want_trim_permille, 0);
        }
        psi_remote_ring(pool);
    }
    pthread_mutex_unlock(&cache->lock);
}

static int request_of(psi_cache *cache, uint32_t trim_permille, bool restore) {
    if (cache != NULL) {
        request(cache, trim_permille, restore);
        return 0;
    }
    pthread_mutex_lock(&registry_lock);
    for (psi_cache *each = registry; each != NULL; each = each->next) {
        request(each, trim_permille, restore);
    }
    pthread_mutex_unlock(&registry_lock);
    return 0;
}

int psi_cache_trim(psi_cache *cache, double share) {
    if (!(share > 0 && share <= 1)) {
        return -EINVAL;
    }
    uint32_t permille = (uint32_t)(share * 1000 + 0.5);
    return request_of(cache, permille > 0 ? permille : 1, false);
}

int psi_cache_restore(psi_cache *cache) { return request_of(cache, 0, true); }

int psi_cache_set(psi_cache *cache, const char *name, const char *value) {
    if (name == NULL || value == NULL) {
        return -EINVAL;
    }
    if (cache != NULL) {
        return psi_cache_set_one(cache, name, value);
    }
    int error = -ENODEV;
    pthread_mutex_lock(&registry_lock);
    for (psi_cache *each = registry; each != NULL && (error == 0 || error == -ENODEV); each = each->next) {
        error = psi_cache_set_one(each, name, value);
    }
    pthread_mutex_unlock(&registry_lock);
    return error;
}

/* ---- what happened ----------------------------------------------------------------------------- */

static void add_pool_stats(psi_stats *s, psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    uint64_t bytes = pool->block_total_bytes;
    s->capacity_bytes += (pool->is_remote ? pool->lane_blocks : pool->blocks) * bytes;
    s->withheld_bytes += pool->counts.withheld * bytes;
    s->resident_bytes += pool->resident * bytes;
    s->stored_bytes += pool->stored * bytes;
    s->dropped_bytes += pool->dropped * bytes;
    s->trims += pool->trims;
    s->restores += pool->restores;
    s->refusals += pool->refusals;
    s->trimmed_bytes += pool->trimmed_bytes;
    s->restored_bytes += pool->restored_bytes;
    s->store_errors += pool->store_errors;
    s->written_bytes += pool->written_bytes;
    s->clean_bytes += pool->clean_bytes;
    s->recalls += pool->recalls;
    s->recalled_bytes += pool->recalled_bytes;
    s->recall_us += pool->recall_us;
    s->recomputed_bytes += pool->recomputed_bytes;
    s->recompute_us += pool->recompute_us;
    s->steps = pool->step > s->steps ? pool->step : s->steps;
    s->pools++;
    pthread_mutex_unlock(&pool->lock);
}

static double if_known(const psi_reading *reading, uint32_t what, double value) {
    return (reading->have & what) != 0 ? value : -1;
}

static void copy_reading(psi_stats *s, const psi_reading *r) {
    bool headroom = (r->have & PSI_HAVE_HEADROOM) != 0;
    s->headroom_bytes = headroom ? r->headroom_bytes : UINT64_MAX;
    s->limit_bytes = headroom ? r->limit_bytes : UINT64_MAX;
    s->missing_bytes = headroom ? r->missing_bytes : 0;
    s->fill_bytes_per_s = (r->have & PSI_HAVE_FILL) != 0 ? r->fill_bytes_per_s : 0;
    s->stall_some_share = if_known(r, PSI_HAVE_STALL, r->stall_some_share);
    s->avg10_share = if_known(r, PSI_HAVE_AVG10, r->avg10_share);
    s->refaults_per_s = if_known(r, PSI_HAVE_REFAULTS, r->refaults_per_s);
    s->major_faults_per_s = if_known(r, PSI_HAVE_FAULTS, r->major_faults_per_s);
}

static void copy_decision(psi_stats *s, const psi_decision *d) {
    s->index = d->index;
    s->index_stall = d->index_stall;
    s->index_headroom = d->index_headroom;
    s->index_forecast = d->index_forecast;
    s->index_thrash = d->index_thrash;
    s->band = (uint64_t)d->band;
    s->guarded = d->guarded;
    s->effect = (uint64_t)d->effect;
    s->ceiling_bytes = d->ceiling_bytes;
}

static void copy_control(psi_stats *s, const psi_control *control) {
    s->mode = (uint64_t)control->options.mode;
    s->high = control->options.high;
    s->low = control->options.low;
    s->reserve_bytes = control->mapping.reserve_bytes;
    s->reaction_us = control->mapping.reaction_us;
    s->write_bytes_per_s = control->mapping.write_bytes_per_s;
    s->stall_at_anchor = control->mapping.stall_at_anchor;
    s->stall_normal_share = control->tuning.stall_normal_share;
    s->fill_most_bytes_per_s = control->tuning.fill_most_bytes_per_s;
}

static void add_tally(psi_stats *s, const psi_tally *tally) {
    s->readings += tally->readings;
    s->safety_trims += tally->safety_trims;
    s->comfort_trims += tally->comfort_trims;
    s->guarded_trims += tally->guarded_trims;
    s->trim_cycles += tally->trim_cycles;
    s->regrow_cycles += tally->regrow_cycles;
    s->reaction_last_us = tally->reaction_last_us;
    s->reaction_most_us = tally->reaction_most_us > s->reaction_most_us ? tally->reaction_most_us : s->reaction_most_us;
}

/* Adds one cache; the first, or the one under more pressure, gives index, limits and headroom. */
static void add_cache_stats(psi_stats *s, psi_cache *cache, bool first) {
    pthread_mutex_lock(&cache->lock);
    if (first || cache->decision.index > s->index) {
        copy_reading(s, &cache->reading);
        copy_decision(s, &cache->decision);
        copy_control(s, &cache->control);
        (void)snprintf(s->grower, sizeof(s->grower), "%s", cache->culprit.has_grower ? cache->culprit.grower : "");
        (void)snprintf(s->staller, sizeof(s->staller), "%s", cache->culprit.has_staller ? cache->culprit.staller : "");
    }
    add_tally(s, &cache->tally);
    s->trigger_events += cache->trigger_events;
    s->store_hour_bytes += psi_budget_hour_bytes(&cache->write_budget, psi_os_now_us());
    s->store_hour_max_bytes += cache->write_budget.most_bytes;
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        add_pool_stats(s, pool);
    }
    pthread_mutex_unlock(&cache->lock);
}

void psi_registry_stats(psi_stats *stats) {
    pthread_mutex_lock(&registry_lock);
    for (psi_cache *each = registry; each != NULL; each = each->next) {
        add_cache_stats(stats, each, each == registry);
    }
    pthread_mutex_unlock(&registry_lock);
}

int psi_stats_read(psi_cache *cache, psi_stats *stats) {
    if (stats == NULL || stats->size < sizeof(stats->size)) {
        return -EINVAL;
    }
    size_t size = stats->size < sizeof(*stats) ? stats->size : sizeof(*stats); /* an older header knows fewer fields */
    pthread_mutex_lock(&registry_lock);
    bool any = registry != NULL;
    pthread_mutex_unlock(&registry_lock);
    if (cache == NULL && !any) {
        return -ENODEV;
    }
    psi_stats made = {.size = sizeof(made)};
    if (cache != NULL) {
        add_cache_stats(&made, cache, true);
    } else {
        psi_registry_stats(&made);
    }
    made.size = stats->size;
    memcpy(stats, &made, size);
    return 0;
}

#define QUOTE(x) #x
#define VERSION(a, b, c) QUOTE(a) "." QUOTE(b) "." QUOTE(c)

const char *psi_version(void) { return VERSION(PSI_VERSION_MAJOR, PSI_VERSION_MINOR, PSI_VERSION_PATCH); }
