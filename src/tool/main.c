/* main.c - psi-cache, the command: picks the subcommand. */
#include <string.h>

#include "psicache.h"
#include "tool/tool.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} the_subcommands[] = {
    {"run", tool_run},         {"doctor", tool_doctor}, {"status", tool_status}, {"trim", tool_trim},
    {"restore", tool_restore}, {"watch", tool_watch},   {"record", tool_record}, {"replay", tool_replay},
    {"bench", tool_bench},     {"report", tool_bench},
};

static int help(const char *subcommand) {
    if (tool_help(stdout, subcommand))
        return TOOL_OK;
    fprintf(stderr, "psi-cache help: there is no subcommand '%s'; see psi-cache --help\n", subcommand);
    return TOOL_USAGE;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        tool_help(stderr, NULL);
        return TOOL_USAGE;
    }
    const char *first = argv[1];
    if (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0) {
        printf("psi-cache %d.%d.%d\n", PSI_VERSION_MAJOR, PSI_VERSION_MINOR, PSI_VERSION_PATCH);
        return TOOL_OK;
    }
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || strcmp(first, "help") == 0)
        return help(argc > 2 ? argv[2] : NULL);
    for (size_t i = 0; i < sizeof the_subcommands / sizeof *the_subcommands; i++) {
        if (strcmp(first, the_subcommands[i].name) != 0)
            continue;
        /* Only before a command of the user's: `run -- llama-server --help` is llama-server's. */
        if (argc > 2 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0))
            return help(first);
        return the_subcommands[i].run(argc - 1, argv + 1);
    }
    if (first[0] == '-')
        fprintf(stderr, "psi-cache: unknown option '%s'; see psi-cache --help\n", first);
    else
        fprintf(stderr, "psi-cache: there is no subcommand '%s'; to run a command under it: psi-cache run -- %s\n",
                first, first);
    return TOOL_USAGE;
}
