/* test_records.c - a store by itself: what was written comes back bit by bit or not at all, on sound, full, lying and
 * failing disks, within its bounds. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake_disk.h"
#include "os/os.h"
#include "psicache.h"
#include "resident.h"

enum { FIRST = 5000, SECOND = 3001, RECORD = FIRST + SECOND, ROOM = 8192 };

typedef struct pieces {
    unsigned char bytes[RECORD + 64]; /* two pieces, the second 64 bytes behind the first, as torch's buffers lie */
    psi_part at[2];
} pieces;

static psi_part *lay_out(pieces *p, unsigned seed) {
    for (size_t i = 0; i < sizeof(p->bytes); i++) {
        p->bytes[i] = (unsigned char)(seed * 17 + i * 31 + i / 251);
    }
    p->at[0] = (psi_part){p->bytes, FIRST};
    p->at[1] = (psi_part){p->bytes + FIRST + 64, SECOND};
    return p->at;
}

static psi_records *open_with(uint64_t max_bytes, uint64_t hour_max_bytes, uint32_t records) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.store_max_bytes = max_bytes;
    options.store_hour_max_bytes = hour_max_bytes;
    return psi_records_open(&options, RECORD, records);
}

static void expect_record(psi_records *records, uint32_t number, unsigned seed) {
    static pieces wanted, got;
    (void)lay_out(&wanted, seed);
    assert_int_equal(psi_records_get(records, number, lay_out(&got, 255), 2), 0);
    assert_memory_equal(got.at[0].address, wanted.at[0].address, FIRST);
    assert_memory_equal(got.at[1].address, wanted.at[1].address, SECOND);
}

static void expect_untouched(psi_records *records, uint32_t number, int error) {
    static pieces before, got;
    (void)lay_out(&before, 77);
    assert_int_equal(psi_records_get(records, number, lay_out(&got, 77), 2), error);
    assert_memory_equal(got.bytes, before.bytes, sizeof(got.bytes));
}

static void records_come_back_bit_by_bit(void **state) {
    (void)state;
    static pieces p;
    psi_records *records = open_with(0, 0, 6);
    assert_non_null(records);
    assert_int_equal(psi_records_count(records), 6);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(psi_records_put(records, i, lay_out(&p, i), 2), 0);
    }
    assert_int_equal(psi_records_put(records, 2, lay_out(&p, 90), 2), 0); /* anew */
    for (unsigned i = 6; i-- > 0;) {
        expect_record(records, i, i == 2 ? 90 : i);
    }
    psi_records_close(records);
}

/* Who writes is short of memory: what reading in the order of the numbers took is there for it. */
static void a_put_gives_back_what_reading_ahead_took(void **state) {
    (void)state;
    enum { LARGE = 4 << 20, RECORDS = 4 };
    psi_part part = {malloc(LARGE), LARGE};
    assert_non_null(part.address);
    psi_records *records = psi_records_open(NULL, LARGE, RECORDS);
    assert_non_null(records);
    for (uint32_t i = 0; i < RECORDS; i++) {
        memset(part.address, (int)i + 1, LARGE);
        assert_int_equal(psi_records_put(records, i, &part, 1), 0);
    }
    for (uint32_t i = 0; i < RECORDS; i++) {
        assert_int_equal(psi_records_get(records, i, &part, 1), 0);
        assert_int_equal(*(unsigned char *)part.address, i + 1);
    }
    size_t before = resident_bytes();
    assert_int_equal(psi_records_put(records, 0, &part, 1), 0);
    assert_true(resident_bytes() + LARGE <= before);
    psi_records_close(records);
    free(part.address);
}

static void what_was_never_written_or_is_forgotten_is_not_there(void **state) {
    (void)state;
    static pieces p;
    psi_records *records = open_with(0, 0, 3);
    expect_untouched(records, 1, -ENOENT);
    assert_int_equal(psi_records_put(records, 1, lay_out(&p, 1), 2), 0);
    unsigned long punches = atomic_load(&fake_disk.punches);
    psi_records_forget(records, 1);
    assert_true(atomic_load(&fake_disk.punches) > punches);
    expect_untouched(records, 1, -ENOENT);
    psi_records_forget(records, 1);
    psi_records_forget(records, 99);
    psi_records_forget(NULL, 0);
    psi_records_close(records);
    psi_records_close(NULL);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    static pieces p;
    psi_records *records = open_with(0, 0, 3);
    psi_part *at = lay_out(&p, 1);
    assert_int_equal(psi_records_put(records, 3, at, 2), -EINVAL);
    assert_int_equal(psi_records_put(records, 0, at, 1), -EINVAL);
    assert_int_equal(psi_records_put(records, 0, NULL, 0), -EINVAL);
    assert_int_equal(psi_records_put(NULL, 0, at, 2), -EINVAL);
    at[1].bytes++;
    assert_int_equal(psi_records_put(records, 0, at, 2), -EINVAL);
    at[1].bytes = SIZE_MAX - FIRST + 1; /* together 0 */
    assert_int_equal(psi_records_put(records, 0, at, 2), -EINVAL);
    at[1] = (psi_part){NULL, SECOND};
    assert_int_equal(psi_records_get(records, 0, at, 2), -EINVAL);
    psi_records_close(records);
}

