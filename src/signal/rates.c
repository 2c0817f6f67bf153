/* rates.c - rates out of counters and amounts: the sliding window and the fill rate. Pure arithmetic
 * over times it is given; called by the other files of this room, on the watcher thread. */
#include "signal/rates.h"

#include <string.h>

/* A reading closer than this to the one before is merged with the next: the kernel charges groups in
 * batches (64 pages a CPU, mm/memcontrol.c), over less time a batch alone would read as 256 MiB/s. */
#define LEAST_SPAN_US ((uint64_t)1000)

/* First-order filters, as span / (span + time constant): no libm, stable for any span. */
#define ATTACK_US 2000.0  /* half of a rise seen over 2 ms, nearly all of one seen over 20 ms */
#define DECAY_US 433000.0 /* a half-life of 300 ms: 300 / ln 2 */

/* Below this a fill rate is noise and may turn negative at once (1 MiB/s, in bytes per us). */
#define NOISE_BYTES_PER_US 1.05

/* ---- Window ----------------------------------------------------------------------------------- */

void psi_window_begin(psi_window *window, uint64_t at_us, uint64_t value) {
    window->at_us[0] = window->last_at_us = at_us;
    window->value[0] = window->last_value = value;
    window->count = 1;
}

static void drop_oldest(psi_window *window) {
    window->count--;
    memmove(window->at_us, window->at_us + 1, window->count * sizeof(window->at_us[0]));
    memmove(window->value, window->value + 1, window->count * sizeof(window->value[0]));
}

static void keep(psi_window *window, uint64_t at_us, uint64_t value) {
    if (at_us - window->at_us[window->count - 1] < PSI_WINDOW_SLOT_US)
        return;
    if (window->count == PSI_WINDOW_SLOTS)
        drop_oldest(window);
    window->at_us[window->count] = at_us;
    window->value[window->count] = value;
    window->count++;
}

bool psi_window_add(psi_window *window, uint64_t at_us, uint64_t value, double *rate) {
    if (window->count == 0 || at_us < window->last_at_us || value < window->last_value) {
        psi_window_begin(window, at_us, value);
        return false;
    }
    /* The base is the youngest sample that is a window old, or the oldest there is. */
    while (window->count > 1 && at_us - window->at_us[1] >= PSI_WINDOW_US)
        drop_oldest(window);
    uint64_t span_us = at_us - window->at_us[0];
    uint64_t grown = value - window->value[0];
    keep(window, at_us, value);
    window->last_at_us = at_us;
    window->last_value = value;
    if (span_us < PSI_WINDOW_LEAST_US)
        return false;
    *rate = (double)grown / (double)span_us;
    return true;
}

/* ---- Bound ------------------------------------------------------------------------------------ */

void psi_bound_lost(psi_bound *bound) {
    bound->known = bound->has_before = bound->has_both = bound->has_shrink = false;
    bound->cache_growth = 0;
}

static void set_shrink(psi_bound *bound, double bytes_per_us, uint64_t span_us) {
    bound->has_shrink = true;
    bound->shrink = bytes_per_us;
    bound->shrink_span_us = span_us;
}

/* Both parts are fresh: the rate over the time since they both were, exact whichever moved. */
static void take_both(psi_bound *bound, uint64_t at_us) {
    int64_t sum = bound->free_bytes + bound->cache_bytes;
    if (bound->has_both && at_us - bound->both_at_us < LEAST_SPAN_US)
        return;
    if (bound->has_both) {
        uint64_t span_us = at_us - bound->both_at_us;
        double grown = (double)bound->cache_bytes - (double)bound->both_cache_bytes;
        bound->cache_growth = grown > 0 ? grown / (double)span_us : 0;
        set_shrink(bound, ((double)bound->both_sum_bytes - (double)sum) / (double)span_us, span_us);
    }
    bound->has_both = true;
    bound->both_at_us = at_us;
    bound->both_sum_bytes = sum;
    bound->both_cache_bytes = bound->cache_bytes;
}

void psi_bound_update(psi_bound *bound, uint64_t at_us, uint64_t limit_bytes, int64_t free_bytes, bool cache_is_fresh) {
    /* A limit that was changed is no fill, and a clock that went back gives no span. */
    if (bound->known && (limit_bytes != bound->limit_bytes || at_us < bound->before_at_us || at_us < bound->both_at_us))
        psi_bound_lost(bound);
    bound->known = true;
    bound->limit_bytes = limit_bytes;
    bound->free_bytes = free_bytes;
    bound->has_shrink = false;
    uint64_t span_us = bound->has_before ? at_us - bound->before_at_us : 0;
    if (bound->has_before && span_us < LEAST_SPAN_US && !cache_is_fresh)
        return;
    if (bound->has_before && span_us >= LEAST_SPAN_US) {
        double rate = ((double)bound->before_free_bytes - (double)free_bytes) / (double)span_us;
        set_shrink(bound, rate - bound->cache_growth, span_us);
    }
    if (cache_is_fresh)
        take_both(bound, at_us);
    bound->has_before = true;
    bound->before_free_bytes = free_bytes;
    bound->before_at_us = at_us;
}

static int64_t subtract_clamped(int64_t from, int64_t bytes) {
    const int64_t end = (int64_t)1 << 62;
    bytes = bytes > end ? end : bytes < -end ? -end : bytes;
    from = from > end ? end : from < -end ? -end : from;
    return from - bytes;
}

void psi_bound_took(psi_bound *bound, int64_t bytes) {
    bound->before_free_bytes = subtract_clamped(bound->before_free_bytes, bytes);
    bound->both_sum_bytes = subtract_clamped(bound->both_sum_bytes, bytes);
}

uint64_t psi_bound_headroom(const psi_bound *bound) {
    int64_t sum = bound->free_bytes + bound->cache_bytes;
    if (sum <= 0)
        return 0;
    return (uint64_t)sum < bound->limit_bytes ? (uint64_t)sum : bound->limit_bytes;
}

/* ---- Fill ------------------------------------------------------------------------------------- */

void psi_fill_add(psi_fill *fill, uint64_t at_us, double shrink, uint64_t span_us) {
    double elapsed_us = fill->known && at_us > fill->at_us ? (double)(at_us - fill->at_us) : (double)span_us;
    double share;
    if (shrink > fill->bytes_per_us) {
        share = (double)span_us / ((double)span_us + ATTACK_US);
    } else {
        /* Memory that comes back must not wipe out what was learnt about how fast it goes: a process
         * that allocates and frees in turns will allocate again. */
        if (shrink < 0 && fill->bytes_per_us > NOISE_BYTES_PER_US)
            shrink = 0;
        share = elapsed_us / (elapsed_us + DECAY_US);
    }
    fill->bytes_per_us += share * (shrink - fill->bytes_per_us);
    fill->known = true;
    fill->at_us = at_us;
}

int64_t psi_fill_bytes_per_s(const psi_fill *fill) {
    const double end = 4e18; /* inside int64_t */
    double rate = fill->bytes_per_us * 1e6;
    return rate > end ? (int64_t)end : rate < -end ? -(int64_t)end : (int64_t)rate;
}
