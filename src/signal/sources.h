/* sources.h - the sources that signal.c joins, one struct and one file each. Called by signal.c only,
 * on the watcher thread. Each `_open` fills one psi_source row: what is in use, or why not and what
 * would help. Each works in the caller's text buffer, so that no reading allocates. */
#ifndef PSI_SIGNAL_SOURCES_H
#define PSI_SIGNAL_SOURCES_H

#include "signal/parse.h"
#include "signal/rates.h"
#include "signal/signal.h"

/* Room for any file that is read again and again; the largest, memory.stat, has 2 to 4 KiB. */
#define PSI_TEXT_BYTES ((size_t)16384)

/* Reads dir[0, dir_length) + tail into text[PSI_TEXT_BYTES]. 0 or a negative errno. */
int psi_read_text(const char *dir, size_t dir_length, const char *tail, char *text);

/* ---- group.c: where the own cgroup is --------------------------------------------------------- */

typedef enum psi_cgroup_version { PSI_CGROUP_V1, PSI_CGROUP_V2 } psi_cgroup_version;

typedef struct psi_group {
    bool found;
    bool is_root;             /* the machine's root group: no limits, its PSI is the system's */
    char dir[PSI_PATH_BYTES]; /* of the group, with the root prefix */
    size_t mount_length;      /* the part of dir that is the mount */
} psi_group;

/* From /proc/self/cgroup and /proc/self/mountinfo (or, without it, mounts) below `root`; `text` has
 * `capacity` bytes, much, because mount tables are long. */
void psi_group_find(psi_group *group, const char *root, psi_cgroup_version version, char *text, size_t capacity);

/* ---- limits.c: what the own cgroup and its ancestors may still take ---------------------------- */

#define PSI_LEVELS 24 /* deepest nesting heeded; systemd and Kubernetes make 4 to 7 */

typedef struct psi_level {
    size_t dir_length; /* of psi_limits.dir */
    bool is_limited;
    uint64_t limit_bytes; /* as of the last slow reading */
    psi_bound bound;
} psi_level;

typedef struct psi_limits {
    psi_cgroup_version version;
    char dir[PSI_PATH_BYTES];
    psi_level level[PSI_LEVELS]; /* the own group first */
    size_t count;
} psi_limits;

void psi_limits_open(psi_limits *limits, const psi_group *group, psi_cgroup_version version, char *text,
                     psi_source *row);

/* Usage each time; limits and memory.stat, which change slowly and cost more, when `slow`.
 * `mapped_bytes`: the own unlocked file mappings, which are in the cache and not free. */
void psi_limits_read(psi_limits *limits, uint64_t at_us, bool slow, uint64_t mapped_bytes, char *text);

/* ---- meminfo.c: what the machine may still take ------------------------------------------------ */

typedef struct psi_meminfo {
    char path[PSI_PATH_BYTES];
    psi_bound bound;
} psi_meminfo;

void psi_meminfo_open(psi_meminfo *meminfo, const char *root, char *text, psi_source *row);
void psi_meminfo_read(psi_meminfo *meminfo, uint64_t at_us, bool slow, uint64_t mapped_bytes, char *text);
bool psi_meminfo_parse(const char *text, uint64_t *total_bytes, uint64_t *available_bytes);

/* ---- psi.c: stall time ------------------------------------------------------------------------- */

typedef struct psi_pressure {
    char path[PSI_PATH_BYTES]; /* empty: no source */
    bool is_own;
    psi_window some, full;
} psi_pressure;

void psi_pressure_open(psi_pressure *pressure, const char *root, const psi_group *group, char *text, psi_source *row);
void psi_pressure_read(psi_pressure *pressure, uint64_t at_us, char *text, psi_reading *reading);
bool psi_pressure_parse(const char *text, uint64_t *some_us, uint64_t *full_us);

/* Why PSI cannot be read, from a negative errno. */
void psi_pressure_explain(int error, const char **detail, const char **cure);

/* ---- faults.c: the own process ----------------------------------------------------------------- */

typedef struct psi_self {
    char stat_path[PSI_PATH_BYTES];   /* empty: no source */
    char status_path[PSI_PATH_BYTES]; /* empty: no source */
    uint64_t mapped_bytes;            /* resident file mappings that are not locked */
    psi_window faults;
    bool has_rate;
    double faults_per_s;
} psi_self;

void psi_self_open(psi_self *self, const char *root, char *text, psi_source *faults_row, psi_source *mappings_row);
void psi_self_read(psi_self *self, uint64_t at_us, char *text);
bool psi_self_parse_major_faults(const char *text, uint64_t *faults);
bool psi_self_parse_mapped(const char *text, uint64_t *bytes);

#endif