static void no_store_can_be_asked_for(void **state) {
    (void)state;
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.store = "none";
    assert_null(psi_records_open(&options, RECORD, 4));
    assert_int_equal(errno, ENOTSUP);
    options.store = "file";
    options.store_dir = "/nonexistent";
    assert_null(psi_records_open(&options, RECORD, 4));
    assert_int_equal(errno, ENOENT);
    assert_null(psi_records_open(NULL, 0, 4));
    assert_int_equal(errno, EINVAL);
    assert_null(psi_records_open(NULL, RECORD, 0));
    assert_int_equal(errno, EINVAL);
    assert_null(psi_records_open(NULL, SIZE_MAX, 4));
    assert_int_equal(errno, EINVAL);
}

static void its_size_is_bounded(void **state) {
    (void)state;
    psi_records *records = open_with(3 * ROOM + 1, 0, 100);
    assert_int_equal(psi_records_count(records), 3);
    psi_records_close(records);
    assert_null(open_with(ROOM - 1, 0, 100));
    assert_int_equal(errno, ENOSPC);
}

static void an_hour_has_its_bound(void **state) {
    (void)state;
    static pieces p;
    psi_records *records = open_with(0, 2 * ROOM, 4);
    assert_int_equal(psi_records_put(records, 0, lay_out(&p, 0), 2), 0);
    assert_int_equal(psi_records_put(records, 1, lay_out(&p, 1), 2), 0);
    assert_int_equal(psi_records_put(records, 1, lay_out(&p, 2), 2), -EDQUOT);
    expect_untouched(records, 1, -ENOENT); /* it is not the old one, either */
    expect_record(records, 0, 0);
    psi_records_close(records);
}

static void no_fault_of_the_disk_gives_other_bytes(void **state) {
    (void)state;
    static pieces p;
    for (int fault = FAKE_DISK_FULL; fault < FAKE_DISK_FAULTS; fault++) {
        psi_records *records = open_with(0, 0, 4);
        assert_non_null(records);
        fake_disk_set((fake_disk_fault)fault, 60);
        for (unsigned i = 0; i < 40; i++) {
            static pieces got, wanted;
            int written = psi_records_put(records, i % 4, lay_out(&p, i), 2);
            int error = psi_records_get(records, i % 4, lay_out(&got, 200), 2);
            (void)lay_out(&wanted, error == 0 ? i : 200);
            assert_true(written == 0 || error == -ENOENT);
            assert_memory_equal(got.at[0].address, wanted.at[0].address, FIRST);
            assert_memory_equal(got.at[1].address, wanted.at[1].address, SECOND);
        }
        fake_disk_set(FAKE_DISK_SOUND, 100);
        assert_int_equal(psi_records_put(records, 0, lay_out(&p, 7), 2), 0);
        expect_record(records, 0, 7); /* and it goes on once the disk does */
        psi_records_close(records);
    }
}

static void *put_and_get(void *argument) {
    static _Thread_local pieces p, got;
    psi_records *records = argument;
    for (unsigned i = 0; i < 200; i++) {
        uint32_t number = i % 3;
        (void)psi_records_put(records, number, lay_out(&p, i % 5), 2);
        if (psi_records_get(records, number, lay_out(&got, 200), 2) == 0) {
            unsigned char first = got.bytes[0]; /* whole, whoever wrote it */
            unsigned seed = 0;
            while (seed < 5 && (unsigned char)(seed * 17) != first) {
                seed++;
            }
            (void)lay_out(&p, seed);
            if (seed == 5 || memcmp(got.at[0].address, p.at[0].address, FIRST) != 0) {
                return argument;
            }
        }
        if (i % 7 == 0) {
            psi_records_forget(records, number);
        }
    }
    return NULL;
}

static void threads_wait_for_each_other(void **state) {
    (void)state;
    psi_records *records = open_with(0, 0, 3);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, put_and_get, records), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *torn = NULL;
        assert_int_equal(pthread_join(threads[i], &torn), 0);
        assert_null(torn);
    }
    psi_records_close(records);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_come_back_bit_by_bit),
        cmocka_unit_test(a_put_gives_back_what_reading_ahead_took),
        cmocka_unit_test(what_was_never_written_or_is_forgotten_is_not_there),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(no_store_can_be_asked_for),
        cmocka_unit_test(its_size_is_bounded),
        cmocka_unit_test(an_hour_has_its_bound),
        cmocka_unit_test(no_fault_of_the_disk_gives_other_bytes),
        cmocka_unit_test(threads_wait_for_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
