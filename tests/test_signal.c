/* test_signal.c - src/signal against fake /proc and /sys trees in a temporary directory, with a fake
 * clock. No test depends on real time or on the machine it runs on. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "signal/signal.h"
#include "signal/sources.h"

#define MIB ((uint64_t)1 << 20)
#define KIB ((uint64_t)1 << 10)
#define MS ((uint64_t)1000)

/* ---- A machine made of files ------------------------------------------------------------------ */

static char root[64];
static uint64_t now_us;

static uint64_t fake_now_us(void *user) {
    (void)user;
    return now_us;
}

static void put_bytes(const char *path, const void *bytes, size_t count) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    int descriptor = open(full, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(descriptor >= 0);
    assert_int_equal(write(descriptor, bytes, count), (ssize_t)count);
    close(descriptor);
}

static void put(const char *path, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(const char *path, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    assert_true(length >= 0 && (size_t)length < sizeof(text));
    put_bytes(path, text, (size_t)length);
}

static void take_away(const char *path) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    assert_int_equal(unlink(full), 0);
}

static void put_pressure(const char *path, uint64_t some_us, uint64_t full_us) {
    put(path, "some avg10=0.36 avg60=0.00 avg300=0.00 total=%llu\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=%llu\n",
        (unsigned long long)some_us, (unsigned long long)full_us);
}

static void put_meminfo(uint64_t total_bytes, uint64_t available_bytes) {
    put("/proc/meminfo", "MemTotal:       %llu kB\nMemFree:            1 kB\nMemAvailable:   %llu kB\nBuffers: 0 kB\n",
        (unsigned long long)(total_bytes / KIB), (unsigned long long)(available_bytes / KIB));
}

static void put_faults(uint64_t faults) {
    put("/proc/self/stat", "123 (a) b (c)) S 1 2 3 4 5 6 777 888 %llu 999 1 2 3\n", (unsigned long long)faults);
}

static void put_mapped(uint64_t file_bytes, uint64_t locked_bytes) {
    put("/proc/self/status", "Name:\tx\nVmLck:\t %llu kB\nRssAnon:\t 77 kB\nRssFile:\t %llu kB\nRssShmem:\t 5 kB\n",
        (unsigned long long)(locked_bytes / KIB), (unsigned long long)(file_bytes / KIB));
}

static void put_v2_stat(const char *path, uint64_t inactive, uint64_t active) {
    put(path, "anon 1\nfile 2\nworkingset_refault_file 7\ninactive_file %llu\nactive_file %llu\n",
        (unsigned long long)inactive, (unsigned long long)active);
}

static void put_amount(const char *path, uint64_t bytes) { put(path, "%llu\n", (unsigned long long)bytes); }

/* A machine with 8 GiB, 6 of them available, PSI, and no cgroup. */
static void put_machine(void) {
    put_meminfo(8192 * MIB, 6144 * MIB);
    put_faults(0);
    put_mapped(0, 0);
    put_pressure("/proc/pressure/memory", 0, 0);
}

