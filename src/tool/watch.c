/* watch.c - psi-cache watch: all sources and the index, live, for the machine or as one process sees them. A screen on
 * a terminal, a line each time through a pipe, JSON for programs. One thread, with signals and a controller of its
 * own that has nothing to trim. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "os/os.h"
#include "tool/sampling.h"

#define INTERVAL_LEAST_MS 10
#define INTERVAL_SCREEN_US ((uint64_t)500000)
#define INTERVAL_PLAIN_US ((uint64_t)1000000)
#define BEFORE_FIRST_US ((uint64_t)120000) /* rates need two samples; the first line has them, too */
#define PLAIN_ROWS_A_HEADER 20

typedef enum form { SCREEN, PLAIN, JSON } form;

typedef struct watch {
    form form;
    uint64_t interval_us, count;
    tool_process process;
    char name[TOOL_COMM_BYTES], root[TOOL_ROOT_BYTES];
    psi_signal *signal;
    psi_control control;
    psi_sample before; /* what was shown last */
    psi_reading reading;
    psi_decision decision;
    uint64_t shown;
} watch;

static watch the_watch; /* too large for a stack */

static bool has(const watch *w, uint32_t what) { return (w->reading.have & what) == what; }

/* ---- Rates of raw counters since what was shown last --------------------------------------------- */

/* Growth a second; negative: not known. */
static double growth(const watch *w, psi_raw raw) {
    const psi_sample *now = psi_signal_last(w->signal);
    if (!now->known[raw] || !w->before.known[raw] || now->at_us <= w->before.at_us ||
        now->value[raw] < w->before.value[raw])
        return -1;
    return (double)(now->value[raw] - w->before.value[raw]) * 1e6 / (double)(now->at_us - w->before.at_us);
}

/* Of stall time: a share of the time, 0 to 1. */
static double share(const watch *w, psi_raw raw) {
    double us_a_second = growth(w, raw);
    return us_a_second < 0 ? -1 : us_a_second > 1e6 ? 1 : us_a_second / 1e6;
}

/* "12.3 %", or "-" where it is not known. */
#define SHORT_TEXT 24
static const char *per_cent(char text[SHORT_TEXT], double value) {
    if (value < 0 || !isfinite(value))
        return "-";
    snprintf(text, SHORT_TEXT, "%.1f%%", value * 100);
    return text;
}

static const char *number(char text[SHORT_TEXT], double value) {
    if (value < 0 || !isfinite(value))
        return "-";
    snprintf(text, SHORT_TEXT, "%.0f", value);
    return text;
}

static const char *avg10(const watch *w, char text[SHORT_TEXT], psi_raw raw) {
    const psi_sample *now = psi_signal_last(w->signal);
    return per_cent(text, now->known[raw] ? (double)now->value[raw] / 10000 : -1);
}

/* ---- A screen --------------------------------------------------------------------------------- */

static void label(FILE *out, const char *name) {
    fprintf(out, "%s%-9s%s ", tool_colour_on(TOOL_DIM), name, tool_colour_off());
}

static tool_colour colour_of(const watch *w, double index) {
    return index > w->control.options.high ? TOOL_RED : index >= w->control.options.low ? TOOL_YELLOW : TOOL_GREEN;
}

/* A bar from 0 to 1 with marks at the limits. */
static void show_bar(FILE *out, const watch *w, const char *name, double index) {
    enum { CELLS = 40 };
    int full = (int)(index * CELLS + 0.5), low = (int)(w->control.options.low * CELLS);
    int high = (int)(w->control.options.high * CELLS);
    label(out, name);
    fprintf(out, "%s%5.2f ", tool_colour_on(colour_of(w, index)), index);
    for (int i = 0; i < CELLS; i++)
        fputc(i < full ? '#' : i == low || i == high ? '|' : '.', out);
    fprintf(out, "%s\n", tool_colour_off());
}

static void show_index(FILE *out, const watch *w) {
    const psi_decision *d = &w->decision;
    show_bar(out, w, "index", d->index);
    show_bar(out, w, " headroom", d->index_headroom);
    show_bar(out, w, " forecast", d->index_forecast);
    show_bar(out, w, " stall", d->index_stall);
    show_bar(out, w, " thrash", d->index_thrash);
    label(out, "");
    fprintf(out, "trims above %.2f, regrows below %.2f; a cache here would be ", w->control.options.high,
            w->control.options.low);
    if (d->index > w->control.options.high)
        fprintf(out, "trimmed: %s\n\n", psi_decision_reason(d));
    else
        fprintf(out, "%s\n\n", d->index < w->control.options.low ? "left alone, or regrown" : "left alone");
}

