/* rates.h - rates out of counters and amounts: a sliding window for counters that only grow (rates.c), headroom
 * against one limit, and the fill rate of headroom (bound.c). Pure arithmetic over times it is given; used on the
 * watcher thread. */
#ifndef PSI_SIGNAL_RATES_H
#define PSI_SIGNAL_RATES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- A counter that only grows, over about the last second ------------------------------------ */

#define PSI_WINDOW_US ((uint64_t)1000000)
#define PSI_WINDOW_SLOT_US ((uint64_t)50000)   /* samples are kept no closer than this */
#define PSI_WINDOW_LEAST_US ((uint64_t)100000) /* no rate over less: 1 ms of stall in 2 ms says nothing */
#define PSI_WINDOW_SLOTS 24                    /* 1 s / 50 ms, one older, and room to spare */

typedef struct psi_window {
    uint64_t at_us[PSI_WINDOW_SLOTS]; /* oldest first */
    uint64_t value[PSI_WINDOW_SLOTS];
    size_t count;
    uint64_t last_at_us, last_value; /* also of samples that were not kept */
} psi_window;

/* Forgets everything and begins with this sample. */
void psi_window_begin(psi_window *window, uint64_t at_us, uint64_t value);

/* Takes a sample. True, and the counter's growth a microsecond in *rate, when there is a window to
 * speak of. A counter or a clock that went back begins the window anew: one lost reading if it was a
 * slip, and not deaf for ever if the counter was reset.
 * After a sleep of seconds the first rate is the average over the sleep, which the counter knows; a tenth of a
 * second later, that tenth tells more than the sleep does, and the window is counted from there. */
bool psi_window_add(psi_window *window, uint64_t at_us, uint64_t value, double *rate);

/* The same over the last `span_us` or little more, of what was added so far. False when nothing is that old. */
bool psi_window_recent(const psi_window *window, uint64_t span_us, double *rate);

/* A window and its last rate, which is worth something for a while after a look. */
#define PSI_RATE_KEEPS_US ((uint64_t)2000000)

typedef struct psi_rate {
    psi_window window;
    bool known;
    uint64_t at_us;
    double per_us;
} psi_rate;

/* The counter was looked at: its value, or that it could not be read (`known` false), across which no rate reaches. */
void psi_rate_take(psi_rate *rate, uint64_t at_us, bool known, uint64_t value);
/* The last rate a microsecond, from a look at most PSI_RATE_KEEPS_US ago. */
bool psi_rate_get(const psi_rate *rate, uint64_t now_us, double *per_us);

/* ---- A bound on memory: a group's limit, or the machine --------------------------------------- */

/* Headroom is `free_bytes` + `cache_bytes`. The first is read each time, the second seldom, because
 * it costs more; so a rate must be taken over matching spans:
 *  - when both are fresh, over the time since both were fresh last;
 *  - between, over the last reading, from free alone, less the growth that the cache last showed
 *    (reading files fills the cache and not memory), and less what may be own mapped pages that come back.
 * Otherwise the kernel dropping cache would first look like relief and 50 ms later like a spike. */
typedef struct psi_bound {
    bool known;
    uint64_t limit_bytes;
    int64_t free_bytes;      /* limit less usage, or MemAvailable */
    int64_t cache_bytes;     /* what can be reclaimed on top, less own mappings; may be negative */
    int64_t returning_bytes; /* own mapped pages that are missing: using up to as much again is no fill */
    double cache_growth;     /* bytes per us, never negative */
    bool has_before, has_both;
    int64_t before_free_bytes; /* at the last reading that counted */
    uint64_t before_at_us;
    int64_t both_cache_bytes, both_sum_bytes; /* when both were fresh */
    uint64_t both_at_us;
    bool has_shrink;         /* this reading gave a rate: */
    double shrink;           /* bytes per us, */
    uint64_t shrink_span_us; /* over this time */
} psi_bound;

/* `cache_is_fresh`: cache_bytes was set for this reading. |free_bytes|, |cache_bytes| < 2^62. */
void psi_bound_update(psi_bound *bound, uint64_t at_us, uint64_t limit_bytes, int64_t free_bytes, bool cache_is_fresh);

/* The bound could not be read: it is not known now, and no rate reaches across the gap. */
void psi_bound_lost(psi_bound *bound);

/* The owner itself took (negative: gave back) so many bytes since the last update: not fill. */
void psi_bound_took(psi_bound *bound, int64_t bytes);

/* From now on cache_bytes counts so many bytes more, though nothing happened in the machine: no growth, no fill. */
void psi_bound_recount(psi_bound *bound, int64_t bytes);

/* free + cache, at most the limit; negative: more is wanted than there is. */
int64_t psi_bound_room(const psi_bound *bound);

/* ---- The fill rate ---------------------------------------------------------------------------- */

/* Below this a fill rate is noise and may turn negative at once (1 MiB/s, in bytes per us). */
#define PSI_FILL_NOISE 1.05

typedef struct psi_fill {
    bool known;
    double bytes_per_us;
    uint64_t at_us;
} psi_fill;

/* Attack within a reading or two, decay with a half-life of 300 ms. */
void psi_fill_add(psi_fill *fill, uint64_t at_us, double shrink, uint64_t span_us);
int64_t psi_fill_bytes_per_s(const psi_fill *fill);

/* ---- How long it has been going on ------------------------------------------------------------- */

#define PSI_RUN_SLOTS 24
#define PSI_RUN_SLOT_US                                                                                                \
    ((uint64_t)5000) /* averaged over this: a process that is not scheduled for 2 ms makes no break */

/* For each rate, how long headroom has shrunk at no less: since_us[i] is the instant from which on every slot
 * had least[i] or more. Both rise with i, so that a few entries tell it for any rate. */
typedef struct psi_run {
    bool begun;
    uint64_t at_us; /* the last reading */
    uint64_t pending_us;
    double pending_bytes; /* of the slot that is not full yet */
    uint64_t since_us[PSI_RUN_SLOTS];
    double least[PSI_RUN_SLOTS]; /* bytes per us */
    size_t count;
} psi_run;

void psi_run_add(psi_run *run, uint64_t at_us, double shrink, uint64_t span_us);
/* How long it has been `least` bytes a microsecond or more, without a break, up to the last reading. */
uint64_t psi_run_age_us(const psi_run *run, double least);

#endif
