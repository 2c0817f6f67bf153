/* zoneinfo.c - the zones' watermarks: where the kernel begins to reclaim. Recorded; MemAvailable has the low ones
 * subtracted already. Called every few seconds, on the watcher thread; read by line, since it grows with the
 * number of CPUs. */
#include "signal/sources.h"

#include "os/os.h"

#include <string.h>

#define MOST_BYTES ((size_t)4 << 20)

enum { MARKS = 3 };
static const char *const words[MARKS] = {"min ", "low ", "high "};

typedef struct sums {
    uint64_t bytes[MARKS];
    size_t lines[MARKS];
    uint64_t page_bytes;
    bool is_odd;
} sums;

void psi_zoneinfo_open(psi_sources *sources) { psi_source_path(sources, sources->zoneinfo_path, "/proc/zoneinfo"); }

/* "        min      68": once a zone. The per-CPU lines "high:" and "high_min:" are others. */
static bool take_line(void *user, char *line) {
    sums *sum = user;
    const char *c = line + strspn(line, " ");
    for (size_t i = 0; i < MARKS; i++) {
        size_t length = strlen(words[i]);
        uint64_t pages = 0;
        if (strncmp(c, words[i], length) != 0)
            continue;
        if (!psi_parse_u64(c + length + strspn(c + length, " "), &pages) ||
            pages >= (PSI_AMOUNT_END - sum->bytes[i]) / sum->page_bytes)
            sum->is_odd = true;
        else
            sum->bytes[i] += pages * sum->page_bytes;
        sum->lines[i]++;
    }
    return !sum->is_odd;
}

void psi_zoneinfo_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    sums sum = {.page_bytes = psi_os_page_bytes()};
    (void)look;
    for (size_t i = 0; i < MARKS; i++)
        psi_sample_clear(sample, PSI_RAW_ZONE_MIN_BYTES + i);
    int error = psi_os_read_lines(sources->zoneinfo_path, sources->text, PSI_TEXT_BYTES, MOST_BYTES, take_line, &sum);
    if (error != 0) {
        psi_row_refused(sources, PSI_ROW_ZONEINFO, error, "/proc/zoneinfo cannot be read", "mount /proc");
    } else if (sum.is_odd || sum.lines[0] == 0 || sum.lines[0] != sum.lines[1] || sum.lines[0] != sum.lines[2]) {
        psi_row_miss(sources, PSI_ROW_ZONEINFO, "no sensible watermarks in /proc/zoneinfo",
                     "a /proc that is the kernel's own");
    } else {
        for (size_t i = 0; i < MARKS; i++)
            psi_sample_set(sample, PSI_RAW_ZONE_MIN_BYTES + i, sum.bytes[i]);
        psi_row_use(sources, PSI_ROW_ZONEINFO, sources->zoneinfo_path);
    }
}