static void show_headroom(FILE *out, const watch *w) {
    char a[TOOL_BYTES_TEXT], b[TOOL_BYTES_TEXT];
    const psi_reading *r = &w->reading;
    label(out, "headroom");
    if (!has(w, PSI_HAVE_HEADROOM)) {
        fprintf(out, "not known\n");
        return;
    }
    fprintf(out, "%s of %s, %s", tool_bytes(a, r->headroom_bytes), tool_bytes(b, r->limit_bytes),
            tool_bound_name(r->bound));
    if (r->bound != PSI_BOUND_MACHINE && r->bound_level > 0)
        fprintf(out, ", %" PRIu32 " level%s up", r->bound_level, r->bound_level == 1 ? "" : "s");
    if (has(w, PSI_HAVE_FILL))
        fprintf(out, ", %s by %s/s", r->fill_bytes_per_s > 0 ? "shrinking" : "growing",
                tool_bytes(a, (uint64_t)llabs((long long)r->fill_bytes_per_s)));
    if (r->missing_bytes > 0)
        fprintf(out, "; own mappings lack %s", tool_bytes(b, r->missing_bytes));
    fprintf(out, "\n");
}

static void show_stall(FILE *out, const watch *w, const char *name, const psi_raw raws[5]) {
    char some[SHORT_TEXT], full[SHORT_TEXT], average[SHORT_TEXT], io_some[SHORT_TEXT], io_full[SHORT_TEXT];
    label(out, name);
    fprintf(out, "memory some %6s full %6s  avg10 %6s   io some %6s full %6s\n", per_cent(some, share(w, raws[0])),
            per_cent(full, share(w, raws[1])), avg10(w, average, raws[2]), per_cent(io_some, share(w, raws[3])),
            per_cent(io_full, share(w, raws[4])));
}

static void show_stalls(FILE *out, const watch *w) {
    static const psi_raw own[] = {PSI_RAW_OWN_MEMORY_SOME_US, PSI_RAW_OWN_MEMORY_FULL_US, PSI_RAW_OWN_MEMORY_AVG10,
                                  PSI_RAW_OWN_IO_SOME_US, PSI_RAW_OWN_IO_FULL_US};
    static const psi_raw all[] = {PSI_RAW_SYSTEM_MEMORY_SOME_US, PSI_RAW_SYSTEM_MEMORY_FULL_US,
                                  PSI_RAW_SYSTEM_MEMORY_AVG10, PSI_RAW_SYSTEM_IO_SOME_US, PSI_RAW_SYSTEM_IO_FULL_US};
    show_stall(out, w, "group", own);
    show_stall(out, w, "system", all);
    if (w->reading.stall_is_doubted) {
        label(out, "");
        fprintf(out, "%sthe stall contradicts everything else, and takes no part%s\n", tool_colour_on(TOOL_YELLOW),
                tool_colour_off());
    }
}

/* The sum of two counters, of which one may be missing. */
static double both(double a, double b) { return a < 0 ? b : b < 0 ? a : a + b; }

static void show_rates(FILE *out, const watch *w) {
    char a[SHORT_TEXT], b[SHORT_TEXT], c[SHORT_TEXT], d[SHORT_TEXT], e[SHORT_TEXT];
    label(out, "a second");
    fprintf(out, "major faults %s  refaults group %s machine %s  scanned %s  waits to allocate %s\n",
            number(a, growth(w, PSI_RAW_SELF_MAJOR_FAULTS)),
            number(b, both(growth(w, PSI_RAW_OWN_REFAULT_FILE), growth(w, PSI_RAW_OWN_REFAULT_ANON))),
            number(c, both(growth(w, PSI_RAW_VM_REFAULT_FILE), growth(w, PSI_RAW_VM_REFAULT_ANON))),
            number(d, both(growth(w, PSI_RAW_VM_SCAN_DIRECT), growth(w, PSI_RAW_VM_SCAN_KSWAPD))),
            number(e, growth(w, PSI_RAW_VM_ALLOC_STALLS)));
}

/* "<name> <value>" for each of raws[0, count) that is known. Returns how many are. */
typedef struct named_raw {
    const char *name;
    psi_raw raw;
    bool is_bytes;
} named_raw;

