/* zram.c - compressed swap in memory: what it holds and what it takes. Recorded, no part of headroom. Called every
 * few seconds, on the watcher thread. */
#include "signal/sources.h"

#include <string.h>

/* Documentation/admin-guide/blockdev/zram.rst: orig_data_size compr_data_size mem_used_total ... (bytes, from 4.1 on)
 */
static bool parse_mm_stat(const char *text, uint64_t *stored_bytes, uint64_t *used_bytes) {
    uint64_t field[3] = {0};
    const char *c = text;
    for (size_t i = 0; i < 3; i++) {
        c += strspn(c, " \t");
        if (!psi_parse_amount(c, &field[i]))
            return false;
        c += strspn(c, "0123456789");
    }
    *stored_bytes = field[0];
    *used_bytes = field[2];
    return true;
}

void psi_zram_open(psi_sources *sources) {
    char tail[] = "/sys/block/zram0/mm_stat";
    for (size_t i = 0; i < PSI_ZRAM_DEVICES; i++) {
        tail[sizeof("/sys/block/zram") - 1] = (char)('0' + i);
        psi_source_path(sources, sources->zram_path[i], tail);
    }
}

typedef struct totals {
    uint64_t stored_bytes, used_bytes;
    const char *path; /* of the first device, or NULL */
    bool is_odd;
} totals;

static void add_device(psi_sources *sources, const char *path, totals *sum) {
    uint64_t stored = 0, used = 0;
    if (psi_source_read(sources, path) != 0)
        return;
    if (!parse_mm_stat(sources->text, &stored, &used) || stored >= PSI_AMOUNT_END - sum->stored_bytes ||
        used >= PSI_AMOUNT_END - sum->used_bytes) {
        sum->is_odd = true;
        return;
    }
    sum->stored_bytes += stored;
    sum->used_bytes += used;
    sum->path = sum->path != NULL ? sum->path : path;
}

void psi_zram_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    totals sum = {.path = NULL};
    (void)look;
    psi_sample_clear(sample, PSI_RAW_ZRAM_STORED_BYTES);
    psi_sample_clear(sample, PSI_RAW_ZRAM_USED_BYTES);
    for (size_t i = 0; i < PSI_ZRAM_DEVICES; i++)
        add_device(sources, sources->zram_path[i], &sum);
    if (sum.is_odd) {
        psi_row_miss(sources, PSI_ROW_ZRAM, "no sensible sizes in /sys/block/zram*/mm_stat", "Linux 4.1 or newer");
    } else if (sum.path == NULL) {
        psi_row_miss(sources, PSI_ROW_ZRAM, "no zram device", "");
    } else {
        psi_sample_set(sample, PSI_RAW_ZRAM_STORED_BYTES, sum.stored_bytes);
        psi_sample_set(sample, PSI_RAW_ZRAM_USED_BYTES, sum.used_bytes);
        psi_row_use(sources, PSI_ROW_ZRAM, sum.path);
    }
}
