/* os_linux.c - the seam's Linux side: pages, small files, the store's descriptor, clock.
 * Called from every room, on any thread; keeps no state. */
#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

size_t psi_os_page_bytes(void) {
    long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? (size_t)bytes : 4096;
}

void *psi_os_reserve(size_t bytes) {
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    /* A huge page would commit 2 MiB for one written token. Kernels without THP answer EINVAL: as good. */
    (void)madvise(base, bytes, MADV_NOHUGEPAGE);
    return base;
}

void psi_os_unreserve(void *base, size_t bytes) {
    if (base != NULL) {
        (void)munmap(base, bytes);
    }
}

int psi_os_give_back(void *base, size_t bytes) {
    if (bytes == 0 || madvise(base, bytes, MADV_DONTNEED) == 0) {
        return 0;
    }
    /* mlockall() in the host locks our pages too, and locked pages are not given back. */
    if (errno == EINVAL && munlock(base, bytes) == 0 && madvise(base, bytes, MADV_DONTNEED) == 0) {
        return 0;
    }
    return -errno;
}

uint64_t psi_os_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

int64_t psi_os_process_id(void) { return getpid(); }

uint64_t psi_os_half_memory_bytes(void) {
    long pages = sysconf(_SC_PHYS_PAGES);
    return pages > 0 ? (uint64_t)pages / 2 * psi_os_page_bytes() : UINT64_C(1) << 30;
}

int psi_os_thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits it: the host's signals stay the host's */
    int error = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

void psi_os_condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

void psi_os_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t timeout_us) {
    uint64_t until = psi_os_now_us() + timeout_us;
    struct timespec at = {.tv_sec = (time_t)(until / 1000000u), .tv_nsec = (long)(until % 1000000u) * 1000};
    (void)pthread_cond_timedwait(condition, mutex, &at);
}

void psi_os_pause_us(uint64_t pause_us) {
    struct timespec pause = {.tv_sec = (time_t)(pause_us / 1000000u), .tv_nsec = (long)(pause_us % 1000000u) * 1000};
    (void)nanosleep(&pause, NULL);
}

ssize_t psi_os_read_small(const char *path, char *buffer, size_t capacity) {
    if (capacity == 0) {
        return -EINVAL;
    }
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0) {
        return -errno;
    }
    size_t length = 0;
    while (length + 1 < capacity) {
        ssize_t got = read(descriptor, buffer + length, capacity - 1 - length);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            int error = errno;
            close(descriptor);
            return -error;
        }
        if (got == 0) {
            break;
        }
        length += (size_t)got;
    }
    close(descriptor);
    buffer[length] = '\0';
    return (ssize_t)length;
}

/* For file systems without O_TMPFILE (overlayfs before Linux 6.1, NFS): a name for an instant. */
static int open_and_unlink(const char *directory, int flags) {
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/.psi-cache-XXXXXX", directory);
    if (length < 0 || (size_t)length >= sizeof(path)) {
        return -ENAMETOOLONG;
    }
    int descriptor = mkostemp(path, flags | O_CLOEXEC);
    if (descriptor < 0) {
        return -errno;
    }
    if (unlink(path) != 0) {
        int error = errno;
        close(descriptor);
        return -error;
    }
    return descriptor;
}

int psi_os_open_unlinked(const char *directory) {
    /* O_EXCL with O_TMPFILE: nobody can give the file a name later. */
    const int common = O_RDWR | O_TMPFILE | O_EXCL | O_CLOEXEC;
    int descriptor = open(directory, common | O_DIRECT, 0600);
    if (descriptor < 0 && errno == EINVAL) { /* no O_DIRECT here, tmpfs before Linux 6.6 for one */
        descriptor = open(directory, common, 0600);
    }
    if (descriptor >= 0) {
        return descriptor;
    }
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) {
        return -errno;
    }
    int named = open_and_unlink(directory, O_DIRECT);
    return named >= 0 ? named : open_and_unlink(directory, 0);
}

/* A write past RLIMIT_FSIZE raises SIGXFSZ, which ends the host process: refuse it ourselves. */
static int within_file_limit(uint64_t end) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return 1;
    }
    return end <= (uint64_t)limit.rlim_cur;
}

int psi_os_write_at(int descriptor, const void *bytes, size_t count, uint64_t offset) {
    if (!within_file_limit(offset + count)) {
        return -EFBIG;
    }
    const unsigned char *next = bytes;
    while (count > 0) {
        ssize_t wrote = pwrite(descriptor, next, count, (off_t)offset);
        if (wrote < 0 && errno == EINTR) {
            continue;
        }
        if (wrote <= 0) {
            return wrote < 0 ? -errno : -EIO;
        }
        next += wrote;
        offset += (uint64_t)wrote;
        count -= (size_t)wrote;
    }
    return 0;
}

int psi_os_read_at(int descriptor, void *bytes, size_t count, uint64_t offset) {
    unsigned char *next = bytes;
    while (count > 0) {
        ssize_t got = pread(descriptor, next, count, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got < 0 ? -errno : -EIO;
        }
        next += got;
        offset += (uint64_t)got;
        count -= (size_t)got;
    }
    return 0;
}

void psi_os_forget(int descriptor, uint64_t offset, uint64_t count) {
    if ((fcntl(descriptor, F_GETFL) & O_DIRECT) == 0) {
        (void)sync_file_range(descriptor, (off_t)offset, (off_t)count,
                              SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        (void)posix_fadvise(descriptor, (off_t)offset, (off_t)count, POSIX_FADV_DONTNEED);
    }
}

void psi_os_punch(int descriptor, uint64_t offset, uint64_t count) {
    (void)fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count);
}

void psi_os_close(int descriptor) {
    if (descriptor >= 0) {
        (void)close(descriptor);
    }
}
#else
typedef int psi_os_linux_is_not_used; /* an empty translation unit is not C */
#endif
