/* sources.c - the table of sources, and what they share: paths, values, rows. Called by signal.c, on the watcher
 * thread. */
#include "signal/sources.h"

#include "os/os.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* In this order, since swap goes by what meminfo found. */
static const psi_source_kind kinds[] = {
    {"pressure", PSI_LOOK_STALL, psi_pressure_open, psi_pressure_sample},
    {"limits", PSI_LOOK_AMOUNTS | PSI_LOOK_COUNTERS, psi_limits_open, psi_limits_sample},
    {"events", PSI_LOOK_COUNTERS, psi_events_open, psi_events_sample},
    {"meminfo", PSI_LOOK_AMOUNTS, psi_meminfo_open, psi_meminfo_sample},
    {"zoneinfo", PSI_LOOK_RARE, psi_zoneinfo_open, psi_zoneinfo_sample},
    {"vmstat", PSI_LOOK_COUNTERS, psi_vmstat_open, psi_vmstat_sample},
    {"swap", PSI_LOOK_RARE, psi_swap_open, psi_swap_sample},
    {"zram", PSI_LOOK_RARE, psi_zram_open, psi_zram_sample},
    {"self", PSI_LOOK_COUNTERS | PSI_LOOK_RARE, psi_self_open, psi_self_sample},
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static const char *const row_names[PSI_ROWS] = {
    [PSI_ROW_OWN_MEMORY] = "psi.own.memory",
    [PSI_ROW_SYSTEM_MEMORY] = "psi.system.memory",
    [PSI_ROW_OWN_IO] = "psi.own.io",
    [PSI_ROW_SYSTEM_IO] = "psi.system.io",
    [PSI_ROW_V2] = "cgroup-v2",
    [PSI_ROW_V1] = "cgroup-v1",
    [PSI_ROW_EVENTS] = "memory.events",
    [PSI_ROW_OOM_CONTROL] = "oom_control",
    [PSI_ROW_MEMINFO] = "meminfo",
    [PSI_ROW_ZONEINFO] = "zoneinfo",
    [PSI_ROW_VMSTAT] = "vmstat",
    [PSI_ROW_SWAP] = "swap",
    [PSI_ROW_ZRAM] = "zram",
    [PSI_ROW_FAULTS] = "faults",
    [PSI_ROW_MAPPINGS] = "mappings",
};

static void open_all(psi_sources *sources) {
    for (size_t i = 0; i < KINDS; i++)
        kinds[i].open(sources);
}

void psi_sources_open(psi_sources *sources, const char *root, int64_t process_id) {
    memset(sources, 0, sizeof(*sources));
    sources->root_fits = psi_path_join(sources->root, root, strlen(root), "");
    if (process_id > 0)
        snprintf(sources->process, sizeof(sources->process), "/proc/%" PRId64, process_id);
    else
        memcpy(sources->process, "/proc/self", sizeof("/proc/self"));
    for (size_t i = 0; i < PSI_ROWS; i++)
        sources->rows[i] = (psi_source){row_names[i], false, "not looked at yet", ""};
    (void)psi_groups_follow(sources);
    open_all(sources);
}

void psi_sources_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    if ((look & PSI_LOOK_RARE) && psi_groups_follow(sources)) {
        sources->moved_stall = sources->moved_refaults = true;
        open_all(sources);
    }
    for (size_t i = 0; i < KINDS; i++)
        if (kinds[i].looks & look)
            kinds[i].sample(sources, look, sample);
}

/* ---- Values and rows -------------------------------------------------------------------------- */

void psi_sample_clear(psi_sample *sample, size_t raw) {
    sample->known[raw] = false;
    sample->value[raw] = 0;
}

void psi_sample_set(psi_sample *sample, size_t raw, uint64_t value) {
    sample->known[raw] = value < PSI_AMOUNT_END;
    sample->value[raw] = sample->known[raw] ? value : 0;
}

void psi_row_use(psi_sources *sources, psi_row row, const char *path) {
    sources->rows[row] = (psi_source){row_names[row], true, path, ""};
}

void psi_row_miss(psi_sources *sources, psi_row row, const char *detail, const char *cure) {
    sources->rows[row] = (psi_source){row_names[row], false, detail, cure};
}

void psi_row_refused(psi_sources *sources, psi_row row, int error, const char *detail, const char *cure) {
    bool denied = error == -EACCES || error == -EPERM;
    psi_row_miss(sources, row, detail, denied ? "let this process read it (container or LSM policy)" : cure);
}

/* ---- Files ------------------------------------------------------------------------------------ */

void psi_source_path(const psi_sources *sources, char *path, const char *tail) {
    path[0] = '\0';
    if (sources->root_fits)
        (void)psi_path_join(path, sources->root, strlen(sources->root), tail);
}

int psi_source_read(psi_sources *sources, const char *path) {
    if (path[0] == '\0')
        return -ENAMETOOLONG;
    ssize_t count = psi_os_read_small(path, sources->text, PSI_TEXT_BYTES);
    return count < 0 ? (int)count : 0;
}

int psi_source_read_in(psi_sources *sources, const char *dir, size_t dir_length, const char *tail) {
    char path[PSI_PATH_BYTES];
    if (!psi_path_join(path, dir, dir_length, tail))
        return -ENAMETOOLONG;
    return psi_source_read(sources, path);
}
