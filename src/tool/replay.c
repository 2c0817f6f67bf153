/* replay.c - psi-cache replay: runs the controller over a trace, with the trace's clock and a cache that is only
 * simulated, and prints what it decides. One thread; no clock, locale, environment or address takes part, so that
 * the same bytes in are the same bytes out. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "signal/derive.h"
#include "tool/sampling.h"

/* A line of a trace is a name and a number; only comments may be longer. */
enum { LINE_BYTES = 1024 };

/* ---- The simulated cache ---------------------------------------------------------------------- */

/* Trims that were decided and are not given yet, oldest first. */
enum { MOST_PENDING = 256 };
typedef struct pending {
    uint64_t asked_us, due_us, bytes;
} pending;

typedef struct model {
    uint64_t capacity_bytes, floor_bytes, reaction_us;
    uint64_t resident_bytes, returned_bytes, pending_bytes;
    pending queue[MOST_PENDING];
    size_t first, count;
} model;

static void ask(model *m, uint64_t at_us, uint64_t bytes) {
    if (m->count == MOST_PENDING) { /* with the newest: later than it should be, never sooner */
        pending *last = &m->queue[(m->first + m->count - 1) % MOST_PENDING];
        last->bytes += bytes;
        last->due_us = at_us + m->reaction_us;
    } else {
        m->queue[(m->first + m->count++) % MOST_PENDING] = (pending){at_us, at_us + m->reaction_us, bytes};
    }
    m->pending_bytes += bytes;
}

/* What is due goes, as an engine's next safe point would let it. */
static void give(model *m, uint64_t now_us, psi_control *control) {
    for (; m->count > 0 && m->queue[m->first].due_us <= now_us; m->count--) {
        const pending *due = &m->queue[m->first];
        m->resident_bytes -= due->bytes;
        m->returned_bytes += due->bytes;
        m->pending_bytes -= due->bytes;
        if (control->options.tune)
            psi_tuning_note_reaction(&control->tuning, due->due_us - due->asked_us);
        m->first = (m->first + 1) % MOST_PENDING;
    }
}

static uint64_t evictable(const model *m) {
    return m->resident_bytes > m->floor_bytes ? m->resident_bytes - m->floor_bytes : 0;
}

static void measure(const model *m, psi_demand *demand) {
    *demand = (psi_demand){.resident_bytes = m->resident_bytes,
                           .evictable_bytes = evictable(m),
                           .returnable_bytes = m->capacity_bytes - m->resident_bytes,
                           .pending_bytes = m->pending_bytes,
                           .returned_bytes = m->returned_bytes};
}

/* As far as there is something to give, or room to take: what was really done is left in *decision. */
static void act(model *m, uint64_t at_us, psi_decision *decision) {
    uint64_t most = evictable(m) - m->pending_bytes, room = m->capacity_bytes - m->resident_bytes;
    decision->trim_bytes = decision->trim_bytes < most ? decision->trim_bytes : most;
    decision->restore_bytes = decision->restore_bytes < room ? decision->restore_bytes : room;
    if (decision->trim_bytes > 0)
        ask(m, at_us, decision->trim_bytes);
    m->resident_bytes += decision->restore_bytes;
}

/* ---- The replay ------------------------------------------------------------------------------- */

typedef struct peak {
    double index;
    uint64_t at_us;
} peak;

enum { HEADROOM, FORECAST, STALL, THRASH, COMPONENTS };
static const char *const the_components[COMPONENTS] = {"headroom", "forecast", "stall", "thrash"};

typedef struct replay {
    const char *path;
    bool json;
    psi_derive derive;
    psi_control control;
    model model;
    psi_decision before;
    /* for the summary */
    uint64_t samples, first_us, last_us, lines;
    uint64_t trims, trimmed_bytes, restores, restored_bytes, guarded;
    uint64_t first_trim_us;
    peak peaks[COMPONENTS];
} replay;

static replay the_replay; /* too large for a stack */

