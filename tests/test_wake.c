/* test_wake.c - sequences that sleep and wake where there is no room: those who sleep make it, and what was hidden
 * comes back when its sequence's turn comes again. Memory is a made-up /proc/meminfo that leaves no room. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/cache.h"
#include "psicache.h"

enum { HALF = 8, BLOCKS = 2 * HALF };

static char root[64];
static size_t page;

static void put_meminfo(const char *available) {
    char path[96];
    (void)snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    (void)fprintf(file, "MemTotal: 1048576 kB\nMemFree: %s kB\nMemAvailable: %s kB\n", available, available);
    (void)fclose(file);
}

static int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    (void)snprintf(root, sizeof(root), "/tmp/psi-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    char path[96];
    (void)snprintf(path, sizeof(path), "%s/proc", root);
    assert_int_equal(mkdir(path, 0755), 0);
    put_meminfo("0");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    char command[96];
    (void)snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command);
}

/* Trimmed by hand only, and with no room from the first reading on. */
static psi_cache *cache_without_room(void) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.root = root;
    options.controller = -1;
    options.floor_bytes = 1;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static void wait_until_no_room(psi_cache *cache) {
    for (int i = 0; i < 20000 && psi_cache_take_room(cache, 1) > 0; i++) { /* for a hang, not a timing */
        psi_os_pause_us(1000);
    }
    assert_int_equal(psi_cache_take_room(cache, 1), 0);
}

static void name(psi_pool *pool, uint32_t first) {
    unsigned char marks[BLOCKS] = {0};
    memset(marks + first, PSI_MARK_USED, HALF);
    assert_int_equal(psi_pool_mark(pool, marks), 0);
}

static int step_of(psi_pool *pool, uint32_t first) {
    name(pool, first);
    int moved = psi_pool_step(pool);
    psi_pool_step_end(pool);
    return moved;
}

static uint32_t resident_of(psi_pool *pool, uint32_t first) {
    uint32_t count = 0;
    for (uint32_t i = first; i < first + HALF; i++) {
        count += psi_block_get_state(pool, i) == PSI_BLOCK_RESIDENT;
    }
    return count;
}

/* Two sequences, each of half the blocks; all was written some steps ago. */
static psi_pool *two_sequences(psi_cache *cache) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = page;
    options.blocks = BLOCKS;
    psi_pool *pool = psi_pool_create(cache, &options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        memset(psi_block_alloc(pool, NULL), (int)i + 1, page);
    }
    for (int i = 0; i < 3; i++) {
        (void)step_of(pool, 0);
        (void)step_of(pool, HALF);
    }
    return pool;
}

static void assert_content(psi_pool *pool, uint32_t first) {
    for (uint32_t i = first; i < first + HALF; i++) {
        const unsigned char *at = psi_block_address(pool, i);
        assert_true(at[0] == i + 1 && at[page - 1] == i + 1);
    }
}

