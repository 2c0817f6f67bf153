/* limits.c - what the own cgroup and each of its ancestors may take, v1 and v2: limit, usage, page cache; and the own
 * group's refaults, which are in the same memory.stat. Called at every look, on the watcher thread. Any ancestor's
 * limit can be the one that kills. */
#include "signal/sources.h"

#include <errno.h>
#include <string.h>

/* Limits are read again this often: they change seldom, and a level without one needs no other file. */
#define LIMITS_US ((uint64_t)50000)

/* The files of a version, and the names in memory.stat, descendants included. Refaults of files and of anonymous
 * pages are one number before Linux 5.9. */
typedef struct group_files {
    psi_row row;
    psi_raw bound;
    const char *limit[2]; /* the second may be NULL */
    const char *usage;
    const char *inactive_file, *active_file;
    const char *refault_file[3], *refault_anon[2]; /* the first that is there */
    const char *usage_fails;
} group_files;

static const group_files files_of[] = {
    [PSI_CGROUP_V1] = {PSI_ROW_V1,
                       PSI_RAW_V1_BOUND,
                       {"/memory.limit_in_bytes", NULL},
                       "/memory.usage_in_bytes",
                       "total_inactive_file",
                       "total_active_file",
                       {"total_workingset_refault_file", "total_workingset_refault", "workingset_refault"},
                       {"total_workingset_refault_anon", "workingset_refault_anon"},
                       "memory.usage_in_bytes of a group with a limit cannot be read"},
    [PSI_CGROUP_V2] = {PSI_ROW_V2,
                       PSI_RAW_V2_BOUND,
                       {"/memory.max", "/memory.high"},
                       "/memory.current",
                       "inactive_file",
                       "active_file",
                       {"workingset_refault_file", "workingset_refault", NULL},
                       {"workingset_refault_anon", NULL},
                       "memory.current of a group with a limit cannot be read"},
};

/* ---- Levels ----------------------------------------------------------------------------------- */

/* "max" and v1's 2^63 less a page are not amounts, and so no limit. */
static bool read_amount(psi_sources *sources, const psi_limits *limits, const psi_level *level, const char *name,
                        uint64_t *bytes) {
    return psi_source_read_in(sources, limits->dir, level->dir_length, name) == 0 &&
           psi_parse_amount(sources->text, bytes);
}

/* Before Linux 5.11 a v1 ancestor with use_hierarchy 0 does not count (or limit) its descendants. */
static bool counts_descendants(psi_sources *sources, psi_cgroup_version version, const psi_level *level) {
    uint64_t value = 1;
    return version == PSI_CGROUP_V2 ||
           !read_amount(sources, &sources->limits[version], level, "/memory.use_hierarchy", &value) || value != 0;
}

/* The group's directory, then each parent, up to the mount. */
static void find_levels(psi_sources *sources, psi_cgroup_version version) {
    psi_limits *limits = &sources->limits[version];
    size_t length = strlen(limits->dir), mount_length = sources->group[version].mount_length;
    while (limits->count < PSI_LEVELS) {
        psi_level *level = &limits->level[limits->count];
        level->dir_length = length;
        if (limits->count > 0 && !counts_descendants(sources, version, level))
            break;
        limits->count++;
        while (length > mount_length && limits->dir[length - 1] != '/')
            length--;
        if (length <= mount_length)
            break;
        length--;
    }
}

void psi_limits_open(psi_sources *sources) {
    for (psi_cgroup_version version = PSI_CGROUP_V1; version <= PSI_CGROUP_V2; version++) {
        const psi_group *group = &sources->group[version];
        psi_limits *limits = &sources->limits[version];
        *limits = (psi_limits){.count = 0};
        if (!group->found)
            continue;
        memcpy(limits->dir, group->dir, sizeof(limits->dir));
        find_levels(sources, version);
    }
}

/* ---- Rows ------------------------------------------------------------------------------------- */

static void explain(psi_sources *sources, psi_cgroup_version version) {
    const psi_group *group = &sources->group[version];
    bool v2 = version == PSI_CGROUP_V2;
    psi_row row = files_of[version].row;
    if (!group->found)
        psi_row_miss(sources, row,
                     v2 ? "no cgroup v2 group of this process" : "no cgroup v1 memory group of this process",
                     v2 ? "mount cgroup2, or set the limit in cgroup v1"
                        : "none needed where cgroup v2 has the memory controller");
    else if (v2 && group->is_root)
        psi_row_miss(sources, row, "this process is in the root group, which has no limit",
                     "run it in a group: systemd-run --scope -p MemoryMax=...");
    else
        psi_row_miss(sources, row, "the own group has no memory controller",
                     v2 ? "enable memory in cgroup.subtree_control, boot without cgroup_disable=memory, "
                          "or set the limit in cgroup v1"
                        : "boot without cgroup_disable=memory");
}

/* ---- One level -------------------------------------------------------------------------------- */

static void forget_level(psi_sample *sample, const group_files *files, size_t index) {
    for (size_t field = 0; field < PSI_BOUND_FIELDS; field++)
        psi_sample_clear(sample, psi_raw_bound(files->bound, index, (psi_bound_field)field));
}