static double seconds(uint64_t us) { return (double)us / 1e6; }

static bool is_worth_a_line(const psi_decision *now, const psi_decision *before) {
    return now->trim_bytes > 0 || now->restore_bytes > 0 || now->band != before->band ||
           now->refuse != before->refuse || now->guarded != before->guarded ||
           (now->effect != before->effect && (now->effect == PSI_EFFECT_EATEN || now->effect == PSI_EFFECT_FUTILE));
}

static void show_decision(replay *r, uint64_t at_us, const psi_decision *d) {
    char trim[TOOL_BYTES_TEXT] = "-", restore[TOOL_BYTES_TEXT] = "-", resident[TOOL_BYTES_TEXT];
    if (r->lines++ % 40 == 0)
        printf("%10s %6s %6s %6s %6s %6s  %-7s %11s %11s %11s  %s\n", "seconds", "index", "headr", "fcast", "stall",
               "thrash", "band", "trim", "restore", "resident", "reason");
    if (d->trim_bytes > 0)
        tool_bytes(trim, d->trim_bytes);
    if (d->restore_bytes > 0)
        tool_bytes(restore, d->restore_bytes);
    printf("%10.3f %6.3f %6.3f %6.3f %6.3f %6.3f  %-7s %11s %11s %11s  %s", seconds(at_us - r->first_us), d->index,
           d->index_headroom, d->index_forecast, d->index_stall, d->index_thrash, tool_band_name(d->band), trim,
           restore, tool_bytes(resident, r->model.resident_bytes), psi_decision_reason(d));
    if (d->effect == PSI_EFFECT_EATEN || d->effect == PSI_EFFECT_FUTILE)
        printf(", effect %s", tool_effect_name(d->effect));
    printf("%s%s%s\n", d->urgent ? ", urgent" : "", d->guarded ? ", guarded" : "", d->refuse ? ", refuses" : "");
}

static void json_decision(const replay *r, uint64_t at_us, const psi_decision *d) {
    printf("{\"seconds\":%.6f,", seconds(at_us - r->first_us));
    tool_json_index(stdout, &r->control.options, d);
    printf(",\"trim_bytes\":%" PRIu64 ",\"restore_bytes\":%" PRIu64 ",\"resident_bytes\":%" PRIu64
           ",\"pending_bytes\":%" PRIu64 ",\"urgent\":%s,\"refuse\":%s,\"guarded\":%s,\"effect\":\"%s\"}\n",
           d->trim_bytes, d->restore_bytes, r->model.resident_bytes, r->model.pending_bytes,
           d->urgent ? "true" : "false", d->refuse ? "true" : "false", d->guarded ? "true" : "false",
           tool_effect_name(d->effect));
}

static void count_in(replay *r, uint64_t at_us, const psi_decision *d) {
    const double now[COMPONENTS] = {d->index_headroom, d->index_forecast, d->index_stall, d->index_thrash};
    for (int i = 0; i < COMPONENTS; i++)
        if (now[i] > r->peaks[i].index)
            r->peaks[i] = (peak){now[i], at_us};
    if (d->trim_bytes > 0 && r->trims++ == 0)
        r->first_trim_us = at_us;
    r->trimmed_bytes += d->trim_bytes;
    r->restores += d->restore_bytes > 0;
    r->restored_bytes += d->restore_bytes;
    r->guarded += d->guarded && !r->before.guarded;
}

static void take_sample(replay *r, const psi_sample *sample) {
    psi_reading reading;
    psi_demand demand;
    psi_decision decision;
    if (r->samples++ == 0)
        r->first_us = sample->at_us;
    r->last_us = sample->at_us;
    give(&r->model, sample->at_us, &r->control);
    psi_derive_read(&r->derive, sample, &reading);
    measure(&r->model, &demand);
    psi_control_decide(&r->control, &reading, &demand, &decision);
    act(&r->model, sample->at_us, &decision);
    count_in(r, sample->at_us, &decision);
    if (is_worth_a_line(&decision, &r->before)) {
        if (r->json)
            json_decision(r, sample->at_us, &decision);
        else
            show_decision(r, sample->at_us, &decision);
    }
    r->before = decision;
}

