/* test_store.c - a record comes back exactly or not at all: full, failing and lying disks. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "store/checksum.h"
#include "store/store.h"

enum { RECORD = 8192 };

static unsigned char *record_of(unsigned seed) {
    unsigned char *record = psi_os_reserve(RECORD);
    assert_non_null(record);
    for (size_t i = 0; i < RECORD; i++) {
        record[i] = (unsigned char)(seed + i * 31 + i / 251);
    }
    return record;
}

static psi_store *open_file_store(uint64_t max_bytes, uint32_t slots) {
    psi_store *store = NULL;
    assert_int_equal(psi_store_open(&store, "file", "/var/tmp", max_bytes, RECORD, slots), 0);
    return store;
}

/* To a slot of its own; none is used when it fails. */
static int write_record(psi_store *store, const void *record, uint32_t *slot) {
    uint32_t chosen = PSI_SLOT_NONE;
    int error = psi_store_reserve(store, &chosen);
    error = error == 0 ? psi_store_put(store, chosen, record) : error;
    if (error == 0) {
        *slot = chosen;
    } else {
        psi_store_free(store, chosen);
    }
    return error;
}

static int read_to(psi_store *store, uint32_t slot, void *got) {
    const void *record = NULL;
    int error = psi_store_read(store, slot, got, &record);
    if (error == 0 && record != got) {
        memcpy(got, record, RECORD);
    }
    return error;
}

static void records_come_back_exactly(void **state) {
    (void)state;
    psi_store *store = open_file_store(UINT64_MAX, 8);
    uint32_t slots[8];
    for (unsigned i = 0; i < 8; i++) {
        unsigned char *record = record_of(i);
        assert_int_equal(write_record(store, record, &slots[i]), 0);
        psi_os_unreserve(record, RECORD);
    }
    for (unsigned i = 8; i-- > 0;) {
        unsigned char *record = record_of(i), *got = psi_os_reserve(RECORD);
        assert_int_equal(read_to(store, slots[i], got), 0);
        assert_memory_equal(record, got, RECORD);
        psi_os_unreserve(record, RECORD);
        psi_os_unreserve(got, RECORD);
    }
    psi_store_close(store);
}

static void a_full_store_says_so_and_room_is_used_again(void **state) {
    (void)state;
    psi_store *store = open_file_store(2 * RECORD + 100, 8);
    unsigned char *record = record_of(1);
    uint32_t first = 99, second = 99, third = 99;
    assert_int_equal(write_record(store, record, &first), 0);
    assert_int_equal(write_record(store, record, &second), 0);
    assert_int_equal(write_record(store, record, &third), -ENOSPC);
    assert_int_equal(third, 99); /* outputs are untouched on failure */
    psi_store_free(store, first);
    assert_int_equal(write_record(store, record, &third), 0);
    assert_int_equal(third, first);
    psi_os_unreserve(record, RECORD);
    psi_store_close(store);
}

/* RLIMIT_FSIZE would end the process with SIGXFSZ; the store must notice before the kernel does. */
static void a_file_size_limit_does_not_end_the_process(void **state) {
    (void)state;
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = RECORD;
    psi_store *store = open_file_store(UINT64_MAX, 8);
    unsigned char *record = record_of(2);
    uint32_t slot = 0;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int one = write_record(store, record, &slot), two = write_record(store, record, &slot);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(one, 0);
    assert_int_equal(two, -EFBIG);
    psi_os_unreserve(record, RECORD);
    psi_store_close(store);
}

/* Finds the store's unlinked file among the process's own descriptors. */
static int descriptor_of_store(void) {
    for (int fd = 3; fd < 64; fd++) {
        struct stat status;
        if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 0) {
            return fd;
        }
    }
    return -1;
}

static void changed_bytes_are_not_handed_out(void **state) {
    (void)state;
    psi_store *store = open_file_store(UINT64_MAX, 4);
    unsigned char *record = record_of(3), *got = psi_os_reserve(RECORD);
    uint32_t slot = 0;
    assert_int_equal(write_record(store, record, &slot), 0);
    int fd = descriptor_of_store();
    assert_true(fd >= 0);
    record[5000] ^= 1; /* one bit */
    assert_int_equal(psi_os_write_at(fd, record, RECORD, (uint64_t)slot * RECORD), 0);
    assert_int_equal(read_to(store, slot, got), -EIO);
    psi_os_unreserve(record, RECORD);
    psi_os_unreserve(got, RECORD);
    psi_store_close(store);
}

