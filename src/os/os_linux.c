/* os_linux.c - the seam's Linux side: pages, clock, threads, waiting, pressure triggers. Files: files_linux.c,
 * store_linux.c and read_linux.c. Called from every room, on any thread; keeps no state but what the kernel was found
 * to be able to do. */
#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
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

void psi_os_populate(void *base, size_t bytes) {
    /* MADV_POPULATE_WRITE, Linux 5.14. A page or two are as cheap by touch. */
    enum { POPULATE_WRITE = 23, LEAST_PAGES = 4 };
    static atomic_bool missing;
    size_t page = psi_os_page_bytes();
    uintptr_t from = (uintptr_t)base & ~(page - 1), to = ((uintptr_t)base + bytes + page - 1) & ~(page - 1);
    if (to - from >= LEAST_PAGES * page && !atomic_load(&missing) &&
        madvise((void *)from, to - from, POPULATE_WRITE) != 0 && errno == EINVAL) {
        atomic_store(&missing, true);
    }
}

/* ---- Many ranges in one call: process_madvise on ourselves ------------------------------------------- */

#ifndef SYS_process_madvise
#define SYS_process_madvise 440 /* the same on every architecture */
#endif
#define PIDFD_OF_SELF (-10000) /* PIDFD_SELF of recent kernels: no descriptor to open and to keep */
_Static_assert(sizeof(psi_os_range) == sizeof(struct iovec) &&
                   offsetof(psi_os_range, base) == offsetof(struct iovec, iov_base) &&
                   offsetof(psi_os_range, bytes) == offsetof(struct iovec, iov_len),
               "ranges are handed to the kernel as they are");

static pthread_once_t batches_probed = PTHREAD_ONCE_INIT;
static bool batches_work;

/* Bytes of the leading ranges that were given back; negative when not even the first was. */
static ssize_t give_back_batch(const psi_os_range *ranges, size_t count) {
    return (ssize_t)syscall(SYS_process_madvise, PIDFD_OF_SELF, ranges, count, MADV_DONTNEED, 0);
}

/* Older kernels refuse MADV_DONTNEED here, or do not know PIDFD_SELF; a sandbox may refuse the call: tried once, on a
 * page that is ours. */
static void probe_batches(void) {
    size_t page = psi_os_page_bytes();
    volatile unsigned char *base = psi_os_reserve(page);
    if (base != NULL) {
        psi_os_range range = {.base = (void *)base, .bytes = page};
        *base = 1;
        batches_work = give_back_batch(&range, 1) == (ssize_t)page && *base == 0;
        psi_os_unreserve((void *)base, page);
    }
}

static uint64_t give_back_one(const psi_os_range *range) {
    return psi_os_give_back(range->base, range->bytes) == 0 ? range->bytes : 0;
}

