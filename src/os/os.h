/* os.h - the seam to the system: pages, files, clock, threads. The library's only room that makes system calls. */
#ifndef PSI_OS_H
#define PSI_OS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Size of a page: a power of two, 4 KiB to 64 KiB on the systems we know. */
size_t psi_os_page_bytes(void);

/* Address space for `bytes` (up to the end of a page), readable and writable, no page committed until it is
 * written to, never backed by huge pages (one touched byte must cost one page). NULL with errno. */
void *psi_os_reserve(size_t bytes);
void psi_os_unreserve(void *base, size_t bytes);

/* Gives the pages of [base, base + bytes) back, the last one whole; base is a page multiple. They read as zero
 * afterwards and cost memory only when written again. 0 or a negative errno. */
int psi_os_give_back(void *base, size_t bytes);
/* Takes the pages of a range that is about to be written, many in one call: a touch each costs the kernel more. What it
 * cannot take, the touch will. */
void psi_os_populate(void *base, size_t bytes);

/* The same for many ranges, in few calls to the system where it can. Bytes given back. */
typedef struct psi_os_range {
    void *base;
    size_t bytes;
} psi_os_range;
uint64_t psi_os_give_back_ranges(const psi_os_range *ranges, size_t count);

/* Monotonic time. */
uint64_t psi_os_now_us(void);

int64_t psi_os_process_id(void);

/* Half the machine's memory in bytes; 1 GiB where that is not known. */
uint64_t psi_os_half_memory_bytes(void);

/* Starts a thread that receives no signal of the host's. 0 or a negative errno. */
int psi_os_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);

/* Names the calling thread, for ps and top; at most 15 characters. */
void psi_os_name_thread(const char *name);

void psi_os_pause_us(uint64_t pause_us);

/* One descriptor to wait for: POLLPRI (a trigger) or POLLIN. */
typedef struct psi_os_watch {
    int descriptor;
    bool urgent; /* wait for POLLPRI rather than POLLIN */
    bool ready;  /* out: it happened */
    bool gone;   /* out: POLLERR, POLLHUP or POLLNVAL */
} psi_os_watch;

/* A bell that one thread sleeps at and any other may ring. 0 or a negative errno; a bell that could not be opened is
 * {-1, -1}, rings for nobody, and can still be slept at. A ring before the sleep ends the sleep; rings do not add up.
 */
typedef struct psi_os_bell {
    int descriptor[2];
} psi_os_bell;
int psi_os_bell_open(psi_os_bell *bell);
void psi_os_bell_close(psi_os_bell *bell);
void psi_os_bell_ring(psi_os_bell *bell);

/* Sleeps until the bell rings, a watch is ready or gone, or the time is over. Returns how many watches are ready or
 * gone. At most PSI_OS_WATCHES. What is gone stays so: whoever does not leave it out the next time does not sleep. */
#define PSI_OS_WATCHES 8
size_t psi_os_wait(psi_os_bell *bell, psi_os_watch *watches, size_t count, uint64_t timeout_us);

/* ---- Pressure triggers ------------------------------------------------------------------------- */

/* Opens `path` for reading and writing, without blocking, and writes bytes[0, count) in one write. A descriptor, or a
 * negative errno; a FIFO or a socket is opened (connected) as what it is. Nothing is written when count is 0. */
int psi_os_open_trigger(const char *path, const char *bytes, size_t count);
/* Reads away what waits on a FIFO or socket, so that it can be waited for again. Bytes read, or a negative errno;
 * -EPIPE when nothing is left and the other side has closed. */
ssize_t psi_os_drain(int descriptor);

typedef enum psi_os_kind { PSI_OS_FILE, PSI_OS_FIFO, PSI_OS_SOCKET, PSI_OS_OTHER } psi_os_kind;
typedef struct psi_os_identity {
    psi_os_kind kind;
    uint64_t device, inode; /* two paths with the same pair are the same file */
} psi_os_identity;
/* What `path` leads to. 0 or a negative errno. */
int psi_os_identify(const char *path, psi_os_identity *identity);

/* ---- Small files and directories ----------------------------------------------------------------- */

/* Calls visit for each directory in `path`, in the file system's order, until it says false. Allocates nothing. 0 or a
 * negative errno. */
int psi_os_list_directories(const char *path, bool (*visit)(void *user, const char *name), void *user);

/* Reads a small file whole, adds a NUL; at most capacity - 1 bytes. Bytes read or a negative errno. */
ssize_t psi_os_read_small(const char *path, char *buffer, size_t capacity);

/* Reads a file of any length by line, at most `most` bytes of it, through buffer[capacity]. Each line goes to take()
 * without its newline, ended by a NUL, to be changed at will; false from it ends the reading. Lines that do not fit
 * into the buffer are left out. 0, or a negative errno: -EFBIG when there was more. */
int psi_os_read_lines(const char *path, char *buffer, size_t capacity, size_t most,
                      bool (*take)(void *user, char *line), void *user);

/* Puts `bytes` in place of whatever the file `path` holds, whole or not at all (a file beside it, renamed; mode 0600).
 * 0 or a negative errno. */
int psi_os_replace_file(const char *path, const char *bytes, size_t count);

/* An unlinked file of mode 0600 in `directory`, that no other process can open by name, close-on-exec. A
 * descriptor or a negative errno. */
int psi_os_open_unlinked(const char *directory);

/* Whole or nothing: 0, or a negative errno (-ENOSPC, -EIO for a short read, ...). Where the file system takes the flag
 * O_DIRECT and then no transfer with it, the descriptor goes through the page cache from there on. */
int psi_os_write_at(int descriptor, const void *bytes, size_t count, uint64_t offset);
int psi_os_read_at(int descriptor, void *bytes, size_t count, uint64_t offset);

/* Whether its transfers go past the page cache. */
bool psi_os_is_direct(int descriptor);

/* A read that goes on while its caller does something else, where the system can do that; else it is done when it is
 * ended. Zero at first. One read at a time: begin, then end (0 or a negative errno, as psi_os_read_at) or drop, which
 * waits for nothing: false, it goes on, and is to be dropped again. Until then nobody touches the bytes, and the
 * descriptor stays open. */
typedef struct psi_os_read {
    uint64_t context; /* the system's; 0: none yet */
    bool refused;     /* there will be none */
    bool under_way;
    int descriptor;
    void *bytes;
    size_t count;
    uint64_t offset;
} psi_os_read;

void psi_os_read_begin(psi_os_read *read, int descriptor, void *bytes, size_t count, uint64_t offset);
int psi_os_read_end(psi_os_read *read);
bool psi_os_read_drop(psi_os_read *read);
void psi_os_read_close(psi_os_read *read);

/* Waits until a range that was written has reached the disk; 0, or a negative errno when it has not. Nothing to do for
 * a descriptor past the page cache. */
int psi_os_flush(int descriptor, uint64_t offset, uint64_t count);
/* Tells the system that a range of a file will not be wanted (drops page cache), or frees its disk space. */
void psi_os_forget(int descriptor, uint64_t offset, uint64_t count);
void psi_os_punch(int descriptor, uint64_t offset, uint64_t count);
void psi_os_close(int descriptor);

#endif
