/* test_pool_edges.c - what an attack on the pool found: holes between released blocks, blocks that come and go within
 * a step, sinks asleep without a store, files that are not ours, paths that are too long. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/cache.h"
#include "pool/pool.h"
#include "psicache.h"

static psi_cache *cache_with(const char *store, const char *tuning_file) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.store = store;
    options.tuning_file = tuning_file;
    return psi_cache_open(&options);
}

static psi_pool *pool_of(psi_cache *cache, uint32_t blocks) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = psi_os_page_bytes();
    options.blocks = blocks;
    options.keep_first = 2;
    options.keep_newest = 3;
    psi_pool *pool = psi_pool_create(cache, &options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < blocks; i++) {
        memset(psi_block_alloc(pool, NULL), 1, psi_os_page_bytes());
    }
    (void)psi_pool_step(pool);
    return pool;
}

static void what_lies_between_two_released_blocks_is_not_returned_twice(void **state) {
    (void)state;
    psi_cache *cache = cache_with("file", "");
    psi_pool *pool = pool_of(cache, 100);
    for (uint32_t i = 10; i < 90; i++) {
        psi_block_free(pool, i);
    }
    pthread_mutex_lock(&pool->lock);
    uint64_t before = pool->returned_bytes;
    pool->block[9].releasing = pool->block[90].releasing = true;
    psi_block_move(pool, 9, PSI_BLOCK_DROPPED);
    psi_block_move(pool, 90, PSI_BLOCK_DROPPED);
    assert_int_equal(psi_layout_give_back(pool), 2 * psi_os_page_bytes());
    assert_int_equal(pool->returned_bytes, before);
    pthread_mutex_unlock(&pool->lock);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void blocks_that_came_and_went_are_not_paid_for(void **state) {
    (void)state;
    psi_cache *cache = cache_with("file", "");
    psi_pool *pool = pool_of(cache, 50);
    psi_block_free(pool, 49);
    (void)psi_pool_step(pool);
    atomic_store(&cache->pressed, true);
    for (int i = 0; i < 40; i++) {
        psi_block_id block = PSI_BLOCK_NONE;
        assert_non_null(psi_block_alloc(pool, &block));
        psi_block_free(pool, block);
    }
    (void)psi_pool_step(pool);
    assert_int_equal(pool->resident, 49);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void kept_blocks_are_not_lost_in_their_sleep(void **state) {
    (void)state;
    psi_cache *cache = cache_with("none", "");
    psi_pool *pool = pool_of(cache, 16);
    (void)psi_pool_step(pool); /* which names no block: all sleep */
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    (void)psi_pool_step(pool);
    for (uint32_t i = 0; i < 16; i++) {
        bool kept = i < 2 || i >= 13;
        assert_int_equal(psi_block_get_state(pool, i), kept ? PSI_BLOCK_RESIDENT : PSI_BLOCK_DROPPED);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void a_file_that_is_not_ours_is_not_written_over(void **state) {
    (void)state;
    char path[] = "/tmp/psi-test-XXXXXX", text[32] = "";
    int descriptor = mkstemp(path);
    assert_int_equal(write(descriptor, "my notes", 8), 8);
    psi_cache_close(cache_with("none", path));
    assert_int_equal(psi_os_read_small(path, text, sizeof(text)), 8);
    assert_string_equal(text, "my notes");
    close(descriptor);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    psi_cache_close(cache_with("none", path)); /* and nobody waits for its other end */
    struct stat there;
    assert_int_equal(stat(path, &there), 0);
    assert_true(S_ISFIFO(there.st_mode));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(psi_os_replace_file("/dev/null", "x", 1), -EEXIST);
}

static void a_path_that_is_too_long_is_refused(void **state) {
    (void)state;
    char path[1200];
    memset(path, 'a', sizeof(path) - 1);
    path[0] = '/';
    path[sizeof(path) - 1] = '\0';
    assert_null(cache_with("none", path));
    assert_int_equal(errno, ENAMETOOLONG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_lies_between_two_released_blocks_is_not_returned_twice),
        cmocka_unit_test(blocks_that_came_and_went_are_not_paid_for),
        cmocka_unit_test(kept_blocks_are_not_lost_in_their_sleep),
        cmocka_unit_test(a_file_that_is_not_ours_is_not_written_over),
        cmocka_unit_test(a_path_that_is_too_long_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
