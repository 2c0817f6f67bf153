/* test_remote.c - a pool whose memory lies elsewhere: what its owner is asked for, what is counted of its reports, and
 * that its wake-up rings. The controller runs against a made-up root where it matters. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "pool/pool.h"
#include "psicache.h"

enum { BLOCKS = 64, BLOCK_BYTES = 1 << 20 };

static psi_cache *cache;
static psi_pool *pool;
static int wake_fd;

static void make(int controller, const char *root) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = controller;
    options.root = root;
    cache = psi_cache_open(&options);
    assert_non_null(cache);
    wake_fd = eventfd(0, EFD_NONBLOCK);
    assert_true(wake_fd > 0);
    psi_pool_options own = PSI_OPTIONS_INIT(psi_pool_options);
    own.name = "elsewhere";
    own.block_bytes = BLOCK_BYTES;
    own.blocks = BLOCKS;
    own.wake_fd = wake_fd;
    pool = psi_pool_remote(cache, &own);
    assert_non_null(pool);
}

static void end(void) {
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    assert_int_equal(close(wake_fd), 0);
}

static int rings(int timeout_ms) {
    uint64_t rung = 0;
    struct pollfd polled = {.fd = wake_fd, .events = POLLIN};
    return poll(&polled, 1, timeout_ms) == 1 && read(wake_fd, &rung, sizeof(rung)) == (ssize_t)sizeof(rung);
}

static psi_pool_wish tell(psi_pool_counts counts) {
    psi_pool_wish wish = PSI_OPTIONS_INIT(psi_pool_wish);
    counts.size = sizeof(counts);
    assert_int_equal(psi_pool_report(pool, &counts, &wish), 0);
    return wish;
}

static psi_stats stats_now(void) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_stats_read(cache, &stats), 0);
    return stats;
}

static void what_is_reported_is_what_the_statistics_say(void **state) {
    (void)state;
    make(-1, NULL);
    psi_pool_wish wish = tell((psi_pool_counts){
        .resident = 40, .evictable = 10, .withheld = 4, .refusals = 2, .stored = 7, .store_errors = 3});
    assert_true(wish.trim_bytes == 0 && wish.restore_bytes == 0 && wish.pressed == 0);
    psi_stats stats = stats_now();
    assert_int_equal(stats.capacity_bytes, (uint64_t)BLOCKS * BLOCK_BYTES);
    assert_int_equal(stats.resident_bytes, (uint64_t)40 * BLOCK_BYTES);
    assert_int_equal(stats.withheld_bytes, (uint64_t)4 * BLOCK_BYTES);
    assert_int_equal(stats.refusals, 2);
    assert_int_equal(stats.stored_bytes, (uint64_t)7 * BLOCK_BYTES);
    assert_int_equal(stats.store_errors, 3);
    (void)tell((psi_pool_counts){.resident = 36, .given_bytes = 4 * BLOCK_BYTES, .withheld = 8});
    (void)tell((psi_pool_counts){.resident = 39, .taken_bytes = 3 * BLOCK_BYTES, .withheld = 5});
    stats = stats_now();
    assert_int_equal(stats.trimmed_bytes, 4 * BLOCK_BYTES);
    assert_int_equal(stats.restored_bytes, 3 * BLOCK_BYTES);
    assert_true(stats.trims == 1 && stats.restores == 1);
    end();
}

static void a_trim_by_hand_rings_and_stops_at_the_floor(void **state) {
    (void)state;
    make(-1, NULL);
    (void)tell((psi_pool_counts){.resident = 40, .evictable = 40});
    assert_false(rings(0));
    assert_int_equal(psi_cache_trim(cache, 0.5), 0);
    assert_true(rings(1000));
    uint64_t half = (uint64_t)40 * BLOCK_BYTES / 1000 * 500;
    assert_int_equal(tell((psi_pool_counts){.resident = 40, .evictable = 40}).trim_bytes, half);
    assert_int_equal(tell((psi_pool_counts){.resident = 40, .evictable = 40}).trim_bytes, 0); /* once */
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    uint64_t floor_bytes = (uint64_t)BLOCKS * BLOCK_BYTES / 32;
    assert_int_equal(tell((psi_pool_counts){.resident = 40, .evictable = 40}).trim_bytes,
                     40 * BLOCK_BYTES - floor_bytes);
    end();
}