static void who_sleeps_makes_room_for_who_wakes(void **state) {
    (void)state;
    psi_cache *cache = cache_without_room();
    psi_pool *pool = two_sequences(cache);
    wait_until_no_room(cache);
    assert_int_equal(psi_cache_trim(cache, 0.5), 0);
    (void)step_of(pool, HALF); /* the first sequence sleeps: it goes */
    assert_int_equal(resident_of(pool, 0), 0);
    assert_int_equal(resident_of(pool, HALF), HALF);
    (void)psi_pool_step(pool); /* of neither: both sleep, and the store has all of them */
    psi_pool_step_end(pool);
    while (psi_clean_one(pool, PSI_TRIM_ASLEEP) > 0) {
    }
    assert_int_equal(pool->resident, HALF);
    (void)step_of(pool, 0);
    assert_int_equal(resident_of(pool, 0), HALF);
    assert_content(pool, 0);
    assert_int_equal(pool->resident, HALF);
    (void)step_of(pool, HALF);
    assert_int_equal(resident_of(pool, HALF), HALF);
    assert_content(pool, HALF);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void what_was_hidden_comes_back_when_its_turn_comes_again(void **state) {
    (void)state;
    psi_cache *cache = cache_without_room();
    put_meminfo("900000");
    psi_pool *pool = two_sequences(cache);
    (void)step_of(pool, HALF);
    assert_int_equal(psi_cache_trim(cache, 0.8), 0);
    (void)step_of(pool, HALF); /* more is asked for than the sleeper has: a part of the running one is hidden */
    uint32_t kept = resident_of(pool, HALF);
    assert_true(kept < HALF);
    (void)step_of(pool, HALF); /* while it runs it waits for room, in small steps */
    assert_int_equal(resident_of(pool, HALF), kept);
    for (uint32_t i = 0; i < 20; i++) {
        (void)step_of(pool, 0);
    }
    (void)step_of(pool, HALF);
    assert_int_equal(resident_of(pool, HALF), HALF);
    assert_content(pool, HALF);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void what_is_saved_while_it_sleeps_is_not_hidden(void **state) {
    (void)state;
    put_meminfo("900000");
    psi_cache *cache = cache_without_room();
    psi_pool *pool = two_sequences(cache);
    for (uint32_t i = 0; i < HALF; i++) {
        assert_int_equal(psi_block_restore(pool, i), 0); /* a state is saved */
    }
    assert_int_equal(psi_cache_trim(cache, 1), 0);
    (void)step_of(pool, HALF);
    (void)step_of(pool, 0);
    assert_int_equal(resident_of(pool, 0), HALF);
    assert_content(pool, 0);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

enum { SHARING = 64, COLUMNS = 2048 }; /* blocks on a page, pages */

/* A transposed tensor: each block has a 64th of every page. */
static psi_pool *sharing_pool(psi_cache *cache, unsigned char *base) {
    psi_plane plane = {.base = base,
                       .block_bytes = page / SHARING,
                       .column_bytes = page,
                       .columns = COLUMNS,
                       .column_stride_bytes = page};
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.blocks = SHARING;
    options.planes = &plane;
    options.planes_per_lane = 1;
    psi_pool *pool = psi_pool_adopt(cache, &options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < SHARING; i++) {
        (void)psi_block_write(pool, i);
    }
    memset(base, 7, page * COLUMNS);
    for (int i = 0; i < 3; i++) {
        (void)psi_pool_step(pool);
    }
    assert_int_equal(psi_cache_trim(cache, 1), 0);
    (void)psi_pool_step(pool); /* of none of them: all sleep */
    psi_pool_step_end(pool);
    assert_int_equal(pool->resident, 0);
    return pool;
}

/* 2,048 pages come with the first block, whose own share of them is 32 pages' worth. */
static void a_block_that_brings_the_pages_of_others_needs_room_for_them(void **state) {
    (void)state;
    uint64_t pages_kib = COLUMNS * page / 1024;
    for (int enough = 0; enough < 2; enough++) {
        char available[32];
        (void)snprintf(available, sizeof(available), "%llu", (unsigned long long)(enough ? pages_kib * 3 : pages_kib));
        put_meminfo(available);
        psi_cache *cache = cache_without_room(); /* of half of that, in truth */
        unsigned char *base = psi_os_reserve(page * COLUMNS);
        psi_pool *pool = sharing_pool(cache, base);
        for (int i = 0; i < 20000 && atomic_load(&cache->room_bytes) == UINT64_MAX; i++) {
            psi_os_pause_us(1000); /* the first reading */
        }
        unsigned char marks[SHARING] = {[5] = PSI_MARK_USED};
        assert_int_equal(psi_pool_mark(pool, marks), 0);
        (void)psi_pool_step(pool);
        psi_pool_step_end(pool);
        assert_int_equal(pool->resident, enough);
        psi_pool_destroy(pool);
        psi_cache_close(cache);
        psi_os_unreserve(base, page * COLUMNS);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(who_sleeps_makes_room_for_who_wakes, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_saved_while_it_sleeps_is_not_hidden, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_hidden_comes_back_when_its_turn_comes_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_block_that_brings_the_pages_of_others_needs_room_for_them, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