static void show_summary(const replay *r) {
    char a[TOOL_BYTES_TEXT], b[TOOL_BYTES_TEXT];
    printf("%s%" PRIu64 " samples in %.3f s\n", r->lines > 0 ? "\n" : "", r->samples,
           seconds(r->last_us - r->first_us));
    if (r->trims == 0)
        printf("no trim");
    else
        printf("%" PRIu64 " trim%s (%s), the first after %.3f s, %.3f s before the end", r->trims,
               r->trims == 1 ? "" : "s", tool_bytes(a, r->trimmed_bytes), seconds(r->first_trim_us - r->first_us),
               seconds(r->last_us - r->first_trim_us));
    printf("; %" PRIu64 " restore%s (%s); withheld %" PRIu64 " time%s\n", r->restores, r->restores == 1 ? "" : "s",
           tool_bytes(a, r->restored_bytes), r->guarded, r->guarded == 1 ? "" : "s");
    printf("resident at the end %s of %s\n", tool_bytes(a, r->model.resident_bytes),
           tool_bytes(b, r->model.capacity_bytes));
    for (int i = 0; i < COMPONENTS; i++) {
        printf("highest %-8s %.3f", the_components[i], r->peaks[i].index);
        if (r->peaks[i].index > 0)
            printf(" at %.3f s", seconds(r->peaks[i].at_us - r->first_us));
        printf("\n");
    }
}

static void json_summary(const replay *r) {
    printf("{\"summary\":true,\"samples\":%" PRIu64 ",\"seconds\":%.6f,\"trims\":%" PRIu64 ",\"trimmed_bytes\":%" PRIu64
           ",\"restores\":%" PRIu64 ",\"restored_bytes\":%" PRIu64 ",\"guarded\":%" PRIu64
           ",\"resident_bytes\":%" PRIu64 ",\"capacity_bytes\":%" PRIu64,
           r->samples, seconds(r->last_us - r->first_us), r->trims, r->trimmed_bytes, r->restores, r->restored_bytes,
           r->guarded, r->model.resident_bytes, r->model.capacity_bytes);
    if (r->trims > 0)
        printf(",\"first_trim_s\":%.6f,\"first_trim_before_end_s\":%.6f", seconds(r->first_trim_us - r->first_us),
               seconds(r->last_us - r->first_trim_us));
    else
        printf(",\"first_trim_s\":null,\"first_trim_before_end_s\":null");
    for (int i = 0; i < COMPONENTS; i++)
        printf(",\"most_%s\":%.6g", the_components[i], r->peaks[i].index);
    printf("}\n");
}

/* ---- The trace, line by line -------------------------------------------------------------------- */

typedef enum line_end { WHOLE, CUT_OFF, TOO_LONG, NO_MORE } line_end;

/* Reads one line without its newline, at most LINE_BYTES of it. *has_nul: a program would see less than all of it. */
static line_end read_line(FILE *file, char *line, bool *has_nul) {
    size_t length = 0;
    int c;
    *has_nul = false;
    while ((c = getc_unlocked(file)) != EOF && c != '\n') {
        *has_nul = *has_nul || c == '\0';
        if (length < LINE_BYTES)
            line[length] = (char)c;
        length += length <= LINE_BYTES;
    }
    line[length < LINE_BYTES ? length : LINE_BYTES - 1] = '\0';
    if (c == EOF)
        return length == 0 ? NO_MORE : CUT_OFF;
    return length < LINE_BYTES ? WHOLE : TOO_LONG;
}

static int refuse(const replay *r, uint64_t line, const char *why) {
    fflush(stdout);
    fprintf(stderr,
            "psi-cache replay: %s, line %" PRIu64
            ": %s\ncure: psi-cache record -o FILE writes a trace; its first line is "
            "\"" PSI_TRACE_HEAD "\"\n",
            r->path, line, why);
    return TOOL_NOTHING;
}

