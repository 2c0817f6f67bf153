/* test_os.c - the seam's bell, waiting, triggers and directories on the real system: what ends a sleep, what does not,
 * and what is left when the system refuses. */
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
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/os.h"

#define MS UINT64_C(1000)
#define LONG (20000 * MS) /* never waited for */

static char directory[64];

static int set_up(void **state) {
    (void)state;
    strcpy(directory, "/tmp/psi_os.XXXXXX");
    return mkdtemp(directory) == NULL;
}

static int tear_down(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command);
}

static const char *path_of(const char *name) {
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

/* ---- The bell --------------------------------------------------------------------------------- */

static uint64_t waited_us(psi_os_bell *bell, uint64_t timeout_us) {
    uint64_t begin_us = psi_os_now_us();
    assert_int_equal(psi_os_wait(bell, NULL, 0, timeout_us), 0);
    return psi_os_now_us() - begin_us;
}

static void check_bell(psi_os_bell *bell) {
    assert_true(waited_us(bell, 20 * MS) >= 20 * MS);
    psi_os_bell_ring(bell);
    psi_os_bell_ring(bell);
    assert_true(waited_us(bell, LONG) < LONG / 2); /* rung before the sleep */
    assert_true(waited_us(bell, 20 * MS) >= 20 * MS);
    assert_true(waited_us(bell, 0) < LONG / 2);
}

static void a_bell_ends_a_sleep_once(void **state) {
    (void)state;
    psi_os_bell bell;
    assert_int_equal(psi_os_bell_open(&bell), 0);
    assert_true((fcntl(bell.descriptor[0], F_GETFD) & FD_CLOEXEC) != 0);
    assert_true((fcntl(bell.descriptor[1], F_GETFD) & FD_CLOEXEC) != 0);
    check_bell(&bell);
    psi_os_bell_close(&bell);
    assert_int_equal(bell.descriptor[0], -1);
    psi_os_bell_close(&bell);
}

static void ringing_without_end_never_blocks(void **state) {
    (void)state;
    psi_os_bell bell;
    assert_int_equal(psi_os_bell_open(&bell), 0);
    for (int i = 0; i < 100000; i++) {
        psi_os_bell_ring(&bell);
    }
    assert_true(waited_us(&bell, LONG) < LONG / 2);
    assert_true(waited_us(&bell, 10 * MS) >= 10 * MS);
    psi_os_bell_close(&bell);
}

static void *ring_later(void *bell) {
    psi_os_pause_us(50 * MS);
    psi_os_bell_ring(bell);
    return NULL;
}

static void another_thread_rings(void **state) {
    (void)state;
    psi_os_bell bell;
    pthread_t thread;
    assert_int_equal(psi_os_bell_open(&bell), 0);
    assert_int_equal(psi_os_thread_start(&thread, ring_later, &bell), 0);
    assert_true(waited_us(&bell, LONG) < LONG / 2);
    pthread_join(thread, NULL);
    psi_os_bell_close(&bell);
}

/* A child for what would spoil this process. The body's result is the exit status. */
static int in_child(int (*body)(void)) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        _exit(body());
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

enum { GOOD = 0, BAD = 1, NOT_HERE = 77 };

static int without_descriptors(void) {
    struct rlimit none = {3, 3};
    psi_os_bell bell;
    for (int i = 3; i < 64; i++) {
        close(i);
    }
    if (setrlimit(RLIMIT_NOFILE, &none) != 0) {
        return NOT_HERE;
    }
    if (psi_os_bell_open(&bell) != -EMFILE || bell.descriptor[0] != -1 || bell.descriptor[1] != -1) {
        return BAD;
    }
    psi_os_bell_ring(&bell);
    uint64_t begin_us = psi_os_now_us();
    (void)psi_os_wait(&bell, NULL, 0, 30 * MS);
    psi_os_bell_close(&bell);
    return psi_os_now_us() - begin_us >= 30 * MS ? GOOD : BAD;
}

static void a_bell_that_could_not_be_opened_still_sleeps(void **state) {
    (void)state;
    assert_int_equal(in_child(without_descriptors), GOOD);
}

/* The sandbox of a container runtime that is older than the call. */
static int without_eventfd(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_eventfd2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(rules) / sizeof(rules[0]), rules};
    psi_os_bell bell;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        return NOT_HERE;
    }
    if (psi_os_bell_open(&bell) != 0 || bell.descriptor[0] == bell.descriptor[1]) {
        return BAD;
    }
    for (int i = 0; i < 100000; i++) { /* a full pipe must not hold who rings */
        psi_os_bell_ring(&bell);
    }
    uint64_t begin_us = psi_os_now_us();
    (void)psi_os_wait(&bell, NULL, 0, LONG);
    uint64_t rung_us = psi_os_now_us();
    (void)psi_os_wait(&bell, NULL, 0, 20 * MS);
    uint64_t slept_us = psi_os_now_us() - rung_us;
    psi_os_bell_close(&bell);
    return rung_us - begin_us < LONG / 2 && slept_us >= 20 * MS ? GOOD : BAD;
}

