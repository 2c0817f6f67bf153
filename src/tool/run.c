/* run.c - psi-cache run: puts the library in front of a command's own and becomes that command. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "tool/tool.h"

#define LIBRARY "libpsicache-llama.so"

/* ---- Options: each becomes PSI_CACHE_<NAME>, as the library reads it ---------------------------- */

typedef enum option_kind { SHARE, BYTES, COUNT, CHOICE, DIRECTORY, NEW_FILE } option_kind;

typedef struct run_option {
    const char *flag, *variable;
    option_kind kind;
    const char *choices; /* CHOICE: separated by a bar */
} run_option;

static const run_option the_options[] = {
    {"high", "PSI_CACHE_HIGH", SHARE, NULL},
    {"low", "PSI_CACHE_LOW", SHARE, NULL},
    {"policy", "PSI_CACHE_POLICY", CHOICE, "auto|attention|keys|fifo|lru"},
    {"recall", "PSI_CACHE_RECALL", CHOICE, "on|off"},
    {"score-share", "PSI_CACHE_SCORE_SHARE", SHARE, NULL},
    {"recall-share", "PSI_CACHE_RECALL_SHARE", SHARE, NULL},
    {"recall-us", "PSI_CACHE_RECALL_US", COUNT, NULL},
    {"recompute", "PSI_CACHE_RECOMPUTE", CHOICE, "on|off"},
    {"recompute-us", "PSI_CACHE_RECOMPUTE_US", COUNT, NULL},
    {"store", "PSI_CACHE_STORE", CHOICE, "file|none"},
    {"store-dir", "PSI_CACHE_STORE_DIR", DIRECTORY, NULL},
    {"store-max", "PSI_CACHE_STORE_MAX_BYTES", BYTES, NULL},
    {"store-hour-max", "PSI_CACHE_STORE_HOUR_MAX_BYTES", BYTES, NULL},
    {"exact", "PSI_CACHE_EXACT", CHOICE, "on|off"},
    {"store-hour-strict", "PSI_CACHE_STORE_HOUR_STRICT", CHOICE, "on|off"},
    {"floor", "PSI_CACHE_FLOOR_BYTES", BYTES, NULL},
    {"reserve", "PSI_CACHE_RESERVE_BYTES", BYTES, NULL},
    {"block-cells", "PSI_CACHE_BLOCK_CELLS", COUNT, NULL},
    {"long-step-us", "PSI_CACHE_LONG_STEP_US", COUNT, NULL},
    {"controller", "PSI_CACHE_CONTROLLER", CHOICE, "on|off"},
    {"mode", "PSI_CACHE_MODE", CHOICE, "auto|psi|avg10"},
    {"tuning", "PSI_CACHE_TUNING", CHOICE, "on|off"},
    {"tuning-file", "PSI_CACHE_TUNING_FILE", NEW_FILE, NULL},
};
enum { OPTIONS = sizeof the_options / sizeof *the_options };