static void a_restore_by_hand_asks_for_all(void **state) {
    (void)state;
    make(-1, NULL);
    (void)tell((psi_pool_counts){.resident = 10, .withheld = 50});
    assert_int_equal(psi_cache_restore(cache), 0);
    assert_true(rings(1000));
    assert_true(tell((psi_pool_counts){.resident = 10, .withheld = 50}).restore_bytes == UINT64_MAX);
    assert_true(tell((psi_pool_counts){.resident = 10, .withheld = 50}).restore_bytes == 0);
    end();
}

static void what_is_on_its_way_is_pending_until_the_owner_says_otherwise(void **state) {
    (void)state;
    make(-1, NULL);
    (void)tell((psi_pool_counts){.resident = 40, .evictable = 40});
    assert_int_equal(psi_pool_pending_bytes(pool), 0);
    assert_int_equal(psi_cache_trim(cache, 0.25), 0);
    uint64_t asked = tell((psi_pool_counts){.resident = 40, .evictable = 40}).trim_bytes;
    assert_true(asked > 0);
    assert_int_equal(psi_pool_pending_bytes(pool), asked);
    (void)tell((psi_pool_counts){.resident = 40, .evictable = 30, .going_bytes = 10 * BLOCK_BYTES});
    assert_int_equal(psi_pool_pending_bytes(pool), 10 * BLOCK_BYTES);
    (void)tell((psi_pool_counts){.resident = 30, .evictable = 30, .given_bytes = 10 * BLOCK_BYTES, .withheld = 10});
    assert_int_equal(psi_pool_pending_bytes(pool), 0);
    end();
}

static void bad_calls_are_refused_and_change_nothing(void **state) {
    (void)state;
    make(-1, NULL);
    psi_pool_wish wish = PSI_OPTIONS_INIT(psi_pool_wish);
    psi_pool_counts counts = PSI_OPTIONS_INIT(psi_pool_counts);
    counts.resident = 7;
    psi_pool_counts sizeless = {.resident = 7};
    psi_pool_wish nameless = {0};
    assert_int_equal(psi_pool_report(NULL, &counts, &wish), -EINVAL);
    assert_int_equal(psi_pool_report(pool, NULL, &wish), -EINVAL);
    assert_int_equal(psi_pool_report(pool, &sizeless, &wish), -EINVAL);
    assert_int_equal(psi_pool_report(pool, &counts, &nameless), -EINVAL);
    assert_int_equal(stats_now().resident_bytes, 0);
    psi_pool_options own = PSI_OPTIONS_INIT(psi_pool_options);
    own.blocks = 4;
    assert_null(psi_pool_remote(cache, &own)); /* no block_bytes */
    own.block_bytes = 4096;
    psi_pool *here = psi_pool_create(cache, &own);
    assert_non_null(here);
    assert_int_equal(psi_pool_report(here, &counts, &wish), -EINVAL);
    psi_pool_destroy(here);
    end();
}

static void an_older_caller_gets_the_fields_that_it_knows(void **state) {
    (void)state;
    make(-1, NULL);
    (void)tell((psi_pool_counts){.resident = 40, .evictable = 40});
    assert_int_equal(psi_cache_trim(cache, 0.5), 0);
    psi_pool_counts counts = {.size = offsetof(psi_pool_counts, evictable), .resident = 40, .evictable = 7};
    psi_pool_wish wish = {.size = offsetof(psi_pool_wish, restore_bytes), .restore_bytes = 77, .pressed = 77};
    assert_int_equal(psi_pool_report(pool, &counts, &wish), 0);
    assert_true(wish.trim_bytes > 0 && wish.restore_bytes == 77 && wish.pressed == 77);
    assert_int_equal(pool->counts.evictable, 0); /* not read */
    end();
}