/* The smaller of the two. A file that cannot be read just now (no descriptor is free) does not lift the limit. */
static void read_limit(psi_sources *sources, psi_limits *limits, psi_level *level, const group_files *files) {
    uint64_t bytes = 0;
    const psi_level before = *level;
    level->is_limited = false;
    for (size_t i = 0; i < 2 && files->limit[i] != NULL; i++) {
        int error = psi_source_read_in(sources, limits->dir, level->dir_length, files->limit[i]);
        if (error == -EMFILE || error == -ENFILE || error == -ENOMEM) {
            *level = before;
            return;
        }
        if (error != 0)
            continue;
        limits->has_controller = true;
        if (!psi_parse_amount(sources->text, &bytes))
            continue;
        if (!level->is_limited || bytes < level->limit_bytes)
            level->limit_bytes = bytes;
        level->is_limited = true;
    }
}

static void take_refaults(psi_sources *sources, const group_files *files, psi_sample *sample) {
    uint64_t value = 0;
    for (size_t i = 0; i < 3 && files->refault_file[i] != NULL; i++)
        if (!sample->known[PSI_RAW_OWN_REFAULT_FILE] &&
            psi_parse_field(sources->text, files->refault_file[i], 1, &value))
            psi_sample_set(sample, PSI_RAW_OWN_REFAULT_FILE, value);
    for (size_t i = 0; i < 2 && files->refault_anon[i] != NULL; i++)
        if (!sample->known[PSI_RAW_OWN_REFAULT_ANON] &&
            psi_parse_field(sources->text, files->refault_anon[i], 1, &value))
            psi_sample_set(sample, PSI_RAW_OWN_REFAULT_ANON, value);
}

/* memory.stat: the cache of a level with a limit, and the refaults of the own group. Without it neither is known. */
static void read_stat(psi_sources *sources, psi_limits *limits, size_t index, const group_files *files, bool refaults,
                      psi_sample *sample) {
    const psi_level *level = &limits->level[index];
    uint64_t inactive = 0, active = 0;
    size_t raw = psi_raw_bound(files->bound, index, PSI_BOUND_CACHE);
    psi_sample_clear(sample, raw);
    if (psi_source_read_in(sources, limits->dir, level->dir_length, "/memory.stat") != 0)
        return;
    if (refaults)
        take_refaults(sources, files, sample);
    if (level->is_limited && psi_parse_field(sources->text, files->inactive_file, 1, &inactive) &&
        psi_parse_field(sources->text, files->active_file, 1, &active))
        psi_sample_set(sample, raw, inactive + active); /* each below 2^62 */
}

/* False when the usage of a level with a limit cannot be read. */
static bool sample_level(psi_sources *sources, psi_limits *limits, size_t index, const group_files *files,
                         uint32_t look, bool limits_too, psi_sample *sample) {
    psi_level *level = &limits->level[index];
    bool was_limited = level->is_limited;
    bool counters = look & PSI_LOOK_COUNTERS;
    uint64_t usage = 0;
    if (limits_too)
        read_limit(sources, limits, level, files);
    if (!level->is_limited)
        forget_level(sample, files, index);
    /* A limit that is new needs its cache at once: without it a group full of cache reads as exhausted. */
    bool refaults = index == 0 && counters && !sources->moved_refaults;
    if (refaults || (level->is_limited && (counters || !was_limited)))
        read_stat(sources, limits, index, files, refaults, sample);
    if (!level->is_limited || !(look & PSI_LOOK_AMOUNTS))
        return true;
    psi_sample_set(sample, psi_raw_bound(files->bound, index, PSI_BOUND_LIMIT), level->limit_bytes);
    psi_sample_clear(sample, psi_raw_bound(files->bound, index, PSI_BOUND_USAGE));
    if (!read_amount(sources, limits, level, files->usage, &usage))
        return false;
    psi_sample_set(sample, psi_raw_bound(files->bound, index, PSI_BOUND_USAGE), usage);
    return true;
}

/* ---- The source ------------------------------------------------------------------------------- */

static bool is_due(psi_limits *limits, uint32_t look, uint64_t now_us) {
    if (limits->has_limits && !(look & PSI_LOOK_COUNTERS) && now_us >= limits->limits_at_us &&
        now_us - limits->limits_at_us < LIMITS_US)
        return false;
    limits->has_limits = true;
    limits->limits_at_us = now_us;
    limits->has_controller = false; /* until a file of its is read */
    return true;
}

static void sample_version(psi_sources *sources, psi_cgroup_version version, uint32_t look, psi_sample *sample) {
    psi_limits *limits = &sources->limits[version];
    const group_files *files = &files_of[version];
    bool limits_too = is_due(limits, look, sample->at_us), complete = true;
    for (size_t i = 0; i < limits->count; i++)
        complete = sample_level(sources, limits, i, files, look, limits_too, sample) && complete;
    for (size_t i = limits->count; i < PSI_LEVELS; i++)
        forget_level(sample, files, i);
    if (!limits->has_controller)
        explain(sources, version);
    else if (!complete)
        psi_row_miss(sources, files->row, files->usage_fails, "a /sys that is the kernel's own");
    else
        psi_row_use(sources, files->row, limits->dir);
}

void psi_limits_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    if (look & PSI_LOOK_COUNTERS) {
        psi_sample_clear(sample, PSI_RAW_OWN_REFAULT_FILE);
        psi_sample_clear(sample, PSI_RAW_OWN_REFAULT_ANON);
    }
    sample_version(sources, PSI_CGROUP_V2, look, sample);
    sample_version(sources, PSI_CGROUP_V1, look, sample);
    if (look & PSI_LOOK_COUNTERS)
        sources->moved_refaults = false;
}
