/* cache.h - the cache's inside, for cache.c and watcher.c. */
#ifndef PSI_CACHE_H
#define PSI_CACHE_H

#include "pool/settings.h"

struct psi_cache {
    psi_cache *next;       /* in the process's registry */
    psi_settings settings; /* as opened */
    int64_t process_id;    /* that opened it; another one is a forked child */
    psi_signal *signal;    /* the watcher's alone */
    pthread_mutex_t lock;  /* guards all below but the atomics */
    psi_control control;
    psi_reading reading;
    psi_decision decision;
    psi_pool *pools;
    uint64_t store_left_bytes;
    int64_t own_balance_bytes; /* restored less trimmed, as the signals were told */
    pthread_t watcher;
    pthread_cond_t wake;
    bool watching, stop;
    _Atomic bool refuses, pressed; /* above the high limit: and nothing left to give; at all */
    _Atomic uint64_t room_bytes;   /* may be filled again before the next reading */
};

/* watcher.c: the thread that senses, decides, and gives back what costs nothing. */
void psi_watcher_start(psi_cache *cache);
void psi_watcher_stop(psi_cache *cache);

/* The sum over all caches of the process. */
void psi_registry_stats(psi_stats *stats);

#endif
