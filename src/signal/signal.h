/* signal.h - what the machine feels: all sources become one raw sample, and samples become a reading.
 * Called by the watcher thread, and by the command on its own psi_signal; knows nothing of caches. Every path
 * may have another root, the process may be another one, and the clock may be replaced, so that a test feeds
 * it a fake /proc and /sys. */
#ifndef PSI_SIGNAL_H
#define PSI_SIGNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "signal/sample.h"

/* What a reading contains; a missing source leaves its bit out, and never counts as zero. */
enum {
    PSI_HAVE_STALL = 1u << 0,    /* stall_some_share, stall_full_share */
    PSI_HAVE_HEADROOM = 1u << 1, /* headroom_bytes, missing_bytes, limit_bytes */
    PSI_HAVE_FILL = 1u << 2,     /* fill_bytes_per_s: needs two readings with headroom */
    PSI_HAVE_FAULTS = 1u << 3,   /* major_faults_per_s */
    PSI_HAVE_REFAULTS = 1u << 4, /* refaults_per_s */
    PSI_HAVE_RECLAIM = 1u << 5,  /* reclaim_pages_per_s */
    PSI_HAVE_AVG10 = 1u << 6,    /* avg10_share */
    PSI_HAVE_IO = 1u << 7        /* io_some_share */
};

/* Which limit is the tightest. */
typedef enum psi_bound_kind { PSI_BOUND_NONE, PSI_BOUND_MACHINE, PSI_BOUND_V2, PSI_BOUND_V1 } psi_bound_kind;

typedef struct psi_reading {
    uint64_t at_us;
    uint32_t have;
    bool stall_is_own;        /* stall of the own cgroup, else of the whole system */
    bool stall_is_doubted;    /* the source contradicts itself or the rest (a constant 99 %): not in `have` */
    double stall_some_share;  /* share of the last second or so (at least 100 ms) in which some task stalled, 0..1 */
    double stall_full_share;  /* the same, all tasks at once */
    double stall_short_share; /* of "some" over the last 100 ms or so: leads */
    double io_some_share;     /* of io.pressure, as stall_some_share */
    double avg10_share;       /* the kernel's avg10 of "some", 0..1: for comparison and for people */
    uint64_t headroom_bytes;  /* can still be allocated before the tightest limit is met; 0 when missing_bytes > 0 */
    uint64_t missing_bytes;   /* wanted beyond zero headroom: own mappings in use that reclaim took and that must come
                                 back (thrash) */
    uint64_t unseen_bytes; /* of headroom_bytes: page cache of some group with a limit, whose place an allocation takes
                              without a change of the group's usage, or without fill. Only a look at COUNTERS tells */
    uint64_t limit_bytes;  /* that limit: memory.max/high, the v1 limit, or MemTotal; UINT64_MAX: not known */
    psi_bound_kind bound;  /* whose limit */
    uint32_t bound_level;  /* 0: the own group; above: an ancestor */
    int64_t fill_bytes_per_s; /* how fast headroom shrinks (positive) or grows; fast attack, slow decay */
    uint64_t fill_age_us; /* how long it has been shrinking at half this rate or more: a forecast reaches a few times
                             as far as it was watched */
    double major_faults_per_s; /* of the own process, over about 1 s */
    double refaults_per_s;     /* file and anonymous pages of the own group (else the machine) that had been in use */
    double
        reclaim_pages_per_s; /* scanned for the whole machine, kswapd and direct; a cgroup's own reclaim is not in it */
} psi_reading;

/* One row a source, for doctor, watch and the log. Strings live as long as the psi_signal. */
typedef struct psi_source {
    const char *name; /* "psi.own.memory", "psi.system.memory", "psi.own.io", "psi.system.io", "cgroup-v2", "cgroup-v1",
                         "memory.events", "oom_control", "meminfo", "zoneinfo", "vmstat", "swap", "zram", "faults",
                         "mappings" */
    bool in_use;
    const char *detail; /* the path in use, or why it is missing */
    const char *cure;   /* what would make it available; "" when in use, or when nothing is wrong */
} psi_source;

typedef struct psi_signal psi_signal;

typedef struct psi_clock {
    uint64_t (*now_us)(void *user); /* monotonic; NULL: the system's */
    void *user;
} psi_clock;

typedef struct psi_signal_options {
    const char *root;   /* prefix of /proc and /sys; NULL or "": the system's */
    int64_t process_id; /* whose cgroup, faults and mappings; 0: the own */
    psi_clock clock;
} psi_signal_options;

/* Finds the sources. NULL options: the system, the own process. NULL when memory is short. */
psi_signal *psi_signal_open(const psi_signal_options *options);
void psi_signal_close(psi_signal *signal);

/* Makes one sample (of the depths that `look` names; STALL, COUNTERS and RARE are left out when they were taken less
 * than 25 ms, 50 ms and 5 s ago) and derives a reading from it. Never fails: what cannot be read now is left out of
 * `have`. Allocates nothing. */
void psi_signal_read(psi_signal *signal, uint32_t look, psi_reading *reading);

/* The sample that the last reading was made of. */
const psi_sample *psi_signal_last(const psi_signal *signal);

/* Says that the caller itself took `bytes` of memory (restored blocks), or gave them back (negative),
 * since the last reading. What is said here is not counted as fill: otherwise regrowing would look
 * like a spike, and call for the next trim. Watcher thread, just before psi_signal_read. */
void psi_signal_took(psi_signal *signal, int64_t bytes);

/* The number of genuine trigger events so far, which goes into the next samples. */
void psi_signal_note_trigger(psi_signal *signal, uint64_t events);

/* The sources, in a fixed order; *count receives how many. A source that stops working while we run turns
 * missing here, with the reason, and comes back when it does. */
const psi_source *psi_signal_sources(const psi_signal *signal, size_t *count);

/* One bit a row whose in_use changed since the last call: what must be said aloud. */
uint64_t psi_signal_changes(psi_signal *signal);

/* The path of the own group's directory in the v2 tree, with root, or NULL when there is none or it is the root
 * group; for triggers. And the v1 memory one. Valid until the next psi_signal_read. */
const char *psi_signal_group_v2(const psi_signal *signal);
const char *psi_signal_group_v1(const psi_signal *signal);

/* ---- Samples to readings (derive.c): pure, so that a trace can be replayed ---------------------- */

typedef struct psi_derive psi_derive; /* in derive.h */

#endif