/* A v2 machine and the own group "/a/b/c" in it, without limits. */
static void put_v2(void) {
    put("/proc/self/cgroup", "0::/a/b/c\n");
    put("/proc/self/mountinfo", "20 1 0:5 / /proc rw - proc proc rw\n"
                                "41 31 0:38 / /cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
    put("/cg/a/b/c/memory.max", "max\n");
    put("/cg/a/b/c/memory.high", "max\n");
    put("/cg/a/b/memory.max", "max\n");
    put("/cg/a/memory.max", "max\n");
    put_amount("/cg/a/b/c/memory.current", 100 * MIB);
    put_amount("/cg/a/b/memory.current", 200 * MIB);
    put_amount("/cg/a/memory.current", 300 * MIB);
    put_pressure("/cg/a/b/c/memory.pressure", 0, 0);
}

static void put_v1(void) {
    put("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/box\n0::/box2\n");
    put("/proc/self/mountinfo", "35 31 0:32 / /cg/cpu rw - cgroup cgroup rw,cpu\n"
                                "36 31 0:33 / /cg/memory rw,relatime - cgroup cgroup rw,cpu,memory\n"
                                "41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n");
    put_amount("/cg/memory/memory.limit_in_bytes", 9223372036854771712u);
    put_amount("/cg/memory/memory.usage_in_bytes", 900 * MIB);
    put_amount("/cg/memory/box/memory.limit_in_bytes", 1200 * MIB);
    put_amount("/cg/memory/box/memory.usage_in_bytes", 800 * MIB);
    put("/cg/memory/box/memory.stat",
        "inactive_file 1\nactive_file 1\n"
        "total_inactive_file %llu\ntotal_active_file %llu\n",
        (unsigned long long)(30 * MIB), (unsigned long long)(20 * MIB));
    put_pressure("/cg/unified/box2/memory.pressure", 0, 0);
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static int set_up(void **state) {
    (void)state;
    strcpy(root, "/tmp/psi_signal.XXXXXX");
    now_us = 1000000000;
    return mkdtemp(root) == NULL;
}

static int tear_down(void **state) {
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static psi_signal *open_signal(void) {
    psi_signal *signal = psi_signal_open(root, (psi_clock){.now_us = fake_now_us});
    assert_non_null(signal);
    return signal;
}

static psi_reading read_after(psi_signal *signal, uint64_t us) {
    psi_reading reading;
    memset(&reading, 0xa5, sizeof(reading));
    now_us += us;
    psi_signal_read(signal, &reading);
    assert_int_equal(reading.at_us, now_us);
    return reading;
}

/* The first reading of a signal that is opened for it alone. */
static psi_reading read_once(void) {
    psi_signal *signal = open_signal();
    psi_reading reading = read_after(signal, 0);
    psi_signal_close(signal);
    return reading;
}

static const psi_source *source(const psi_signal *signal, const char *name) {
    size_t count = 0;
    const psi_source *rows = psi_signal_sources(signal, &count);
    for (size_t i = 0; i < count; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    fail_msg("no source %s", name);
    return NULL;
}

static void assert_near(double value, double wanted, double error) {
    if (!(value > wanted - error && value < wanted + error))
        fail_msg("%f is not within %f of %f", value, error, wanted);
}

/* ---- Headroom --------------------------------------------------------------------------------- */

static void machine_without_groups_reads_mem_available(void **state) {
    (void)state;
    put_machine();
    psi_reading reading = read_once();
    assert_int_equal(reading.have & PSI_HAVE_HEADROOM, PSI_HAVE_HEADROOM);
    assert_int_equal(reading.headroom_bytes, 6144 * MIB);
    assert_int_equal(reading.limit_bytes, 8192 * MIB);
}

static void own_mappings_are_not_available(void **state) {
    (void)state;
    put_machine();
    put_mapped(1024 * MIB, 0);
    assert_int_equal(read_once().headroom_bytes, 5120 * MIB);
    put_mapped(1024 * MIB, 256 * MIB); /* locked pages are not in MemAvailable to begin with */
    assert_int_equal(read_once().headroom_bytes, 5376 * MIB);
    put_mapped(1024 * MIB, 2048 * MIB);
    assert_int_equal(read_once().headroom_bytes, 6144 * MIB);
    put_mapped(7000 * MIB, 0); /* more than is available: none, not a huge number */
    assert_int_equal(read_once().headroom_bytes, 0);
}

static void v2_own_limit_counts(void **state) {
    (void)state;
    put_machine();
    put_v2();
    assert_int_equal(read_once().headroom_bytes, 6144 * MIB); /* "max" is no limit */
    put_amount("/cg/a/b/c/memory.max", 1000 * MIB);
    psi_reading reading = read_once();
    assert_int_equal(reading.headroom_bytes, 900 * MIB);
    assert_int_equal(reading.limit_bytes, 1000 * MIB);
    put_amount("/cg/a/b/c/memory.high", 2000 * MIB); /* above the other: of no effect */
    assert_int_equal(read_once().headroom_bytes, 900 * MIB);
    put_amount("/cg/a/b/c/memory.high", 600 * MIB);
    reading = read_once();
    assert_int_equal(reading.headroom_bytes, 500 * MIB);
    assert_int_equal(reading.limit_bytes, 600 * MIB);
}

static void tightest_ancestor_in_the_middle_wins(void **state) {
    (void)state;
    put_machine();
    put_v2();
    put_amount("/cg/a/b/c/memory.max", 1000 * MIB);
    put_amount("/cg/a/b/memory.max", 700 * MIB);
    put_amount("/cg/a/memory.max", 1500 * MIB);
    psi_reading reading = read_once();
    assert_int_equal(reading.headroom_bytes, 500 * MIB);
    assert_int_equal(reading.limit_bytes, 700 * MIB);
    put_amount("/cg/a/memory.max", 400 * MIB); /* and the outermost is not forgotten */
    assert_int_equal(read_once().headroom_bytes, 100 * MIB);
    put_amount("/cg/a/memory.max", 200 * MIB); /* already over it */
    assert_int_equal(read_once().headroom_bytes, 0);
}

static void page_cache_is_free_but_for_own_mappings(void **state) {
    (void)state;
    put_machine();
    put_v2();
    put_amount("/cg/a/b/c/memory.max", 300 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 30 * MIB, 40 * MIB);
    assert_int_equal(read_once().headroom_bytes, 270 * MIB);
    put_mapped(50 * MIB, 0);
    assert_int_equal(read_once().headroom_bytes, 220 * MIB);
    put_mapped(50 * MIB, 20 * MIB);
    assert_int_equal(read_once().headroom_bytes, 240 * MIB);
    put_mapped(500 * MIB, 0); /* charged elsewhere: takes the cache away, and no more */
    assert_int_equal(read_once().headroom_bytes, 200 * MIB);
    put_mapped(0, 0);
    put_v2_stat("/cg/a/b/c/memory.stat", 3000 * MIB, 4000 * MIB); /* cannot exceed the usage */
    assert_int_equal(read_once().headroom_bytes, 300 * MIB);
    put_mapped(60 * MIB, 0);
    assert_int_equal(read_once().headroom_bytes, 240 * MIB);
}

static void v1_limit_and_v2_pressure_at_once(void **state) {
    (void)state;
    put_machine();
    put_v1();
    psi_signal *signal = open_signal();
    assert_int_equal(read_after(signal, 0).headroom_bytes, 450 * MIB);
    put_pressure("/cg/unified/box2/memory.pressure", 300 * MS, 100 * MS);
    psi_reading reading = read_after(signal, 1000 * MS);
    assert_int_equal(reading.limit_bytes, 1200 * MIB);
    assert_true(reading.stall_is_own);
    assert_near(reading.stall_some_share, 0.3, 1e-9);
    assert_near(reading.stall_full_share, 0.1, 1e-9);
    assert_true(source(signal, "cgroup-v1")->in_use);
    assert_false(source(signal, "cgroup-v2")->in_use); /* no memory controller in it */
    assert_non_null(strstr(source(signal, "cgroup-v1")->detail, "/cg/memory/box"));
    psi_signal_close(signal);
}

static void v1_ancestor_counts_only_with_hierarchy(void **state) {
    (void)state;
    put_machine();
    put_v1();
    put_amount("/cg/memory/memory.limit_in_bytes", 1000 * MIB);
    assert_int_equal(read_once().headroom_bytes, 100 * MIB);
    put("/cg/memory/memory.use_hierarchy", "1\n");
    assert_int_equal(read_once().headroom_bytes, 100 * MIB);
    put("/cg/memory/memory.use_hierarchy", "0\n");
    assert_int_equal(read_once().headroom_bytes, 450 * MIB);
}

static void usage_is_read_each_time_and_stat_seldom(void **state) {
    (void)state;
    put_machine();
    put_v2();
    put_amount("/cg/a/b/c/memory.max", 1000 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 10 * MIB, 0);
    psi_signal *signal = open_signal();
    assert_int_equal(read_after(signal, 0).headroom_bytes, 910 * MIB);
    put_amount("/cg/a/b/c/memory.current", 150 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 60 * MIB, 0);
    assert_int_equal(read_after(signal, 49 * MS).headroom_bytes, 860 * MIB);
    assert_int_equal(read_after(signal, 1 * MS).headroom_bytes, 910 * MIB);
    psi_signal_close(signal);
}

/* ---- Where the group is ----------------------------------------------------------------------- */

static void mounts_serve_where_mountinfo_is_missing(void **state) {
    (void)state;
    put_machine();
    put_v2();
    put_amount("/cg/a/b/c/memory.max", 1000 * MIB);
    take_away("/proc/self/mountinfo");
    assert_int_equal(read_once().headroom_bytes, 6144 * MIB);
    put("/proc/self/mounts", "proc /proc proc rw 0 0\ncgroup2 /cg cgroup2 rw 0 0\n");
    assert_int_equal(read_once().headroom_bytes, 900 * MIB);
}

static void container_mount_shows_part_of_the_tree(void **state) {
    (void)state;
    put_machine();
    put("/proc/self/cgroup", "0::/docker/id/inner\n");
    put("/proc/self/mountinfo", "41 31 0:38 /docker/id /cg\\040x ro - cgroup2 cgroup rw\n");
    put_amount("/cg x/inner/memory.max", 500 * MIB);
    put_amount("/cg x/inner/memory.current", 100 * MIB);
    assert_int_equal(read_once().headroom_bytes, 400 * MIB);
}

static void mount_of_a_group_with_a_like_name_is_not_ours(void **state) {
    (void)state;
    put_machine();
    put("/proc/self/cgroup", "0::/docker/id2\n");
    put("/proc/self/mountinfo", "41 31 0:38 /docker/id /other ro - cgroup2 cgroup rw\n"
                                "42 31 0:38 /docker/id2 /cg ro - cgroup2 cgroup rw\n");
    put_amount("/other/memory.max", 200 * MIB);
    put_amount("/other/memory.current", 100 * MIB);
    put_amount("/cg/memory.max", 500 * MIB);
    put_amount("/cg/memory.current", 100 * MIB);
    assert_int_equal(read_once().headroom_bytes, 400 * MIB);
}

static void path_that_is_not_there_means_the_mount(void **state) {
    (void)state;
    static const char *const paths[] = {"/host/only", "/..", "/../..", "/a/../../x"};
    put_machine();
    put("/proc/self/mountinfo", "41 31 0:38 / /cg rw - cgroup2 cgroup2 rw\n");
    put_amount("/cg/memory.max", 500 * MIB);
    put_amount("/cg/memory.current", 100 * MIB);
    put_amount("/memory.max", 50 * MIB); /* outside the mount: must not be found */
    put_amount("/memory.current", 10 * MIB);
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        put("/proc/self/cgroup", "0::%s\n", paths[i]);
        assert_int_equal(read_once().headroom_bytes, 400 * MIB);
    }
}

/* ---- Stall ------------------------------------------------------------------------------------ */

static void v2_own_pressure_is_preferred(void **state) {
    (void)state;
    put_machine();
    put_v2();
    psi_signal *signal = open_signal();
    assert_int_equal(read_after(signal, 0).have & PSI_HAVE_STALL, 0); /* no window yet */
    put_pressure("/cg/a/b/c/memory.pressure", 50 * MS, 0);
    put_pressure("/proc/pressure/memory", 900 * MS, 0);
    psi_reading reading = read_after(signal, 500 * MS);
    assert_true(reading.have & PSI_HAVE_STALL);
    assert_true(reading.stall_is_own);
    assert_near(reading.stall_some_share, 0.1, 1e-9);
    psi_signal_close(signal);
}

static void v2_root_group_means_the_system(void **state) {
    (void)state;
    put_machine();
    put_v2();
    put("/proc/self/cgroup", "0::/\n");
    put_pressure("/cg/memory.pressure", 0, 0);
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    put_pressure("/proc/pressure/memory", 200 * MS, 0);
    psi_reading reading = read_after(signal, 1000 * MS);
    assert_false(reading.stall_is_own);
    assert_near(reading.stall_some_share, 0.2, 1e-9);
    assert_non_null(strstr(source(signal, "psi")->detail, "/proc/pressure/memory"));
    assert_false(source(signal, "cgroup-v2")->in_use);
    psi_signal_close(signal);
    put("/cg/cgroup.events", "populated 1\n"); /* the root of a namespace, not of the machine */
    signal = open_signal();
    assert_non_null(strstr(source(signal, "psi")->detail, "/cg/memory.pressure"));
    psi_signal_close(signal);
}

static void own_group_without_pressure_falls_back_to_the_system(void **state) {
    (void)state;
    put_machine();
    put_v2();
    take_away("/cg/a/b/c/memory.pressure");
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    psi_reading reading = read_after(signal, 1000 * MS);
    assert_true(reading.have & PSI_HAVE_STALL);
    assert_false(reading.stall_is_own);
    psi_signal_close(signal);
}

static void no_psi_is_named_with_its_cure(void **state) {
    (void)state;
    put_machine();
    take_away("/proc/pressure/memory");
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_int_equal(read_after(signal, 1000 * MS).have & PSI_HAVE_STALL, 0);
    assert_false(source(signal, "psi")->in_use);
    assert_non_null(strstr(source(signal, "psi")->cure, "CONFIG_PSI=y"));
    psi_signal_close(signal);
    const char *detail = NULL, *cure = NULL;
    psi_pressure_explain(-EOPNOTSUPP, &detail, &cure);
    assert_non_null(strstr(cure, "psi=1"));
}

static void stall_window_is_about_a_second(void **state) {
    (void)state;
    put_machine();
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    uint64_t total = 0;
    psi_reading reading = {0};
    for (int i = 0; i < 500; i++) { /* a second of 25 % in readings of 2 ms */
        put_pressure("/proc/pressure/memory", total += 500, 0);
        reading = read_after(signal, 2 * MS);
    }
    assert_near(reading.stall_some_share, 0.25, 1e-6);
    for (int i = 0; i < 250; i++) /* half a second of calm: half of it is left */
        reading = read_after(signal, 2 * MS);
    assert_near(reading.stall_some_share, 0.125, 0.013);
    for (int i = 0; i < 300; i++)
        reading = read_after(signal, 2 * MS);
    assert_near(reading.stall_some_share, 0, 1e-9);
    put_pressure("/proc/pressure/memory", total += 400 * MS, 0); /* readings of a second: the last one only */
    assert_near(read_after(signal, 1000 * MS).stall_some_share, 0.4, 0.03);
    assert_near(read_after(signal, 1000 * MS).stall_some_share, 0, 1e-9);
    psi_signal_close(signal);
}

static void first_milliseconds_give_no_share(void **state) {
    (void)state;
    put_machine();
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    put_pressure("/proc/pressure/memory", 2 * MS, 0);
    assert_int_equal(read_after(signal, 99 * MS).have & PSI_HAVE_STALL, 0);
    assert_true(read_after(signal, 1 * MS).have & PSI_HAVE_STALL);
    psi_signal_close(signal);
}

static void stall_counter_going_backwards_is_ignored(void **state) {
    (void)state;
    put_machine();
    put_pressure("/proc/pressure/memory", 5000 * MS, 0);
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_true(read_after(signal, 200 * MS).have & PSI_HAVE_STALL);
    put_pressure("/proc/pressure/memory", 1000 * MS, 0);
    assert_int_equal(read_after(signal, 200 * MS).have & PSI_HAVE_STALL, 0);
    put_pressure("/proc/pressure/memory", 1050 * MS, 0); /* a counter that was reset is believed again */
    psi_reading reading = read_after(signal, 500 * MS);
    assert_true(reading.have & PSI_HAVE_STALL);
    assert_near(reading.stall_some_share, 0.1, 1e-9);
    put_pressure("/proc/pressure/memory", 900000 * MS, 0); /* more stall than time: not stall */
    assert_int_equal(read_after(signal, 200 * MS).have & PSI_HAVE_STALL, 0);
    reading = read_after(signal, 200 * MS);
    assert_true(reading.have & PSI_HAVE_STALL);
    assert_near(reading.stall_some_share, 0, 1e-9);
    put_pressure("/proc/pressure/memory", 900200 * MS, 900201 * MS); /* full above some */
    assert_int_equal(read_after(signal, 200 * MS).have & PSI_HAVE_STALL, 0);
    psi_signal_close(signal);
}

static void constant_99_per_cent_reads_as_such(void **state) {
    (void)state;
    put_machine();
    psi_signal *signal = open_signal();
    psi_reading reading = read_after(signal, 0);
    for (uint64_t i = 1; i < 50; i++) {
        put_pressure("/proc/pressure/memory", i * 990 * MS, i * 990 * MS);
        reading = read_after(signal, 1000 * MS);
    }
    assert_near(reading.stall_some_share, 0.99, 1e-9);
    psi_signal_close(signal);
}

/* ---- Faults ----------------------------------------------------------------------------------- */

static void major_faults_are_a_rate(void **state) {
    (void)state;
    put_machine();
    put_faults(1000);
    psi_signal *signal = open_signal();
    assert_int_equal(read_after(signal, 0).have & PSI_HAVE_FAULTS, 0);
    put_faults(1300);
    psi_reading reading = read_after(signal, 1000 * MS);
    assert_true(reading.have & PSI_HAVE_FAULTS);
    assert_near(reading.major_faults_per_s, 300, 1e-6);
    put_faults(5);
    assert_int_equal(read_after(signal, 1000 * MS).have & PSI_HAVE_FAULTS, 0);
    put_faults(15);
    assert_near(read_after(signal, 1000 * MS).major_faults_per_s, 10, 1e-6);
    psi_signal_close(signal);
}

/* ---- Fill rate -------------------------------------------------------------------------------- */

static psi_signal *open_group(uint64_t usage) {
    put_machine();
    put_v2();
    put_amount("/cg/a/b/c/memory.max", 4096 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 0, 0);
    put_amount("/cg/a/b/c/memory.current", usage);
    return open_signal();
}

static psi_reading use_and_read(psi_signal *signal, uint64_t usage, uint64_t after_us) {
    put_amount("/cg/a/b/c/memory.current", usage);
    return read_after(signal, after_us);
}

static double mib_per_s(const psi_reading *reading) {
    assert_true(reading->have & PSI_HAVE_FILL);
    return (double)reading->fill_bytes_per_s / (double)MIB;
}

static void fill_attacks_within_two_readings(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    assert_int_equal(read_after(signal, 0).have & PSI_HAVE_FILL, 0); /* one reading is no rate */
    psi_reading reading = use_and_read(signal, 101 * MIB, 2 * MS);   /* 500 MiB/s */
    assert_true(mib_per_s(&reading) >= 249);
    reading = use_and_read(signal, 102 * MIB, 2 * MS);
    assert_true(mib_per_s(&reading) >= 374 && mib_per_s(&reading) <= 500.1);
    reading = use_and_read(signal, 112 * MIB, 20 * MS); /* one longer reading is enough */
    assert_true(mib_per_s(&reading) >= 480 && mib_per_s(&reading) <= 500.1);
    psi_signal_close(signal);
}

static void fill_decays_by_half_in_300_ms(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    psi_reading reading = use_and_read(signal, 600 * MIB, 1000 * MS);
    double start = mib_per_s(&reading);
    assert_near(start, 500, 5);
    for (int i = 0; i < 150; i++)
        reading = read_after(signal, 2 * MS);
    assert_near(mib_per_s(&reading) / start, 0.5, 0.03);
    for (int i = 0; i < 150; i++)
        reading = read_after(signal, 2 * MS);
    assert_near(mib_per_s(&reading) / start, 0.25, 0.03);
    psi_signal_close(signal);
}

static void memory_given_back_does_not_wipe_out_the_fill_rate(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    psi_reading reading = use_and_read(signal, 600 * MIB, 1000 * MS);
    reading = use_and_read(signal, 100 * MIB, 2 * MS);
    assert_true(mib_per_s(&reading) > 450);
    for (int i = 0; i < 20; i++)
        reading = read_after(signal, 1000 * MS);
    for (int i = 0; i < 3; i++)
        reading = use_and_read(signal, (uint64_t)(90 - i * 10) * MIB, 1000 * MS);
    assert_true(reading.fill_bytes_per_s < 0); /* headroom that grows reads as such in the end */
    psi_signal_close(signal);
}

static void readings_within_a_millisecond_are_merged(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    use_and_read(signal, 100 * MIB, 10 * MS);
    psi_reading reading = use_and_read(signal, 101 * MIB, 100); /* 10 GiB/s if it were believed */
    assert_int_equal(reading.fill_bytes_per_s, 0);
    assert_int_equal(reading.headroom_bytes, 3995 * MIB); /* but headroom is what it is */
    reading = use_and_read(signal, 102 * MIB, 1900);      /* 2 MiB in 2 ms: 1000 MiB/s */
    assert_near(mib_per_s(&reading), 500, 1);
    psi_signal_close(signal);
}

static void reading_files_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(1000 * MIB);
    psi_reading reading = read_after(signal, 0);
    double most = 0;
    for (uint64_t ms = 2; ms <= 1000; ms += 2) { /* 1000 MiB/s into the page cache */
        put_v2_stat("/cg/a/b/c/memory.stat", ms * MIB, 0);
        reading = use_and_read(signal, (1000 + ms) * MIB, 2 * MS);
        if (ms > 50 && mib_per_s(&reading) > most)
            most = mib_per_s(&reading);
    }
    assert_true(most < 1000);               /* what the first 50 ms made us believe */
    assert_true(mib_per_s(&reading) < 150); /* decays, and nothing renews it */
    psi_signal_close(signal);
}

static void dropped_page_cache_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(2000 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 1500 * MIB, 0);
    read_after(signal, 0);
    read_after(signal, 20 * MS);
    psi_reading reading = use_and_read(signal, 1000 * MIB, 2 * MS); /* usage falls at once, ... */
    put_v2_stat("/cg/a/b/c/memory.stat", 500 * MIB, 0);             /* ... and is explained later */
    for (int i = 0; i < 40; i++) {
        reading = read_after(signal, 2 * MS);
        assert_true(mib_per_s(&reading) < 1);
    }
    assert_int_equal(reading.headroom_bytes, 3596 * MIB);
    psi_signal_close(signal);
}

static void growth_behind_a_full_group_is_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(4096 * MIB); /* at its limit, with cache; usage cannot rise */
    put_v2_stat("/cg/a/b/c/memory.stat", 3000 * MIB, 0);
    psi_reading reading = read_after(signal, 0);
    for (uint64_t ms = 2; ms <= 400; ms += 2) {
        put_v2_stat("/cg/a/b/c/memory.stat", 3000 * MIB - ms * MIB / 2, 0); /* 500 MiB/s of it are lost */
        reading = read_after(signal, 2 * MS);
        if (ms > 52)
            assert_near(mib_per_s(&reading), 465, 36); /* a saw: renewed every 50 ms */
    }
    psi_signal_close(signal);
}

