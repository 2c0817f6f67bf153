/* options.c - options that may be set while the cache runs: one name, one value, as in the environment. Any thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pool/cache.h"

static int set_policy(psi_cache *cache, const char *value) {
    const psi_policy *policy = psi_policy_find(value);
    if (policy == NULL) {
        return -EINVAL;
    }
    cache->settings.policy = policy;
    for (psi_pool *pool = cache->pools; pool != NULL; pool = pool->next) {
        atomic_store(&pool->policy, policy);
    }
    return 0;
}

static int set_switch(_Atomic bool *option, const char *value) {
    bool on = strcmp(value, "on") == 0;
    if (!on && strcmp(value, "off") != 0) {
        return -EINVAL;
    }
    atomic_store(option, on);
    return 0;
}

static int set_recall(psi_cache *cache, const char *value) {
    int error = set_switch(&cache->recalls, value);
    if (error != 0) {
        return error;
    }
    bool on = atomic_load(&cache->recalls);
    for (psi_pool *pool = cache->pools; pool != NULL && !on; pool = pool->next) {
        psi_recall_forget(pool);
    }
    return 0;
}

static int set_share(_Atomic double *share, const char *value) {
    char *end = NULL;
    double number = strtod(value, &end);
    if (end == value || *end != '\0' || !(number >= 0 && number <= 1)) {
        return -EINVAL;
    }
    atomic_store(share, number);
    return 0;
}

static int set_option(psi_cache *cache, const char *name, const char *value) {
    if (strcmp(name, "policy") == 0) {
        return set_policy(cache, value);
    }
    if (strcmp(name, "recall") == 0) {
        return set_recall(cache, value);
    }
    if (strcmp(name, "exact") == 0) {
        return set_switch(&cache->exact, value);
    }
    if (strcmp(name, "score_share") == 0) {
        return set_share(&cache->score_share, value);
    }
    if (strcmp(name, "recall_share") == 0) {
        return set_share(&cache->recall_share, value);
    }
    return -ENOENT;
}

int psi_cache_set_one(psi_cache *cache, const char *name, const char *value) {
    pthread_mutex_lock(&cache->lock);
    int error = set_option(cache, name, value);
    pthread_mutex_unlock(&cache->lock);
    return error;
}

bool psi_cache_recalls(const psi_cache *cache) { return atomic_load(&cache->recalls); }

bool psi_cache_is_exact(const psi_cache *cache) { return atomic_load(&cache->exact); }

bool psi_cache_is_uneasy(const psi_cache *cache) { return atomic_load(&cache->uneasy); }

bool psi_cache_is_scarce(const psi_cache *cache) { return atomic_load(&cache->scarce); }

double psi_cache_score_share(const psi_cache *cache) { return atomic_load(&cache->score_share); }

double psi_cache_recall_share(const psi_cache *cache) { return atomic_load(&cache->recall_share); }

uint64_t psi_cache_recall_us(const psi_cache *cache) { return cache->settings.recall_us; }

bool psi_cache_recomputes(const psi_cache *cache) { return cache->settings.recompute; }

uint64_t psi_cache_recompute_us(const psi_cache *cache) { return cache->settings.recompute_us; }
