/* test_clean.c - blocks written to the store ahead of need: what is written, when a copy becomes worthless, that giving
 * a clean block up writes nothing, and threads. */
#include <errno.h>
#include <pthread.h>
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
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 32 };

static size_t page;

static int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    return 0;
}

static psi_cache *quiet_cache(uint64_t store_max_bytes) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.store_max_bytes = store_max_bytes;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static void fill(unsigned char *at, unsigned seed) {
    for (size_t i = 0; i < 4 * page; i++) {
        at[i] = (unsigned char)(seed * 7 + i * 13 + i / 255);
    }
}

static void assert_filled(const unsigned char *at, unsigned seed) {
    size_t wrong = 0; /* one assertion a byte takes a minute under the sanitizers */
    for (size_t i = 0; i < 4 * page; i++) {
        wrong += at[i] != (unsigned char)(seed * 7 + i * 13 + i / 255);
    }
    assert_int_equal(wrong, 0);
}

/* All blocks written, one step ago. */
static psi_pool *filled_pool(psi_cache *cache) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = 4 * page;
    options.blocks = BLOCKS;
    psi_pool *pool = psi_pool_create(cache, &options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        fill(psi_block_alloc(pool, NULL), i);
    }
    (void)psi_pool_step(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_used(pool, i);
    }
    (void)psi_pool_step(pool);
    return pool;
}

static psi_stats stats_of(psi_cache *cache) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(cache, &stats), 0);
    return stats;
}

static void restore_and_check(psi_pool *pool) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(psi_block_restore(pool, i), 0);
        assert_filled(psi_block_address(pool, i), i);
    }
}

static uint32_t clean_all(psi_pool *pool, psi_trim_scope scope) {
    uint32_t count = 0;
    while (psi_clean_one(pool, scope) > 0) {
        count++;
    }
    return count;
}