static size_t show_known(FILE *out, const watch *w, const char *row, const named_raw *raws, size_t count) {
    const psi_sample *now = psi_signal_last(w->signal);
    char text[TOOL_BYTES_TEXT];
    size_t known = 0;
    for (size_t i = 0; i < count; i++) {
        if (!now->known[raws[i].raw])
            continue;
        if (known++ == 0)
            label(out, row);
        else
            fprintf(out, "  ");
        if (raws[i].is_bytes)
            fprintf(out, "%s %s", raws[i].name, tool_bytes(text, now->value[raws[i].raw]));
        else
            fprintf(out, "%s %" PRIu64, raws[i].name, now->value[raws[i].raw]);
    }
    if (known > 0)
        fprintf(out, "\n");
    return known;
}

static void show_amounts(FILE *out, const watch *w) {
    const psi_sample *now = psi_signal_last(w->signal);
    static const named_raw machine[] = {{"available", PSI_RAW_MEMORY_AVAILABLE_BYTES, true},
                                        {"free", PSI_RAW_MEMORY_FREE_BYTES, true},
                                        {"of", PSI_RAW_MEMORY_TOTAL_BYTES, true},
                                        {"watermark low", PSI_RAW_ZONE_LOW_BYTES, true}};
    static const named_raw swap[] = {{"free", PSI_RAW_SWAP_FREE_BYTES, true},
                                     {"of", PSI_RAW_SWAP_TOTAL_BYTES, true},
                                     {"zram holds", PSI_RAW_ZRAM_STORED_BYTES, true},
                                     {"in", PSI_RAW_ZRAM_USED_BYTES, true}};
    static const named_raw self[] = {{"files resident", PSI_RAW_SELF_FILE_BYTES, true},
                                     {"mapped (of 1 MiB and more)", PSI_RAW_SELF_MAPPED_BYTES, true},
                                     {"locked", PSI_RAW_SELF_LOCKED_BYTES, true}};
    static const named_raw events[] = {
        {"at high", PSI_RAW_V2_EVENTS_HIGH, false},  {"at max", PSI_RAW_V2_EVENTS_MAX, false},
        {"oom", PSI_RAW_V2_EVENTS_OOM, false},       {"kills", PSI_RAW_V2_EVENTS_OOM_KILL, false},
        {"v1 limit met", PSI_RAW_V1_FAILCNT, false}, {"v1 under oom", PSI_RAW_V1_UNDER_OOM, false},
        {"v1 kills", PSI_RAW_V1_OOM_KILL, false},    {"machine's kills", PSI_RAW_VM_OOM_KILL, false}};
    show_known(out, w, "memory", machine, sizeof machine / sizeof *machine);
    if (now->value[PSI_RAW_SWAP_TOTAL_BYTES] > 0 || now->value[PSI_RAW_ZRAM_USED_BYTES] > 0)
        show_known(out, w, "swap", swap, sizeof swap / sizeof *swap);
    if (w->process.process_id != 0)
        show_known(out, w, "process", self, sizeof self / sizeof *self);
    show_known(out, w, "events", events, sizeof events / sizeof *events);
}

static void show_missing(FILE *out, const watch *w) {
    size_t count = 0;
    const psi_source *sources = psi_signal_sources(w->signal, &count);
    bool first = true;
    for (size_t i = 0; i < count; i++) {
        if (sources[i].in_use)
            continue;
        if (first)
            fprintf(out, "\n");
        label(out, first ? "missing" : "");
        first = false;
        fprintf(out, "%s: ", sources[i].name);
        tool_plain(out, sources[i].detail);
        if (sources[i].cure[0]) {
            fprintf(out, "; %scure:%s ", tool_colour_on(TOOL_DIM), tool_colour_off());
            tool_plain(out, sources[i].cure);
        }
        fprintf(out, "\n");
    }
}

static void clock_text(char text[32]) {
    struct timespec now;
    struct tm local;
    clock_gettime(CLOCK_REALTIME, &now);
    size_t length = localtime_r(&now.tv_sec, &local) ? strftime(text, 24, "%H:%M:%S", &local) : 0;
    snprintf(text + length, 32 - length, ".%03ld", now.tv_nsec / 1000000);
}

static void compose_screen(FILE *out, const watch *w) {
    char when[32];
    clock_text(when);
    fprintf(out, "%spsi-cache watch%s  ", tool_colour_on(TOOL_BOLD), tool_colour_off());
    if (w->process.process_id)
        fprintf(out, "process %" PRId64 " %s", w->process.process_id, w->name);
    else
        fprintf(out, "this machine, as a process started here sees it");
    fprintf(out, "  %s\n\n", when);
    show_index(out, w);
    show_headroom(out, w);
    show_stalls(out, w);
    show_rates(out, w);
    show_amounts(out, w);
    show_missing(out, w);
}

