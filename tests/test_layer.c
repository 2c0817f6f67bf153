/* test_layer.c - safe points inside a step: between two layers blocks that the step reads go, on request and by the
 * watcher; what the step reads just now stays in place until the next one. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/pool.h"
#include "pool/watcher.h"
#include "psicache.h"

enum { BLOCKS = 16, LAYERS = 4 };

typedef struct engine {
    psi_cache *cache;
    psi_pool *pool;
    unsigned char *memory;
    size_t block_bytes, plane_bytes;
    unsigned char states[BLOCKS];
} engine;

static unsigned char byte_of(uint32_t layer, uint32_t block) { return (unsigned char)(1 + layer * 50 + block); }

static unsigned char *at(const engine *e, uint32_t layer, uint32_t block) {
    return e->memory + layer * e->plane_bytes + block * e->block_bytes;
}

static bool is_there(const engine *e, uint32_t layer, uint32_t block) {
    return *at(e, layer, block) == byte_of(layer, block);
}

static void use_all(const engine *e) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_used(e->pool, i);
    }
}

/* A plane a layer, blocks of a page and a half; all of it written, and one step passed. */
static engine make_engine(const char *store, size_t block_bytes) {
    engine e = {.block_bytes = block_bytes};
    e.plane_bytes = (block_bytes * BLOCKS + psi_os_page_bytes() - 1) / psi_os_page_bytes() * psi_os_page_bytes();
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.policy = "fifo";
    options.store = store;
    e.cache = psi_cache_open(&options);
    e.memory = psi_os_reserve(LAYERS * e.plane_bytes);
    assert_non_null(e.cache);
    assert_non_null(e.memory);
    psi_plane planes[LAYERS];
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        planes[layer] =
            (psi_plane){.base = at(&e, layer, 0), .block_bytes = block_bytes, .column_bytes = BLOCKS * block_bytes};
    }
    psi_pool_options pool_options = PSI_OPTIONS_INIT(psi_pool_options);
    pool_options.blocks = BLOCKS;
    pool_options.planes = planes;
    pool_options.planes_per_lane = LAYERS;
    e.pool = psi_pool_adopt(e.cache, &pool_options);
    assert_non_null(e.pool);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        (void)psi_block_write(e.pool, block);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            memset(at(&e, layer, block), byte_of(layer, block), block_bytes);
        }
    }
    (void)psi_pool_step(e.pool);
    use_all(&e);
    return e;
}

static void close_engine(engine *e) {
    psi_pool_destroy(e->pool);
    psi_cache_close(e->cache);
    psi_os_unreserve(e->memory, LAYERS * e->plane_bytes);
}

static void begin_step(engine *e) {
    use_all(e);
    (void)psi_pool_step(e->pool);
    psi_pool_states(e->pool, e->states);
}

static void assert_whole(const engine *e) {
    for (uint32_t block = 0; block < BLOCKS; block++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            for (size_t i = 0; i < e->block_bytes; i++) {
                assert_int_equal(at(e, layer, block)[i], byte_of(layer, block));
            }
        }
    }
}

static void restore_all(engine *e) {
    psi_pool_step_end(e->pool);
    (void)psi_cache_restore(e->cache);
    begin_step(e);
    psi_pool_states(e->pool, e->states);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_int_equal(e->states[block], PSI_BLOCK_RESIDENT);
    }
}

static void test_a_request_is_answered_between_two_layers(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    begin_step(&e);
    assert_int_equal(psi_pool_step_layer(e.pool, 0, 1), 0);
    assert_int_equal(psi_cache_trim(e.cache, 0.25), 0);
    assert_int_equal(psi_block_get_state(e.pool, 1), PSI_BLOCK_RESIDENT); /* the layer is not over */
    assert_int_equal(psi_pool_step_layer(e.pool, 1, 1), 4);
    psi_pool_states(e.pool, e.states);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        bool out = block >= 1 && block <= 4;
        assert_int_equal(e.states[block], out ? PSI_BLOCK_STORED : PSI_BLOCK_RESIDENT);
        assert_int_equal(is_there(&e, 3, block), !out); /* given back, layers to come too: they are hidden there */
    }
    assert_int_equal(psi_pool_step_layer(e.pool, 2, 1), 0); /* nothing moved since the states were read */
    restore_all(&e);
    assert_whole(&e);
    close_engine(&e);
}

