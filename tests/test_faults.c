/* test_faults.c - disks that are full, fail, lie, hang or are gone: never a wrong byte is used, blocks stay in memory
 * or hidden, and it is counted, and said once. */
#include "fake_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 48, PAGES = 2 };

static size_t page, block_bytes;

/* ---- What was said ---------------------------------------------------------------------------------- */

enum { LINES = 64 };
static char said[LINES][512];
static atomic_uint said_count;

static void hear(void *user, psi_log_level level, const char *line) {
    (void)user;
    unsigned at = level <= PSI_LOG_WARN ? atomic_fetch_add(&said_count, 1) : LINES;
    if (at < LINES) {
        (void)snprintf(said[at], sizeof(said[at]), "%s", line);
    }
}

static unsigned lines_with(const char *text) {
    unsigned found = 0;
    for (unsigned i = 0; i < atomic_load(&said_count) && i < LINES; i++) {
        found += strstr(said[i], text) != NULL;
    }
    return found;
}

/* ---- Pools whose content is known -------------------------------------------------------------------- */

typedef struct rig {
    psi_cache *cache;
    psi_pool *pool;
    unsigned seeds[BLOCKS]; /* of what was written last; 0: nothing is known of the block's content */
} rig;

/* What a block holds: its seed, and then one of 256 patterns. */
static unsigned char patterns[256][PAGES << 16];

static void make_patterns(void) {
    for (size_t p = 0; p < 256; p++) {
        for (size_t i = 0; i < block_bytes; i++) {
            patterns[p][i] = (unsigned char)(p * 7 + i * 13 + i / 255);
        }
    }
}

static int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    block_bytes = PAGES * page;
    make_patterns();
    return 0;
}

static void fill(rig *r, uint32_t block, unsigned seed) {
    unsigned char *at = psi_block_address(r->pool, block);
    memcpy(at, patterns[seed % 256], block_bytes);
    memcpy(at, &seed, sizeof(seed));
    r->seeds[block] = seed;
}

static void assert_content(const rig *r, uint32_t block) {
    const unsigned char *at = psi_block_address(r->pool, block);
    assert_memory_equal(at, &r->seeds[block], sizeof(unsigned));
    assert_memory_equal(at + sizeof(unsigned), patterns[r->seeds[block] % 256] + sizeof(unsigned),
                        block_bytes - sizeof(unsigned));
}

static void assert_zero(const rig *r, uint32_t block) {
    const unsigned char *at = psi_block_address(r->pool, block);
    for (size_t i = 0; i < block_bytes; i++) {
        assert_int_equal(at[i], 0);
    }
}

static rig open_rig(const char *directory) {
    fake_disk_set(FAKE_DISK_SOUND, 100);
    atomic_store(&said_count, 0);
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.log = hear;
    options.store_dir = directory;
    rig r = {.cache = psi_cache_open(&options)};
    assert_non_null(r.cache);
    psi_pool_options pool_options = PSI_OPTIONS_INIT(psi_pool_options);
    pool_options.block_bytes = block_bytes;
    pool_options.blocks = BLOCKS;
    r.pool = psi_pool_create(r.cache, &pool_options);
    assert_non_null(r.pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_non_null(psi_block_alloc(r.pool, NULL));
        fill(&r, i, i + 1);
    }
    (void)psi_pool_step(r.pool);
    (void)psi_pool_step(r.pool);
    return r;
}

static void close_rig(rig *r) {
    fake_disk_set(FAKE_DISK_SOUND, 100);
    psi_pool_destroy(r->pool);
    psi_cache_close(r->cache);
}

static psi_stats stats_of(const rig *r) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(r->cache, &stats), 0);
    return stats;
}

static psi_block_state state_of(const rig *r, uint32_t block) { return psi_block_get_state(r->pool, block); }

static void trim_by_hand(rig *r) {
    assert_int_equal(psi_cache_trim(r->cache, 1.0), 0);
    (void)psi_pool_step(r->pool);
}

/* Every block that is in memory holds what was written to it last. */
static void assert_no_byte_is_wrong(const rig *r) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (state_of(r, i) == PSI_BLOCK_RESIDENT && r->seeds[i] != 0) {
            assert_content(r, i);
        }
    }
}

