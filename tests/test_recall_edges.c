/* test_recall_edges.c - what an attack on scores and recall found: bytes that do not come back, a store that is full,
 * sequences that take turns, pages that blocks share, and threads that get in each other's way. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/cache.h"
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 32, HIDDEN = 16, LONG_US = 10000000 };

static size_t page;

static int setup(void **state) {
    (void)state;
    page = psi_os_page_bytes();
    return 0;
}

static void say_nothing(void *user, psi_log_level level, const char *line) {
    (void)user;
    (void)level;
    (void)line;
}

/* No source of any signal, so that nothing but the test sets what is free. */
static psi_cache *quiet_cache(const char *store, uint64_t store_max_bytes) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.policy = "fifo";
    options.store = store;
    options.store_max_bytes = store_max_bytes;
    options.root = "/nowhere";
    options.log = say_nothing;
    psi_cache *cache = psi_cache_open(&options);
    assert_non_null(cache);
    return cache;
}

static unsigned char byte_of(uint32_t block, size_t i) { return (unsigned char)(block * 7 + i * 13 + i / 255 + 1); }

static void fill(psi_pool *pool, uint32_t block) {
    unsigned char *at = psi_block_address(pool, block);
    for (size_t i = 0; i < pool->block_total_bytes; i++) {
        at[i] = byte_of(block, i);
    }
}

static bool is_filled(psi_pool *pool, uint32_t block) {
    const unsigned char *at = psi_block_address(pool, block);
    bool good = true;
    for (size_t i = 0; i < pool->block_total_bytes; i++) {
        good = good && at[i] == byte_of(block, i);
    }
    return good;
}

static void use(psi_pool *pool, uint32_t first, uint32_t last) {
    for (uint32_t i = first; i <= last; i++) {
        psi_block_used(pool, i);
    }
}

static void step_with_all(psi_pool *pool) {
    use(pool, 0, BLOCKS - 1);
    (void)psi_pool_step(pool);
}

/* All blocks written, one step ago; then the older half, 1 to 16, is out and hidden. */
static void fill_and_halve(psi_cache *cache, psi_pool *pool) {
    assert_non_null(pool);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_int_equal(psi_block_write(pool, block), 0);
        fill(pool, block);
    }
    (void)psi_pool_step(pool);
    step_with_all(pool);
    use(pool, 0, BLOCKS - 1);
    assert_int_equal(psi_cache_trim(cache, 0.5), 0);
    (void)psi_pool_step(pool);
    assert_int_equal(pool->stored, HIDDEN);
    assert_int_equal(psi_block_get_state(pool, HIDDEN), PSI_BLOCK_STORED);
}

static psi_pool *half_pool(psi_cache *cache) {
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.block_bytes = 4 * page;
    options.blocks = BLOCKS;
    psi_pool *pool = psi_pool_create(cache, &options);
    fill_and_halve(cache, pool);
    return pool;
}

static void end(psi_pool *pool, psi_cache *cache) {
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* Resident blocks are wanted but for `out` and its neighbours; of the hidden ones only `in`. */
static void want(float wants[BLOCKS], uint32_t in, uint32_t out) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        wants[i] = i > HIDDEN ? 0.05f : 0;
    }
    wants[out - 1] = wants[out] = wants[out + 1] = 0;
    wants[in] = 0.055f;
}

/* Writes over what the pool's store holds of a block: its file has no name, but a descriptor here. */
static void damage(const psi_pool *pool, uint32_t block) {
    char path[64], name[256];
    int done = 0;
    for (int descriptor = 3; descriptor < 64; descriptor++) {
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(path, name, sizeof(name) - 1);
        name[length > 0 ? length : 0] = '\0';
        if (strncmp(name, "/var/tmp/", 9) != 0 || strstr(name, "(deleted)") == NULL) {
            continue;
        }
        int again = open(path, O_WRONLY | O_CLOEXEC);
        assert_true(again >= 0);
        done += pwrite(again, "damage", 6, (off_t)(pool->block[block].slot * (uint64_t)pool->record_bytes)) == 6;
        (void)close(again);
    }
    assert_true(done > 0);
}

static void what_cannot_be_read_back_costs_no_other_block(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 25);
    for (uint32_t i = 1; i <= HIDDEN; i++) {
        wants[i] = 0.055f;
        damage(pool, i);
    }
    uint32_t resident = pool->resident;
    assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 0);
    assert_int_equal(pool->resident, resident);
    assert_true(pool->store_errors > 0);
    end(pool, cache);
}

static void a_recall_never_drops_a_block_for_another(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", HIDDEN * 4 * page); /* full by now */
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 25);
    atomic_store(&pool->may_drop, true);
    assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 0);
    assert_int_equal(pool->dropped, 0);
    assert_int_equal(pool->resident, BLOCKS - HIDDEN);
    end(pool, cache);
}

/* Two sequences take turns: what is asleep in one's step is what the other's needs at once. Were it exchanged, it would
 * come back by itself, and the cache would be larger. */
