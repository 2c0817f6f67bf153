/* test_budget.c - what may be written to the store in an hour: in no hour more than the bound, wherever it begins; and
 * who has to keep to it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/cache.h"
#include "pool/watcher.h"
#include "psicache.h"
#include "store/budget.h"

#define MINUTE_US UINT64_C(60000000)

static void without_a_bound_it_only_counts(void **state) {
    (void)state;
    psi_budget budget;
    psi_budget_open(&budget, 0);
    assert_true(psi_budget_take(&budget, UINT64_C(1) << 50, 5));
    assert_true(psi_budget_take(&budget, UINT64_C(1) << 50, 6));
    assert_int_equal(psi_budget_hour_bytes(&budget, 7), UINT64_C(1) << 51);
    psi_budget_close(&budget);
}

static void the_bound_is_kept_and_time_frees_it(void **state) {
    (void)state;
    psi_budget budget;
    psi_budget_open(&budget, 100);
    assert_true(psi_budget_take(&budget, 60, 0));
    assert_true(psi_budget_allows(&budget, 40, 0));
    assert_false(psi_budget_allows(&budget, 41, 0));
    assert_false(psi_budget_take(&budget, 41, 0));
    assert_true(psi_budget_take(&budget, 40, 30 * MINUTE_US));
    assert_false(psi_budget_take(&budget, 1, 60 * MINUTE_US)); /* the first minute is not over an hour ago in whole */
    assert_int_equal(psi_budget_hour_bytes(&budget, 61 * MINUTE_US), 40);
    assert_true(psi_budget_take(&budget, 60, 61 * MINUTE_US));
    assert_false(psi_budget_take(&budget, 1, 90 * MINUTE_US));
    assert_int_equal(psi_budget_hour_bytes(&budget, 1000 * MINUTE_US), 0);
    assert_true(psi_budget_take(&budget, 100, 1000 * MINUTE_US));
    psi_budget_close(&budget);
}

static void what_must_be_written_counts_past_the_bound(void **state) {
    (void)state;
    psi_budget budget;
    psi_budget_open(&budget, 100);
    psi_budget_overdraw(&budget, 150, 0);
    assert_false(psi_budget_allows(&budget, 0, 0));
    assert_int_equal(psi_budget_hour_bytes(&budget, 0), 150);
    psi_budget_close(&budget);
}

/* In every hour of a long day at random, to the microsecond. */
static void no_hour_holds_more(void **state) {
    (void)state;
    enum { TAKES = 20000 };
    static uint64_t when[TAKES], bytes[TAKES];
    uint64_t random = 20261126, now_us = 12345;
    size_t count = 0, first = 0, refused = 0;
    psi_budget budget;
    psi_budget_open(&budget, 10000);
    uint64_t sum = 0;
    while (count < TAKES) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        now_us += (random >> 33) % (10 * 1000000);
        uint64_t want = (random >> 20) % 90;
        if (!psi_budget_take(&budget, want, now_us)) {
            refused++;
            continue;
        }
        when[count] = now_us;
        bytes[count] = want;
        sum += want;
        for (; now_us - when[first] > 60 * MINUTE_US; first++) {
            sum -= bytes[first];
        }
        assert_true(sum <= 10000);
        count++;
    }
    assert_true(refused > 100);
    psi_budget_close(&budget);
}

/* ---- In a cache ---------------------------------------------------------------------------------------- */

enum { BLOCKS = 16 };
static size_t block_bytes;
static unsigned said;

static void hear(void *user, psi_log_level level, const char *line) {
    (void)user;
    said += level == PSI_LOG_WARN && strstr(line, "PSI_CACHE_STORE_HOUR_MAX_BYTES") != NULL;
}

static psi_pool *filled_pool(uint64_t most_blocks, int strict) {
    block_bytes = psi_os_page_bytes();
    said = 0;
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.log = hear;
    options.store_hour_max_bytes = most_blocks * block_bytes;
    options.store_hour_strict = strict;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    psi_pool_options pool_options = PSI_OPTIONS_INIT(psi_pool_options);
    pool_options.block_bytes = block_bytes;
    pool_options.blocks = BLOCKS;
    psi_pool *pool = psi_pool_create(cache, &pool_options);
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        memset(psi_block_alloc(pool, NULL), (int)i + 1, block_bytes);
    }
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
    return pool;
}

static psi_stats stats_of(const psi_pool *pool) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(pool->cache, &stats), 0);
    return stats;
}

