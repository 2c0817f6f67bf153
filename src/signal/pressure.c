/* pressure.c - stall time: memory.pressure and io.pressure of the own cgroup v2 group and of the system. Called
 * with PSI_LOOK_STALL only, on the watcher thread: a read swallows the events of triggers that are armed. */
#include "signal/sources.h"

#include <errno.h>
#include <string.h>

static const struct {
    psi_row row;
    bool is_own;
    const char *tail;
    psi_raw some, full;
    size_t avg10; /* PSI_RAW_COUNT: none */
} of[PSI_PRESSURES] = {
    {PSI_ROW_OWN_MEMORY, true, "/memory.pressure", PSI_RAW_OWN_MEMORY_SOME_US, PSI_RAW_OWN_MEMORY_FULL_US,
     PSI_RAW_OWN_MEMORY_AVG10},
    {PSI_ROW_SYSTEM_MEMORY, false, "/proc/pressure/memory", PSI_RAW_SYSTEM_MEMORY_SOME_US,
     PSI_RAW_SYSTEM_MEMORY_FULL_US, PSI_RAW_SYSTEM_MEMORY_AVG10},
    {PSI_ROW_OWN_IO, true, "/io.pressure", PSI_RAW_OWN_IO_SOME_US, PSI_RAW_OWN_IO_FULL_US, PSI_RAW_COUNT},
    {PSI_ROW_SYSTEM_IO, false, "/proc/pressure/io", PSI_RAW_SYSTEM_IO_SOME_US, PSI_RAW_SYSTEM_IO_FULL_US,
     PSI_RAW_COUNT},
};

/* ---- Parsing ---------------------------------------------------------------------------------- */

/* What follows `word` on the line that begins with `key`, or NULL. */
static const char *find_word(const char *text, const char *key, const char *word) {
    const char *line = psi_parse_line(text, key);
    if (line == NULL)
        return NULL;
    const char *end = strchr(line, '\n');
    const char *found = strstr(line, word);
    return found == NULL || (end != NULL && found > end) ? NULL : found + strlen(word);
}

static bool parse_total(const char *text, const char *key, uint64_t *total_us) {
    const char *total = find_word(text, key, " total=");
    return total != NULL && psi_parse_amount(total, total_us);
}

bool psi_pressure_parse(const char *text, uint64_t *some_us, uint64_t *full_us) {
    uint64_t some = 0, full = 0;
    if (!parse_total(text, "some", &some) || !parse_total(text, "full", &full))
        return false;
    *some_us = some;
    *full_us = full;
    return true;
}

/* "12.34": the kernel writes two digits behind the point, always (kernel/sched/psi.c, psi_show). */
bool psi_pressure_parse_avg10(const char *text, uint64_t *hundredths) {
    const char *c = find_word(text, "some", "avg10=");
    size_t whole = c != NULL ? strspn(c, "0123456789") : 0;
    if (whole == 0 || whole > 3 || c[whole] != '.' || strspn(c + whole + 1, "0123456789") != 2)
        return false;
    uint64_t value = 0;
    for (size_t i = 0; i < whole + 3; i++)
        if (i != whole)
            value = value * 10 + (uint64_t)(c[i] - '0');
    if (value > 10000)
        return false;
    *hundredths = value;
    return true;
}

/* ---- Rows ------------------------------------------------------------------------------------- */

void psi_pressure_explain(int error, const char **detail, const char **cure) {
    switch (error) {
    case -EOPNOTSUPP:
        *detail = "PSI is built in but off";
        *cure = "boot with psi=1 on the kernel command line";
        break;
    case -ENOENT:
        *detail = "no such file in /proc/pressure";
        *cure = "a kernel of 4.20 or newer with CONFIG_PSI=y";
        break;
    case -EACCES:
    case -EPERM:
        *detail = "/proc/pressure may not be read";
        *cure = "let this process read /proc/pressure (container or LSM policy)";
        break;
    case -ENAMETOOLONG:
        *detail = "the path to /proc/pressure is too long";
        *cure = "a shorter root";
        break;
    default:
        *detail = "the file in /proc/pressure is not a PSI file";
        *cure = "a /proc that is the kernel's own";
        break;
    }
}

static void explain_own(const psi_sources *sources, int error, const char **detail, const char **cure) {
    const psi_group *group = &sources->group[PSI_CGROUP_V2];
    *cure = "";
    if (!group->found) {
        *detail = "no cgroup v2 group of this process";
        *cure = "mount cgroup2; the system's pressure serves meanwhile";
    } else if (group->is_root) {
        *detail = "this process is in the root group: the system's pressure is its own";
    } else if (error == -ENOENT) {
        *detail = "no such file in the own group";
        *cure = "PSI in the kernel, and 1 in the group's cgroup.pressure; the system's pressure serves meanwhile";
    } else {
        psi_pressure_explain(error, detail, cure);
        if (error != -EOPNOTSUPP)
            *detail = "the own group's pressure cannot be read";
    }
}

/* ---- The source ------------------------------------------------------------------------------- */

/* The own group's files are there even where its tree has no memory controller. They are not when
 * cgroup.pressure is 0 (6.1): then the system's is better than none. */
void psi_pressure_open(psi_sources *sources) {
    const psi_group *group = &sources->group[PSI_CGROUP_V2];
    for (size_t i = 0; i < PSI_PRESSURES; i++) {
        char *path = sources->pressure_path[i];
        path[0] = '\0';
        if (!of[i].is_own)
            psi_source_path(sources, path, of[i].tail);
        else if (group->found && !group->is_root)
            (void)psi_path_join(path, group->dir, strlen(group->dir), of[i].tail);
    }
}

static void miss(psi_sources *sources, size_t i, int error) {
    const char *detail = "", *cure = "";
    if (of[i].is_own)
        explain_own(sources, error, &detail, &cure);
    else
        psi_pressure_explain(error, &detail, &cure);
    psi_row_miss(sources, of[i].row, detail, cure);
}

static void sample_one(psi_sources *sources, size_t i, psi_sample *sample) {
    uint64_t some_us = 0, full_us = 0, avg10 = 0;
    psi_sample_clear(sample, of[i].some);
    psi_sample_clear(sample, of[i].full);
    if (of[i].avg10 < PSI_RAW_COUNT)
        psi_sample_clear(sample, of[i].avg10);
    if (of[i].is_own && sources->moved_stall)
        return; /* "not known" once: rates begin anew */
    int error = psi_source_read(sources, sources->pressure_path[i]);
    if (error == 0 && !psi_pressure_parse(sources->text, &some_us, &full_us))
        error = -EINVAL;
    if (error != 0) {
        miss(sources, i, error);
        return;
    }
    psi_sample_set(sample, of[i].some, some_us);
    psi_sample_set(sample, of[i].full, full_us);
    if (of[i].avg10 < PSI_RAW_COUNT && psi_pressure_parse_avg10(sources->text, &avg10))
        psi_sample_set(sample, of[i].avg10, avg10);
    psi_row_use(sources, of[i].row, sources->pressure_path[i]);
}

void psi_pressure_sample(psi_sources *sources, uint32_t look, psi_sample *sample) {
    (void)look;
    for (size_t i = 0; i < PSI_PRESSURES; i++)
        sample_one(sources, i, sample);
    sources->moved_stall = false;
}
