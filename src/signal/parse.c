/* parse.c - numbers and lines out of the kernel's text files, and paths to them. Called by the other
 * files of this room, on the watcher thread. Strict: what is not exactly a number is no number. */
#include "signal/parse.h"

#include <string.h>

static bool is_end(char c) { return c == '\0' || c == '\n' || c == ' ' || c == '\t'; }

bool psi_parse_u64(const char *text, uint64_t *value) {
    uint64_t sum = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        uint64_t digit = (uint64_t)(*c - '0');
        if (sum > (UINT64_MAX - digit) / 10)
            return false;
        sum = sum * 10 + digit;
    }
    if (c == text || !is_end(*c))
        return false;
    *value = sum;
    return true;
}

bool psi_parse_amount(const char *text, uint64_t *bytes) {
    uint64_t value = 0;
    if (!psi_parse_u64(text, &value) || value >= PSI_AMOUNT_END)
        return false;
    *bytes = value;
    return true;
}

const char *psi_parse_line(const char *text, const char *key) {
    size_t length = strlen(key);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, length) == 0) {
            const char *rest = line + length;
            if (*rest == ':' || *rest == ' ' || *rest == '\t') {
                rest += strspn(rest, ": \t");
                return rest;
            }
        }
        line = strchr(line, '\n');
        if (line != NULL)
            line++;
    }
    return NULL;
}

bool psi_parse_field(const char *text, const char *key, uint64_t unit_bytes, uint64_t *bytes) {
    uint64_t value = 0;
    const char *rest = psi_parse_line(text, key);
    if (rest == NULL || !psi_parse_u64(rest, &value) || value >= PSI_AMOUNT_END / unit_bytes)
        return false;
    *bytes = value * unit_bytes;
    return true;
}

bool psi_parse_has_word(const char *list, size_t list_length, char separator, const char *word) {
    size_t word_length = strlen(word);
    size_t start = 0;
    for (size_t i = 0; i <= list_length; i++) {
        if (i < list_length && list[i] != separator)
            continue;
        if (i - start == word_length && memcmp(list + start, word, word_length) == 0)
            return true;
        start = i + 1;
    }
    return false;
}

bool psi_path_join(char *out, const char *dir, size_t dir_length, const char *tail) {
    size_t tail_length = strlen(tail);
    if (dir_length >= PSI_PATH_BYTES || tail_length >= PSI_PATH_BYTES - dir_length) {
        out[0] = '\0';
        return false;
    }
    memmove(out, dir, dir_length);
    memcpy(out + dir_length, tail, tail_length + 1);
    return true;
}
