/* test_ahead.c - records that are read in the order of their slots: few requests to the disk, and each comes back as it
 * was written last, or not at all. A fake disk counts and fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fake_disk.h"
#include "os/os.h"
#include "pool/pool.h"
#include "psicache.h"
#include "resident.h"
#include "store/store.h"

/* More than are read at once (1 MiB), and not a whole number of times as many. */
enum { RECORD = 8192, MANY = 300, MOST_READS = 5 };

static psi_store *store;
static unsigned seeds[MANY]; /* of what was written last */
static unsigned char *record, *got;

static void fill(unsigned seed) {
    for (size_t i = 0; i < RECORD; i++) {
        record[i] = (unsigned char)(seed + i * 31 + i / 251);
    }
}

static void put(uint32_t slot, unsigned seed) {
    fill(seed);
    assert_int_equal(psi_store_put(store, slot, record), 0);
    seeds[slot] = seed;
}

static int setup(void **state) {
    (void)state;
    fake_disk_set(FAKE_DISK_SOUND, 100);
    atomic_store(&fake_disk.begun, 0);
    record = psi_os_reserve(RECORD);
    got = psi_os_reserve(RECORD);
    assert_int_equal(psi_store_open(&store, "file", "/var/tmp", UINT64_MAX, RECORD, MANY), 0);
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t slot = PSI_SLOT_NONE;
        assert_int_equal(psi_store_reserve(store, &slot), 0);
        put(slot, slot);
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    psi_store_close(store);
    psi_os_unreserve(record, RECORD);
    psi_os_unreserve(got, RECORD);
    return 0;
}

static int read_to(uint32_t slot, void *room) {
    const void *at = NULL;
    int error = psi_store_read(store, slot, room, &at);
    if (error == 0 && at != room) {
        memcpy(room, at, RECORD);
    }
    return error;
}

static void expect(uint32_t slot) {
    assert_int_equal(read_to(slot, got), 0);
    fill(seeds[slot]);
    assert_memory_equal(record, got, RECORD);
}

static void in_order_a_few_reads_bring_all(void **state) {
    (void)state;
    for (int round = 0; round < 2; round++) {
        unsigned long before = atomic_load(&fake_disk.reads);
        for (uint32_t slot = 0; slot < MANY; slot++) {
            expect(slot);
        }
        assert_true(atomic_load(&fake_disk.reads) - before <= MOST_READS);
        psi_store_rest(store);
    }
}

/* Between those that come back lie slots of blocks that never went: what was read is used all the same. */
static void slots_in_between_are_left_out(void **state) {
    (void)state;
    unsigned long before = atomic_load(&fake_disk.reads);
    for (uint32_t slot = 0; slot < MANY; slot++) {
        if (slot % 3 != 2) {
            expect(slot);
        }
    }
    assert_true(atomic_load(&fake_disk.reads) - before <= MOST_READS);
}

/* The disk reads on while the caller uses what came: the second window is begun with the first record of the first, and
 * none is read before it is wanted. */
static void the_next_window_is_on_its_way(void **state) {
    (void)state;
    enum { WINDOW = (1 << 20) / RECORD };
    expect(0);
    assert_int_equal(atomic_load(&fake_disk.begun), 0);
    expect(1);
    assert_int_equal(atomic_load(&fake_disk.begun), 2);
    for (uint32_t slot = 2; slot <= WINDOW; slot++) {
        expect(slot);
    }
    assert_int_equal(atomic_load(&fake_disk.begun), 2);
    expect(WINDOW + 1); /* the first of the second window */
    assert_int_equal(atomic_load(&fake_disk.begun), 3);
}

/* Somebody else's record in between, or a rest: what is on its way is not taken for another. */
static void a_leap_while_a_window_is_on_its_way(void **state) {
    (void)state;
    expect(0);
    expect(1);
    expect(200);
    expect(201);
    expect(202);
    expect(7);
    expect(8);
    psi_store_rest(store);
    expect(9);
    expect(10);
    expect(11);
}

/* Where the system has no reads in the background, what was thought to be next is not read once it is known not to be.
 */