static void blocks_that_sleep_make_no_room_for_a_recall(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 18);
    uint32_t resident = pool->resident;
    for (int turn = 0; turn < 3; turn++) {
        use(pool, 0, HIDDEN);
        use(pool, 22, BLOCKS - 1);
        (void)psi_pool_step(pool);
        (void)psi_pool_recall(pool, wants, LONG_US);
        step_with_all(pool);
        assert_int_equal(pool->resident, resident);
    }
    end(pool, cache);
}

static void a_block_of_which_nothing_is_known_stays(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 25);
    wants[25] = -1;
    assert_true(psi_pool_recall(pool, wants, LONG_US) > 0);
    assert_int_equal(psi_block_get_state(pool, 25), PSI_BLOCK_RESIDENT);
    assert_int_equal(psi_block_get_state(pool, 5), PSI_BLOCK_RESIDENT);
    end(pool, cache);
}

static void what_was_wanted_of_a_block_is_void_when_it_is_written(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 25);
    (void)psi_pool_recall(pool, wants, LONG_US);
    assert_true(pool->block[20].want > 0);
    assert_int_equal(psi_block_write(pool, 20), 0);
    assert_true(pool->block[20].want < 0);
    end(pool, cache);
}

/* ---- Pages that blocks share --------------------------------------------------------------------- */

static uint32_t pages_in_memory(void *base, size_t bytes, size_t of_bytes) {
    static unsigned char in[4096];
    uint32_t count = 0;
    assert_int_equal(mincore(base, bytes, in), 0);
    for (size_t at = 0; at < bytes / page; at += of_bytes / page) {
        bool any = false;
        for (size_t i = at; i < at + of_bytes / page; i++) {
            any = any || (in[i] & 1) != 0;
        }
        count += any;
    }
    return count;
}

/* Four blocks a page, whatever a page is: where a page is larger, or a tensor transposed. */
static void no_page_is_taken_for_a_recall_that_gives_none_back(void **state) {
    (void)state;
    for (size_t page_bytes = page; page_bytes <= 16 * page; page_bytes *= 4) {
        psi_cache *cache = quiet_cache("file", 0);
        size_t bytes = BLOCKS * page_bytes / 4;
        unsigned char *reserved = psi_os_reserve(bytes + page_bytes);
        unsigned char *base = reserved + (page_bytes - (uintptr_t)reserved % page_bytes) % page_bytes;
        psi_plane plane = {.base = base, .block_bytes = page_bytes / 4, .column_bytes = bytes};
        psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
        options.blocks = BLOCKS;
        options.planes = &plane;
        options.planes_per_lane = 1;
        psi_pool *pool = psi_pool_adopt(cache, &options);
        pool->page_bytes = page_bytes; /* a fake page */
        fill_and_halve(cache, pool);
        uint32_t pages = pages_in_memory(base, bytes, page_bytes);
        assert_int_equal(pages, 5);
        float wants[BLOCKS];
        want(wants, 5, 25);
        atomic_store(&cache->room_bytes, 0);
        wants[16] = 0.054f; /* on a page with others that are there */
        assert_int_equal(psi_pool_recall(pool, wants, LONG_US), 1);
        assert_int_equal(psi_block_get_state(pool, 16), PSI_BLOCK_RESIDENT);
        assert_true(is_filled(pool, 16));
        assert_int_equal(pages_in_memory(base, bytes, page_bytes), pages);
        atomic_store(&cache->room_bytes, UINT64_MAX);
        assert_true(psi_pool_recall(pool, wants, LONG_US) > 0);
        assert_int_equal(psi_block_get_state(pool, 5), PSI_BLOCK_RESIDENT);
        assert_true(is_filled(pool, 5));
        end(pool, cache);
        psi_os_unreserve(reserved, bytes + page_bytes);
    }
}

static void with_whole_pages_an_exchange_needs_no_room(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 25);
    atomic_store(&cache->room_bytes, 0);
    assert_true(psi_pool_recall(pool, wants, LONG_US) > 0);
    end(pool, cache);
}

/* ---- In the background ------------------------------------------------------------------------- */

static bool any_ready(psi_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    bool ready = psi_fetch_any_ready(pool);
    pthread_mutex_unlock(&pool->lock);
    return ready;
}

/* The policy would have 17 to 20 written first, but 26 to 28 are what goes. */
static void what_a_recall_would_take_is_written_ahead_first(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float wants[BLOCKS];
    want(wants, 5, 27);
    assert_int_equal(psi_pool_recall(pool, wants, 0), 0);
    for (int i = 0; i < 2000 && (!any_ready(pool) || atomic_load(&pool->want_write_bytes) > 0); i++) {
        psi_cache_wake_writer(cache); /* a machine that is busy may be late */
        psi_os_pause_us(5000);
    }
    step_with_all(pool);
    assert_int_equal(psi_block_get_state(pool, 5), PSI_BLOCK_RESIDENT);
    assert_true(is_filled(pool, 5));
    assert_int_equal(pool->resident, BLOCKS - HIDDEN);
    end(pool, cache);
}