static void test_what_the_step_writes_stays(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    for (uint32_t block = 0; block < BLOCKS; block++) {
        if (block != 3) {
            (void)psi_block_write(e.pool, block);
        }
    }
    begin_step(&e);
    assert_int_equal(psi_cache_trim(e.cache, 1), 0);
    assert_int_equal(psi_pool_step_layer(e.pool, 0, 1), 1);
    assert_int_equal(psi_block_get_state(e.pool, 3), PSI_BLOCK_STORED);
    close_engine(&e);
}

/* A state that was loaded: the step that reads it first is as long as others, and need not keep it. */
static void test_what_was_written_before_the_step_and_is_whole_may_go_in_it(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    for (uint32_t block = 0; block < BLOCKS; block++) {
        (void)psi_block_write(e.pool, block);
        if (block % 2 == 0) {
            psi_block_settle(e.pool, block);
        }
    }
    psi_block_settle(e.pool, 4);
    (void)psi_block_write(e.pool, 4); /* and again, by the step */
    begin_step(&e);
    assert_int_equal(psi_cache_trim(e.cache, 1), 0);
    assert_true(psi_pool_step_layer(e.pool, 0, 1) > 0);
    assert_int_equal(psi_block_get_state(e.pool, 2), PSI_BLOCK_STORED);
    assert_int_equal(psi_block_get_state(e.pool, 3), PSI_BLOCK_RESIDENT);
    assert_int_equal(psi_block_get_state(e.pool, 4), PSI_BLOCK_RESIDENT);
    restore_all(&e);
    assert_whole(&e);
    close_engine(&e);
}

/* The next step may be another sequence's: then it goes as what sleeps does, and is there when its own comes. */
static void test_what_was_loaded_sleeps_until_its_own_step(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    psi_pool_step_end(e.pool);
    (void)psi_block_write(e.pool, 5);
    psi_block_settle(e.pool, 5);
    assert_int_equal(psi_cache_trim(e.cache, 1), 0);
    psi_block_used(e.pool, 0);
    (void)psi_pool_step(e.pool);
    assert_int_equal(psi_block_get_state(e.pool, 5), PSI_BLOCK_STORED);
    assert_false(e.pool->block[5].hidden);
    psi_pool_step_end(e.pool);
    psi_block_used(e.pool, 5);
    (void)psi_pool_step(e.pool);
    assert_int_equal(psi_block_get_state(e.pool, 5), PSI_BLOCK_RESIDENT);
    close_engine(&e);
}

static void clean_all(engine *e) {
    while (psi_clean_one(e->pool, PSI_TRIM_ALL) > 0) {
    }
}

/* As the watcher's thread does it. */
static uint64_t trim_as_watcher(engine *e, uint64_t bytes) {
    psi_cache *cache = e->cache;
    psi_decision decision = {.band = PSI_BAND_SAFETY, .trim_bytes = bytes, .urgent = true};
    pthread_mutex_lock(&cache->lock);
    uint64_t before = e->pool->trimmed_bytes;
    psi_demand demand;
    psi_give_measure(cache, &demand);
    psi_give(cache, &decision, &demand);
    (void)atomic_exchange(&e->pool->want_trim_bytes, 0);
    pthread_mutex_unlock(&cache->lock);
    return e->pool->trimmed_bytes - before;
}

static void test_the_watcher_waits_for_no_layer_and_takes_nothing_from_the_one_that_runs(void **state) {
    (void)state;
    for (size_t quarters = 3; quarters <= 8; quarters++) { /* blocks that share pages, too */
        engine e = make_engine("file", psi_os_page_bytes() * quarters / 4);
        begin_step(&e);
        clean_all(&e);
        assert_int_equal(trim_as_watcher(&e, LAYERS * e.block_bytes), 0); /* no layer was said: the step reads all */
        assert_int_equal(psi_pool_step_layer(e.pool, 1, 1), 0);
        uint64_t returned = e.pool->returned_bytes;
        assert_int_equal(trim_as_watcher(&e, 6 * LAYERS * e.block_bytes), 6 * LAYERS * e.block_bytes);
        assert_true(e.pool->returned_bytes > returned);
        for (uint32_t block = 0; block < BLOCKS; block++) {
            assert_true(is_there(&e, 1, block)); /* the layer that runs reads it, and its mask shows it */
        }
        if (quarters % 4 == 0) {
            assert_false(is_there(&e, 0, 2));
            assert_false(is_there(&e, 2, 2));
        }
        returned = e.pool->returned_bytes;
        assert_int_equal(psi_pool_step_layer(e.pool, 2, 1), 6); /* now its owner hides them */
        assert_true(e.pool->returned_bytes > returned);
        assert_false(is_there(&e, 1, 3));
        psi_pool_states(e.pool, e.states);
        for (uint32_t block = 0; block < BLOCKS; block++) {
            assert_int_equal(e.states[block], block >= 1 && block <= 6 ? PSI_BLOCK_STORED : PSI_BLOCK_RESIDENT);
            assert_true(e.states[block] != PSI_BLOCK_RESIDENT || is_there(&e, 1, block));
        }
        restore_all(&e);
        assert_whole(&e);
        close_engine(&e);
    }
}