static size_t rows_of_terminal(void) {
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 ? size.ws_row : 24;
}

/* Over the screen before, line by line, so that nothing flickers; no more lines than there are rows. */
static bool show_screen(const watch *w) {
    char *text = NULL;
    size_t length = 0, left = rows_of_terminal() - 1;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return false;
    compose_screen(out, w);
    if (fclose(out) != 0) {
        free(text);
        return false;
    }
    /* Without wrapping: a long line is cut by the terminal. */
    printf("\033[?7l%s", w->shown == 0 ? "\033[H\033[2J" : "\033[H");
    for (char *at = text, *end; left > 0 && (end = strchr(at, '\n')) != NULL; at = end + 1, left--)
        printf("%.*s\033[K\n", (int)(end - at), at);
    printf("\033[J\033[?7h");
    free(text);
    return true;
}

/* ---- Plain lines ------------------------------------------------------------------------------ */

static bool show_plain(const watch *w) {
    char when[32], headroom[TOOL_BYTES_TEXT] = "-", limit[TOOL_BYTES_TEXT] = "-", fill[TOOL_BYTES_TEXT + 2] = "-";
    char own[SHORT_TEXT], all[SHORT_TEXT], io[SHORT_TEXT], average[SHORT_TEXT], faults[SHORT_TEXT],
        refaults[SHORT_TEXT];
    const psi_decision *d = &w->decision;
    if (w->shown % PLAIN_ROWS_A_HEADER == 0)
        printf("%-12s %5s %5s %5s %5s %5s %11s %11s %12s %7s %7s %7s %7s %7s %8s\n", "time", "index", "headr", "fcast",
               "stall", "thrsh", "headroom", "limit", "fill/s", "group", "system", "io", "avg10", "faults", "refaults");
    if (has(w, PSI_HAVE_HEADROOM)) {
        tool_bytes(headroom, w->reading.headroom_bytes);
        tool_bytes(limit, w->reading.limit_bytes);
    }
    if (has(w, PSI_HAVE_FILL)) {
        fill[0] = w->reading.fill_bytes_per_s < 0 ? '-' : '+';
        tool_bytes(fill + 1, (uint64_t)llabs((long long)w->reading.fill_bytes_per_s));
    }
    clock_text(when);
    printf("%-12s %5.2f %5.2f %5.2f %5.2f %5.2f %11s %11s %12s %7s %7s %7s %7s %7s %8s\n", when, d->index,
           d->index_headroom, d->index_forecast, d->index_stall, d->index_thrash, headroom, limit, fill,
           per_cent(own, share(w, PSI_RAW_OWN_MEMORY_SOME_US)), per_cent(all, share(w, PSI_RAW_SYSTEM_MEMORY_SOME_US)),
           per_cent(io, has(w, PSI_HAVE_IO) ? w->reading.io_some_share : -1),
           per_cent(average, has(w, PSI_HAVE_AVG10) ? w->reading.avg10_share : -1),
           number(faults, has(w, PSI_HAVE_FAULTS) ? w->reading.major_faults_per_s : -1),
           number(refaults, has(w, PSI_HAVE_REFAULTS) ? w->reading.refaults_per_s : -1));
    return true;
}

/* What is missing is said once, beside the lines, and again when it changes. */
static void say_sources(const watch *w, uint64_t which) {
    size_t count = 0;
    const psi_source *sources = psi_signal_sources(w->signal, &count);
    for (size_t i = 0; i < count && i < 64; i++) {
        if (!(which >> i & 1))
            continue;
        fprintf(stderr, "psi-cache watch: %s %s: ", sources[i].name, sources[i].in_use ? "is back" : "is missing");
        tool_plain(stderr, sources[i].detail);
        if (!sources[i].in_use && sources[i].cure[0]) {
            fprintf(stderr, "; cure: ");
            tool_plain(stderr, sources[i].cure);
        }
        fprintf(stderr, "\n");
    }
}

static uint64_t missing_with_cure(const watch *w) {
    size_t count = 0;
    uint64_t which = 0;
    const psi_source *sources = psi_signal_sources(w->signal, &count);
    for (size_t i = 0; i < count && i < 64; i++)
        which |= (uint64_t)(!sources[i].in_use && sources[i].cure[0]) << i;
    return which;
}

