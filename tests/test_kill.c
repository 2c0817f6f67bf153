/* test_kill.c - SIGKILL at any moment: no file is left in the store's directory, and nothing of other processes is
 * touched. On file systems without O_TMPFILE (faked here) a file has a name for an instant: one left by a kill just
 * then is empty, and the next store sweeps it. PSI_TEST_KILLS=200 build/release/tests/test_kill: the long form. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "psicache.h"

enum { BLOCKS = 32 };

static char store_dir[64], run_dir[64];

/* ---- A fake file system without O_TMPFILE, and a kill between creating and unlinking -------------------- */

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int); /* rubbish where there is none, and unused then */
    va_end(more);
    if ((flags & O_TMPFILE) == O_TMPFILE && getenv("PSI_FAKE_NO_TMPFILE") != NULL) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int unlink(const char *path) {
    if (getenv("PSI_FAKE_KILL_IN_UNLINK") != NULL && strstr(path, "/.psi-cache-") != NULL) {
        (void)kill(getpid(), SIGKILL);
    }
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

/* ---- The process that is killed: it opens, writes, trims, restores and closes, on and on ------------------ */

static psi_pool *open_pool(psi_cache **cache) {
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    options.floor_bytes = 1;
    options.store_dir = store_dir;
    *cache = psi_cache_open(&options);
    psi_pool_options pool_options = PSI_OPTIONS_INIT(psi_pool_options);
    pool_options.block_bytes = 4 * psi_os_page_bytes();
    pool_options.blocks = BLOCKS;
    return psi_pool_create(*cache, &pool_options);
}

static void fill(psi_pool *pool) {
    for (int i = 0; i < BLOCKS; i++) {
        memset(psi_block_alloc(pool, NULL), i + 1, 4 * psi_os_page_bytes());
    }
    (void)psi_pool_step(pool);
    (void)psi_pool_step(pool);
}

static void trim(psi_cache *cache, psi_pool *pool) {
    (void)psi_cache_trim(cache, 1.0);
    (void)psi_pool_step(pool);
}

static bool restores_right(psi_pool *pool) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (psi_block_restore(pool, i) != 0) {
            return false;
        }
        const unsigned char *bytes = psi_block_address(pool, i);
        for (size_t at = 0; at < 4 * psi_os_page_bytes(); at++) {
            if (bytes[at] != i + 1) {
                return false;
            }
        }
    }
    return true;
}

static void live(void) {
    psi_cache *cache = NULL;
    psi_pool *pool = open_pool(&cache);
    fill(pool);
    for (int i = 0; i < 3; i++) {
        trim(cache, pool);
        if (!restores_right(pool)) {
            _exit(3);
        }
    }
    psi_pool_destroy(pool);
    psi_cache_close(cache);
}

/* Stores its blocks, says so, waits for a word, and looks whether they are still right. */
static int stand_by(void) {
    char byte = 0;
    psi_cache *cache = NULL;
    psi_pool *pool = open_pool(&cache);
    fill(pool);
    trim(cache, pool);
    (void)!write(STDOUT_FILENO, ".", 1);
    (void)!read(STDIN_FILENO, &byte, 1);
    int result = restores_right(pool) ? 0 : 3;
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    return result;
}

static int be(const char *what) {
    (void)snprintf(store_dir, sizeof(store_dir), "%s", getenv("PSI_TEST_STORE"));
    if (strcmp(what, "bystander") == 0) {
        return stand_by();
    }
    do {
        live();
    } while (strcmp(what, "victim") == 0);
    return 0;
}

/* ---- The test ----------------------------------------------------------------------------------------- */

