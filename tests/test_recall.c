/* test_recall.c - scores of blocks, hidden blocks that are wanted against resident ones that are not, and options that
 * are set while the cache runs. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 32, LONG_US = 10000000 };

static size_t page;

static int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    return 0;
}

static psi_cache *quiet_cache(const char *store) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.policy = "fifo";
    options.store = store;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static unsigned char byte_of(unsigned seed, size_t i) { return (unsigned char)(seed * 7 + i * 13 + i / 255); }

static void assert_filled(const unsigned char *at, unsigned seed) {
    for (size_t i = 0; i < 4 * page; i++) {
        assert_int_equal(at[i], byte_of(seed, i));
    }
}

static void use_all(psi_pool *pool) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_used(pool, i);
    }
}

/* All blocks written, one step ago. */
static psi_pool *filled_pool(psi_cache *cache) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = 4 * page;
    options.blocks = BLOCKS;
    psi_pool *pool = psi_pool_create(cache, &options);
    assert_non_null(pool);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        unsigned char *at = psi_block_alloc(pool, NULL);
        for (size_t i = 0; i < 4 * page; i++) {
            at[i] = byte_of(block, i);
        }
    }
    (void)psi_pool_step(pool);
    use_all(pool);
    (void)psi_pool_step(pool);
    return pool;
}

/* The older half, 1 to 16, is out and hidden. */
static psi_pool *half_pool(psi_cache *cache) {
    psi_pool *pool = filled_pool(cache);
    use_all(pool);
    assert_int_equal(psi_cache_trim(cache, 0.5), 0);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 1), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_get_state(pool, 16), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_get_state(pool, 17), PSI_BLOCK_RESIDENT);
    return pool;
}

static void end(psi_pool *pool, psi_cache *cache) {
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static psi_stats stats_of(psi_cache *cache) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(cache, &stats), 0);
    return stats;
}

/* All resident ones are wanted but 20; of the hidden ones only `hidden`. */
static void want(float wants[BLOCKS], uint32_t hidden) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        wants[i] = i > 16 ? 0.05f : 0;
    }
    wants[19] = wants[20] = wants[21] = 0;
    wants[hidden] = 0.06f;
}

static void a_wanted_block_comes_back_for_the_least_wanted_one(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5);
    uint64_t resident = stats_of(cache).resident_bytes;
    assert_true(psi_pool_recall(pool, wants, LONG_US) > 0);
    assert_int_equal(psi_block_get_state(pool, 5), PSI_BLOCK_RESIDENT);
    assert_int_equal(psi_block_get_state(pool, 20), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_get_state(pool, 17), PSI_BLOCK_RESIDENT);
    assert_int_equal(stats_of(cache).resident_bytes, resident);
    assert_filled(psi_block_address(pool, 5), 5);
    assert_int_equal(psi_block_restore(pool, 20), 0);
    assert_filled(psi_block_address(pool, 20), 20);
    end(pool, cache);
}

static void the_first_the_newest_and_what_the_step_writes_never_go(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = half_pool(cache);
    use_all(pool);
    assert_int_equal(psi_block_write(pool, 25), 0);
    (void)psi_pool_step(pool);
    float wants[BLOCKS] = {0};
    for (uint32_t i = 1; i <= 16; i++) {
        wants[i] = 0.5f;
    }
    assert_true(psi_pool_recall(pool, wants, LONG_US) > 0);
    assert_int_equal(psi_block_get_state(pool, 0), PSI_BLOCK_RESIDENT);
    assert_int_equal(psi_block_get_state(pool, 25), PSI_BLOCK_RESIDENT);
    assert_int_equal(psi_block_get_state(pool, 31), PSI_BLOCK_RESIDENT);
    end(pool, cache);
}