/* ---- JSON ------------------------------------------------------------------------------------- */

static void json_number(const char *name, bool known, double value) {
    if (known && isfinite(value))
        printf(",\"%s\":%.6g", name, value);
    else
        printf(",\"%s\":null", name);
}

static void json_amount(const char *name, bool known, uint64_t value) {
    if (known && value != UINT64_MAX)
        printf(",\"%s\":%" PRIu64, name, value);
    else
        printf(",\"%s\":null", name);
}

static void json_reading(const watch *w) {
    const psi_reading *r = &w->reading;
    bool headroom = has(w, PSI_HAVE_HEADROOM), stall = has(w, PSI_HAVE_STALL);
    printf(",\"reading\":{\"stall_is_own\":%s,\"stall_is_doubted\":%s", r->stall_is_own ? "true" : "false",
           r->stall_is_doubted ? "true" : "false");
    json_number("stall_some_share", stall, r->stall_some_share);
    json_number("stall_full_share", stall, r->stall_full_share);
    json_number("stall_short_share", stall, r->stall_short_share);
    json_number("io_some_share", has(w, PSI_HAVE_IO), r->io_some_share);
    json_number("avg10_share", has(w, PSI_HAVE_AVG10), r->avg10_share);
    json_amount("headroom_bytes", headroom, r->headroom_bytes);
    json_amount("missing_bytes", headroom, r->missing_bytes);
    json_amount("limit_bytes", headroom, r->limit_bytes);
    printf(",\"bound\":\"%s\",\"bound_level\":%" PRIu32, tool_bound_name(r->bound), r->bound_level);
    if (has(w, PSI_HAVE_FILL))
        printf(",\"fill_bytes_per_s\":%" PRId64, r->fill_bytes_per_s);
    else
        printf(",\"fill_bytes_per_s\":null");
    json_amount("fill_age_us", has(w, PSI_HAVE_FILL), r->fill_age_us);
    json_number("major_faults_per_s", has(w, PSI_HAVE_FAULTS), r->major_faults_per_s);
    json_number("refaults_per_s", has(w, PSI_HAVE_REFAULTS), r->refaults_per_s);
    json_number("reclaim_pages_per_s", has(w, PSI_HAVE_RECLAIM), r->reclaim_pages_per_s);
    printf("}");
}

static void json_raw(const watch *w) {
    const psi_sample *now = psi_signal_last(w->signal);
    char name[PSI_RAW_NAME_BYTES];
    bool first = true;
    printf(",\"raw\":{");
    for (size_t i = 0; i < PSI_RAW_COUNT; i++) {
        if (!now->known[i])
            continue;
        printf("%s\"%s\":%" PRIu64, first ? "" : ",", psi_raw_name(i, name), now->value[i]);
        first = false;
    }
    printf("}");
}

static void json_missing(const watch *w) {
    size_t count = 0;
    const psi_source *sources = psi_signal_sources(w->signal, &count);
    bool first = true;
    printf(",\"missing\":[");
    for (size_t i = 0; i < count; i++) {
        if (sources[i].in_use)
            continue;
        printf("%s{\"name\":\"%s\",\"detail\":", first ? "" : ",", sources[i].name);
        tool_json_string(stdout, sources[i].detail);
        printf(",\"cure\":");
        tool_json_string(stdout, sources[i].cure);
        printf("}");
        first = false;
    }
    printf("]");
}

static bool show_json(const watch *w) {
    printf("{\"at_us\":%" PRIu64, w->reading.at_us);
    if (w->process.process_id)
        printf(",\"pid\":%" PRId64 ",", w->process.process_id);
    else
        printf(",\"pid\":null,");
    tool_json_index(stdout, &w->control.options, &w->decision);
    json_reading(w);
    json_raw(w);
    json_missing(w);
    printf("}\n");
    return true;
}

/* ---- The subcommand --------------------------------------------------------------------------- */

static void look(watch *w) {
    static const psi_demand nothing;
    psi_signal_read(w->signal, PSI_LOOK_ALL, &w->reading);
    psi_control_decide(&w->control, &w->reading, &nothing, &w->decision);
}

