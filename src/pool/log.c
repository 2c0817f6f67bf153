/* log.c - one line at a time to the user's function, or to stderr. Never called between a reading and the pages
 * it gives back, but for a store's first error. */
#include <stdarg.h>
#include <stdio.h>

#include "pool/pool.h"

void psi_log_line(const psi_log *log, psi_log_level level, const char *format, ...) {
    if (log == NULL || (int)level > log->level) {
        return;
    }
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (log->fn != NULL) {
        log->fn(log->user, level, line);
    } else {
        (void)fprintf(stderr, "psi-cache: %s\n", line);
    }
}