uint64_t psi_os_give_back_ranges(const psi_os_range *ranges, size_t count) {
    enum { BATCH = 512 }; /* the kernel takes up to 1,024 */
    uint64_t bytes = 0;
    (void)pthread_once(&batches_probed, probe_batches);
    for (size_t at = 0; at < count;) {
        size_t most = count - at < BATCH ? count - at : BATCH;
        ssize_t given = batches_work && most > 1 ? give_back_batch(&ranges[at], most) : -1;
        for (; given > 0 && at < count && (size_t)given >= ranges[at].bytes; at++) {
            given -= (ssize_t)ranges[at].bytes;
            bytes += ranges[at].bytes;
            most--;
        }
        if (most > 0 && at < count) { /* it stopped here: locked pages, for one */
            bytes += give_back_one(&ranges[at++]);
        }
    }
    return bytes;
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

void psi_os_name_thread(const char *name) { (void)pthread_setname_np(pthread_self(), name); }

void psi_os_pause_us(uint64_t pause_us) {
    struct timespec pause = {.tv_sec = (time_t)(pause_us / 1000000u), .tv_nsec = (long)(pause_us % 1000000u) * 1000};
    (void)nanosleep(&pause, NULL);
}

/* ---- Bell and waiting ---------------------------------------------------------------------------- */

int psi_os_bell_open(psi_os_bell *bell) {
    int both = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (both >= 0) {
        *bell = (psi_os_bell){{both, both}};
        return 0;
    }
    if (pipe2(bell->descriptor, O_CLOEXEC | O_NONBLOCK) == 0) { /* a sandbox may know no eventfd */
        return 0;
    }
    int error = errno;
    *bell = (psi_os_bell){{-1, -1}};
    return -error;
}

void psi_os_bell_close(psi_os_bell *bell) {
    psi_os_close(bell->descriptor[0]);
    if (bell->descriptor[1] != bell->descriptor[0]) {
        psi_os_close(bell->descriptor[1]);
    }
    *bell = (psi_os_bell){{-1, -1}};
}

void psi_os_bell_ring(psi_os_bell *bell) {
    const uint64_t one = 1; /* eight bytes are what an eventfd takes; to a pipe they are as good as any */
    if (bell->descriptor[1] >= 0) {
        (void)!write(bell->descriptor[1], &one, sizeof(one)); /* EAGAIN: it rings already */
    }
}

static void silence(const psi_os_bell *bell) {
    uint64_t rings[64];
    while (read(bell->descriptor[0], rings, sizeof(rings)) == (ssize_t)sizeof(rings)) {
    }
}

static int poll_us(struct pollfd *polled, size_t count, uint64_t timeout_us) {
    struct timespec left = {.tv_sec = (time_t)(timeout_us / 1000000u), .tv_nsec = (long)(timeout_us % 1000000u) * 1000};
    return ppoll(polled, count, &left, NULL);
}

#define A_DAY_US UINT64_C(86400000000)

/* Polls until something happens or the time is over, whatever signals come. */
static void poll_until(struct pollfd *polled, size_t count, uint64_t until_us) {
    for (;;) {
        uint64_t now_us = psi_os_now_us();
        uint64_t left_us = until_us > now_us ? until_us - now_us : 0;
        bool is_long = left_us > A_DAY_US; /* a time_t of 32 bits ends sooner than our time */
        int happened = poll_us(polled, count, is_long ? A_DAY_US : left_us);
        if ((happened < 0 && errno == EINTR) || (happened == 0 && is_long)) {
            continue;
        }
        if (happened < 0) { /* ENOMEM, or EINVAL under a tiny RLIMIT_NOFILE: the caller counts on a sleep */
            psi_os_pause_us(left_us);
        }
        /* A bell that was closed behind our back must not keep everybody awake. */
        bool only_broken_bell = happened == 1 && polled[0].revents != 0 && (polled[0].revents & POLLIN) == 0;
        if (!only_broken_bell) {
            return;
        }
        polled[0].fd = -1;
    }
}

size_t psi_os_wait(psi_os_bell *bell, psi_os_watch *watches, size_t count, uint64_t timeout_us) {
    struct pollfd polled[1 + PSI_OS_WATCHES] = {{.fd = bell->descriptor[0], .events = POLLIN}}; /* -1 is skipped */
    uint64_t now_us = psi_os_now_us();
    count = count < PSI_OS_WATCHES ? count : PSI_OS_WATCHES;
    for (size_t i = 0; i < count; i++) {
        short events = watches[i].urgent ? POLLPRI : POLLIN;
        polled[1 + i] = (struct pollfd){.fd = watches[i].descriptor, .events = events};
    }
    poll_until(polled, 1 + count, timeout_us < UINT64_MAX - now_us ? now_us + timeout_us : UINT64_MAX);
    if ((polled[0].revents & POLLIN) != 0) {
        silence(bell);
    }
    size_t happened = 0;
    for (size_t i = 0; i < count; i++) {
        watches[i].ready = (polled[1 + i].revents & (watches[i].urgent ? POLLPRI : POLLIN)) != 0;
        watches[i].gone = (polled[1 + i].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
        happened += watches[i].ready || watches[i].gone;
    }
    return happened;
}

/* ---- Pressure triggers --------------------------------------------------------------------------- */

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof(address.sun_path)) {
        return -ENAMETOOLONG;
    }
    memcpy(address.sun_path, path, length + 1);
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) {
        return -errno;
    }
    if (connect(descriptor, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        int error = errno;
        close(descriptor);
        return -error;
    }
    return descriptor;
}

int psi_os_open_trigger(const char *path, const char *bytes, size_t count) {
    /* The kernel's pressure files heed no offset. O_APPEND is for a path that is none of them: whatever file that is,
     * it must not be overwritten. */
    int descriptor = open(path, O_RDWR | O_NONBLOCK | O_APPEND | O_CLOEXEC | O_NOCTTY);
    bool is_socket = descriptor < 0 && errno == ENXIO; /* what open says of a socket */
    if (is_socket) {
        descriptor = connect_to(path);
    } else if (descriptor < 0) {
        descriptor = -errno;
    }
    if (descriptor < 0 || count == 0) {
        return descriptor;
    }
    /* Without MSG_NOSIGNAL a peer that closed ends the host process. A FIFO that we can read has a reader. */
    ssize_t wrote = is_socket ? send(descriptor, bytes, count, MSG_NOSIGNAL) : write(descriptor, bytes, count);
    if (wrote != (ssize_t)count) {
        int error = wrote < 0 ? errno : EIO;
        close(descriptor);
        return -error;
    }
    return descriptor;
}

ssize_t psi_os_drain(int descriptor) {
    enum { MOST_READS = 16 }; /* a writer without pause must not hold us */
    char bytes[4096];
    ssize_t sum = 0;
    for (int i = 0; i < MOST_READS; i++) {
        ssize_t got = read(descriptor, bytes, sizeof(bytes));
        if (got <= 0) {
            int error = got == 0 ? EPIPE : errno;
            return sum > 0 || error == EAGAIN ? sum : -error;
        }
        sum += got;
    }
    return sum;
}

int psi_os_identify(const char *path, psi_os_identity *identity) {
    struct stat status;
    if (stat(path, &status) != 0) {
        return -errno;
    }
    psi_os_kind kind = S_ISREG(status.st_mode)    ? PSI_OS_FILE
                       : S_ISFIFO(status.st_mode) ? PSI_OS_FIFO
                       : S_ISSOCK(status.st_mode) ? PSI_OS_SOCKET
                                                  : PSI_OS_OTHER;
    *identity = (psi_os_identity){kind, (uint64_t)status.st_dev, (uint64_t)status.st_ino};
    return 0;
}
#else
typedef int psi_os_linux_is_not_used; /* an empty translation unit is not C */
#endif