/* The trace up to its end, or to a line that is none: TOOL_OK or not. */
static int read_trace(replay *r, FILE *file) {
    static psi_trace_reader reader;
    psi_sample sample;
    char line[LINE_BYTES];
    bool has_nul = false;
    line_end end;
    uint64_t number = 0;
    while ((end = read_line(file, line, &has_nul)) == WHOLE || end == TOO_LONG) {
        number++;
        if (line[0] == '#' && number > 1) /* whatever is in it */
            continue;
        if (end == TOO_LONG || has_nul)
            return refuse(r, number, has_nul ? "has a NUL byte, so this is no text" : "is too long for a trace");
        int taken = psi_trace_take(&reader, line, &sample);
        if (taken < 0)
            return refuse(r, number,
                          taken == -EPROTO ? "is not the first line of a trace that this version knows"
                                           : "is no line of a trace, or its time goes back");
        if (taken > 0)
            take_sample(r, &sample);
    }
    if (ferror(file)) {
        fprintf(stderr, "psi-cache replay: %s: %s\n", r->path, strerror(errno));
        return TOOL_NOTHING;
    }
    if (end == CUT_OFF && number == 0)
        return refuse(r, 1, "is not the first line of a trace that this version knows");
    if (end == CUT_OFF)
        fprintf(stderr,
                "psi-cache replay: %s: the last line, %" PRIu64
                ", is cut off (was the recorder killed?); the sample that "
                "it belongs to is left out\n",
                r->path, number + 1);
    else if (psi_trace_finish(&reader, &sample) > 0)
        take_sample(r, &sample);
    return TOOL_OK;
}

static int finish(const replay *r) {
    if (r->samples == 0) {
        fprintf(stderr, "psi-cache replay: %s: holds no sample\ncure: let psi-cache record run for longer\n", r->path);
        return TOOL_NOTHING;
    }
    (r->json ? json_summary : show_summary)(r);
    if (fflush(stdout) == 0)
        return TOOL_OK;
    fprintf(stderr, "psi-cache replay: standard output: %s\n", strerror(errno));
    return TOOL_NOTHING;
}

/* ---- The subcommand --------------------------------------------------------------------------- */

typedef struct choice {
    double high, low, evictable_share; /* high and low negative: the default */
    uint64_t cache_bytes, reaction_us;
    psi_mode mode;
    bool tune;
} choice;

static bool choose_mode(const char *text, psi_mode *mode) {
    static const char *const names[] = {[PSI_MODE_AUTO] = "auto", [PSI_MODE_PSI] = "psi", [PSI_MODE_AVG10] = "avg10"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i]) == 0) {
            *mode = (psi_mode)i;
            return true;
        }
    }
    return false;
}

static int take_option(int which, choice *c, bool *json) {
    const uint64_t most_bytes = UINT64_C(1) << 50;
    if (which == 'm' && !choose_mode(optarg, &c->mode))
        return tool_usage_error("replay", "--mode %s: choose auto, psi or avg10", optarg);
    if (which == 'H' && !tool_parse_share(optarg, &c->high))
        return tool_usage_error("replay", "--high %s: give a number from 0 to 1", optarg);
    if (which == 'L' && !tool_parse_share(optarg, &c->low))
        return tool_usage_error("replay", "--low %s: give a number from 0 to 1", optarg);
    if (which == 'e' && !tool_parse_share(optarg, &c->evictable_share))
        return tool_usage_error("replay", "--evictable %s: give a number from 0 to 1", optarg);
    if (which == 'c' &&
        (!tool_parse_bytes(optarg, &c->cache_bytes) || c->cache_bytes == 0 || c->cache_bytes > most_bytes))
        return tool_usage_error(
            "replay", "--cache-bytes %s: give a whole number of bytes, or with K, M or G, up to 1024T", optarg);
    if (which == 'r' && !tool_parse_count(optarg, 60000000, &c->reaction_us))
        return tool_usage_error("replay", "--reaction-us %s: give microseconds, from 1 to 60000000", optarg);
    if (which == 'n')
        c->tune = false;
    if (which == 'j')
        *json = true;
    return TOOL_OK;
}

