/* test_pool_owner.c - what the owner of a pool does with stored blocks outside of steps: changes their content where it
 * lies, and copies one to another in the store. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/cache.h"
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 16, OUT = 5, OTHER = 9 };

static psi_cache *cache;
static psi_pool *pool;
static size_t page;

static unsigned char *bytes_of(uint32_t block) { return psi_block_address(pool, block); }

static void make(void) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.store = "file";
    cache = psi_cache_open(&options);
    assert_non_null(cache);
    page = psi_os_page_bytes();
    psi_pool_options its = PSI_OPTIONS_INIT(psi_pool_options);
    its.block_bytes = page;
    its.blocks = BLOCKS;
    pool = psi_pool_create(cache, &its);
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        memset(psi_block_alloc(pool, NULL), (int)i + 1, page);
    }
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
}

static void end(void) {
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* Every block but the kept ones goes, hidden: the step named it. */
static void store_all(void) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_used(pool, i);
    }
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    (void)psi_pool_step(pool);
    psi_pool_step_end(pool);
    assert_int_equal(psi_block_get_state(pool, OUT), PSI_BLOCK_STORED);
}

/* With the writer held off, which tidies the store: a slot that it has in hand would come free afterwards. */
static void fill_the_store(void) {
    uint32_t slot = 0;
    pthread_mutex_lock(&cache->writing);
    pthread_mutex_lock(&pool->lock);
    while (psi_store_reserve(pool->store, &slot) == 0) {
    }
    pthread_mutex_unlock(&pool->lock);
    pthread_mutex_unlock(&cache->writing);
}

/* No resident block has a copy in the store that it could be dropped for. */
static void forget_clean_copies(void) {
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        pool->block[i].slot = pool->block[i].state == PSI_BLOCK_RESIDENT ? PSI_SLOT_NONE : pool->block[i].slot;
    }
    pthread_mutex_unlock(&pool->lock);
}

static int all_are(uint32_t block, unsigned char value) {
    for (size_t i = 0; i < page; i++) {
        if (bytes_of(block)[i] != value) {
            return 0;
        }
    }
    return 1;
}

static void a_stored_block_is_changed_and_stored_again(void **state) {
    (void)state;
    make();
    store_all();
    uint32_t stored = pool->stored;
    assert_int_equal(psi_block_borrow(pool, OUT), 0);
    assert_int_equal(psi_block_get_state(pool, OUT), PSI_BLOCK_RESIDENT);
    assert_true(all_are(OUT, OUT + 1));
    memset(bytes_of(OUT), 77, page);
    psi_block_put_away(pool, OUT);
    assert_int_equal(pool->stored, stored);
    assert_true(pool->block[OUT].hidden); /* as before */
    assert_true(all_are(OUT, 0));         /* its page went */
    assert_int_equal(psi_block_restore(pool, OUT), 0);
    assert_true(all_are(OUT, 77));
    end();
}

static void a_lent_block_is_taken_and_copied_by_nobody(void **state) {
    (void)state;
    make();
    store_all();
    assert_int_equal(psi_block_borrow(pool, OUT), 0);
    for (psi_trim_scope scope = PSI_TRIM_ASLEEP; scope <= PSI_TRIM_ALL; scope++) {
        pthread_mutex_lock(&pool->lock);
        (void)psi_trim(pool, UINT64_MAX, scope, 0);
        pthread_mutex_unlock(&pool->lock);
        while (psi_clean_one(pool, scope) > 0) {
        }
        assert_int_equal(psi_block_get_state(pool, OUT), PSI_BLOCK_RESIDENT);
        assert_int_equal(pool->block[OUT].slot, PSI_SLOT_NONE);
    }
    end();
}

/* It would lie in the same slot, so that nothing else tells the two apart. */
static void what_was_read_ahead_is_void_when_the_block_was_changed(void **state) {
    (void)state;
    make();
    store_all();
    uint32_t slot = pool->block[OUT].slot;
    pthread_mutex_lock(&cache->writing); /* or the writer may read it first */
    pthread_mutex_lock(&pool->lock);
    assert_true(psi_fetch_ask(pool, OUT));
    pthread_mutex_unlock(&pool->lock);
    assert_true(psi_fetch_one(pool));
    pthread_mutex_unlock(&cache->writing);
    assert_non_null(psi_fetch_record(pool, OUT));
    assert_int_equal(psi_block_borrow(pool, OUT), 0);
    memset(bytes_of(OUT), 77, page);
    psi_block_put_away(pool, OUT);
    assert_int_equal(pool->block[OUT].slot, slot);
    assert_null(psi_fetch_record(pool, OUT));
    assert_int_equal(psi_block_restore(pool, OUT), 0);
    assert_true(all_are(OUT, 77));
    end();
}

static void a_stored_block_is_copied_in_the_store(void **state) {
    (void)state;
    make();
    store_all();
    uint32_t resident = pool->resident;
    assert_int_equal(psi_block_copy_stored(pool, OUT, OTHER), 0);
    assert_int_equal(psi_block_get_state(pool, OTHER), PSI_BLOCK_STORED);
    assert_int_equal(pool->resident, resident);
    assert_int_equal(psi_block_restore(pool, OUT), 0);
    memset(bytes_of(OUT), 77, page);
    assert_int_equal(psi_block_write(pool, OUT), 0);
    assert_int_equal(psi_block_restore(pool, OTHER), 0);
    assert_true(all_are(OTHER, OUT + 1));
    assert_true(all_are(OUT, 77));
    end();
}

static void a_copy_that_the_store_cannot_take_is_an_empty_block(void **state) {
    (void)state;
    make();
    store_all();
    assert_int_equal(psi_block_copy_stored(pool, 0, OTHER), -EINVAL); /* block 0 is in memory */
    assert_int_equal(psi_block_get_state(pool, OTHER), PSI_BLOCK_EMPTY);
    fill_the_store();
    assert_int_equal(psi_block_copy_stored(pool, OUT, OTHER), -ENOSPC);
    assert_int_equal(psi_block_get_state(pool, OTHER), PSI_BLOCK_EMPTY);
    assert_int_equal(psi_block_restore(pool, OUT), 0);
    assert_true(all_are(OUT, OUT + 1));
    end();
}

static void a_lent_block_stays_where_the_store_cannot_take_it(void **state) {
    (void)state;
    make();
    store_all();
    assert_int_equal(psi_block_borrow(pool, OUT), 0);
    fill_the_store();
    forget_clean_copies();
    memset(bytes_of(OUT), 77, page);
    psi_block_put_away(pool, OUT);
    assert_int_equal(psi_block_get_state(pool, OUT), PSI_BLOCK_RESIDENT);
    assert_true(all_are(OUT, 77));
    end();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stored_block_is_changed_and_stored_again),
        cmocka_unit_test(a_lent_block_is_taken_and_copied_by_nobody),
        cmocka_unit_test(what_was_read_ahead_is_void_when_the_block_was_changed),
        cmocka_unit_test(a_stored_block_is_copied_in_the_store),
        cmocka_unit_test(a_copy_that_the_store_cannot_take_is_an_empty_block),
        cmocka_unit_test(a_lent_block_stays_where_the_store_cannot_take_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
