/* pool.c - a pool's life, its blocks' coming and going, and the safe point at which everything happens. From
 * psi_pool_step a spike is followed to its pages: requests -> psi_trim -> psi_layout_give_back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/numbers.h"
#include "os/os.h"
#include "pool/pool.h"

#define DEFAULT_BLOCK_BYTES 65536u

/* A sequence that so many steps did not name slept: more than those that take turns leave each other out. */
#define PSI_SLEEP_STEPS 16u

static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

static void free_parts(psi_pool *pool) {
    psi_store_close(pool->store);
    psi_fetch_close(pool);
    psi_os_unreserve(pool->record, pool->record_bytes);
    psi_os_unreserve(pool->ahead, pool->record_bytes);
    psi_os_unreserve(pool->arena, pool->arena_bytes);
    free(pool->planes);
    free(pool->block);
    free(pool->candidates);
    free(pool);
}

static int plane_is_sound(const psi_plane *plane, uint32_t blocks) {
    return plane->base != NULL && plane->block_bytes > 0 && plane->column_bytes <= plane->block_bytes * blocks &&
           plane->column_bytes > plane->block_bytes * (blocks - 1) &&
           (plane->columns <= 1 || plane->column_stride_bytes >= plane->column_bytes);
}

static int copy_planes(psi_pool *pool, const psi_pool_options *options) {
    size_t count = (size_t)pool->lanes * pool->planes_per_lane;
    for (size_t i = 0; i < count; i++) {
        pool->planes[i] = options->planes[i];
        if (pool->planes[i].columns == 0) {
            pool->planes[i].columns = 1;
        }
        if (!plane_is_sound(&pool->planes[i], pool->lane_blocks)) {
            psi_log_line(psi_cache_log(pool->cache), PSI_LOG_ERROR,
                         "pool %s: plane %zu does not hold %u blocks (block_bytes %zu, column_bytes %zu): describe the "
                         "tensor's rows",
                         pool->name, i, pool->lane_blocks, pool->planes[i].block_bytes, pool->planes[i].column_bytes);
            return -EINVAL;
        }
    }
    return 0;
}

static void fill_blocks(psi_pool *pool) {
    for (uint32_t i = 0; i < pool->blocks; i++) {
        pool->block[i].slot = PSI_SLOT_NONE;
        psi_score_forget(&pool->block[i]);
    }
    for (uint32_t lane = 0; lane < pool->lanes; lane++) {
        size_t bytes = psi_layout_block_bytes(pool, lane * pool->lane_blocks);
        pool->block_total_bytes = bytes > pool->block_total_bytes ? bytes : pool->block_total_bytes;
    }
}

static void open_store(psi_pool *pool) {
    int error = psi_cache_open_store(pool->cache, pool);
    if (error != 0) {
        psi_log_line(psi_cache_log(pool->cache), PSI_LOG_WARN,
                     "no store for pool %s (error %d): trimmed blocks are dropped; name a writable directory in "
                     "PSI_CACHE_STORE_DIR",
                     pool->name, -error);
    }
}

static psi_pool *make(psi_cache *cache, const psi_pool_options *options, uint32_t lanes, uint32_t planes_per_lane) {
    psi_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) {
        return NULL;
    }
    pool->cache = cache;
    (void)snprintf(pool->name, sizeof(pool->name), "%s", options->name != NULL ? options->name : "pool");
    pthread_mutex_init(&pool->lock, NULL);
    pool->page_bytes = psi_os_page_bytes();
    pool->lanes = lanes;
    pool->lane_blocks = options->blocks;
    pool->blocks = lanes * options->blocks;
    pool->planes_per_lane = planes_per_lane;
    pool->keep_first = options->keep_first != 0 ? options->keep_first : 1;
    pool->keep_newest = options->keep_newest != 0 ? options->keep_newest : 2;
    pool->moved = options->moved;
    pool->moved_user = options->moved_user;
    atomic_init(&pool->policy, psi_policy_find(NULL)); /* the cache's is set when the pool joins it */
    pool->planes = calloc((size_t)lanes * planes_per_lane, sizeof(*pool->planes));
    pool->block = calloc(pool->blocks, sizeof(*pool->block));
    pool->candidates = calloc(pool->blocks, sizeof(*pool->candidates));
    if (pool->planes == NULL || pool->block == NULL || pool->candidates == NULL) {
        free_parts(pool);
        errno = ENOMEM;
        return NULL;
    }
    return pool;
}

