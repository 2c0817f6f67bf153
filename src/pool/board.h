/* board.h - the page a running process shows its numbers on, and takes requests from: one small
 * mapped file <run dir>/<pid>, mode 0600 in a directory of the same user. psi-cache status, trim and
 * restore read and write it; no lock, no socket, nothing for the engine to wait for. */
#ifndef PSI_BOARD_H
#define PSI_BOARD_H

#include <stdatomic.h>
#include <stdint.h>

#include "psicache.h"

#define PSI_BOARD_MAGIC UINT64_C(0x0031424953500a0d) /* changes with the layout */

typedef struct psi_board {
    uint64_t magic;
    int64_t pid;
    char command[64];             /* of the process, cut */
    char engine[128];             /* "llama.cpp ...", or why nothing is managed */
    _Atomic uint32_t version;     /* odd while `stats` is being written: read again */
    psi_stats stats;
    _Atomic uint32_t trim_permille; /* request: take and zero it; 0 none */
    _Atomic uint32_t restore;       /* request: take and zero it */
} psi_board;

/* The directory: $PSI_CACHE_RUN_DIR, else $XDG_RUNTIME_DIR/psi-cache, else /tmp/psi-cache-<uid>. Written to
 * path. 0 or a negative errno. Does not create it. */
int psi_board_directory(char *path, size_t capacity);

/* The own process's board, made on first use (and removed again when the process exits in the ordinary
 * way); never NULL: where no file can be made, a private one that nobody sees. */
psi_board *psi_board_own(void);

/* Another process's board, mapped; NULL with errno (ENOENT no such process under psi-cache, EPROTO another
 * version of the layout). Unmap with psi_board_close. */
psi_board *psi_board_open(int64_t pid);
void psi_board_close(psi_board *board);

/* A consistent copy of the numbers. */
void psi_board_read_stats(psi_board *board, psi_stats *stats);
void psi_board_write_stats(psi_board *board, const psi_stats *stats);

#endif
