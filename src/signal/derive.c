/* derive.c - one sample after another becomes one reading after another: headroom against every limit, how fast it
 * shrinks, what the own mappings miss, and rates of faults and reclaim. Called by signal.c and by the command's
 * replay; pure, so both get the same. Stall is stall.c's. */
#include "signal/derive.h"

#include "signal/parse.h"

#include <string.h>

/* From here on mapped pages are wanted back, and what is missing is not forgotten. Readahead makes a few major faults
 * of many pages (measured: 300,000 refaults and 12 faults a second for weights that are read in order), so a few are
 * enough where the group, or else the machine, refaults a lot. */
#define THRASH_FAULTS_PER_S 20.0
#define SOME_FAULTS_PER_S 1.0
#define THRASH_REFAULTS_PER_S 1000.0

/* Page cache that grew by an eighth of headroom a second hides as much of a spike, until it is looked at again. */
#define GROWTH_HIDES_US 8e6

/* Forgetting mappings that nobody asks for: a half-life of 10 s (10 / ln 2), in steps short enough for the
 * first-order filter, and after so many of them there is nothing left. */
#define HOT_DECAY_US 14427000.0
#define HOT_STEP_US 500000.0
#define HOT_STEPS 400

void psi_derive_init(psi_derive *derive) { memset(derive, 0, sizeof(*derive)); }

static int64_t add_clamped(int64_t a, int64_t b) {
    const int64_t end = (int64_t)PSI_AMOUNT_END - 1; /* so that the sum fits */
    int64_t x = a > end ? end : a < -end ? -end : a;
    int64_t y = b > end ? end : b < -end ? -end : b;
    return x + y > end ? end : x + y < -end ? -end : x + y;
}

void psi_derive_took(psi_derive *derive, int64_t bytes) { derive->took_bytes = add_clamped(derive->took_bytes, bytes); }

/* ---- All bounds at once ----------------------------------------------------------------------- */

static void for_all_bounds(psi_derive *derive, void (*tell)(psi_bound *, int64_t), int64_t bytes) {
    tell(&derive->machine, bytes);
    for (size_t i = 0; i < PSI_LEVELS; i++) {
        tell(&derive->v2[i], bytes);
        tell(&derive->v1[i], bytes);
    }
}

/* ---- The own mappings ------------------------------------------------------------------------- */

static double per_s(const psi_rate *rate, uint64_t now_us) {
    double per_us = 0;
    return psi_rate_get(rate, now_us, &per_us) ? per_us * 1e6 : 0;
}

static bool is_thrashing(const psi_derive *derive, uint64_t now_us) {
    double faults = per_s(&derive->major_faults, now_us);
    return faults >= THRASH_FAULTS_PER_S ||
           (faults >= SOME_FAULTS_PER_S && per_s(&derive->refaults, now_us) >= THRASH_REFAULTS_PER_S);
}

static double decayed(double bytes, uint64_t elapsed_us) {
    double left_us = (double)elapsed_us;
    for (int i = 0; i < HOT_STEPS && left_us > 0; i++) {
        double step_us = left_us < HOT_STEP_US ? left_us : HOT_STEP_US;
        bytes *= HOT_DECAY_US / (HOT_DECAY_US + step_us);
        left_us -= step_us;
    }
    return left_us > 0 ? 0 : bytes;
}

/* The most that was resident stays what is wanted while the process keeps faulting for it; else, reclaim taking the
 * model's weights would read as relief while every token reads them from disk again. What is mapped no more is
 * wanted no more. */
static uint64_t still_hot(const psi_derive *derive, const psi_sample *sample, uint64_t file_bytes) {
    double hot = (double)derive->hot_bytes;
    if (derive->hot_bytes > file_bytes && sample->at_us > derive->hot_at_us && !is_thrashing(derive, sample->at_us))
        hot = (double)file_bytes + decayed(hot - (double)file_bytes, sample->at_us - derive->hot_at_us);
    uint64_t bytes = (uint64_t)hot;
    if (sample->known[PSI_RAW_SELF_MAPPED_BYTES] && bytes > sample->value[PSI_RAW_SELF_MAPPED_BYTES])
        bytes = sample->value[PSI_RAW_SELF_MAPPED_BYTES];
    return bytes > file_bytes ? bytes : file_bytes;
}