static uint32_t bring_all_back(rig *r) {
    uint32_t lost = 0;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        bool empty = state_of(r, i) == PSI_BLOCK_EMPTY;
        int error = psi_block_restore(r->pool, i);
        assert_int_equal(state_of(r, i), empty ? PSI_BLOCK_EMPTY : error == 0 ? PSI_BLOCK_RESIDENT : PSI_BLOCK_DROPPED);
        lost += error != 0;
    }
    assert_no_byte_is_wrong(r);
    return lost;
}

/* ---- One fault at a time ------------------------------------------------------------------------------ */

static void blocks_that_cannot_be_written_stay(fake_disk_fault fault, const char *line, const char *cure) {
    rig r = open_rig("/var/tmp");
    fake_disk_set(fault, 100);
    for (int i = 0; i < 5; i++) {
        trim_by_hand(&r);
    }
    assert_int_equal(stats_of(&r).resident_bytes, BLOCKS * block_bytes);
    assert_true(stats_of(&r).store_errors > 0);
    assert_int_equal(lines_with(line), 1);
    assert_int_equal(lines_with(cure), 1);
    assert_int_equal(bring_all_back(&r), 0);
    close_rig(&r);
}

static void a_full_disk_keeps_blocks_in_memory(void **state) {
    (void)state;
    blocks_that_cannot_be_written_stay(FAKE_DISK_FULL, "is full", "PSI_CACHE_STORE_DIR");
    blocks_that_cannot_be_written_stay(FAKE_DISK_HALF_FULL, "is full", "PSI_CACHE_STORE_DIR");
}

static void a_failing_disk_keeps_blocks_in_memory(void **state) {
    (void)state;
    blocks_that_cannot_be_written_stay(FAKE_DISK_WRITE_ERROR, "cannot be written", "check the disk");
    blocks_that_cannot_be_written_stay(FAKE_DISK_GONE, "cannot be written", "check the disk");
}

static void blocks_that_cannot_be_read_stay_hidden(fake_disk_fault fault_of_write, fake_disk_fault fault_of_read) {
    rig r = open_rig("/var/tmp");
    fake_disk_set(fault_of_write, 100);
    trim_by_hand(&r);
    uint64_t stored = stats_of(&r).stored_bytes;
    assert_true(stored > BLOCKS / 2 * block_bytes);
    fake_disk_set(fault_of_read, 100);
    assert_int_equal(bring_all_back(&r) * block_bytes, stored);
    fake_disk_set(FAKE_DISK_SOUND, 100);
    assert_int_equal(bring_all_back(&r) * block_bytes, stored); /* gone is gone */
    assert_int_equal(stats_of(&r).dropped_bytes, stored);
    assert_int_equal(stats_of(&r).store_errors * block_bytes, stored);
    assert_int_equal(lines_with("could not be read back"), 1);
    for (uint32_t i = 0; i < BLOCKS; i++) { /* and takes new content */
        bool lost = state_of(&r, i) == PSI_BLOCK_DROPPED;
        assert_int_equal(psi_block_write(r.pool, i), 0);
        if (lost) {
            assert_zero(&r, i);
        }
        fill(&r, i, 1000 + i);
    }
    assert_no_byte_is_wrong(&r);
    close_rig(&r);
}

static void an_unreadable_disk_keeps_blocks_hidden(void **state) {
    (void)state;
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_SOUND, FAKE_DISK_READ_ERROR);
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_SOUND, FAKE_DISK_GONE);
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_SOUND, FAKE_DISK_ENDS_EARLY);
}

static void a_lying_disk_keeps_blocks_hidden(void **state) {
    (void)state;
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_SOUND, FAKE_DISK_READ_FLIPS);
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_WRITE_FLIPS, FAKE_DISK_SOUND);
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_WRITE_LOST, FAKE_DISK_SOUND);
    blocks_that_cannot_be_read_stay_hidden(FAKE_DISK_WRITE_ASTRAY, FAKE_DISK_SOUND);
}

static void short_transfers_are_gone_on_with(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    fake_disk_set(FAKE_DISK_SHORT, 100);
    trim_by_hand(&r);
    assert_true(stats_of(&r).stored_bytes > BLOCKS / 2 * block_bytes);
    assert_int_equal(bring_all_back(&r), 0);
    assert_int_equal(stats_of(&r).store_errors, 0);
    assert_true(atomic_load(&fake_disk.failed) > 0);
    close_rig(&r);
}