/* False: standard output takes no more. *status says whether that is an error. */
static bool show(watch *w, int *status) {
    uint64_t changes = psi_signal_changes(w->signal);
    if (w->form == PLAIN)
        say_sources(w, w->shown == 0 ? missing_with_cure(w) : changes);
    bool good = (w->form == SCREEN ? show_screen : w->form == JSON ? show_json : show_plain)(w);
    if (good && fflush(stdout) == 0 && !ferror(stdout)) {
        w->before = *psi_signal_last(w->signal);
        w->shown++;
        return true;
    }
    *status = TOOL_OK;
    if (errno == EPIPE) /* the reader has seen enough */
        return false;
    fprintf(stderr, "psi-cache watch: standard output: %s\ncure: make room, or write elsewhere\n", strerror(errno));
    *status = TOOL_NOTHING;
    return false;
}

static int watch_on(watch *w) {
    int status = TOOL_OK;
    look(w);
    w->before = *psi_signal_last(w->signal);
    uint64_t due_us = psi_os_now_us() + (w->interval_us < BEFORE_FIRST_US ? w->interval_us : BEFORE_FIRST_US);
    for (;;) {
        tool_pause(due_us, &w->process);
        if (tool_take_stop() != 0)
            return TOOL_OK;
        if (tool_process_ended(&w->process)) {
            fprintf(stderr, "psi-cache watch: process %" PRId64 " has ended\n", w->process.process_id);
            return w->shown > 0 ? TOOL_OK : TOOL_NOTHING;
        }
        look(w);
        if (!show(w, &status) || w->shown == w->count)
            return status;
        /* On a grid: what looking and showing take does not add up. */
        uint64_t now_us = psi_os_now_us();
        due_us = due_us + w->interval_us > now_us ? due_us + w->interval_us : now_us + w->interval_us;
    }
}

static bool is_terminal(void) {
    const char *kind = getenv("TERM");
    return isatty(STDOUT_FILENO) && kind && *kind && strcmp(kind, "dumb") != 0;
}

static int parse_options(int argc, char **argv, watch *w) {
    static const struct option known[] = {{"json", no_argument, NULL, 'j'},
                                          {"interval", required_argument, NULL, 'i'},
                                          {"count", required_argument, NULL, 'n'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    uint64_t pid = 0;
    opterr = 0;
    w->form = is_terminal() ? SCREEN : PLAIN;
    for (int which; (which = getopt_long(argc, argv, "-:h", known, NULL)) != -1;) {
        if (which == 'j')
            w->form = JSON;
        else if (which == 'i' && !tool_parse_interval(optarg, INTERVAL_LEAST_MS, &w->interval_us))
            return tool_usage_error("watch", "--interval %s: give milliseconds, from %d to 3600000", optarg,
                                    INTERVAL_LEAST_MS);
        else if (which == 'n' && !tool_parse_count(optarg, UINT64_MAX - 1, &w->count))
            return tool_usage_error("watch", "--count %s: give a whole number from 1", optarg);
        else if (which == 'h')
            exit(tool_help(stdout, "watch") ? TOOL_OK : TOOL_USAGE);
        else if (which == 1 && (pid || !tool_parse_count(optarg, INT32_MAX, &pid)))
            return tool_usage_error("watch", "%s: give one process id", optarg);
        else if (which == ':' || which == '?')
            return tool_option_error("watch", which, argv[optind - 1]);
    }
    if (optind < argc)
        return tool_usage_error("watch", "%s: watch takes no command; psi-cache record -- COMMAND does", argv[optind]);
    if (w->interval_us == 0)
        w->interval_us = w->form == SCREEN ? INTERVAL_SCREEN_US : INTERVAL_PLAIN_US;
    w->process = (tool_process){(int64_t)pid, -1};
    return TOOL_OK;
}

int tool_watch(int argc, char **argv) {
    watch *w = &the_watch;
    psi_control_options options;
    int status = parse_options(argc, argv, w);
    if (status != TOOL_OK)
        return status;
    if (!tool_control_options(&options, w->root))
        return TOOL_USAGE;
    if (!tool_process_open(&w->process, w->process.process_id)) {
        fprintf(stderr, "psi-cache watch: there is no process %" PRId64 "; ps -e lists those there are\n",
                w->process.process_id);
        return TOOL_NOTHING;
    }
    tool_process_name(w->process.process_id, w->name);
    w->signal = psi_signal_open(&(psi_signal_options){.root = w->root, .process_id = w->process.process_id});
    if (!w->signal) {
        fprintf(stderr, "psi-cache watch: out of memory\n");
        return TOOL_NOTHING;
    }
    psi_control_init(&w->control, &options);
    tool_catch_signals();
    status = watch_on(w);
    psi_signal_close(w->signal);
    tool_process_close(&w->process);
    return status;
}