static void changed_limit_or_other_bound_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    read_after(signal, 100 * MS);
    put_amount("/cg/a/b/c/memory.max", 200 * MIB);
    psi_reading reading = read_after(signal, 100 * MS);
    assert_int_equal(reading.headroom_bytes, 100 * MIB);
    assert_near(mib_per_s(&reading), 0, 1);
    put_amount("/cg/a/b/memory.max", 250 * MIB); /* 200 used: this one is the tightest now */
    reading = read_after(signal, 100 * MS);
    assert_int_equal(reading.headroom_bytes, 50 * MIB);
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_close(signal);
}

static void what_we_took_ourselves_is_no_fill(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    read_after(signal, 100 * MS);
    psi_signal_took(signal, (int64_t)(50 * MIB));
    psi_reading reading = use_and_read(signal, 150 * MIB, 10 * MS);
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_took(signal, (int64_t)(20 * MIB));
    reading = use_and_read(signal, 170 * MIB, 100 * MS); /* with memory.stat fresh, too */
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_took(signal, -(int64_t)(100 * MIB)); /* given back, and another took 10 meanwhile */
    reading = use_and_read(signal, 80 * MIB, 20 * MS);
    assert_true(mib_per_s(&reading) > 400);
    psi_signal_took(signal, INT64_MAX);
    psi_signal_took(signal, INT64_MIN);
    read_after(signal, 20 * MS);
    psi_signal_close(signal);
}

