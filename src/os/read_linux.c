/* read_linux.c - a read that goes on while its caller works: Linux AIO by its system calls, which is truly at the
 * disk's side for a file that is open past the page cache. A context a reader, made with the first read. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/aio_abi.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os/os.h"

/* Contexts of readers that are closed, for the next ones: to end one takes the kernel some 20 ms, in which the caller
 * waits. 0: a free place. */
enum { SPARES = 8 };
static _Atomic uint64_t spares[SPARES];

static uint64_t take_spare(void) {
    uint64_t context = 0;
    for (int i = 0; i < SPARES && context == 0; i++) {
        context = atomic_exchange(&spares[i], 0);
    }
    return context;
}

static bool keep_spare(uint64_t context) {
    bool kept = false;
    for (int i = 0; i < SPARES && !kept; i++) {
        uint64_t none = 0;
        kept = atomic_compare_exchange_strong(&spares[i], &none, context);
    }
    return kept;
}

/* A context is its process's alone: a forked child's calls are refused, and it reads at once. */
static bool has_context(psi_os_read *read) {
    if (read->context == 0 && !read->refused) {
        aio_context_t context = take_spare();
        read->refused = context == 0 && syscall(SYS_io_setup, 1, &context) != 0;
        read->context = read->refused ? 0 : context;
    }
    return read->context != 0;
}

void psi_os_read_begin(psi_os_read *read, int descriptor, void *bytes, size_t count, uint64_t offset) {
    read->descriptor = descriptor;
    read->bytes = bytes;
    read->count = count;
    read->offset = offset;
    read->under_way = false;
    if (!psi_os_is_direct(descriptor) || !has_context(read)) {
        return; /* through the page cache the call would wait for the disk */
    }
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD,
                         .aio_fildes = (uint32_t)descriptor,
                         .aio_buf = (uint64_t)(uintptr_t)bytes,
                         .aio_nbytes = count,
                         .aio_offset = (int64_t)offset};
    struct iocb *blocks[] = {&block}; /* the kernel copies it */
    read->under_way = syscall(SYS_io_submit, read->context, 1, blocks) == 1;
}

/* Whether it is over. Where the system does not say (a sandbox that lets reads begin; a forked child's are its
 * parent's), it may go on, and into the next one's bytes: the context ends, which waits for it, and there is no other.
 */
static bool is_over(psi_os_read *read, bool waits, bool *whole) {
    struct timespec at_once = {0};
    struct io_event event = {0};
    long got, least = waits ? 1 : 0;
    do {
        got = syscall(SYS_io_getevents, read->context, least, 1, &event, waits ? NULL : &at_once);
    } while (got < 0 && errno == EINTR);
    if (got < least) {
        (void)syscall(SYS_io_destroy, read->context);
        read->context = 0;
        read->refused = true;
    }
    read->under_way = got == 0 && !waits;
    *whole = got == 1 && event.res == (int64_t)read->count;
    return !read->under_way;
}

int psi_os_read_end(psi_os_read *read) {
    bool whole = false;
    if (read->under_way && is_over(read, true, &whole) && whole) {
        return 0;
    }
    return psi_os_read_at(read->descriptor, read->bytes, read->count, read->offset);
}

bool psi_os_read_drop(psi_os_read *read) {
    bool whole;
    return !read->under_way || is_over(read, false, &whole);
}

void psi_os_read_close(psi_os_read *read) {
    if (read->context != 0 && (read->under_way || !keep_spare(read->context))) {
        (void)syscall(SYS_io_destroy, read->context); /* waits for what is under way */
    }
    *read = (psi_os_read){0};
}
