/* board.h - the page a running process shows its numbers on, and takes requests from: one small
 * mapped file <run dir>/<pid>, mode 0600 in a directory of the same user. psi-cache status, trim and
 * restore read and write it; no lock, no socket, nothing for the engine to wait for. */
#ifndef PSI_BOARD_H
#define PSI_BOARD_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "psicache.h"

#define PSI_BOARD_MAGIC UINT64_C(0x0036424953500a0d) /* changes with the layout */

typedef struct psi_board {
    uint64_t magic;
    int64_t pid;
    uint64_t started;               /* of the process, clock ticks since boot: a pid alone may be used again */
    char command[64];               /* of the process, cut */
    char engine[128];               /* "llama.cpp ...", or why nothing is managed; only its own process writes it */
    _Atomic uint32_t trim_permille; /* request: take and zero it; 0 none */
    _Atomic uint32_t restore;       /* request: take and zero it */
    _Atomic uint32_t version;       /* odd while `stats` is being written: read again */
    _Atomic uint32_t stats[sizeof(psi_stats) / sizeof(uint32_t)]; /* a psi_stats, through the two calls below */
} psi_board;

/* The directories a board may be in, best first: $PSI_CACHE_RUN_DIR alone where it is set; else
 * $XDG_RUNTIME_DIR/psi-cache, /dev/shm/psi-cache-<uid>, /tmp/psi-cache-<uid>. Memory-backed ones come first:
 * on a disk's file system each write to the page may wait for the journal, in the very spike that we are to
 * survive, and wears out an SD card. Several, because a service and a shell of one user often differ in
 * XDG_RUNTIME_DIR: readers look in all of them. Written to path; 0, -ENOENT past the last, or -ENAMETOOLONG.
 * Creates nothing. */
int psi_board_directory(unsigned index, char *path, size_t capacity);

/* The own process's board, made on first use (and removed again when the process exits in the ordinary
 * way); never NULL: where no file can be made, a private one that nobody sees. Any thread. A forked child
 * gets its own, so ask for it at each use rather than keep the pointer. */
psi_board *psi_board_own(void);

/* Another process's board, mapped; NULL with errno: ENOENT no such process under psi-cache, EPROTO another
 * version of the layout, EACCES a board that is not the same user's. Unmap with psi_board_close. */
psi_board *psi_board_open(int64_t pid);
void psi_board_close(psi_board *board);

/* The pids of all live processes with a board, ascending; at most `capacity` are written. How many. */
size_t psi_board_list(int64_t *pids, size_t capacity);

/* A consistent copy of the numbers. 0, or -EAGAIN with *stats untouched when none could be had (a process
 * killed in the middle of writing leaves such a board). All zero, `size` included, before the first write. */
int psi_board_read_stats(psi_board *board, psi_stats *stats);

/* For the own board only, and without effect on a parent's. Two threads at once: one of them wins. */
void psi_board_write_stats(psi_board *board, const psi_stats *stats);

#endif