static uint64_t set_floor_bytes(const psi_pool *pool, const psi_pool_options *options) {
    return options->floor_bytes != 0 ? options->floor_bytes : psi_cache_floor_bytes(pool->cache);
}

uint64_t psi_pool_floor_bytes(const psi_pool *pool, const psi_pool_options *options, uint64_t capacity_bytes) {
    uint64_t set = set_floor_bytes(pool, options);
    return set != 0 ? set : capacity_bytes / 32;
}

/* Up to the floor; where nobody set one, up to the blocks that are kept and one more, which can go for a new one to
 * come: in a small cache a 32nd is less than what is kept, and each step would be refused for as long as pressure
 * lasts. */
static uint64_t admit_bytes(const psi_pool *pool, const psi_pool_options *options) {
    uint64_t first = pool->lanes * psi_least(pool->keep_first, pool->lane_blocks);
    uint64_t kept_bytes = (first + pool->keep_newest + 1) * pool->block_total_bytes;
    return set_floor_bytes(pool, options) != 0 ? pool->floor_bytes : psi_most(pool->floor_bytes, kept_bytes);
}

static psi_pool *finish(psi_pool *pool, const psi_pool_options *options) {
    fill_blocks(pool);
    pool->record_bytes = round_up(pool->block_total_bytes, pool->page_bytes);
    pool->record = psi_os_reserve(pool->record_bytes);
    pool->ahead = psi_os_reserve(pool->record_bytes);
    if (pool->record == NULL || pool->ahead == NULL) {
        free_parts(pool);
        errno = ENOMEM;
        return NULL;
    }
    pool->floor_bytes = psi_pool_floor_bytes(pool, options, (uint64_t)pool->blocks * pool->block_total_bytes);
    pool->admit_bytes = admit_bytes(pool, options);
    memset(pool->record, 0, pool->record_bytes); /* committed now, and not in the first trim */
    memset(pool->ahead, 0, pool->record_bytes);
    memset(pool->candidates, 0, pool->blocks * sizeof(*pool->candidates));
    open_store(pool);
    psi_cache_add_pool(pool->cache, pool);
    return pool;
}

/* A caller built with an older header knows fewer fields: the rest is at its default. */
bool psi_pool_read_options(psi_pool_options *known, const psi_cache *cache, const psi_pool_options *options) {
    *known = (psi_pool_options){0};
    if (cache == NULL || options == NULL || options->size < sizeof(options->size)) {
        return false;
    }
    memcpy(known, options, options->size < sizeof(*known) ? options->size : sizeof(*known));
    return known->blocks > 0 && known->blocks < PSI_BLOCK_NONE;
}

