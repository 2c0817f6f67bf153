/* sources.h - the sources of a sample, one file each, behind one table (sources.c). Called by signal.c only, on the
 * watcher thread. Each works in the one text buffer, so that no look allocates; each keeps its row of
 * psi_signal_sources true: a file that fails turns it missing with the reason, one that is back turns it in use. */
#ifndef PSI_SIGNAL_SOURCES_H
#define PSI_SIGNAL_SOURCES_H

#include "signal/parse.h"
#include "signal/signal.h"

/* Room for any file that is read whole; the largest, vmstat, has 4 to 6 KiB. Longer ones are read by line. */
#define PSI_TEXT_BYTES ((size_t)16384)

typedef struct psi_sources psi_sources;

/* ---- The table -------------------------------------------------------------------------------- */

typedef struct psi_source_kind {
    const char *name;
    uint32_t looks;                     /* the depths that it has a part in */
    void (*open)(psi_sources *sources); /* its paths; again when the group changed */
    void (*sample)(psi_sources *sources, uint32_t look, psi_sample *sample); /* values and row */
} psi_source_kind;

/* psi_signal_sources' order. */
typedef enum psi_row {
    PSI_ROW_OWN_MEMORY,
    PSI_ROW_SYSTEM_MEMORY,
    PSI_ROW_OWN_IO,
    PSI_ROW_SYSTEM_IO,
    PSI_ROW_V2,
    PSI_ROW_V1,
    PSI_ROW_EVENTS,
    PSI_ROW_OOM_CONTROL,
    PSI_ROW_MEMINFO,
    PSI_ROW_ZONEINFO,
    PSI_ROW_VMSTAT,
    PSI_ROW_SWAP,
    PSI_ROW_ZRAM,
    PSI_ROW_FAULTS,
    PSI_ROW_MAPPINGS,
    PSI_ROWS
} psi_row;

/* ---- group.c: where the cgroup of the process is ---------------------------------------------- */

typedef enum psi_cgroup_version { PSI_CGROUP_V1, PSI_CGROUP_V2 } psi_cgroup_version;

typedef struct psi_group {
    bool found;
    bool is_root;             /* v2: the machine's root group: no limits, its PSI is the system's */
    char dir[PSI_PATH_BYTES]; /* of the group, with the root prefix */
    size_t mount_length;      /* the part of dir that is the mount */
} psi_group;

/* Finds both groups again when the process's membership changed since the last call (or on the first). True when
 * it did. */
bool psi_groups_follow(psi_sources *sources);

/* ---- The state of each source ----------------------------------------------------------------- */

#define PSI_PRESSURES 4
#define PSI_ZRAM_DEVICES 8

typedef struct psi_level {
    size_t dir_length; /* of psi_limits.dir */
    bool is_limited;
    uint64_t limit_bytes; /* as of limits_at_us */
} psi_level;

typedef struct psi_limits {
    char dir[PSI_PATH_BYTES];
    psi_level level[PSI_LEVELS]; /* the own group first */
    size_t count;
    bool has_controller;
    bool has_limits;
    uint64_t limits_at_us; /* when the limits were read */
} psi_limits;

struct psi_sources {
    char root[PSI_PATH_BYTES];
    bool root_fits;      /* else every path is empty, and every source missing */
    char process[40];    /* "/proc/self", or "/proc/<pid>" */
    uint64_t membership; /* a hash of its cgroup file */
    bool has_membership;
    bool moved_stall, moved_refaults; /* to another group, whose counters must not be taken for the old one's growth */
    psi_group group[2];               /* by version */
    psi_limits limits[2];
    char pressure_path[PSI_PRESSURES][PSI_PATH_BYTES];
    char events_path[PSI_PATH_BYTES], failcnt_path[PSI_PATH_BYTES], oom_control_path[PSI_PATH_BYTES];
    char meminfo_path[PSI_PATH_BYTES], zoneinfo_path[PSI_PATH_BYTES], vmstat_path[PSI_PATH_BYTES];
    char zram_path[PSI_ZRAM_DEVICES][PSI_PATH_BYTES];
    char stat_path[PSI_PATH_BYTES], status_path[PSI_PATH_BYTES], maps_path[PSI_PATH_BYTES];
    uint64_t maps_file_bytes; /* RssFile when maps was read last */
    bool has_maps;
    psi_source rows[PSI_ROWS];
    char text[PSI_TEXT_BYTES];
};

