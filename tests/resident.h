/* resident.h - what of this process is in memory, for tests of what is given back. Include it after cmocka.h. */
#ifndef RESIDENT_H
#define RESIDENT_H

#include <stdlib.h>
#include <string.h>

#include "os/os.h"

static inline size_t resident_bytes(void) {
    char text[128] = "";
    assert_true(psi_os_read_small("/proc/self/statm", text, sizeof(text)) > 0);
    char *second = strchr(text, ' ');
    assert_non_null(second);
    return strtoul(second, NULL, 10) * psi_os_page_bytes();
}

#endif