static bool is_choice(const char *choices, const char *value) {
    size_t length = strlen(value);
    for (const char *at = strchr(value, '|') ? NULL : choices; length > 0 && at;
         at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
        if (strncmp(at, value, length) == 0 && (at[length] == '|' || at[length] == '\0'))
            return true;
    return false;
}

static int set(const char *variable, const char *value) {
    if (setenv(variable, value, 1) == 0)
        return TOOL_OK;
    fprintf(stderr, "psi-cache run: cannot set %s: %s\n", variable, strerror(errno));
    return TOOL_RUN_FAILED;
}

static int set_directory(const run_option *option, const char *value) {
    char whole[PATH_MAX];
    struct stat info;
    /* The whole path: the command may change its directory before the store is made. */
    if (!realpath(value, whole) || stat(whole, &info) != 0)
        return tool_usage_error("run", "--%s %s: %s; make the directory first, or name another", option->flag, value,
                                strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return tool_usage_error("run", "--%s %s: is not a directory", option->flag, value);
    if (access(whole, W_OK | X_OK) != 0)
        return tool_usage_error("run", "--%s %s: you may not write there; name another, or change its rights",
                                option->flag, value);
    return set(option->variable, whole);
}

/* A file that need not be there yet, in a directory that must. */
static int set_new_file(const run_option *option, const char *value) {
    char directory[PATH_MAX], whole[PATH_MAX], path[PATH_MAX];
    const char *slash = strrchr(value, '/'), *name = slash ? slash + 1 : value;
    int length = slash ? (int)(slash - value) + 1 : 1;
    snprintf(directory, sizeof directory, "%.*s", length, slash ? value : ".");
    if (!*name || !realpath(directory, whole))
        return tool_usage_error("run", "--%s %s: %s; make the directory first, or name a file", option->flag, value,
                                *name ? strerror(errno) : "is a directory");
    if ((size_t)snprintf(path, sizeof path, "%s/%s", whole, name) >= sizeof path)
        return tool_usage_error("run", "--%s %s: the path is too long", option->flag, value);
    return set(option->variable, path);
}

static int set_option(const run_option *option, const char *value) {
    double share;
    uint64_t number = 0;
    char text[32];
    switch (option->kind) {
    case SHARE:
        if (!tool_parse_share(value, &share))
            return tool_usage_error("run", "--%s %s: give a number from 0 to 1", option->flag, value);
        return set(option->variable, value);
    case BYTES:
        if (!tool_parse_bytes(value, &number))
            return tool_usage_error("run", "--%s %s: give a whole number of bytes, or with K, M or G", option->flag,
                                    value);
        break;
    case COUNT:
        if (!tool_parse_count(value, 1u << 20, &number))
            return tool_usage_error("run", "--%s %s: give a whole number from 1 to %u", option->flag, value, 1u << 20);
        break;
    case CHOICE:
        if (!is_choice(option->choices, value))
            return tool_usage_error("run", "--%s %s: choose %s", option->flag, value, option->choices);
        return set(option->variable, value);
    case DIRECTORY:
        return set_directory(option, value);
    case NEW_FILE:
        return set_new_file(option, value);
    }
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return set(option->variable, text);
}

/* Both limits as the library will see them. */
static int check_limits(void) {
    const char *high_text = getenv("PSI_CACHE_HIGH"), *low_text = getenv("PSI_CACHE_LOW");
    double high = 0.7, low = 0;
    if (high_text && *high_text && !tool_parse_share(high_text, &high))
        return tool_usage_error("run", "PSI_CACHE_HIGH=%s: give a number from 0 to 1", high_text);
    if (low_text && *low_text && !tool_parse_share(low_text, &low))
        return tool_usage_error("run", "PSI_CACHE_LOW=%s: give a number from 0 to 1", low_text);
    if (!(high > 0))
        return tool_usage_error("run", "--high %g: must be above 0", high);
    if (!(low < high))
        return tool_usage_error("run", "--low %g is not below --high %g: choose 0 <= low < high <= 1", low, high);
    return TOOL_OK;
}

static int parse_options(int argc, char **argv, bool *quiet) {
    struct option known[OPTIONS + 4];
    int verbose = -1, status = TOOL_OK, which;
    memset(known, 0, sizeof known);
    for (int i = 0; i < OPTIONS; i++)
        known[i] = (struct option){the_options[i].flag, required_argument, NULL, 1000 + i};
    known[OPTIONS] = (struct option){"verbose", no_argument, NULL, 'v'};
    known[OPTIONS + 1] = (struct option){"quiet", no_argument, NULL, 'q'};
    known[OPTIONS + 2] = (struct option){"help", no_argument, NULL, 'h'};
    opterr = 0;
    while (status == TOOL_OK && (which = getopt_long(argc, argv, "+:vqh", known, NULL)) != -1) {
        if (which >= 1000)
            status = set_option(&the_options[which - 1000], optarg);
        else if (which == 'v')
            verbose = verbose < 2 ? 2 : 3;
        else if (which == 'q')
            verbose = 0;
        else if (which == 'h')
            exit(tool_help(stdout, "run") ? TOOL_OK : TOOL_USAGE);
        else if (which == ':')
            status = tool_usage_error("run", "%s needs a value", argv[optind - 1]);
        else
            status = tool_usage_error("run", "unknown option %s", argv[optind - 1]);
    }
    char text[2] = {(char)('0' + verbose), '\0'};
    if (status == TOOL_OK && verbose >= 0)
        status = set("PSI_CACHE_VERBOSE", text);
    *quiet = verbose == 0;
    return status == TOOL_OK ? check_limits() : status;
}

/* ---- The command ------------------------------------------------------------------------------ */

typedef struct preload_plan {
    bool preload;       /* false: the library would do harm */
    const char *reason; /* NULL: nothing stands in the way */
    const char *cure;
} preload_plan;

static bool has_other_rights(const char *path) {
    struct stat info;
    char capabilities[64];
    if (stat(path, &info) != 0 || geteuid() == 0)
        return false;
    return ((info.st_mode & S_ISUID) && info.st_uid != geteuid()) ||
           ((info.st_mode & S_ISGID) && (info.st_mode & S_IXGRP) && info.st_gid != getegid()) ||
           getxattr(path, "security.capability", capabilities, sizeof capabilities) > 0;
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static preload_plan plan_for(const char *path) {
    tool_elf elf, own;
    tool_elf_read(path, &elf);
    if (elf.kind == TOOL_ELF_NONE && elf.interpreter[0]) { /* a script: its interpreter is what runs */
        char interpreter[sizeof elf.interpreter];
        memcpy(interpreter, elf.interpreter, sizeof interpreter);
        path = interpreter;
        tool_elf_read(interpreter, &elf);
    }
    if (elf.kind == TOOL_ELF_STATIC)
        return (preload_plan){true, "it is linked statically, so no library can stand in for its calls",
                              "use a build with shared libraries (-DBUILD_SHARED_LIBS=ON)"};
    if (elf.kind == TOOL_ELF_FOREIGN)
        return (preload_plan){false, "it is built for another machine or word size than libpsicache-llama.so",
                              "use a psi-cache of the same kind"};
    if (has_other_rights(path))
        return (preload_plan){true, "it is setuid, setgid or has file capabilities, so the system ignores LD_PRELOAD",
                              "start it as its own user, without those rights"};
    tool_elf_read("/proc/self/exe", &own);
    /* A musl program given a library of glibc's ends with status 127 before its first line. */
    if (elf.is_executable && own.is_executable && strcmp(last_part(elf.interpreter), last_part(own.interpreter)) != 0)
        return (preload_plan){false, "it has another dynamic linker (another C library) than libpsicache-llama.so",
                              "build psi-cache on the same system as the engine"};
    return (preload_plan){true, NULL, NULL};
}

/* ---- The environment ------------------------------------------------------------------------------ */

static bool is_listed(const char *list, const char *path) {
    size_t length = strlen(path);
    for (const char *at = list; (at = strstr(at, path)) != NULL; at += length)
        if ((at == list || strchr(": ", at[-1])) && (at[length] == '\0' || strchr(": ", at[length])))
            return true;
    return false;
}

/* In front: what comes first in a list is asked first. */
static int prepend(const char *variable, const char *entry) {
    const char *before = getenv(variable);
    if (!before || !*before)
        return set(variable, entry);
    if (is_listed(before, entry))
        return TOOL_OK;
    char *both = NULL;
    int status = TOOL_RUN_FAILED;
    if (asprintf(&both, "%s:%s", entry, before) >= 0)
        status = set(variable, both);
    free(both);
    return status;
}

/* Blanks separate entries of LD_PRELOAD as colons do, and nothing quotes them; LD_LIBRARY_PATH takes blanks. */
static int set_preload(const char *library) {
    if (strchr(library, ':')) {
        fprintf(stderr,
                "psi-cache run: LD_PRELOAD cannot name a path with a colon: %s\n"
                "cure: install psi-cache in a directory without one\n",
                library);
        return TOOL_RUN_FAILED;
    }
    if (!strchr(library, ' '))
        return prepend("LD_PRELOAD", library);
    char directory[PATH_MAX];
    snprintf(directory, sizeof directory, "%.*s", (int)(last_part(library) - library - 1), library);
    int status = prepend("LD_LIBRARY_PATH", directory);
    return status == TOOL_OK ? prepend("LD_PRELOAD", LIBRARY) : status;
}

static int library_missing(void) {
    fprintf(stderr,
            "psi-cache run: " LIBRARY " is not beside psi-cache, nor in ../lib%s\n"
            "cure: set PSI_CACHE_LIB_DIR to its directory, or install again (pip install llm-psi-cache)\n",
            getenv("PSI_CACHE_LIB_DIR") ? ", nor in $PSI_CACHE_LIB_DIR" : "");
    return TOOL_RUN_FAILED;
}

static int prepare(const char *command, const char *path, bool quiet) {
    char library[PATH_MAX];
    preload_plan plan = plan_for(path);
    int status = set("PSI_CACHE_COMMAND", last_part(command));
    if (plan.reason && !quiet)
        fprintf(stderr, "psi-cache: %s runs untouched: %s; cure: %s\n", last_part(command), plan.reason, plan.cure);
    if (status != TOOL_OK || !plan.preload)
        return status;
    return tool_find_library(LIBRARY, library, sizeof library) ? set_preload(library) : library_missing();
}

int tool_run(int argc, char **argv) {
    bool quiet = false;
    char path[PATH_MAX];
    int status = parse_options(argc, argv, &quiet);
    if (status != TOOL_OK)
        return status;
    if (optind >= argc)
        return tool_usage_error("run", "name a command, for example: psi-cache run -- llama-server -m model.gguf");
    char **command = argv + optind;
    int error = tool_find_command(command[0], path, sizeof path);
    if (error == 0 && (status = prepare(command[0], path, quiet)) != TOOL_OK)
        return status;
    if (error == 0) {
        execvp(command[0], command);
        error = errno;
    }
    fprintf(stderr, "psi-cache run: %s: %s\n", command[0], error == ENOENT ? "command not found" : strerror(error));
    return error == ENOENT ? TOOL_NOT_FOUND : TOOL_NOT_EXECUTABLE;
}