/* A file system may take the flag O_DIRECT and then no transfer with it. */
static void a_disk_that_is_not_direct_after_all_is_used_through_the_page_cache(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    fake_disk_set(FAKE_DISK_NOT_DIRECT, 100);
    trim_by_hand(&r);
    assert_true(stats_of(&r).stored_bytes > BLOCKS / 2 * block_bytes);
    assert_int_equal(bring_all_back(&r), 0);
    assert_int_equal(stats_of(&r).store_errors, 0);
    close_rig(&r);
}

/* Without O_DIRECT the write succeeds long before the disk has seen the bytes. */
static void bytes_that_the_page_cache_could_not_write_are_not_taken_for_stored(void **state) {
    (void)state;
    rig r = open_rig("/dev/shm"); /* or wherever: only that the descriptor is no direct one matters */
    fake_disk_set(FAKE_DISK_NOT_DIRECT, 100);
    assert_true(psi_clean_one(r.pool, PSI_TRIM_ALL) > 0);
    fake_disk_set(FAKE_DISK_FLUSH_ERROR, 100);
    trim_by_hand(&r);
    assert_true(stats_of(&r).stored_bytes <= block_bytes);
    assert_true(stats_of(&r).store_errors > 0);
    assert_int_equal(bring_all_back(&r), 0);
    close_rig(&r);
}

/* ---- What is done about it ---------------------------------------------------------------------------- */

/* Written ahead, with no pressure: it is counted and said all the same, for the store is needed when it is too late. */
static void a_failure_of_writing_ahead_is_counted_and_said(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    fake_disk_set(FAKE_DISK_WRITE_ERROR, 100);
    assert_int_equal(psi_clean_one(r.pool, PSI_TRIM_ALL), -EIO);
    assert_int_equal(stats_of(&r).store_errors, 1);
    assert_int_equal(lines_with("cannot be written"), 1);
    close_rig(&r);
}

/* A disk that fails may take seconds for each failure, and a card wears: it is not asked again at once. */
static void a_failing_disk_is_left_alone_for_a_while(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    fake_disk_set(FAKE_DISK_WRITE_ERROR, 100);
    unsigned long before = atomic_load(&fake_disk.writes);
    for (int i = 0; i < 100; i++) {
        assert_true(psi_clean_one(r.pool, PSI_TRIM_ALL) < 0);
    }
    assert_int_equal(atomic_load(&fake_disk.writes), before + 1);
    close_rig(&r);
}

static void a_disk_that_works_again_is_used_again(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    fake_disk_set(FAKE_DISK_WRITE_ERROR, 100);
    assert_true(psi_clean_one(r.pool, PSI_TRIM_ALL) < 0);
    fake_disk_set(FAKE_DISK_SOUND, 100);
    for (int i = 0; i < 10000 && psi_clean_one(r.pool, PSI_TRIM_ALL) < 0; i++) {
        psi_os_pause_us(1000);
    }
    assert_true(stats_of(&r).written_bytes > 0);
    close_rig(&r);
}

/* Memory is about to end and the disk is gone: the block is lost rather than the process. */
static void in_an_emergency_without_a_disk_blocks_are_dropped(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    fake_disk_set(FAKE_DISK_GONE, 100);
    atomic_store(&r.pool->may_drop, true);
    trim_by_hand(&r);
    assert_true(stats_of(&r).dropped_bytes > BLOCKS / 2 * block_bytes);
    assert_int_equal(stats_of(&r).stored_bytes, 0);
    assert_no_byte_is_wrong(&r);
    close_rig(&r);
}

/* ---- A disk that hangs --------------------------------------------------------------------------------- */

static void *clean_one(void *pool) {
    (void)psi_clean_one(pool, PSI_TRIM_ALL);
    return NULL;
}

/* Whoever waits here for the disk waits for ever, and the test's time runs out. */
static void while_the_disk_hangs_steps_go_on(void **state) {
    (void)state;
    rig r = open_rig("/var/tmp");
    for (int i = 0; i < 10; i++) {
        assert_true(psi_clean_one(r.pool, PSI_TRIM_ALL) > 0);
    }
    pthread_t thread;
    fake_disk_hang(true);
    assert_int_equal(pthread_create(&thread, NULL, clean_one, r.pool), 0);
    fake_disk_await_hang();
    for (uint32_t i = 0; i < BLOCKS; i++) { /* clean ones too: their copies are void */
        assert_int_equal(psi_block_write(r.pool, i), 0);
        fill(&r, i, 500 + i);
        (void)psi_pool_step(r.pool);
        psi_pool_step_end(r.pool);
        assert_int_equal(psi_pool_refuses(r.pool), 0);
        (void)stats_of(&r);
    }
    atomic_store(&r.pool->want_trim_bytes, 4 * block_bytes); /* as the watcher asks */
    (void)psi_pool_step(r.pool);
    psi_block_free(r.pool, 3);
    r.seeds[3] = 0;
    fake_disk_hang(false);
    assert_int_equal(pthread_join(thread, NULL), 0);
    trim_by_hand(&r);
    (void)bring_all_back(&r);
    close_rig(&r);
}

