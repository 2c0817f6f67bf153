/* files_linux.c - the seam's small files and directories: /proc, groups, settings. Any thread; keeps no state. */
#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

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

void psi_os_close(int descriptor) {
    if (descriptor >= 0) {
        (void)close(descriptor);
    }
}
#else
typedef int psi_os_files_is_not_used; /* an empty translation unit is not C */
#endif
