/* help.c - the command's words: the overview on one screen, and one text a subcommand. The third depth is
 * man/psi-cache.1. */
#include <stdarg.h>
#include <string.h>

#include "tool/tool.h"

static const char the_overview[] =
    "psi-cache - run a language model whose KV cache gives memory back under pressure\n"
    "\n"
    "usage: psi-cache run [options] -- COMMAND...   start an engine with an elastic cache\n"
    "       psi-cache status [PID]                  what the engines under it do now\n"
    "       psi-cache trim PID|all [SHARE]          give a share of the cache back now\n"
    "       psi-cache restore PID|all               bring back what was stored\n"
    "       psi-cache doctor [FILE...]              what this machine offers, what is missing, and the cure\n"
    "       psi-cache watch [PID]                   all signals and the pressure index, live\n"
    "       psi-cache record [PID] [-o FILE]        all signals into a trace; also: record -- COMMAND...\n"
    "       psi-cache replay TRACE                  what the controller decides on a trace\n"
    "       psi-cache bench NAME | --list           measure it here; bench device: a short set, for a board\n"
    "       psi-cache report [FILE...]              a page of what was measured\n"
    "       psi-cache help SUBCOMMAND | --version\n"
    "\n"
    "examples:\n"
    "  psi-cache doctor\n"
    "  psi-cache run -- llama-server -m model.gguf -c 32768\n"
    "  psi-cache run --high 0.6 --store-dir /var/lib/psi -- python3 app.py\n"
    "  psi-cache status --watch\n"
    "\n"
    "More: psi-cache help run, man psi-cache\n";

static const char the_run[] =
    "usage: psi-cache run [options] -- COMMAND [ARGUMENT...]\n"
    "\n"
    "Starts COMMAND with libpsicache-llama.so preloaded. An engine that is not understood runs untouched and\n"
    "says so in one line. The exit status is COMMAND's; 125: psi-cache could not do its part, 126: COMMAND\n"
    "cannot be executed, 127: it is not found, 2: wrong options.\n"
    "\n"
    "  --high INDEX        trim above this pressure index, 0 to 1 (default 0.7)\n"
    "  --low INDEX         regrow below this one (default 3/7 of high, so 0.3)\n"
    "  --policy NAME       which blocks go first: auto (default), attention, keys, fifo or lru\n"
    "  --recall on|off     off: hidden blocks that the model wants wait until there is room\n"
    "  --score-share X     share of the step time that measuring attention may cost, 0 to 1 (default 0.01)\n"
    "  --recall-share X    the same of finding hidden blocks that are wanted, while decoding (default 0.03)\n"
    "  --recall-us N       microseconds that a step of a prompt may spend on exchanges (default 50000)\n"
    "  --exact on|off      on: no step runs without a block that it reads; it waits for memory instead\n"
    "  --recompute on|off  off: dropped blocks are not computed again from their tokens\n"
    "  --recompute-us N    microseconds that a step may wait for it (default 100000)\n"
    "  --store KIND        where trimmed blocks rest: file (default), or none: they are dropped\n"
    "  --store-dir DIR     directory of the store, on a disk (default /var/tmp)\n"
    "  --store-max SIZE    upper size of the store (default: the cache's capacity)\n"
    "  --store-hour-max SIZE  most that is written to it in any hour (default: no bound); trims are slower then\n"
    "  --store-hour-strict on|off  on: not even a trim writes more; blocks stay, or are dropped (default off)\n"
    "  --floor SIZE        never trim a cache below this (default 1/32 of its capacity)\n"
    "  --reserve SIZE      memory to keep free (default 1/16 of the limit, 16M to 256M)\n"
    "  --block-cells N     tokens a block (default: chosen from the page size)\n"
    "  --long-step-us US   steps that take as long give memory back between their layers, too (default 20000)\n"
    "  --mode NAME         auto (default); psi (stall alone), avg10 (the kernel's average): for comparison\n"
    "  --tuning on|off     off: nothing is learned of this device\n"
    "  --tuning-file FILE  what was learned is kept there from one start to the next\n"
    "  --controller on|off off: pages are committed as they are written, nothing is trimmed by itself\n"
    "  -v, --verbose       say what is done (twice: with every detail)\n"
    "  -q, --quiet         say errors only\n"
    "\n"
    "SIZE is in bytes, or with K, M or G. Each option is an environment variable too: PSI_CACHE_HIGH, _LOW,\n"
    "_POLICY, _RECALL, _EXACT, _SCORE_SHARE, _RECALL_SHARE, _RECALL_US, _STORE, _STORE_DIR, _STORE_MAX_BYTES,\n"
    "_FLOOR_BYTES, _RESERVE_BYTES, _BLOCK_CELLS, _LONG_STEP_US, _CONTROLLER, _MODE, _TUNING, _TUNING_FILE,\n"
    "_VERBOSE (0 errors to 3 debug). PSI_CACHE_LIB_DIR: where the library is.\n";