/* ---- Missing and absurd ----------------------------------------------------------------------- */

static void everything_missing_is_named_and_nothing_is_zero(void **state) {
    (void)state;
    psi_signal *signal = open_signal();
    psi_reading reading = read_after(signal, 0);
    reading = read_after(signal, 1000 * MS);
    assert_int_equal(reading.have, 0);
    assert_true(reading.headroom_bytes == UINT64_MAX && reading.limit_bytes == UINT64_MAX);
    size_t count = 0;
    const psi_source *rows = psi_signal_sources(signal, &count);
    assert_int_equal(count, 6);
    for (size_t i = 0; i < count; i++) {
        assert_false(rows[i].in_use);
        assert_true(strlen(rows[i].detail) > 0 && strlen(rows[i].cure) > 0);
    }
    psi_signal_close(signal);
}

static void sources_in_use_show_their_path(void **state) {
    (void)state;
    put_machine();
    put_v2();
    psi_signal *signal = open_signal();
    size_t count = 0;
    const psi_source *rows = psi_signal_sources(signal, &count);
    for (size_t i = 0; i < count; i++) {
        bool v1 = strcmp(rows[i].name, "cgroup-v1") == 0;
        assert_int_equal(rows[i].in_use, !v1);
        assert_int_equal(strncmp(rows[i].detail, root, strlen(root)) == 0, !v1);
        assert_int_equal(rows[i].cure[0] == '\0', !v1);
    }
    psi_signal_close(signal);
}