static void test_a_block_that_comes_back_while_a_part_of_it_lingers_is_whole(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    begin_step(&e);
    clean_all(&e);
    (void)psi_pool_step_layer(e.pool, 1, 1);
    assert_true(trim_as_watcher(&e, 6 * LAYERS * e.block_bytes) > 0);
    assert_int_equal(psi_block_restore(e.pool, 2), 0);
    assert_int_equal(psi_block_write(e.pool, 3), 0);
    (void)psi_pool_step_layer(e.pool, 2, 1);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        assert_true(is_there(&e, layer, 2) && is_there(&e, layer, 3));
    }
    restore_all(&e);
    assert_whole(&e);
    close_engine(&e);
}

static void test_a_step_that_ends_leaves_no_part_behind(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    begin_step(&e);
    clean_all(&e);
    (void)psi_pool_step_layer(e.pool, 1, 1);
    uint64_t given = trim_as_watcher(&e, 5 * LAYERS * e.block_bytes);
    assert_int_equal(e.pool->returned_bytes, given / LAYERS * (LAYERS - 1));
    psi_pool_step_end(e.pool);
    assert_int_equal(e.pool->returned_bytes, given);
    assert_false(is_there(&e, 1, 1));
    assert_int_equal(trim_as_watcher(&e, LAYERS * e.block_bytes), 0); /* between two steps as ever */
    close_engine(&e);
}

static void test_with_all_planes_nothing_goes(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    begin_step(&e);
    clean_all(&e);
    (void)psi_pool_step_layer(e.pool, 0, 1);
    assert_int_equal(psi_cache_trim(e.cache, 0.5), 0);
    assert_int_equal(psi_pool_step_layer(e.pool, 0, LAYERS), 0);
    assert_int_equal(trim_as_watcher(&e, 5 * LAYERS * e.block_bytes), 0);
    assert_whole(&e);
    close_engine(&e);
}

static void test_without_a_store_the_watcher_takes_nothing_and_a_request_drops(void **state) {
    (void)state;
    engine e = make_engine("none", psi_os_page_bytes());
    begin_step(&e);
    (void)psi_pool_step_layer(e.pool, 0, 1);
    assert_int_equal(trim_as_watcher(&e, 5 * LAYERS * e.block_bytes), 0);
    assert_int_equal(psi_cache_trim(e.cache, 0.25), 0);
    assert_int_equal(psi_pool_step_layer(e.pool, 1, 1), 4);
    assert_int_equal(psi_block_get_state(e.pool, 2), PSI_BLOCK_DROPPED);
    close_engine(&e);
}

static void test_wrong_calls_are_refused(void **state) {
    (void)state;
    engine e = make_engine("file", psi_os_page_bytes());
    psi_pool_step_end(e.pool);
    assert_int_equal(psi_pool_step_layer(NULL, 0, 1), -EINVAL);
    assert_int_equal(psi_pool_step_layer(e.pool, 0, 1), -EINVAL); /* no step runs */
    begin_step(&e);
    assert_int_equal(psi_pool_step_layer(e.pool, LAYERS, 1), -EINVAL);
    assert_int_equal(psi_pool_step_layer(e.pool, 1, UINT32_MAX), -EINVAL);
    assert_int_equal(psi_pool_step_layer(e.pool, LAYERS, 0), 0);
    close_engine(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_request_is_answered_between_two_layers),
        cmocka_unit_test(test_what_the_step_writes_stays),
        cmocka_unit_test(test_what_was_written_before_the_step_and_is_whole_may_go_in_it),
        cmocka_unit_test(test_what_was_loaded_sleeps_until_its_own_step),
        cmocka_unit_test(test_the_watcher_waits_for_no_layer_and_takes_nothing_from_the_one_that_runs),
        cmocka_unit_test(test_a_block_that_comes_back_while_a_part_of_it_lingers_is_whole),
        cmocka_unit_test(test_a_step_that_ends_leaves_no_part_behind),
        cmocka_unit_test(test_with_all_planes_nothing_goes),
        cmocka_unit_test(test_without_a_store_the_watcher_takes_nothing_and_a_request_drops),
        cmocka_unit_test(test_wrong_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
