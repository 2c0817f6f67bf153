/* test_pool.c - blocks that leave and come back: bits, pages, floors, two lanes, odd rows, transposed planes, a forked
 * child, and options. What a pool does under pressure: test_pool_pressed.c. */
#include <errno.h>
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
#include "psicache.h"
#include "small_pool.h"

static psi_cache *quiet_cache(const char *store) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.store = store;
    options.floor_bytes = 1; /* 0 would be the default */
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static size_t resident_pages(void *base, size_t bytes) {
    size_t pages = bytes / page, resident = 0;
    unsigned char *map = calloc(pages, 1);
    assert_non_null(map);
    assert_int_equal(mincore(base, bytes, map), 0);
    for (size_t i = 0; i < pages; i++) {
        resident += map[i] & 1;
    }
    free(map);
    return resident;
}

static void trimmed_blocks_free_pages_and_come_back_bit_for_bit(void **state) {
    (void)state;
    enum { BLOCKS = 32 };
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = plain_pool(cache, BLOCKS, 2);
    unsigned char *base = NULL;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        unsigned char *block = psi_block_alloc(pool, NULL);
        base = base != NULL ? base : block;
        fill(block, 4 * page, i);
    }
    assert_int_equal(resident_pages(base, BLOCKS * 4 * page), BLOCKS * 4);
    (void)psi_pool_step(pool);
    use_all(pool, BLOCKS);
    assert_int_equal(psi_cache_trim(cache, 0.5), 0);
    assert_int_equal(psi_pool_step(pool), BLOCKS / 2);
    psi_stats stats = stats_of(cache);
    assert_int_equal(stats.stored_bytes, BLOCKS / 2 * 4 * page);
    assert_int_equal(resident_pages(base, BLOCKS * 4 * page), BLOCKS * 2);
    assert_int_equal(psi_block_get_state(pool, 0), PSI_BLOCK_RESIDENT); /* attention sinks stay */
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_STORED);   /* then the oldest go */
    assert_int_equal(psi_block_get_state(pool, BLOCKS - 1), PSI_BLOCK_RESIDENT);
    assert_int_equal(psi_cache_restore(cache), 0);
    assert_int_equal(psi_pool_step(pool), BLOCKS / 2);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_filled(psi_block_address(pool, i), 4 * page, i);
    }
    assert_int_equal(stats_of(cache).stored_bytes, 0);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void what_a_step_names_comes_back_before_it_runs(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = filled_pool(cache, 8, 1);
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool); /* nobody names a block: all are asleep */
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 3), PSI_BLOCK_STORED);
    psi_block_used(pool, 3);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 3), PSI_BLOCK_RESIDENT);
    assert_filled(psi_block_address(pool, 3), 4 * page, 3);
    assert_int_equal(psi_block_get_state(pool, 4), PSI_BLOCK_STORED); /* and only that one */
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void a_write_into_a_stored_block_keeps_its_other_bytes(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = filled_pool(cache, 8, 1);
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
    (void)psi_cache_trim(cache, 1.0);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 2), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_write(pool, 2), 0);
    unsigned char *block = psi_block_address(pool, 2);
    assert_filled(block, 4 * page, 2);
    block[100] ^= 0xff;
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
    (void)psi_cache_trim(cache, 1.0); /* the store's old copy must not be taken for the new bytes */
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 2), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_restore(pool, 2), 0);
    block[100] ^= 0xff;
    assert_filled(block, 4 * page, 2);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void without_a_store_blocks_are_dropped_and_counted(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("none");
    psi_pool *pool = filled_pool(cache, 16, 2);
    (void)psi_pool_step(pool);
    use_all(pool, 16);
    (void)psi_cache_trim(cache, 0.25);
    assert_int_equal(psi_pool_step(pool), 4);
    assert_int_equal(stats_of(cache).dropped_bytes, 4 * 4 * page);
    assert_int_equal(psi_block_restore(pool, 1), -ENOENT);
    assert_int_equal(psi_block_write(pool, 1), 0);
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_RESIDENT);
    assert_int_equal(((unsigned char *)psi_block_address(pool, 1))[7], 0); /* never wrong bytes */
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void a_full_store_leaves_blocks_in_memory(void **state) {
    (void)state;
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.store_max_bytes = 2 * 4 * page;
    psi_cache *cache = psi_cache_open(&options);
    psi_pool *pool = filled_pool(cache, 16, 2);
    (void)psi_pool_step(pool);
    use_all(pool, 16);
    (void)psi_cache_trim(cache, 0.5);
    assert_int_equal(psi_pool_step(pool), 2);
    psi_stats stats = stats_of(cache);
    assert_int_equal(stats.stored_bytes, 2 * 4 * page);
    assert_true(stats.store_errors >= 1);
    for (uint32_t i = 0; i < 16; i++) {
        (void)psi_block_restore(pool, i);
        assert_filled(psi_block_address(pool, i), 4 * page, i);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void the_floor_holds(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = 4 * page;
    options.blocks = 16;
    options.floor_bytes = 10 * 4 * page;
    psi_pool *pool = psi_pool_create(cache, &options);
    for (uint32_t i = 0; i < 16; i++) {
        (void)psi_block_alloc(pool, NULL);
    }
    for (int i = 0; i < 5; i++) {
        (void)psi_pool_step(pool);
        (void)psi_cache_trim(cache, 1.0);
    }
    (void)psi_pool_step(pool);
    assert_int_equal(stats_of(cache).resident_bytes, 10 * 4 * page);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* Three lanes of rows that are no whole pages, and a transposed plane, as llama.cpp's V without flash attention. */
static void odd_rows_and_columns_come_back_bit_for_bit(void **state) {
    (void)state;
    enum { LANES = 3, BLOCKS = 40, ROW = 272, CELLS = 32, COLUMNS = 8 };
    size_t rows_bytes = (size_t)BLOCKS * CELLS * ROW - 5 * ROW; /* the last block is short */
    size_t column_bytes = ((size_t)BLOCKS * CELLS - 5) * 2;
    size_t lane_bytes = rows_bytes + COLUMNS * column_bytes, bytes = (LANES * lane_bytes / page + 2) * page;
    unsigned char *base = psi_os_reserve(bytes), *expected = malloc(bytes);
    assert_true(base != NULL && expected != NULL);
    fill(base, bytes, 5);
    memcpy(expected, base, bytes);
    psi_plane planes[LANES * 2];
    for (size_t lane = 0; lane < LANES; lane++) {
        unsigned char *at = base + 64 + lane * lane_bytes;
        planes[lane * 2] = (psi_plane){.base = at, .block_bytes = CELLS * ROW, .column_bytes = rows_bytes};
        planes[lane * 2 + 1] = (psi_plane){.base = at + rows_bytes,
                                           .block_bytes = CELLS * 2,
                                           .column_bytes = column_bytes,
                                           .columns = COLUMNS,
                                           .column_stride_bytes = column_bytes};
    }
    psi_cache *cache = quiet_cache("file");
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.blocks = BLOCKS;
    options.lanes = LANES;
    options.planes = planes;
    options.planes_per_lane = 2;
    psi_pool *pool = psi_pool_adopt(cache, &options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < LANES * BLOCKS; i++) {
        assert_int_equal(psi_block_write(pool, i), 0);
    }
    size_t before = resident_pages(base, bytes);
    (void)psi_pool_step(pool);
    for (int round = 0; round < 3; round++) {
        (void)psi_pool_step(pool);
        (void)psi_cache_trim(cache, 0.4);
        assert_true(psi_pool_step(pool) > 0);
    }
    assert_true(resident_pages(base, bytes) < before);
    (void)psi_cache_restore(cache);
    (void)psi_pool_step(pool);
    assert_memory_equal(base, expected, bytes); /* the blocks', and whatever lies around them */
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    psi_os_unreserve(base, bytes);
    free(expected);
}

static void unsound_planes_are_refused(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("none");
    unsigned char memory[64];
    psi_plane plane = {.base = memory, .block_bytes = 16, .column_bytes = 64 + 1};
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.blocks = 4;
    options.planes = &plane;
    options.planes_per_lane = 1;
    assert_null(psi_pool_adopt(cache, &options));
    assert_int_equal(errno, EINVAL);
    options.blocks = 0;
    assert_null(psi_pool_adopt(cache, &options));
    options.blocks = UINT32_MAX;
    assert_null(psi_pool_create(cache, &options));
    assert_int_equal(errno, EINVAL);
    options.blocks = 16;
    options.block_bytes = SIZE_MAX / 4;
    assert_null(psi_pool_create(cache, &options));
    assert_int_equal(errno, ENOMEM);
    psi_cache_close(cache);
}

static void unknown_ids_are_refused(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("none");
    psi_pool *pool = plain_pool(cache, 4, 1);
    assert_null(psi_block_address(pool, 4));
    assert_int_equal(psi_block_write(pool, 4), -EINVAL);
    assert_int_equal(psi_block_restore(pool, PSI_BLOCK_NONE), -EINVAL);
    psi_block_free(pool, 400);
    psi_block_used(pool, 400);
    assert_int_equal(psi_block_get_state(pool, 400), PSI_BLOCK_EMPTY);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void freed_blocks_are_zero_when_handed_out_again(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = plain_pool(cache, 2, 1);
    psi_block_id id = 0;
    unsigned char *block = psi_block_alloc(pool, &id);
    fill(block, 4 * page, 1);
    psi_block_free(pool, id);
    assert_int_equal(resident_pages(block, 4 * page), 0);
    unsigned char *again = psi_block_alloc(pool, NULL);
    assert_ptr_equal(again, block);
    for (size_t i = 0; i < 4 * page; i++) {
        assert_int_equal(again[i], 0);
    }
    assert_non_null(psi_block_alloc(pool, NULL));
    assert_null(psi_block_alloc(pool, NULL));
    assert_int_equal(errno, ENOMEM);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void a_forked_child_leaves_the_store_alone(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = filled_pool(cache, 16, 1);
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
    (void)psi_cache_trim(cache, 0.5);
    (void)psi_pool_step(pool);
    assert_true(stats_of(cache).stored_bytes > 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        (void)psi_cache_trim(cache, 1.0);
        int moved = psi_pool_step(pool);
        for (uint32_t i = 0; i < 16; i++) {
            (void)psi_block_write(pool, i);
            memset(psi_block_address(pool, i), 0, 4 * page);
        }
        _exit(moved == 0 ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    (void)psi_cache_restore(cache);
    (void)psi_pool_step(pool);
    for (uint32_t i = 0; i < 16; i++) {
        assert_filled(psi_block_address(pool, i), 4 * page, i);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* ---- The malloc-shaped pair, limits, options ----------------------------------------------------- */

static void kv_malloc_gives_zeroed_memory_and_takes_it_back(void **state) {
    (void)state;
    unsigned char *a = psi_kv_malloc(100), *b = psi_kv_malloc(1 << 20);
    assert_true(a != NULL && b != NULL && (uintptr_t)a % 64 == 0);
    for (size_t i = 0; i < 1 << 20; i++) {
        assert_int_equal(b[i], 0);
    }
    memset(a, 1, 100);
    memset(b, 2, 1 << 20);
    assert_int_equal(a[99], 1);
    psi_kv_free(b);
    assert_int_equal(resident_pages(b, 1 << 20), 0);
    psi_kv_free(b); /* twice: ignored */
    psi_kv_free(NULL);
    psi_kv_free(a + 8);
    assert_int_equal(a[0], 1);
    assert_null(psi_kv_malloc(SIZE_MAX));
    assert_int_equal(errno, ENOMEM);
    psi_kv_free(a);
}

static void limits_are_checked(void **state) {
    (void)state;
    assert_int_equal(psi_set_cache_limit(0), -EINVAL);
    assert_int_equal(psi_set_cache_limit(1.5), -EINVAL);
    assert_int_equal(psi_set_cache_limit(0.0 / 0.0 * 1.0), -EINVAL);
    assert_int_equal(psi_set_cache_limits(0.3, 0.3), -EINVAL);
    assert_int_equal(psi_set_cache_limits(0.6, 0.2), 0);
    psi_cache *cache = quiet_cache("none");
    assert_true(stats_of(cache).high > 0.59 && stats_of(cache).low < 0.21);
    assert_int_equal(psi_set_cache_limits(0.7, 0.3), 0);
    psi_cache_close(cache);
}

static char logged[512];

static void keep_line(void *user, psi_log_level level, const char *line) {
    (void)user;
    (void)level;
    (void)snprintf(logged, sizeof(logged), "%s", line);
}

static void bad_options_name_the_cure(void **state) {
    (void)state;
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.log = keep_line;
    options.policy = "random";
    assert_null(psi_cache_open(&options));
    assert_int_equal(errno, EINVAL);
    assert_non_null(strstr(logged, "fifo or lru"));
    options.policy = NULL;
    options.high = 0.2;
    options.low = 0.5;
    assert_null(psi_cache_open(&options));
    assert_non_null(strstr(logged, "low < high"));
    options.low = 0;
    options.size = 4;
    assert_null(psi_cache_open(&options));
}

static void a_store_that_cannot_be_opened_is_named(void **state) {
    (void)state;
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.log = keep_line;
    options.store_dir = "/nowhere/at/all";
    psi_cache *cache = psi_cache_open(&options);
    psi_pool *pool = plain_pool(cache, 4, 1);
    assert_non_null(strstr(logged, "PSI_CACHE_STORE_DIR"));
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trimmed_blocks_free_pages_and_come_back_bit_for_bit),
        cmocka_unit_test(what_a_step_names_comes_back_before_it_runs),
        cmocka_unit_test(a_write_into_a_stored_block_keeps_its_other_bytes),
        cmocka_unit_test(without_a_store_blocks_are_dropped_and_counted),
        cmocka_unit_test(a_full_store_leaves_blocks_in_memory),
        cmocka_unit_test(the_floor_holds),
        cmocka_unit_test(odd_rows_and_columns_come_back_bit_for_bit),
        cmocka_unit_test(unsound_planes_are_refused),
        cmocka_unit_test(unknown_ids_are_refused),
        cmocka_unit_test(freed_blocks_are_zero_when_handed_out_again),
        cmocka_unit_test(a_forked_child_leaves_the_store_alone),
        cmocka_unit_test(kv_malloc_gives_zeroed_memory_and_takes_it_back),
        cmocka_unit_test(limits_are_checked),
        cmocka_unit_test(bad_options_name_the_cure),
        cmocka_unit_test(a_store_that_cannot_be_opened_is_named),
    };
    return cmocka_run_group_tests_name("pool", tests, setup, NULL);
}