/* When they cannot be read, the last numbers stay: better than to take the weights for free memory. */
static void take_mappings(psi_derive *derive, const psi_sample *sample) {
    if (!sample->known[PSI_RAW_SELF_FILE_BYTES])
        return;
    uint64_t file = sample->value[PSI_RAW_SELF_FILE_BYTES];
    /* Locked pages are on the unevictable list and so in no number that counts as reclaimable. */
    uint64_t locked = sample->value[PSI_RAW_SELF_LOCKED_BYTES];
    uint64_t hot = derive->has_hot ? still_hot(derive, sample, file) : file;
    /* What is not wanted any more gives headroom, but no memory moved: neither growth of the cache nor fill. */
    if (derive->has_hot && hot < derive->hot_bytes)
        for_all_bounds(derive, psi_bound_recount, (int64_t)(derive->hot_bytes - hot));
    derive->present_bytes = file > locked ? file - locked : 0;
    derive->missing_bytes = hot - file;
    derive->hot_bytes = hot;
    derive->hot_at_us = sample->at_us;
    derive->has_hot = true;
}

/* ---- Bounds ----------------------------------------------------------------------------------- */

/* MemAvailable counts the own mapped files as available. A page of them that reclaim takes, or that comes back,
 * leaves it as it is. It has the zones' low watermarks subtracted already, so these are only recorded. */
static void take_machine(psi_derive *derive, const psi_sample *sample, bool fresh) {
    uint64_t total = sample->value[PSI_RAW_MEMORY_TOTAL_BYTES];
    uint64_t available = sample->value[PSI_RAW_MEMORY_AVAILABLE_BYTES];
    if (!sample->known[PSI_RAW_MEMORY_TOTAL_BYTES] || !sample->known[PSI_RAW_MEMORY_AVAILABLE_BYTES] || total == 0 ||
        available > total) {
        psi_bound_lost(&derive->machine);
        return;
    }
    if (fresh)
        derive->machine.cache_bytes = -(int64_t)derive->present_bytes - (int64_t)derive->missing_bytes;
    psi_bound_update(&derive->machine, sample->at_us, total, (int64_t)available, fresh);
}

/* Page cache that the kernel would drop for us: all file pages but the own mapped ones, which decode
 * needs. No memory.stat means none: careful, and the limit still holds. */
static int64_t cache_of(const psi_derive *derive, const psi_sample *sample, size_t cache_raw, uint64_t usage_bytes) {
    uint64_t cache = sample->value[cache_raw]; /* 0 when not known */
    if (cache > usage_bytes)                   /* it is part of the usage */
        cache = usage_bytes;
    int64_t free_cache = cache > derive->present_bytes ? (int64_t)(cache - derive->present_bytes) : 0;
    return free_cache - (int64_t)derive->missing_bytes;
}

static void take_level(psi_derive *derive, psi_bound *bound, const psi_sample *sample, psi_raw first, size_t level,
                       bool fresh) {
    size_t limit = psi_raw_bound(first, level, PSI_BOUND_LIMIT);
    size_t usage = psi_raw_bound(first, level, PSI_BOUND_USAGE);
    if (!sample->known[limit] || !sample->known[usage]) {
        psi_bound_lost(bound);
        return;
    }
    if (fresh || !bound->known) {
        bound->cache_bytes =
            cache_of(derive, sample, psi_raw_bound(first, level, PSI_BOUND_CACHE), sample->value[usage]);
        bound->returning_bytes = (int64_t)derive->missing_bytes;
    }
    int64_t free_bytes = (int64_t)sample->value[limit] - (int64_t)sample->value[usage];
    psi_bound_update(bound, sample->at_us, sample->value[limit], free_bytes, fresh);
}

