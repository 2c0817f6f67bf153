/* store_linux.c - the file that a store writes to: without a name, past the page cache where its file system allows it.
 * Any thread; keeps no state. */
#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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

void psi_os_punch(int descriptor, uint64_t offset, uint64_t count) {
    (void)fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count);
}
#else
typedef int psi_os_store_is_not_used; /* an empty translation unit is not C */
#endif
