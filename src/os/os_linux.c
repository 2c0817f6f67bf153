/* os_linux.c - the seam's Linux side: pages, small files, the store's descriptor, clock.
 * Called from every room, on any thread; keeps no state but what the kernel was found to be able to do. */
#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
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

/* ---- Small files and directories ----------------------------------------------------------------- */

/* What getdents64 writes (include/linux/dirent.h); opendir would allocate 32 KiB each time. */
typedef struct directory_entry {
    uint64_t inode;
    int64_t offset;
    unsigned short bytes;
    unsigned char type;
    char name[];
} directory_entry;
#define ENTRY_IS_DIRECTORY 4 /* DT_DIR */

static bool visit_entries(const char *entries, long bytes, bool (*visit)(void *user, const char *name), void *user) {
    const directory_entry *entry;
    for (long at = 0; at < bytes; at += entry->bytes) {
        entry = (const void *)(entries + at);
        bool is_dots = strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0;
        if (entry->type == ENTRY_IS_DIRECTORY && !is_dots && !visit(user, entry->name)) {
            return false;
        }
    }
    return true;
}

int psi_os_list_directories(const char *path, bool (*visit)(void *user, const char *name), void *user) {
    _Alignas(directory_entry) char entries[8192];
    struct stat status;
    if (stat(path, &status) == 0 && status.st_nlink == 2) {
        return 0; /* only "." and the parent's entry: no directory's ".." leads here. A leaf costs a quarter so */
    }
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0) {
        return -errno;
    }
    long bytes;
    do {
        bytes = syscall(SYS_getdents64, descriptor, entries, sizeof(entries));
    } while (bytes > 0 && visit_entries(entries, bytes, visit, user));
    int error = bytes < 0 ? -errno : 0;
    close(descriptor);
    return error;
}

ssize_t psi_os_read_small(const char *path, char *buffer, size_t capacity) {
    if (capacity == 0) {
        return -EINVAL;
    }
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); /* a FIFO must not hold us */
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

/* Hands on the whole lines of buffer[0, *length) and keeps the rest at its begin; `at_end`: the rest is a line too.
 * False when take() has had enough. */
static bool hand_lines(char *buffer, size_t *length, bool at_end, bool *skip, bool (*take)(void *user, char *line),
                       void *user) {
    size_t start = 0;
    for (;;) {
        char *end = memchr(buffer + start, '\n', *length - start);
        if (end == NULL && (!at_end || start == *length)) {
            break;
        }
        size_t next = end != NULL ? (size_t)(end - buffer) + 1 : *length;
        buffer[end != NULL ? next - 1 : next] = '\0'; /* room for it: the buffer is never filled to its last byte */
        if (!*skip && !take(user, buffer + start)) {
            return false;
        }
        *skip = false;
        start = next;
    }
    memmove(buffer, buffer + start, *length - start);
    *length -= start;
    return true;
}

static int read_lines(int descriptor, char *buffer, size_t capacity, size_t most, bool (*take)(void *user, char *line),
                      void *user) {
    size_t length = 0, total = 0;
    bool skip = false; /* the line that is being read did not fit */
    for (;;) {
        ssize_t got = read(descriptor, buffer + length, capacity - 1 - length);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return -errno;
        }
        length += (size_t)got;
        total += (size_t)got;
        if (!hand_lines(buffer, &length, got == 0, &skip, take, user) || got == 0) {
            return 0;
        }
        if (total >= most) {
            return -EFBIG;
        }
        if (length == capacity - 1) {
            skip = true;
            length = 0;
        }
    }
}

int psi_os_read_lines(const char *path, char *buffer, size_t capacity, size_t most,
                      bool (*take)(void *user, char *line), void *user) {
    if (capacity < 2) {
        return -EINVAL;
    }
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0) {
        return -errno;
    }
    int result = read_lines(descriptor, buffer, capacity, most, take, user);
    close(descriptor);
    return result;
}

#define STORE_NAME ".psi-cache-"
#define STORE_NAME_RANDOM "XXXXXX"
#define LEFTOVER_S 60 /* the name lives for microseconds */

