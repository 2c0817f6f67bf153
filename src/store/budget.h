/* budget.h - how many bytes may still be written to a store in this hour: memory cards wear. Arithmetic only; the
 * caller brings the time. Any thread. */
#ifndef PSI_BUDGET_H
#define PSI_BUDGET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { PSI_BUDGET_MINUTES = 60 };

typedef struct psi_budget {
    pthread_mutex_t lock;
    uint64_t most_bytes;                           /* in any hour; 0: no bound */
    uint64_t minute;                               /* the last that was counted */
    uint64_t hour_bytes;                           /* sum of the below */
    uint64_t minute_bytes[PSI_BUDGET_MINUTES + 1]; /* the minute that runs, and the sixty before it */
} psi_budget;

void psi_budget_open(psi_budget *budget, uint64_t most_bytes);
void psi_budget_close(psi_budget *budget);

/* Counts bytes about to be written, if so many may be: then true. A write that fails has counted all the same: who
 * knows how far it got. */
bool psi_budget_take(psi_budget *budget, uint64_t bytes, uint64_t now_us);
/* The same without counting. */
bool psi_budget_allows(psi_budget *budget, uint64_t bytes, uint64_t now_us);
/* Counts them whether they may be or not. */
void psi_budget_overdraw(psi_budget *budget, uint64_t bytes, uint64_t now_us);

/* Bytes of the last 60 to 61 minutes. */
uint64_t psi_budget_hour_bytes(psi_budget *budget, uint64_t now_us);

#endif