static void take_amounts(psi_derive *derive, const psi_sample *sample) {
    bool fresh = sample->look & PSI_LOOK_COUNTERS;
    for_all_bounds(derive, psi_bound_took, derive->took_bytes);
    derive->took_bytes = 0;
    take_machine(derive, sample, fresh);
    for (size_t i = 0; i < PSI_LEVELS; i++) {
        take_level(derive, &derive->v2[i], sample, PSI_RAW_V2_BOUND, i, fresh);
        take_level(derive, &derive->v1[i], sample, PSI_RAW_V1_BOUND, i, fresh);
    }
    derive->has_amounts = true;
    derive->amounts_at_us = sample->at_us;
}

/* ---- Headroom and fill ------------------------------------------------------------------------ */

static const psi_bound *tighter(const psi_bound *best, const psi_bound *bound, psi_bound_kind kind, size_t level,
                                psi_reading *reading) {
    if (!bound->known || (best != NULL && psi_bound_room(bound) >= psi_bound_room(best)))
        return best;
    reading->bound = kind;
    reading->bound_level = (uint32_t)level;
    return bound;
}

static const psi_bound *tightest(const psi_derive *derive, psi_reading *reading) {
    const psi_bound *best = tighter(NULL, &derive->machine, PSI_BOUND_MACHINE, 0, reading);
    for (size_t i = 0; i < PSI_LEVELS; i++)
        best = tighter(best, &derive->v2[i], PSI_BOUND_V2, i, reading);
    for (size_t i = 0; i < PSI_LEVELS; i++)
        best = tighter(best, &derive->v1[i], PSI_BOUND_V1, i, reading);
    return best;
}

/* What is taken for the page cache's growth, or for own mappings that come back, is not taken for fill. */
static bool hides_fill(const psi_bound *bound, uint64_t headroom_bytes) {
    return bound->returning_bytes > 0 || bound->cache_growth * GROWTH_HIDES_US > (double)headroom_bytes;
}

/* What of headroom can be used before a group's page cache goes, and is seen to be. MemAvailable tells of the machine's
 * at each look. */
static uint64_t seen_of(const psi_bound *bounds, uint64_t headroom_bytes) {
    uint64_t seen_bytes = headroom_bytes;
    for (size_t i = 0; i < PSI_LEVELS; i++) {
        const psi_bound *b = &bounds[i];
        bool hides = b->known && (b->cache_bytes > 0 || b->returning_bytes > 0);
        if (hides && (b->free_bytes <= 0 || hides_fill(b, headroom_bytes)))
            return 0;
        if (hides && (uint64_t)b->free_bytes < seen_bytes)
            seen_bytes = (uint64_t)b->free_bytes;
    }
    return seen_bytes;
}

/* In an alarm only what a fresh look at the page cache confirms: reading files would prolong it. */
static bool tells_of_fill(const psi_derive *derive, const psi_sample *sample) {
    return (sample->look & PSI_LOOK_AMOUNTS) && (!derive->alarmed || (sample->look & PSI_LOOK_COUNTERS));
}

static bool is_alarming(const psi_reading *reading) {
    return (reading->have & PSI_HAVE_FILL) && (reading->have & PSI_HAVE_HEADROOM) && reading->fill_bytes_per_s > 0 &&
           (uint64_t)reading->fill_bytes_per_s >= reading->headroom_bytes;
}

/* The fill rate is that of the tightest bound, from its own history: when another becomes the
 * tightest, the step from one to the other is no fill. */
