/* test_signal.c - readings of fake machines: headroom against every limit, where the group is, stall and faults. */
#include "fake_root.h"

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

/* An allocation that takes the place of page cache changes no usage. */
static void what_may_go_unseen_is_a_groups_page_cache(void **state) {
    (void)state;
    put_machine();
    put_v2();
    assert_int_equal(read_once().unseen_bytes, 0); /* MemAvailable is fresh */
    put_amount("/cg/a/b/c/memory.max", 300 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 30 * MIB, 40 * MIB);
    assert_int_equal(read_once().unseen_bytes, 70 * MIB);
    put_amount("/cg/a/b/memory.max", 400 * MIB); /* a wider one is as good: 200 MiB come first there */
    put_v2_stat("/cg/a/b/memory.stat", 150 * MIB, 0);
    assert_int_equal(read_once().unseen_bytes, 70 * MIB);
    put_amount("/cg/a/b/memory.current", 380 * MIB); /* until it is full */
    psi_reading reading = read_once();
    assert_int_equal(reading.headroom_bytes, 170 * MIB);
    assert_int_equal(reading.unseen_bytes, 150 * MIB);
    put_v2_stat("/cg/a/b/memory.stat", 0, 0); /* with what is no page cache */
    assert_int_equal(read_once().unseen_bytes, 0);
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
    put_amount("/cg/a/b/c/memory.current", 110 * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", 20 * MIB, 0);
    assert_int_equal(read_after(signal, 49 * MS).headroom_bytes, 900 * MIB);
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
    assert_non_null(strstr(source(signal, "psi.system.memory")->detail, "/proc/pressure/memory"));
    assert_false(source(signal, "cgroup-v2")->in_use);
    psi_signal_close(signal);
    put("/cg/cgroup.events", "populated 1\n"); /* the root of a namespace, not of the machine */
    signal = open_signal();
    assert_non_null(strstr(source(signal, "psi.own.memory")->detail, "/cg/memory.pressure"));
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
    assert_false(source(signal, "psi.system.memory")->in_use);
    assert_non_null(strstr(source(signal, "psi.system.memory")->cure, "CONFIG_PSI=y"));
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
    assert_int_equal(read_after(signal, 75 * MS).have & PSI_HAVE_STALL, 0);
    assert_true(read_after(signal, 25 * MS).have & PSI_HAVE_STALL);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(machine_without_groups_reads_mem_available),
        CASE(own_mappings_are_not_available),
        CASE(v2_own_limit_counts),
        CASE(tightest_ancestor_in_the_middle_wins),
        CASE(page_cache_is_free_but_for_own_mappings),
        CASE(what_may_go_unseen_is_a_groups_page_cache),
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
    };
    return cmocka_run_group_tests_name("signal", tests, NULL, NULL);
}