/* As when a state is loaded twice: written, whole, and on its way to the store while it is written again before the
 * same step. What is on its way is old by then. */
static void what_is_written_again_before_the_step_is_not_the_copy_under_way(void **state) {
    (void)state;
    rig r = open_rig("/tmp");
    psi_pool_step_end(r.pool);
    for (uint32_t i = 0; i < BLOCKS; i++) { /* 5 is the one to clean */
        assert_int_equal(psi_block_write(r.pool, i), 0);
        if (i == 5) {
            fill(&r, i, 100);
            psi_block_settle(r.pool, i);
        }
    }
    pthread_t thread;
    fake_disk_hang(true);
    assert_int_equal(pthread_create(&thread, NULL, clean_one, r.pool), 0);
    fake_disk_await_hang();
    assert_int_equal(psi_block_write(r.pool, 5), 0);
    fill(&r, 5, 200);
    psi_block_settle(r.pool, 5);
    fake_disk_hang(false);
    assert_int_equal(pthread_join(thread, NULL), 0);
    (void)psi_pool_step(r.pool);
    trim_by_hand(&r);
    assert_int_equal(state_of(&r, 5), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_restore(r.pool, 5), 0);
    assert_content(&r, 5);
    close_rig(&r);
}

/* ---- At random ------------------------------------------------------------------------------------------ */

typedef struct walk {
    rig r;
    uint64_t random;
    unsigned next_seed;
    unsigned restores, losses, drops;
} walk;

static uint64_t roll(walk *w, uint64_t sides) {
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random % sides;
}

static void write_a_block(walk *w) {
    uint32_t block = (uint32_t)roll(w, BLOCKS);
    psi_block_state before = state_of(&w->r, block);
    int error = psi_block_write(w->r.pool, block);
    assert_true(error == 0 || (error == -EIO && before == PSI_BLOCK_STORED));
    if (error != 0 || before == PSI_BLOCK_DROPPED || before == PSI_BLOCK_EMPTY) {
        assert_zero(&w->r, block);
        w->losses += error != 0;
    } else {
        assert_content(&w->r, block);
    }
    fill(&w->r, block, ++w->next_seed);
}

static void restore_a_block(walk *w) {
    uint32_t block = (uint32_t)roll(w, BLOCKS);
    psi_block_state before = state_of(&w->r, block);
    int error = psi_block_restore(w->r.pool, block);
    if (before == PSI_BLOCK_STORED) {
        assert_true(error == 0 || error == -EIO);
        assert_int_equal(state_of(&w->r, block), error == 0 ? PSI_BLOCK_RESIDENT : PSI_BLOCK_DROPPED);
        w->restores += error == 0;
        w->losses += error != 0;
    } else {
        assert_int_equal(error, before == PSI_BLOCK_DROPPED ? -ENOENT : 0);
    }
}

static void step(walk *w) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (roll(w, 3) > 0) {
            psi_block_used(w->r.pool, i);
        }
    }
    atomic_store(&w->r.pool->may_drop, roll(w, 8) == 0);
    atomic_store(&w->r.pool->may_write, roll(w, 2) == 0);
    atomic_store(&w->r.pool->may_drop_bytes, roll(w, 8) == 0 ? 2 * block_bytes : 0);
    if (roll(w, 3) == 0) {
        atomic_store(&w->r.pool->want_trim_bytes, roll(w, 8) * block_bytes);
    } else if (roll(w, 8) == 0) {
        assert_int_equal(psi_cache_trim(w->r.cache, 0.3), 0);
    } else if (roll(w, 4) == 0) {
        atomic_store(&w->r.pool->want_restore_bytes, roll(w, 8) * block_bytes);
    }
    assert_true(psi_pool_step(w->r.pool) >= 0);
    if (roll(w, 2) == 0) {
        psi_pool_step_end(w->r.pool);
    }
}