static pid_t start(const char *what, int in, int out) {
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)dup2(in, STDIN_FILENO);
        (void)dup2(out, STDOUT_FILENO);
        (void)execl("/proc/self/exe", "test_kill", what, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static int status_of(pid_t pid) {
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static int files_in(const char *directory, char last[256]) {
    int count = 0;
    DIR *entries = opendir(directory);
    assert_non_null(entries);
    for (struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            (void)snprintf(last, 256, "%s", entry->d_name);
            count++;
        }
    }
    (void)closedir(entries);
    return count;
}

static void put(const char *directory, const char *name, const char *text, char path[400]) {
    (void)snprintf(path, 400, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    (void)fputs(text, file);
    (void)fclose(file);
}

static void make_old(const char *path) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time(NULL) - 3600}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static int setup(void **state) {
    (void)state;
    (void)strcpy(store_dir, "/var/tmp/psi-test-XXXXXX");
    (void)strcpy(run_dir, "/tmp/psi-test-XXXXXX");
    assert_non_null(mkdtemp(store_dir));
    assert_non_null(mkdtemp(run_dir));
    assert_int_equal(setenv("PSI_TEST_STORE", store_dir, 1), 0);
    assert_int_equal(setenv("PSI_CACHE_RUN_DIR", run_dir, 1), 0);
    return 0;
}

static int teardown(void **state) {
    char command[256];
    (void)state;
    (void)unsetenv("PSI_FAKE_NO_TMPFILE");
    (void)snprintf(command, sizeof(command), "rm -r %s %s", store_dir, run_dir);
    return system(command);
}

static unsigned kills(void) {
    const char *text = getenv("PSI_TEST_KILLS");
    return text != NULL ? (unsigned)strtoul(text, NULL, 10) : 12;
}

/* With O_TMPFILE there is nothing but what is others'. Without, a kill may have come in the very instant: then an empty
 * file, made old here, so that the next store sweeps it. */
static unsigned look_at_leftovers(void) {
    char name[256] = "";
    struct stat status;
    unsigned count = 0;
    DIR *entries = opendir(store_dir);
    assert_non_null(entries);
    for (struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        if (strncmp(entry->d_name, ".psi-cache-", 11) == 0) {
            char path[400];
            (void)snprintf(path, sizeof(path), "%s/%s", store_dir, entry->d_name);
            assert_int_equal(stat(path, &status), 0);
            assert_int_equal(status.st_size, 0);
            assert_int_equal(status.st_mode & 0777, 0600);
            make_old(path);
            count++;
        }
    }
    (void)closedir(entries);
    assert_int_equal(files_in(store_dir, name), 1 + count);
    assert_true(count == 0 || getenv("PSI_FAKE_NO_TMPFILE") != NULL);
    return count;
}

/* Leftovers: one or none. */
static unsigned kill_one(uint64_t *random, unsigned number) {
    *random = *random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    pid_t pid = start("victim", STDIN_FILENO, STDERR_FILENO);
    psi_os_pause_us((*random >> 33) % (number % 2 == 0 ? 5000 : 60000)); /* every other one while it starts */
    assert_int_equal(kill(pid, SIGKILL), 0);
    int status = status_of(pid);
    assert_true(WIFSIGNALED(status));
    return look_at_leftovers();
}

/* A live process beside, and files that are others', one where the board would lie. */
static void kill_many(void) {
    char name[256], ours[400], run[400], text[16] = "";
    int in[2], out[2];
    uint64_t random = 20261126;
    put(store_dir, "others", "untouched", ours);
    put(run_dir, "others", "untouched", run);
    assert_int_equal(pipe2(in, O_CLOEXEC) + pipe2(out, O_CLOEXEC), 0);
    pid_t bystander = start("bystander", in[0], out[1]);
    assert_int_equal(read(out[0], text, 1), 1);
    unsigned left = 0, most = kills();
    for (unsigned i = 0; i < most; i++) {
        left += kill_one(&random, i) > 0;
    }
    print_message("%u processes killed, %u times an empty file was left\n", most, left);
    int last = status_of(start("guest", STDIN_FILENO, STDERR_FILENO)); /* sweeps the boards of those that were killed */
    assert_true(WIFEXITED(last) && WEXITSTATUS(last) == 0);
    assert_int_equal(files_in(run_dir, name), 2); /* "others", and the bystander's board */
    assert_int_equal(write(in[1], ".", 1), 1);
    int status = status_of(bystander);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(files_in(store_dir, name), 1);
    assert_int_equal(psi_os_read_small(ours, text, sizeof(text)), 9);
    assert_int_equal(psi_os_read_small(run, text, sizeof(text)), 9);
    for (int i = 0; i < 2; i++) {
        (void)close(in[i]);
        (void)close(out[i]);
    }
}

static void killed_at_any_moment_it_leaves_nothing(void **state) {
    (void)state;
    kill_many();
}

static void without_o_tmpfile_neither(void **state) {
    (void)state;
    assert_int_equal(setenv("PSI_FAKE_NO_TMPFILE", "1", 1), 0);
    kill_many();
}

static void killed_between_creating_and_unlinking_it_leaves_an_empty_file_that_the_next_one_sweeps(void **state) {
    (void)state;
    char name[256], path[400], kept[4][400];
    struct stat status;
    assert_int_equal(setenv("PSI_FAKE_NO_TMPFILE", "1", 1), 0);
    assert_int_equal(setenv("PSI_FAKE_KILL_IN_UNLINK", "1", 1), 0);
    assert_true(WIFSIGNALED(status_of(start("victim", STDIN_FILENO, STDERR_FILENO))));
    assert_int_equal(unsetenv("PSI_FAKE_KILL_IN_UNLINK"), 0);
    assert_int_equal(files_in(store_dir, name), 1);
    (void)snprintf(path, sizeof(path), "%s/%s", store_dir, name);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_size, 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    make_old(path);
    put(store_dir, ".psi-cache-abcdef", "not empty", kept[0]); /* others', all of them */
    put(store_dir, ".psi-cache-abcdefg", "", kept[1]);
    put(store_dir, "psi-cache-abcdef", "", kept[2]);
    put(store_dir, ".psi-cache-young1", "", kept[3]);
    for (int i = 0; i < 3; i++) {
        make_old(kept[i]);
    }
    int guest = status_of(start("guest", STDIN_FILENO, STDERR_FILENO));
    assert_true(WIFEXITED(guest) && WEXITSTATUS(guest) == 0);
    assert_int_equal(files_in(store_dir, name), 4);
    assert_int_equal(access(path, F_OK), -1);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_at_any_moment_it_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(without_o_tmpfile_neither, setup, teardown),
        cmocka_unit_test_setup_teardown(
            killed_between_creating_and_unlinking_it_leaves_an_empty_file_that_the_next_one_sweeps, setup, teardown),
    };
    return argc > 1 ? be(argv[1]) : cmocka_run_group_tests_name("kill", tests, NULL, NULL);
}
