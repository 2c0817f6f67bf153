/* parse.c - numbers that people type. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tool/tool.h"

/* strtod and strtoull also take signs, blanks, hexadecimal and "nan": nobody means those here. */
static bool is_plain(const char *text, const char *allowed) {
    return isdigit((unsigned char)text[strspn(text, ".")]) && text[strspn(text, allowed)] == '\0';
}

bool tool_parse_share(const char *text, double *value) {
    char *end = NULL;
    if (!is_plain(text, "0123456789."))
        return false;
    double parsed = strtod(text, &end);
    if (*end != '\0' || !(parsed >= 0 && parsed <= 1))
        return false;
    *value = parsed;
    return true;
}

bool tool_parse_bytes(const char *text, uint64_t *value) {
    char *end = NULL;
    if (!is_plain(text, "0123456789.KMGTkmgtiB"))
        return false;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    static const char suffixes[] = "KMGT";
    const char *suffix = *end ? strchr(suffixes, toupper((unsigned char)*end)) : NULL;
    unsigned shift = suffix ? 10u * (unsigned)(suffix - suffixes + 1) : 0;
    if (suffix)
        end += strcmp(end + 1, "iB") == 0 ? 3 : 1; /* "64MiB" as this command itself prints it */
    if (errno != 0 || end == text || *end != '\0' || parsed > (UINT64_MAX >> shift))
        return false;
    *value = (uint64_t)parsed << shift;
    return true;
}

bool tool_parse_count(const char *text, uint64_t most, uint64_t *value) {
    if (!is_plain(text, "0123456789"))
        return false;
    errno = 0;
    unsigned long long parsed = strtoull(text, NULL, 10);
    if (errno != 0 || parsed == 0 || parsed > most)
        return false;
    *value = parsed;
    return true;
}
