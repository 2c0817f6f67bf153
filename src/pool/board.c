/* board.c - see board.h. Part of the library that lives in other people's processes, so nothing here
 * may fail loudly: a board that cannot be shown becomes a private one. Any thread; after a fork too,
 * hence no lock (one that is held at the fork would be held for ever in the child). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* secure_getenv */
#endif
#include "pool/board.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(psi_stats) % sizeof(uint32_t) == 0, "psi_stats is copied in words");
#define STATS_WORDS (sizeof(psi_stats) / sizeof(uint32_t))

/* What one process knows of its own board. */
typedef struct own_board {
    pid_t pid;
    psi_board *board;
    struct own_board *parents; /* of the process we were forked from; kept, as its board may be in a caller's hand */
    char path[PATH_MAX];       /* "" for a private board */
    psi_board private_board;
} own_board;

static own_board *_Atomic the_own;
static own_board the_last_resort; /* when there is no memory even for an own_board */

/* ---- Directories ------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4))) static int format_path(char *path, size_t capacity, const char *format, ...) {
    char whole[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(whole, sizeof whole, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof whole || (size_t)length >= capacity)
        return -ENAMETOOLONG;
    memcpy(path, whole, (size_t)length + 1);
    return 0;
}

int psi_board_directory(unsigned index, char *path, size_t capacity) {
    /* secure_getenv: a setuid program must not be sent to a directory of its caller's choice. */
    const char *own = secure_getenv("PSI_CACHE_RUN_DIR");
    if (own && own[0] == '/')
        return index == 0 ? format_path(path, capacity, "%s", own) : -ENOENT;
    const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
    if (!runtime || runtime[0] != '/')
        index++;
    switch (index) {
    case 0:
        return format_path(path, capacity, "%s/psi-cache", runtime);
    case 1:
        return format_path(path, capacity, "/dev/shm/psi-cache-%lu", (unsigned long)geteuid());
    case 2:
        return format_path(path, capacity, "/tmp/psi-cache-%lu", (unsigned long)geteuid());
    default:
        return -ENOENT;
    }
}

/* Opens a run directory, if only its owner, ourselves, can have put files there. /tmp and /dev/shm are
 * everybody's: a directory that somebody else made first under our name must not be trusted. */
static int open_directory(const char *path, bool create) {
    if (create && mkdir(path, 0700) != 0 && errno != EEXIST)
        return -errno;
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0)
        return -errno;
    struct stat info;
    int error = fstat(directory, &info) != 0 ? -errno : 0;
    if (error == 0 && (info.st_uid != geteuid() || (info.st_mode & (S_IWGRP | S_IWOTH))))
        error = -EACCES;
    if (error == 0)
        return directory;
    close(directory);
    return error;
}

/* ---- Processes -------------------------------------------------------------------------------- */

static ssize_t read_process_file(int64_t pid, const char *name, char *buffer, size_t capacity) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/%s", pid, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -errno;
    ssize_t count = read(file, buffer, capacity - 1);
    int error = errno;
    close(file);
    if (count < 0)
        return -error;
    buffer[count] = '\0';
    return count;
}