static void calls_on_blocks_find_none(void **state) {
    (void)state;
    make(-1, NULL);
    (void)tell((psi_pool_counts){.resident = 40, .evictable = 40});
    assert_int_equal(psi_pool_step(pool), -EINVAL);
    assert_null(psi_block_alloc(pool, NULL));
    assert_null(psi_block_address(pool, 0));
    assert_int_equal(psi_block_write(pool, 0), -EINVAL);
    assert_int_equal(psi_block_restore(pool, 0), -EINVAL);
    psi_block_free(pool, 0);
    psi_pool_clear(pool);
    assert_int_equal(stats_now().resident_bytes, (uint64_t)40 * BLOCK_BYTES);
    end();
}

static char root[64];

static void put_available(uint64_t mib) {
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    (void)fprintf(file, "MemTotal: 1024000 kB\nMemAvailable: %llu kB\n", (unsigned long long)mib * 1024);
    assert_int_equal(fclose(file), 0);
}

static void make_root(void) {
    char path[128];
    (void)snprintf(root, sizeof(root), "/tmp/psi-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    (void)snprintf(path, sizeof(path), "%s/proc", root);
    assert_int_equal(mkdir(path, 0700), 0);
    put_available(900);
}

static void remove_root(void) {
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    (void)unlink(path);
    (void)snprintf(path, sizeof(path), "%s/proc", root);
    (void)rmdir(path);
    assert_int_equal(rmdir(root), 0);
}

/* Memory is nearly at its end in the made-up tree: the watcher asks, and the wish is what it wants of the evictable. */
static void the_controller_asks_and_rings(void **state) {
    (void)state;
    make_root();
    make(1, root);
    (void)tell((psi_pool_counts){.resident = 40, .evictable = 40});
    put_available(20);
    psi_pool_wish wish = {0};
    for (int i = 0; i < 100 && wish.trim_bytes == 0; i++) {
        assert_true(rings(5000));
        wish = tell((psi_pool_counts){.resident = 40, .evictable = 40});
    }
    assert_true(wish.trim_bytes > 0 && wish.trim_bytes <= 40 * (uint64_t)BLOCK_BYTES);
    assert_true(wish.pressed);
    (void)tell((psi_pool_counts){.resident = 2, .withheld = 38, .given_bytes = 38 * BLOCK_BYTES});
    put_available(900);
    for (int i = 0; i < 100 && wish.restore_bytes == 0; i++) {
        assert_true(rings(5000));
        wish = tell((psi_pool_counts){.resident = 2, .withheld = 38});
    }
    assert_true(wish.restore_bytes > 0 && wish.restore_bytes <= 38 * (uint64_t)BLOCK_BYTES);
    assert_false(wish.pressed);
    end();
    remove_root();
}

/* Headroom of a third: no need to give, but time to write what could go. Said once by the bell, and as long as it lasts
 * by the wish. */
static void an_owner_is_told_when_to_write_ahead(void **state) {
    (void)state;
    make_root();
    make(1, root);
    assert_false(tell((psi_pool_counts){.resident = 40, .evictable = 40}).write_ahead);
    put_available(300);
    psi_pool_wish wish = {0};
    for (int i = 0; i < 100 && !wish.write_ahead; i++) {
        assert_true(rings(5000));
        wish = tell((psi_pool_counts){.resident = 40, .evictable = 40});
    }
    assert_true(wish.write_ahead && !wish.pressed && wish.trim_bytes == 0);
    assert_true(tell((psi_pool_counts){.resident = 40, .evictable = 40}).write_ahead);
    put_available(900);
    for (int i = 0; i < 500 && wish.write_ahead; i++) {
        (void)usleep(10000);
        wish = tell((psi_pool_counts){.resident = 40, .evictable = 40});
    }
    assert_false(wish.write_ahead);
    end();
    remove_root();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_reported_is_what_the_statistics_say),
        cmocka_unit_test(a_trim_by_hand_rings_and_stops_at_the_floor),
        cmocka_unit_test(a_restore_by_hand_asks_for_all),
        cmocka_unit_test(what_is_on_its_way_is_pending_until_the_owner_says_otherwise),
        cmocka_unit_test(bad_calls_are_refused_and_change_nothing),
        cmocka_unit_test(an_older_caller_gets_the_fields_that_it_knows),
        cmocka_unit_test(calls_on_blocks_find_none),
        cmocka_unit_test(the_controller_asks_and_rings),
        cmocka_unit_test(an_owner_is_told_when_to_write_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
