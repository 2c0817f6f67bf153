/* test_board.c - the page a process shows itself on: who may open it, what a fork, a kill and a hostile
 * directory do to it, and that its numbers are never torn. */
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
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool/board.h"

static char the_base[64], the_directory[96];

static int set_up(void **state) {
    (void)state;
    snprintf(the_base, sizeof the_base, "/tmp/psi-test-board-XXXXXX");
    if (!mkdtemp(the_base))
        return -1;
    snprintf(the_directory, sizeof the_directory, "%s/run", the_base);
    setenv("PSI_CACHE_RUN_DIR", the_directory, 1);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", the_base);
    return system(command);
}

static void path_of(char *path, size_t capacity, pid_t pid) {
    snprintf(path, capacity, "%s/%d", the_directory, (int)pid);
}

/* Every test that needs a board runs in a child: a process has one board for all its life. */
static int in_child(int (*body)(void)) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        exit(body());
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

static psi_stats numbers(uint64_t n) {
    psi_stats stats = PSI_OPTIONS_INIT(psi_stats);
    stats.index = (double)n;
    stats.resident_bytes = stats.stored_bytes = stats.steps = stats.pools = n;
    return stats;
}

static void test_directory_order(void **state) {
    (void)state;
    char path[256], expected[256];
    assert_int_equal(psi_board_directory(0, path, sizeof path), 0);
    assert_string_equal(path, the_directory);
    assert_int_equal(psi_board_directory(1, path, sizeof path), -ENOENT);
    assert_int_equal(psi_board_directory(0, path, 4), -ENAMETOOLONG);
    assert_string_equal(path, the_directory);

    unsetenv("PSI_CACHE_RUN_DIR");
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(psi_board_directory(0, path, sizeof path), 0);
    assert_string_equal(path, "/run/user/7/psi-cache");
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(psi_board_directory(0, path, sizeof path), 0);
    snprintf(expected, sizeof expected, "/dev/shm/psi-cache-%u", (unsigned)geteuid());
    assert_string_equal(path, expected);
    assert_int_equal(psi_board_directory(1, path, sizeof path), 0);
    snprintf(expected, sizeof expected, "/tmp/psi-cache-%u", (unsigned)geteuid());
    assert_string_equal(path, expected);
    assert_int_equal(psi_board_directory(2, path, sizeof path), -ENOENT);
    setenv("PSI_CACHE_RUN_DIR", the_directory, 1);
}

static int own_and_open(void) {
    char path[128];
    psi_board *own = psi_board_own();
    CHECK(own == psi_board_own());
    CHECK(own->pid == getpid());
    CHECK(strstr(own->command, "test_board") != NULL);

    struct stat info;
    path_of(path, sizeof path, getpid());
    CHECK(stat(path, &info) == 0 && (info.st_mode & 07777) == 0600);
    CHECK(stat(the_directory, &info) == 0 && (info.st_mode & 07777) == 0700);

    psi_board *seen = psi_board_open(getpid());
    CHECK(seen && seen != own);
    psi_stats stats = numbers(3);
    CHECK(psi_board_read_stats(seen, &stats) == 0 && stats.size == 0);
    stats = numbers(42);
    psi_board_write_stats(own, &stats);
    memset(&stats, 0, sizeof stats);
    CHECK(psi_board_read_stats(seen, &stats) == 0);
    CHECK(stats.size == sizeof stats && stats.resident_bytes == 42 && stats.index > 41.9);

    atomic_store(&seen->trim_permille, 150);
    CHECK(atomic_exchange(&own->trim_permille, 0) == 150);
    CHECK(atomic_load(&seen->trim_permille) == 0);

    int64_t pids[4];
    CHECK(psi_board_list(pids, 4) == 1 && pids[0] == getpid());
    CHECK(psi_board_list(pids, 0) == 0);
    psi_board_close(seen);
    return 0;
}

