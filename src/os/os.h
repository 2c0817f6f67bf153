/* os.h - the seam to the system: pages, small files, clock, threads. The only room that makes system
 * calls for the library; one implementation file a system (os_linux.c, os_other.c). */
#ifndef PSI_OS_H
#define PSI_OS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Size of a page: a power of two, 4 KiB to 64 KiB on the systems we know. */
size_t psi_os_page_bytes(void);

/* Address space for `bytes` (a page multiple), readable and writable, no page committed until it is
 * written to, never backed by huge pages (one touched byte must cost one page). NULL with errno. */
void *psi_os_reserve(size_t bytes);
void psi_os_unreserve(void *base, size_t bytes);

/* Gives the pages of [base, base + bytes) back; both page multiples. They read as zero afterwards
 * and cost memory only when written again. 0 or a negative errno. */
int psi_os_give_back(void *base, size_t bytes);

/* Monotonic time. */
uint64_t psi_os_now_us(void);

int64_t psi_os_process_id(void);

/* Half the machine's memory in bytes; 1 GiB where that is not known. */
uint64_t psi_os_half_memory_bytes(void);

/* Starts a thread that receives no signal of the host's. 0 or a negative errno. */
int psi_os_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);

/* Waits on a condition made with psi_os_condition_init, at most that long. */
void psi_os_condition_init(pthread_cond_t *condition);
void psi_os_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t timeout_us);
void psi_os_pause_us(uint64_t pause_us);

/* Reads a small file whole, adds a NUL; at most capacity - 1 bytes. Bytes read or a negative errno. */
ssize_t psi_os_read_small(const char *path, char *buffer, size_t capacity);

/* An unlinked file of mode 0600 in `directory`, that no other process can open by name, close-on-exec. A
 * descriptor or a negative errno. */
int psi_os_open_unlinked(const char *directory);

/* Whole or nothing: 0, or a negative errno (-ENOSPC, -EIO for a short read, ...). */
int psi_os_write_at(int descriptor, const void *bytes, size_t count, uint64_t offset);
int psi_os_read_at(int descriptor, void *bytes, size_t count, uint64_t offset);
/* Tells the system that a range of a file will not be wanted (drops page cache), or frees its disk space. */
void psi_os_forget(int descriptor, uint64_t offset, uint64_t count);
void psi_os_punch(int descriptor, uint64_t offset, uint64_t count);
void psi_os_close(int descriptor);

#endif
