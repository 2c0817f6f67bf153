/* faults.c - the own process: major faults from /proc/self/stat, and from /proc/self/status how much
 * of the page cache is its own mapped files (model weights), which are in use and not free. Called by
 * signal.c, on the watcher thread, with the slow readings. */
#include "signal/sources.h"

#include <string.h>

/* proc(5): field 12 is majflt, summed over all threads. Field 2, the name, is in parentheses and may
 * hold blanks and parentheses of its own, so count from the last one: field 3 follows it. */
bool psi_self_parse_major_faults(const char *text, uint64_t *faults) {
    const char *c = strrchr(text, ')');
    if (c == NULL)
        return false;
    for (int field = 2; field < 12; field++) {
        c = strchr(c, ' ');
        if (c == NULL)
            return false;
        c++;
    }
    return psi_parse_u64(c, faults);
}

/* RssFile is there from Linux 4.5. Locked pages are on the unevictable list and so in no number that
 * we count as reclaimable: only the unlocked ones are counted off. */
bool psi_self_parse_mapped(const char *text, uint64_t *bytes) {
    uint64_t resident = 0, locked = 0;
    if (!psi_parse_field(text, "RssFile", 1024, &resident))
        return false;
    if (!psi_parse_field(text, "VmLck", 1024, &locked))
        locked = 0;
    *bytes = resident > locked ? resident - locked : 0;
    return true;
}

void psi_self_open(psi_self *self, const char *root, char *text, psi_source *faults_row, psi_source *mappings_row) {
    uint64_t value = 0;
    size_t length = strlen(root);
    *faults_row = (psi_source){.name = "faults", .in_use = true, .detail = self->stat_path, .cure = ""};
    if (!psi_path_join(self->stat_path, root, length, "/proc/self/stat") ||
        psi_read_text(self->stat_path, strlen(self->stat_path), "", text) != 0 ||
        !psi_self_parse_major_faults(text, &value)) {
        self->stat_path[0] = '\0';
        *faults_row = (psi_source){"faults", false, "/proc/self/stat cannot be read", "mount /proc"};
    }
    *mappings_row = (psi_source){.name = "mappings", .in_use = true, .detail = self->status_path, .cure = ""};
    if (!psi_path_join(self->status_path, root, length, "/proc/self/status") ||
        psi_read_text(self->status_path, strlen(self->status_path), "", text) != 0 ||
        !psi_self_parse_mapped(text, &value)) {
        self->status_path[0] = '\0';
        *mappings_row =
            (psi_source){"mappings", false, "no RssFile in /proc/self/status: mapped weights pass for free memory",
                         "mount /proc; Linux 4.5 or newer"};
    }
}

void psi_self_read(psi_self *self, uint64_t at_us, char *text) {
    uint64_t faults = 0;
    double per_us = 0;
    self->has_rate = false;
    if (self->stat_path[0] != '\0' && psi_read_text(self->stat_path, strlen(self->stat_path), "", text) == 0 &&
        psi_self_parse_major_faults(text, &faults) && psi_window_add(&self->faults, at_us, faults, &per_us)) {
        self->has_rate = true;
        self->faults_per_s = per_us * 1e6;
    }
    /* On failure the last number stays: better than to take the weights for free memory. */
    if (self->status_path[0] != '\0' && psi_read_text(self->status_path, strlen(self->status_path), "", text) == 0)
        (void)psi_self_parse_mapped(text, &self->mapped_bytes);
}
