/* test_read.c - a read in the background brings what an ordinary one brings, or the same error, on the real disk. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"

enum { PIECE = 1 << 16, PIECES = 8 };

static int descriptor;
static unsigned char *bytes;
static psi_os_read reader;

static int setup(void **state) {
    (void)state;
    reader = (psi_os_read){0};
    descriptor = psi_os_open_unlinked("/var/tmp");
    bytes = psi_os_reserve(PIECE);
    if (descriptor < 0 || bytes == NULL) {
        return -1;
    }
    for (int i = 0; i < PIECES; i++) {
        memset(bytes, i + 1, PIECE);
        assert_int_equal(psi_os_write_at(descriptor, bytes, PIECE, (uint64_t)i * PIECE), 0);
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    psi_os_read_close(&reader);
    psi_os_close(descriptor);
    psi_os_unreserve(bytes, PIECE);
    return 0;
}

static bool brings(int piece) {
    memset(bytes, 0, PIECE);
    psi_os_read_begin(&reader, descriptor, bytes, PIECE, (uint64_t)piece * PIECE);
    if (psi_os_read_end(&reader) != 0) {
        return false;
    }
    for (size_t i = 0; i < PIECE; i++) {
        if (bytes[i] != piece + 1) {
            return false;
        }
    }
    return true;
}

static void each_brings_its_own(void **state) {
    (void)state;
    for (int i = 0; i < 3 * PIECES; i++) {
        assert_true(brings(i * 5 % PIECES));
    }
    if (reader.context == 0) {
        print_message("no reads in the background here: the system refuses them, or the file system has no O_DIRECT\n");
    }
}

static void through_the_page_cache_too(void **state) {
    (void)state;
    assert_int_equal(fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) & ~O_DIRECT), 0);
    assert_true(brings(3));
    assert_false(reader.under_way);
}

static void past_the_end_it_is_an_error(void **state) {
    (void)state;
    psi_os_read_begin(&reader, descriptor, bytes, PIECE, (uint64_t)PIECES * PIECE - PIECE / 2);
    assert_int_equal(psi_os_read_end(&reader), -EIO);
    psi_os_read_begin(&reader, -1, bytes, PIECE, 0);
    assert_int_equal(psi_os_read_end(&reader), -EBADF);
    assert_true(brings(1));
}

static void one_that_is_dropped_is_over(void **state) {
    (void)state;
    psi_os_read_begin(&reader, descriptor, bytes, PIECE, 0);
    while (!psi_os_read_drop(&reader)) {
    }
    memset(bytes, 0x77, PIECE);
    assert_int_equal(bytes[PIECE - 1], 0x77); /* and nobody writes there any more */
    assert_true(psi_os_read_drop(&reader));
    assert_true(brings(2));
}

/* The child has the reader's memory and not its context: it reads by itself, also what its parent had begun. */
static void a_forked_child_reads_by_itself(void **state) {
    (void)state;
    assert_true(brings(4));
    memset(bytes, 0, PIECE);
    psi_os_read_begin(&reader, descriptor, bytes, PIECE, 5 * PIECE);
    pid_t child = fork();
    if (child == 0) {
        bool good = psi_os_read_end(&reader) == 0 && bytes[0] == 6 && bytes[PIECE - 1] == 6 && brings(1) && brings(6);
        _exit(good ? 0 : 1);
    }
    assert_int_equal(psi_os_read_end(&reader), 0);
    assert_int_equal(bytes[PIECE - 1], 6);
    int status = 1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void without_a_context_it_reads_when_it_is_ended(void **state) {
    (void)state;
    reader.refused = true;
    assert_true(brings(7));
    assert_true(reader.context == 0 && !reader.under_way);
}

static bool refuse(uint32_t call) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(rules) / sizeof(rules[0]), rules};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* In a child, as a sandbox is for ever; with a context of its own. */
static int reads_with_refused(uint32_t call) {
    enum { GOOD, BAD, NOT_HERE };
    pid_t child = fork();
    if (child == 0) {
        reader = (psi_os_read){0};
        if (!brings(1)) {
            _exit(BAD);
        }
        if (reader.context == 0 || !refuse(call)) {
            _exit(NOT_HERE);
        }
        bool good = brings(5) && brings(2);
        psi_os_read_begin(&reader, descriptor, bytes, PIECE, 0);
        bool waits = reader.under_way; /* for what the system does not tell */
        _exit(good && !waits && psi_os_read_drop(&reader) ? GOOD : BAD);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == NOT_HERE) {
        print_message("skipped: no reads in the background here, or no seccomp filters\n");
        skip();
    }
    return WEXITSTATUS(status);
}

/* A sandbox that allows one call and not the other: what was begun could go on, and bring its bytes into those of the
 * next read. So no other is begun. */
static void what_cannot_be_waited_for_is_not_begun_again(void **state) {
    (void)state;
    assert_int_equal(reads_with_refused(SYS_io_getevents), 0);
    assert_int_equal(reads_with_refused(SYS_io_submit), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_brings_its_own, setup, teardown),
        cmocka_unit_test_setup_teardown(through_the_page_cache_too, setup, teardown),
        cmocka_unit_test_setup_teardown(past_the_end_it_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_is_dropped_is_over, setup, teardown),
        cmocka_unit_test_setup_teardown(a_forked_child_reads_by_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_waited_for_is_not_begun_again, setup, teardown),
        cmocka_unit_test_setup_teardown(without_a_context_it_reads_when_it_is_ended, setup, teardown),
    };
    return cmocka_run_group_tests_name("read", tests, NULL, NULL);
}
