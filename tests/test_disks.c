/* test_disks.c - the store on real file systems that run full, fail and vanish: a small tmpfs, and a disk image whose
 * own disk is too small for it, and then gone: errors from a real driver. Mounted in a namespace of the test's own;
 * skipped, with the reason, where that needs rights that are not there. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "psicache.h"

enum { BLOCKS = 48 };

static char base[64], disk[96];
static const char *missing; /* why nothing can be mounted */
static unsigned full_lines, write_lines, read_lines;

static void hear(void *user, psi_log_level level, const char *line) {
    (void)user;
    (void)level;
    full_lines += strstr(line, "is full") != NULL;
    write_lines += strstr(line, "cannot be written") != NULL;
    read_lines += strstr(line, "could not be read back") != NULL;
}

static size_t pages(size_t count) { return count * psi_os_page_bytes(); }

static int mount_tmpfs(const char *where, size_t page_count, unsigned long flags) {
    char size[32];
    (void)snprintf(size, sizeof(size), "size=%zu", pages(page_count));
    return mount("tmpfs", where, "tmpfs", flags, size);
}

static int setup(void **state) {
    (void)state;
    (void)strcpy(base, "/tmp/psi-test-XXXXXX");
    assert_non_null(mkdtemp(base));
    (void)snprintf(disk, sizeof(disk), "%s/disk", base);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        missing = "no mount namespace of our own: needs root, and one thread";
    } else if (mount_tmpfs(base, 2048, 0) != 0 || mkdir(disk, 0700) != 0) {
        missing = "tmpfs cannot be mounted";
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    (void)umount2(base, MNT_DETACH);
    return rmdir(base);
}

static void skip_where_nothing_can_be_mounted(const char *reason) {
    if (reason != NULL) {
        print_message("skipped: %s\n", reason);
        skip();
    }
}

/* ---- A pool of 384 pages; the disks are as small, in pages ------------------------------------------------------- */

static psi_cache *cache;
static psi_pool *pool;
static size_t block_bytes;

static void open_pool(void) {
    full_lines = write_lines = read_lines = 0;
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.log = hear;
    options.store_dir = disk;
    cache = psi_cache_open(&options);
    psi_pool_options pool_options = PSI_OPTIONS_INIT(psi_pool_options);
    pool_options.block_bytes = block_bytes = 8 * psi_os_page_bytes();
    pool_options.blocks = BLOCKS;
    pool = psi_pool_create(cache, &pool_options);
    assert_non_null(pool);
    for (int i = 0; i < BLOCKS; i++) {
        memset(psi_block_alloc(pool, NULL), i + 1, block_bytes);
    }
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
}

static void close_pool(void) {
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

static psi_stats trim(void) {
    psi_stats stats = {.size = sizeof(stats)};
    assert_int_equal(psi_cache_trim(cache, 1.0), 0);
    (void)psi_pool_step(pool);
    assert_int_equal(psi_stats_read(cache, &stats), 0);
    return stats;
}

/* Brings all back; every block that came is right. How many did not. */
static uint32_t lost(void) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        bool here = psi_block_restore(pool, i) == 0;
        const unsigned char *bytes = psi_block_address(pool, i);
        assert_int_equal(psi_block_get_state(pool, i), here ? PSI_BLOCK_RESIDENT : PSI_BLOCK_DROPPED);
        for (size_t at = 0; here && at < block_bytes; at++) {
            assert_int_equal(bytes[at], i + 1);
        }
        count += !here;
    }
    return count;
}

/* ---- The disks -------------------------------------------------------------------------------------------- */

static void a_file_system_that_runs_full_and_gets_room_again(void **state) {
    (void)state;
    skip_where_nothing_can_be_mounted(missing);
    if (mount_tmpfs(disk, 128, 0) != 0) {
        skip_where_nothing_can_be_mounted("tmpfs cannot be mounted");
    }
    open_pool();
    psi_stats stats = trim();
    assert_in_range(stats.stored_bytes, block_bytes, pages(128));
    assert_int_equal(stats.resident_bytes + stats.stored_bytes, BLOCKS * block_bytes);
    assert_true(stats.store_errors > 0);
    assert_int_equal(full_lines, 1);
    assert_int_equal(lost(), 0);
    assert_int_equal(mount_tmpfs(disk, 1024, MS_REMOUNT), 0);
    for (int i = 0; i < 10000 && stats.stored_bytes < (BLOCKS - 4) * block_bytes; i++) {
        psi_os_pause_us(1000); /* a store that failed is left alone for a while */
        stats = trim();
    }
    assert_true(stats.stored_bytes >= (BLOCKS - 4) * block_bytes);
    assert_int_equal(full_lines, 1);
    assert_int_equal(lost(), 0);
    close_pool();
    assert_int_equal(umount(disk), 0);
}

static void run(const char *format, const char *skip_reason) {
    char command[512];
    (void)snprintf(command, sizeof(command), format, base, base);
    if (system(command) != 0) {
        skip_where_nothing_can_be_mounted(skip_reason);
    }
}

/* All room below the image is taken but for a few blocks' worth: the image's own file system knows nothing of that. */
static void fill_up_but(size_t bytes) {
    char path[96];
    static char zero[4096];
    (void)snprintf(path, sizeof(path), "%s/filler", base);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(file >= 0);
    off_t size = 0;
    while (write(file, zero, sizeof(zero)) == (ssize_t)sizeof(zero)) {
        size += (off_t)sizeof(zero);
    }
    assert_int_equal(ftruncate(file, size - (off_t)bytes), 0);
    (void)close(file);
}

static void a_disk_that_fails_and_is_gone(void **state) {
    (void)state;
    skip_where_nothing_can_be_mounted(missing);
    run("truncate -s 64M %s/image && mkfs.ext4 -q -F -O ^has_journal -m 0 %s/image 2>/dev/null", "no mkfs.ext4");
    run("mount -o loop %s/image %s/disk 2>/dev/null", "no loop device, or no ext4");
    run("sync -f %s/disk", "no sync"); /* what mkfs and mount write has its room */
    fill_up_but(pages(128));
    open_pool();
    psi_stats stats = trim();
    assert_in_range(stats.stored_bytes, 1, pages(256));
    assert_int_equal(stats.resident_bytes + stats.stored_bytes, BLOCKS * block_bytes);
    assert_true(stats.store_errors > 0);
    assert_int_equal(write_lines + full_lines, 1); /* EIO or ENOSPC, as the kernel's loop driver sees it */
    uint64_t stored = stats.stored_bytes / block_bytes;
    run("truncate -s 0 %s/image", "no truncate"); /* the disk is gone, with what it had */
    assert_in_range(lost(), 1, stored);
    assert_int_equal(read_lines, 1);
    close_pool();
    run("umount %s/disk", "no umount");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_system_that_runs_full_and_gets_room_again),
        cmocka_unit_test(a_disk_that_fails_and_is_gone),
    };
    return cmocka_run_group_tests_name("disks", tests, setup, teardown);
}
