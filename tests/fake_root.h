/* fake_root.h - a machine made of files for the tests of src/signal: fake /proc and /sys trees in a temporary
 * directory, with a fake clock. No test depends on real time or on the machine it runs on. */
#ifndef PSI_TESTS_FAKE_ROOT_H
#define PSI_TESTS_FAKE_ROOT_H

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

static inline uint64_t fake_now_us(void *user) {
    (void)user;
    return now_us;
}

static inline void put_bytes(const char *path, const void *bytes, size_t count) {
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

static inline void put(const char *path, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void put(const char *path, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    assert_true(length >= 0 && (size_t)length < sizeof(text));
    put_bytes(path, text, (size_t)length);
}

static inline void take_away(const char *path) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    assert_int_equal(unlink(full), 0);
}

static inline void put_pressure(const char *path, uint64_t some_us, uint64_t full_us) {
    put(path, "some avg10=0.36 avg60=0.00 avg300=0.00 total=%llu\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=%llu\n",
        (unsigned long long)some_us, (unsigned long long)full_us);
}

static inline void put_meminfo(uint64_t total_bytes, uint64_t available_bytes) {
    put("/proc/meminfo", "MemTotal:       %llu kB\nMemFree:            1 kB\nMemAvailable:   %llu kB\nBuffers: 0 kB\n",
        (unsigned long long)(total_bytes / KIB), (unsigned long long)(available_bytes / KIB));
}

static inline void put_faults(uint64_t faults) {
    put("/proc/self/stat", "123 (a) b (c)) S 1 2 3 4 5 6 777 888 %llu 999 1 2 3\n", (unsigned long long)faults);
}

static inline void put_mapped(uint64_t file_bytes, uint64_t locked_bytes) {
    put("/proc/self/status", "Name:\tx\nVmLck:\t %llu kB\nRssAnon:\t 77 kB\nRssFile:\t %llu kB\nRssShmem:\t 5 kB\n",
        (unsigned long long)(locked_bytes / KIB), (unsigned long long)(file_bytes / KIB));
}

static inline void put_v2_stat(const char *path, uint64_t inactive, uint64_t active) {
    put(path, "anon 1\nfile 2\nworkingset_refault_file 7\ninactive_file %llu\nactive_file %llu\n",
        (unsigned long long)inactive, (unsigned long long)active);
}

static inline void put_amount(const char *path, uint64_t bytes) { put(path, "%llu\n", (unsigned long long)bytes); }

/* A machine with 8 GiB, 6 of them available, PSI, and no cgroup. */
static inline void put_machine(void) {
    put_meminfo(8192 * MIB, 6144 * MIB);
    put_faults(0);
    put_mapped(0, 0);
    put_pressure("/proc/pressure/memory", 0, 0);
}

/* A v2 machine and the own group "/a/b/c" in it, without limits. */
static inline void put_v2(void) {
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

/* What the kernel counts beside: vmstat, watermarks, maps, io pressure, zram, swap. */
static inline void put_vmstat(uint64_t refaults, uint64_t scans, uint64_t stalls) {
    put("/proc/vmstat",
        "nr_free_pages 7\nworkingset_refault_anon 0\nworkingset_refault_file %llu\npgscan_kswapd %llu\n"
        "pgscan_direct %llu\npgscan_direct_throttle 99\nallocstall_dma 0\nallocstall_normal %llu\n"
        "allocstall_movable 2\npswpin 3\npswpout 4\noom_kill 5\n",
        (unsigned long long)refaults, (unsigned long long)scans, (unsigned long long)scans, (unsigned long long)stalls);
}

static inline void put_zoneinfo(void) {
    put("/proc/zoneinfo",
        "Node 0, zone      DMA\n  pages free     3840\n        min      68\n        low      85\n        high     102\n"
        "  pagesets\n    cpu: 0\n              count:    5\n              high:     900\n              high_min: 800\n"
        "Node 0, zone   Normal\n  pages free     9000\n        min      32\n        low      15\n        high     "
        "98\n");
}

static inline void put_maps(uint64_t mapped_bytes) {
    put("/proc/self/maps",
        "7f0000000000-%llx r--s 00000000 fe:01 123                       /models/a b.gguf\n"
        "600000000000-600000200000 rw-p 00000000 00:00 0                          [heap]\n"
        "610000000000-610000001000 r-xp 00000000 fe:01 5                          /lib/small.so\n"
        "620000000000-620040000000 rw-s 00000000 00:01 9                          /memfd:kv (deleted)\n",
        0x7f0000000000ull + (unsigned long long)mapped_bytes);
}

/* Every source there is, on a v2 machine. */
static inline void put_all_v2(void) {
    put_machine();
    put_v2();
    put_vmstat(10, 20, 30);
    put_zoneinfo();
    put_maps(64 * MIB);
    put("/proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1024 kB\nMemAvailable: 6291456 kB\n"
                         "SwapTotal: 2048 kB\nSwapFree: 1024 kB\n");
    put_pressure("/proc/pressure/io", 0, 0);
    put_pressure("/cg/a/b/c/io.pressure", 0, 0);
    put("/cg/a/b/c/memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n");
    put_amount("/cg/a/b/c/memory.max", 4096 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 30 * MIB, 40 * MIB);
    put("/sys/block/zram0/mm_stat",
        "    8192     4096    12288        0    12288        0        0        0        0\n");
}

static inline void put_v1(void) {
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

static inline int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static inline int set_up(void **state) {
    (void)state;
    /* In memory where that is: some file systems write a file out when it is truncated and written anew. */
    strcpy(root, access("/dev/shm", W_OK) == 0 ? "/dev/shm/psi_signal.XXXXXX" : "/tmp/psi_signal.XXXXXX");
    now_us = 1000000000;
    return mkdtemp(root) == NULL;
}

static inline int tear_down(void **state) {
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static inline psi_signal *open_signal(void) {
    psi_signal *signal = psi_signal_open(&(psi_signal_options){.root = root, .clock = {.now_us = fake_now_us}});
    assert_non_null(signal);
    return signal;
}

static inline psi_reading look_after(psi_signal *signal, uint64_t us, uint32_t look) {
    psi_reading reading;
    memset(&reading, 0xa5, sizeof(reading));
    now_us += us;
    psi_signal_read(signal, look, &reading);
    assert_int_equal(reading.at_us, now_us);
    return reading;
}

static inline psi_reading read_after(psi_signal *signal, uint64_t us) { return look_after(signal, us, PSI_LOOK_ALL); }

/* The first reading of a signal that is opened for it alone. */
static inline psi_reading read_once(void) {
    psi_signal *signal = open_signal();
    psi_reading reading = read_after(signal, 0);
    psi_signal_close(signal);
    return reading;
}

static inline const psi_source *source(const psi_signal *signal, const char *name) {
    size_t count = 0;
    const psi_source *rows = psi_signal_sources(signal, &count);
    for (size_t i = 0; i < count; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    fail_msg("no source %s", name);
    return NULL;
}

static inline void assert_near(double value, double wanted, double error) {
    if (!(value > wanted - error && value < wanted + error))
        fail_msg("%f is not within %f of %f", value, error, wanted);
}

/* The group of put_v2 with a limit of 4096 MiB and this usage. */
static inline psi_signal *open_group(uint64_t usage) {
    put_machine();
    put_v2();
    put_amount("/cg/a/b/c/memory.max", 4096 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 0, 0);
    put_amount("/cg/a/b/c/memory.current", usage);
    return open_signal();
}

static inline psi_reading use_and_read(psi_signal *signal, uint64_t usage, uint64_t after_us) {
    put_amount("/cg/a/b/c/memory.current", usage);
    return read_after(signal, after_us);
}

static inline double mib_per_s(const psi_reading *reading) {
    assert_true(reading->have & PSI_HAVE_FILL);
    return (double)reading->fill_bytes_per_s / (double)MIB;
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
