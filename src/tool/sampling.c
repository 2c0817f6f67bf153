/* sampling.c - what watch, record and replay share: whose process it is, when to stop, the pace between two
 * samples, and an index in words and in JSON. One thread. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tool/sampling.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os/os.h"
#include "pool/settings.h"

/* ---- Signals ---------------------------------------------------------------------------------- */

static const int the_stops[] = {SIGINT, SIGTERM, SIGHUP}, the_errors[] = {SIGPIPE, SIGXFSZ};
enum { STOPS = sizeof the_stops / sizeof *the_stops, ERRORS = sizeof the_errors / sizeof *the_errors };
static struct sigaction the_old_stops[STOPS], the_old_errors[ERRORS];
static sigset_t the_old_mask;
static volatile sig_atomic_t the_signal;

static void on_signal(int number) { the_signal = number; }

void tool_catch_signals(void) {
    struct sigaction stop = {.sa_handler = on_signal}, error = {.sa_handler = SIG_IGN};
    sigset_t stops;
    sigemptyset(&stops);
    for (int i = 0; i < STOPS; i++) {
        sigaddset(&stops, the_stops[i]);
        /* What is ignored stays ignored: nohup's, and that of a shell's background job. */
        if (sigaction(the_stops[i], NULL, &the_old_stops[i]) == 0 && the_old_stops[i].sa_handler != SIG_IGN)
            sigaction(the_stops[i], &stop, NULL);
    }
    for (int i = 0; i < ERRORS; i++)
        sigaction(the_errors[i], &error, &the_old_errors[i]);
    /* Blocked but in tool_pause: none is lost between a look at the flag and the sleep. */
    sigprocmask(SIG_BLOCK, &stops, &the_old_mask);
}

void tool_release_signals(void) {
    for (int i = 0; i < STOPS; i++)
        sigaction(the_stops[i], &the_old_stops[i], NULL);
    for (int i = 0; i < ERRORS; i++)
        sigaction(the_errors[i], &the_old_errors[i], NULL);
    sigprocmask(SIG_SETMASK, &the_old_mask, NULL);
}

int tool_take_stop(void) {
    int number = the_signal; /* none comes in between: they are blocked but in tool_pause */
    the_signal = 0;
    return number;
}

/* ---- A process -------------------------------------------------------------------------------- */

bool tool_process_open(tool_process *process, int64_t process_id) {
    *process = (tool_process){process_id, -1};
    if (process_id == 0)
        return true;
#ifdef SYS_pidfd_open
    process->descriptor = (int)syscall(SYS_pidfd_open, (pid_t)process_id, 0U);
#endif
    return process->descriptor >= 0 || !tool_process_ended(process);
}

void tool_process_close(tool_process *process) {
    if (process->descriptor >= 0)
        close(process->descriptor);
    process->descriptor = -1;
}

bool tool_process_ended(const tool_process *process) {
    if (process->process_id == 0)
        return false;
    /* The descriptor tells of one that was killed and not yet waited for, too. */
    if (process->descriptor >= 0)
        return poll(&(struct pollfd){.fd = process->descriptor, .events = POLLIN}, 1, 0) > 0;
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", process->process_id);
    if (psi_os_read_small(path, text, sizeof text) <= 0)
        return kill((pid_t)process->process_id, 0) != 0 && errno == ESRCH;
    const char *state = strrchr(text, ')');
    return state && (strncmp(state, ") Z", 3) == 0 || strncmp(state, ") X", 3) == 0);
}

void tool_pause(uint64_t until_us, const tool_process *process) {
    struct pollfd end = {.fd = process->descriptor, .events = POLLIN};
    uint64_t now_us = psi_os_now_us(), left_us = until_us > now_us ? until_us - now_us : 0;
    struct timespec left = {.tv_sec = (time_t)(left_us / 1000000), .tv_nsec = (long)(left_us % 1000000) * 1000};
    ppoll(&end, 1, &left, &the_old_mask);
}

void tool_process_name(int64_t process_id, char name[TOOL_COMM_BYTES]) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/comm", process_id);
    name[0] = '\0';
    if (psi_os_read_small(path, name, TOOL_COMM_BYTES) <= 0)
        return;
    name[strcspn(name, "\n")] = '\0';
    for (char *at = name; *at; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
}

bool tool_parse_interval(const char *text, uint64_t least_ms, uint64_t *interval_us) {
    uint64_t ms;
    if (!tool_parse_count(text, 3600000, &ms) || ms < least_ms)
        return false;
    *interval_us = ms * 1000;
    return true;
}

int tool_option_error(const char *subcommand, int which, const char *argument) {
    if (which == ':')
        return tool_usage_error(subcommand, "%s needs a value", argument);
    return tool_usage_error(subcommand, "unknown option %s", argument);
}

/* ---- Control ---------------------------------------------------------------------------------- */

bool tool_control_options(psi_control_options *options, char root[TOOL_ROOT_BYTES]) {
    psi_settings settings;
    if (psi_settings_resolve(&settings, NULL) != 0)
        return false;
    *options = settings.control;
    if (root)
        snprintf(root, TOOL_ROOT_BYTES, "%s", settings.root);
    return true;
}

const char *tool_band_name(psi_band band) {
    return band == PSI_BAND_SAFETY ? "safety" : band == PSI_BAND_COMFORT ? "comfort" : "none";
}

const char *tool_effect_name(psi_effect effect) {
    static const char *const names[] = {[PSI_EFFECT_NONE] = "none",
                                        [PSI_EFFECT_WAITS] = "waits",
                                        [PSI_EFFECT_GOOD] = "good",
                                        [PSI_EFFECT_EATEN] = "eaten",
                                        [PSI_EFFECT_FUTILE] = "futile"};
    return (size_t)effect < sizeof names / sizeof *names ? names[effect] : "none";
}

const char *tool_bound_name(psi_bound_kind bound) {
    static const char *const names[] = {[PSI_BOUND_NONE] = "",
                                        [PSI_BOUND_MACHINE] = "machine",
                                        [PSI_BOUND_V2] = "cgroup v2",
                                        [PSI_BOUND_V1] = "cgroup v1"};
    return (size_t)bound < sizeof names / sizeof *names ? names[bound] : "";
}

void tool_json_index(FILE *out, const psi_control_options *options, const psi_decision *d) {
    const struct {
        const char *name;
        double value;
    } shares[] = {{"index", d->index},
                  {"index_headroom", d->index_headroom},
                  {"index_forecast", d->index_forecast},
                  {"index_stall", d->index_stall},
                  {"index_thrash", d->index_thrash},
                  {"high", options->high},
                  {"low", options->low}};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        if (isfinite(shares[i].value))
            fprintf(out, "\"%s\":%.6g,", shares[i].name, shares[i].value);
        else
            fprintf(out, "\"%s\":null,", shares[i].name);
    fprintf(out, "\"band\":\"%s\",\"reason\":\"%s\"", tool_band_name(d->band), psi_decision_reason(d));
}
