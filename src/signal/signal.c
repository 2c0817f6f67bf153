/* signal.c - one look at the machine: the sources fill a sample, the sample becomes a reading. Called by the watcher
 * thread, and by the command on its own psi_signal. Allocates only when it opens. */
#include "signal/signal.h"

#include "os/os.h"
#include "signal/derive.h"
#include "signal/sources.h"

#include <stdlib.h>

/* memory.stat and /proc/self/status cost several times what a usage file costs: at most 20 a second. Stall is counted
 * over 100 ms and more, and its four files are most of a look: 40 a second. The rest changes in minutes. */
#define STALL_US ((uint64_t)25000)
#define COUNTERS_US ((uint64_t)50000)
#define RARE_US ((uint64_t)5000000)
#define ALARM_US ((uint64_t)10000) /* while an alarm lasts */

typedef struct last_look {
    bool taken;
    uint64_t at_us;
} last_look;

struct psi_signal {
    psi_clock clock;
    last_look stall, counters, rare;
    psi_sources sources;
    psi_sample sample;
    psi_derive derive;
    uint64_t rows_said; /* one bit a row: in use, as of the last psi_signal_changes */
};

static uint64_t now_us(const psi_signal *signal) {
    return signal->clock.now_us != NULL ? signal->clock.now_us(signal->clock.user) : psi_os_now_us();
}

static uint64_t rows_in_use(const psi_signal *signal) {
    uint64_t bits = 0;
    for (size_t i = 0; i < PSI_ROWS; i++)
        bits |= (uint64_t)signal->sources.rows[i].in_use << i;
    return bits;
}

psi_signal *psi_signal_open(const psi_signal_options *options) {
    static const psi_signal_options none = {.root = NULL};
    psi_signal *signal = calloc(1, sizeof(*signal));
    if (signal == NULL)
        return NULL;
    options = options != NULL ? options : &none;
    signal->clock = options->clock;
    psi_sources_open(&signal->sources, options->root != NULL ? options->root : "", options->process_id);
    psi_derive_init(&signal->derive);
    /* A first look for the rows, and for what a later one may leave out; readings begin with the caller's. */
    signal->sample.at_us = now_us(signal);
    psi_sources_sample(&signal->sources, PSI_LOOK_ALL, &signal->sample);
    signal->rows_said = rows_in_use(signal);
    return signal;
}

void psi_signal_close(psi_signal *signal) { free(signal); }

static bool is_due(last_look *look, uint64_t at_us, uint64_t every_us) {
    if (look->taken && at_us >= look->at_us && at_us - look->at_us < every_us)
        return false;
    look->taken = true;
    look->at_us = at_us;
    return true;
}

/* Reading files fills a group as an allocation does, and only memory.stat tells one from the other: before an alarm is
 * raised on a cache figure of 50 ms ago, it is read anew. While it lasts, each 10 ms, and derive.c takes no rate from
 * the looks between: these files cost as much as the rest of a look, and there are hundreds a second then, beside an
 * engine that wants the processor. */
static uint32_t check_alarm(psi_signal *signal, psi_reading *reading) {
    if (signal->derive.alarmed && signal->sample.at_us - signal->counters.at_us < ALARM_US)
        return 0;
    psi_derive trial = signal->derive;
    psi_derive_read(&trial, &signal->sample, reading);
    if (!trial.alarmed)
        return 0;
    psi_sources_sample(&signal->sources, PSI_LOOK_AMOUNTS | PSI_LOOK_COUNTERS, &signal->sample);
    signal->counters.at_us = signal->sample.at_us;
    return PSI_LOOK_COUNTERS;
}

void psi_signal_read(psi_signal *signal, uint32_t look, psi_reading *reading) {
    uint64_t at_us = now_us(signal);
    look &= PSI_LOOK_ALL;
    bool may_check = look & PSI_LOOK_AMOUNTS;
    if ((look & PSI_LOOK_COUNTERS) && !is_due(&signal->counters, at_us, COUNTERS_US))
        look &= ~(uint32_t)PSI_LOOK_COUNTERS;
    if ((look & PSI_LOOK_RARE) && !is_due(&signal->rare, at_us, RARE_US))
        look &= ~(uint32_t)PSI_LOOK_RARE;
    /* With the counters always: whether stall is to be believed is judged by both. */
    if ((look & PSI_LOOK_STALL) && !is_due(&signal->stall, at_us, look & PSI_LOOK_COUNTERS ? 0 : STALL_US))
        look &= ~(uint32_t)PSI_LOOK_STALL;
    signal->sample.at_us = at_us;
    signal->sample.look = look;
    psi_sources_sample(&signal->sources, look, &signal->sample);
    if (may_check && !(look & PSI_LOOK_COUNTERS))
        signal->sample.look |= check_alarm(signal, reading);
    psi_derive_read(&signal->derive, &signal->sample, reading);
}

const psi_sample *psi_signal_last(const psi_signal *signal) { return &signal->sample; }

void psi_signal_took(psi_signal *signal, int64_t bytes) { psi_derive_took(&signal->derive, bytes); }

/* The stall that an event tells of is read at once: while the trigger is armed again, nobody reads it. */
void psi_signal_note_trigger(psi_signal *signal, uint64_t events) {
    if (events != signal->sample.value[PSI_RAW_TRIGGER_EVENTS])
        signal->stall.taken = false;
    psi_sample_set(&signal->sample, PSI_RAW_TRIGGER_EVENTS, events);
}

const psi_source *psi_signal_sources(const psi_signal *signal, size_t *count) {
    *count = PSI_ROWS;
    return signal->sources.rows;
}

uint64_t psi_signal_changes(psi_signal *signal) {
    uint64_t now = rows_in_use(signal), changed = now ^ signal->rows_said;
    signal->rows_said = now;
    return changed;
}

static const char *group_dir(const psi_signal *signal, psi_cgroup_version version) {
    const psi_group *group = &signal->sources.group[version];
    return group->found && !group->is_root ? group->dir : NULL;
}

const char *psi_signal_group_v2(const psi_signal *signal) { return group_dir(signal, PSI_CGROUP_V2); }

const char *psi_signal_group_v1(const psi_signal *signal) { return group_dir(signal, PSI_CGROUP_V1); }
