/* meminfo.c - what the machine may still take: /proc/meminfo, at every look. Called on the watcher thread. */
#include "signal/sources.h"

bool psi_meminfo_parse(const char *text, uint64_t *total_bytes, uint64_t *available_bytes) {
    uint64_t total = 0, available = 0;
    if (!psi_parse_field(text, "MemTotal", 1024, &total) || !psi_parse_field(text, "MemAvailable", 1024, &available))
        return false;
    if (total == 0 || available > total)
        return false;
    *total_bytes = total;
    *available_bytes = available;
    return true;
}

void psi_meminfo_open(psi_sources *sources) { psi_source_path(sources, sources->meminfo_path, "/proc/meminfo"); }

static void take_swap(const char *text, psi_sample *sample) {
    uint64_t total = 0, unused = 0;
    if (!psi_parse_field(text, "SwapTotal", 1024, &total) || !psi_parse_field(text, "SwapFree", 1024, &unused) ||
        unused > total)
        return;
    psi_sample_set(sample, PSI_RAW_SWAP_TOTAL_BYTES, total);
    psi_sample_set(sample, PSI_RAW_SWAP_FREE_BYTES, unused);
}

void psi_meminfo_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    uint64_t total = 0, available = 0, unused = 0;
    (void)look;
    for (size_t raw = PSI_RAW_MEMORY_TOTAL_BYTES; raw <= PSI_RAW_SWAP_FREE_BYTES; raw++)
        psi_sample_clear(sample, raw);
    int error = psi_source_read(sources, sources->meminfo_path);
    if (error != 0) {
        psi_row_refused(sources, PSI_ROW_MEMINFO, error, "/proc/meminfo cannot be read", "mount /proc");
        return;
    }
    if (!psi_meminfo_parse(sources->text, &total, &available)) {
        psi_row_miss(sources, PSI_ROW_MEMINFO, "no sensible MemTotal and MemAvailable in /proc/meminfo",
                     "Linux 3.14 or newer");
        return;
    }
    psi_sample_set(sample, PSI_RAW_MEMORY_TOTAL_BYTES, total);
    psi_sample_set(sample, PSI_RAW_MEMORY_AVAILABLE_BYTES, available);
    if (psi_parse_field(sources->text, "MemFree", 1024, &unused) && unused <= total)
        psi_sample_set(sample, PSI_RAW_MEMORY_FREE_BYTES, unused);
    take_swap(sources->text, sample);
    psi_row_use(sources, PSI_ROW_MEMINFO, sources->meminfo_path);
}