static void sources_that_vanish_leave_their_bits_out(void **state) {
    (void)state;
    put_machine();
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_int_equal(read_after(signal, 1000 * MS).have,
                     PSI_HAVE_STALL | PSI_HAVE_HEADROOM | PSI_HAVE_FILL | PSI_HAVE_FAULTS);
    take_away("/proc/meminfo");
    take_away("/proc/pressure/memory");
    take_away("/proc/self/stat");
    assert_int_equal(read_after(signal, 1000 * MS).have, 0);
    put_machine();
    assert_int_equal(read_after(signal, 1000 * MS).have & PSI_HAVE_HEADROOM, PSI_HAVE_HEADROOM);
    psi_signal_close(signal);
}

static void clock_going_backwards_is_survived(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    read_after(signal, 1000 * MS);
    now_us -= 500 * MS;
    psi_reading reading = use_and_read(signal, 200 * MIB, 0);
    assert_int_equal(reading.have & PSI_HAVE_STALL, 0);
    assert_int_equal(reading.headroom_bytes, 3896 * MIB);
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_close(signal);
}

static void parsers_refuse_what_is_not_theirs(void **state) {
    (void)state;
    static const char *const not_amounts[] = {
        "", "max", "-1", "+1", " 1", "1x", "0x10", "99999999999999999999999", "4611686018427387904"};
    uint64_t a = 77, b = 77;
    for (size_t i = 0; i < sizeof(not_amounts) / sizeof(not_amounts[0]); i++)
        assert_false(psi_parse_amount(not_amounts[i], &a));
    assert_false(psi_parse_u64("18446744073709551616", &a));
    assert_int_equal(a, 77);
    assert_true(psi_parse_u64("18446744073709551615\n", &a) && a == UINT64_MAX);
    static const char *const not_pressure[] = {"",
                                               "some",
                                               "some avg10=0.00 total=\nfull total=1\n",
                                               "some avg10=0 total=5\n",
                                               "full avg10=0 total=5\n",
                                               "some avg10=0\nfull avg10=0 total=9 total=9\n",
                                               "some avg10=0 total=-5\nfull avg10=0 total=0\n",
                                               "some avg10=0 total=5\nfull avg10=0 total=6\n",
                                               "awesome total=5\nfull total=5\n"};
    a = 77;
    for (size_t i = 0; i < sizeof(not_pressure) / sizeof(not_pressure[0]); i++)
        assert_false(psi_pressure_parse(not_pressure[i], &a, &b));
    static const char *const not_meminfo[] = {"",
                                              "MemTotal: 5 kB\n",
                                              "MemAvailable: 5 kB\n",
                                              "MemTotal: 0 kB\nMemAvailable: 0 kB\n",
                                              "MemTotal: 5 kB\nMemAvailable: 6 kB\n",
                                              "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n",
                                              "MemTotal: -5 kB\nMemAvailable: -6 kB\n",
                                              "XMemTotal: 5 kB\nMemAvailable: 5 kB\n"};
    for (size_t i = 0; i < sizeof(not_meminfo) / sizeof(not_meminfo[0]); i++)
        assert_false(psi_meminfo_parse(not_meminfo[i], &a, &b));
    static const char *const not_stat[] = {"",      "1 x S 1 2 3 4 5 6 7 8 9 10", "1 (x",
                                           "1 (x)", "1 (x) S 1 2 3 4 5 6 7 8",    "1 (x) S 1 2 3 4 5 6 7 8 -9 10"};
    for (size_t i = 0; i < sizeof(not_stat) / sizeof(not_stat[0]); i++)
        assert_false(psi_self_parse_major_faults(not_stat[i], &a));
    assert_false(psi_self_parse_mapped("VmLck: 1 kB\n", &a));
    assert_false(psi_self_parse_mapped("RssFile: lots\n", &a));
    assert_int_equal(a, 77);
    assert_int_equal(b, 77);
}

