/* status.c - psi-cache status: what the engines under psi-cache show on their boards. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pool/board.h"
#include "tool/tool.h"

enum { MOST_PROCESSES = 1024 };

/* A board's numbers, copied: the process may end while they are shown. */
typedef struct view {
    int64_t pid;
    char command[64], engine[128];
    bool has_stats;
    psi_stats stats;
} view;

static bool look(int64_t pid, view *seen) {
    psi_board *board = psi_board_open(pid);
    if (!board)
        return false;
    memset(seen, 0, sizeof *seen);
    seen->pid = pid;
    memcpy(seen->command, board->command, sizeof seen->command - 1);
    memcpy(seen->engine, board->engine, sizeof seen->engine - 1);
    seen->has_stats = psi_board_read_stats(board, &seen->stats) == 0 && seen->stats.size != 0;
    psi_board_close(board);
    return true;
}

/* ---- For people ------------------------------------------------------------------------------- */

static void label(const char *name) { printf("  %s%-10s%s ", tool_colour_on(TOOL_DIM), name, tool_colour_off()); }

static void show_index(const psi_stats *s) {
    tool_colour colour = s->index > s->high ? TOOL_RED : s->index >= s->low ? TOOL_YELLOW : TOOL_GREEN;
    label("index");
    printf(
        "%s%.2f%s   stall %.2f  headroom %.2f  forecast %.2f  thrash %.2f   (trims above %.2f, regrows below %.2f)\n",
        tool_colour_on(colour), s->index, tool_colour_off(), s->index_stall, s->index_headroom, s->index_forecast,
        s->index_thrash, s->high, s->low);
}

static void show_headroom(const psi_stats *s) {
    char a[TOOL_BYTES_TEXT], b[TOOL_BYTES_TEXT];
    label("headroom");
    if (s->headroom_bytes == UINT64_MAX) {
        printf("unknown (psi-cache doctor says why)\n");
        return;
    }
    printf("%s of %s", tool_bytes(a, s->headroom_bytes), tool_bytes(b, s->limit_bytes));
    if (s->fill_bytes_per_s != 0)
        printf(", %s by %s/s", s->fill_bytes_per_s > 0 ? "shrinking" : "growing",
               tool_bytes(a, (uint64_t)llabs(s->fill_bytes_per_s)));
    printf("\n");
}

static const char *word_of(const char *const *words, size_t count, uint64_t number) {
    return number < count ? words[number] : "?";
}

static const char *const the_modes[] = {"auto", "psi", "avg10"};
static const char *const the_bands[] = {"none", "comfort", "safety"};
static const char *const the_effects[] = {"none", "waits", "good", "eaten", "futile"};

static const char *mode_of(const psi_stats *s) { return word_of(the_modes, 3, s->mode); }
static const char *band_of(const psi_stats *s) { return word_of(the_bands, 3, s->band); }
static const char *effect_of(const psi_stats *s) { return word_of(the_effects, 5, s->effect); }

static void show_control(const psi_stats *s) {
    char a[TOOL_BYTES_TEXT];
    label("control");
    printf("mode %s, band %s", mode_of(s), band_of(s));
    if (s->effect > 1)
        printf(", last trim: %s", effect_of(s));
    if (s->guarded)
        printf(", guarded: a trim for stall is withheld");
    if (s->missing_bytes > 0)
        printf(", %s of mapped files missing", tool_bytes(a, s->missing_bytes));
    if (s->ceiling_bytes != UINT64_MAX)
        printf(", regrows to %s", tool_bytes(a, s->ceiling_bytes));
    printf("\n");
    label("counts");
    printf("%" PRIu64 " safety, %" PRIu64 " comfort, %" PRIu64 " withheld; reaction %.1f ms (worst %.1f ms)\n",
           s->safety_trims, s->comfort_trims, s->guarded_trims, (double)s->reaction_last_us / 1e3,
           (double)s->reaction_most_us / 1e3);
}

static void show_tuning(const psi_stats *s) {
    char a[TOOL_BYTES_TEXT], b[TOOL_BYTES_TEXT], c[TOOL_BYTES_TEXT];
    label("tuning");
    printf("reserve %s, reaction %.0f ms, store %s/s, stall anchor %.0f %% (normal %.1f %%), highest fill %s/s\n",
           tool_bytes(a, s->reserve_bytes), (double)s->reaction_us / 1e3, tool_bytes(b, (uint64_t)s->write_bytes_per_s),
           s->stall_at_anchor * 100, s->stall_normal_share * 100, tool_bytes(c, (uint64_t)s->fill_most_bytes_per_s));
}

static void show_culprit(const psi_stats *s) {
    if (!s->grower[0] && !s->staller[0])
        return;
    label("pressed by");
    if (s->grower[0]) {
        printf("growing most: ");
        tool_plain(stdout, s->grower);
    }
    if (s->staller[0]) {
        printf("%sstalling most: ", s->grower[0] ? "  " : "");
        tool_plain(stdout, s->staller);
    }
    printf("\n");
}

