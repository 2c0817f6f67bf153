/* vmstat.c - the whole machine's reclaim, refaults and swapping. Called at most 20 times a second, on the watcher
 * thread. Reclaim inside a cgroup's limit is not counted here (mm/vmscan.c, cgroup_reclaim), only the machine's own. */
#include "signal/sources.h"

/* Refaults of files and of anonymous pages are one number before Linux 5.9. */
static const psi_stat_key keys[] = {
    {"workingset_refault_file", false, PSI_RAW_VM_REFAULT_FILE},
    {"workingset_refault", false, PSI_RAW_VM_REFAULT_FILE},
    {"workingset_refault_anon", false, PSI_RAW_VM_REFAULT_ANON},
    {"pgscan_direct", false, PSI_RAW_VM_SCAN_DIRECT},
    {"pgscan_kswapd", false, PSI_RAW_VM_SCAN_KSWAPD},
    {"allocstall_", true, PSI_RAW_VM_ALLOC_STALLS},
    {"pswpin", false, PSI_RAW_VM_SWAP_IN},
    {"pswpout", false, PSI_RAW_VM_SWAP_OUT},
    {"oom_kill", false, PSI_RAW_VM_OOM_KILL},
};
enum { KEYS = sizeof(keys) / sizeof(keys[0]) };

void psi_vmstat_open(psi_sources *sources) { psi_source_path(sources, sources->vmstat_path, "/proc/vmstat"); }

void psi_vmstat_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    (void)look;
    int error = psi_source_read(sources, sources->vmstat_path);
    if (error != 0)
        sources->text[0] = '\0';
    size_t taken = psi_stat_take(sources->text, keys, KEYS, sample);
    if (error != 0)
        psi_row_refused(sources, PSI_ROW_VMSTAT, error, "/proc/vmstat cannot be read", "mount /proc");
    else if (taken == 0)
        psi_row_miss(sources, PSI_ROW_VMSTAT, "no known counter in /proc/vmstat", "a /proc that is the kernel's own");
    else
        psi_row_use(sources, PSI_ROW_VMSTAT, sources->vmstat_path);
}