static void test_own_and_open(void **state) {
    (void)state;
    assert_int_equal(in_child(own_and_open), 0);
    int64_t pids[4];
    assert_int_equal(psi_board_list(pids, 4), 0); /* the file went with its process */
}

static int umask_has_no_say(void) {
    struct stat info;
    char path[128];
    umask(0777);
    psi_board_own();
    path_of(path, sizeof path, getpid());
    return stat(path, &info) == 0 && (info.st_mode & 07777) == 0600 ? 0 : 1;
}

static void test_umask(void **state) {
    (void)state;
    mkdir(the_directory, 0700);
    assert_int_equal(in_child(umask_has_no_say), 0);
}

static void test_open_missing(void **state) {
    (void)state;
    errno = 0;
    assert_null(psi_board_open(getpid()));
    assert_int_equal(errno, ENOENT);
    assert_null(psi_board_open(-1));
    assert_null(psi_board_open(INT64_MAX));
}

static int fork_gets_its_own(void) {
    psi_board *parent = psi_board_own();
    psi_stats stats = numbers(1);
    psi_board_write_stats(parent, &stats);
    pid_t pid = fork();
    if (pid == 0) {
        stats = numbers(2);
        psi_board_write_stats(parent, &stats); /* must have no effect */
        psi_board *own = psi_board_own();
        CHECK(own != parent && own->pid == getpid());
        psi_board_write_stats(own, &stats);
        psi_board *seen = psi_board_open(getpid());
        CHECK(seen && psi_board_read_stats(seen, &stats) == 0 && stats.steps == 2);
        exit(0);
    }
    int status = 1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(psi_board_read_stats(parent, &stats) == 0 && stats.steps == 1);
    psi_board *seen = psi_board_open(getpid());
    CHECK(seen != NULL); /* the child's exit removed its own file, and not ours */
    CHECK(psi_board_open(pid) == NULL && errno == ENOENT);

    pid = fork(); /* and a child that never used a board leaves ours alone as well */
    if (pid == 0)
        exit(0);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    seen = psi_board_open(getpid());
    CHECK(seen != NULL);
    return 0;
}

static void test_fork(void **state) {
    (void)state;
    assert_int_equal(in_child(fork_gets_its_own), 0);
}

static int killed(void) {
    psi_board_own();
    _exit(0); /* as after a kill: no handler runs */
}

static int own_only(void) { return psi_board_own()->pid == getpid() ? 0 : 1; }

static int count_files(void) {
    char command[256];
    snprintf(command, sizeof command, "exit $(ls -A '%s' | wc -l)", the_directory);
    int status = system(command);
    return WEXITSTATUS(status);
}

static void test_stale_files_are_swept(void **state) {
    (void)state;
    assert_int_equal(in_child(killed), 0);
    char path[256];
    snprintf(path, sizeof path, "%s/.999999999.new-1", the_directory);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    snprintf(path, sizeof path, "%s/notes", the_directory); /* not ours to remove */
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(count_files(), 3);
    int64_t pids[4];
    assert_int_equal(psi_board_list(pids, 4), 0);
    assert_int_equal(in_child(own_only), 0);
    assert_int_equal(count_files(), 1);
}

/* A pid used again by another process does not make a dead process's board live. */
static int same_pid_other_start(void) {
    psi_board *own = psi_board_own();
    CHECK(own->started != 0);
    own->started++;
    CHECK(psi_board_open(getpid()) == NULL && errno == ENOENT);
    own->started--;
    CHECK(psi_board_open(getpid()) != NULL);
    own->magic++;
    CHECK(psi_board_open(getpid()) == NULL && errno == EPROTO);
    own->magic--;
    char path[128];
    path_of(path, sizeof path, getpid());
    unlink(path);
    close(open(path, O_CREAT | O_WRONLY, 0600)); /* a short file must not be SIGBUS */
    CHECK(psi_board_open(getpid()) == NULL && errno == EPROTO);
    unlink(path);
    CHECK(symlink("/etc/passwd", path) == 0);
    CHECK(psi_board_open(getpid()) == NULL && errno == ELOOP);
    return 0;
}

