/* fake_disk.h - a fake disk between the library and the kernel: in the test program that includes it, pwrite, pread,
 * fallocate and sync_file_range are these, and fail as the test asks. What they do not fail they hand to the kernel. So
 * are the reads in the background, which are done when they are ended. */
#ifndef FAKE_DISK_H
#define FAKE_DISK_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/os.h"

typedef enum fake_disk_fault {
    FAKE_DISK_SOUND = 0,
    FAKE_DISK_FULL,         /* writes: ENOSPC */
    FAKE_DISK_HALF_FULL,    /* writes: half is written, then ENOSPC */
    FAKE_DISK_WRITE_ERROR,  /* writes: EIO */
    FAKE_DISK_READ_ERROR,   /* reads: EIO */
    FAKE_DISK_GONE,         /* all: EIO */
    FAKE_DISK_SHORT,        /* both: a page at a time, with EINTR between */
    FAKE_DISK_ENDS_EARLY,   /* reads: end of file */
    FAKE_DISK_READ_FLIPS,   /* reads: one bit of each 4 KiB is another */
    FAKE_DISK_WRITE_FLIPS,  /* writes: one bit lands as another, and the write is said to be done */
    FAKE_DISK_WRITE_LOST,   /* writes: said to be done, nothing lands */
    FAKE_DISK_WRITE_ASTRAY, /* writes: said to be done, land one record further */
    FAKE_DISK_NOT_DIRECT,   /* both: EINVAL while the descriptor is O_DIRECT */
    FAKE_DISK_FLUSH_ERROR,  /* writes reach the page cache; flushing it: EIO, and the bytes are lost */
    FAKE_DISK_FAULTS
} fake_disk_fault;

static struct {
    atomic_int fault;
    atomic_uint percent; /* of the calls that fail so; the others are sound */
    _Atomic uint64_t random;
    atomic_ulong writes, reads, punches, failed; /* calls */
    atomic_ulong begun;                          /* reads in the background */
    atomic_bool lingers;                         /* a read in the background is not over when it is dropped */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool hangs; /* every call waits until it does not */
    int hanging;
} fake_disk = {.percent = 100,
               .random = 88172645463325252u,
               .lock = PTHREAD_MUTEX_INITIALIZER,
               .changed = PTHREAD_COND_INITIALIZER};

static inline void fake_disk_set(fake_disk_fault fault, unsigned percent) {
    atomic_store(&fake_disk.percent, percent);
    atomic_store(&fake_disk.fault, (int)fault);
}

static inline void fake_disk_hang(bool hangs) {
    pthread_mutex_lock(&fake_disk.lock);
    fake_disk.hangs = hangs;
    pthread_cond_broadcast(&fake_disk.changed);
    pthread_mutex_unlock(&fake_disk.lock);
}

/* Waits until a call hangs. */
static inline void fake_disk_await_hang(void) {
    pthread_mutex_lock(&fake_disk.lock);
    while (fake_disk.hanging == 0) {
        pthread_cond_wait(&fake_disk.changed, &fake_disk.lock);
    }
    pthread_mutex_unlock(&fake_disk.lock);
}

static inline void fake_disk_wait(void) {
    pthread_mutex_lock(&fake_disk.lock);
    fake_disk.hanging++;
    pthread_cond_broadcast(&fake_disk.changed);
    while (fake_disk.hangs) {
        pthread_cond_wait(&fake_disk.changed, &fake_disk.lock);
    }
    fake_disk.hanging--;
    pthread_mutex_unlock(&fake_disk.lock);
}

static inline uint64_t fake_disk_random(void) {
    uint64_t x = atomic_fetch_add(&fake_disk.random, UINT64_C(0x9e3779b97f4a7c15));
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* The fault that this call meets. */
static inline fake_disk_fault fake_disk_next(void) {
    fake_disk_wait();
    bool meets = fake_disk_random() % 100 < atomic_load(&fake_disk.percent);
    return meets ? (fake_disk_fault)atomic_load(&fake_disk.fault) : FAKE_DISK_SOUND;
}

static inline ssize_t fake_disk_fail(int error) {
    atomic_fetch_add(&fake_disk.failed, 1);
    errno = error;
    return -1;
}

static inline ssize_t fake_disk_real_write(int descriptor, const void *bytes, size_t count, off_t offset) {
    return syscall(SYS_pwrite64, descriptor, bytes, count, offset);
}

static inline ssize_t fake_disk_write_flipped(int descriptor, const void *bytes, size_t count, off_t offset) {
    static _Alignas(65536) _Thread_local unsigned char copy[1 << 20];
    if (count > sizeof(copy)) {
        return fake_disk_fail(EIO);
    }
    memcpy(copy, bytes, count);
    copy[fake_disk_random() % count] ^= (unsigned char)(1u << fake_disk_random() % 8);
    atomic_fetch_add(&fake_disk.failed, 1);
    return fake_disk_real_write(descriptor, copy, count, offset);
}

static inline ssize_t fake_disk_write_short(int descriptor, const void *bytes, size_t count, off_t offset) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return fake_disk_random() % 2 == 0 ? fake_disk_fail(EINTR)
                                       : fake_disk_real_write(descriptor, bytes, count < page ? count : page, offset);
}