static void close_pool(psi_pool *pool) {
    psi_cache *cache = pool->cache;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        int error = psi_block_restore(pool, i);
        const unsigned char *bytes = psi_block_address(pool, i);
        assert_true(error == -ENOENT || (error == 0 && bytes[0] == i + 1 && bytes[block_bytes - 1] == i + 1));
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static unsigned written_ahead(psi_pool *pool) {
    unsigned count = 0;
    while (psi_clean_one(pool, PSI_TRIM_ALL) > 0) {
        count++;
    }
    return count;
}

static void writing_ahead_keeps_to_it(void **state) {
    (void)state;
    psi_pool *pool = filled_pool(5, 0);
    assert_int_equal(written_ahead(pool), 5);
    assert_int_equal(psi_clean_one(pool, PSI_TRIM_ALL), -EAGAIN);
    assert_int_equal(said, 1);
    assert_int_equal(stats_of(pool).store_errors, 0);
    assert_int_equal(stats_of(pool).store_hour_bytes, 5 * block_bytes);
    assert_int_equal(stats_of(pool).store_hour_max_bytes, 5 * block_bytes);
    close_pool(pool);
}

static void a_trim_does_not_unless_it_is_told_to(void **state) {
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        psi_pool *pool = filled_pool(5, strict);
        assert_int_equal(psi_cache_trim(pool->cache, 1.0), 0);
        (void)psi_pool_step(pool);
        uint64_t stored = stats_of(pool).stored_bytes / block_bytes;
        assert_true(strict ? stored == 5 : stored > 10);
        assert_int_equal(stats_of(pool).dropped_bytes, 0);
        assert_int_equal(stats_of(pool).store_hour_bytes, stats_of(pool).written_bytes);
        close_pool(pool);
    }
}

static void under_pressure_the_writer_does_not_either(void **state) {
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        psi_pool *pool = filled_pool(5, strict);
        atomic_store(&pool->cache->pressed, true);
        unsigned count = written_ahead(pool);
        assert_true(strict ? count == 5 : count > 10);
        atomic_store(&pool->cache->pressed, false);
        close_pool(pool);
    }
}

/* Told to keep to it, and memory is about to end. */
static void in_an_emergency_what_may_not_be_written_is_dropped(void **state) {
    (void)state;
    psi_pool *pool = filled_pool(5, 1);
    atomic_store(&pool->may_drop, true);
    assert_int_equal(psi_cache_trim(pool->cache, 1.0), 0);
    (void)psi_pool_step(pool);
    assert_int_equal(stats_of(pool).stored_bytes, 5 * block_bytes);
    assert_true(stats_of(pool).dropped_bytes > 5 * block_bytes);
    close_pool(pool);
}

/* A stream's copy of a stored block is written too; where it may not be, the caller copies in memory. */
static void a_copy_of_a_stored_block_keeps_to_it(void **state) {
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        psi_pool *pool = filled_pool(5, strict);
        assert_int_equal(written_ahead(pool), 5);
        assert_int_equal(psi_cache_trim(pool->cache, 0.25), 0);
        (void)psi_pool_step(pool);
        uint32_t stored = 0;
        while (stored < BLOCKS && psi_block_get_state(pool, stored) != PSI_BLOCK_STORED) {
            stored++;
        }
        assert_true(stored < BLOCKS);
        assert_int_equal(psi_block_copy_stored(pool, stored, BLOCKS - 1), strict ? -EAGAIN : 0);
        assert_int_equal(stats_of(pool).store_hour_bytes, (strict ? 5 : 6) * block_bytes);
        assert_int_equal(stats_of(pool).written_bytes, stats_of(pool).store_hour_bytes);
        assert_int_equal(psi_block_get_state(pool, BLOCKS - 1), strict ? PSI_BLOCK_EMPTY : PSI_BLOCK_STORED);
        psi_block_free(pool, BLOCKS - 1);
        psi_cache *cache = pool->cache;
        psi_pool_destroy(pool);
        psi_cache_close(cache);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_bound_it_only_counts),
        cmocka_unit_test(the_bound_is_kept_and_time_frees_it),
        cmocka_unit_test(what_must_be_written_counts_past_the_bound),
        cmocka_unit_test(no_hour_holds_more),
        cmocka_unit_test(writing_ahead_keeps_to_it),
        cmocka_unit_test(a_trim_does_not_unless_it_is_told_to),
        cmocka_unit_test(under_pressure_the_writer_does_not_either),
        cmocka_unit_test(in_an_emergency_what_may_not_be_written_is_dropped),
        cmocka_unit_test(a_copy_of_a_stored_block_keeps_to_it),
    };
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
