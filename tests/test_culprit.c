/* test_culprit.c - who grows and who stalls: against trees of plain files, where each number is known, and once against
 * the machine's own groups. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os.h"
#include "signal/culprit.h"

#define MIB 1048576.0
#define SECOND UINT64_C(1000000)
#define V1 "/sys/fs/cgroup/memory"
#define V2 "/sys/fs/cgroup/unified"

static char root[64];
static psi_culprits *culprits;
static psi_culprit culprit;
static uint64_t now_us;

static void put(const char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(const char *text, const char *format, ...) {
    char path[1024];
    int head = snprintf(path, sizeof(path), "%s", root);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path + head, sizeof(path) - (size_t)head, format, arguments);
    va_end(arguments);
    for (char *slash = strchr(path + head + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(descriptor >= 0);
    assert_int_equal(write(descriptor, text, strlen(text)), (ssize_t)strlen(text));
    close(descriptor);
}

static void put_v1(const char *group, double mib) {
    char text[32];
    snprintf(text, sizeof(text), "%.0f\n", mib * MIB);
    put(text, V1 "%s/memory.usage_in_bytes", group);
}

static void put_v2(const char *group, double mib) {
    char text[32];
    snprintf(text, sizeof(text), "%.0f\n", mib * MIB);
    put(text, V2 "%s/memory.current", group);
}

static void put_stall(const char *group, unsigned some_us) {
    char text[256];
    snprintf(text, sizeof(text),
             "some avg10=0.00 avg60=0.00 avg300=0.00 total=%u\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=%u\n",
             some_us, some_us / 2);
    put(text, V2 "%s/memory.pressure", group);
}

static int set_up(void **state) {
    (void)state;
    strcpy(root, "/tmp/psi_culprit.XXXXXX");
    culprits = NULL;
    now_us = 1000 * SECOND;
    if (mkdtemp(root) == NULL)
        return -1;
    put("4:memory:/box/engine\n0::/own.slice/engine.service\n", "/proc/self/cgroup");
    put("36 31 0:33 / " V1 " rw,relatime - cgroup cgroup rw,memory\n41 31 0:38 / " V2 " rw - cgroup2 cgroup2 rw\n",
        "/proc/self/mountinfo");
    put_v1("/box/engine", 1);
    put_stall("/own.slice/engine.service", 0);
    put_stall("/own.slice", 0);
    return 0;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static int tear_down(void **state) {
    (void)state;
    psi_culprits_close(culprits);
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void look_first(void) {
    culprits = psi_culprits_open(root);
    assert_non_null(culprits);
    psi_culprits_set_budget(culprits, 60 * SECOND); /* what is tested here is not how busy this machine is */
    psi_culprits_look(culprits, now_us);
    psi_culprits_name(culprits, &culprit);
    assert_false(culprit.has_grower || culprit.has_staller); /* one look says nothing */
}

static void look_again(uint64_t later_us) {
    now_us += later_us;
    psi_culprits_look(culprits, now_us);
    psi_culprits_name(culprits, &culprit);
}

/* ---- Growers ----------------------------------------------------------------------------------- */

static void the_deepest_group_that_explains_the_growth_is_named(void **state) {
    (void)state;
    put_v2("/system.slice", 1000), put_v2("/system.slice/camera.service", 100), put_v2("/system.slice/ssh.service", 10);
    look_first();
    put_v2("/system.slice", 1105), put_v2("/system.slice/camera.service", 200), put_v2("/system.slice/ssh.service", 15);
    look_again(2 * SECOND);
    assert_true(culprit.has_grower && !culprit.grower_is_own && !culprit.has_staller);
    assert_string_equal(culprit.grower, "/system.slice/camera.service");
    assert_int_equal(culprit.grew_bytes_per_s, 50 * 1048576);
}

static void a_parent_whose_children_each_grew_little_is_named_itself(void **state) {
    (void)state;
    char group[64];
    put_v2("/jobs", 0);
    for (int i = 0; i < 5; i++)
        snprintf(group, sizeof(group), "/jobs/%d", i), put_v2(group, 0);
    look_first();
    put_v2("/jobs", 100);
    for (int i = 0; i < 5; i++)
        snprintf(group, sizeof(group), "/jobs/%d", i), put_v2(group, 20);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/jobs");
    assert_int_equal(culprit.grew_bytes_per_s, 100 * 1048576);
}

