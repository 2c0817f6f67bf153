/* budget.c - a count for each of the last minutes. Whole minutes fall out at once, so that no hour, wherever it begins,
 * holds more than the bound: a bucket that fills up all the time would let twice as much through. */
#include "store/budget.h"

#define MINUTE_US UINT64_C(60000000)
#define MINUTES (PSI_BUDGET_MINUTES + 1)

void psi_budget_open(psi_budget *budget, uint64_t most_bytes) {
    *budget = (psi_budget){.most_bytes = most_bytes};
    pthread_mutex_init(&budget->lock, NULL);
}

void psi_budget_close(psi_budget *budget) { pthread_mutex_destroy(&budget->lock); }

static void advance(psi_budget *budget, uint64_t now_us) {
    uint64_t now = now_us / MINUTE_US;
    for (uint64_t passed = 0; budget->minute < now && passed < MINUTES; passed++) {
        uint64_t *oldest = &budget->minute_bytes[++budget->minute % MINUTES];
        budget->hour_bytes -= *oldest;
        *oldest = 0;
    }
    budget->minute = budget->minute > now ? budget->minute : now;
}

static void count(psi_budget *budget, uint64_t bytes) {
    budget->minute_bytes[budget->minute % MINUTES] += bytes;
    budget->hour_bytes += bytes;
}

static bool allows(const psi_budget *budget, uint64_t bytes) {
    return budget->most_bytes == 0 ||
           (budget->hour_bytes <= budget->most_bytes && bytes <= budget->most_bytes - budget->hour_bytes);
}

bool psi_budget_take(psi_budget *budget, uint64_t bytes, uint64_t now_us) {
    pthread_mutex_lock(&budget->lock);
    advance(budget, now_us);
    bool may = allows(budget, bytes);
    if (may) {
        count(budget, bytes);
    }
    pthread_mutex_unlock(&budget->lock);
    return may;
}

bool psi_budget_allows(psi_budget *budget, uint64_t bytes, uint64_t now_us) {
    pthread_mutex_lock(&budget->lock);
    advance(budget, now_us);
    bool may = allows(budget, bytes);
    pthread_mutex_unlock(&budget->lock);
    return may;
}

void psi_budget_overdraw(psi_budget *budget, uint64_t bytes, uint64_t now_us) {
    pthread_mutex_lock(&budget->lock);
    advance(budget, now_us);
    count(budget, bytes);
    pthread_mutex_unlock(&budget->lock);
}

uint64_t psi_budget_hour_bytes(psi_budget *budget, uint64_t now_us) {
    pthread_mutex_lock(&budget->lock);
    advance(budget, now_us);
    uint64_t bytes = budget->hour_bytes;
    pthread_mutex_unlock(&budget->lock);
    return bytes;
}
