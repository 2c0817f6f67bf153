/* tool.h - what the files of psi-cache, the command, share: one entry a subcommand, printing, ELF files.
 * Runs in its own short process, one thread; exit codes are part of the interface (man/psi-cache.1). */
#ifndef PSI_TOOL_H
#define PSI_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* As env(1) and timeout(1) have it: 125 and up are said of `run` (`record`) itself, all below is the command's. */
enum {
    TOOL_OK = 0,
    TOOL_NOTHING = 1,      /* nothing to show, or nothing came of it */
    TOOL_USAGE = 2,        /* wrong use: an unknown option, a value out of range */
    TOOL_RUN_FAILED = 125, /* run, record -- COMMAND: psi-cache itself could not do its part */
    TOOL_NOT_EXECUTABLE = 126,
    TOOL_NOT_FOUND = 127
};

/* Each gets its own name as argv[0]. The result is the exit status. */
int tool_run(int argc, char **argv);
int tool_doctor(int argc, char **argv);
int tool_status(int argc, char **argv);
int tool_trim(int argc, char **argv);
int tool_restore(int argc, char **argv);
int tool_watch(int argc, char **argv);
int tool_record(int argc, char **argv);
int tool_replay(int argc, char **argv);
int tool_bench(int argc, char **argv); /* and report */

/* help.c: NULL for the overview; false when there is no such subcommand. */
bool tool_help(FILE *out, const char *subcommand);
/* "psi-cache SUBCOMMAND: <text>", and where to read more, on stderr. Returns TOOL_USAGE. */
int tool_usage_error(const char *subcommand, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- print.c ---------------------------------------------------------------------------------- */

typedef enum tool_colour { TOOL_PLAIN, TOOL_BOLD, TOOL_GREEN, TOOL_YELLOW, TOOL_RED, TOOL_DIM } tool_colour;

/* The escape sequence, or "" where stdout is no terminal or NO_COLOR is set. */
const char *tool_colour_on(tool_colour colour);
const char *tool_colour_off(void);

/* "576.0 MiB" into text; UINT64_MAX is "unknown". Returns text. */
#define TOOL_BYTES_TEXT 24
char *tool_bytes(char text[TOOL_BYTES_TEXT], uint64_t bytes);

/* A JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void tool_json_string(FILE *out, const char *text);

/* Writes text with control characters as '?': another process's words must not steer this terminal. */
void tool_plain(FILE *out, const char *text);

/* ---- parse.c: whole strings only; false leaves *value untouched --------------------------------- */

bool tool_parse_share(const char *text, double *value);   /* 0 to 1 */
bool tool_parse_bytes(const char *text, uint64_t *value); /* suffix K, M, G (1024) */
bool tool_parse_count(const char *text, uint64_t most, uint64_t *value);

/* ---- find.c: files ------------------------------------------------------------------------------ */

/* The directory of this executable, into path. False: /proc is not there. */
bool tool_own_directory(char *path, size_t capacity);
/* Finds a library of ours: $PSI_CACHE_LIB_DIR, beside the executable, ../lib, PSI_LIB_DIR. False: in none. */
bool tool_find_library(const char *name, char *path, size_t capacity);
/* As execvp looks for a command; a name with a slash is taken as it is. 0, ENOENT or EACCES. */
int tool_find_command(const char *name, char *path, size_t capacity);

/* ---- elf.c ---------------------------------------------------------------------------------------- */

typedef enum tool_elf_kind {
    TOOL_ELF_UNREADABLE, /* no such file, no right to read it */
    TOOL_ELF_NONE,       /* not an ELF file: a script, for one */
    TOOL_ELF_FOREIGN,    /* for another machine, or of another word size */
    TOOL_ELF_STATIC,     /* an executable without a dynamic linker */
    TOOL_ELF_DYNAMIC     /* an executable with one, or a shared library */
} tool_elf_kind;

typedef struct tool_elf {
    tool_elf_kind kind;
    bool is_executable;    /* names a dynamic linker */
    char interpreter[256]; /* its path; for a script (TOOL_ELF_NONE) the interpreter of the #! line */
} tool_elf;

void tool_elf_read(const char *path, tool_elf *elf);

/* What stands between a file and the library; looks through the libraries that it needs, too. */
typedef enum tool_ggml {
    TOOL_GGML_DYNAMIC,  /* calls ggml across the dynamic linker: we can stand in */
    TOOL_GGML_BUILT_IN, /* has ggml inside */
    TOOL_GGML_ABSENT,   /* neither: not llama.cpp, or loads it later by itself */
    TOOL_GGML_UNREADABLE
} tool_ggml;

/* *where receives the file that decided it. */
tool_ggml tool_elf_ggml(const char *path, char *where, size_t capacity);

#endif
