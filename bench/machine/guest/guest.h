/* guest.h - the one program of the emulated machine: it is init, the engine and the spike.
 *
 * One program and fork(), no exec: the parts share a page of memory, so what an engine did is known even when the
 * out-of-memory killer ended it. Nothing but libpsicache and the C library is linked in. */
#ifndef MACHINE_GUEST_H
#define MACHINE_GUEST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define MIB ((size_t)1 << 20)
#define STORE_DIR "/var/tmp"
#define WEIGHTS_FILE STORE_DIR "/weights"
#define SPIKE_PROCESSES 4 /* each smaller than the engine: the killer takes the biggest */
#define STEPS_KEPT 8192

/* What stays the same in all runs of a boot. */
typedef struct settings {
    char mode[16];    /* stock, or a mode of the controller: auto, psi, avg10 */
    char weights[16]; /* mapped, locked, none */
    char plan[512];   /* RATExRUNS,... in MB/s */
    size_t cache_bytes, block_bytes, ballast_bytes;
    uint64_t step_us;
    double settle_s; /* between a whole cache and the spike: time to write ahead */
    double hold_s;
    double share; /* of what the cache can give, that the spike needs */
    bool verbose;
} settings;

/* Written by the engine, read by init. */
typedef struct engine_report {
    _Atomic bool ready, done;
    _Atomic uint32_t steps;
    uint32_t step_us[STEPS_KEPT]; /* work time, without the pause between steps */
    _Atomic uint32_t resident_blocks, resident_least;
    _Atomic uint32_t wrong, lost, refused; /* blocks with wrong bytes; blocks gone for good; blocks refused */
    _Atomic uint32_t out_at_end;           /* blocks that did not come back before the end */
    _Atomic uint32_t came_back;
    uint64_t trims, trimmed_bytes, restored_bytes, store_errors; /* filled in at the end */
    _Atomic uint64_t major_faults;
} engine_report;

/* Written by the spike's processes. */
typedef struct spike_report {
    _Atomic uint64_t touched_bytes;
    _Atomic uint64_t last_touch_us;
} spike_report;

/* util.c */
uint64_t now_us(void);
void sleep_until_us(uint64_t when_us);
/* The number behind `key` in a file of "key number" or "key: number kB" lines; -1: not there. */
int64_t keyed_number(const char *path, const char *key);
bool write_text(const char *path, const char *text);
void *shared_memory(size_t bytes);
/* One line of the results, to the second serial port. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool say_open(const char *device);

/* engine.c: until SIGTERM. The exit status: 0, 1 (wrong bytes), 2 (could not start). */
int engine_main(const settings *s, engine_report *report);

/* spike.c: one process's share. */
int spike_main(size_t bytes, double bytes_per_s, uint64_t begin_us, double hold_s, spike_report *report);

/* run.c: one engine, one spike, one line. */
void run_once(const settings *s, double rate_mb_s, int number);

/* triggers.c: who may arm which PSI trigger here. */
void triggers_report(void);

#endif