/* Field 22 of /proc/<pid>/stat; 0 when it cannot be read (no such process, or /proc is hidden). */
static uint64_t start_of(int64_t pid) {
    char text[1024];
    if (read_process_file(pid, "stat", text, sizeof text) <= 0)
        return 0;
    const char *at = strrchr(text, ')'); /* field 2 may hold spaces and brackets */
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

static bool is_alive(int64_t pid, uint64_t started) {
    if (pid <= 0 || pid > INT_MAX || (kill((pid_t)pid, 0) != 0 && errno == ESRCH))
        return false;
    uint64_t now = start_of(pid);
    return started == 0 || now == 0 || now == started;
}

/* The command line with the program's directory cut off: what a person knows the process by. */
static void describe_self(char *out, size_t capacity) {
    char text[512];
    ssize_t count = read_process_file(getpid(), "cmdline", text, sizeof text);
    if (count <= 0)
        return;
    const char *slash = strrchr(text, '/'); /* ends at the first argument's NUL */
    size_t from = slash ? (size_t)(slash + 1 - text) : 0, to = 0;
    for (; from < (size_t)count && to + 1 < capacity; from++) {
        unsigned char c = (unsigned char)text[from];
        out[to++] = c == '\0' || c == '\n' || c == '\t' ? ' ' : (c < ' ' || c == 0x7f) ? '?' : (char)c;
    }
    while (to > 0 && out[to - 1] == ' ')
        to--;
    out[to] = '\0';
}

/* ---- Boards of others ------------------------------------------------------------------------- */

static psi_board *map_board(int file) {
    void *page = mmap(NULL, sizeof(psi_board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    return page == MAP_FAILED ? NULL : page;
}

/* A name that is a pid and nothing else, or 0. */
static int64_t pid_of_name(const char *name) {
    char *end = NULL;
    if (name[0] < '1' || name[0] > '9')
        return 0;
    errno = 0;
    long long pid = strtoll(name, &end, 10);
    return errno == 0 && *end == '\0' && pid <= INT_MAX ? pid : 0;
}

/* Maps directory/<pid>; NULL with errno. ESRCH: a board whose process is gone. */
static psi_board *open_in(int directory, int64_t pid) {
    char name[24];
    snprintf(name, sizeof name, "%" PRId64, pid);
    int file = openat(directory, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return NULL;
    struct stat info;
    int error = fstat(file, &info) != 0 ? errno : 0;
    if (error == 0 && (!S_ISREG(info.st_mode) || info.st_uid != geteuid()))
        error = EACCES;
    /* Reading past the end of a mapped file is SIGBUS: the size comes first. */
    if (error == 0 && info.st_size < (off_t)sizeof(psi_board))
        error = kill((pid_t)pid, 0) != 0 && errno == ESRCH ? ESRCH : EPROTO;
    psi_board *board = error == 0 ? map_board(file) : NULL;
    if (error == 0 && !board)
        error = errno;
    close(file);
    if (error == 0 && (board->magic != PSI_BOARD_MAGIC || board->pid != pid))
        error = kill((pid_t)pid, 0) != 0 && errno == ESRCH ? ESRCH : EPROTO;
    else if (error == 0 && !is_alive(pid, board->started))
        error = ESRCH;
    if (error == 0)
        return board;
    psi_board_close(board);
    errno = error;
    return NULL;
}

psi_board *psi_board_open(int64_t pid) {
    char path[PATH_MAX];
    int error = ENOENT;
    for (unsigned i = 0; pid > 0 && pid <= INT_MAX && psi_board_directory(i, path, sizeof path) == 0; i++) {
        int directory = open_directory(path, false);
        if (directory < 0)
            continue;
        psi_board *board = open_in(directory, pid);
        int reason = errno;
        close(directory);
        if (board)
            return board;
        if (reason != ENOENT && reason != ESRCH)
            error = reason;
    }
    errno = error;
    return NULL;
}

void psi_board_close(psi_board *board) {
    if (board)
        munmap(board, sizeof *board);
}

static int compare_pids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

size_t psi_board_list(int64_t *pids, size_t capacity) {
    char path[PATH_MAX];
    size_t count = 0;
    for (unsigned i = 0; psi_board_directory(i, path, sizeof path) == 0; i++) {
        int directory = open_directory(path, false);
        DIR *entries = directory < 0 ? NULL : fdopendir(directory);
        if (!entries) {
            if (directory >= 0)
                close(directory);
            continue;
        }
        for (struct dirent *entry; count < capacity && (entry = readdir(entries)) != NULL;) {
            int64_t pid = pid_of_name(entry->d_name);
            psi_board *board = pid ? open_in(directory, pid) : NULL;
            /* Another version's board is listed too: the caller's open says what is wrong with it. */
            if (board || (pid && errno == EPROTO))
                pids[count++] = pid;
            psi_board_close(board);
        }
        closedir(entries);
    }
    qsort(pids, count, sizeof *pids, compare_pids);
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || pids[kept - 1] != pids[i])
            pids[kept++] = pids[i];
    return kept;
}

/* Removes what processes that were killed left behind: they had no chance to. The directory is our own
 * user's alone, and open_in looks at each file's owner again. */
static void sweep(int directory) {
    int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = copy < 0 ? NULL : fdopendir(copy);
    if (!entries) {
        if (copy >= 0)
            close(copy);
        return;
    }
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        /* ".<pid>.new-<n>" is a board in the making; a process killed right there leaves it. */
        int64_t pid = 0;
        if (entry->d_name[0] == '.') {
            if (sscanf(entry->d_name, ".%" SCNd64 ".new-", &pid) == 1 && !is_alive(pid, 0))
                unlinkat(directory, entry->d_name, 0);
            continue;
        }
        pid = pid_of_name(entry->d_name);
        if (pid == 0)
            continue;
        psi_board *board = open_in(directory, pid);
        if (!board && errno == ESRCH)
            unlinkat(directory, entry->d_name, 0);
        psi_board_close(board);
    }
    closedir(entries);
}

/* ---- The own board ---------------------------------------------------------------------------- */

static void initialise(psi_board *board, pid_t pid) {
    memset(board, 0, sizeof *board);
    board->magic = PSI_BOARD_MAGIC;
    board->pid = pid;
    board->started = start_of(pid);
    describe_self(board->command, sizeof board->command);
}

static bool write_whole(int file, const void *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t written = write(file, (const char *)bytes + done, count - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        done += (size_t)written;
    }
    return true;
}

/* Makes the file under `name` and maps it. NULL: cannot. Written rather than ftruncated: on a full file
 * system the write fails here, while touching a hole through the mapping would kill us with SIGBUS. */
static psi_board *make_file(int directory, const char *name, const psi_board *content) {
    int file = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return NULL;
    psi_board *board = NULL;
    if (fchmod(file, 0600) == 0 && write_whole(file, content, sizeof *content))
        board = map_board(file);
    close(file);
    if (!board)
        unlinkat(directory, name, 0);
    else
        (void)mlock(board, sizeof *board); /* swapping it in again would be a wait in a spike */
    return board;
}

static void remove_own(void) {
    own_board *own = atomic_load_explicit(&the_own, memory_order_acquire);
    /* A child that inherited this handler and never had a board of its own leaves its parent's alone. */
    if (own && own->path[0] && own->pid == getpid())
        unlink(own->path);
}

/* Makes a board in the first directory that takes one, still under a name that readers pass over. */
static psi_board *make_shared(own_board *own, const psi_board *content, char *temporary, size_t capacity) {
    char path[PATH_MAX - 64];
    for (unsigned i = 0; psi_board_directory(i, path, sizeof path) == 0; i++) {
        int directory = open_directory(path, true);
        if (directory < 0)
            continue;
        sweep(directory);
        /* The address tells threads apart that are here at once. */
        char name[64];
        snprintf(name, sizeof name, ".%" PRId64 ".new-%" PRIxPTR, content->pid, (uintptr_t)own);
        unlinkat(directory, name, 0);
        psi_board *board = make_file(directory, name, content);
        close(directory);
        if (!board)
            continue;
        snprintf(temporary, capacity, "%s/%s", path, name);
        snprintf(own->path, sizeof own->path, "%s/%" PRId64, path, content->pid);
        return board;
    }
    return NULL;
}

/* The first of several threads wins; only the winner's file gets the name that readers look for. */
static own_board *publish(own_board *before, own_board *own, const char *temporary) {
    own_board *seen = before;
    if (atomic_compare_exchange_strong_explicit(&the_own, &seen, own, memory_order_acq_rel, memory_order_acquire)) {
        if (own->path[0] && rename(temporary, own->path) != 0) {
            unlink(temporary);
            own->path[0] = '\0';
        }
        return own;
    }
    if (own->path[0]) {
        unlink(temporary);
        psi_board_close(own->board);
    }
    if (own != &the_last_resort)
        free(own);
    return seen;
}

static psi_board *make_own(own_board *before, pid_t pid) {
    int error = errno; /* the host's: we may be inside one of its calls */
    own_board *own = calloc(1, sizeof *own);
    if (!own)
        own = &the_last_resort;
    char temporary[PATH_MAX] = "";
    own->path[0] = '\0';
    own->pid = pid;
    own->parents = before == own ? NULL : before;
    initialise(&own->private_board, pid);
    psi_board *shared = make_shared(own, &own->private_board, temporary, sizeof temporary);
    own->board = shared ? shared : &own->private_board;
    static atomic_flag registered = ATOMIC_FLAG_INIT; /* a child inherits the handler along with the flag */
    if (!atomic_flag_test_and_set(&registered))
        (void)atexit(remove_own);
    psi_board *board = publish(before, own, temporary)->board;
    errno = error;
    return board;
}

psi_board *psi_board_own(void) {
    own_board *own = atomic_load_explicit(&the_own, memory_order_acquire);
    pid_t pid = getpid();
    return own && own->pid == pid ? own->board : make_own(own, pid);
}

/* ---- Numbers: a seqlock ----------------------------------------------------------------------- */

/* No fences (ThreadSanitizer does not know them): each word is stored with release after the odd version,
 * and loaded with acquire before the version is looked at again. So who sees one word of a newer set sees
 * its odd version too, and tries again. */
void psi_board_write_stats(psi_board *board, const psi_stats *stats) {
    uint32_t words[STATS_WORDS];
    memcpy(words, stats, sizeof words);
    uint32_t version = atomic_load_explicit(&board->version, memory_order_relaxed);
    if ((version & 1) || board->pid != getpid())
        return; /* another thread is writing, or this is a parent's board in a forked child's hand */
    if (!atomic_compare_exchange_strong_explicit(&board->version, &version, version + 1, memory_order_acq_rel,
                                                 memory_order_relaxed))
        return;
    for (size_t i = 0; i < STATS_WORDS; i++)
        atomic_store_explicit(&board->stats[i], words[i], memory_order_release);
    atomic_store_explicit(&board->version, version + 2, memory_order_release);
}

int psi_board_read_stats(psi_board *board, psi_stats *stats) {
    uint32_t words[STATS_WORDS];
    for (int attempt = 0; attempt < 1000; attempt++) {
        uint32_t before = atomic_load_explicit(&board->version, memory_order_acquire);
        for (size_t i = 0; i < STATS_WORDS; i++)
            words[i] = atomic_load_explicit(&board->stats[i], memory_order_acquire);
        if (!(before & 1) && before == atomic_load_explicit(&board->version, memory_order_relaxed)) {
            memcpy(stats, words, sizeof words);
            return 0;
        }
        sched_yield();
    }
    return -EAGAIN;
}
