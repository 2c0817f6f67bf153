/* bound.c - headroom against one limit, and how fast it shrinks. Pure arithmetic over times it is given; called
 * by derive.c, on the watcher thread. */
#include "signal/rates.h"

#include <string.h>

/* A reading closer than this to the one before is merged with the next: the kernel charges groups in
 * batches (64 pages a CPU, mm/memcontrol.c), over less time a batch alone would read as 256 MiB/s. */
#define LEAST_SPAN_US ((uint64_t)1000)

/* First-order filters, as span / (span + time constant): no libm, stable for any span. */
#define ATTACK_US 2000.0  /* half of a rise seen over 2 ms, nearly all of one seen over 20 ms */
#define DECAY_US 433000.0 /* a half-life of 300 ms: 300 / ln 2 */

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

/* What went since both parts were fresh, less what may be own mapped pages that came back: reading those again
 * uses a group's memory as an allocation does, and only the next fresh cache tells one from the other. A true
 * spike hides behind them for 50 ms at most; headroom itself is counted without this favour. */
static double lost_since_both(const psi_bound *bound, int64_t free_bytes) {
    double lost = (double)bound->both_sum_bytes - (double)bound->both_cache_bytes - (double)free_bytes;
    if (!bound->has_both || bound->returning_bytes <= 0 || lost <= 0)
        return lost;
    return lost > (double)bound->returning_bytes ? lost - (double)bound->returning_bytes : 0;
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
        double used = lost_since_both(bound, free_bytes) - lost_since_both(bound, bound->before_free_bytes);
        set_shrink(bound, used / (double)span_us - bound->cache_growth, span_us);
    }
    if (cache_is_fresh)
        take_both(bound, at_us);
    bound->has_before = true;
    bound->before_free_bytes = free_bytes;
    bound->before_at_us = at_us;
}

static int64_t subtract_clamped(int64_t from, int64_t bytes) {
    const int64_t end = ((int64_t)1 << 62) - 1; /* so that the difference fits */
    bytes = bytes > end ? end : bytes < -end ? -end : bytes;
    from = from > end ? end : from < -end ? -end : from;
    return from - bytes;
}

void psi_bound_took(psi_bound *bound, int64_t bytes) {
    bound->before_free_bytes = subtract_clamped(bound->before_free_bytes, bytes);
    bound->both_sum_bytes = subtract_clamped(bound->both_sum_bytes, bytes);
}

void psi_bound_recount(psi_bound *bound, int64_t bytes) {
    bound->both_cache_bytes = subtract_clamped(bound->both_cache_bytes, -bytes);
    bound->both_sum_bytes = subtract_clamped(bound->both_sum_bytes, -bytes);
}

int64_t psi_bound_room(const psi_bound *bound) {
    int64_t sum = bound->free_bytes + bound->cache_bytes;
    return sum < (int64_t)bound->limit_bytes ? sum : (int64_t)bound->limit_bytes;
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
        if (shrink < 0 && fill->bytes_per_us > PSI_FILL_NOISE)
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

/* ---- Run -------------------------------------------------------------------------------------- */

/* Room for one more: of the entries between others the one goes that leaves the smallest gap for its age, so that
 * what asks for it hears of a little less time and never of more. One that does not shrink is never asked for. */
static void forget_one(psi_run *run) {
    size_t which = 0;
    double smallest = 2;
    for (size_t i = 1; i + 1 < run->count && run->least[0] > 0; i++) {
        double gap_us = (double)(run->since_us[i + 1] - run->since_us[i - 1]);
        double share = gap_us / (double)(run->at_us - run->since_us[i - 1]);
        if (share < smallest) {
            smallest = share;
            which = i;
        }
    }
    run->count--;
    memmove(run->since_us + which, run->since_us + which + 1, (run->count - which) * sizeof(run->since_us[0]));
    memmove(run->least + which, run->least + which + 1, (run->count - which) * sizeof(run->least[0]));
}

/* A slot of `rate` that began at `since_us`. Entries that promised more than it held now promise only that: all
 * fall into the oldest of them. */
static void push(psi_run *run, uint64_t since_us, double rate) {
    while (run->count > 0 && run->least[run->count - 1] >= rate)
        since_us = run->since_us[--run->count];
    if (run->count == PSI_RUN_SLOTS)
        forget_one(run);
    run->since_us[run->count] = since_us;
    run->least[run->count++] = rate;
}

void psi_run_add(psi_run *run, uint64_t at_us, double shrink, uint64_t span_us) {
    if (run->begun && at_us == run->at_us)
        return;
    /* Time that went back, or time of which nothing is known, is a break. */
    if (!run->begun || at_us < run->at_us || at_us - run->at_us > span_us)
        *run = (psi_run){.begun = true, .at_us = at_us - span_us};
    uint64_t passed_us = at_us - run->at_us;
    run->at_us = at_us;
    run->pending_us += passed_us;
    run->pending_bytes += shrink * (double)passed_us;
    if (run->pending_us < PSI_RUN_SLOT_US)
        return;
    push(run, at_us - run->pending_us, run->pending_bytes / (double)run->pending_us);
    run->pending_us = 0;
    run->pending_bytes = 0;
}

uint64_t psi_run_age_us(const psi_run *run, double least) {
    for (size_t i = 0; i < run->count; i++)
        if (run->least[i] >= least)
            return run->at_us - run->since_us[i];
    return run->pending_bytes >= least * (double)run->pending_us ? run->pending_us : 0;
}
