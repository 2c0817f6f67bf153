/* spike.c - another program that suddenly needs memory: anonymous growth on a schedule, held, given back. */
#define _GNU_SOURCE
#include "guest.h"

#include <sys/mman.h>
#include <unistd.h>

#define CHUNK_BYTES (MIB / 4)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* In one call where the kernel can (Linux 5.14): a page fault each would be most of the time under emulation. */
static void touch(char *memory, size_t bytes, size_t page_bytes) {
    if (madvise(memory, bytes, MADV_POPULATE_WRITE) == 0) {
        return;
    }
    for (size_t at = 0; at < bytes; at += page_bytes) {
        memory[at] = 1;
    }
}

int spike_main(size_t bytes, double bytes_per_s, uint64_t begin_us, double hold_s, spike_report *report) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return 1;
    }
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t done = 0; done < bytes;) {
        size_t stop = done + CHUNK_BYTES < bytes ? done + CHUNK_BYTES : bytes;
        touch(memory + done, stop - done, page_bytes);
        atomic_fetch_add(&report->touched_bytes, stop - done);
        atomic_store(&report->last_touch_us, now_us());
        done = stop;
        /* an absolute schedule: a stall is made up for */
        sleep_until_us(begin_us + (uint64_t)((double)done / bytes_per_s * 1e6));
    }
    sleep_until_us(now_us() + (uint64_t)(hold_s * 1e6));
    (void)munmap(memory, bytes);
    return 0;
}