static void what_is_dropped_is_not_read(void **state) {
    (void)state;
    expect(0);
    expect(1);
    unsigned long before = atomic_load(&fake_disk.reads);
    expect(MANY - 9);
    expect(MANY - 8);
    assert_int_equal(atomic_load(&fake_disk.reads) - before, 2);
}

/* A disk that takes its time holds up nobody who does not want its bytes, and has its memory until it is done. */
static void what_lingers_is_left_alone(void **state) {
    (void)state;
    expect(0);
    expect(1);
    atomic_store(&fake_disk.lingers, true);
    psi_store_rest(store);
    unsigned long begun = atomic_load(&fake_disk.begun);
    expect(2);
    expect(3);
    expect(4);
    assert_int_equal(atomic_load(&fake_disk.begun), begun);
    atomic_store(&fake_disk.lingers, false);
    psi_store_rest(store);
    expect(5);
    expect(6);
    expect(7);
    assert_int_equal(atomic_load(&fake_disk.begun), begun + 2);
    atomic_store(&fake_disk.lingers, true); /* and the store is closed */
}

/* Slots that are set aside and not written yet lie behind the file's end: the records before them are still read few
 * times, and no window is in vain. */
static void slots_without_a_record_are_not_read(void **state) {
    (void)state;
    psi_store *longer = NULL;
    uint32_t slot = PSI_SLOT_NONE;
    assert_int_equal(psi_store_open(&longer, "file", "/var/tmp", UINT64_MAX, RECORD, 2 * MANY), 0);
    for (uint32_t i = 0; i < 2 * MANY; i++) {
        assert_int_equal(psi_store_reserve(longer, &slot), 0);
    }
    for (uint32_t i = 0; i < MANY; i++) {
        fill(i);
        assert_int_equal(psi_store_put(longer, i, record), 0);
    }
    unsigned long before = atomic_load(&fake_disk.reads);
    for (uint32_t i = 0; i < MANY; i++) {
        const void *at = NULL;
        assert_int_equal(psi_store_read(longer, i, got, &at), 0);
        fill(i);
        assert_memory_equal(record, at, RECORD);
    }
    assert_true(atomic_load(&fake_disk.reads) - before <= MOST_READS);
    psi_store_close(longer);
}

/* Nobody reads what is not asked for. */
static void out_of_order_each_is_read_alone(void **state) {
    (void)state;
    unsigned long before = atomic_load(&fake_disk.reads);
    for (uint32_t slot = MANY; slot-- > 0;) {
        expect(slot);
    }
    assert_int_equal(atomic_load(&fake_disk.reads) - before, MANY);
}

static void what_was_written_since_comes_back_new(void **state) {
    (void)state;
    expect(0);
    expect(1); /* and behind it many more were read */
    for (uint32_t slot = 2; slot < MANY; slot += 3) {
        put(slot, slot + 1000);
    }
    for (uint32_t slot = 2; slot < MANY; slot++) {
        expect(slot);
    }
}

static void a_slot_that_was_freed_and_used_again_too(void **state) {
    (void)state;
    expect(0);
    expect(1);
    uint32_t slot = PSI_SLOT_NONE;
    psi_store_free(store, 2);
    assert_int_equal(psi_store_reserve(store, &slot), 0);
    assert_int_equal(slot, 2);
    put(2, 77);
    expect(2);
    expect(3);
}

/* Each record is as it was written or is refused: whichever request failed, the next is tried anew. */
static void faults_spoil_no_record(void **state) {
    (void)state;
    static const fake_disk_fault faults[] = {FAKE_DISK_READ_ERROR, FAKE_DISK_SHORT, FAKE_DISK_ENDS_EARLY,
                                             FAKE_DISK_READ_FLIPS, FAKE_DISK_NOT_DIRECT};
    for (size_t i = 0; i < sizeof(faults) / sizeof(*faults); i++) {
        fake_disk_set(faults[i], 50);
        for (uint32_t slot = 0; slot < MANY; slot++) {
            if (read_to(slot, got) == 0) {
                fill(seeds[slot]);
                assert_memory_equal(record, got, RECORD);
            }
        }
        fake_disk_set(FAKE_DISK_SOUND, 100);
        for (uint32_t slot = 0; slot < MANY; slot++) {
            expect(slot);
        }
    }
}

