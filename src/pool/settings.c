/* settings.c - one table-free, readable order: the caller's option, PSI_CACHE_<NAME>, the default. */
#include "pool/settings.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *environment(const char *name) {
    char full[64];
    (void)snprintf(full, sizeof(full), "PSI_CACHE_%s", name);
    const char *value = getenv(full);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

uint64_t psi_settings_bytes(const psi_log *log, const char *name, uint64_t fallback) {
    const char *text = environment(name);
    if (text == NULL) {
        return fallback;
    }
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    unsigned shift = 0;
    if (*end != '\0') {
        const char *suffixes = "KMGkmg";
        const char *at = strchr(suffixes, *end);
        shift = at != NULL ? 10u * (1u + (unsigned)(at - suffixes) % 3u) : 0;
        end += at != NULL;
    }
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || value > (UINT64_MAX >> shift)) {
        psi_log_line(log, PSI_LOG_WARN, "PSI_CACHE_%s=%s is not a size (whole number, optional K, M or G): ignored",
                     name, text);
        return fallback;
    }
    return (uint64_t)value << shift;
}

static double share(const psi_log *log, const char *name, double fallback) {
    const char *text = environment(name);
    if (text == NULL) {
        return fallback;
    }
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= 1)) {
        psi_log_line(log, PSI_LOG_WARN, "PSI_CACHE_%s=%s is not a number from 0 to 1: ignored", name, text);
        return fallback;
    }
    return value;
}

static const char *text_of(const char *option, const char *name, const char *fallback) {
    if (option != NULL) {
        return option;
    }
    const char *value = environment(name);
    return value != NULL ? value : fallback;
}

static uint64_t or_bytes(const psi_log *log, uint64_t option, const char *name, uint64_t fallback) {
    return option != 0 ? option : psi_settings_bytes(log, name, fallback);
}

/* 1 on, -1 off, 0: on unless PSI_CACHE_<name> is "off". */
static bool is_on(int option, const char *name) {
    const char *value = environment(name);
    return option > 0 || (option == 0 && (value == NULL || strcmp(value, "off") != 0));
}

/* The other way round: off unless it is "on". */
static bool is_asked_for(int option, const char *name) {
    const char *value = environment(name);
    return option > 0 || (option == 0 && value != NULL && strcmp(value, "on") == 0);
}

static void resolve_log(psi_settings *settings, const psi_options *o) {
    settings->log = (psi_log){.fn = o->log, .user = o->log_user, .level = PSI_LOG_WARN};
    const char *verbose = environment("VERBOSE");
    if (verbose != NULL && verbose[0] >= '0' && verbose[0] <= '3' && verbose[1] == '\0') {
        settings->log.level = verbose[0] - '0';
    } else if (o->log != NULL) {
        settings->log.level = PSI_LOG_INFO;
    }
}

static void resolve_control(psi_settings *settings, const psi_options *o) {
    const psi_log *log = &settings->log;
    psi_control_options *c = &settings->control;
    c->high = o->high > 0 ? o->high : share(log, "HIGH", 0.7);
    c->low = o->low > 0 ? o->low : share(log, "LOW", c->high * 3 / 7);
    c->trim_min = o->trim_min > 0 ? o->trim_min : share(log, "TRIM_MIN", 0.10);
    c->trim_max = o->trim_max > 0 ? o->trim_max : share(log, "TRIM_MAX", 0.20);
    c->dwell_us = or_bytes(log, o->dwell_us, "DWELL_US", 2000000);
    c->horizon_us = or_bytes(log, o->horizon_us, "HORIZON_US", 0);
    c->reserve_bytes = or_bytes(log, o->reserve_bytes, "RESERVE_BYTES", 0);
    c->guard_share = o->guard_share > 0 ? o->guard_share : share(log, "GUARD_SHARE", 0.5);
    c->guard_period_us = or_bytes(log, o->guard_period_us, "GUARD_PERIOD_US", 60000000);
    c->tune = is_on(o->tuning, "TUNING");
}

/* False for a name that is none. */
static bool resolve_mode(psi_mode *mode, const char *name) {
    static const char *const names[] = {[PSI_MODE_AUTO] = "auto", [PSI_MODE_PSI] = "psi", [PSI_MODE_AVG10] = "avg10"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *mode = (psi_mode)i;
            return true;
        }
    }
    return false;
}

