/* small_pool.h - pools of a few pages' blocks with known bytes, for tests of pools. Include it after cmocka.h. */
#ifndef SMALL_POOL_H
#define SMALL_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "os/os.h"
#include "psicache.h"

static size_t page;

static inline int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    return 0;
}

static inline psi_pool *plain_pool(psi_cache *cache, uint32_t blocks, uint32_t keep_newest) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = 4 * page;
    options.blocks = blocks;
    options.keep_newest = keep_newest;
    psi_pool *pool = psi_pool_create(cache, &options);
    assert_non_null(pool);
    return pool;
}

static inline void fill(unsigned char *at, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i++) {
        at[i] = (unsigned char)(seed * 7 + i * 13 + i / 255);
    }
}

static inline psi_pool *filled_pool(psi_cache *cache, uint32_t blocks, uint32_t keep_newest) {
    psi_pool *pool = plain_pool(cache, blocks, keep_newest);
    for (uint32_t i = 0; i < blocks; i++) {
        fill(psi_block_alloc(pool, NULL), 4 * page, i);
    }
    return pool;
}

static inline void assert_filled(const unsigned char *at, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(at[i], (unsigned char)(seed * 7 + i * 13 + i / 255));
    }
}

static inline psi_stats stats_of(psi_cache *cache) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(cache, &stats), 0);
    return stats;
}

static inline void use_all(psi_pool *pool, uint32_t blocks) {
    for (uint32_t i = 0; i < blocks; i++) {
        psi_block_used(pool, i);
    }
}

#endif