static void show_cache(const psi_stats *s) {
    char a[TOOL_BYTES_TEXT], b[TOOL_BYTES_TEXT], c[TOOL_BYTES_TEXT], d[TOOL_BYTES_TEXT];
    label("cache");
    printf("resident %s  stored %s  dropped %s  of %s in %" PRIu64 " pool%s\n", tool_bytes(a, s->resident_bytes),
           tool_bytes(b, s->stored_bytes), tool_bytes(c, s->dropped_bytes), tool_bytes(d, s->capacity_bytes), s->pools,
           s->pools == 1 ? "" : "s");
    if (s->withheld_bytes) {
        label("withheld");
        printf("%s that the engine may not use for now\n", tool_bytes(a, s->withheld_bytes));
    }
    label("so far");
    printf("%" PRIu64 " trim%s (%s)  %" PRIu64 " restore%s (%s)  %" PRIu64 " refused  %" PRIu64 " steps", s->trims,
           s->trims == 1 ? "" : "s", tool_bytes(a, s->trimmed_bytes), s->restores, s->restores == 1 ? "" : "s",
           tool_bytes(b, s->restored_bytes), s->refusals, s->steps);
    printf("\n");
    if (s->written_bytes || s->store_hour_max_bytes) {
        label("store");
        printf("%s written (%s in the last hour%s%s)", tool_bytes(a, s->written_bytes),
               tool_bytes(b, s->store_hour_bytes), s->store_hour_max_bytes ? " of " : "",
               s->store_hour_max_bytes ? tool_bytes(c, s->store_hour_max_bytes) : "");
    }
    if (s->store_errors)
        printf("  %s%" PRIu64 " store errors%s", tool_colour_on(TOOL_RED), s->store_errors, tool_colour_off());
    if (s->written_bytes || s->store_hour_max_bytes || s->store_errors)
        printf("\n");
}

static void show(const view *seen) {
    printf("%s%" PRId64 "%s  ", tool_colour_on(TOOL_BOLD), seen->pid, tool_colour_off());
    tool_plain(stdout, seen->command);
    printf("\n");
    if (seen->engine[0]) {
        label("engine");
        tool_plain(stdout, seen->engine);
        printf("\n");
    }
    if (!seen->has_stats) {
        label("cache");
        printf("none yet: the engine has not made its context, or is not managed\n");
        return;
    }
    show_index(&seen->stats);
    show_headroom(&seen->stats);
    show_control(&seen->stats);
    show_tuning(&seen->stats);
    show_cache(&seen->stats);
    show_culprit(&seen->stats);
}

/* ---- For programs ------------------------------------------------------------------------------- */

static void json_bytes(const char *name, uint64_t value) {
    printf(",\"%s\":", name);
    if (value == UINT64_MAX)
        printf("null");
    else
        printf("%" PRIu64, value);
}

static void json_known(const char *name, double value) {
    if (value < 0)
        printf(",\"%s\":null", name);
    else
        printf(",\"%s\":%.6g", name, value);
}

static void json_text(const char *text) {
    if (text[0])
        tool_json_string(stdout, text);
    else
        printf("null");
}