static int check(const psi_settings *s) {
    const psi_control_options *c = &s->control;
    if (!(c->low >= 0 && c->low < c->high && c->high <= 1)) {
        psi_log_line(&s->log, PSI_LOG_ERROR, "limits high %g, low %g: choose 0 <= low < high <= 1", c->high, c->low);
        return -EINVAL;
    }
    if (!(c->trim_min > 0 && c->trim_min <= c->trim_max && c->trim_max <= 1)) {
        psi_log_line(&s->log, PSI_LOG_ERROR, "trim_min %g, trim_max %g: choose 0 < trim_min <= trim_max <= 1",
                     c->trim_min, c->trim_max);
        return -EINVAL;
    }
    if (!(c->guard_share > 0 && c->guard_share <= 1)) {
        psi_log_line(&s->log, PSI_LOG_ERROR, "guard_share %g: choose 0 < guard_share <= 1", c->guard_share);
        return -EINVAL;
    }
    if (!(s->score_share <= 1 && s->recall_share <= 1)) {
        psi_log_line(&s->log, PSI_LOG_ERROR, "score_share %g, recall_share %g: choose numbers from 0 to 1",
                     s->score_share, s->recall_share);
        return -EINVAL;
    }
    if (s->policy == NULL) {
        psi_log_line(&s->log, PSI_LOG_ERROR, "unknown policy: choose auto, attention, keys, fifo or lru");
        return -EINVAL;
    }
    if (strcmp(s->store, "file") != 0 && strcmp(s->store, "none") != 0) {
        psi_log_line(&s->log, PSI_LOG_ERROR, "unknown store \"%s\": choose file or none", s->store);
        return -EINVAL;
    }
    return 0;
}

/* A path that was cut would be another file. */
static bool copy_path(const psi_settings *settings, char to[PSI_SETTING_PATH_BYTES], const char *name,
                      const char *path) {
    int length = snprintf(to, PSI_SETTING_PATH_BYTES, "%s", path);
    if (length >= 0 && length < PSI_SETTING_PATH_BYTES) {
        return true;
    }
    psi_log_line(&settings->log, PSI_LOG_ERROR, "%s: the path has %d bytes; choose one of at most %d", name, length,
                 PSI_SETTING_PATH_BYTES - 1);
    return false;
}

int psi_settings_resolve(psi_settings *settings, const psi_options *options) {
    psi_options known = {0}, *o = &known;
    psi_settings made = {.log = {.level = PSI_LOG_WARN}};
    if (options != NULL && options->size < sizeof(options->size)) {
        psi_log_line(&made.log, PSI_LOG_ERROR, "psi_options.size is not set: use PSI_OPTIONS_INIT(psi_options)");
        return -EINVAL;
    }
    if (options != NULL) { /* a caller built with an older header knows fewer fields */
        memcpy(o, options, options->size < sizeof(*o) ? options->size : sizeof(*o));
    }
    resolve_log(&made, o);
    resolve_control(&made, o);
    made.floor_bytes = or_bytes(&made.log, o->floor_bytes, "FLOOR_BYTES", 0);
    made.store_max_bytes = or_bytes(&made.log, o->store_max_bytes, "STORE_MAX_BYTES", UINT64_MAX);
    made.store_hour_max_bytes = or_bytes(&made.log, o->store_hour_max_bytes, "STORE_HOUR_MAX_BYTES", 0);
    made.store_hour_strict = is_asked_for(o->store_hour_strict, "STORE_HOUR_STRICT");
    made.policy = psi_policy_find(text_of(o->policy, "POLICY", NULL));
    made.recall = is_on(o->recall, "RECALL");
    made.exact = is_asked_for(o->exact, "EXACT");
    made.score_share = o->score_share > 0 ? o->score_share : share(&made.log, "SCORE_SHARE", 0.01);
    made.recall_share = o->recall_share > 0 ? o->recall_share : share(&made.log, "RECALL_SHARE", 0.03);
    made.recall_us = or_bytes(&made.log, o->recall_us, "RECALL_US", 50000);
    made.recompute = is_on(o->recompute, "RECOMPUTE");
    made.recompute_us = or_bytes(&made.log, o->recompute_us, "RECOMPUTE_US", 100000);
    (void)snprintf(made.store, sizeof(made.store), "%s", text_of(o->store, "STORE", "file"));
    bool fits = copy_path(&made, made.store_dir, "store_dir", text_of(o->store_dir, "STORE_DIR", "/var/tmp"));
    fits = copy_path(&made, made.root, "root", text_of(o->root, "ROOT", "")) && fits;
    fits = copy_path(&made, made.tuning_file, "tuning_file", text_of(o->tuning_file, "TUNING_FILE", "")) && fits;
    made.controller = is_on(o->controller, "CONTROLLER");
    int error = fits ? check(&made) : -ENAMETOOLONG;
    const char *mode = text_of(o->mode, "MODE", "auto");
    if (error == 0 && !resolve_mode(&made.control.mode, mode)) {
        psi_log_line(&made.log, PSI_LOG_ERROR, "unknown mode \"%s\": choose auto, psi or avg10", mode);
        error = -EINVAL;
    }
    if (error == 0) {
        *settings = made;
    }
    return error;
}