static inline ssize_t fake_disk_write_half(int descriptor, const void *bytes, size_t count, off_t offset) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), half = count / 2 / page * page;
    return half == 0 ? fake_disk_fail(ENOSPC) : fake_disk_real_write(descriptor, bytes, half, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    atomic_fetch_add(&fake_disk.writes, 1);
    switch (fake_disk_next()) {
    case FAKE_DISK_FULL:
        return fake_disk_fail(ENOSPC);
    case FAKE_DISK_HALF_FULL:
        return fake_disk_write_half(descriptor, bytes, count, offset);
    case FAKE_DISK_WRITE_ERROR:
    case FAKE_DISK_GONE:
        return fake_disk_fail(EIO);
    case FAKE_DISK_SHORT:
        return fake_disk_write_short(descriptor, bytes, count, offset);
    case FAKE_DISK_WRITE_FLIPS:
        return fake_disk_write_flipped(descriptor, bytes, count, offset);
    case FAKE_DISK_WRITE_LOST:
    case FAKE_DISK_FLUSH_ERROR:
        atomic_fetch_add(&fake_disk.failed, 1);
        return (ssize_t)count;
    case FAKE_DISK_WRITE_ASTRAY:
        atomic_fetch_add(&fake_disk.failed, 1);
        return fake_disk_real_write(descriptor, bytes, count, offset + (off_t)count);
    case FAKE_DISK_NOT_DIRECT:
        if (psi_os_is_direct(descriptor)) {
            return fake_disk_fail(EINVAL);
        }
        break;
    default:
        break;
    }
    return fake_disk_real_write(descriptor, bytes, count, offset);
}

static inline ssize_t fake_disk_real_read(int descriptor, void *bytes, size_t count, off_t offset) {
    return syscall(SYS_pread64, descriptor, bytes, count, offset);
}

static inline ssize_t fake_disk_read_flipped(int descriptor, void *bytes, size_t count, off_t offset) {
    ssize_t got = fake_disk_real_read(descriptor, bytes, count, offset);
    for (ssize_t at = 0; at < got; at += 4096) { /* many records may come in one read: each is to be wrong */
        size_t page = (size_t)(got - at < 4096 ? got - at : 4096);
        ((unsigned char *)bytes)[(size_t)at + fake_disk_random() % page] ^=
            (unsigned char)(1u << fake_disk_random() % 8);
        atomic_fetch_add(&fake_disk.failed, 1);
    }
    return got;
}

static inline ssize_t fake_disk_read_short(int descriptor, void *bytes, size_t count, off_t offset) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return fake_disk_random() % 2 == 0 ? fake_disk_fail(EINTR)
                                       : fake_disk_real_read(descriptor, bytes, count < page ? count : page, offset);
}

ssize_t pread(int descriptor, void *bytes, size_t count, off_t offset) {
    atomic_fetch_add(&fake_disk.reads, 1);
    switch (fake_disk_next()) {
    case FAKE_DISK_READ_ERROR:
    case FAKE_DISK_GONE:
        return fake_disk_fail(EIO);
    case FAKE_DISK_SHORT:
        return fake_disk_read_short(descriptor, bytes, count, offset);
    case FAKE_DISK_ENDS_EARLY:
        atomic_fetch_add(&fake_disk.failed, 1);
        return 0;
    case FAKE_DISK_READ_FLIPS:
        return fake_disk_read_flipped(descriptor, bytes, count, offset);
    case FAKE_DISK_NOT_DIRECT:
        if (psi_os_is_direct(descriptor)) {
            return fake_disk_fail(EINVAL);
        }
        break;
    default:
        break;
    }
    return fake_disk_real_read(descriptor, bytes, count, offset);
}

/* Until it is over the bytes are spoiled, and the last time just then: who looks at them too soon, or has unmapped
 * them, is found out. Two at a time are refused, as none is ever to ask for them. */
void psi_os_read_begin(psi_os_read *read, int descriptor, void *bytes, size_t count, uint64_t offset) {
    if (read->under_way) {
        abort();
    }
    atomic_fetch_add(&fake_disk.begun, 1);
    memset(bytes, 0xa5, count);
    *read =
        (psi_os_read){.under_way = true, .descriptor = descriptor, .bytes = bytes, .count = count, .offset = offset};
}

int psi_os_read_end(psi_os_read *read) {
    read->under_way = false;
    return psi_os_read_at(read->descriptor, read->bytes, read->count, read->offset);
}

bool psi_os_read_drop(psi_os_read *read) {
    if (read->under_way) {
        memset(read->bytes, 0xa5, read->count);
        read->under_way = atomic_load(&fake_disk.lingers);
    }
    return !read->under_way;
}

void psi_os_read_close(psi_os_read *read) {
    atomic_store(&fake_disk.lingers, false);
    (void)psi_os_read_drop(read);
}

int fallocate(int descriptor, int mode, off_t offset, off_t count) {
    atomic_fetch_add(&fake_disk.punches, 1);
    fake_disk_wait();
    return (int)syscall(SYS_fallocate, descriptor, mode, offset, count);
}

int sync_file_range(int descriptor, off_t offset, off_t count, unsigned flags) {
    if (fake_disk_next() == FAKE_DISK_FLUSH_ERROR) {
        return (int)fake_disk_fail(EIO);
    }
    return (int)syscall(SYS_sync_file_range, descriptor, offset, count, flags);
}

#endif
