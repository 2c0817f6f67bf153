/* psi.c - stall time from memory.pressure: of the own cgroup v2 group if there is one, else of the
 * system. Called by signal.c, on the watcher thread. Reads `total` and never avg10, which lags by
 * seconds (docs: a process was OOM-killed at avg10 = 0.36 %). */
#include "signal/sources.h"

#include <errno.h>
#include <string.h>

/* The kernel's total and our clock are not read at the same instant, so a window may seem to hold a
 * little more stall than time. More than this is a counter that was replaced, not stall. */
#define MOST_SHARE 2.0

static bool parse_total(const char *text, const char *key, uint64_t *total_us) {
    static const char word[] = " total=";
    const char *line = psi_parse_line(text, key);
    if (line == NULL)
        return false;
    const char *end = strchr(line, '\n');
    const char *total = strstr(line, word);
    if (total == NULL || (end != NULL && total > end))
        return false;
    return psi_parse_u64(total + sizeof(word) - 1, total_us);
}

bool psi_pressure_parse(const char *text, uint64_t *some_us, uint64_t *full_us) {
    uint64_t some = 0, full = 0;
    /* All tasks stalled means some are: a full above some is no PSI file. */
    if (!parse_total(text, "some", &some) || !parse_total(text, "full", &full) || full > some)
        return false;
    *some_us = some;
    *full_us = full;
    return true;
}

void psi_pressure_explain(int error, const char **detail, const char **cure) {
    switch (error) {
    case -EOPNOTSUPP:
        *detail = "PSI is built in but off";
        *cure = "boot with psi=1 on the kernel command line";
        break;
    case -ENOENT:
        *detail = "no /proc/pressure/memory";
        *cure = "a kernel of 4.20 or newer with CONFIG_PSI=y";
        break;
    case -EACCES:
    case -EPERM:
        *detail = "/proc/pressure/memory may not be read";
        *cure = "let this process read /proc/pressure (container or LSM policy)";
        break;
    case -ENAMETOOLONG:
        *detail = "the path to /proc/pressure/memory is too long";
        *cure = "a shorter root";
        break;
    default:
        *detail = "/proc/pressure/memory is not a PSI file";
        *cure = "a /proc that is the kernel's own";
        break;
    }
}

static int try_path(psi_pressure *pressure, const char *dir, const char *tail, bool is_own, char *text) {
    uint64_t some_us, full_us;
    int error = psi_read_text(dir, strlen(dir), tail, text);
    if (error == 0 && !psi_pressure_parse(text, &some_us, &full_us))
        error = -EINVAL;
    if (error != 0)
        return error;
    (void)psi_path_join(pressure->path, dir, strlen(dir), tail); /* fits: it was just read */
    pressure->is_own = is_own;
    return 0;
}

void psi_pressure_open(psi_pressure *pressure, const char *root, const psi_group *group, char *text, psi_source *row) {
    int error = -ENOENT;
    pressure->path[0] = '\0';
    /* The file is there even where the group's tree has no memory controller. It is not when
     * cgroup.pressure is 0 (6.1): the system's is better than none. */
    if (group->found && !group->is_root)
        error = try_path(pressure, group->dir, "/memory.pressure", true, text);
    if (error != 0)
        error = try_path(pressure, root, "/proc/pressure/memory", false, text);
    *row = (psi_source){.name = "psi", .in_use = error == 0, .detail = pressure->path, .cure = ""};
    if (error != 0)
        psi_pressure_explain(error, &row->detail, &row->cure);
}

static double clamp_share(double share) { return share > 1 ? 1 : share; }

void psi_pressure_read(psi_pressure *pressure, uint64_t at_us, char *text, psi_reading *reading) {
    uint64_t some_us = 0, full_us = 0;
    double some = 0, full = 0;
    if (pressure->path[0] == '\0' || psi_read_text(pressure->path, strlen(pressure->path), "", text) != 0 ||
        !psi_pressure_parse(text, &some_us, &full_us))
        return;
    bool has_some = psi_window_add(&pressure->some, at_us, some_us, &some);
    bool has_full = psi_window_add(&pressure->full, at_us, full_us, &full);
    if (!has_some || !has_full)
        return;
    if (some > MOST_SHARE || full > MOST_SHARE) {
        psi_window_begin(&pressure->some, at_us, some_us);
        psi_window_begin(&pressure->full, at_us, full_us);
        return;
    }
    reading->have |= PSI_HAVE_STALL;
    reading->stall_is_own = pressure->is_own;
    reading->stall_some_share = clamp_share(some);
    reading->stall_full_share = clamp_share(full < some ? full : some);
}
