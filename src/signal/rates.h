/* rates.h - rates out of counters and amounts: a sliding window for counters that only grow, and the
 * fill rate of headroom. Pure arithmetic over times it is given; used on the watcher thread. */
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
 * slip, and not deaf for ever if the counter was reset. */
bool psi_window_add(psi_window *window, uint64_t at_us, uint64_t value, double *rate);

/* ---- A bound on memory: a group's limit, or the machine --------------------------------------- */

/* Headroom is `free_bytes` + `cache_bytes`. The first is read each time, the second seldom, because
 * it costs more; so a rate must be taken over matching spans:
 *  - when both are fresh, over the time since both were fresh last;
 *  - between, over the last reading, from free alone, less the growth that the cache last showed
 *    (reading files fills the cache and not memory).
 * Otherwise the kernel dropping cache would first look like relief and 50 ms later like a spike. */
typedef struct psi_bound {
    bool known;
    uint64_t limit_bytes;
    int64_t free_bytes;  /* limit less usage, or MemAvailable */
    int64_t cache_bytes; /* what can be reclaimed on top, less own mappings; may be negative */
    double cache_growth; /* bytes per us, never negative */
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

uint64_t psi_bound_headroom(const psi_bound *bound);

/* ---- The fill rate ---------------------------------------------------------------------------- */

typedef struct psi_fill {
    bool known;
    double bytes_per_us;
    uint64_t at_us;
} psi_fill;

/* Attack within a reading or two, decay with a half-life of 300 ms. */
void psi_fill_add(psi_fill *fill, uint64_t at_us, double shrink, uint64_t span_us);
int64_t psi_fill_bytes_per_s(const psi_fill *fill);

#endif