/* A process that is killed between open_and_unlink's two calls leaves an empty file. Ours to remove: of our user,
 * empty, and too old to be about to be used. */
static bool is_leftover(int directory, const char *name, time_t now) {
    struct stat status;
    size_t length = sizeof(STORE_NAME) - 1;
    return strncmp(name, STORE_NAME, length) == 0 && strlen(name) == length + sizeof(STORE_NAME_RANDOM) - 1 &&
           fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode) &&
           status.st_uid == geteuid() && status.st_size == 0 && status.st_mtime < now - LEFTOVER_S;
}

static void sweep(const char *path) {
    DIR *entries = opendir(path);
    if (entries == NULL) {
        return;
    }
    for (struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        if (is_leftover(dirfd(entries), entry->d_name, time(NULL))) {
            (void)unlinkat(dirfd(entries), entry->d_name, 0);
        }
    }
    (void)closedir(entries);
}

/* For file systems without O_TMPFILE (overlayfs before Linux 6.1, FAT, NFS): a name for an instant. */
static int open_and_unlink(const char *directory, int flags) {
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/" STORE_NAME STORE_NAME_RANDOM, directory);
    if (length < 0 || (size_t)length >= sizeof(path)) {
        return -ENAMETOOLONG;
    }
    sweep(directory);
    int descriptor = mkostemp(path, flags | O_CLOEXEC);
    if (descriptor < 0) {
        return -errno;
    }
    if (unlink(path) != 0 && errno != ENOENT) { /* swept by somebody whose clock is ahead: as good */
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

bool psi_os_is_direct(int descriptor) {
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT) != 0;
}

/* After a transfer that failed: true when it was refused for being direct, and the next one will not be. Some file
 * systems take the flag and no transfer; some disks' sectors are larger than our pages. */
static bool is_direct_no_more(int descriptor, ssize_t transferred) {
    if (transferred >= 0 || errno != EINVAL || !psi_os_is_direct(descriptor)) {
        return false;
    }
    return fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) & ~O_DIRECT) == 0;
}

int psi_os_write_at(int descriptor, const void *bytes, size_t count, uint64_t offset) {
    if (!within_file_limit(offset + count)) {
        return -EFBIG;
    }
    const unsigned char *next = bytes;
    while (count > 0) {
        ssize_t wrote = pwrite(descriptor, next, count, (off_t)offset);
        if ((wrote < 0 && errno == EINTR) || is_direct_no_more(descriptor, wrote)) {
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
        if ((got < 0 && errno == EINTR) || is_direct_no_more(descriptor, got)) {
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

int psi_os_flush(int descriptor, uint64_t offset, uint64_t count) {
    const unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (psi_os_is_direct(descriptor) || sync_file_range(descriptor, (off_t)offset, (off_t)count, all) == 0) {
        return 0;
    }
    return errno == ENOSYS || errno == EINVAL || errno == ESPIPE ? 0
                                                                 : -errno; /* no such call here: no error of a disk */
}

void psi_os_forget(int descriptor, uint64_t offset, uint64_t count) {
    if (!psi_os_is_direct(descriptor)) {
        (void)posix_fadvise(descriptor, (off_t)offset, (off_t)count, POSIX_FADV_DONTNEED);
    }
}

int psi_os_replace_file(const char *path, const char *bytes, size_t count) {
    char beside[PATH_MAX];
    struct stat there;
    if (lstat(path, &there) == 0 && !S_ISREG(there.st_mode)) {
        return -EEXIST;
    }
    int length = snprintf(beside, sizeof(beside), "%s.XXXXXX", path);
    if (length < 0 || (size_t)length >= sizeof(beside)) {
        return -ENAMETOOLONG;
    }
    int descriptor = mkostemp(beside, O_CLOEXEC);
    if (descriptor < 0) {
        return -errno;
    }
    int error = psi_os_write_at(descriptor, bytes, count, 0);
    if (close(descriptor) != 0 && error == 0) {
        error = -errno;
    }
    if (error == 0 && rename(beside, path) != 0) {
        error = -errno;
    }
    if (error != 0) {
        (void)unlink(beside);
    }
    return error;
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
