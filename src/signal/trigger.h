/* trigger.h - what wakes the watcher out of a long sleep: kernel PSI triggers, and the systemd protocol
 * (MEMORY_PRESSURE_WATCH / MEMORY_PRESSURE_WRITE). An event only wakes; what to do is decided on a reading.
 * Watcher thread only.
 *
 * Rules of the kernel (kernel/sched/psi.c, Documentation/accounting/psi.rst) that this file keeps:
 *  - "some|full STALL_US WINDOW_US" with its terminating NUL (the last byte is overwritten); wait for POLLPRI.
 *  - one trigger a descriptor (EBUSY); window <= 10 s; without CAP_SYS_RESOURCE a multiple of 2 s (6.4 on; before,
 *    /proc/pressure is refused, EPERM); before 6.5 the least window is 500 ms.
 *  - the first event of an unprivileged trigger is false: `total` is read before arming and compared at each event.
 *  - reading the pressure file swallows unprivileged triggers: no reading while armed.
 *  - POLLERR: the source is gone (its cgroup was removed). */
#ifndef PSI_TRIGGER_H
#define PSI_TRIGGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os/os.h"
#include "signal/signal.h"

#define PSI_TRIGGERS 3 /* own group, system, systemd's */

typedef struct psi_trigger psi_trigger;

/* Finds what can be armed below `root`; `group_v2`: the own group's directory, or NULL. Opens no trigger yet.
 * Never NULL but when memory is short. */
psi_trigger *psi_trigger_open(const char *root, const char *group_v2);
void psi_trigger_close(psi_trigger *trigger);

/* Arms what can be armed and is not (takes the totals first). Returns how many are armed. A source that
 * refuses is not tried again for a minute; its row says why. */
size_t psi_trigger_arm(psi_trigger *trigger);

/* Closes the kernel's triggers, so that the pressure files may be read. systemd's stays. */
void psi_trigger_disarm(psi_trigger *trigger);

/* The descriptors to wait on, at most PSI_TRIGGERS, into watches. How many. */
size_t psi_trigger_watches(const psi_trigger *trigger, psi_os_watch *watches);

/* What psi_os_wait reported. Returns the number of genuine events (the stall grew by half the threshold or more); a
 * false first event, and a source that went away (closed, its row says so), count as none. */
size_t psi_trigger_take(psi_trigger *trigger, const psi_os_watch *watches, size_t count);

/* Genuine events so far. */
uint64_t psi_trigger_events(const psi_trigger *trigger);

/* Rows as psi_signal_sources gives them: "trigger.own", "trigger.system", "trigger.systemd". */
const psi_source *psi_trigger_sources(const psi_trigger *trigger, size_t *count);
uint64_t psi_trigger_changes(psi_trigger *trigger);

#endif
