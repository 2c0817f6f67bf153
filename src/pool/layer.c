/* layer.c - the safe point inside a step, between two of its layers. Engine's thread. A block's planes are read one
 * layer after the other, so that while one is read the others may go: with psi_pool_step_layer the engine says which
 * one that is, and the watcher needs to wait for no step. */
#include <errno.h>

#include "pool/pool.h"

void psi_layer_end(psi_pool *pool) {
    if (pool->layered) {
        pool->returned_bytes += psi_layout_give_back_lingering(pool);
        pool->read_first = pool->read_end = 0;
        pool->layered = false;
    }
}

static void give(psi_pool *pool) {
    if (!psi_is_forked_child(pool->cache) && psi_pool_give_as_asked(pool, 0) > 0) {
        pool->trims++;
        psi_trim_survey(pool);
    }
}

int psi_pool_step_layer(psi_pool *pool, uint32_t first_plane, uint32_t planes) {
    if (pool == NULL || first_plane > pool->planes_per_lane || planes > pool->planes_per_lane - first_plane) {
        return -EINVAL;
    }
    int moved = -EINVAL;
    pthread_mutex_lock(&pool->lock);
    if (pool->in_step) {
        psi_layer_end(pool);
        pool->layered = planes < pool->planes_per_lane;
        if (pool->layered && !psi_cache_is_exact(pool->cache)) {
            give(pool);
        }
        pool->read_first = pool->layered ? first_plane : 0;
        pool->read_end = pool->layered ? first_plane + planes : 0;
        moved = (int)(pool->moves - pool->moves_told);
    }
    pthread_mutex_unlock(&pool->lock);
    return moved;
}