static void clean_blocks_go_without_a_write(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(0);
    psi_pool *pool = filled_pool(cache);
    assert_int_equal(clean_all(pool, PSI_TRIM_ALL), BLOCKS - 3); /* the first and the two newest never go */
    assert_int_equal(stats_of(cache).stored_bytes, 0);
    uint64_t written = stats_of(cache).written_bytes;
    assert_int_equal(written, (BLOCKS - 3) * 4 * page);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_used(pool, i);
    }
    assert_int_equal(psi_cache_trim(cache, 0.9), 0);
    assert_true(psi_pool_step(pool) >= BLOCKS / 2);
    assert_int_equal(stats_of(cache).written_bytes, written);
    restore_and_check(pool);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void the_watcher_gives_up_clean_blocks_only(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(0);
    psi_pool *pool = filled_pool(cache);
    (void)psi_pool_step(pool); /* which names no block: all are asleep */
    uint64_t all = (uint64_t)BLOCKS * 4 * page;
    pthread_mutex_lock(&pool->lock);
    assert_int_equal(psi_trim(pool, all, PSI_TRIM_ASLEEP, 0), 0);
    pthread_mutex_unlock(&pool->lock);
    assert_true(psi_clean_one(pool, PSI_TRIM_ASLEEP) > 0);
    pthread_mutex_lock(&pool->lock);
    assert_int_equal(psi_trim(pool, all, PSI_TRIM_ASLEEP, 0), 4 * page);
    pthread_mutex_unlock(&pool->lock);
    restore_and_check(pool);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* What is asked of an engine's thread, and how much of it may go unwritten. */
static uint64_t trimmed_at_a_step(psi_pool *pool, uint64_t want_blocks, uint64_t may_drop_blocks) {
    uint64_t before = stats_of(pool->cache).trimmed_bytes;
    atomic_store(&pool->want_trim_bytes, want_blocks * 4 * page);
    atomic_store(&pool->may_drop_bytes, may_drop_blocks * 4 * page);
    (void)psi_pool_step(pool);
    return (stats_of(pool->cache).trimmed_bytes - before) / (4 * page);
}

static void a_spike_faster_than_the_store_drops_what_it_may(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(0);
    psi_pool *pool = filled_pool(cache);
    assert_true(psi_clean_one(pool, PSI_TRIM_ALL) > 0);
    assert_true(psi_clean_one(pool, PSI_TRIM_ALL) > 0);
    assert_int_equal(trimmed_at_a_step(pool, 10, 0), 2); /* what the store has */
    assert_int_equal(stats_of(cache).dropped_bytes, 0);
    assert_true(psi_clean_one(pool, PSI_TRIM_ALL) > 0);
    assert_int_equal(trimmed_at_a_step(pool, 10, 4), 5); /* one of them is in the store */
    assert_int_equal(stats_of(cache).dropped_bytes, 4 * 4 * page);
    assert_int_equal(stats_of(cache).stored_bytes, 3 * 4 * page);
    assert_int_equal(trimmed_at_a_step(pool, 10, 0), 0); /* leave is given for one step */
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void a_written_block_is_not_clean_any_more(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(0);
    psi_pool *pool = filled_pool(cache);
    assert_int_equal(clean_all(pool, PSI_TRIM_ALL), BLOCKS - 3);
    assert_int_equal(psi_block_write(pool, 5), 0);
    fill(psi_block_address(pool, 5), 77);
    (void)psi_pool_step(pool);
    (void)clean_all(pool, PSI_TRIM_ALL);
    assert_int_equal(pool->block[5].slot, PSI_SLOT_NONE); /* it is written in this very step */
    (void)psi_pool_step(pool);
    (void)psi_cache_trim(cache, 1.0);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_restore(pool, 5), 0);
    assert_filled(psi_block_address(pool, 5), 77);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static void a_full_store_says_so_and_loses_nothing(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(3 * 4 * page);
    psi_pool *pool = filled_pool(cache);
    for (int i = 0; i < 3; i++) {
        assert_true(psi_clean_one(pool, PSI_TRIM_ALL) > 0);
    }
    assert_int_equal(psi_clean_one(pool, PSI_TRIM_ALL), -ENOSPC);
    (void)psi_pool_step(pool);
    (void)psi_cache_trim(cache, 1.0);
    (void)psi_pool_step(pool);
    assert_int_equal(stats_of(cache).stored_bytes, 3 * 4 * page);
    restore_and_check(pool);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static uint64_t room_on_disk(void) {
    uint64_t bytes = 0;
    for (int fd = 3; fd < 256; fd++) {
        struct stat status;
        char path[64]; /* not by fstat: most descriptors are the watcher's, and come and go */
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        if (stat(path, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 0) {
            bytes += (uint64_t)status.st_blocks * 512;
        }
    }
    return bytes;
}

static void the_records_of_a_cleared_cache_leave_the_disk(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(0);
    psi_pool *pool = filled_pool(cache);
    uint64_t before = room_on_disk();
    assert_int_equal(clean_all(pool, PSI_TRIM_ALL), BLOCKS - 3);
    assert_true(room_on_disk() > before);
    psi_pool_clear(pool);
    for (int i = 0; i < 20000 && room_on_disk() > before; i++) {
        psi_os_pause_us(1000);
    }
    assert_true(room_on_disk() <= before);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* ---- Threads: one cleans all the time, the other writes, trims and checks -------------------------- */

typedef struct cleaner {
    psi_pool *pool;
    atomic_bool stop;
    atomic_uint cleaned;
} cleaner;

static void *clean_on_and_on(void *argument) {
    cleaner *c = argument;
    while (!atomic_load(&c->stop)) {
        if (psi_clean_one(c->pool, PSI_TRIM_ALL) > 0) {
            (void)atomic_fetch_add(&c->cleaned, 1);
        } else {
            psi_os_pause_us(50); /* as the writer rests: else it holds the lock most of the time */
        }
    }
    return NULL;
}

static void written_and_cleaned_at_once_no_byte_is_wrong(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache(0);
    psi_pool *pool = filled_pool(cache);
    unsigned seeds[BLOCKS], random = 20261123;
    cleaner c = {.pool = pool};
    pthread_t thread;
    for (unsigned i = 0; i < BLOCKS; i++) {
        seeds[i] = i;
    }
    assert_int_equal(pthread_create(&thread, NULL, clean_on_and_on, &c), 0);
    /* Longer where one processor has to do for both. */
    for (unsigned round = 0; round < 600 || (atomic_load(&c.cleaned) == 0 && round < 600000); round++) {
        random = random * 1103515245u + 12345u;
        uint32_t block = random >> 16 & (BLOCKS - 1);
        assert_int_equal(psi_block_write(pool, block), 0);
        (void)psi_pool_step(pool);
        seeds[block] = round;
        fill(psi_block_address(pool, block), seeds[block]);
        psi_pool_step_end(pool);
        if (round % 5 == 4) {
            (void)psi_cache_trim(cache, 1.0);
            (void)psi_pool_step(pool);
            for (uint32_t i = 0; i < BLOCKS; i++) {
                assert_int_equal(psi_block_restore(pool, i), 0);
                assert_filled(psi_block_address(pool, i), seeds[i]);
            }
        }
    }
    atomic_store(&c.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(atomic_load(&c.cleaned) > 0);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* ---- The watcher: ahead of need, and not before there is any --------------------------------------- */

static char root[64];

static void fake_meminfo(unsigned available_mib) {
    char path[128], text[160];
    (void)snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    (void)snprintf(text, sizeof(text), "MemTotal:        1048576 kB\nMemFree:         %u kB\nMemAvailable:    %u kB\n",
                   available_mib * 1024, available_mib * 1024);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    (void)fputs(text, file);
    (void)fclose(file);
}

static psi_cache *cache_with(unsigned available_mib) {
    char path[128];
    (void)snprintf(root, sizeof(root), "/tmp/psi-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    (void)snprintf(path, sizeof(path), "%s/proc", root);
    assert_int_equal(mkdir(path, 0755), 0);
    fake_meminfo(available_mib);
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.root = root;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static void close_all(psi_cache *cache, psi_pool *pool) {
    char command[128];
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    (void)snprintf(command, sizeof(command), "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

static void the_watcher_writes_ahead_when_memory_is_short(void **state) {
    (void)state;
    psi_cache *cache = cache_with(250);
    psi_pool *pool = filled_pool(cache);
    for (int i = 0; i < 20000 && stats_of(cache).clean_bytes < (BLOCKS - 3) * 4 * page; i++) {
        (void)psi_pool_step(pool);
        psi_os_pause_us(1000);
    }
    assert_true(stats_of(cache).clean_bytes >= (BLOCKS - 3) * 4 * page);
    assert_int_equal(stats_of(cache).trims, 0);
    close_all(cache, pool);
}

/* An SD card is not worn for nothing. */
static void while_memory_is_plenty_nothing_is_written(void **state) {
    (void)state;
    psi_cache *cache = cache_with(900);
    psi_pool *pool = filled_pool(cache);
    while (stats_of(cache).readings < 2) {
        (void)psi_pool_step(pool);
        psi_os_pause_us(1000);
    }
    assert_int_equal(stats_of(cache).written_bytes, 0);
    close_all(cache, pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clean_blocks_go_without_a_write),
        cmocka_unit_test(the_watcher_gives_up_clean_blocks_only),
        cmocka_unit_test(a_spike_faster_than_the_store_drops_what_it_may),
        cmocka_unit_test(a_written_block_is_not_clean_any_more),
        cmocka_unit_test(a_full_store_says_so_and_loses_nothing),
        cmocka_unit_test(the_records_of_a_cleared_cache_leave_the_disk),
        cmocka_unit_test(written_and_cleaned_at_once_no_byte_is_wrong),
        cmocka_unit_test(the_watcher_writes_ahead_when_memory_is_short),
        cmocka_unit_test(while_memory_is_plenty_nothing_is_written),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