static void recall(walk *w) {
    float wants[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        wants[i] = (float)roll(w, 100) / 100;
    }
    assert_true(psi_pool_recall(w->r.pool, wants, roll(w, 2) * 1000) >= 0);
}

static void take_as_the_watcher(walk *w) {
    pthread_mutex_lock(&w->r.pool->lock);
    (void)psi_trim(w->r.pool, roll(w, 4) * block_bytes, PSI_TRIM_ASLEEP, 1);
    pthread_mutex_unlock(&w->r.pool->lock);
}

static void free_a_block(walk *w) {
    uint32_t block = (uint32_t)roll(w, BLOCKS);
    psi_block_free(w->r.pool, block);
    w->r.seeds[block] = 0;
}

static void forget_the_failures(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->write_again_us = 0; /* or most of the walk would pass with a disk that is left alone */
    pthread_mutex_unlock(&pool->lock);
}

static void operate(walk *w) {
    switch (roll(w, 12)) {
    case 0:
    case 1:
    case 2:
        write_a_block(w);
        break;
    case 3:
    case 4:
        restore_a_block(w);
        break;
    case 5:
    case 6:
        step(w);
        break;
    case 7:
        recall(w);
        break;
    case 8:
        take_as_the_watcher(w);
        break;
    case 9: /* as the watcher asks */
        atomic_store(&w->r.pool->want_write_bytes, 8 * block_bytes);
        psi_cache_wake_writer(w->r.cache);
        break;
    case 10:
        if (roll(w, 8) == 0) {
            free_a_block(w);
        }
        break;
    default:
        fake_disk_set((fake_disk_fault)roll(w, FAKE_DISK_FAULTS), (unsigned)roll(w, 2) * 80 + 20);
        forget_the_failures(w->r.pool);
    }
}

static uint64_t number(const char *name, uint64_t fallback) {
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : fallback;
}

/* One thread writes ahead, the writer's reads ahead, this one does everything else, on a disk with every fault there
 * is. PSI_TEST_OPERATIONS, PSI_TEST_SEED: a longer walk, another one. */
static void at_random_no_byte_is_wrong(void **state) {
    (void)state;
    uint64_t operations = number("PSI_TEST_OPERATIONS", 10000), seed = number("PSI_TEST_SEED", 20261126);
    walk w = {.r = open_rig("/var/tmp"), .random = seed | 1, .next_seed = 10000};
    for (uint64_t i = 0; i < operations; i++) {
        operate(&w);
        assert_no_byte_is_wrong(&w.r);
    }
    fake_disk_set(FAKE_DISK_SOUND, 100);
    (void)bring_all_back(&w.r);
    print_message("seed %llu: %llu operations, %lu calls failed or lied, %u blocks came back, %u were lost, "
                  "%llu store errors\n",
                  (unsigned long long)seed, (unsigned long long)operations, atomic_load(&fake_disk.failed), w.restores,
                  w.losses, (unsigned long long)stats_of(&w.r).store_errors);
    assert_true(w.restores > 0 && w.losses > 0);
    close_rig(&w.r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_keeps_blocks_in_memory),
        cmocka_unit_test(a_failing_disk_keeps_blocks_in_memory),
        cmocka_unit_test(an_unreadable_disk_keeps_blocks_hidden),
        cmocka_unit_test(a_lying_disk_keeps_blocks_hidden),
        cmocka_unit_test(short_transfers_are_gone_on_with),
        cmocka_unit_test(a_disk_that_is_not_direct_after_all_is_used_through_the_page_cache),
        cmocka_unit_test(bytes_that_the_page_cache_could_not_write_are_not_taken_for_stored),
        cmocka_unit_test(a_failure_of_writing_ahead_is_counted_and_said),
        cmocka_unit_test(a_failing_disk_is_left_alone_for_a_while),
        cmocka_unit_test(a_disk_that_works_again_is_used_again),
        cmocka_unit_test(in_an_emergency_without_a_disk_blocks_are_dropped),
        cmocka_unit_test(while_the_disk_hangs_steps_go_on),
        cmocka_unit_test(what_is_written_again_before_the_step_is_not_the_copy_under_way),
        cmocka_unit_test(at_random_no_byte_is_wrong),
    };
    return cmocka_run_group_tests_name("faults", tests, setup, NULL);
}