/* Each file in turn, with each sort of rubbish: no crash, and no number where there is none. */
static void rubbish_in_any_file_is_survived(void **state) {
    (void)state;
    static const char *const files[] = {"/proc/self/cgroup",
                                        "/proc/self/mountinfo",
                                        "/proc/self/stat",
                                        "/proc/self/status",
                                        "/proc/meminfo",
                                        "/proc/pressure/memory",
                                        "/cg/a/b/c/memory.max",
                                        "/cg/a/b/c/memory.high",
                                        "/cg/a/b/c/memory.current",
                                        "/cg/a/b/c/memory.stat",
                                        "/cg/a/b/c/memory.pressure"};
    static char rubbish[5][60000];
    size_t length[5] = {0, 60000, 60000, 60000, 20};
    for (size_t i = 0; i < 60000; i++) {
        rubbish[1][i] = (char)(i * 7919 >> 3);   /* binary */
        rubbish[2][i] = '9';                     /* a number without end */
        rubbish[3][i] = ":/ -,\n0a"[i * 31 % 8]; /* separators */
    }
    memcpy(rubbish[4], "0::/\n-9 -9 -9 -9 ) 1", 20);
    for (size_t f = 0; f < sizeof(files) / sizeof(files[0]); f++) {
        for (size_t r = 0; r < 5; r++) {
            psi_signal *signal = open_group(100 * MIB);
            read_after(signal, 0);
            put_bytes(files[f], rubbish[r], length[r]);
            psi_reading reading = read_after(signal, 1000 * MS); /* turned bad while open */
            assert_true((reading.have & PSI_HAVE_HEADROOM) && reading.headroom_bytes <= 6144 * MIB);
            psi_signal_close(signal);
            reading = read_once(); /* bad from the start */
            assert_true((reading.have & PSI_HAVE_HEADROOM) == 0 || reading.headroom_bytes <= reading.limit_bytes);
        }
    }
}

