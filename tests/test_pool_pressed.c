/* test_pool_pressed.c - a pool while memory is short and afterwards: trims, refusals, the floor, regrowing, an idle
 * engine, other threads. The machine's signals are those of a fake /proc. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/pool.h"
#include "psicache.h"
#include "small_pool.h"

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

static void end(psi_cache *cache, psi_pool *pool) {
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    remove_root();
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
    end(cache, pool);
}

static uint64_t stored_after_a_step(psi_cache *cache, psi_pool *pool) {
    use_all(pool, 64);
    (void)psi_pool_step(pool);
    return stats_of(cache).stored_bytes;
}

static int steps_until_all_went(psi_cache *cache, psi_pool *pool) {
    return stored_after_a_step(cache, pool) >= 60 * 4 * page;
}

static int steps_until_all_came(psi_cache *cache, psi_pool *pool) { return stored_after_a_step(cache, pool) == 0; }

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
    end(cache, pool);
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
    end(cache, pool);
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
    end(cache, pool);
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
    end(cache, pool);
}

/* ---- A forked child, and threads ---------------------------------------------------------------- */

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
    end(cache, pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(under_pressure_a_block_is_refused_and_later_given),
        cmocka_unit_test(at_its_default_floor_a_small_pool_takes_new_blocks),
        cmocka_unit_test(below_its_floor_a_pool_takes_new_blocks),
        cmocka_unit_test(pressure_trims_and_its_end_regrows),
        cmocka_unit_test(an_idle_engine_s_blocks_go_without_it),
        cmocka_unit_test(other_threads_may_ask_at_any_time),
    };
    return cmocka_run_group_tests_name("pool under pressure", tests, setup, NULL);
}