static const char the_doctor[] =
    "usage: psi-cache doctor [--json] [FILE...]\n"
    "\n"
    "Looks at what this machine offers (pressure signals, memory limit, store, rights, llama.cpp builds), says\n"
    "what is missing and what would cure it. FILE: an executable or library of an engine, to be checked too.\n"
    "Options of the store are taken from the environment (PSI_CACHE_STORE_DIR).\n"
    "Exit status: 0 usable, 1 usable with limits, 2 not usable.\n";

static const char the_status[] =
    "usage: psi-cache status [PID] [--json] [--watch]\n"
    "\n"
    "Shows the processes of this user that run under psi-cache, or one of them: the pressure index and what it\n"
    "is made of, headroom, and the cache. --watch: again each second. --json: one line an answer, bytes and\n"
    "shares as numbers, null where a source is missing.\n"
    "Exit status: 0 something was shown, 1 no such process, 2 wrong use.\n";

static const char the_trim[] =
    "usage: psi-cache trim PID|all [SHARE]\n"
    "\n"
    "Asks for SHARE (above 0, up to 1; default 0.15) of the resident cache to be given back at the engine's next\n"
    "safe point, waits up to 2 s and says what came of it. An idle engine may take the request only with its\n"
    "next step.\n"
    "Exit status: 0 taken, 1 not taken in time or no such process, 2 wrong use.\n";

static const char the_restore[] =
    "usage: psi-cache restore PID|all\n"
    "\n"
    "Asks for all that is stored to be read back at the engine's next safe point, waits up to 2 s and says what\n"
    "came of it. Under pressure it is given back again: the controller goes on.\n"
    "Exit status: 0 taken, 1 not taken in time or no such process, 2 wrong use.\n";

static const char the_watch[] =
    "usage: psi-cache watch [PID] [--json] [--interval MS] [--count N]\n"
    "\n"
    "Shows all signals and the pressure index, as a process started here or process PID sees them: its cgroup, its\n"
    "faults, its mapped files. On a terminal a screen, through a pipe a line each time, with --json an object a line:\n"
    "the index and its parts, the reading, and all raw values (null or left out: not known), and what is missing.\n"
    "The limits are those of PSI_CACHE_HIGH and _LOW, or the default. Nothing is trimmed. Ctrl-C ends it.\n"
    "\n"
    "  --interval MS  between two looks, 10 or more (default 500 on a terminal, else 1000)\n"
    "  --count N      end after so many\n"
    "\n"
    "Exit status: 0 something was shown, 1 no such process or nowhere to write, 2 wrong use.\n";

static const char the_record[] =
    "usage: psi-cache record [PID] [-o FILE] [--seconds S] [--interval MS]\n"
    "       psi-cache record [-o FILE] [--seconds S] [--interval MS] -- COMMAND [ARGUMENT...]\n"
    "\n"
    "Writes a trace, text, of all raw signals as process PID sees them, to its end or for S seconds; replay reads it.\n"
    "With COMMAND: starts it, records to its end and exits with its status; its standard output goes to standard\n"
    "error where the trace is on standard output. Each sample is written at once: a recorder that is killed leaves\n"
    "a trace that can be read. The trace names cgroup paths and the command, no arguments and no contents.\n"
    "\n"
    "  -o, --output FILE  where to (default -, standard output); a file that is there is written over\n"
    "  --seconds S        no longer than this\n"
    "  --interval MS      between two samples (default: as the controller asks, 2 when a limit is near, to 100)\n"
    "\n"
    "Exit status: 0 recorded, 1 no such process or FILE cannot be written, 2 wrong use; with COMMAND its own, or\n"
    "128 and the signal that ended it, 125: psi-cache could not do its part, 126 and 127 as for run.\n";