static void test_not_taken_for_live(void **state) {
    (void)state;
    assert_int_equal(in_child(same_pid_other_start), 0);
}

static int private_board(void) {
    psi_board *own = psi_board_own();
    psi_stats stats = numbers(5);
    psi_board_write_stats(own, &stats);
    stats = numbers(0);
    CHECK(psi_board_read_stats(own, &stats) == 0 && stats.steps == 5);
    CHECK(psi_board_open(getpid()) == NULL);
    return 0;
}

static void test_hostile_directory(void **state) {
    (void)state;
    mkdir(the_directory, 0700);
    chmod(the_directory, 0777); /* others could put files there */
    assert_int_equal(in_child(private_board), 0);
    assert_int_equal(count_files(), 0);
    chmod(the_directory, 0700);
    if (geteuid() == 0) { /* somebody else's directory, made under our name */
        assert_int_equal(chown(the_directory, 65534, 65534), 0);
        assert_int_equal(in_child(private_board), 0);
        assert_int_equal(count_files(), 0);
    }
    rmdir(the_directory);
    char target[128];
    snprintf(target, sizeof target, "%s/target", the_base);
    mkdir(target, 0700);
    assert_int_equal(symlink(target, the_directory), 0);
    assert_int_equal(in_child(private_board), 0);
}

static void test_no_directory(void **state) {
    (void)state;
    setenv("PSI_CACHE_RUN_DIR", "/proc/nowhere", 1);
    assert_int_equal(in_child(private_board), 0);
    setenv("PSI_CACHE_RUN_DIR", the_directory, 1);
}

/* ---- Threads ---------------------------------------------------------------------------------- */

static _Atomic int the_stop, the_torn;

static void *write_many(void *board) {
    for (uint64_t n = 1; !atomic_load(&the_stop); n++) {
        psi_stats stats = numbers(n);
        psi_board_write_stats(board, &stats);
    }
    return NULL;
}

static void *read_many(void *board) {
    for (int i = 0; i < 20000; i++) {
        psi_stats stats;
        if (psi_board_read_stats(board, &stats) != 0 || stats.size == 0)
            continue;
        if (stats.resident_bytes != stats.steps || stats.stored_bytes != stats.pools || stats.pools != stats.steps)
            atomic_store(&the_torn, 1);
    }
    return NULL;
}

static int never_torn(void) {
    pthread_t threads[4];
    psi_board *board = psi_board_own();
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, write_many, board) == 0);
    for (int i = 2; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, read_many, board) == 0);
    for (int i = 2; i < 4; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&the_stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return atomic_load(&the_torn);
}

static void test_never_torn(void **state) {
    (void)state;
    assert_int_equal(in_child(never_torn), 0);
}

/* The owner died between two words: the reader comes back. */
static void test_reader_never_hangs(void **state) {
    (void)state;
    static psi_board board;
    atomic_store(&board.version, 1);
    psi_stats stats = numbers(9);
    assert_int_equal(psi_board_read_stats(&board, &stats), -EAGAIN);
    assert_int_equal(stats.steps, 9);
}

static void *make_one(void *unused) {
    (void)unused;
    return psi_board_own();
}

static int first_use_races(void) {
    pthread_t threads[8];
    void *boards[8];
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, make_one, NULL) == 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], &boards[i]);
    for (int i = 1; i < 8; i++)
        CHECK(boards[i] == boards[0]);
    CHECK(count_files() == 1);
    CHECK(psi_board_open(getpid()) != NULL);
    return 0;
}

static void test_first_use_races(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++)
        assert_int_equal(in_child(first_use_races), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_directory_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_own_and_open, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_umask, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_missing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_fork, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stale_files_are_swept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_not_taken_for_live, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hostile_directory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_directory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_never_torn, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reader_never_hangs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_first_use_races, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("board", tests, NULL, NULL);
}