static void fill_headroom(psi_derive *derive, const psi_sample *sample, psi_reading *reading) {
    const psi_bound *bound = tightest(derive, reading);
    if (bound == NULL)
        return;
    int64_t room = psi_bound_room(bound);
    reading->have |= PSI_HAVE_HEADROOM;
    reading->headroom_bytes = room > 0 ? (uint64_t)room : 0;
    reading->missing_bytes = room < 0 ? (uint64_t)-room : 0;
    reading->unseen_bytes = reading->headroom_bytes - seen_of(derive->v1, seen_of(derive->v2, reading->headroom_bytes));
    reading->limit_bytes = bound->limit_bytes;
    if (tells_of_fill(derive, sample) && bound->has_shrink) {
        psi_fill_add(&derive->fill, sample->at_us, bound->shrink, bound->shrink_span_us);
        psi_run_add(&derive->run, sample->at_us, bound->shrink, bound->shrink_span_us);
    }
    if (!derive->fill.known)
        return;
    reading->have |= PSI_HAVE_FILL;
    reading->fill_bytes_per_s = psi_fill_bytes_per_s(&derive->fill);
    if (derive->fill.bytes_per_us > PSI_FILL_NOISE && sample->at_us >= derive->run.at_us)
        reading->fill_age_us = psi_run_age_us(&derive->run, derive->fill.bytes_per_us / 2);
}

/* ---- Counters --------------------------------------------------------------------------------- */

static void take_sum(psi_rate *rate, const psi_sample *sample, psi_raw a, psi_raw b) {
    psi_rate_take(rate, sample->at_us, sample->known[a] || sample->known[b], sample->value[a] + sample->value[b]);
}

static void take_counters(psi_derive *derive, const psi_sample *sample) {
    psi_rate_take(&derive->major_faults, sample->at_us, sample->known[PSI_RAW_SELF_MAJOR_FAULTS],
                  sample->value[PSI_RAW_SELF_MAJOR_FAULTS]);
    bool own = sample->known[PSI_RAW_OWN_REFAULT_FILE] || sample->known[PSI_RAW_OWN_REFAULT_ANON];
    if (own != derive->refaults_are_own)
        derive->refaults.window.count = 0; /* another counter */
    derive->refaults_are_own = own;
    if (own)
        take_sum(&derive->refaults, sample, PSI_RAW_OWN_REFAULT_FILE, PSI_RAW_OWN_REFAULT_ANON);
    else
        take_sum(&derive->refaults, sample, PSI_RAW_VM_REFAULT_FILE, PSI_RAW_VM_REFAULT_ANON);
    take_sum(&derive->reclaim, sample, PSI_RAW_VM_SCAN_DIRECT, PSI_RAW_VM_SCAN_KSWAPD);
}

static void fill_rate(const psi_rate *rate, uint32_t bit, psi_reading *reading, double *value) {
    double per_us = 0;
    if (!psi_rate_get(rate, reading->at_us, &per_us))
        return;
    reading->have |= bit;
    *value = per_us * 1e6;
}

/* ---- One sample ------------------------------------------------------------------------------- */

void psi_derive_read(psi_derive *derive, const psi_sample *sample, psi_reading *reading) {
    *reading = (psi_reading){.at_us = sample->at_us, .headroom_bytes = UINT64_MAX, .limit_bytes = UINT64_MAX};
    if (sample->look & PSI_LOOK_COUNTERS) {
        take_counters(derive, sample);
        take_mappings(derive, sample);
    }
    if (sample->look & PSI_LOOK_AMOUNTS)
        take_amounts(derive, sample);
    if (sample->look & PSI_LOOK_STALL)
        psi_stall_take(derive, sample);
    if (derive->has_amounts && sample->at_us >= derive->amounts_at_us &&
        sample->at_us - derive->amounts_at_us <= PSI_RATE_KEEPS_US)
        fill_headroom(derive, sample, reading);
    derive->alarmed = is_alarming(reading);
    fill_rate(&derive->major_faults, PSI_HAVE_FAULTS, reading, &reading->major_faults_per_s);
    fill_rate(&derive->refaults, PSI_HAVE_REFAULTS, reading, &reading->refaults_per_s);
    fill_rate(&derive->reclaim, PSI_HAVE_RECLAIM, reading, &reading->reclaim_pages_per_s);
    psi_stall_fill(derive, sample, reading);
}