static int parse_options(int argc, char **argv, replay *r, choice *c) {
    static const struct option known[] = {{"mode", required_argument, NULL, 'm'},
                                          {"high", required_argument, NULL, 'H'},
                                          {"low", required_argument, NULL, 'L'},
                                          {"cache-bytes", required_argument, NULL, 'c'},
                                          {"evictable", required_argument, NULL, 'e'},
                                          {"reaction-us", required_argument, NULL, 'r'},
                                          {"no-tuning", no_argument, NULL, 'n'},
                                          {"json", no_argument, NULL, 'j'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    int status = TOOL_OK;
    opterr = 0;
    for (int which; status == TOOL_OK && (which = getopt_long(argc, argv, "-:h", known, NULL)) != -1;) {
        if (which == ':' || which == '?')
            status = tool_option_error("replay", which, argv[optind - 1]);
        else if (which == 'h')
            exit(tool_help(stdout, "replay") ? TOOL_OK : TOOL_USAGE);
        else if (which == 1 && r->path)
            status = tool_usage_error("replay", "%s: give one trace", optarg);
        else if (which == 1)
            r->path = optarg;
        else
            status = take_option(which, c, &r->json);
    }
    for (; status == TOOL_OK && optind < argc; optind++) { /* behind -- */
        if (r->path)
            return tool_usage_error("replay", "%s: give one trace", argv[optind]);
        r->path = argv[optind];
    }
    if (status == TOOL_OK && !r->path)
        status = tool_usage_error("replay", "name a trace, or - for standard input");
    return status;
}

static int prepare(replay *r, const choice *c) {
    psi_control_options options;
    clearenv(); /* a PSI_CACHE_HIGH would be one more input */
    if (!tool_control_options(&options, NULL))
        return TOOL_USAGE;
    options.high = c->high >= 0 ? c->high : options.high;
    options.low = c->low >= 0 ? c->low : options.high * 3 / 7;
    if (!(options.low < options.high))
        return tool_usage_error("replay", "--low %g is not below --high %g: choose 0 <= low < high <= 1", options.low,
                                options.high);
    options.mode = c->mode;
    options.tune = c->tune;
    psi_control_init(&r->control, &options);
    psi_derive_init(&r->derive);
    r->model.capacity_bytes = r->model.resident_bytes = c->cache_bytes;
    r->model.reaction_us = c->reaction_us;
    uint64_t kept = (uint64_t)((1 - c->evictable_share) * (double)c->cache_bytes), least = c->cache_bytes / 32;
    r->model.floor_bytes = kept > least ? kept : least;
    return TOOL_OK;
}

int tool_replay(int argc, char **argv) {
    replay *r = &the_replay;
    choice c = {.high = -1,
                .low = -1,
                .evictable_share = 1,
                .cache_bytes = UINT64_C(256) << 20,
                .reaction_us = 20000,
                .tune = true};
    int status = parse_options(argc, argv, r, &c);
    if (status == TOOL_OK)
        status = prepare(r, &c);
    if (status != TOOL_OK)
        return status;
    bool from_input = strcmp(r->path, "-") == 0;
    FILE *file = from_input ? stdin : fopen(r->path, "re");
    if (!file) {
        fprintf(stderr, "psi-cache replay: %s: %s\ncure: name a file that psi-cache record -o FILE wrote\n", r->path,
                strerror(errno));
        return TOOL_NOTHING;
    }
    if (from_input)
        r->path = "standard input";
    status = read_trace(r, file);
    if (!from_input)
        fclose(file);
    return status == TOOL_OK ? finish(r) : status;
}