void psi_sources_open(psi_sources *sources, const char *root, int64_t process_id);
/* Takes the values of `look` into the sample, whose at_us is set. */
void psi_sources_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

/* ---- What they share (sources.c) -------------------------------------------------------------- */

/* The value, or "not known" when it is no amount (2^62 and more). */
void psi_sample_set(psi_sample *sample, size_t raw, uint64_t value);
void psi_sample_clear(psi_sample *sample, size_t raw);

void psi_row_use(psi_sources *sources, psi_row row, const char *path);
void psi_row_miss(psi_sources *sources, psi_row row, const char *detail, const char *cure);

/* root + tail into path[PSI_PATH_BYTES]; an empty path when it does not fit. */
void psi_source_path(const psi_sources *sources, char *path, const char *tail);

/* Reads a file, or dir[0, dir_length) + tail, into sources->text. 0 or a negative errno. */
int psi_source_read(psi_sources *sources, const char *path);
int psi_source_read_in(psi_sources *sources, const char *dir, size_t dir_length, const char *tail);

/* Says in the row that a file cannot be read, and what would help: `cure`, or permission. */
void psi_row_refused(psi_sources *sources, psi_row row, int error, const char *detail, const char *cure);

/* ---- stat.c: lines of "name value" ------------------------------------------------------------- */

typedef struct psi_stat_key {
    const char *name;
    bool is_prefix; /* the sum over all names that begin so */
    psi_raw raw;
} psi_stat_key;

/* Sets each key's value, or "not known"; of two keys for one raw value the one that comes first in the text counts.
 * Returns how many lines were of use. */
size_t psi_stat_take(const char *text, const psi_stat_key *keys, size_t count, psi_sample *sample);

/* ---- The sources ------------------------------------------------------------------------------- */

void psi_pressure_open(psi_sources *sources);
void psi_pressure_sample(psi_sources *sources, uint32_t look, psi_sample *sample);
bool psi_pressure_parse(const char *text, uint64_t *some_us, uint64_t *full_us);
bool psi_pressure_parse_avg10(const char *text, uint64_t *hundredths);
/* Why PSI cannot be read, from a negative errno. */
void psi_pressure_explain(int error, const char **detail, const char **cure);

void psi_limits_open(psi_sources *sources);
void psi_limits_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

void psi_events_open(psi_sources *sources);
void psi_events_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

void psi_meminfo_open(psi_sources *sources);
void psi_meminfo_sample(psi_sources *sources, uint32_t look, psi_sample *sample);
bool psi_meminfo_parse(const char *text, uint64_t *total_bytes, uint64_t *available_bytes);

void psi_zoneinfo_open(psi_sources *sources);
void psi_zoneinfo_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

void psi_vmstat_open(psi_sources *sources);
void psi_vmstat_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

void psi_swap_open(psi_sources *sources);
void psi_swap_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

void psi_zram_open(psi_sources *sources);
void psi_zram_sample(psi_sources *sources, uint32_t look, psi_sample *sample);

void psi_self_open(psi_sources *sources);
void psi_self_sample(psi_sources *sources, uint32_t look, psi_sample *sample);
bool psi_self_parse_major_faults(const char *text, uint64_t *faults);
/* The size of a file mapping of 1 MiB or more, or 0: one line of maps. */
uint64_t psi_self_parse_mapping(const char *line);

#endif
