/* signal.h - what the machine feels: PSI, cgroup limits, meminfo and own faults become one reading.
 * Called by the watcher thread only; knows nothing of caches. Every path may have another root and
 * the clock may be replaced, so that a test feeds it a fake /proc and /sys. */
#ifndef PSI_SIGNAL_H
#define PSI_SIGNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a reading contains; a missing source leaves its bit out, and never counts as zero. */
enum {
    PSI_HAVE_STALL = 1u << 0,    /* stall_some_share, stall_full_share */
    PSI_HAVE_HEADROOM = 1u << 1, /* headroom_bytes, limit_bytes */
    PSI_HAVE_FILL = 1u << 2,     /* fill_bytes_per_s: needs two readings with headroom */
    PSI_HAVE_FAULTS = 1u << 3    /* major_faults_per_s */
};

typedef struct psi_reading {
    uint64_t at_us;
    uint32_t have;
    bool stall_is_own;         /* stall of the own cgroup, else of the whole system */
    double stall_some_share;   /* share of the last second or so (at least 100 ms) in which some task stalled, 0..1 */
    double stall_full_share;   /* the same, all tasks at once */
    uint64_t headroom_bytes;   /* can still be allocated before the tightest limit is met */
    uint64_t limit_bytes;      /* that limit: memory.max/high, the v1 limit, or MemTotal; UINT64_MAX: not known */
    int64_t fill_bytes_per_s;  /* how fast headroom shrinks (positive) or grows; fast attack, slow decay */
    double major_faults_per_s; /* of the own process, over about 1 s */
} psi_reading;

/* One row a source, for doctor and the log. Strings live as long as the psi_signal. */
typedef struct psi_source {
    const char *name; /* "psi", "cgroup-v2", "cgroup-v1", "meminfo", "faults", "mappings" */
    bool in_use;
    const char *detail; /* the path in use, or why it is missing */
    const char *cure;   /* what would make it available; "" when in use */
} psi_source;

typedef struct psi_signal psi_signal;

typedef struct psi_clock {
    uint64_t (*now_us)(void *user); /* monotonic; NULL: the system's */
    void *user;
} psi_clock;

/* Finds the sources below `root` ("" for the system). NULL when memory is short. */
psi_signal *psi_signal_open(const char *root, psi_clock clock);
void psi_signal_close(psi_signal *signal);

/* Makes one reading. Never fails: what cannot be read now is left out of `have`. */
void psi_signal_read(psi_signal *signal, psi_reading *reading);

/* Says that the caller itself took `bytes` of memory (restored blocks), or gave them back (negative),
 * since the last reading. What is said here is not counted as fill: otherwise regrowing would look
 * like a spike, and call for the next trim. Watcher thread, just before psi_signal_read. */
void psi_signal_took(psi_signal *signal, int64_t bytes);

/* The sources as they were found at open, in a fixed order; *count receives how many. */
const psi_source *psi_signal_sources(const psi_signal *signal, size_t *count);

#endif
