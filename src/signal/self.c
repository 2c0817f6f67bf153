/* self.c - the process itself: major faults, and how much of the page cache is its own mapped files (model
 * weights), which are in use and not free. Called at most 20 times a second, on the watcher thread. */
#include "signal/sources.h"

#include "os/os.h"

#include <stdlib.h>
#include <string.h>

#define LEAST_MAPPING_BYTES ((uint64_t)1 << 20)
#define MAPS_STEP_BYTES ((uint64_t)16 << 20) /* a change of RssFile that makes maps worth reading at once */
#define MAPS_MOST_BYTES ((size_t)8 << 20)

/* ---- Parsing ---------------------------------------------------------------------------------- */

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

static bool parse_hex(const char **text, uint64_t *value) {
    static const char digits[] = "0123456789abcdef";
    uint64_t sum = 0;
    const char *c = *text;
    for (; *c != '\0' && c - *text < 16; c++) {
        const char *digit = strchr(digits, *c);
        if (digit == NULL)
            break;
        sum = sum << 4 | (uint64_t)(digit - digits);
    }
    if (c == *text)
        return false;
    *text = c;
    *value = sum;
    return true;
}

/* "from-to perms offset device inode   /path". Shared memory counts as RssShmem and devices' memory not at all, so
 * neither is a file mapping here. */
uint64_t psi_self_parse_mapping(const char *line) {
    uint64_t from = 0, to = 0;
    const char *c = line;
    if (!parse_hex(&c, &from) || *c++ != '-' || !parse_hex(&c, &to) || *c != ' ')
        return 0;
    const char *path = strchr(c, '/');
    if (path == NULL || path[-1] != ' ' || to <= from || to - from < LEAST_MAPPING_BYTES)
        return 0;
    if (strncmp(path, "/dev/", 5) == 0 || strncmp(path, "/memfd:", 7) == 0 || strncmp(path, "/SYSV", 5) == 0)
        return 0;
    return to - from;
}

/* ---- The source ------------------------------------------------------------------------------- */

static void join(const psi_sources *sources, char *path, const char *file) {
    char tail[sizeof(sources->process) + 16];
    size_t length = strlen(sources->process);
    memcpy(tail, sources->process, length);
    memcpy(tail + length, file, strlen(file) + 1);
    psi_source_path(sources, path, tail);
}

void psi_self_open(psi_sources *sources) {
    join(sources, sources->stat_path, "/stat");
    join(sources, sources->status_path, "/status");
    join(sources, sources->maps_path, "/maps");
}

static void take_faults(psi_sources *sources, psi_sample *sample) {
    uint64_t faults = 0;
    psi_sample_clear(sample, PSI_RAW_SELF_MAJOR_FAULTS);
    int error = psi_source_read(sources, sources->stat_path);
    if (error != 0) {
        psi_row_refused(sources, PSI_ROW_FAULTS, error, "the process's stat in /proc cannot be read", "mount /proc");
    } else if (!psi_self_parse_major_faults(sources->text, &faults) || faults >= PSI_AMOUNT_END) {
        psi_row_miss(sources, PSI_ROW_FAULTS, "no major faults in the process's stat in /proc",
                     "a /proc that is the kernel's own");
    } else {
        psi_sample_set(sample, PSI_RAW_SELF_MAJOR_FAULTS, faults);
        psi_row_use(sources, PSI_ROW_FAULTS, sources->stat_path);
    }
}

/* RssFile is there from Linux 4.5. */
static void take_resident(psi_sources *sources, psi_sample *sample) {
    uint64_t resident = 0, locked = 0;
    psi_sample_clear(sample, PSI_RAW_SELF_FILE_BYTES);
    psi_sample_clear(sample, PSI_RAW_SELF_LOCKED_BYTES);
    int error = psi_source_read(sources, sources->status_path);
    if (error != 0 || !psi_parse_field(sources->text, "RssFile", 1024, &resident)) {
        psi_row_refused(sources, PSI_ROW_MAPPINGS, error,
                        "no RssFile in the process's status in /proc: mapped weights pass for free memory",
                        "mount /proc; Linux 4.5 or newer");
        return;
    }
    psi_sample_set(sample, PSI_RAW_SELF_FILE_BYTES, resident);
    if (psi_parse_field(sources->text, "VmLck", 1024, &locked))
        psi_sample_set(sample, PSI_RAW_SELF_LOCKED_BYTES, locked);
    psi_row_use(sources, PSI_ROW_MAPPINGS, sources->status_path);
}

static bool add_mapping(void *user, char *line) {
    uint64_t *sum = user;
    uint64_t bytes = psi_self_parse_mapping(line);
    *sum += bytes < PSI_AMOUNT_END && *sum < PSI_AMOUNT_END ? bytes : 0;
    return true;
}

/* Seldom, and when RssFile moved far either way: a model that is being loaded, or that was unmapped, whose pages
 * nobody will want back. Reading maps needs permission for another process; without it the cap is not known. */
static void take_mapped(psi_sources *sources, psi_sample *sample) {
    uint64_t sum = 0;
    psi_sample_clear(sample, PSI_RAW_SELF_MAPPED_BYTES);
    if (psi_os_read_lines(sources->maps_path, sources->text, PSI_TEXT_BYTES, MAPS_MOST_BYTES, add_mapping, &sum) == 0)
        psi_sample_set(sample, PSI_RAW_SELF_MAPPED_BYTES, sum);
    sources->has_maps = true;
    sources->maps_file_bytes = sample->value[PSI_RAW_SELF_FILE_BYTES];
}

static bool moved_far(const psi_sources *sources, const psi_sample *sample) {
    uint64_t now = sample->value[PSI_RAW_SELF_FILE_BYTES], before = sources->maps_file_bytes;
    return (now > before ? now - before : before - now) > MAPS_STEP_BYTES;
}

void psi_self_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    if (look & PSI_LOOK_COUNTERS) {
        take_faults(sources, sample);
        take_resident(sources, sample);
    }
    if ((look & PSI_LOOK_RARE) || !sources->has_maps ||
        (sample->known[PSI_RAW_SELF_FILE_BYTES] && moved_far(sources, sample)))
        take_mapped(sources, sample);
}
