/* parse.h - numbers and lines out of the kernel's text files, and paths to them. Pure functions over
 * strings; called by the other files of this room, on the watcher thread. */
#ifndef PSI_SIGNAL_PARSE_H
#define PSI_SIGNAL_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longest path kept. A longer one is a source that is missing, never a truncated path. */
#define PSI_PATH_BYTES ((size_t)1024)

/* Amounts at or above this are no amounts: cgroup v1 says "no limit" as 2^63 less a page, and below
 * it sums and differences of two amounts fit an int64_t. */
#define PSI_AMOUNT_END ((uint64_t)1 << 62)

/* The digits at `text`, ended by white space or NUL. False for anything else and for overflow. */
bool psi_parse_u64(const char *text, uint64_t *value);

/* A file that holds one amount. False unless it is below PSI_AMOUNT_END. */
bool psi_parse_amount(const char *text, uint64_t *bytes);

/* The rest of the first line that begins with `key` (after blanks and a colon), or NULL. */
const char *psi_parse_line(const char *text, const char *key);

/* The amount on that line, in bytes: `unit_bytes` is 1, or 1024 for the "kB" of /proc. */
bool psi_parse_field(const char *text, const char *key, uint64_t unit_bytes, uint64_t *bytes);

/* True when `word` is one of the words in `list`, which `separator` separates. */
bool psi_parse_has_word(const char *list, size_t list_length, char separator, const char *word);

/* Joins into out[PSI_PATH_BYTES]: the first `dir_length` bytes of `dir`, then `tail`. False, and an
 * empty path, when it does not fit. */
bool psi_path_join(char *out, const char *dir, size_t dir_length, const char *tail);

#endif