static const char the_replay[] =
    "usage: psi-cache replay TRACE [options]\n"
    "\n"
    "Runs the controller over a trace (-: standard input) with the trace's clock and prints what it decides: the\n"
    "index and its parts, the band, bytes to trim and to restore, and a summary. The same trace and options give\n"
    "the same output. The cache is simulated: all of it written to the store, trims done after the reaction time, "
    "restores at\n"
    "once. The machine is as it was recorded: what the simulated cache gives back does not relieve it, so after the\n"
    "first trim the controller sees less effect than it would have had.\n"
    "\n"
    "  --mode NAME        auto (default), psi (stall alone) or avg10 (the kernel's average)\n"
    "  --high, --low X    limits of the index (default 0.7, and 3/7 of high)\n"
    "  --cache-bytes SIZE the cache, full at the beginning (default 256M)\n"
    "  --evictable SHARE  how much of it may go (default 1); 1/32 of the cache always stays\n"
    "  --reaction-us N    from asking to pages returned (default 20000)\n"
    "  --no-tuning        the mapping's starting values: nothing is learned from the trace\n"
    "  --json             an object a line, the summary last\n"
    "\n"
    "Exit status: 0 replayed, 1 TRACE cannot be read or is none, 2 wrong use.\n";

static const char the_bench[] =
    "usage: psi-cache bench NAME [OPTION...]\n"
    "       psi-cache bench --list\n"
    "\n"
    "Runs a bench; psi-cache bench NAME --help has its options. It shows progress, may be stopped, and goes on where "
    "it\n"
    "was. Needs Python 3.9 and numpy, most of them llama-cpp-python and a model, too: pip install "
    "'llm-psi-cache[bench]'\n"
    "brings all. In a clone results go to build/; else the benches are copied to psi-cache-bench in the present "
    "directory,\n"
    "with results in its build/ (PSI_BENCH_DIR: another directory).\n"
    "\n"
    "  psi-cache bench all     those that fit in an hour, and a page of what they found\n"
    "  psi-cache bench device  for a Jetson, a Raspberry Pi or another board: what it has, a short safe set, and one\n"
    "                          file to send in, without names and paths\n"
    "\n"
    "Exit status: the bench's own: 0 its bar was held, 1 missed or not measured, 2 wrong use.\n";

static const char the_report[] =
    "usage: psi-cache report [FILE|DIRECTORY...] [--to DIRECTORY]\n"
    "\n"
    "Makes one page (index.html, which needs no other file) and a picture of each result. By default of what bench "
    "all\n"
    "left, in a clone where that was not run of the results that it has; into build/report. A file of bench device "
    "can\n"
    "be named, too. Needs Python 3.9, numpy and matplotlib.\n"
    "Exit status: 0 all was shown, 1 something could not be, or was not there; 2 wrong use.\n";

static const struct {
    const char *name, *text;
} the_texts[] = {
    {"run", the_run},         {"doctor", the_doctor}, {"status", the_status}, {"trim", the_trim},
    {"restore", the_restore}, {"watch", the_watch},   {"record", the_record}, {"replay", the_replay},
    {"bench", the_bench},     {"report", the_report},
};

bool tool_help(FILE *out, const char *subcommand) {
    if (!subcommand)
        return fputs(the_overview, out) >= 0;
    for (size_t i = 0; i < sizeof the_texts / sizeof *the_texts; i++)
        if (strcmp(subcommand, the_texts[i].name) == 0)
            return fputs(the_texts[i].text, out) >= 0;
    return false;
}

int tool_usage_error(const char *subcommand, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "psi-cache %s: ", subcommand);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\nsee psi-cache help %s\n", subcommand);
    va_end(arguments);
    return TOOL_USAGE;
}
