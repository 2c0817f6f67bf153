/* meminfo.c - what the machine may still take: MemAvailable less the own mapped files, which it
 * counts as available. Called by signal.c, on the watcher thread. */
#include "signal/sources.h"

#include <string.h>

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

void psi_meminfo_open(psi_meminfo *meminfo, const char *root, char *text, psi_source *row) {
    uint64_t total, available;
    *row = (psi_source){"meminfo", false, "/proc/meminfo cannot be read", "mount /proc"};
    if (!psi_path_join(meminfo->path, root, strlen(root), "/proc/meminfo"))
        return;
    if (psi_read_text(meminfo->path, strlen(meminfo->path), "", text) != 0) {
        meminfo->path[0] = '\0';
    } else if (!psi_meminfo_parse(text, &total, &available)) {
        meminfo->path[0] = '\0';
        row->detail = "no sensible MemTotal and MemAvailable in /proc/meminfo";
        row->cure = "Linux 3.14 or newer";
    } else {
        *row = (psi_source){"meminfo", true, meminfo->path, ""};
    }
}

void psi_meminfo_read(psi_meminfo *meminfo, uint64_t at_us, bool slow, uint64_t mapped_bytes, char *text) {
    uint64_t total = 0, available = 0;
    if (meminfo->path[0] == '\0')
        return;
    if (psi_read_text(meminfo->path, strlen(meminfo->path), "", text) != 0 ||
        !psi_meminfo_parse(text, &total, &available)) {
        psi_bound_lost(&meminfo->bound);
        return;
    }
    if (slow)
        meminfo->bound.cache_bytes = -(int64_t)mapped_bytes; /* below 2^62 by parsing */
    psi_bound_update(&meminfo->bound, at_us, total, (int64_t)available, slow);
}
