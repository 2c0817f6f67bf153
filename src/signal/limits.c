/* limits.c - what the own cgroup and each of its ancestors may still take before its limit, v1 and
 * v2. Called by signal.c, on the watcher thread. Any ancestor's limit can be the one that kills. */
#include "signal/sources.h"

#include <string.h>

/* The files of a version; the second limit may be NULL. */
typedef struct group_files {
    const char *limit[2];
    const char *usage;
    const char *inactive_file, *active_file; /* in memory.stat, descendants included */
} group_files;

static const group_files files_of[] = {
    [PSI_CGROUP_V1] = {{"/memory.limit_in_bytes", NULL},
                       "/memory.usage_in_bytes",
                       "total_inactive_file",
                       "total_active_file"},
    [PSI_CGROUP_V2] = {{"/memory.max", "/memory.high"}, "/memory.current", "inactive_file", "active_file"},
};

/* "max" and v1's 2^63 less a page are not amounts, and so no limit. */
static bool read_amount(const psi_limits *limits, const psi_level *level, const char *name, char *text,
                        uint64_t *bytes) {
    return psi_read_text(limits->dir, level->dir_length, name, text) == 0 && psi_parse_amount(text, bytes);
}

/* Before Linux 5.11 a v1 ancestor with use_hierarchy 0 does not count (or limit) its descendants. */
static bool counts_descendants(const psi_limits *limits, const psi_level *level, char *text) {
    uint64_t value = 1;
    return limits->version == PSI_CGROUP_V2 || !read_amount(limits, level, "/memory.use_hierarchy", text, &value) ||
           value != 0;
}

/* The group's directory, then each parent, up to the mount. */
static void find_levels(psi_limits *limits, size_t mount_length, char *text) {
    size_t length = strlen(limits->dir);
    limits->count = 0;
    while (limits->count < PSI_LEVELS) {
        psi_level *level = &limits->level[limits->count];
        level->dir_length = length;
        if (limits->count > 0 && !counts_descendants(limits, level, text))
            break;
        limits->count++;
        while (length > mount_length && limits->dir[length - 1] != '/')
            length--;
        if (length <= mount_length)
            break;
        length--;
    }
}

static bool has_controller(const psi_limits *limits, char *text) {
    uint64_t usage;
    for (size_t i = 0; i < limits->count; i++)
        if (read_amount(limits, &limits->level[i], files_of[limits->version].usage, text, &usage))
            return true;
    return false;
}

static void explain(const psi_group *group, psi_cgroup_version version, psi_source *row) {
    bool v2 = version == PSI_CGROUP_V2;
    row->in_use = false;
    if (!group->found) {
        row->detail = v2 ? "no cgroup v2 group of this process" : "no cgroup v1 memory group of this process";
        row->cure = v2 ? "mount cgroup2, or set the limit in cgroup v1"
                       : "none needed where cgroup v2 has the memory controller";
    } else if (v2 && group->is_root) {
        row->detail = "this process is in the root group, which has no limit";
        row->cure = "run it in a group: systemd-run --scope -p MemoryMax=...";
    } else {
        row->detail = "the own group has no memory controller";
        row->cure = v2 ? "enable memory in cgroup.subtree_control, boot without cgroup_disable=memory, "
                         "or set the limit in cgroup v1"
                       : "boot without cgroup_disable=memory";
    }
}

void psi_limits_open(psi_limits *limits, const psi_group *group, psi_cgroup_version version, char *text,
                     psi_source *row) {
    limits->version = version;
    limits->count = 0;
    const char *name = version == PSI_CGROUP_V2 ? "cgroup-v2" : "cgroup-v1";
    *row = (psi_source){.name = name, .in_use = true, .detail = limits->dir, .cure = ""};
    if (group->found) {
        memcpy(limits->dir, group->dir, sizeof(limits->dir));
        find_levels(limits, group->mount_length, text);
    }
    if (!has_controller(limits, text)) {
        limits->count = 0;
        explain(group, version, row);
    }
}

static void read_limit(const psi_limits *limits, psi_level *level, char *text) {
    uint64_t bytes = 0;
    level->is_limited = false;
    for (size_t i = 0; i < 2; i++) {
        const char *name = files_of[limits->version].limit[i];
        if (name == NULL || !read_amount(limits, level, name, text, &bytes))
            continue;
        if (!level->is_limited || bytes < level->limit_bytes)
            level->limit_bytes = bytes;
        level->is_limited = true;
    }
}

/* Page cache that the kernel would drop for us: all file pages but the own mapped ones, which decode
 * needs. A missing memory.stat means none: careful, and the limit still holds. */
static int64_t read_cache(const psi_limits *limits, const psi_level *level, uint64_t mapped_bytes, uint64_t usage_bytes,
                          char *text) {
    uint64_t inactive = 0, active = 0;
    if (psi_read_text(limits->dir, level->dir_length, "/memory.stat", text) != 0 ||
        !psi_parse_field(text, files_of[limits->version].inactive_file, 1, &inactive) ||
        !psi_parse_field(text, files_of[limits->version].active_file, 1, &active))
        return 0;
    uint64_t cache = inactive + active; /* each below 2^62 */
    if (cache > usage_bytes)            /* it is part of the usage */
        cache = usage_bytes;
    return cache > mapped_bytes ? (int64_t)(cache - mapped_bytes) : 0;
}

static void read_level(const psi_limits *limits, psi_level *level, uint64_t at_us, bool slow, uint64_t mapped_bytes,
                       char *text) {
    uint64_t usage = 0;
    if (slow)
        read_limit(limits, level, text);
    /* Without a limit the usage is of no interest: most levels cost nothing between slow readings. */
    if (!level->is_limited || !read_amount(limits, level, files_of[limits->version].usage, text, &usage)) {
        psi_bound_lost(&level->bound);
        return;
    }
    if (slow)
        level->bound.cache_bytes = read_cache(limits, level, mapped_bytes, usage, text);
    psi_bound_update(&level->bound, at_us, level->limit_bytes, (int64_t)level->limit_bytes - (int64_t)usage, slow);
}

void psi_limits_read(psi_limits *limits, uint64_t at_us, bool slow, uint64_t mapped_bytes, char *text) {
    for (size_t i = 0; i < limits->count; i++)
        read_level(limits, &limits->level[i], at_us, slow, mapped_bytes, text);
}
