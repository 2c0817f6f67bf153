/* test_pool.c - blocks that leave and come back: bits, pages, floors, refusals, two lanes, odd rows, transposed planes,
 * a forked child, and threads. The machine's signals are replaced by a fake /proc where a test needs pressure. */
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
#include "pool/pool.h"
#include "psicache.h"

static size_t page;

static int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    return 0;
}

static psi_cache *quiet_cache(const char *store) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.store = store;
    options.floor_bytes = 1; /* 0 would be the default */
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static psi_pool *plain_pool(psi_cache *cache, uint32_t blocks, uint32_t keep_newest) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = 4 * page;
    options.blocks = blocks;
    options.keep_newest = keep_newest;
    psi_pool *pool = psi_pool_create(cache, &options);
    assert_non_null(pool);
    return pool;
}

static void fill(unsigned char *at, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i++) {
        at[i] = (unsigned char)(seed * 7 + i * 13 + i / 255);
    }
}

static psi_pool *filled_pool(psi_cache *cache, uint32_t blocks, uint32_t keep_newest) {
    psi_pool *pool = plain_pool(cache, blocks, keep_newest);
    for (uint32_t i = 0; i < blocks; i++) {
        fill(psi_block_alloc(pool, NULL), 4 * page, i);
    }
    return pool;
}

static void assert_filled(const unsigned char *at, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(at[i], (unsigned char)(seed * 7 + i * 13 + i / 255));
    }
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

static psi_stats stats_of(psi_cache *cache) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(cache, &stats), 0);
    return stats;
}

