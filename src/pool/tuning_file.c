/* tuning_file.c - what the controller learned, kept from one start to the next. Loaded when a cache opens, saved by
 * the watcher while nothing presses and when the cache closes. */
#include <errno.h>
#include <string.h>

#include "os/os.h"
#include "pool/cache.h"

static const char *path_of(const psi_cache *cache) {
    bool used = cache->settings.control.tune && cache->settings.tuning_file[0] != '\0';
    return used ? cache->settings.tuning_file : NULL;
}

void psi_tuning_file_load(psi_cache *cache) {
    const char *path = path_of(cache);
    char text[PSI_TUNING_TEXT_BYTES];
    if (path == NULL) {
        return;
    }
    ssize_t length = psi_os_read_small(path, text, sizeof(text));
    if (length == -ENOENT) {
        psi_log_line(&cache->settings.log, PSI_LOG_INFO, "tuning: %s is not there yet, starting from the defaults",
                     path);
        return;
    }
    bool whole = length >= 0 && (size_t)length < sizeof(text) - 1 && strlen(text) == (size_t)length;
    int error = length < 0 ? (int)length : whole ? psi_tuning_parse(text, &cache->control.tuning) : -EINVAL;
    if (error != 0) {
        cache->tuning_is_foreign = true;
        psi_log_line(&cache->settings.log, PSI_LOG_WARN,
                     "tuning: %s is not used (error %d), starting from the defaults, and left as it is; remove it, or "
                     "name another file in "
                     "PSI_CACHE_TUNING_FILE",
                     path, -error);
    }
}

void psi_tuning_file_save(psi_cache *cache) {
    const char *path = path_of(cache);
    char text[PSI_TUNING_TEXT_BYTES];
    if (path == NULL || cache->tuning_is_foreign) {
        return;
    }
    pthread_mutex_lock(&cache->lock);
    int length = psi_tuning_format(&cache->control.tuning, text, sizeof(text));
    pthread_mutex_unlock(&cache->lock);
    int error = length < 0 ? length : psi_os_replace_file(path, text, (size_t)length);
    if (error != 0 && !cache->tuning_error_said) {
        cache->tuning_error_said = true;
        psi_log_line(
            &cache->settings.log, PSI_LOG_WARN,
            "tuning: %s cannot be written (error %d): what is learned is forgotten at the end; name a writable "
            "file in PSI_CACHE_TUNING_FILE",
            path, -error);
    }
}