static void below_4_mib_a_second_nobody_is_named(void **state) {
    (void)state;
    put_v2("/a", 10), put_v2("/b", 500);
    look_first();
    put_v2("/a", 13.9), put_v2("/b", 400);
    look_again(SECOND);
    assert_false(culprit.has_grower);
    put_v2("/a", 18);
    look_again(SECOND);
    assert_true(culprit.has_grower);
    put_v2("/a", 18.1);
    look_again(SECOND); /* of the last two looks */
    assert_false(culprit.has_grower);
}

static void a_group_that_is_new_has_grown_from_nothing(void **state) {
    (void)state;
    look_first();
    put_v1("/spike", 300), put_stall("/spike", 0);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/spike");
    assert_int_equal(culprit.grew_bytes_per_s, 300 * 1048576);
}

static void the_own_group_and_what_holds_it_are_own(void **state) {
    (void)state;
    put_v1("/box", 10), put_v1("/box/engine", 5), put_v1("/box/eng", 5);
    look_first();
    put_v1("/box", 200), put_v1("/box/engine", 150), put_v1("/box/eng", 6);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/box/engine");
    assert_true(culprit.grower_is_own);
    put_v1("/box", 400), put_v1("/box/engine", 151), put_v1("/box/eng", 7);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/box");
    assert_true(culprit.grower_is_own);
    put_v1("/box", 600), put_v1("/box/eng", 200);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/box/eng"); /* begins like the own group's name */
    assert_false(culprit.grower_is_own);
}

static void the_faster_of_both_trees(void **state) {
    (void)state;
    put_v1("/one", 0), put_v2("/two", 0);
    look_first();
    put_v1("/one", 20), put_v2("/two", 30);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/two");
    put_v1("/one", 60), put_v2("/two", 40);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/one");
}

/* ---- Stallers ---------------------------------------------------------------------------------- */

static void the_group_that_stalls_most_is_named(void **state) {
    (void)state;
    put_stall("/system.slice", 1000), put_stall("/system.slice/db.service", 500);
    look_first();
    put_stall("/system.slice", 301000), put_stall("/system.slice/db.service", 250500);
    put_stall("/own.slice", 200000);
    look_again(SECOND);
    assert_true(culprit.has_staller && !culprit.staller_is_own && !culprit.has_grower);
    assert_string_equal(culprit.staller, "/system.slice/db.service");
    assert_true(culprit.stall_share > 0.2499 && culprit.stall_share < 0.2501);
    put_stall("/own.slice", 900000), put_stall("/own.slice/engine.service", 600000);
    look_again(SECOND);
    assert_string_equal(culprit.staller, "/own.slice/engine.service");
    assert_true(culprit.staller_is_own);
}

static void a_twentieth_of_stall_is_nobodys(void **state) {
    (void)state;
    put_stall("/a", 0);
    look_first();
    put_stall("/a", 50000);
    look_again(SECOND);
    assert_false(culprit.has_staller);
    put_stall("/a", 50000 + 5000000); /* more than the time there was: no share above 1 */
    look_again(SECOND);
    assert_true(culprit.has_staller && culprit.stall_share == 1);
}

/* ---- Looks ------------------------------------------------------------------------------------- */

static void a_look_too_soon_is_no_look(void **state) {
    (void)state;
    put_v2("/a", 0);
    look_first();
    put_v2("/a", 10);
    look_again(99999);
    assert_false(culprit.has_grower);
    look_again(1);
    assert_int_equal(culprit.grew_bytes_per_s, 100 * 1048576);
    now_us -= SECOND; /* a clock that goes back is no answer, and no harm */
    psi_culprits_look(culprits, now_us);
    psi_culprits_name(culprits, &culprit);
    assert_int_equal(culprit.grew_bytes_per_s, 100 * 1048576);
}