static void json_stats(const psi_stats *s) {
    const struct {
        const char *name;
        double value;
    } shares[] = {{"index", s->index},
                  {"index_stall", s->index_stall},
                  {"index_headroom", s->index_headroom},
                  {"index_forecast", s->index_forecast},
                  {"index_thrash", s->index_thrash},
                  {"high", s->high},
                  {"low", s->low},
                  {"write_bytes_per_s", s->write_bytes_per_s},
                  {"stall_normal_share", s->stall_normal_share},
                  {"stall_at_anchor", s->stall_at_anchor},
                  {"fill_most_bytes_per_s", s->fill_most_bytes_per_s}};
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {{"headroom_bytes", s->headroom_bytes},
                  {"limit_bytes", s->limit_bytes},
                  {"capacity_bytes", s->capacity_bytes},
                  {"resident_bytes", s->resident_bytes},
                  {"stored_bytes", s->stored_bytes},
                  {"dropped_bytes", s->dropped_bytes},
                  {"withheld_bytes", s->withheld_bytes},
                  {"trims", s->trims},
                  {"restores", s->restores},
                  {"refusals", s->refusals},
                  {"trimmed_bytes", s->trimmed_bytes},
                  {"restored_bytes", s->restored_bytes},
                  {"store_errors", s->store_errors},
                  {"steps", s->steps},
                  {"pools", s->pools},
                  {"missing_bytes", s->missing_bytes},
                  {"ceiling_bytes", s->ceiling_bytes},
                  {"safety_trims", s->safety_trims},
                  {"comfort_trims", s->comfort_trims},
                  {"guarded_trims", s->guarded_trims},
                  {"trim_cycles", s->trim_cycles},
                  {"regrow_cycles", s->regrow_cycles},
                  {"reaction_last_us", s->reaction_last_us},
                  {"reaction_most_us", s->reaction_most_us},
                  {"written_bytes", s->written_bytes},
                  {"clean_bytes", s->clean_bytes},
                  {"readings", s->readings},
                  {"trigger_events", s->trigger_events},
                  {"reserve_bytes", s->reserve_bytes},
                  {"reaction_us", s->reaction_us},
                  {"recalls", s->recalls},
                  {"recalled_bytes", s->recalled_bytes},
                  {"recall_us", s->recall_us},
                  {"recomputed_bytes", s->recomputed_bytes},
                  {"recompute_us", s->recompute_us},
                  {"store_hour_bytes", s->store_hour_bytes},
                  {"store_hour_max_bytes", s->store_hour_max_bytes}};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        printf(",\"%s\":%.6g", shares[i].name, shares[i].value);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        json_bytes(counts[i].name, counts[i].value);
    printf(",\"fill_bytes_per_s\":%" PRId64, s->fill_bytes_per_s);
    json_known("stall_some_share", s->stall_some_share);
    json_known("avg10_share", s->avg10_share);
    json_known("refaults_per_s", s->refaults_per_s);
    json_known("major_faults_per_s", s->major_faults_per_s);
    printf(",\"mode\":\"%s\",\"band\":\"%s\",\"effect\":\"%s\",\"guarded\":%s,\"grower\":", mode_of(s), band_of(s),
           effect_of(s), s->guarded ? "true" : "false");
    json_text(s->grower);
    printf(",\"staller\":");
    json_text(s->staller);
}

/* `managed` false: the numbers are left out, not zero. */
static void show_json(const view *seen) {
    printf("{\"pid\":%" PRId64 ",\"command\":", seen->pid);
    tool_json_string(stdout, seen->command);
    printf(",\"engine\":");
    tool_json_string(stdout, seen->engine);
    printf(",\"managed\":%s", seen->has_stats ? "true" : "false");
    if (seen->has_stats)
        json_stats(&seen->stats);
    printf("}");
}

/* ---- The subcommand --------------------------------------------------------------------------- */

static void say_none(int64_t pid) {
    if (pid && errno == EPROTO)
        fprintf(stderr,
                "psi-cache status: process %" PRId64 " runs under another version of psi-cache; use that one's "
                "status, or start the process again\n",
                pid);
    else if (pid)
        fprintf(stderr, "psi-cache status: no process %" PRId64 " of yours runs under psi-cache\n", pid);
    else
        fprintf(stderr, "psi-cache status: none of your processes runs under psi-cache\n");
    if (!pid || errno != EPROTO)
        fprintf(stderr, "start one: psi-cache run -- llama-server -m model.gguf\n");
}

/* How many were shown. */
static size_t show_all(int64_t only, bool json) {
    int64_t pids[MOST_PROCESSES] = {only};
    size_t count = only ? 1 : psi_board_list(pids, MOST_PROCESSES), shown = 0;
    if (json)
        printf("{\"processes\":[");
    for (size_t i = 0; i < count; i++) {
        view seen;
        if (!look(pids[i], &seen)) {
            if (!only && errno == EPROTO)
                say_none(pids[i]);
            continue;
        }
        if (shown > 0)
            printf(json ? "," : "\n");
        (json ? show_json : show)(&seen);
        shown++;
    }
    if (json)
        printf("]}\n");
    if (shown == 0)
        say_none(only);
    return shown;
}

static int watch(int64_t only, bool json) {
    const char *clear = isatty(STDOUT_FILENO) && !json ? "\033[H\033[2J" : "";
    for (;;) {
        printf("%s", clear);
        size_t shown = show_all(only, json);
        if (fflush(stdout) != 0)
            return TOOL_NOTHING; /* the reader has gone */
        if (only && shown == 0)
            return TOOL_NOTHING;
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
        if (!*clear && !json)
            printf("\n");
    }
}

int tool_status(int argc, char **argv) {
    bool json = false, again = false;
    uint64_t pid = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (strcmp(argv[i], "--watch") == 0 || strcmp(argv[i], "-w") == 0)
            again = true;
        else if (argv[i][0] == '-')
            return tool_usage_error("status", "unknown option %s", argv[i]);
        else if (pid || !tool_parse_count(argv[i], INT32_MAX, &pid))
            return tool_usage_error("status", "%s: give one process id", argv[i]);
    }
    if (again)
        return watch((int64_t)pid, json);
    return show_all((int64_t)pid, json) > 0 ? TOOL_OK : TOOL_NOTHING;
}
