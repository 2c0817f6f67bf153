/* bench.c - psi-cache bench and psi-cache report: find the benches, which are Python, and a Python, and become it.
 * bench/command.py does the rest. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool/tool.h"

#define PROGRAM "bench/command.py"

static bool is_file(const char *directory, const char *below, char path[PATH_MAX]) {
    int length = snprintf(path, PATH_MAX, "%s/%s", directory, below);
    return length > 0 && length < PATH_MAX && access(path, R_OK) == 0;
}

/* A clone that this command lies in, however deep: in its build, or in an environment in it. */
static bool find_clone(const char *own, char clone[PATH_MAX]) {
    char path[PATH_MAX];
    snprintf(clone, PATH_MAX, "%s", own);
    for (char *slash; (slash = strrchr(clone, '/')) != NULL && slash != clone; *slash = '\0')
        if (is_file(clone, PROGRAM, path) && is_file(clone, "include/psicache.h", path))
            return true;
    return false;
}

/* The clone's; else those of the Python package (psi_cache/native/psi-cache has them at psi_cache/benches), or of
 * an installation below a prefix. */
static bool find_program(char program[PATH_MAX], char clone[PATH_MAX]) {
    static const char *const installed[] = {"../benches/" PROGRAM, "../share/llm-psi-cache/" PROGRAM};
    char own[PATH_MAX];
    clone[0] = '\0';
    if (!tool_own_directory(own, sizeof own))
        return false;
    if (find_clone(own, clone))
        return is_file(clone, PROGRAM, program);
    clone[0] = '\0';
    for (size_t i = 0; i < sizeof installed / sizeof *installed; i++)
        if (is_file(own, installed[i], program))
            return true;
    return false;
}

/* The one that the Python package's command runs in, the clone's environment, or what PATH has. */
static const char *python_of(const char *clone, char path[PATH_MAX]) {
    const char *named = getenv("PSI_CACHE_PYTHON");
    if (named && *named)
        return named;
    if (clone[0] && is_file(clone, ".venv/bin/python", path))
        return path;
    return "python3";
}

int tool_bench(int argc, char **argv) {
    char program[PATH_MAX], clone[PATH_MAX], own_python[PATH_MAX];
    if (!find_program(program, clone)) {
        fprintf(stderr,
                "psi-cache %s: the benches are not installed beside this command\n"
                "cure: pip install llm-psi-cache, or use a clone's\n",
                argv[0]);
        return TOOL_NOTHING;
    }
    const char *python = python_of(clone, own_python);
    char **words = calloc((size_t)argc + 3, sizeof *words);
    if (!words)
        return TOOL_NOTHING;
    words[0] = (char *)(uintptr_t)python;
    words[1] = program;
    memcpy(words + 2, argv, (size_t)argc * sizeof *argv); /* the subcommand, and what follows it */
    execvp(python, words);
    fprintf(stderr, "psi-cache %s: %s: %s\ncure: install Python 3.9 or newer, or set PSI_CACHE_PYTHON\n", argv[0],
            python, strerror(errno));
    free(words);
    return TOOL_NOTHING;
}