static void a_pipe_stands_in_for_the_eventfd(void **state) {
    (void)state;
    int result = in_child(without_eventfd);
    if (result == NOT_HERE) {
        print_message("skipped: no seccomp filters here\n");
        skip();
    }
    assert_int_equal(result, GOOD);
}

static void a_bell_closed_behind_our_back_does_not_keep_awake(void **state) {
    (void)state;
    psi_os_bell bell;
    assert_int_equal(psi_os_bell_open(&bell), 0);
    close(bell.descriptor[0]);
    assert_true(waited_us(&bell, 30 * MS) >= 30 * MS);
}

static void note_signal(int number) { (void)number; }

static void signals_do_not_shorten_a_sleep(void **state) {
    (void)state;
    struct sigaction before, action = {.sa_handler = note_signal}; /* without SA_RESTART */
    struct itimerval every = {{0, 5000}, {0, 5000}}, off = {{0, 0}, {0, 0}};
    psi_os_bell bell;
    assert_int_equal(psi_os_bell_open(&bell), 0);
    sigaction(SIGALRM, &action, &before);
    setitimer(ITIMER_REAL, &every, NULL);
    uint64_t slept_us = waited_us(&bell, 100 * MS);
    setitimer(ITIMER_REAL, &off, NULL);
    sigaction(SIGALRM, &before, NULL);
    psi_os_bell_close(&bell);
    assert_true(slept_us >= 100 * MS && slept_us < LONG / 2);
}

/* ---- Watches ---------------------------------------------------------------------------------- */

static void a_watch_tells_what_happened(void **state) {
    (void)state;
    psi_os_bell bell;
    int one[2], two[2];
    assert_int_equal(psi_os_bell_open(&bell), 0);
    assert_int_equal(pipe(one), 0);
    assert_int_equal(pipe(two), 0);
    psi_os_watch watches[2] = {{.descriptor = one[0], .ready = true, .gone = true}, {.descriptor = two[0]}};
    assert_int_equal(psi_os_wait(&bell, watches, 2, 10 * MS), 0);
    assert_false(watches[0].ready || watches[0].gone);
    assert_int_equal(write(two[1], "x", 1), 1);
    assert_int_equal(psi_os_wait(&bell, watches, 2, LONG), 1);
    assert_true(watches[1].ready && !watches[1].gone && !watches[0].ready);
    close(one[1]);
    assert_int_equal(psi_os_wait(&bell, watches, 2, LONG), 2);
    assert_true(watches[0].gone && watches[1].ready);
    watches[0].urgent = true; /* bytes are not what an urgent watch waits for */
    watches[0].descriptor = two[0];
    assert_int_equal(psi_os_wait(&bell, watches, 1, 10 * MS), 0);
    watches[0].descriptor = 1000000; /* no descriptor at all */
    assert_int_equal(psi_os_wait(&bell, watches, 1, LONG), 1);
    assert_true(watches[0].gone);
    close(one[0]), close(two[0]), close(two[1]);
    psi_os_bell_close(&bell);
}

static void a_time_without_end_is_no_time_at_all(void **state) {
    (void)state;
    psi_os_bell bell;
    assert_int_equal(psi_os_bell_open(&bell), 0);
    psi_os_bell_ring(&bell);
    assert_true(waited_us(&bell, UINT64_MAX) < LONG / 2);
    psi_os_bell_close(&bell);
}

/* ---- Triggers --------------------------------------------------------------------------------- */

static void a_trigger_that_cannot_be_opened_says_why(void **state) {
    (void)state;
    assert_int_equal(psi_os_open_trigger(path_of("nothing"), "x", 1), -ENOENT);
    assert_int_equal(access(path_of("nothing"), F_OK), -1);
    assert_int_equal(psi_os_open_trigger(directory, "x", 1), -EISDIR);
    assert_int_equal(psi_os_open_trigger("/dev/full", "x", 1), -ENOSPC);
    assert_true(psi_os_drain(-1) == -EBADF);
}

