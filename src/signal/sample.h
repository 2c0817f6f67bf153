/* sample.h - the raw numbers of all sources at one instant: what a reading is derived from, what a trace
 * holds, what watch and --json show. One flat table, so that recording, replaying and showing need no code a
 * source. Pure data; filled on the watcher thread (or by the command) and never shared. */
#ifndef PSI_SAMPLE_H
#define PSI_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How deep to look; each costs more than the one before. A sample says what was looked at for it. */
enum {
    PSI_LOOK_AMOUNTS = 1u << 0,  /* usage and limit of groups, meminfo: 10-30 us, every reading */
    PSI_LOOK_STALL = 1u << 1,    /* memory.pressure, io.pressure: at most 40 a second, not while a trigger is armed */
    PSI_LOOK_COUNTERS = 1u << 2, /* memory.stat, vmstat, own faults and mappings: at most 20 a second */
    PSI_LOOK_RARE = 1u << 3,     /* watermarks, swap devices, zram, group membership: every few seconds */
    PSI_LOOK_ALL = (1u << 4) - 1
};

/* Levels of a group and its ancestors that are heeded, per cgroup version; Kubernetes makes 4 to 7. */
#define PSI_LEVELS 12

/* One limit that can be met: a group's, at one level. */
typedef enum psi_bound_field { PSI_BOUND_LIMIT, PSI_BOUND_USAGE, PSI_BOUND_CACHE, PSI_BOUND_FIELDS } psi_bound_field;

/* The raw values. _us: stall time since boot, microseconds. _bytes: amounts. Others count events since boot,
 * unless it says otherwise. "own" is the process's cgroup. sample_names.c has a name for each. */
typedef enum psi_raw {
    PSI_RAW_OWN_MEMORY_SOME_US,
    PSI_RAW_OWN_MEMORY_FULL_US,
    PSI_RAW_OWN_MEMORY_AVG10, /* "some", hundredths of a per cent */
    PSI_RAW_OWN_IO_SOME_US,
    PSI_RAW_OWN_IO_FULL_US,
    PSI_RAW_SYSTEM_MEMORY_SOME_US,
    PSI_RAW_SYSTEM_MEMORY_FULL_US,
    PSI_RAW_SYSTEM_MEMORY_AVG10,
    PSI_RAW_SYSTEM_IO_SOME_US,
    PSI_RAW_SYSTEM_IO_FULL_US,
    PSI_RAW_TRIGGER_EVENTS, /* genuine trigger events so far (trigger.h) */
    PSI_RAW_V2_EVENTS_HIGH, /* memory.events of the own v2 group */
    PSI_RAW_V2_EVENTS_MAX,
    PSI_RAW_V2_EVENTS_OOM,
    PSI_RAW_V2_EVENTS_OOM_KILL,
    PSI_RAW_V1_FAILCNT,          /* memory.failcnt: times that the limit was met */
    PSI_RAW_V1_UNDER_OOM,        /* memory.oom_control, state: 1 while the group waits for memory */
    PSI_RAW_V1_OOM_KILL_DISABLE, /* state */
    PSI_RAW_V1_OOM_KILL,
    PSI_RAW_OWN_REFAULT_FILE, /* memory.stat of the own group: pages read again that had been in use */
    PSI_RAW_OWN_REFAULT_ANON,
    PSI_RAW_MEMORY_TOTAL_BYTES, /* meminfo */
    PSI_RAW_MEMORY_AVAILABLE_BYTES,
    PSI_RAW_MEMORY_FREE_BYTES,
    PSI_RAW_SWAP_TOTAL_BYTES,
    PSI_RAW_SWAP_FREE_BYTES,
    PSI_RAW_ZONE_MIN_BYTES, /* watermarks, summed over zones */
    PSI_RAW_ZONE_LOW_BYTES,
    PSI_RAW_ZONE_HIGH_BYTES,
    PSI_RAW_VM_REFAULT_FILE, /* vmstat, whole machine */
    PSI_RAW_VM_REFAULT_ANON,
    PSI_RAW_VM_SCAN_DIRECT, /* pages scanned by tasks that wait; reclaim inside a cgroup's limit does not count here */
    PSI_RAW_VM_SCAN_KSWAPD,
    PSI_RAW_VM_ALLOC_STALLS, /* sum of allocstall_* */
    PSI_RAW_VM_SWAP_IN,
    PSI_RAW_VM_SWAP_OUT,
    PSI_RAW_VM_OOM_KILL,
    PSI_RAW_ZRAM_STORED_BYTES, /* uncompressed, all devices */
    PSI_RAW_ZRAM_USED_BYTES,   /* memory that they take */
    PSI_RAW_SELF_MAJOR_FAULTS,
    PSI_RAW_SELF_FILE_BYTES,   /* RssFile: own mapped files that are resident */
    PSI_RAW_SELF_LOCKED_BYTES, /* VmLck */
    PSI_RAW_SELF_MAPPED_BYTES, /* size of own file mappings of 1 MiB and more, resident or not */
    PSI_RAW_V2_BOUND,          /* PSI_LEVELS * PSI_BOUND_FIELDS: v2 group, then each ancestor */
    PSI_RAW_V1_BOUND = PSI_RAW_V2_BOUND + PSI_LEVELS * PSI_BOUND_FIELDS,
    PSI_RAW_COUNT = PSI_RAW_V1_BOUND + PSI_LEVELS * PSI_BOUND_FIELDS
} psi_raw;