static void nothing_moves_for_wants_that_are_alike(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        wants[i] = 0.03f;
    }
    assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 0);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        wants[i] = i == 5 ? NAN : i == 6 ? HUGE_VALF : -1; /* nothing known */
    }
    assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 0);
    assert_int_equal(psi_pool_recall(NULL, wants, LONG_US), -EINVAL);
    assert_int_equal(psi_pool_recall(pool, NULL, LONG_US), -EINVAL);
    end(pool, cache);
}

static void nothing_moves_with_recall_off_and_its_wants_are_forgotten(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS], none[BLOCKS] = {0};
    want(wants, 5);
    assert_int_equal(psi_cache_set(cache, "recall", "off"), 0);
    assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 0);
    assert_int_equal(psi_cache_set(cache, "recall", "on"), 0);
    assert_int_equal(psi_pool_recall(pool, none, LONG_US), 0);
    assert_true(psi_pool_recall(pool, wants, LONG_US) > 0);
    end(pool, cache);
}

static void without_a_store_nothing_comes_and_nothing_is_lost(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("none");
    psi_pool *pool = filled_pool(cache);
    float wants[BLOCKS] = {0};
    wants[5] = 1;
    assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 0);
    assert_int_equal(stats_of(cache).dropped_bytes, 0);
    end(pool, cache);
}

/* The bound is for a hang; it times nothing. */
static bool fetched(psi_pool *pool) {
    for (int i = 0; i < 2000; i++) {
        pthread_mutex_lock(&pool->lock);
        bool is_ready = psi_fetch_any_ready(pool);
        pthread_mutex_unlock(&pool->lock);
        if (is_ready) {
            return true;
        }
        psi_os_pause_us(5000);
    }
    return false;
}

static void make_clean(psi_pool *pool) {
    while (psi_clean_one(pool, PSI_TRIM_ALL) > 0) {
    }
}

static void in_the_background_it_is_read_first_and_exchanged_at_a_later_step(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5);
    make_clean(pool);
    uint64_t resident = stats_of(cache).resident_bytes;
    assert_int_equal(psi_pool_recall(pool, wants, 0), 0);
    assert_int_equal(psi_block_get_state(pool, 5), PSI_BLOCK_STORED);
    assert_true(fetched(pool));
    use_all(pool);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_block_get_state(pool, 5), PSI_BLOCK_RESIDENT);
    assert_int_equal(stats_of(cache).resident_bytes, resident);
    assert_filled(psi_block_address(pool, 5), 5);
    end(pool, cache);
}

static void what_was_read_is_not_put_over_what_was_written_meanwhile(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5);
    make_clean(pool);
    assert_int_equal(psi_pool_recall(pool, wants, 0), 0);
    assert_true(fetched(pool));
    assert_int_equal(psi_block_write(pool, 5), 0);
    memset(psi_block_address(pool, 5), 77, 4 * page);
    use_all(pool);
    (void)psi_pool_step(pool);
    const unsigned char *at = psi_block_address(pool, 5);
    assert_true(at[0] == 77 && at[4 * page - 1] == 77);
    end(pool, cache);
}

static void attention_is_kept_and_fades(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = filled_pool(cache);
    assert_int_equal(psi_block_score(pool, 7, PSI_SCORE_ATTENTION, 0.5f), 0);
    assert_int_equal(psi_block_score(pool, 7, PSI_SCORE_ATTENTION, 0.1f), 0);
    assert_true(fabsf(pool->block[7].attention - 0.45f) < 1e-6f);
    assert_int_equal(psi_block_score(pool, 7, PSI_SCORE_ATTENTION, 0.9f), 0);
    assert_true(fabsf(pool->block[7].attention - 0.9f) < 1e-6f);
    assert_int_equal(psi_block_score(pool, 7, PSI_SCORE_KEYS, 2), 0);
    assert_int_equal(psi_block_write(pool, 7), 0);
    assert_true(pool->block[7].keys < 0 && pool->block[7].attention > 0); /* its keys are others now */
    psi_block_free(pool, 7);
    assert_true(pool->block[7].attention < 0);
    end(pool, cache);
}

