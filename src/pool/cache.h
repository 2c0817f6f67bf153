/* cache.h - the cache's inside, for cache.c and watcher.c. */
#ifndef PSI_CACHE_H
#define PSI_CACHE_H

#include "os/os.h"
#include "pool/settings.h"
#include "signal/culprit.h"
#include "signal/trigger.h"
#include "store/budget.h"

/* What happened, for psi_stats; under the cache's lock. */
typedef struct psi_tally {
    uint64_t readings, safety_trims, comfort_trims, guarded_trims, trim_cycles, regrow_cycles;
    uint64_t reaction_last_us, reaction_most_us;
} psi_tally;

/* Sums over the pools. */
typedef struct psi_totals {
    uint64_t trimmed_bytes, restored_bytes, returned_bytes, pending_bytes;
    uint64_t written_bytes, write_us, read_bytes, read_us, given_at_us, first_given_at_us;
} psi_totals;

/* A trim on its way, from the last reading that showed no need for it to the pages returned. */
typedef struct psi_ask {
    bool open, seen;            /* seen: its first pages are there */
    uint64_t since_us;          /* that reading */
    uint64_t asked_us;          /* the decision */
    uint64_t written_before_us; /* time spent in stores before it: no part of the reaction time */
    uint64_t returned_before, bytes;
} psi_ask;

struct psi_cache {
    psi_cache *next;       /* in the process's registry */
    psi_settings settings; /* as opened */
    int64_t process_id;    /* that opened it; another one is a forked child */
    psi_signal *signal;    /* these five the watcher's alone */
    psi_trigger *trigger;
    psi_culprits *culprits;
    uint64_t culprits_at_us, tuning_saved_us,
        fine_at_us; /* fine: the last reading without a need that waits for its pages */
    size_t armed;   /* triggers that wait now */
    bool woken;     /* one of them woke the watcher */
    psi_ask ask;
    bool tuning_is_foreign; /* what lies there is not ours: never written over */
    bool tuning_error_said;
    pthread_mutex_t lock; /* guards all below but the atomics */
    psi_control control;
    psi_reading reading;
    psi_decision decision;
    psi_culprit culprit;
    psi_tally tally;
    bool waits_to_return, guarded_before, ask_is_new, save_tuning;
    psi_totals totals; /* after the last reading */
    uint64_t trigger_events;
    int direction; /* -1 the cache shrank last, 1 it grew */
    psi_pool *pools;
    uint64_t store_left_bytes;
    psi_budget write_budget; /* has a lock of its own, inside which nothing is taken */
    _Atomic bool budget_said;
    int64_t own_balance_bytes; /* restored less trimmed, as the signals were told */
    pthread_t watcher;
    psi_os_bell bell; /* wakes the watcher */
    bool watching, stop;
    pthread_t writer;
    psi_os_bell writer_bell; /* wakes the writer */
    pthread_mutex_t writing; /* held for one block; a pool goes without. Before the lock above, after the registry's */
    bool has_writer;
    _Atomic bool writer_stops;
    _Atomic uint64_t write_until_us; /* what is asked of it is void then */
    _Atomic bool refuses, pressed;   /* above the high limit: and nothing left to give; at all */
    _Atomic uint64_t room_bytes;     /* may be filled again before the next reading */
    _Atomic bool uneasy;             /* above the lower limit */
    _Atomic bool scarce;             /* as in the last decision */
    _Atomic bool recalls, exact;
    _Atomic double score_share, recall_share;
};

/* options.c: -ENOENT for a name that is no option, -EINVAL for a value that it does not take. */
int psi_cache_set_one(psi_cache *cache, const char *name, const char *value);

/* watcher.c: the thread that senses, decides, and gives back what costs nothing. */
void psi_watcher_start(psi_cache *cache);
void psi_watcher_stop(psi_cache *cache);

/* cache.c: says that a source is in use or missing. */
void psi_cache_log_source(const psi_cache *cache, const psi_source *source);

/* tuning_file.c: what was learned, read when the cache opens and saved while nothing presses. */
void psi_tuning_file_load(psi_cache *cache);
void psi_tuning_file_save(psi_cache *cache);

/* The sum over all caches of the process. */
void psi_registry_stats(psi_stats *stats);

#endif