static void a_file_that_is_no_pressure_file_keeps_its_bytes(void **state) {
    (void)state;
    char text[64];
    FILE *file = fopen(path_of("file"), "w");
    assert_non_null(file);
    fputs("precious", file);
    fclose(file);
    int descriptor = psi_os_open_trigger(path_of("file"), "some 1 2", sizeof("some 1 2"));
    assert_true(descriptor >= 0);
    assert_true((fcntl(descriptor, F_GETFD) & FD_CLOEXEC) != 0);
    psi_os_close(descriptor);
    assert_int_equal(psi_os_read_small(path_of("file"), text, sizeof(text)), 8 + sizeof("some 1 2"));
    assert_memory_equal(text, "precioussome 1 2", 17); /* the NUL is written, too */
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

static void a_socket_is_connected_and_drained(void **state) {
    (void)state;
    char bytes[8] = "";
    static char flood[100000];
    int listener = listen_at(path_of("socket"));
    int ours = psi_os_open_trigger(path_of("socket"), "abc", 4);
    assert_true(ours >= 0);
    int theirs = accept(listener, NULL, NULL);
    assert_int_equal(read(theirs, bytes, sizeof(bytes)), 4);
    assert_string_equal(bytes, "abc");
    assert_int_equal(psi_os_drain(ours), 0);
    assert_int_equal(write(theirs, flood, sizeof(flood)), sizeof(flood));
    ssize_t first = psi_os_drain(ours); /* bounded */
    assert_true(first > 0 && first < (ssize_t)sizeof(flood));
    assert_int_equal(first + psi_os_drain(ours), sizeof(flood));
    close(theirs);
    assert_int_equal(psi_os_drain(ours), -EPIPE);
    psi_os_close(ours);
    close(listener);
    assert_int_equal(psi_os_open_trigger(path_of("socket"), "abc", 4), -ECONNREFUSED);
}

static void what_a_path_is(void **state) {
    (void)state;
    psi_os_identity one, two;
    char linked[128];
    assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
    strcpy(linked, path_of("fifo"));
    assert_int_equal(symlink(linked, path_of("link")), 0);
    assert_int_equal(psi_os_identify(path_of("fifo"), &one), 0);
    assert_int_equal(psi_os_identify(path_of("link"), &two), 0);
    assert_int_equal(one.kind, PSI_OS_FIFO);
    assert_true(one.inode == two.inode && one.device == two.device);
    assert_int_equal(psi_os_identify(directory, &one), 0);
    assert_int_equal(one.kind, PSI_OS_OTHER);
    assert_int_equal(psi_os_identify("/proc/self/status", &one), 0);
    assert_int_equal(one.kind, PSI_OS_FILE);
    assert_int_equal(psi_os_identify(path_of("nothing"), &one), -ENOENT);
}

/* ---- Directories ------------------------------------------------------------------------------ */

typedef struct found {
    size_t count, most;
    char last[64];
} found;

static bool note_directory(void *user, const char *name) {
    found *f = user;
    snprintf(f->last, sizeof(f->last), "%s", name);
    return ++f->count < f->most;
}

static void directories_and_nothing_else_are_listed(void **state) {
    (void)state;
    found f = {.most = SIZE_MAX};
    char name[32];
    fclose(fopen(path_of("file"), "w"));
    assert_int_equal(psi_os_list_directories(directory, note_directory, &f), 0);
    assert_int_equal(f.count, 0);
    for (int i = 0; i < 500; i++) { /* more than one buffer */
        snprintf(name, sizeof(name), "directory-%d", i);
        assert_int_equal(mkdir(path_of(name), 0700), 0);
    }
    assert_int_equal(psi_os_list_directories(directory, note_directory, &f), 0);
    assert_int_equal(f.count, 500);
    assert_memory_equal(f.last, "directory-", 10);
    f = (found){.most = 3};
    assert_int_equal(psi_os_list_directories(directory, note_directory, &f), 0);
    assert_int_equal(f.count, 3);
    assert_int_equal(psi_os_list_directories(path_of("nothing"), note_directory, &f), -ENOENT);
    assert_int_equal(psi_os_list_directories(path_of("file"), note_directory, &f), -ENOTDIR);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bell_ends_a_sleep_once),
        cmocka_unit_test(ringing_without_end_never_blocks),
        cmocka_unit_test(another_thread_rings),
        cmocka_unit_test(a_bell_that_could_not_be_opened_still_sleeps),
        cmocka_unit_test(a_pipe_stands_in_for_the_eventfd),
        cmocka_unit_test(a_bell_closed_behind_our_back_does_not_keep_awake),
        cmocka_unit_test(signals_do_not_shorten_a_sleep),
        cmocka_unit_test(a_watch_tells_what_happened),
        cmocka_unit_test(a_time_without_end_is_no_time_at_all),
        cmocka_unit_test_setup_teardown(a_trigger_that_cannot_be_opened_says_why, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_that_is_no_pressure_file_keeps_its_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_socket_is_connected_and_drained, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_path_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(directories_and_nothing_else_are_listed, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
