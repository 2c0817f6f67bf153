/* events.c - how often the own group met its limit: v2's memory.events, v1's memory.failcnt and oom_control.
 * Called at most 20 times a second, on the watcher thread. Recorded, for people and for trace: headroom leads. */
#include "signal/sources.h"

#include <string.h>

static const psi_stat_key v2_keys[] = {
    {"high", false, PSI_RAW_V2_EVENTS_HIGH},
    {"max", false, PSI_RAW_V2_EVENTS_MAX},
    {"oom", false, PSI_RAW_V2_EVENTS_OOM},
    {"oom_kill", false, PSI_RAW_V2_EVENTS_OOM_KILL},
};

/* oom_kill is there from Linux 4.13 on. */
static const psi_stat_key v1_keys[] = {
    {"under_oom", false, PSI_RAW_V1_UNDER_OOM},
    {"oom_kill_disable", false, PSI_RAW_V1_OOM_KILL_DISABLE},
    {"oom_kill", false, PSI_RAW_V1_OOM_KILL},
};

#define COUNT_OF(keys) (sizeof(keys) / sizeof((keys)[0]))

static void join(const psi_group *group, const char *tail, char *path) {
    path[0] = '\0';
    if (group->found && !group->is_root)
        (void)psi_path_join(path, group->dir, strlen(group->dir), tail);
}

void psi_events_open(psi_sources *sources) {
    join(&sources->group[PSI_CGROUP_V2], "/memory.events", sources->events_path);
    join(&sources->group[PSI_CGROUP_V1], "/memory.failcnt", sources->failcnt_path);
    join(&sources->group[PSI_CGROUP_V1], "/memory.oom_control", sources->oom_control_path);
}

static void take_file(psi_sources *sources, psi_row row, const char *path, const char *absent, const psi_stat_key *keys,
                      size_t count, psi_sample *sample) {
    int error = path[0] != '\0' ? psi_source_read(sources, path) : 0;
    if (path[0] == '\0' || error != 0)
        sources->text[0] = '\0';
    size_t taken = psi_stat_take(sources->text, keys, count, sample);
    if (taken > 0)
        psi_row_use(sources, row, path);
    else if (path[0] == '\0')
        psi_row_miss(sources, row, absent, "");
    else if (error != 0)
        psi_row_refused(sources, row, error, "the own group has no such file", "");
    else
        psi_row_miss(sources, row, "no known counter in the own group's file", "a /sys that is the kernel's own");
}

void psi_events_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    uint64_t failed = 0;
    (void)look;
    take_file(sources, PSI_ROW_EVENTS, sources->events_path, "no cgroup v2 group with limits of its own", v2_keys,
              COUNT_OF(v2_keys), sample);
    take_file(sources, PSI_ROW_OOM_CONTROL, sources->oom_control_path, "no cgroup v1 memory group of this process",
              v1_keys, COUNT_OF(v1_keys), sample);
    psi_sample_clear(sample, PSI_RAW_V1_FAILCNT);
    if (sources->failcnt_path[0] != '\0' && psi_source_read(sources, sources->failcnt_path) == 0 &&
        psi_parse_amount(sources->text, &failed))
        psi_sample_set(sample, PSI_RAW_V1_FAILCNT, failed);
}
