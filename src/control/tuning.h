/* tuning.h - what the controller learned of this device, and the mapping from raw signals to the index that
 * follows from it. Never moves the limits that a person set; every value has bounds; can be shown, saved, loaded
 * and switched off. Pure arithmetic; watcher thread, and the command's replay. */
#ifndef PSI_TUNING_H
#define PSI_TUNING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "signal/signal.h"

/* Learned. Zero: not seen yet. */
typedef struct psi_tuning {
    double stall_normal_share;    /* stall while memory is plenty: slow average (minutes), 0..1 */
    double fill_most_bytes_per_s; /* the highest fill seen, decaying with a half-life of 1 h */
    double reaction_us; /* from asking to pages returned, near the worst: up at once, slowly down from the start */
    double write_bytes_per_s; /* of the store, slow average */
    double read_bytes_per_s;
    uint64_t readings; /* that it learned from */
    uint64_t at_us;    /* of the last one; not saved */
} psi_tuning;

/* The mapping that the index uses. */
typedef struct psi_mapping {
    uint64_t reserve_bytes;   /* headroom that reads 0.7 */
    uint64_t reaction_us;     /* from asking to pages returned, without the store */
    double write_bytes_per_s; /* at which unwritten blocks can go */
    double stall_at_anchor;   /* share of stall that reads 0.7 */
} psi_mapping;

/* Bounds of the mapping, and its values while nothing is known. */
#define PSI_REACTION_LEAST_US ((uint64_t)20000)
#define PSI_REACTION_START_US ((uint64_t)100000)
#define PSI_REACTION_MOST_US ((uint64_t)2000000)
#define PSI_WRITE_LEAST 10e6 /* bytes/s: an SD card */
#define PSI_WRITE_START 200e6
#define PSI_WRITE_MOST 4e9
#define PSI_STALL_ANCHOR_LEAST 0.10 /* Android lmkd and systemd act at 7 to 10 % */
#define PSI_STALL_ANCHOR_MOST 0.30
#define PSI_STALL_NORMAL_MOST 0.20 /* nobody trains us to be blind to stall */
#define PSI_FILL_MOST 64e9         /* bytes/s: more than any memory takes */

/* Learns from a reading; `calm`: far from the limit, nothing was asked for lately. */
void psi_tuning_see(psi_tuning *tuning, const psi_reading *reading, bool calm);
void psi_tuning_note_reaction(psi_tuning *tuning, uint64_t reaction_us);
/* `bytes` went to the store (or came from it) in `took_us`. Less than 256 KiB at once says nothing. */
void psi_tuning_note_write(psi_tuning *tuning, uint64_t bytes, uint64_t took_us);
void psi_tuning_note_read(psi_tuning *tuning, uint64_t bytes, uint64_t took_us);

/* The mapping for a limit of `limit_bytes` (UINT64_MAX: not known). `tuning` NULL: switched off, the starting values.
 * reserve_bytes: 1/16 of the limit, 16 MiB to 256 MiB; tuned, between half and twice that, for fill_most over
 * reaction_us; below the base only after 1,000 readings. stall_at_anchor: the least plus stall_normal, up to the most.
 * `reserve_option` not 0: that, whatever was learned. */
void psi_tuning_map(const psi_tuning *tuning, uint64_t limit_bytes, uint64_t reserve_option, psi_mapping *mapping);

/* As text, one "name value" a line, first line PSI_TUNING_HEAD. Whole numbers (a share in millionths), so that no
 * locale takes part; 0: not seen. Length or -ENOBUFS. */
#define PSI_TUNING_HEAD "psi-cache-tuning 1"
#define PSI_TUNING_TEXT_BYTES ((size_t)1024)
int psi_tuning_format(const psi_tuning *tuning, char *text, size_t capacity);

/* 0, or -EPROTO for another head, -EINVAL for a line that is none (a carriage return, a sign, a fraction, a name twice)
 * or a value out of bounds; *tuning is then untouched. Unknown names with a whole number are skipped. */
int psi_tuning_parse(const char *text, psi_tuning *tuning);

#endif
