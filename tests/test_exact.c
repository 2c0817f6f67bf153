/* test_exact.c - with the option "exact" no step runs without a block that it reads: what goes for memory's sake comes
 * back before the step, or the step finds it missing, and waits. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/cache.h"
#include "psicache.h"

enum { BLOCKS = 16 };
static size_t page;

static psi_pool *filled_pool(int exact) {
    page = psi_os_page_bytes();
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.exact = exact;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    psi_pool_options pool_options = PSI_OPTIONS_INIT(psi_pool_options);
    pool_options.block_bytes = page;
    pool_options.blocks = BLOCKS;
    pool_options.planes_per_lane = 1;
    psi_pool *pool = psi_pool_create(cache, &pool_options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        memset(psi_block_alloc(pool, NULL), (int)i + 1, page);
    }
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    return pool;
}

/* A step that reads all. How many of them it has not. */
static unsigned missing_in_step(psi_pool *pool) {
    unsigned char marks[BLOCKS], states[BLOCKS];
    memset(marks, PSI_MARK_USED, sizeof(marks));
    assert_int_equal(psi_pool_mark(pool, marks), 0);
    assert_true(psi_pool_step(pool) >= 0);
    psi_pool_states(pool, states);
    unsigned missing = 0;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        missing += states[i] != PSI_BLOCK_RESIDENT;
    }
    return missing;
}

static void close_pool(psi_pool *pool) {
    psi_cache *cache = pool->cache;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(psi_block_restore(pool, i), 0);
        const unsigned char *at = psi_block_address(pool, i);
        assert_true(at[0] == i + 1 && at[page - 1] == i + 1);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void what_went_comes_back_for_the_next_try(void **state) {
    (void)state;
    for (int exact = 0; exact < 2; exact++) {
        psi_pool *pool = filled_pool(exact);
        assert_int_equal(missing_in_step(pool), 0);
        assert_int_equal(psi_cache_trim(pool->cache, 0.5), 0);
        assert_in_range(missing_in_step(pool), 4, 8);
        psi_pool_step_end(pool);
        unsigned after = missing_in_step(pool); /* without: hidden, until there is a reason to regrow */
        assert_true(exact ? after == 0 : after >= 4);
        psi_pool_step_end(pool);
        close_pool(pool);
    }
}

static void under_pressure_it_waits_for_its_end(void **state) {
    (void)state;
    psi_pool *pool = filled_pool(1);
    assert_int_equal(missing_in_step(pool), 0);
    atomic_store(&pool->cache->pressed, true);
    atomic_store(&pool->may_write, true);
    (void)atomic_fetch_add(&pool->want_trim_bytes, 6 * page);
    for (int tries = 0; tries < 3; tries++) {
        assert_int_equal(missing_in_step(pool), 6);
        psi_pool_step_end(pool);
    }
    assert_int_equal(pool->resident, BLOCKS - 6);
    atomic_store(&pool->cache->pressed, false);
    assert_int_equal(missing_in_step(pool), 0);
    psi_pool_step_end(pool);
    close_pool(pool);
}

static void inside_a_step_nothing_goes_that_it_reads(void **state) {
    (void)state;
    for (int exact = 0; exact < 2; exact++) {
        psi_pool *pool = filled_pool(exact);
        assert_int_equal(missing_in_step(pool), 0);
        while (psi_clean_one(pool, PSI_TRIM_ALL) > 0) {
        }
        (void)atomic_fetch_add(&pool->want_trim_bytes, 6 * page);
        int moved = psi_pool_step_layer(pool, 0, 0);
        assert_int_equal(moved, exact ? 0 : 6);
        psi_pool_step_end(pool);
        close_pool(pool);
    }
}

static void it_is_switched_while_the_cache_runs(void **state) {
    (void)state;
    psi_pool *pool = filled_pool(0);
    assert_int_equal(missing_in_step(pool), 0);
    assert_int_equal(psi_cache_trim(pool->cache, 0.5), 0);
    assert_true(missing_in_step(pool) > 0);
    psi_pool_step_end(pool);
    assert_int_equal(psi_cache_set_one(pool->cache, "exact", "yes"), -EINVAL);
    assert_int_equal(psi_cache_set_one(pool->cache, "exact", "on"), 0);
    assert_int_equal(missing_in_step(pool), 0); /* what was hidden before, too */
    psi_pool_step_end(pool);
    assert_int_equal(psi_cache_set_one(pool->cache, "exact", "off"), 0);
    assert_int_equal(psi_cache_trim(pool->cache, 0.5), 0);
    assert_true(missing_in_step(pool) > 0);
    psi_pool_step_end(pool);
    assert_true(missing_in_step(pool) > 0);
    psi_pool_step_end(pool);
    close_pool(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_went_comes_back_for_the_next_try),
        cmocka_unit_test(under_pressure_it_waits_for_its_end),
        cmocka_unit_test(inside_a_step_nothing_goes_that_it_reads),
        cmocka_unit_test(it_is_switched_while_the_cache_runs),
    };
    return cmocka_run_group_tests_name("exact", tests, NULL, NULL);
}
