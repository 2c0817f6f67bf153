/* test_recompute.c - the pool's part in computing dropped blocks again: what it asks its engine for, and a block that
 * comes back so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 16 };

/* All blocks written, and half of them dropped by hand. */
static psi_pool *half_dropped(psi_cache **cache) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.policy = "fifo";
    options.store = "none";
    *cache = psi_cache_open(&options);
    assert_non_null(*cache);
    psi_pool_options own = PSI_OPTIONS_INIT(psi_pool_options);
    own.block_bytes = psi_os_page_bytes();
    own.blocks = BLOCKS;
    psi_pool *pool = psi_pool_create(*cache, &own);
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        unsigned char *at = psi_block_alloc(pool, NULL);
        at[0] = (unsigned char)(i + 1);
    }
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    assert_int_equal(psi_cache_trim(*cache, 0.5), 0);
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_DROPPED);
    return pool;
}

static void test_a_restore_by_hand_is_asked_for_until_it_is_over(void **state) {
    (void)state;
    psi_cache *cache;
    psi_pool *pool = half_dropped(&cache);
    assert_int_equal(psi_pool_wants_recompute(pool, 0), 0);
    assert_int_equal(psi_cache_restore(cache), 0);
    (void)psi_pool_step(pool);
    assert_true(psi_pool_wants_recompute(pool, 3) == UINT64_MAX);
    assert_true(psi_pool_wants_recompute(pool, 3) == UINT64_MAX);
    psi_pool_end_recompute(pool);
    assert_int_equal(psi_pool_wants_recompute(pool, 0), 0);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void test_a_trim_ends_it(void **state) {
    (void)state;
    psi_cache *cache;
    psi_pool *pool = half_dropped(&cache);
    (void)psi_cache_restore(cache);
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    (void)psi_cache_trim(cache, 0.3);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_pool_wants_recompute(pool, 0), 0);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void test_what_stored_blocks_do_not_use_of_a_regrow_is_for_dropped_ones(void **state) {
    (void)state;
    psi_cache *cache;
    psi_pool *pool = half_dropped(&cache);
    atomic_store(&pool->want_restore_bytes, 5000);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_pool_wants_recompute(pool, 0), 5000);
    assert_int_equal(psi_pool_wants_recompute(pool, 0), 0); /* once */
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void test_a_revived_block_is_resident_stays_for_the_step_and_is_no_newer(void **state) {
    (void)state;
    psi_cache *cache;
    psi_pool *pool = half_dropped(&cache);
    uint64_t age = pool->block[1].age, restored = pool->restored_bytes;
    assert_true(psi_block_revive(pool, 1) == psi_os_page_bytes());
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_RESIDENT);
    assert_true(pool->block[1].age == age);
    assert_true(pool->restored_bytes == restored + psi_os_page_bytes());
    assert_true(psi_block_revive(pool, 1) == 0);
    (void)psi_cache_trim(cache, 1);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_RESIDENT);
    psi_pool_step_end(pool);
    (void)psi_cache_trim(cache, 1);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_DROPPED); /* it is the oldest still */
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_restore_by_hand_is_asked_for_until_it_is_over),
        cmocka_unit_test(test_a_trim_ends_it),
        cmocka_unit_test(test_what_stored_blocks_do_not_use_of_a_regrow_is_for_dropped_ones),
        cmocka_unit_test(test_a_revived_block_is_resident_stays_for_the_step_and_is_no_newer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