static void a_short_file_is_an_error(void **state) {
    (void)state;
    psi_store *store = open_file_store(UINT64_MAX, 4);
    unsigned char *record = record_of(4);
    uint32_t slot = 0;
    assert_int_equal(write_record(store, record, &slot), 0);
    assert_int_equal(ftruncate(descriptor_of_store(), RECORD / 2), 0);
    assert_int_equal(read_to(store, slot, record), -EIO);
    psi_os_unreserve(record, RECORD);
    psi_store_close(store);
}

static void the_file_is_private_and_has_no_name(void **state) {
    (void)state;
    psi_store *store = open_file_store(UINT64_MAX, 4);
    struct stat status;
    int fd = descriptor_of_store();
    assert_int_equal(fstat(fd, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_int_equal(status.st_nlink, 0);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    psi_store_close(store);
    assert_int_equal(descriptor_of_store(), -1);
}

static void bad_arguments_are_refused(void **state) {
    (void)state;
    psi_store *store = NULL;
    assert_int_equal(psi_store_open(&store, "tape", "/var/tmp", UINT64_MAX, RECORD, 4), -EINVAL);
    assert_int_equal(psi_store_open(&store, "file", "/var/tmp", UINT64_MAX, 1000, 4), -EINVAL);
    assert_int_equal(psi_store_open(&store, "file", "/nowhere/at/all", UINT64_MAX, RECORD, 4), -ENOENT);
    assert_null(store);
}

static uint64_t room_on_disk(void) {
    struct stat status;
    assert_int_equal(fstat(descriptor_of_store(), &status), 0);
    return (uint64_t)status.st_blocks * 512;
}

static void forgotten_records_leave_the_disk_when_they_are_told_to(void **state) {
    (void)state;
    psi_store *store = open_file_store(UINT64_MAX, 8);
    unsigned char *record = record_of(7), *got = psi_os_reserve(RECORD);
    uint32_t slots[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(write_record(store, record, &slots[i]), 0);
    }
    uint64_t before = room_on_disk();
    psi_store_free(store, slots[1]);
    psi_store_free(store, slots[3]);
    assert_int_equal(room_on_disk(), before);
    for (int i = 0; i < 2; i++) {
        uint32_t slot = psi_store_take_idle(store);
        assert_true(slot == slots[1] || slot == slots[3]);
        psi_store_vacate(store, slot);
        psi_store_hand_back_idle(store, slot);
    }
    assert_int_equal(psi_store_take_idle(store), PSI_SLOT_NONE);
    assert_true(room_on_disk() < before);
    assert_int_equal(read_to(store, slots[0], got), 0);
    assert_int_equal(read_to(store, slots[2], got), 0);
    for (int i = 0; i < 6; i++) { /* all are there to be used */
        assert_int_equal(write_record(store, record, &slots[1]), 0);
    }
    assert_int_equal(write_record(store, record, &slots[1]), -ENOSPC);
    psi_os_unreserve(record, RECORD);
    psi_os_unreserve(got, RECORD);
    psi_store_close(store);
}

static void kind_none_takes_nothing(void **state) {
    (void)state;
    psi_store *store = NULL;
    uint32_t slot = 7;
    unsigned char *record = record_of(5);
    assert_int_equal(psi_store_open(&store, "none", "", 0, RECORD, 4), 0);
    assert_int_equal(write_record(store, record, &slot), -ENOTSUP);
    assert_int_equal(slot, 7);
    psi_os_unreserve(record, RECORD);
    psi_store_close(store);
}

static void the_checksum_sees_every_bit(void **state) {
    (void)state;
    unsigned char *record = record_of(6);
    uint64_t sum = psi_checksum(record, RECORD);
    for (size_t bit = 0; bit < RECORD * 8; bit++) {
        record[bit / 8] ^= (unsigned char)(1 << (bit % 8));
        assert_true(psi_checksum(record, RECORD) != sum);
        record[bit / 8] ^= (unsigned char)(1 << (bit % 8));
    }
    assert_true(psi_checksum(record, RECORD) == sum);
    psi_os_unreserve(record, RECORD);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_come_back_exactly),
        cmocka_unit_test(a_full_store_says_so_and_room_is_used_again),
        cmocka_unit_test(a_file_size_limit_does_not_end_the_process),
        cmocka_unit_test(changed_bytes_are_not_handed_out),
        cmocka_unit_test(a_short_file_is_an_error),
        cmocka_unit_test(the_file_is_private_and_has_no_name),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(forgotten_records_leave_the_disk_when_they_are_told_to),
        cmocka_unit_test(kind_none_takes_nothing),
        cmocka_unit_test(the_checksum_sees_every_bit),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