static void files_that_are_missing_or_wrong_are_not_zero(void **state) {
    (void)state;
    char path[256];
    put("max\n", V2 "/a/memory.current");
    put_v2("/b", 10), put_v2("/c", 10), put_stall("/c", 0);
    look_first();
    put_v2("/a", 500);
    snprintf(path, sizeof(path), "%s" V2 "/b/memory.current", root);
    assert_int_equal(unlink(path), 0);
    put("some nonsense\n", V2 "/c/memory.pressure");
    look_again(SECOND);
    assert_false(culprit.has_grower || culprit.has_staller);
    put_v2("/b", 500);
    look_again(SECOND);
    assert_false(culprit.has_grower);
}

static void no_cgroups_no_answer(void **state) {
    (void)state;
    put("", "/proc/self/mountinfo");
    put("", "/proc/self/cgroup");
    look_first();
    look_again(SECOND);
    assert_false(culprit.has_grower || culprit.has_staller);
}

static void the_process_moves_to_another_group(void **state) {
    (void)state;
    put_v1("/box/other", 0), put_v1("/box", 0);
    look_first();
    put("4:memory:/box/other\n0::/\n", "/proc/self/cgroup");
    look_again(SECOND); /* the first again */
    put_v1("/box", 100), put_v1("/box/other", 100);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/box/other");
    assert_true(culprit.grower_is_own);
}

static void three_levels_and_128_groups_are_looked_at(void **state) {
    (void)state;
    char group[64];
    for (int i = 0; i < 100; i++) {
        snprintf(group, sizeof(group), "/slice-%d", i), put_v2(group, 0);
        snprintf(group, sizeof(group), "/slice-%d/a", i), put_v2(group, 0);
    }
    put_v1("/1", 0), put_v1("/1/2", 0), put_v1("/1/2/3", 0), put_v1("/1/2/3/4", 0);
    look_first();
    for (int i = 0; i < 100; i++)
        snprintf(group, sizeof(group), "/slice-%d", i), put_v2(group, 20 + i); /* each first level is within bounds */
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/slice-99");
    put_v1("/1", 1000), put_v1("/1/2", 1000), put_v1("/1/2/3", 1000), put_v1("/1/2/3/4", 1000);
    look_again(SECOND);
    assert_string_equal(culprit.grower, "/1/2/3");
    /* Where a look was cut off, a group that it did not see may be as old as the machine. */
    put_v2("/slice-new", 3000);
    look_again(SECOND);
    assert_false(culprit.has_grower);
}

static void a_look_without_time_names_nobody(void **state) {
    (void)state;
    put_v2("/a", 0);
    look_first();
    put_v2("/a", 100);
    psi_culprits_set_budget(culprits, 0);
    psi_os_pause_us(1000);
    look_again(SECOND);
    if (culprit.has_grower) /* unless all was done within one tick of the clock */
        assert_string_equal(culprit.grower, "/a");
    psi_culprits_set_budget(culprits, 60 * SECOND);
    put_v2("/b", 100);
    look_again(SECOND);
    assert_true(!culprit.has_grower || strcmp(culprit.grower, "/b") == 0);
}

static void long_names_are_cut_from_the_left(void **state) {
    (void)state;
    char name[200] = "/system.slice/docker-", longest[256] = "/";
    memset(name + strlen(name), 'd', 100);
    strcat(name, ".scope");
    memset(longest + 1, 'x', 254);
    put_v2(name, 0), put_v2(longest, 0);
    look_first();
    put_v2(name, 50), put_v2(longest, 40);
    look_again(SECOND);
    assert_int_equal(strlen(culprit.grower), PSI_CULPRIT_NAME_BYTES - 1);
    assert_memory_equal(culprit.grower, "...ddd", 6);
    assert_string_equal(culprit.grower + strlen(culprit.grower) - 7, "d.scope");
}

/* ---- The machine itself ------------------------------------------------------------------------ */

static void a_look_at_this_machine_is_short(void **state) {
    (void)state;
    culprits = psi_culprits_open(NULL);
    assert_non_null(culprits);
    uint64_t longest_us = 0;
    for (unsigned i = 0; i < 20; i++) {
        uint64_t begin_us = psi_os_now_us();
        psi_culprits_look(culprits, now_us += SECOND);
        uint64_t took_us = psi_os_now_us() - begin_us;
        longest_us = took_us > longest_us ? took_us : longest_us;
        psi_culprits_name(culprits, &culprit);
    }
    print_message("longest of 20 looks: %u us\n", (unsigned)longest_us);
    assert_true(longest_us < SECOND); /* 10 ms is the bound; a busy machine may put us aside meanwhile */
}

