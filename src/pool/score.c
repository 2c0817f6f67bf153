/* score.c - what is known of each block's worth: the attention that it received and how its keys differ, as an engine
 * says, or nothing. Engine's thread; read under the pool's lock by whoever asks the policy. */
#include <errno.h>
#include <math.h>

#include "pool/pool.h"

/* What a score becomes with each newer one, unless that is higher: the attention of the last dozen samples counts. */
#define FADE 0.9f
#define FRESH_STEPS 16u
/* A fact seldom ends at a block's edge: each block has a share of what its neighbours have. Measured:
 * docs/policies.md. */
#define KEYS_OF_NEIGHBOUR 1.0f
#define ATTENTION_OF_NEIGHBOUR 0.5f

void psi_score_forget(psi_block *b) {
    b->attention = b->keys = b->want = PSI_SCORE_UNKNOWN;
    b->leaving = false;
}

static float greater(float a, float b) { return a > b ? a : b; }

static bool has_neighbour(const psi_pool *pool, uint32_t block, int side) {
    uint32_t at = block % pool->lane_blocks;
    return side < 0 ? at > 0 : at + 1 < pool->lane_blocks;
}

psi_candidate psi_score_candidate(const psi_pool *pool, uint32_t block) {
    const psi_block *b = &pool->block[block];
    psi_candidate candidate = {
        .block = block, .age = b->age, .used = b->used, .attention = b->attention, .keys = b->keys};
    for (int side = -1; side <= 1; side += 2) {
        if (has_neighbour(pool, block, side)) {
            const psi_block *n = side < 0 ? b - 1 : b + 1;
            candidate.attention = greater(candidate.attention, ATTENTION_OF_NEIGHBOUR * n->attention);
            candidate.keys = greater(candidate.keys, KEYS_OF_NEIGHBOUR * n->keys);
        }
    }
    return candidate;
}

void psi_score_rate(const psi_pool *pool, psi_candidate *candidates, size_t count) {
    atomic_load(&pool->policy)->rate(candidates, count);
}

static int set_score(psi_block *b, psi_score_kind kind, float score) {
    if (!(score >= 0) || isinf(score)) {
        return -EINVAL;
    }
    if (kind == PSI_SCORE_ATTENTION) {
        b->attention = greater(score, FADE * b->attention);
    } else {
        b->keys = score;
    }
    return 0;
}

/* One that found nothing counts, too: else it would be asked for in each step. */
static void note_sample(psi_pool *pool, psi_score_kind kind) {
    pool->scored_step = kind == PSI_SCORE_ATTENTION ? pool->step : pool->scored_step;
}

int psi_block_score(psi_pool *pool, psi_block_id block, psi_score_kind kind, float score) {
    if (pool == NULL || block >= pool->blocks || (kind != PSI_SCORE_ATTENTION && kind != PSI_SCORE_KEYS)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&pool->lock);
    int error = set_score(&pool->block[block], kind, score);
    note_sample(pool, kind);
    pthread_mutex_unlock(&pool->lock);
    return error;
}

int psi_pool_score(psi_pool *pool, psi_score_kind kind, const float *scores) {
    if (pool == NULL || scores == NULL || (kind != PSI_SCORE_ATTENTION && kind != PSI_SCORE_KEYS)) {
        return -EINVAL;
    }
    int taken = 0;
    pthread_mutex_lock(&pool->lock);
    note_sample(pool, kind);
    for (uint32_t i = 0; i < pool->blocks; i++) {
        taken += pool->block[i].state != PSI_BLOCK_EMPTY && set_score(&pool->block[i], kind, scores[i]) == 0;
    }
    pthread_mutex_unlock(&pool->lock);
    return taken;
}

int psi_pool_wants_scores(psi_pool *pool) {
    if (pool == NULL || !psi_cache_is_uneasy(pool->cache)) {
        return 0;
    }
    pthread_mutex_lock(&pool->lock);
    int wants = pool->scored_step == 0 || pool->scored_step + FRESH_STEPS < pool->step;
    pthread_mutex_unlock(&pool->lock);
    return wants;
}