/* The index of one field of level `level` behind PSI_RAW_V2_BOUND or PSI_RAW_V1_BOUND. */
static inline size_t psi_raw_bound(psi_raw first, size_t level, psi_bound_field field) {
    return (size_t)first + level * PSI_BOUND_FIELDS + (size_t)field;
}

typedef struct psi_sample {
    uint64_t at_us; /* monotonic */
    uint32_t look;  /* PSI_LOOK_* that this sample took; other values are from earlier */
    bool known[PSI_RAW_COUNT];
    uint64_t value[PSI_RAW_COUNT]; /* below 2^62 where known; 0 elsewhere */
} psi_sample;

/* "psi.own.memory.some_us", "bound.v1.0.usage_bytes", ...: lower case, dots and underscores, stable, since
 * traces and --json hold it. `raw` below PSI_RAW_COUNT. The string is static for all but bounds, which are
 * written to buffer[PSI_RAW_NAME_BYTES]. */
#define PSI_RAW_NAME_BYTES 48
const char *psi_raw_name(size_t raw, char *buffer);

/* PSI_RAW_COUNT when there is no such name. */
size_t psi_raw_find(const char *name, size_t length);

/* ---- The trace: samples as text (trace.c) ------------------------------------------------------ */

/* First line: "psi-cache-trace 1". Then lines "# ..." (comments: kernel, sources; ignored by a reader), and for
 * each sample "@ <at_us> <look>" followed by "<name> <value>" for each value that differs from the sample
 * before ("-": not known any more). Sparse, readable, diffable; the same samples give the same bytes. */
#define PSI_TRACE_HEAD "psi-cache-trace 1"

/* Writes one sample; `before` NULL for the first. Returns the length written, or -ENOBUFS and nothing.
 * PSI_TRACE_SAMPLE_BYTES is always enough. */
#define PSI_TRACE_SAMPLE_BYTES ((size_t)PSI_RAW_COUNT * 72 + 64)
int psi_trace_format(const psi_sample *before, const psi_sample *now, char *out, size_t capacity);

typedef struct psi_trace_reader {
    psi_sample now; /* being filled */
    bool has_head, has_sample;
    uint64_t line; /* for messages */
} psi_trace_reader;

/* Takes one line, without its newline. Returns 1 when *complete received a sample (the one before this line),
 * 0 when not, or a negative errno for a line that is no trace: -EPROTO wrong head or version, -EINVAL
 * anything else. Unknown names are skipped (a newer writer). Time that goes back: -EINVAL. */
int psi_trace_take(psi_trace_reader *reader, const char *line, psi_sample *complete);

/* The last sample, at the end of the file: 1, or 0 when there is none. */
int psi_trace_finish(psi_trace_reader *reader, psi_sample *complete);

#endif