psi_pool *psi_pool_create(psi_cache *cache, const psi_pool_options *given) {
    psi_pool_options known, *options = &known;
    if (!psi_pool_read_options(options, cache, given) || options->block_bytes > SIZE_MAX / 2) {
        errno = EINVAL;
        return NULL;
    }
    size_t page = psi_os_page_bytes(), bytes = 0;
    size_t block_bytes = round_up(options->block_bytes != 0 ? options->block_bytes : DEFAULT_BLOCK_BYTES, page);
    if (__builtin_mul_overflow(block_bytes, (size_t)options->blocks, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    psi_pool *pool = make(cache, options, 1, 1);
    if (pool == NULL) {
        return NULL;
    }
    pool->arena = psi_os_reserve(bytes);
    if (pool->arena == NULL) {
        free_parts(pool);
        errno = ENOMEM;
        return NULL;
    }
    pool->arena_bytes = bytes;
    pool->planes[0] = (psi_plane){.base = pool->arena, .block_bytes = block_bytes, .column_bytes = bytes, .columns = 1};
    return finish(pool, options);
}

psi_pool *psi_pool_adopt(psi_cache *cache, const psi_pool_options *given) {
    psi_pool_options known, *options = &known;
    bool sound = psi_pool_read_options(options, cache, given);
    uint32_t lanes = options->lanes != 0 ? options->lanes : 1;
    uint32_t blocks = 0;
    if (!sound || options->planes == NULL || options->planes_per_lane == 0 ||
        __builtin_mul_overflow(lanes, options->blocks, &blocks) || blocks == PSI_BLOCK_NONE) {
        errno = EINVAL;
        return NULL;
    }
    psi_pool *pool = make(cache, options, lanes, options->planes_per_lane);
    if (pool == NULL) {
        return NULL;
    }
    if (copy_planes(pool, options) != 0) {
        free_parts(pool);
        errno = EINVAL;
        return NULL;
    }
    return finish(pool, options);
}

void psi_pool_destroy(psi_pool *pool) {
    if (pool != NULL) {
        psi_cache_remove_pool(pool->cache, pool);
        pthread_mutex_destroy(&pool->lock);
        free_parts(pool);
    }
}

void *psi_block_address(const psi_pool *pool, psi_block_id block) {
    if (pool == NULL || block >= pool->blocks) {
        return NULL;
    }
    const psi_plane *plane = &pool->planes[(size_t)(block / pool->lane_blocks) * pool->planes_per_lane];
    return (unsigned char *)plane->base + (size_t)(block % pool->lane_blocks) * plane->block_bytes;
}

psi_block_state psi_block_get_state(const psi_pool *pool, psi_block_id block) {
    if (pool == NULL || block >= pool->blocks) {
        return PSI_BLOCK_EMPTY;
    }
    pthread_mutex_t *lock = (pthread_mutex_t *)&pool->lock; /* a lock is no part of what const promises */
    pthread_mutex_lock(lock);
    psi_block_state state = (psi_block_state)pool->block[block].state;
    pthread_mutex_unlock(lock);
    return state;
}

/* Readies a block for writing; under the lock. `is_added`: the coming step pays for a block that was empty. */
static int write_block(psi_pool *pool, psi_block_id block, bool is_added) {
    psi_block *b = &pool->block[block];
    int error = 0;
    if (b->state == PSI_BLOCK_STORED) {
        error = psi_block_bring_back(pool, block);
    }
    if (is_added && b->state == PSI_BLOCK_EMPTY) {
        b->fresh = pool->step + 1;
        pool->fresh++;
    }
    if (b->age == 0 || pool->last_written != block) {
        b->age = ++pool->writes;
        pool->last_written = block;
    }
    if (b->state != PSI_BLOCK_RESIDENT) {
        psi_block_move(pool, block, PSI_BLOCK_RESIDENT);
    }
    b->keys = b->want = PSI_SCORE_UNKNOWN; /* until it is full again */
    if (b->slot != PSI_SLOT_NONE) {        /* the store's copy is about to be wrong */
        psi_store_free(pool->store, b->slot);
        b->slot = PSI_SLOT_NONE;
    }
    psi_block_changes(pool, block);
    b->used = pool->step + 1;
    return error;
}

int psi_block_write(psi_pool *pool, psi_block_id block) {
    if (pool == NULL || block >= pool->blocks) {
        return -EINVAL;
    }
    pthread_mutex_lock(&pool->lock);
    int error = write_block(pool, block, true);
    pthread_mutex_unlock(&pool->lock);
    return error;
}

void psi_block_changes(psi_pool *pool, uint32_t block) {
    psi_block *b = &pool->block[block];
    b->written = pool->step + 1;
    b->version++;
    b->settled = false;
}

static void settle_block(psi_pool *pool, uint32_t block) {
    psi_block *b = &pool->block[block];
    if (b->written == pool->step + 1) {
        b->settled = true;
        b->used = pool->step; /* the coming step may be another's: it is to name what it reads */
    }
}

void psi_block_settle(psi_pool *pool, uint32_t block) {
    pthread_mutex_lock(&pool->lock);
    settle_block(pool, block);
    pthread_mutex_unlock(&pool->lock);
}

void psi_block_found(psi_pool *pool, uint32_t block, bool is_added) {
    pthread_mutex_lock(&pool->lock);
    (void)write_block(pool, block, is_added);
    settle_block(pool, block);
    pthread_mutex_unlock(&pool->lock);
}

/* A block that was taken while a step wanted it waits for room. Where its sequence slept since, it is asleep like the
 * others, and comes back when its turn comes. */
static void note_sleep(const psi_pool *pool, psi_block *b) {
    if (b->hidden && b->state == PSI_BLOCK_STORED && pool->step - b->used >= PSI_SLEEP_STEPS) {
        b->hidden = false;
    }
}

/* What the step itself reads may go in it, whoever read it before. */
static void use_block(const psi_pool *pool, psi_block *b) {
    note_sleep(pool, b);
    b->used = pool->step + 1;
    b->held = 0;
}

void psi_block_used(psi_pool *pool, psi_block_id block) {
    if (pool != NULL && block < pool->blocks) {
        pthread_mutex_lock(&pool->lock);
        use_block(pool, &pool->block[block]);
        pthread_mutex_unlock(&pool->lock);
    }
}

int psi_pool_mark(psi_pool *pool, const unsigned char *marks) {
    if (pool == NULL || marks == NULL) {
        return -EINVAL;
    }
    int lost = 0;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < pool->blocks; i++) {
        if ((marks[i] & PSI_MARK_WRITE) != 0) {
            lost += write_block(pool, i, true) == -EIO;
        } else if ((marks[i] & PSI_MARK_USED) != 0) {
            use_block(pool, &pool->block[i]);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return lost;
}

static void tell_states(psi_pool *pool, unsigned char *states) {
    for (uint32_t i = 0; i < pool->blocks; i++) {
        states[i] = pool->block[i].state;
    }
    pool->moves_told = pool->moves;
}

void psi_pool_states(psi_pool *pool, unsigned char *states) {
    if (pool == NULL || states == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    tell_states(pool, states);
    pthread_mutex_unlock(&pool->lock);
}

void psi_pool_states_follow(psi_pool *pool, unsigned char *states) {
    pthread_mutex_lock(&pool->lock);
    if (pool->moves_told != pool->moves) {
        tell_states(pool, states);
    }
    pthread_mutex_unlock(&pool->lock);
}

int psi_block_restore(psi_pool *pool, psi_block_id block) {
    if (pool == NULL || block >= pool->blocks) {
        return -EINVAL;
    }
    pthread_mutex_lock(&pool->lock);
    int error = psi_block_bring_back(pool, block);
    /* Not by that step: it may be a sleeper's, saved. Taken there, it would be hidden from its own sequence. */
    pool->block[block].used = pool->block[block].held = pool->step + 1;
    pthread_mutex_unlock(&pool->lock);
    return error;
}

static void *hand_out(psi_pool *pool, psi_block_id block, psi_block_id *id) {
    pool->block[block].handed_out = true;
    (void)write_block(pool, block, true);
    if (id != NULL) {
        *id = block;
    }
    return psi_block_address(pool, block);
}

void *psi_block_alloc(psi_pool *pool, psi_block_id *id) {
    if (pool == NULL) {
        errno = EINVAL;
        return NULL;
    }
    void *address = NULL;
    pthread_mutex_lock(&pool->lock);
    int error = psi_cache_refuses(pool->cache) && !psi_trim_has_admission(pool) ? EAGAIN : ENOMEM;
    if (error == EAGAIN) {
        pool->refusals++;
    }
    for (uint32_t i = 0; error == ENOMEM && address == NULL && i < pool->blocks; i++) {
        if (!pool->block[i].handed_out) {
            address = hand_out(pool, i, id);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    if (address == NULL) {
        errno = error;
    }
    return address;
}

/* A conversation's bytes are not to lie on the disk for longer than it lasts. */
static void have_tidied(psi_pool *pool) {
    if (pool->store != NULL && !psi_is_forked_child(pool->cache)) {
        atomic_store(&pool->wants_tidy, true);
        psi_cache_tidy(pool->cache);
    }
}

static void empty_block(psi_pool *pool, uint32_t block) {
    psi_block *b = &pool->block[block];
    if (b->state != PSI_BLOCK_EMPTY) {
        pool->fresh -= b->fresh == pool->step + 1 && pool->fresh > 0; /* came and went: nothing to pay for */
        b->releasing = b->state == PSI_BLOCK_RESIDENT;
        psi_block_move(pool, block, PSI_BLOCK_EMPTY);
    }
    psi_score_forget(b);
    b->handed_out = b->pinned = false;
    b->run = 0;
    b->age = 0;
}

void psi_block_free(psi_pool *pool, psi_block_id block) {
    if (pool != NULL && block < pool->blocks) {
        pthread_mutex_lock(&pool->lock);
        bool had_record = pool->block[block].slot != PSI_SLOT_NONE;
        empty_block(pool, block);
        (void)psi_layout_give_back(pool);
        pthread_mutex_unlock(&pool->lock);
        if (had_record) {
            have_tidied(pool);
        }
    }
}

void psi_pool_clear(psi_pool *pool) {
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < pool->blocks; i++) {
        empty_block(pool, i);
        pool->block[i].releasing = true; /* the engine may have written where it did not say so */
    }
    pool->fresh = 0;
    (void)psi_layout_give_back(pool);
    pthread_mutex_unlock(&pool->lock);
    have_tidied(pool);
}

static bool is_stored(const psi_pool *pool, uint32_t block) { return pool->block[block].state == PSI_BLOCK_STORED; }

/* Restores what a person asked for: all of it that there is room for, wanted or not. */
static int restore_all(psi_pool *pool) {
    int moved = 0;
    uint64_t room = psi_cache_take_room(pool->cache, (uint64_t)pool->stored * pool->block_total_bytes);
    uint32_t from = 0;
    for (size_t count = psi_trim_collect_stored(pool, &from, room / pool->block_total_bytes, is_stored); count > 0;) {
        uint32_t block = psi_policy_pop(pool->candidates, &count).block;
        if (psi_block_bring_back(pool, block) == 0) {
            pool->block[block].used = pool->step;
            moved++;
        }
    }
    pool->restores += moved > 0;
    return moved;
}

/* Under pressure a step pays for the blocks that it adds with as many others, at the floor too: the cache takes new
 * tokens in exchange for old ones, and its memory stays as it is. Below the floor it grows. */
static uint64_t exchange(psi_pool *pool) {
    uint64_t added = (uint64_t)pool->fresh * pool->block_total_bytes;
    pool->fresh = 0;
    if (added == 0 || !psi_cache_is_pressed(pool->cache)) {
        return 0;
    }
    uint64_t given = psi_trim(pool, added, PSI_TRIM_CLEAN, pool->floor_bytes);
    return given < added ? given + psi_trim(pool, added - given, PSI_TRIM_ALL, pool->floor_bytes) : given;
}

/* What a person asked for, now and whole. */
static uint64_t trim_by_hand(psi_pool *pool) {
    uint32_t permille = atomic_exchange(&pool->want_trim_permille, 0);
    uint64_t bytes = (uint64_t)pool->resident * pool->block_total_bytes / 1000 * permille;
    return bytes > 0 ? psi_trim(pool, bytes, PSI_TRIM_ALL, pool->floor_bytes) : 0;
}

/* A spike faster than the store: the block is lost rather than the process. */
static uint64_t drop(psi_pool *pool, uint64_t bytes) {
    uint64_t given = psi_trim(pool, bytes, PSI_TRIM_DROP, pool->floor_bytes);
    if (given > 0 && !pool->drop_said) {
        pool->drop_said = true;
        psi_log_line(psi_cache_log(pool->cache), PSI_LOG_WARN,
                     "pool %s: a spike left no time to write %llu MiB of blocks; they are dropped", pool->name,
                     (unsigned long long)(given >> 20));
    }
    return given;
}

/* What the watcher asked for: what the store has already. The rest waits for the watcher to write it, outside of any
 * step, unless it cannot, or there is no time for it. */
static uint64_t trim_as_asked(psi_pool *pool, uint64_t given) {
    uint64_t asked = atomic_exchange(&pool->want_trim_bytes, 0);
    if (asked <= given) {
        return 0;
    }
    bool writes = atomic_load(&pool->may_write);
    uint64_t now = psi_trim(pool, asked - given, writes ? PSI_TRIM_ALL : PSI_TRIM_CLEAN, pool->floor_bytes);
    uint64_t may_drop = atomic_exchange(&pool->may_drop_bytes, 0);
    if (!writes && may_drop > 0 && now < asked - given) {
        now += drop(pool, psi_least(asked - given - now, may_drop));
    }
    psi_trim_survey(pool);
    if (!writes && now < asked - given && pool->unwritten_bytes > 0) {
        (void)atomic_fetch_add(&pool->want_trim_bytes, psi_least(asked - given - now, pool->unwritten_bytes));
    }
    return now;
}

uint64_t psi_pool_give_as_asked(psi_pool *pool, uint64_t given) {
    given += trim_by_hand(pool);
    return given + trim_as_asked(pool, given);
}

/* What was stored comes first: reading is faster than computing. */
static void regrow(psi_pool *pool, uint64_t bytes) {
    uint64_t restored = psi_regrow(pool, bytes);
    if (restored < bytes && pool->want_recompute_bytes != UINT64_MAX) {
        pool->want_recompute_bytes = bytes - restored;
    }
}

int psi_pool_step(psi_pool *pool) {
    if (pool == NULL || pool->is_remote) { /* whose wishes are its owner's to take */
        return -EINVAL;
    }
    pthread_mutex_lock(&pool->lock);
    psi_layer_end(pool);
    uint64_t moves = pool->moves;
    pool->step++;
    pool->in_step = true;
    pool->restores += psi_wake_wanted(pool) > 0;
    if (!psi_is_forked_child(pool->cache)) {
        uint64_t given = psi_pool_give_as_asked(pool, exchange(pool));
        uint64_t restore = atomic_exchange(&pool->want_restore_bytes, 0);
        if (given > 0) {
            pool->trims++;
            pool->want_recompute_bytes = 0;
        } else if (atomic_exchange(&pool->want_restore_all, false)) {
            (void)restore_all(pool);
            pool->want_recompute_bytes = UINT64_MAX;
        } else if (restore > 0) {
            regrow(pool, restore);
        }
        if (pool->store != NULL) {
            psi_store_rest(pool->store);
        }
        psi_recall_fetched(pool);
    }
    psi_trim_survey(pool);
    int moved = (int)(pool->moves - moves);
    pthread_mutex_unlock(&pool->lock);
    return moved;
}

void psi_pool_step_end(psi_pool *pool) {
    if (pool != NULL) {
        pthread_mutex_lock(&pool->lock);
        psi_layer_end(pool);
        pool->in_step = false;
        pool->step_end_us = psi_os_now_us();
        pthread_mutex_unlock(&pool->lock);
    }
}

int64_t psi_pool_own_balance_bytes(const psi_pool *pool) {
    uint64_t restored = pool->restored_bytes < pool->returned_bytes ? pool->restored_bytes : pool->returned_bytes;
    return (int64_t)restored - (int64_t)pool->returned_bytes;
}

void psi_pool_count_refusal(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->refusals++;
    pthread_mutex_unlock(&pool->lock);
}

int psi_pool_refuses(const psi_pool *pool) { return pool != NULL && atomic_load(&pool->refuses); }
