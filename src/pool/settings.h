/* settings.h - options, environment and defaults become one set of settings. Called when a cache is opened. */
#ifndef PSI_SETTINGS_H
#define PSI_SETTINGS_H

#include <stdbool.h>

#include "control/control.h"
#include "pool/pool.h"

enum { PSI_SETTING_PATH_BYTES = 1024 };

typedef struct psi_settings {
    psi_control_options control;
    uint64_t floor_bytes, store_max_bytes, store_hour_max_bytes; /* 0: default; no bound */
    bool store_hour_strict;
    const psi_policy *policy;
    bool recall, exact;
    double score_share, recall_share;
    uint64_t recall_us;
    bool recompute;
    uint64_t recompute_us;
    char store[8]; /* "": none, as in those below */
    char store_dir[PSI_SETTING_PATH_BYTES], root[PSI_SETTING_PATH_BYTES], tuning_file[PSI_SETTING_PATH_BYTES];
    bool controller;
    psi_log log;
} psi_settings;

/* A field of `options` wins over the environment, which wins over the default. NULL options: none. -EINVAL, with a
 * logged line naming the option, its value and what it takes. */
int psi_settings_resolve(psi_settings *settings, const psi_options *options);

/* PSI_CACHE_<name> as a whole number with an optional suffix K, M or G; `fallback` when it is not set, and with a
 * logged line when it is no number. */
uint64_t psi_settings_bytes(const psi_log *log, const char *name, uint64_t fallback);

#endif