static char real_group[128];

static int tear_down_real(void **state) {
    for (int i = 0; i < 100 && real_group[0] != '\0' && rmdir(real_group) != 0 && errno == EBUSY; i++)
        psi_os_pause_us(10000);
    return tear_down(state);
}

/* 32 MiB in a group that may take 64. */
static void grow_in_group(int begin, int done) {
    char path[160], pid[16], byte;
    snprintf(path, sizeof(path), "%s/cgroup.procs", real_group);
    int length = snprintf(pid, sizeof(pid), "%d", (int)getpid());
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0 || write(descriptor, pid, (size_t)length) != length || read(begin, &byte, 1) != 1)
        _exit(1);
    char *bytes = mmap(NULL, 32u << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (bytes == MAP_FAILED || write(done, "x", 1) != 1)
        _exit(1);
    (void)!read(begin, &byte, 1); /* until it is closed */
    _exit(0);
}

static void a_real_group_that_grows_is_named(void **state) {
    (void)state;
    char limit[160], byte;
    int begin[2], done[2], status = 0;
    snprintf(real_group, sizeof(real_group), V1 "/psi-test-culprit-%d", (int)getpid());
    if (mkdir(real_group, 0755) != 0) {
        real_group[0] = '\0';
        print_message("skipped: no group can be made in " V1 " (%s)\n", strerror(errno));
        skip();
    }
    snprintf(limit, sizeof(limit), "%s/memory.limit_in_bytes", real_group);
    int descriptor = open(limit, O_WRONLY | O_CLOEXEC);
    bool limited = descriptor >= 0 && write(descriptor, "67108864", 8) == 8;
    close(descriptor);
    culprits = psi_culprits_open("");
    assert_true(culprits != NULL && limited && pipe(begin) == 0 && pipe(done) == 0);
    psi_culprits_set_budget(culprits, 60 * SECOND);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(20);
        close(begin[1]);
        grow_in_group(begin[0], done[1]);
    }
    psi_culprits_look(culprits, psi_os_now_us());
    psi_os_pause_us(150000);
    bool grew = write(begin[1], "x", 1) == 1 && read(done[0], &byte, 1) == 1;
    psi_culprits_look(culprits, psi_os_now_us());
    psi_culprits_name(culprits, &culprit);
    close(begin[1]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    close(begin[0]), close(done[0]), close(done[1]);
    assert_true(grew);
    print_message("%s grew by %lld bytes/s\n", culprit.grower, (long long)culprit.grew_bytes_per_s);
    assert_true(culprit.has_grower);
    bool is_ours = strstr(culprit.grower, "/psi-test-culprit-") != NULL;
    /* The child's 32 MiB in the 150 ms and more between the looks: who is named instead must have grown like that. */
    if (!is_ours && culprit.grew_bytes_per_s > 64000000) {
        print_message("skipped: another group of this machine grew faster\n");
        skip();
    }
    assert_true(is_ours && !culprit.grower_is_own);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_deepest_group_that_explains_the_growth_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_parent_whose_children_each_grew_little_is_named_itself, set_up, tear_down),
        cmocka_unit_test_setup_teardown(below_4_mib_a_second_nobody_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_group_that_is_new_has_grown_from_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_own_group_and_what_holds_it_are_own, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_faster_of_both_trees, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_group_that_stalls_most_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_twentieth_of_stall_is_nobodys, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_look_too_soon_is_no_look, set_up, tear_down),
        cmocka_unit_test_setup_teardown(files_that_are_missing_or_wrong_are_not_zero, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_cgroups_no_answer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_process_moves_to_another_group, set_up, tear_down),
        cmocka_unit_test_setup_teardown(three_levels_and_128_groups_are_looked_at, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_look_without_time_names_nobody, set_up, tear_down),
        cmocka_unit_test_setup_teardown(long_names_are_cut_from_the_left, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_look_at_this_machine_is_short, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_real_group_that_grows_is_named, set_up, tear_down_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