static void scores_that_are_none_are_refused(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = filled_pool(cache);
    assert_int_equal(psi_block_score(pool, BLOCKS, PSI_SCORE_KEYS, 1), -EINVAL);
    assert_int_equal(psi_block_score(NULL, 0, PSI_SCORE_KEYS, 1), -EINVAL);
    assert_int_equal(psi_block_score(pool, 1, PSI_SCORE_KEYS, -1), -EINVAL);
    assert_int_equal(psi_block_score(pool, 1, PSI_SCORE_KEYS, NAN), -EINVAL);
    assert_int_equal(psi_block_score(pool, 1, PSI_SCORE_KEYS, HUGE_VALF), -EINVAL);
    assert_int_equal(psi_block_score(pool, 1, (psi_score_kind)2, 1), -EINVAL);
    float scores[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        scores[i] = i % 2 == 0 ? 1 : -1;
    }
    assert_int_equal(psi_pool_score(pool, PSI_SCORE_KEYS, scores), BLOCKS / 2);
    assert_int_equal(psi_pool_score(pool, PSI_SCORE_KEYS, NULL), -EINVAL);
    end(pool, cache);
}

static void the_policy_set_decides_from_the_next_trim_on(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file");
    psi_pool *pool = filled_pool(cache);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(psi_block_score(pool, i, PSI_SCORE_KEYS, i < 12 ? 2 : 1), 0);
    }
    assert_int_equal(psi_cache_set(cache, "policy", "keys"), 0);
    use_all(pool);
    assert_int_equal(psi_cache_trim(cache, 0.3), 0);
    (void)psi_pool_step(pool);
    for (uint32_t i = 0; i <= 12; i++) { /* the neighbour of a block of worth has its worth */
        assert_int_equal(psi_block_get_state(pool, i), PSI_BLOCK_RESIDENT);
    }
    assert_int_equal(psi_block_get_state(pool, 13), PSI_BLOCK_STORED);
    end(pool, cache);
}

static void an_option_that_is_none_is_refused_with_the_reason(void **state) {
    (void)state;
    assert_int_equal(psi_cache_set(NULL, "policy", "fifo"), -ENODEV);
    psi_cache *cache = quiet_cache("file");
    assert_int_equal(psi_cache_set(cache, "colour", "blue"), -ENOENT);
    assert_int_equal(psi_cache_set(cache, "policy", "random"), -EINVAL);
    assert_int_equal(psi_cache_set(cache, "recall", "maybe"), -EINVAL);
    assert_int_equal(psi_cache_set(cache, "score_share", "2"), -EINVAL);
    assert_int_equal(psi_cache_set(cache, "score_share", "0.1x"), -EINVAL);
    assert_int_equal(psi_cache_set(cache, NULL, "x"), -EINVAL);
    assert_int_equal(psi_cache_set(cache, "recall", NULL), -EINVAL);
    assert_int_equal(psi_cache_set(NULL, "recall_share", "0.5"), 0);
    psi_cache_close(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wanted_block_comes_back_for_the_least_wanted_one),
        cmocka_unit_test(the_first_the_newest_and_what_the_step_writes_never_go),
        cmocka_unit_test(nothing_moves_for_wants_that_are_alike),
        cmocka_unit_test(nothing_moves_with_recall_off_and_its_wants_are_forgotten),
        cmocka_unit_test(without_a_store_nothing_comes_and_nothing_is_lost),
        cmocka_unit_test(in_the_background_it_is_read_first_and_exchanged_at_a_later_step),
        cmocka_unit_test(what_was_read_is_not_put_over_what_was_written_meanwhile),
        cmocka_unit_test(attention_is_kept_and_fades),
        cmocka_unit_test(scores_that_are_none_are_refused),
        cmocka_unit_test(the_policy_set_decides_from_the_next_trim_on),
        cmocka_unit_test(an_option_that_is_none_is_refused_with_the_reason),
    };
    return cmocka_run_group_tests_name("recall", tests, setup, NULL);
}
