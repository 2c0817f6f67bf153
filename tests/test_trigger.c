/* test_trigger.c - what wakes the watcher: systemd's protocol and false events against fake files, a FIFO and a socket;
 * and the kernel's own rules on the kernel that runs the test, in groups that the test makes and removes. */
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
#include <mntent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os.h"
#include "signal/trigger.h"

#define MS UINT64_C(1000)
#define SECOND UINT64_C(1000000)
#define MIB ((size_t)1 << 20)

enum { OWN, SYSTEM, SYSTEMD };

static char root[64];
static psi_trigger *trigger;
static psi_os_bell bell;

static const char *below(const char *tail) {
    static char path[256];
    snprintf(path, sizeof(path), "%s%s", root, tail);
    return path;
}

static void put(const char *tail, const char *text) {
    char path[256];
    snprintf(path, sizeof(path), "%s", below(tail));
    for (char *slash = strchr(path + strlen(root) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(descriptor >= 0);
    assert_int_equal(write(descriptor, text, strlen(text)), (ssize_t)strlen(text));
    close(descriptor);
}

static void put_totals(const char *tail, unsigned some_us, unsigned full_us) {
    char text[256];
    snprintf(text, sizeof(text),
             "some avg10=0.36 avg60=0.00 avg300=0.00 total=%u\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=%u\n",
             some_us, full_us);
    put(tail, text);
}

#define OWN_FILE "/group/memory.pressure"
#define SYSTEM_FILE "/proc/pressure/memory"

static int set_up(void **state) {
    (void)state;
    strcpy(root, "/tmp/psi_trigger.XXXXXX");
    trigger = NULL;
    unsetenv("MEMORY_PRESSURE_WATCH");
    unsetenv("MEMORY_PRESSURE_WRITE");
    if (mkdtemp(root) == NULL)
        return -1;
    put_totals(OWN_FILE, 5000000, 1000000);
    put_totals(SYSTEM_FILE, 7000000, 2000000);
    return psi_os_bell_open(&bell);
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static int tear_down(void **state) {
    (void)state;
    psi_trigger_close(trigger);
    psi_os_bell_close(&bell);
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void open_fake(const char *watch, const char *write_base64) {
    if (watch != NULL)
        setenv("MEMORY_PRESSURE_WATCH", watch, 1);
    if (write_base64 != NULL)
        setenv("MEMORY_PRESSURE_WRITE", write_base64, 1);
    char group[256];
    snprintf(group, sizeof(group), "%s", below("/group"));
    trigger = psi_trigger_open(root, group);
    assert_non_null(trigger);
}

static const psi_source *row(size_t i) {
    size_t count = 0;
    const psi_source *rows = psi_trigger_sources(trigger, &count);
    assert_int_equal(count, PSI_TRIGGERS);
    return &rows[i];
}

static void assert_missing(size_t i, const char *why) {
    assert_false(row(i)->in_use);
    if (strstr(row(i)->detail, why) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", why, row(i)->detail);
}

/* Sleeps at what is armed; the genuine events. */
static size_t wait_and_take(uint64_t timeout_us, size_t *happened) {
    psi_os_watch watches[PSI_TRIGGERS];
    size_t count = psi_trigger_watches(trigger, watches);
    *happened = psi_os_wait(&bell, watches, count, timeout_us);
    return psi_trigger_take(trigger, watches, count);
}

/* As if the kernel had said so of the one source. */
static size_t take_as_if(size_t which, bool ready, bool gone) {
    psi_os_watch watches[PSI_TRIGGERS];
    size_t count = psi_trigger_watches(trigger, watches);
    assert_true(which < count);
    watches[which].ready = ready;
    watches[which].gone = gone;
    return psi_trigger_take(trigger, watches, count);
}

/* ---- The kernel's files, as plain files -------------------------------------------------------- */

static void both_files_are_armed_with_our_thresholds(void **state) {
    (void)state;
    char text[512];
    psi_os_watch watches[PSI_TRIGGERS];
    open_fake(NULL, NULL);
    assert_true(row(OWN)->in_use && row(SYSTEM)->in_use);
    assert_string_equal(row(OWN)->name, "trigger.own");
    assert_string_equal(row(SYSTEM)->detail, below(SYSTEM_FILE));
    assert_missing(SYSTEMD, "is not set");
    assert_string_equal(row(SYSTEMD)->cure, "");
    assert_int_equal(psi_trigger_watches(trigger, watches), 0); /* nothing is armed by opening */
    assert_int_equal(psi_trigger_arm(trigger), 2);
    assert_int_equal(psi_trigger_arm(trigger), 2); /* and not twice */
    assert_int_equal(psi_trigger_watches(trigger, watches), 2);
    assert_true(watches[0].urgent && watches[1].urgent);
    ssize_t length = psi_os_read_small(below(OWN_FILE), text, sizeof(text));
    const char expected[] = "some 70000 1000000";
    assert_true(length > (ssize_t)sizeof(expected));
    assert_memory_equal(text + length - sizeof(expected), expected, sizeof(expected)); /* with its NUL */
    psi_trigger_disarm(trigger);
    assert_int_equal(psi_trigger_watches(trigger, watches), 0);
    assert_true(row(OWN)->in_use); /* can still be armed */
    assert_int_equal(psi_trigger_changes(trigger), 0);
}

static void an_event_counts_when_the_stall_grew_by_what_was_asked(void **state) {
    (void)state;
    open_fake(NULL, NULL);
    assert_int_equal(psi_trigger_arm(trigger), 2);
    assert_int_equal(take_as_if(0, true, false), 0); /* the false first event */
    put_totals(OWN_FILE, 5034999, 1000000);
    assert_int_equal(take_as_if(0, true, false), 0); /* it comes with a little stall, always */
    put_totals(OWN_FILE, 5035000, 1000000);
    assert_int_equal(take_as_if(0, true, false), 1);
    assert_int_equal(take_as_if(0, true, false), 0);
    assert_int_equal(take_as_if(1, true, false), 0); /* the system's total did not move */
    put_totals(SYSTEM_FILE, 7070000, 2000000);
    assert_int_equal(take_as_if(1, true, false), 1);
    assert_int_equal(psi_trigger_events(trigger), 2);
    put_totals(SYSTEM_FILE, 1, 1); /* a counter that goes back is none */
    assert_int_equal(take_as_if(1, true, false), 0);
    put(SYSTEM_FILE, "nonsense");
    assert_int_equal(take_as_if(1, true, false), 1); /* cannot be refuted */
    put_totals(OWN_FILE, 6000000, 1000000);
    psi_trigger_disarm(trigger);
    assert_int_equal(psi_trigger_arm(trigger), 1);
    assert_int_equal(take_as_if(0, true, false), 0); /* what came before arming is not news */
}

static void a_group_that_is_gone_is_closed_and_said(void **state) {
    (void)state;
    psi_os_watch watches[PSI_TRIGGERS];
    open_fake(NULL, NULL);
    assert_int_equal(psi_trigger_arm(trigger), 2);
    put_totals(OWN_FILE, 9000000, 1000000);
    assert_int_equal(take_as_if(0, true, true), 0); /* the kernel says POLLPRI and POLLERR */
    assert_missing(OWN, "gone");
    assert_int_equal(psi_trigger_changes(trigger), 1u << OWN);
    assert_int_equal(psi_trigger_changes(trigger), 0);
    assert_int_equal(psi_trigger_watches(trigger, watches), 1);
    assert_int_equal(psi_trigger_arm(trigger), 1);
}

static void what_is_missing_has_a_cause_and_a_cure(void **state) {
    (void)state;
    assert_int_equal(unlink(below(SYSTEM_FILE)), 0);
    trigger = psi_trigger_open(root, NULL);
    assert_missing(OWN, "no cgroup v2 group");
    assert_missing(SYSTEM, "no such file");
    assert_non_null(strstr(row(SYSTEM)->cure, "psi=1"));
    assert_int_equal(psi_trigger_arm(trigger), 0);
    put_totals(SYSTEM_FILE, 1, 1);
    assert_int_equal(psi_trigger_arm(trigger), 0); /* not again within a minute */
    psi_trigger_close(trigger);
    put(OWN_FILE, "not a pressure file\n");
    open_fake(NULL, NULL);
    assert_missing(OWN, "no pressure file");
    assert_int_equal(psi_trigger_arm(trigger), 1);
    psi_trigger_close(trigger);
    char long_path[2000];
    memset(long_path, 'x', sizeof(long_path) - 1);
    long_path[0] = '/';
    long_path[sizeof(long_path) - 1] = '\0';
    trigger = psi_trigger_open(root, long_path);
    assert_missing(OWN, "too long");
    psi_trigger_close(trigger);
    trigger = psi_trigger_open(long_path, long_path);
    assert_missing(SYSTEM, "too long");
    assert_int_equal(psi_trigger_arm(trigger), 0);
}

/* ---- systemd's protocol ------------------------------------------------------------------------ */

/* "some 200000 2000000" and a NUL: what systemd sends by default. */
#define SYSTEMDS_WRITE "c29tZSAyMDAwMDAgMjAwMDAwMAA="

static void a_fifo_wakes_and_is_emptied(void **state) {
    (void)state;
    size_t happened;
    assert_int_equal(mkfifo(below("/notify"), 0600), 0);
    open_fake("/notify", SYSTEMDS_WRITE);
    assert_true(row(SYSTEMD)->in_use);
    assert_int_equal(psi_trigger_arm(trigger), 3);
    assert_int_equal(wait_and_take(SECOND, &happened), 0); /* our own write, read again */
    assert_int_equal(happened, 1);
    assert_int_equal(wait_and_take(10 * MS, &happened), 0);
    assert_int_equal(happened, 0);
    int manager = open(below("/notify"), O_WRONLY | O_NONBLOCK);
    assert_true(manager >= 0);
    assert_int_equal(write(manager, "x", 1), 1);
    assert_int_equal(wait_and_take(SECOND, &happened), 1);
    assert_int_equal(wait_and_take(10 * MS, &happened), 0);
    assert_int_equal(happened, 0);
    close(manager); /* another may come: not gone */
    assert_int_equal(wait_and_take(10 * MS, &happened), 0);
    assert_int_equal(happened, 0);
    psi_trigger_disarm(trigger); /* the kernel's only */
    manager = open(below("/notify"), O_WRONLY | O_NONBLOCK);
    assert_int_equal(write(manager, "xyz", 3), 3);
    assert_int_equal(wait_and_take(SECOND, &happened), 1);
    close(manager);
    assert_int_equal(psi_trigger_events(trigger), 2);
}

static void a_fifo_without_anything_to_write(void **state) {
    (void)state;
    size_t happened;
    assert_int_equal(mkfifo(below("/notify"), 0600), 0);
    open_fake("/notify", NULL);
    assert_int_equal(psi_trigger_arm(trigger), 3);
    int manager = open(below("/notify"), O_WRONLY | O_NONBLOCK);
    assert_int_equal(write(manager, "x", 1), 1);
    assert_int_equal(wait_and_take(SECOND, &happened), 1);
    close(manager);
}

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    assert_true(strlen(path) < sizeof(address.sun_path));
    memcpy(address.sun_path, path, strlen(path) + 1);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(listener >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 4), 0);
    return listener;
}

static void a_socket_is_asked_and_wakes_until_it_closes(void **state) {
    (void)state;
    char asked[64];
    size_t happened;
    int listener = listen_at(below("/notify"));
    open_fake("/notify", SYSTEMDS_WRITE);
    assert_int_equal(psi_trigger_arm(trigger), 3);
    int manager = accept(listener, NULL, NULL);
    assert_int_equal(read(manager, asked, sizeof(asked)), sizeof("some 200000 2000000"));
    assert_string_equal(asked, "some 200000 2000000");
    assert_int_equal(write(manager, "x", 1), 1); /* fewer bytes than were sent: no echo on a socket */
    assert_int_equal(wait_and_take(SECOND, &happened), 1);
    assert_int_equal(write(manager, "last words", 10), 10);
    close(manager);
    assert_int_equal(wait_and_take(SECOND, &happened), 1);
    assert_missing(SYSTEMD, "gone");
    assert_int_equal(psi_trigger_changes(trigger), 1u << SYSTEMD);
    assert_int_equal(wait_and_take(10 * MS, &happened), 0);
    assert_int_equal(happened, 0); /* a closed socket does not keep awake */
    assert_int_equal(psi_trigger_arm(trigger), 2);
    close(listener);
}

static void a_manager_that_only_stops_sending_is_gone_too(void **state) {
    (void)state;
    size_t happened;
    int listener = listen_at(below("/notify"));
    open_fake("/notify", NULL);
    assert_int_equal(psi_trigger_arm(trigger), 3);
    int manager = accept(listener, NULL, NULL);
    assert_int_equal(shutdown(manager, SHUT_WR), 0);
    assert_int_equal(wait_and_take(SECOND, &happened), 0);
    assert_missing(SYSTEMD, "gone");
    close(manager), close(listener);
}

static void nobody_at_the_socket(void **state) {
    (void)state;
    close(listen_at(below("/notify")));
    open_fake("/notify", NULL);
    assert_int_equal(psi_trigger_arm(trigger), 2);
    assert_missing(SYSTEMD, "nobody listens");
    assert_int_equal(psi_trigger_changes(trigger), 1u << SYSTEMD);
}

static void a_pressure_file_gets_systemds_thresholds(void **state) {
    (void)state;
    char text[512];
    put_totals("/other/memory.pressure", 100, 50);
    open_fake("/other/memory.pressure", "ZnVsbCAyMDAwMDAgMjAwMDAwMAA="); /* "full 200000 2000000" */
    assert_int_equal(psi_trigger_arm(trigger), 3);
    ssize_t length = psi_os_read_small(below("/other/memory.pressure"), text, sizeof(text));
    assert_memory_equal(text + length - 20, "full 200000 2000000", 20);
    put_totals("/other/memory.pressure", 900000, 50);
    assert_int_equal(take_as_if(2, true, false), 0); /* "full" is what was asked for */
    put_totals("/other/memory.pressure", 900000, 100050);
    assert_int_equal(take_as_if(2, true, false), 1);
}

static void on_the_same_file_systemds_thresholds_win(void **state) {
    (void)state;
    char text[512];
    open_fake(OWN_FILE, SYSTEMDS_WRITE);
    assert_missing(OWN, "the service manager's trigger");
    assert_true(row(SYSTEMD)->in_use && row(SYSTEM)->in_use);
    assert_int_equal(psi_trigger_arm(trigger), 2);
    ssize_t length = psi_os_read_small(below(OWN_FILE), text, sizeof(text));
    assert_memory_equal(text + length - 20, "some 200000 2000000", 20);
    assert_null(strstr(text, "70000 1000000"));
    assert_int_equal(psi_trigger_changes(trigger), 0);
    assert_int_equal(take_as_if(1, false, true), 0); /* systemd's is gone: ours takes its place */
    assert_int_equal(psi_trigger_arm(trigger), 2);
    assert_true(row(OWN)->in_use);
    assert_int_equal(psi_trigger_changes(trigger), (1u << OWN) | (1u << SYSTEMD));
}

static void what_the_environment_says_wrong(void **state) {
    (void)state;
    static const struct {
        const char *watch, *write, *why;
    } cases[] = {
        {"/dev/null", NULL, "off by the service manager"},
        {"", NULL, "not an absolute path"},
        {"group/memory.pressure", NULL, "not an absolute path"},
        {"/nothing", NULL, "not there"},
        {"/group", NULL, "neither a file"},
        {OWN_FILE, "c29tZSAyMDAwMDAgMjAwMDAwMAA", "not base64"},
        {OWN_FILE, "c29t ZSAyMDAwMDAgMjAwMDAwMAA", "not base64"},
        {OWN_FILE, "====", "not base64"},
        {OWN_FILE, "=", "not base64"},
        {OWN_FILE, "AA=A", "not base64"},
        {OWN_FILE, "c29t\xc3\xa4\xc3\xa4", "not base64"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsetenv("MEMORY_PRESSURE_WRITE");
        open_fake(cases[i].watch, cases[i].write);
        assert_missing(SYSTEMD, cases[i].why);
        assert_true(row(SYSTEMD)->cure[0] != '\0');
        assert_true(row(OWN)->in_use);
        assert_int_equal(psi_trigger_arm(trigger), 2);
        assert_missing(SYSTEMD, cases[i].why);
        psi_trigger_close(trigger);
    }
    char much[1024 + 1];
    memset(much, 'A', 1024);
    much[1024] = '\0';
    open_fake(OWN_FILE, much);
    assert_missing(SYSTEMD, "too long");
    psi_trigger_close(trigger);
    much[340] = '\0'; /* 255 bytes, the most */
    open_fake("/group/memory.pressure", much);
    assert_true(row(SYSTEMD)->in_use);
}

static void a_fifo_that_comes_later_does_not_hang(void **state) {
    (void)state;
    open_fake(OWN_FILE, NULL);
    assert_int_equal(unlink(below(OWN_FILE)), 0);
    assert_int_equal(mkfifo(below(OWN_FILE), 0600), 0);
    unlink(below(SYSTEM_FILE));
    assert_int_equal(psi_trigger_arm(trigger), 1);
}

/* ---- The kernel itself ------------------------------------------------------------------------- */

static char v2_mount[128], v1_mount[128];
static char v2_group[256], v1_group[256];
static pid_t thrasher;

static void find_mounts(void) {
    v1_mount[0] = v2_mount[0] = '\0';
    FILE *mounts = setmntent("/proc/self/mounts", "r");
    for (struct mntent *entry; mounts != NULL && (entry = getmntent(mounts)) != NULL;) {
        if (strcmp(entry->mnt_type, "cgroup2") == 0)
            snprintf(v2_mount, sizeof(v2_mount), "%s", entry->mnt_dir);
        if (strcmp(entry->mnt_type, "cgroup") == 0 && hasmntopt(entry, "memory") != NULL)
            snprintf(v1_mount, sizeof(v1_mount), "%s", entry->mnt_dir);
    }
    if (mounts != NULL)
        endmntent(mounts);
}

static bool write_text(const char *dir, const char *file, const char *text) {
    char path[300];
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    bool good = descriptor >= 0 && write(descriptor, text, strlen(text)) == (ssize_t)strlen(text);
    if (descriptor >= 0)
        close(descriptor);
    return good;
}

static int set_up_kernel(void **state) {
    (void)state;
    trigger = NULL;
    thrasher = 0;
    v1_group[0] = v2_group[0] = '\0';
    strcpy(root, "/tmp/psi_trigger.XXXXXX");
    unsetenv("MEMORY_PRESSURE_WATCH");
    unsetenv("MEMORY_PRESSURE_WRITE");
    find_mounts();
    return mkdtemp(root) == NULL ? -1 : psi_os_bell_open(&bell);
}

static void stop_thrasher(void) {
    if (thrasher > 0) {
        kill(thrasher, SIGKILL);
        while (waitpid(thrasher, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    thrasher = 0;
}

/* A group stays busy for an instant after its last process. */
static void remove_group(char *group) {
    for (int i = 0; i < 100 && group[0] != '\0' && rmdir(group) != 0 && errno == EBUSY; i++)
        psi_os_pause_us(10 * MS);
    group[0] = '\0';
}

static int tear_down_kernel(void **state) {
    stop_thrasher();
    int failed = tear_down(state);
    remove_group(v2_group);
    remove_group(v1_group);
    return failed;
}

#define SKIP(...)                                                                                                      \
    do {                                                                                                               \
        print_message("skipped: " __VA_ARGS__);                                                                        \
        print_message("\n");                                                                                           \
        skip();                                                                                                        \
    } while (0)

static void need_group(void) {
    if (v2_mount[0] == '\0')
        SKIP("no cgroup v2 mount");
    snprintf(v2_group, sizeof(v2_group), "%s/psi-test-trigger-%d", v2_mount, (int)getpid());
    if (mkdir(v2_group, 0755) != 0) {
        v2_group[0] = '\0';
        SKIP("no group can be made in %s (%s)", v2_mount, strerror(errno));
    }
}

static void need_limit(size_t bytes) {
    char text[32];
    snprintf(text, sizeof(text), "%zu", bytes);
    if (write_text(v2_group, "memory.max", text))
        return;
    if (v1_mount[0] == '\0')
        SKIP("no memory controller, neither v1 nor v2");
    snprintf(v1_group, sizeof(v1_group), "%s/psi-test-trigger-%d", v1_mount, (int)getpid());
    if (mkdir(v1_group, 0755) != 0) {
        v1_group[0] = '\0';
        SKIP("no group can be made in %s (%s)", v1_mount, strerror(errno));
    }
    if (!write_text(v1_group, "memory.limit_in_bytes", text))
        SKIP("no limit can be set in %s", v1_group);
}

static void need_armed(const char *group, size_t least) {
    trigger = psi_trigger_open("", group);
    assert_non_null(trigger);
    if (psi_trigger_arm(trigger) < least) {
        size_t i = group != NULL ? OWN : SYSTEM;
        SKIP("no trigger here: %s", row(i)->detail);
    }
}

static uint64_t some_total_us(const char *path) {
    char text[512];
    assert_true(psi_os_read_small(path, text, sizeof(text)) > 0);
    const char *total = strstr(text, "total=");
    assert_non_null(total);
    return strtoull(total + 6, NULL, 10);
}

static void an_idle_machine_wakes_nobody(void **state) {
    (void)state;
    need_armed(NULL, 1);
    size_t happened, genuine = 0;
    uint64_t before_us = some_total_us("/proc/pressure/memory");
    for (uint64_t until_us = psi_os_now_us() + 2500 * MS; psi_os_now_us() < until_us;)
        genuine += wait_and_take(500 * MS, &happened);
    uint64_t grew_us = some_total_us("/proc/pressure/memory") - before_us;
    if (grew_us >= 35 * MS)
        SKIP("this machine stalls (%u ms)", (unsigned)(grew_us / MS));
    assert_int_equal(genuine, 0);
}

static void the_kernel_takes_or_refuses_systemds_thresholds(void **state) {
    (void)state;
    setenv("MEMORY_PRESSURE_WATCH", "/proc/pressure/memory", 1);
    setenv("MEMORY_PRESSURE_WRITE", SYSTEMDS_WRITE, 1);
    need_armed(NULL, 1);
    assert_true(row(SYSTEMD)->in_use);
    assert_missing(SYSTEM, "the service manager's trigger");
    psi_trigger_close(trigger);
    setenv("MEMORY_PRESSURE_WRITE", "c29tZSAzIDI=", 1); /* "some 3 2": more stall than time */
    trigger = psi_trigger_open("", NULL);
    assert_int_equal(psi_trigger_arm(trigger), 1); /* ours instead */
    assert_missing(SYSTEMD, "refuses the thresholds");
    assert_true(row(SYSTEM)->in_use);
    assert_int_equal(psi_trigger_changes(trigger), (1u << SYSTEM) | (1u << SYSTEMD));
}

static void a_removed_group_is_gone_at_once(void **state) {
    (void)state;
    size_t happened;
    need_group();
    need_armed(v2_group, 1);
    assert_true(row(OWN)->in_use);
    uint64_t begin_us = psi_os_now_us();
    remove_group(v2_group);
    assert_int_equal(wait_and_take(10 * SECOND, &happened), 0);
    assert_true(happened >= 1 && psi_os_now_us() - begin_us < 5 * SECOND);
    assert_missing(OWN, "gone");
    assert_int_equal(psi_trigger_changes(trigger), 1u << OWN);
    (void)wait_and_take(10 * MS, &happened);
    assert_missing(OWN, "gone");
}

#define FILE_BYTES (72 * MIB)
static int file_descriptor;
static uint64_t thrash_until_us;

static void *read_again_and_again(void *unused) {
    static _Thread_local char bytes[65536];
    while (psi_os_now_us() < thrash_until_us)
        for (size_t at = 0; at < FILE_BYTES && psi_os_now_us() < thrash_until_us; at += sizeof(bytes))
            (void)!pread(file_descriptor, bytes, sizeof(bytes), (off_t)at);
    return unused;
}

/* Reads a file that does not quite fit into the group again and again: the page wanted next is the one that was just
 * dropped. Bounded in memory by the group (page cache only, so nobody is killed), in time by the alarm. */
static void thrash(unsigned run_ms) {
    static char bytes[65536];
    char path[128], pid[16];
    pthread_t threads[2];
    alarm(10);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    snprintf(path, sizeof(path), "%s/file", root);
    if (!write_text(v2_group, "cgroup.procs", pid) ||
        (v1_group[0] != '\0' && !write_text(v1_group, "cgroup.procs", pid)))
        _exit(1);
    file_descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    for (size_t at = 0; at < FILE_BYTES; at += sizeof(bytes))
        if (pwrite(file_descriptor, bytes, sizeof(bytes), (off_t)at) < 0)
            _exit(1);
    fsync(file_descriptor);
    thrash_until_us = psi_os_now_us() + run_ms * MS;
    for (int i = 0; i < 2; i++)
        if (pthread_create(&threads[i], NULL, read_again_and_again, NULL) != 0)
            _exit(1);
    (void)read_again_and_again(NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    _exit(0);
}

static void start_thrasher(unsigned run_ms) {
    fflush(NULL);
    thrasher = fork();
    assert_true(thrasher >= 0);
    if (thrasher == 0)
        thrash(run_ms);
}

/* At the own group's trigger alone, however the machine does. */
static size_t wait_for_own(uint64_t timeout_us, size_t *happened) {
    psi_os_watch watches[PSI_TRIGGERS];
    assert_true(row(OWN)->in_use && psi_trigger_watches(trigger, watches) >= 1);
    *happened = psi_os_wait(&bell, watches, 1, timeout_us);
    return psi_trigger_take(trigger, watches, 1);
}

static void a_thrashing_group_wakes_us(void **state) {
    (void)state;
    char pressure[300];
    size_t happened, genuine = 0, waked = 0;
    need_group();
    need_limit(64 * MIB);
    need_armed(v2_group, 1);
    snprintf(pressure, sizeof(pressure), "%s/memory.pressure", v2_group);
    uint64_t begin_us = psi_os_now_us();
    start_thrasher(3000);
    while (genuine == 0 && psi_os_now_us() - begin_us < 8 * SECOND) {
        genuine += wait_for_own(500 * MS, &happened);
        waked += happened;
    }
    uint64_t took_us = psi_os_now_us() - begin_us;
    stop_thrasher();
    uint64_t stalled_us = some_total_us(pressure);
    print_message("woken after %u ms, %u wake-ups, %u genuine; the group stalled for %u ms\n", (unsigned)(took_us / MS),
                  (unsigned)waked, (unsigned)genuine, (unsigned)(stalled_us / MS));
    if (genuine == 0 && stalled_us < 200 * MS)
        SKIP("this disk is too fast for the group to stall");
    assert_true(genuine >= 1);
    assert_int_equal(psi_trigger_events(trigger), genuine);

    /* Armed again, the kernel begins with a false event as soon as there is any stall; it must not count. */
    psi_trigger_disarm(trigger);
    uint64_t armed_us = some_total_us(pressure);
    assert_true(psi_trigger_arm(trigger) >= 1);
    start_thrasher(1);
    size_t false_ones = 0, counted = 0;
    for (begin_us = psi_os_now_us(); psi_os_now_us() - begin_us < 3 * SECOND;) {
        counted += wait_for_own(500 * MS, &happened);
        false_ones += happened;
    }
    stop_thrasher();
    uint64_t grew_us = some_total_us(pressure) - armed_us;
    print_message("armed again: %u ms of stall, %u wake-ups, %u counted\n", (unsigned)(grew_us / MS),
                  (unsigned)false_ones, (unsigned)counted);
    assert_true(grew_us >= 35 * MS || counted == 0);
}

/* A child for what would spoil this process; its exit status. */
enum { GOOD = 0, BAD = 1, NOT_HERE = 77 };

static int in_child(int (*body)(void)) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(body());
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int says(size_t i, const char *why) {
    bool good = !row(i)->in_use && strstr(row(i)->detail, why) != NULL && row(i)->cure[0] != '\0';
    if (!good)
        print_message("%s: %s (%s)\n", row(i)->name, row(i)->detail, row(i)->cure);
    return good ? GOOD : BAD;
}

/* As a container sees it. */
static int with_read_only_groups(void) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(v2_mount, v2_mount, NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, v2_mount, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) != 0)
        return NOT_HERE;
    trigger = psi_trigger_open("", v2_group);
    return trigger == NULL ? BAD : says(OWN, "read-only");
}

static void a_read_only_mount_is_said(void **state) {
    (void)state;
    need_group();
    int result = in_child(with_read_only_groups);
    if (result == NOT_HERE)
        SKIP("no mount namespace here");
    assert_int_equal(result, GOOD);
}

static int as_nobody(void) {
    if (setgid(65534) != 0 || setuid(65534) != 0)
        return NOT_HERE;
    trigger = psi_trigger_open("", v2_group);
    return trigger == NULL ? BAD : says(OWN, "may not write");
}

static void a_group_of_another_user_is_said(void **state) {
    (void)state;
    need_group();
    int result = in_child(as_nobody);
    if (result == NOT_HERE)
        SKIP("cannot become another user");
    assert_int_equal(result, GOOD);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(both_files_are_armed_with_our_thresholds, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_event_counts_when_the_stall_grew_by_what_was_asked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_group_that_is_gone_is_closed_and_said, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_missing_has_a_cause_and_a_cure, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_fifo_wakes_and_is_emptied, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_fifo_without_anything_to_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_socket_is_asked_and_wakes_until_it_closes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_manager_that_only_stops_sending_is_gone_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nobody_at_the_socket, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_pressure_file_gets_systemds_thresholds, set_up, tear_down),
        cmocka_unit_test_setup_teardown(on_the_same_file_systemds_thresholds_win, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_the_environment_says_wrong, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_fifo_that_comes_later_does_not_hang, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_idle_machine_wakes_nobody, set_up_kernel, tear_down_kernel),
        cmocka_unit_test_setup_teardown(the_kernel_takes_or_refuses_systemds_thresholds, set_up_kernel,
                                        tear_down_kernel),
        cmocka_unit_test_setup_teardown(a_removed_group_is_gone_at_once, set_up_kernel, tear_down_kernel),
        cmocka_unit_test_setup_teardown(a_thrashing_group_wakes_us, set_up_kernel, tear_down_kernel),
        cmocka_unit_test_setup_teardown(a_read_only_mount_is_said, set_up_kernel, tear_down_kernel),
        cmocka_unit_test_setup_teardown(a_group_of_another_user_is_said, set_up_kernel, tear_down_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
