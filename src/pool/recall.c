/* recall.c - hidden blocks that the model starts to want come back, at a constant memory: each for a resident one that
 * is wanted less. Engine's thread, under the pool's lock; bounded in time. */
#include <errno.h>
#include <math.h>

#include "os/os.h"
#include "pool/pool.h"

#define FADE 0.9f
/* An exchange must be worth it: so much of some head's attention, and so many times what the other one has. Below,
 * blocks would come and go with each word. */
#define WANT_LEAST 0.001f
#define WANT_TIMES 1.2f
#define WANT_OF_NEIGHBOUR 0.9f

static float greater(float a, float b) { return a > b ? a : b; }

/* A wanted block's neighbours belong with it. */
static float want_of(const psi_pool *pool, uint32_t block) {
    uint32_t at = block % pool->lane_blocks;
    float want = pool->block[block].want;
    want = at > 0 ? greater(want, WANT_OF_NEIGHBOUR * pool->block[block - 1].want) : want;
    return at + 1 < pool->lane_blocks ? greater(want, WANT_OF_NEIGHBOUR * pool->block[block + 1].want) : want;
}

static bool is_hidden(const psi_pool *pool, uint32_t block) {
    const psi_block *b = &pool->block[block];
    return b->state == PSI_BLOCK_STORED && b->hidden && b->used >= pool->step;
}

/* Two heaps in one array: the hidden blocks from its start, the most wanted on top, the resident ones behind them, the
 * least wanted on top. */
typedef struct sides {
    psi_candidate *hidden, *resident;
    size_t hidden_count, resident_count;
} sides;

/* In the background nothing may wait for the disk: what comes was fetched, what goes the store has already. */
static sides collect(psi_pool *pool, bool in_background) {
    sides s = {.hidden = pool->candidates};
    for (uint32_t i = 0; i < pool->blocks; i++) {
        if (is_hidden(pool, i) && (!in_background || psi_fetch_record(pool, i) != NULL)) {
            s.hidden[s.hidden_count++] = (psi_candidate){.block = i, .age = i, .worth = -(double)want_of(pool, i)};
        }
    }
    s.resident = pool->candidates + s.hidden_count;
    for (uint32_t i = 0; i < pool->blocks && s.hidden_count > 0; i++) {
        bool known = pool->block[i].want >= 0; /* what is not known is not guessed: it stays */
        if (known && psi_trim_may_take(pool, i) && (!in_background || pool->block[i].slot != PSI_SLOT_NONE)) {
            s.resident[s.resident_count++] = (psi_candidate){.block = i, .age = i, .worth = (double)want_of(pool, i)};
        }
    }
    psi_policy_heapify(s.hidden, s.hidden_count);
    psi_policy_heapify(s.resident, s.resident_count);
    return s;
}

static bool is_worth_it(const psi_candidate *hidden, const psi_candidate *resident) {
    double want = -hidden->worth;
    return want >= (double)WANT_LEAST && want >= (double)WANT_TIMES * resident->worth;
}

/* Where blocks share pages, one may need more of them than the other gives back. */
static bool has_room(psi_pool *pool, uint32_t in, uint32_t out) {
    uint64_t taken = psi_layout_own_bytes(pool, in), returned = psi_layout_own_bytes(pool, out);
    return taken <= returned || psi_cache_take_whole_room(pool->cache, taken - returned);
}

/* What goes is written and what comes is read before anything moves: where the store fails, nothing went for it. */
static bool exchange_two(psi_pool *pool, uint32_t in, uint32_t out) {
    const unsigned char *record = psi_trim_make_clean(pool, out) ? psi_block_read(pool, in) : NULL;
    if (record != NULL) {
        psi_trim_take(pool, out);
        psi_block_fill(pool, in, record);
    }
    return record != NULL;
}

/* For most_us at most, and until the store fails. Blocks that came back. */
static uint32_t exchange(psi_pool *pool, sides s, uint64_t most_us) {
    uint64_t began_us = psi_os_now_us();
    uint32_t came = 0;
    bool good = true;
    while (good && s.hidden_count > 0 && s.resident_count > 0 && is_worth_it(s.hidden, s.resident) &&
           psi_os_now_us() - began_us < most_us) {
        uint32_t in = psi_policy_pop(s.hidden, &s.hidden_count).block;
        if (has_room(pool, in, s.resident->block)) {
            good = exchange_two(pool, in, psi_policy_pop(s.resident, &s.resident_count).block);
            came += good;
        }
    }
    pool->recalls += came > 0;
    pool->recalled_bytes += (uint64_t)came * pool->block_total_bytes;
    pool->recall_us += psi_os_now_us() - began_us;
    return came;
}

void psi_recall_fetched(psi_pool *pool) {
    if (psi_fetch_any_ready(pool)) {
        (void)exchange(pool, collect(pool, true), UINT64_MAX);
        psi_fetch_release(pool);
    }
}

/* The writer writes these before others. */
static void mark_leaving(psi_pool *pool, const uint32_t *blocks, uint32_t count) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        pool->block[i].leaving = false;
    }
    for (uint32_t i = 0; i < count; i++) {
        bool unwritten = pool->block[blocks[i]].slot == PSI_SLOT_NONE;
        pool->block[blocks[i]].leaving = unwritten;
        bytes += unwritten ? pool->record_bytes : 0;
    }
    if (atomic_load(&pool->want_write_bytes) < bytes) {
        atomic_store(&pool->want_write_bytes, bytes);
    }
}

/* Has read what would come, and written what would go for it, without waiting for either. */
static void fetch_wanted(psi_pool *pool) {
    sides s = collect(pool, false);
    uint32_t leaving[PSI_FETCH_BLOCKS], count = 0;
    bool asked = true;
    while (asked && count < PSI_FETCH_BLOCKS && s.hidden_count > 0 && s.resident_count > 0 &&
           is_worth_it(s.hidden, s.resident)) {
        asked = psi_fetch_ask(pool, psi_policy_pop(s.hidden, &s.hidden_count).block);
        leaving[count] = psi_policy_pop(s.resident, &s.resident_count).block;
        count += asked;
    }
    mark_leaving(pool, leaving, count);
    if (count > 0) {
        psi_cache_wake_writer(pool->cache);
    }
}

static void take_wants(psi_pool *pool, const float *wants) {
    for (uint32_t i = 0; i < pool->blocks; i++) {
        psi_block *b = &pool->block[i];
        b->want = wants[i] >= 0 && !isinf(wants[i]) ? greater(wants[i], FADE * b->want) : b->want;
    }
}

int psi_pool_recall(psi_pool *pool, const float *wants, uint64_t most_us) {
    if (pool == NULL || wants == NULL) {
        return -EINVAL;
    }
    int came = 0;
    pthread_mutex_lock(&pool->lock);
    if (pool->store != NULL && psi_cache_recalls(pool->cache) && !psi_is_forked_child(pool->cache)) {
        take_wants(pool, wants);
        if (most_us > 0) {
            came = (int)exchange(pool, collect(pool, false), most_us);
        } else {
            fetch_wanted(pool);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return came;
}

void psi_recall_forget(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < pool->blocks; i++) {
        pool->block[i].want = PSI_SCORE_UNKNOWN;
    }
    pthread_mutex_unlock(&pool->lock);
}