static void use_all(psi_pool *pool, uint32_t blocks) {
    for (uint32_t i = 0; i < blocks; i++) {
        psi_block_used(pool, i);
    }
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

/* ---- Pressure, from a fake /proc ---------------------------------------------------------------- */

static char root[64];

static void fake_file(const char *path, const char *text) {
    char full[128];
    (void)snprintf(full, sizeof(full), "%s/%s", root, path);
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    (void)fputs(text, file);
    (void)fclose(file);
}

static void fake_meminfo(unsigned available_mib) {
    char text[160];
    (void)snprintf(text, sizeof(text), "MemTotal:        1048576 kB\nMemFree:         %u kB\nMemAvailable:    %u kB\n",
                   available_mib * 1024, available_mib * 1024);
    fake_file("proc/meminfo", text);
}

static psi_cache *pressed_cache_with_floor(unsigned available_mib, uint64_t floor_bytes) {
    (void)snprintf(root, sizeof(root), "/tmp/psi-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    char full[128];
    (void)snprintf(full, sizeof(full), "%s/proc", root);
    assert_int_equal(mkdir(full, 0755), 0);
    fake_meminfo(available_mib);
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.root = root;
    options.floor_bytes = floor_bytes;
    options.dwell_us = 1000;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static psi_cache *pressed_cache(unsigned available_mib) { return pressed_cache_with_floor(available_mib, 1); }

static void remove_root(void) {
    char command[128];
    (void)snprintf(command, sizeof(command), "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

/* Waits for what the watcher will do; the bound is for a hang, not a timing. */
static void wait_until(int (*holds)(psi_cache *, psi_pool *), psi_cache *cache, psi_pool *pool) {
    for (int i = 0; i < 20000; i++) {
        if (holds(cache, pool)) {
            return;
        }
        psi_os_pause_us(1000);
    }
    fail_msg("what was waited for did not come");
}

static int is_refusing(psi_cache *cache, psi_pool *pool) {
    (void)cache;
    return psi_pool_refuses(pool);
}

static int is_pressed(psi_cache *cache, psi_pool *pool) {
    (void)pool;
    return psi_cache_is_pressed(cache);
}

static int is_not_refusing(psi_cache *cache, psi_pool *pool) { return !is_refusing(cache, pool); }

static void under_pressure_a_block_is_refused_and_later_given(void **state) {
    (void)state;
    psi_cache *cache = pressed_cache(2);
    psi_pool *pool = plain_pool(cache, 4, 1);
    wait_until(is_refusing, cache, pool);
    assert_null(psi_block_alloc(pool, NULL));
    assert_int_equal(errno, EAGAIN);
    assert_true(stats_of(cache).refusals >= 1);
    fake_meminfo(900);
    wait_until(is_not_refusing, cache, pool);
    assert_non_null(psi_block_alloc(pool, NULL));
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
}

static int steps_until_all_went(psi_cache *cache, psi_pool *pool) {
    use_all(pool, 64);
    (void)psi_pool_step(pool);
    return stats_of(cache).stored_bytes >= 60 * 4 * page;
}

static int steps_until_all_came(psi_cache *cache, psi_pool *pool) {
    use_all(pool, 64);
    (void)psi_pool_step(pool);
    return stats_of(cache).stored_bytes == 0;
}

static void pressure_trims_and_its_end_regrows(void **state) {
    (void)state;
    psi_cache *cache = pressed_cache(900);
    psi_pool *pool = filled_pool(cache, 64, 1);
    for (int i = 0; i < 200; i++) {
        (void)steps_until_all_went(cache, pool);
        psi_os_pause_us(100);
    }
    assert_int_equal(stats_of(cache).stored_bytes, 0); /* not pressed: nothing goes */
    fake_meminfo(2);
    wait_until(steps_until_all_went, cache, pool);
    fake_meminfo(900);
    wait_until(steps_until_all_came, cache, pool);
    for (uint32_t i = 0; i < 64; i++) {
        assert_filled(psi_block_address(pool, i), 4 * page, i);
    }
    assert_true(stats_of(cache).trims >= 1 && stats_of(cache).restores >= 1);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
}

static int steps_until_the_floor(psi_cache *cache, psi_pool *pool) {
    use_all(pool, 64);
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    return stats_of(cache).resident_bytes <= 4 * 4 * page;
}

/* Of 64 blocks a 32nd is two, and three are kept: there has to be one that can go for a new one to come. */
static void at_its_default_floor_a_small_pool_takes_new_blocks(void **state) {
    (void)state;
    psi_cache *cache = pressed_cache_with_floor(2, 0);
    psi_pool *pool = plain_pool(cache, 64, 2);
    for (uint32_t i = 0; i < 60; i++) {
        assert_int_equal(psi_block_write(pool, i), 0);
    }
    wait_until(steps_until_the_floor, cache, pool);
    for (uint32_t i = 60; i < 64; i++) {
        for (int round = 0; round < 50; round++) {
            assert_true(steps_until_the_floor(cache, pool));
            assert_false(psi_pool_refuses(pool));
            psi_os_pause_us(200);
        }
        assert_int_equal(psi_block_write(pool, i), 0);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
}

/* A conversation that begins in a spike: nothing can go, and the floor has room. */
static void below_its_floor_a_pool_takes_new_blocks(void **state) {
    (void)state;
    psi_cache *cache = pressed_cache_with_floor(2, 0); /* 8 of 256 blocks */
    psi_pool *pool = plain_pool(cache, 256, 2);
    wait_until(is_pressed, cache, pool);
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t id = 0;
        psi_stats stats = stats_of(cache);
        assert_false(psi_pool_refuses(pool));
        if (i < 8) {
            assert_non_null(psi_block_alloc(pool, &id));
        } else {
            assert_int_equal(psi_block_write(pool, i), 0);
        }
        use_all(pool, 256);
        (void)psi_pool_step(pool);
        psi_pool_step_end(pool);
        assert_int_equal(stats.resident_bytes, (i < 8 ? i : 8) * 4 * page);
        psi_os_pause_us(5000); /* for the watcher to look */
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
}

static int all_went_by_themselves(psi_cache *cache, psi_pool *pool) {
    (void)pool;
    return stats_of(cache).stored_bytes >= 60 * 4 * page;
}

static void an_idle_engine_s_blocks_go_without_it(void **state) {
    (void)state;
    psi_cache *cache = pressed_cache(2);
    psi_pool *pool = plain_pool(cache, 64, 1);
    for (uint32_t i = 0; i < 64; i++) {
        assert_int_equal(psi_block_write(pool, i), 0);
        fill(psi_block_address(pool, i), 4 * page, i);
    }
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    wait_until(all_went_by_themselves, cache, pool);
    use_all(pool, 64);
    fake_meminfo(900);
    wait_until(steps_until_all_came, cache, pool);
    for (uint32_t i = 0; i < 64; i++) {
        assert_filled(psi_block_address(pool, i), 4 * page, i);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
}

/* ---- A forked child, and threads ---------------------------------------------------------------- */

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

static void *meddle(void *argument) {
    psi_cache *cache = argument;
    for (int i = 0; i < 300; i++) {
        (void)psi_cache_trim(cache, 0.3);
        psi_stats stats = {.size = sizeof(stats)};
        (void)psi_stats_read(cache, &stats);
        (void)psi_set_cache_limit(0.5 + (i % 5) / 10.0);
        (void)psi_cache_restore(cache);
    }
    return NULL;
}

static void other_threads_may_ask_at_any_time(void **state) {
    (void)state;
    psi_cache *cache = pressed_cache(900);
    psi_pool *pool = filled_pool(cache, 32, 1);
    fake_meminfo(40);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, meddle, cache), 0);
    for (uint32_t i = 0; i < 300; i++) {
        psi_block_used(pool, i % 32);
        (void)psi_pool_step(pool);
        if (psi_block_get_state(pool, i % 32) == PSI_BLOCK_RESIDENT) {
            assert_filled(psi_block_address(pool, i % 32), 16, i % 32);
        }
        psi_pool_step_end(pool);
    }
    (void)pthread_join(thread, NULL);
    assert_int_equal(psi_set_cache_limits(0.7, 0.3), 0);
    for (uint32_t i = 0; i < 32; i++) {
        assert_int_equal(psi_block_restore(pool, i), 0);
        assert_filled(psi_block_address(pool, i), 4 * page, i);
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
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
        cmocka_unit_test(under_pressure_a_block_is_refused_and_later_given),
        cmocka_unit_test(at_its_default_floor_a_small_pool_takes_new_blocks),
        cmocka_unit_test(below_its_floor_a_pool_takes_new_blocks),
        cmocka_unit_test(pressure_trims_and_its_end_regrows),
        cmocka_unit_test(an_idle_engine_s_blocks_go_without_it),
        cmocka_unit_test(a_forked_child_leaves_the_store_alone),
        cmocka_unit_test(other_threads_may_ask_at_any_time),
        cmocka_unit_test(kv_malloc_gives_zeroed_memory_and_takes_it_back),
        cmocka_unit_test(limits_are_checked),
        cmocka_unit_test(bad_options_name_the_cure),
        cmocka_unit_test(a_store_that_cannot_be_opened_is_named),
    };
    return cmocka_run_group_tests_name("pool", tests, setup, NULL);
}