/* A pool's blocks go in the order of their worth, and so they lie in the store; they come back in the store's order. */
static void a_restore_by_hand_reads_few_times(void **state) {
    (void)state;
    enum { BLOCKS = 256 };
    (void)setenv("PSI_CACHE_CONTROLLER", "off", 1);
    size_t block_bytes = psi_os_page_bytes();
    psi_cache *cache = psi_cache_open(NULL);
    psi_pool *pool = psi_pool_create(
        cache, &(psi_pool_options){.size = sizeof(psi_pool_options), .block_bytes = block_bytes, .blocks = BLOCKS});
    assert_non_null(pool);
    unsigned char *address[BLOCKS];
    float scores[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_id id = 0;
        address[i] = psi_block_alloc(pool, &id);
        assert_non_null(address[i]);
        assert_int_equal(id, i);
        (void)psi_block_write(pool, i);
        memset(address[i], (int)(i + 1) & 0xff, block_bytes);
        scores[i] = (float)(i * 89 % BLOCKS);
    }
    (void)psi_pool_score(pool, PSI_SCORE_ATTENTION, scores);
    (void)psi_pool_score(pool, PSI_SCORE_KEYS, scores);
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    int out = psi_pool_step(pool);
    assert_true(out >= BLOCKS - 8); /* the floor stays */
    unsigned long before = atomic_load(&fake_disk.reads);
    assert_int_equal(psi_cache_restore(cache), 0);
    assert_int_equal(psi_pool_step(pool), out);
    assert_true(atomic_load(&fake_disk.reads) - before <= MOST_READS);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(address[i][block_bytes - 1], (unsigned char)(i + 1));
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* A state that is saved reads many blocks, and then an engine may rest for long: no step gives the windows back. */
static void a_trim_between_steps_gives_the_windows_back(void **state) {
    (void)state;
    enum { BLOCKS = 64, BLOCK = 1 << 16 };
    (void)setenv("PSI_CACHE_CONTROLLER", "off", 1);
    psi_cache *cache = psi_cache_open(NULL);
    psi_pool *pool = psi_pool_create(
        cache, &(psi_pool_options){.size = sizeof(psi_pool_options), .block_bytes = BLOCK, .blocks = BLOCKS});
    assert_non_null(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        psi_block_id id = 0;
        memset(psi_block_alloc(pool, &id), (int)i + 1, BLOCK);
    }
    (void)psi_pool_step(pool);
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    assert_true(psi_pool_step(pool) > BLOCKS / 2);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(psi_block_restore(pool, i), 0);
    }
    size_t before = resident_bytes();
    pthread_mutex_lock(&pool->lock);
    assert_int_equal(psi_trim(pool, 0, PSI_TRIM_ASLEEP, 0), 0);
    pthread_mutex_unlock(&pool->lock);
    assert_true(resident_bytes() + (1 << 20) <= before);
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(in_order_a_few_reads_bring_all, setup, teardown),
        cmocka_unit_test_setup_teardown(slots_in_between_are_left_out, setup, teardown),
        cmocka_unit_test_setup_teardown(the_next_window_is_on_its_way, setup, teardown),
        cmocka_unit_test_setup_teardown(a_leap_while_a_window_is_on_its_way, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_dropped_is_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(what_lingers_is_left_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(slots_without_a_record_are_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(out_of_order_each_is_read_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_written_since_comes_back_new, setup, teardown),
        cmocka_unit_test_setup_teardown(a_slot_that_was_freed_and_used_again_too, setup, teardown),
        cmocka_unit_test_setup_teardown(faults_spoil_no_record, setup, teardown),
        cmocka_unit_test(a_restore_by_hand_reads_few_times),
        cmocka_unit_test(a_trim_between_steps_gives_the_windows_back),
    };
    return cmocka_run_group_tests_name("ahead", tests, NULL, NULL);
}
