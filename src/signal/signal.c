/* signal.c - joins the sources into one reading: stall share, headroom, fill rate, major faults.
 * Called by the watcher thread, and by doctor on its own psi_signal. Allocates only when it opens. */
#include "signal/signal.h"

#include "os/os.h"
#include "signal/sources.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* memory.stat and /proc/self/status cost several times what a usage file costs: at most 20 a second. */
#define SLOW_US ((uint64_t)50000)

/* Mount tables of container hosts run to hundreds of lines. */
#define MOUNTS_BYTES ((size_t)1 << 18)

enum { ROW_PSI, ROW_V2, ROW_V1, ROW_MEMINFO, ROW_FAULTS, ROW_MAPPINGS, ROWS };

struct psi_signal {
    psi_clock clock;
    psi_pressure pressure;
    psi_limits v2, v1;
    psi_meminfo meminfo;
    psi_self self;
    psi_fill fill;
    bool has_slow;
    uint64_t slow_at_us;
    psi_source rows[ROWS];
    char text[PSI_TEXT_BYTES];
};

int psi_read_text(const char *dir, size_t dir_length, const char *tail, char *text) {
    char path[PSI_PATH_BYTES];
    if (!psi_path_join(path, dir, dir_length, tail))
        return -ENAMETOOLONG;
    ssize_t count = psi_os_read_small(path, text, PSI_TEXT_BYTES);
    return count < 0 ? (int)count : 0;
}

psi_signal *psi_signal_open(const char *root, psi_clock clock) {
    psi_signal *signal = calloc(1, sizeof(*signal));
    psi_group *group = calloc(2, sizeof(*group));
    char *mounts = malloc(MOUNTS_BYTES);
    if (signal != NULL && group != NULL && mounts != NULL) {
        signal->clock = clock;
        root = root != NULL ? root : "";
        psi_group_find(&group[0], root, PSI_CGROUP_V2, mounts, MOUNTS_BYTES);
        psi_group_find(&group[1], root, PSI_CGROUP_V1, mounts, MOUNTS_BYTES);
        psi_pressure_open(&signal->pressure, root, &group[0], signal->text, &signal->rows[ROW_PSI]);
        psi_limits_open(&signal->v2, &group[0], PSI_CGROUP_V2, signal->text, &signal->rows[ROW_V2]);
        psi_limits_open(&signal->v1, &group[1], PSI_CGROUP_V1, signal->text, &signal->rows[ROW_V1]);
        psi_meminfo_open(&signal->meminfo, root, signal->text, &signal->rows[ROW_MEMINFO]);
        psi_self_open(&signal->self, root, signal->text, &signal->rows[ROW_FAULTS], &signal->rows[ROW_MAPPINGS]);
    } else {
        free(signal);
        signal = NULL;
    }
    free(mounts);
    free(group);
    return signal;
}

void psi_signal_close(psi_signal *signal) { free(signal); }

const psi_source *psi_signal_sources(const psi_signal *signal, size_t *count) {
    *count = ROWS;
    return signal->rows;
}

static psi_bound *tighter(psi_bound *a, psi_bound *b) {
    if (a == NULL || !b->known)
        return b->known ? b : a;
    return psi_bound_headroom(b) < psi_bound_headroom(a) ? b : a;
}

static psi_bound *tightest(psi_signal *signal) {
    psi_bound *bound = tighter(NULL, &signal->meminfo.bound);
    for (size_t i = 0; i < signal->v2.count; i++)
        bound = tighter(bound, &signal->v2.level[i].bound);
    for (size_t i = 0; i < signal->v1.count; i++)
        bound = tighter(bound, &signal->v1.level[i].bound);
    return bound;
}

/* The fill rate is that of the tightest bound, from its own history: when another becomes the
 * tightest, the step from one to the other is no fill. */
static void join_headroom(psi_signal *signal, psi_reading *reading) {
    const psi_bound *bound = tightest(signal);
    if (bound == NULL)
        return;
    reading->have |= PSI_HAVE_HEADROOM;
    reading->headroom_bytes = psi_bound_headroom(bound);
    reading->limit_bytes = bound->limit_bytes;
    if (bound->has_shrink)
        psi_fill_add(&signal->fill, reading->at_us, bound->shrink, bound->shrink_span_us);
    if (signal->fill.known) {
        reading->have |= PSI_HAVE_FILL;
        reading->fill_bytes_per_s = psi_fill_bytes_per_s(&signal->fill);
    }
}

static bool is_slow_due(psi_signal *signal, uint64_t now_us) {
    if (signal->has_slow && now_us >= signal->slow_at_us && now_us - signal->slow_at_us < SLOW_US)
        return false;
    signal->has_slow = true;
    signal->slow_at_us = now_us;
    return true;
}

void psi_signal_read(psi_signal *signal, psi_reading *reading) {
    uint64_t now_us = signal->clock.now_us != NULL ? signal->clock.now_us(signal->clock.user) : psi_os_now_us();
    bool slow = is_slow_due(signal, now_us);
    *reading = (psi_reading){.at_us = now_us, .headroom_bytes = UINT64_MAX, .limit_bytes = UINT64_MAX};
    if (slow)
        psi_self_read(&signal->self, now_us, signal->text);
    psi_pressure_read(&signal->pressure, now_us, signal->text, reading);
    psi_limits_read(&signal->v2, now_us, slow, signal->self.mapped_bytes, signal->text);
    psi_limits_read(&signal->v1, now_us, slow, signal->self.mapped_bytes, signal->text);
    psi_meminfo_read(&signal->meminfo, now_us, slow, signal->self.mapped_bytes, signal->text);
    join_headroom(signal, reading);
    if (signal->self.has_rate) {
        reading->have |= PSI_HAVE_FAULTS;
        reading->major_faults_per_s = signal->self.faults_per_s;
    }
}

void psi_signal_took(psi_signal *signal, int64_t bytes) {
    psi_bound_took(&signal->meminfo.bound, bytes);
    for (size_t i = 0; i < signal->v2.count; i++)
        psi_bound_took(&signal->v2.level[i].bound, bytes);
    for (size_t i = 0; i < signal->v1.count; i++)
        psi_bound_took(&signal->v1.level[i].bound, bytes);
}