/* ---- Scores ------------------------------------------------------------------------------------ */

static void a_sample_that_found_nothing_is_not_asked_for_again_at_once(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    psi_pool *pool = half_pool(cache);
    float none[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        none[i] = i % 2 == 0 ? -1 : NAN;
    }
    atomic_store(&cache->uneasy, true);
    assert_true(psi_pool_wants_scores(pool));
    assert_int_equal(psi_pool_score(pool, PSI_SCORE_ATTENTION, none), 0);
    assert_false(psi_pool_wants_scores(pool));
    for (int i = 0; i < 17; i++) {
        step_with_all(pool);
    }
    assert_true(psi_pool_wants_scores(pool));
    end(pool, cache);
}

/* ---- Threads ----------------------------------------------------------------------------------- */

static void *set_policies(void *argument) {
    static const char *const names[] = {"lru", "keys", "auto", "attention", "fifo"};
    for (int i = 0; i < 200; i++) {
        (void)psi_cache_set(argument, "policy", names[i % 5]);
        (void)psi_cache_set(argument, "recall", i % 2 == 0 ? "off" : "on");
    }
    return NULL;
}

static void a_pool_made_while_the_policy_is_set_has_the_new_one(void **state) {
    (void)state;
    enum { POOLS = 20 };
    psi_cache *cache = quiet_cache("none", 0);
    psi_pool *pools[POOLS];
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, set_policies, cache), 0);
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.blocks = 4;
    for (int i = 0; i < POOLS; i++) {
        pools[i] = psi_pool_create(cache, &options);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    for (int i = 0; i < POOLS; i++) {
        assert_ptr_equal(atomic_load(&pools[i]->policy), &psi_policy_fifo);
        psi_pool_destroy(pools[i]);
    }
    psi_cache_close(cache);
}

static unsigned seed = 7;

static unsigned any(unsigned below) {
    seed = seed * 1103515245u + 12345u;
    return (seed >> 8) % below;
}

/* Blocks that are being read are written, freed, cleared and exchanged meanwhile, and the pool goes in the middle. What
 * is resident is always what was written. */
static void whatever_happens_to_a_block_that_is_read_ahead_no_byte_is_wrong(void **state) {
    (void)state;
    psi_cache *cache = quiet_cache("file", 0);
    for (int round = 0; round < 6; round++) {
        psi_pool *pool = half_pool(cache);
        bool empty[BLOCKS] = {false};
        for (int turn = 0; turn < 150; turn++) {
            float wants[BLOCKS];
            for (uint32_t i = 0; i < BLOCKS; i++) {
                wants[i] = (float)any(1000) / 1000;
            }
            for (uint32_t i = 0; i < BLOCKS; i++) {
                if (!empty[i]) {
                    psi_block_used(pool, i);
                }
            }
            uint32_t block = any(BLOCKS), what = any(20);
            if (what < 4) {
                assert_int_equal(psi_block_write(pool, block), 0);
                fill(pool, block);
                empty[block] = false;
            } else if (what < 6) {
                psi_block_free(pool, block);
                empty[block] = true;
            } else if (what == 6 && any(10) == 0) {
                psi_pool_clear(pool);
                memset(empty, 1, sizeof(empty));
            } else if (what < 10) {
                (void)psi_cache_trim(cache, 0.1);
            }
            (void)psi_pool_step(pool);
            (void)psi_pool_recall(pool, wants, what % 4 == 0 ? LONG_US : 0);
            for (uint32_t i = 0; i < BLOCKS; i++) {
                if (!empty[i] && psi_block_get_state(pool, i) == PSI_BLOCK_RESIDENT) {
                    assert_true(is_filled(pool, i));
                }
            }
            psi_pool_step_end(pool);
        }
        assert_int_equal(pool->dropped, 0);
        psi_pool_destroy(pool);
    }
    psi_cache_close(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_read_back_costs_no_other_block),
        cmocka_unit_test(a_recall_never_drops_a_block_for_another),
        cmocka_unit_test(blocks_that_sleep_make_no_room_for_a_recall),
        cmocka_unit_test(a_block_of_which_nothing_is_known_stays),
        cmocka_unit_test(what_was_wanted_of_a_block_is_void_when_it_is_written),
        cmocka_unit_test(no_page_is_taken_for_a_recall_that_gives_none_back),
        cmocka_unit_test(with_whole_pages_an_exchange_needs_no_room),
        cmocka_unit_test(what_a_recall_would_take_is_written_ahead_first),
        cmocka_unit_test(a_sample_that_found_nothing_is_not_asked_for_again_at_once),
        cmocka_unit_test(a_pool_made_while_the_policy_is_set_has_the_new_one),
        cmocka_unit_test(whatever_happens_to_a_block_that_is_read_ahead_no_byte_is_wrong),
    };
    return cmocka_run_group_tests_name("recall_edges", tests, setup, NULL);
}
