/* rates.c - rates out of counters: the sliding window, and how long a rate keeps. Pure arithmetic over times it
 * is given; called by derive.c and stall.c, on the watcher thread. */
#include "signal/rates.h"

#include <string.h>

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
    /* Nobody looked for seconds: what came after the sleep, once there is enough of it. */
    if (window->count > 1 && at_us - window->at_us[0] > 2 * PSI_WINDOW_US &&
        at_us - window->at_us[1] >= PSI_WINDOW_LEAST_US)
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

bool psi_window_recent(const psi_window *window, uint64_t span_us, double *rate) {
    for (size_t i = window->count; i-- > 0;) {
        uint64_t age_us = window->last_at_us - window->at_us[i];
        if (age_us < span_us || age_us == 0)
            continue;
        *rate = (double)(window->last_value - window->value[i]) / (double)age_us;
        return true;
    }
    return false;
}

/* ---- Rate ------------------------------------------------------------------------------------- */

void psi_rate_take(psi_rate *rate, uint64_t at_us, bool known, uint64_t value) {
    if (!known)
        rate->window.count = 0;
    rate->known = known && psi_window_add(&rate->window, at_us, value, &rate->per_us);
    rate->at_us = at_us;
}

bool psi_rate_get(const psi_rate *rate, uint64_t now_us, double *per_us) {
    if (!rate->known || now_us < rate->at_us || now_us - rate->at_us > PSI_RATE_KEEPS_US)
        return false;
    *per_us = rate->per_us;
    return true;
}