static void overlong_paths_are_missing_sources(void **state) {
    (void)state;
    static char longest[3000];
    memset(longest, 'x', sizeof(longest) - 1);
    put_machine();
    put_v2();
    put("/proc/self/cgroup", "0::/%s\n", longest);
    assert_int_equal(read_once().headroom_bytes, 6144 * MIB);
    psi_signal *signal = psi_signal_open(longest, (psi_clock){.now_us = fake_now_us});
    assert_non_null(signal);
    assert_int_equal(read_after(signal, 0).have, 0);
    assert_false(source(signal, "meminfo")->in_use);
    psi_signal_close(signal);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(machine_without_groups_reads_mem_available),
        CASE(own_mappings_are_not_available),
        CASE(v2_own_limit_counts),
        CASE(tightest_ancestor_in_the_middle_wins),
        CASE(page_cache_is_free_but_for_own_mappings),
        CASE(v1_limit_and_v2_pressure_at_once),
        CASE(v1_ancestor_counts_only_with_hierarchy),
        CASE(usage_is_read_each_time_and_stat_seldom),
        CASE(mounts_serve_where_mountinfo_is_missing),
        CASE(container_mount_shows_part_of_the_tree),
        CASE(mount_of_a_group_with_a_like_name_is_not_ours),
        CASE(path_that_is_not_there_means_the_mount),
        CASE(v2_own_pressure_is_preferred),
        CASE(v2_root_group_means_the_system),
        CASE(own_group_without_pressure_falls_back_to_the_system),
        CASE(no_psi_is_named_with_its_cure),
        CASE(stall_window_is_about_a_second),
        CASE(first_milliseconds_give_no_share),
        CASE(stall_counter_going_backwards_is_ignored),
        CASE(constant_99_per_cent_reads_as_such),
        CASE(major_faults_are_a_rate),
        CASE(fill_attacks_within_two_readings),
        CASE(fill_decays_by_half_in_300_ms),
        CASE(memory_given_back_does_not_wipe_out_the_fill_rate),
        CASE(readings_within_a_millisecond_are_merged),
        CASE(reading_files_is_no_fill),
        CASE(dropped_page_cache_is_no_fill),
        CASE(growth_behind_a_full_group_is_fill),
        CASE(changed_limit_or_other_bound_is_no_fill),
        CASE(what_we_took_ourselves_is_no_fill),
        CASE(everything_missing_is_named_and_nothing_is_zero),
        CASE(sources_in_use_show_their_path),
        CASE(sources_that_vanish_leave_their_bits_out),
        CASE(clock_going_backwards_is_survived),
        CASE(parsers_refuse_what_is_not_theirs),
        CASE(rubbish_in_any_file_is_survived),
        CASE(overlong_paths_are_missing_sources),
    };
    return cmocka_run_group_tests_name("signal", tests, NULL, NULL);
}
